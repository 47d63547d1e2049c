"""Tables of several likelihoods: which one belongs to which column, and all of them side by side over rows with holes."""

from collections.abc import Iterator
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._constants import constant
from skvae._settings import StrOptions, resolve
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._bernoulli import Bernoulli


class Mixed(Likelihood):
    """A likelihood for each column of a table: those that are named, and for the others what their types suggest.

    What `likelihood="auto"` does, with a say in it. The log-likelihood of a row is the sum over its columns, in nats, without
    weights between them.

    Parameters
    ----------
    columns : dict or list of tuples, default=None
        Likelihoods, by name or as objects, for some columns: `{"visits": "poisson"}`, or pairs `(likelihood, columns)` as in
        :func:`sklearn.compose.make_column_transformer`, where columns are a name, a list of names, a mask with a flag for each
        column, or a callable that takes the frame and returns one of these, such as
        :func:`sklearn.compose.make_column_selector` makes. Columns of an array go by their numbers.

    numbers : str or Likelihood, default="auto"
        The likelihood of the other columns that hold numbers. "auto" is "normal_mixture" in a table with categories or flags,
        and "gaussian" where all columns are numbers, for which training starts from the exact linear solution. A mixture
        describes columns better that are skewed, have several modes, or one value that is far more frequent than the others.

    handle_unknown : {"error", "missing"}, default="error"
        What to do with categories that were not in the training data: refuse them, or read the cell as missing.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Mixed
    >>> VAETransformer(likelihood=Mixed({"smoker": "bernoulli"}))
    VAETransformer(likelihood=Mixed(columns={'smoker': 'bernoulli'}))
    """

    _parameter_constraints = {
        "columns": [dict, list, tuple, None],
        "numbers": [str, Likelihood],
        "handle_unknown": [StrOptions({"error", "missing"})],
    }

    def __init__(self, columns=None, *, numbers="auto", handle_unknown="error"):
        self.columns = columns
        self.numbers = numbers
        self.handle_unknown = handle_unknown

    def chosen(self) -> list[tuple[Likelihood, object]]:
        """Return pairs of a likelihood and the columns it is for; later ones win."""
        columns = self.columns or {}
        pairs = [(one, name) for name, one in columns.items()] if isinstance(columns, dict) else list(columns)
        return [(_resolved(one), names) for one, names in pairs]

    def chosen_for_numbers(self) -> Likelihood | None:
        """Return the likelihood of columns of numbers, None where the table is to decide."""
        return None if self.numbers == "auto" else _resolved(self.numbers)


def _resolved(likelihood) -> Likelihood:
    """Return a likelihood for single columns."""
    if likelihood != "auto" and isinstance(likelihood, (str, Likelihood)):
        found = resolve("likelihood", likelihood)
        if not isinstance(found, (Mixed, PerColumn)):
            return found
    raise ValueError(f"{likelihood!r} is no likelihood of a column. Name one, such as 'gaussian', or use an object.")


class Given(Likelihood):
    """Columns that are conditions: encoder and decoder read them as their likelihood says, and no density counts them.

    Parameters
    ----------
    likelihood : Likelihood
        How the columns are read.

    n_columns : int, default=None
        How many there are; known after `bind`.
    """

    _parameter_constraints = {"likelihood": [Likelihood], "n_columns": [Integral, None]}
    is_density = False

    def __init__(self, likelihood, n_columns=None):
        self.likelihood = likelihood
        self.n_columns = n_columns

    def validate(self):
        super().validate()
        self.likelihood.validate()
        return self

    @property
    def filler(self):
        return 0.5 if isinstance(self.likelihood, Bernoulli) else self.likelihood.filler  # between both levels of a flag

    @property
    def is_whole(self):
        return self.likelihood.is_whole

    @property
    def reads_codes(self):
        return self.likelihood.reads_codes

    @property
    def support(self):
        return self.likelihood.support

    @property
    def clips(self):
        return self.likelihood.clips

    @property
    def drops_constant(self):
        return True

    def bind(self, columns):
        return Given(self.likelihood.bind(columns), len(columns.low))

    def units(self, columns):
        return self.likelihood.units(columns)

    def presented(self, x, uniform=None):
        return self.likelihood.presented(x, uniform)

    def n_inputs(self, n_columns):
        return self.likelihood.n_inputs(n_columns)

    def inputs(self, params, x):
        is_flag = isinstance(self.likelihood, Bernoulli)
        return self.likelihood.inputs(params, torch.where(x.isnan(), self.filler, x) if is_flag else x)

    def n_given(self, n_columns):
        return self.n_inputs(n_columns)

    def given(self, params, x):
        return self.inputs(params, x)

    def shapes(self, n_columns):
        return self.input_shapes(n_columns)

    def input_shapes(self, n_columns):
        return self.likelihood.input_shapes(n_columns)

    def start(self, params, x):
        self.likelihood.start_inputs(params, x)

    def n_outputs(self, n_columns):
        return 0

    def log_prob(self, params, eta, x):
        return torch.zeros_like(x) + eta.sum(-1, keepdim=True)  # of no outputs; torch.broadcast_shapes imports sympy

    def derivative(self, params, eta, x, weight):
        return eta, {}

    def mean(self, params, eta):
        return eta.new_full((*eta.shape[:-1], self.n_columns), torch.nan)

    def sample(self, params, eta, stream):
        return self.mean(params, eta)


class Part(NamedTuple):
    """One likelihood of a table, and what belongs to it."""

    likelihood: Likelihood
    columns: slice
    inputs: slice
    outputs: slice
    expected: slice
    params: dict[str, Tensor]


class PerColumn(Likelihood):
    """Likelihoods side by side, each over a group of neighbouring columns; made by `fit`. Missing cells, NaN, count nothing.

    The encoder reads what each likelihood makes of its columns, and which cells are missing.

    Parameters
    ----------
    likelihoods : tuple of Likelihood
        One for each group.

    widths : tuple of int
        Number of columns of each group.

    log_units : tuple of float
        Log of the unit of each column, which a log-density per unit of the data lacks; 0 for a probability mass. For models
        side by side, as nested tuples of shape (m, 1, d).

    missing : tuple of int, default=()
        The columns that had missing cells in training, of which the encoder is told.
    """

    _parameter_constraints = {name: [tuple, list] for name in ("likelihoods", "widths", "log_units", "missing")}

    def __init__(self, likelihoods, widths, log_units, missing=()):
        self.likelihoods = likelihoods
        self.widths = widths
        self.log_units = log_units
        self.missing = missing

    def validate(self):
        super().validate()
        for likelihood in self.likelihoods:
            likelihood.validate()
        return self

    def _parts(self, params: dict[str, Tensor] | None = None) -> Iterator[Part]:
        """Yield the groups, with their share of the parameters."""
        starts = [0, 0, 0, 0]
        for i, (likelihood, d) in enumerate(zip(self.likelihoods, self.widths, strict=True)):
            sizes = (d, likelihood.n_inputs(d), likelihood.n_outputs(d), likelihood.n_expected(d))
            columns, inputs, outputs, expected = (slice(at, at + size) for at, size in zip(starts, sizes, strict=True))
            mark = f"{i}_"
            own = {k.removeprefix(mark): v for k, v in (params or {}).items() if k.startswith(mark)}
            yield Part(likelihood, columns, inputs, outputs, expected, own)
            starts = [at + size for at, size in zip(starts, sizes, strict=True)]

    def _joined(self, function, params: dict[str, Tensor] | None = None) -> Tensor:
        """Return what a function gives for each group, side by side."""
        values = [function(part) for part in self._parts(params)]
        return values[0] if len(values) == 1 else torch.cat(values, -1)

    def cells_of_parts(self, params, eta: Tensor, x: Tensor) -> Iterator[tuple[Likelihood, dict[str, Tensor], Tensor, Tensor]]:
        """Yield each likelihood with its parameters, its outputs and its cells, holes filled, as its `log_prob` gets them."""
        filled = self._filled(x, self._passed(x))
        for part in self._parts(params):
            yield part.likelihood, part.params, eta[..., part.outputs], filled[..., part.columns]

    def _filled(self, x: Tensor, passed: Tensor) -> Tensor:
        """Return the cells as likelihoods are to see them, given those that count nothing."""
        fillers = {likelihood.filler for likelihood in self.likelihoods}
        if len(fillers) == 1:
            return torch.where(passed, fillers.pop(), x)
        return torch.where(passed, constant(tuple(likelihood.filler for likelihood in self.of_columns()), x), x)

    def _passed(self, x: Tensor) -> Tensor:
        """Tell of every cell whether it counts nothing.  # (..., n, d)"""
        missing = x.isnan()
        if not self.reads_missing:
            return missing
        counts = constant(tuple(likelihood.reads_missing for likelihood in self.of_columns()), x, torch.bool)
        return missing & ~counts

    @property
    def reads_missing(self) -> bool:  # type: ignore[override]
        """Whether missing cells count in some columns."""
        return any(likelihood.reads_missing for likelihood in self.likelihoods)

    @property
    def runs_along_rows(self) -> bool:  # type: ignore[override]
        """Whether functions of some columns run along the rows."""
        return any(likelihood.runs_along_rows for likelihood in self.likelihoods)

    def passing_over_holes(self):
        return PerColumn(
            tuple(likelihood.passing_over_holes() for likelihood in self.likelihoods), self.widths, self.log_units, self.missing
        )

    def structure(self):
        return self._with_units(())

    def of_all(self, likelihoods):
        of_each = [tuple(likelihood.log_units) for likelihood in likelihoods]
        return self if len(set(of_each)) == 1 else self._with_units(tuple((units,) for units in of_each))  # (m, 1, d)

    def _with_units(self, log_units: tuple) -> "PerColumn":
        return PerColumn(self.likelihoods, self.widths, log_units, self.missing)

    def of_columns(self) -> list[Likelihood]:
        """Return the likelihood of each column."""
        return [part.likelihood for part in self._parts() for _ in range(part.columns.start, part.columns.stop)]

    def presented(self, x, uniform=None):
        if all(type(likelihood).presented is Likelihood.presented for likelihood in self.likelihoods):
            return x
        drawn = None if uniform is None else uniform()

        def shown(part: Part) -> Tensor:
            cells = x[..., part.columns]
            draw = None if drawn is None else lambda: drawn[..., part.columns]
            return torch.where(cells.isnan(), cells, part.likelihood.presented(cells, draw))

        return self._joined(shown)

    def n_inputs(self, n_columns):
        return sum(likelihood.n_inputs(d) for likelihood, d in zip(self.likelihoods, self.widths)) + len(self.missing)

    def inputs(self, params, x):
        read = self._joined(lambda part: part.likelihood.inputs(part.params, x[..., part.columns]), params)
        if not self.missing:
            return read
        absent = x.index_select(-1, constant(tuple(self.missing), x, torch.int64)).isnan()
        return torch.cat([read, absent.to(x.dtype)], -1)

    def n_given(self, n_columns):
        of_parts = sum(likelihood.n_given(d) for likelihood, d in zip(self.likelihoods, self.widths))
        return of_parts + len(self._missing_conditions())

    def given(self, params, x):
        conditions = [part for part in self._parts(params) if isinstance(part.likelihood, Given)]
        read = [part.likelihood.given(part.params, x[..., part.columns]) for part in conditions]
        if not read:
            return x[..., :0]
        marks = constant(tuple(self._missing_conditions()), x, torch.int64)
        return torch.cat([*read, x.index_select(-1, marks).isnan().to(x.dtype)], -1)

    def _missing_conditions(self) -> list[int]:
        """Return the conditions that had missing cells in training."""
        of_columns = self.of_columns()
        return [j for j in self.missing if isinstance(of_columns[j], Given)]

    def n_outputs(self, n_columns):
        return sum(likelihood.n_outputs(d) for likelihood, d in zip(self.likelihoods, self.widths))

    def n_expected(self, n_columns):
        return sum(likelihood.n_expected(d) for likelihood, d in zip(self.likelihoods, self.widths))

    def shapes(self, n_columns):
        groups = enumerate(zip(self.likelihoods, self.widths))
        return {f"{i}_{name}": shape for i, (one, d) in groups for name, shape in one.shapes(d).items()}

    def init(self, n_columns):
        groups = enumerate(zip(self.likelihoods, self.widths))
        return {f"{i}_{name}": value for i, (one, d) in groups for name, value in one.init(d).items()}

    def start(self, params, x):
        def outputs(part: Part) -> Tensor:
            eta = part.likelihood.start(part.params, x[..., part.columns])
            return x.new_zeros(part.outputs.stop - part.outputs.start) if eta is None else eta

        return self._joined(outputs, params)

    def log_prob(self, params, eta, x):
        passed = self._passed(x)
        filled = self._filled(x, passed)

        def of_part(part: Part) -> Tensor:
            return part.likelihood.log_prob(part.params, eta[..., part.outputs], filled[..., part.columns])

        in_units = self._joined(of_part, params) - torch.where(x.isnan(), 0.0, constant(tuple(self.log_units), x, owner=self))
        return torch.where(passed, 0.0, in_units)

    def offers(self, name):
        return super().offers(name) and all(likelihood.offers(name) for likelihood in self.likelihoods)

    def derivative(self, params, eta, x, weight):
        passed = self._passed(x)
        of_cells, filled = torch.where(passed, 0.0, weight), self._filled(x, passed)  # (..., n, d)
        by_params = {}
        for i, part in enumerate(self._parts(params)):
            slopes = eta[..., part.outputs]
            cells, of_part = filled[..., part.columns], of_cells[..., part.columns]
            found, own = part.likelihood.derivative(part.params, slopes, cells, of_part)
            if found is not slopes:
                slopes.copy_(found)
            by_params.update({f"{i}_{name}": value for name, value in own.items()})
        return eta, by_params

    def mean(self, params, eta):
        return self._joined(lambda part: part.likelihood.mean(part.params, eta[..., part.outputs]), params)

    def expectation(self, params, eta):
        return self._joined(lambda part: part.likelihood.expectation(part.params, eta[..., part.outputs]), params)

    def expectation_of_missing(self, params, eta):
        return self._joined(lambda part: part.likelihood.expectation_of_missing(part.params, eta[..., part.outputs]), params)

    def point(self, expectation):
        return self._joined(lambda part: part.likelihood.point(expectation[..., part.expected]))

    def sample(self, params, eta, stream):
        return self._joined(lambda part: part.likelihood.sample(part.params, eta[..., part.outputs], stream), params)

    def sample_missing(self, params, eta, stream):
        return self._joined(lambda part: part.likelihood.sample_missing(part.params, eta[..., part.outputs], stream), params)

    def with_holes(self, params, x, like, stream):
        def of_part(part: Part) -> Tensor:
            return part.likelihood.with_holes(part.params, x[..., part.columns], like[..., part.columns], stream)

        return self._joined(of_part, params)

    def noise_variance(self, params, n_columns):
        known = []
        for part in self._parts(params):
            d = part.columns.stop - part.columns.start
            variance = part.likelihood.noise_variance(part.params, d)
            unknown = torch.full((1, d), torch.nan, dtype=torch.float64, device="cpu")
            known.append(unknown if variance is None else variance.double().cpu())
        together = torch.cat(known, -1)
        return None if together.isnan().all() else together
