"""Likelihoods of categories: unordered ones and ordered levels, coded as whole numbers from 0."""

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import groupby
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from skvae._constants import constant
from skvae._numbers import VECTOR
from skvae._random import uniform
from skvae._settings import Interval
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._numerics import softplus, sum_over_rows

_MANY_LEVELS = 10_000  # more are a mistake, unless somebody says so
_WIDE = 32  # levels, from which on functions along them are as fast as along rows
_SMALLEST_STEP = 1e-4  # between the thresholds of neighbouring levels


class Places(NamedTuple):
    """Where the levels of every column lie in a list of all of them, and in a table with room for the most there are."""

    column: Tensor  # (t,) of each of all levels
    level: Tensor  # (t,)
    first: Tensor  # (d,) in the list
    in_list: Tensor  # (d * most,) of each place of the table, t where there is nothing
    in_table: Tensor  # (t,) of each of all levels
    most: int


@cache  # without a limit: a recorded step knows where a tensor lies and does not keep it
def places(n_levels: tuple[int, ...], device: torch.device) -> Places:
    """Return the places of the levels of columns that have `n_levels`."""
    with torch.inference_mode(False):  # autograd may need the indices later
        numbers = torch.tensor(n_levels, device=device)
        first, most, total = numbers.cumsum(0) - numbers, max(n_levels), sum(n_levels)
        column = torch.repeat_interleave(torch.arange(len(n_levels), device=device), numbers)
        level = torch.arange(total, device=device) - first[column]
        of_table = torch.arange(most, device=device)
        in_list = torch.where(of_table < numbers[:, None], first[:, None] + of_table, total).flatten()
        return Places(column, level, first, in_list, column * most + level, most)


def to_table(values: Tensor, n_levels: tuple[int, ...], filler: float) -> Tensor:
    """Arrange a list of all levels as a table with a row per column; `filler` stands where a column has fewer.

    (..., t) -> (..., d, most)
    """
    if len(set(n_levels)) == 1:
        return values.unflatten(-1, (len(n_levels), n_levels[0]))
    where = places(n_levels, values.device)
    return pad(values, (0, 1), value=filler).index_select(-1, where.in_list).unflatten(-1, (len(n_levels), where.most))


def to_list(table: Tensor, n_levels: tuple[int, ...]) -> Tensor:
    """Undo what `to_table` did.  # (..., d, most) -> (..., t)"""
    values = table.flatten(-2)
    return values if len(set(n_levels)) == 1 else values.index_select(-1, places(n_levels, values.device).in_table)


class Run(NamedTuple):
    """Neighbouring columns of as many levels each."""

    columns: slice
    levels: slice  # of all of them, in a list
    shape: tuple[int, int]  # number of columns and of levels

    @property
    def is_wide(self) -> bool:
        """Whether functions run along the levels of a row at full speed."""
        return self.shape[1] >= _WIDE

    def of_rows(self, values: Tensor) -> Tensor:
        """Return the values of their levels.  # (..., n, t) -> (..., n, columns, levels)"""
        return values[..., self.levels].unflatten(-1, self.shape)

    def of_list(self, values: Tensor) -> Tensor:
        """Return the values of their levels.  # (..., n, t) -> (..., columns, levels, n)

        Functions of levels run along the rows, which is ten times as fast as along a few levels.
        """
        return values[..., self.levels].mT.unflatten(-2, self.shape)

    def softmax(self, values: Tensor) -> Tensor:
        """Return the shares of their levels, given a list of logits.  # (..., n, t) -> (..., columns, levels, n)"""
        return self._over_levels(torch.softmax, values)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Return the logarithms of `softmax`."""
        return self._over_levels(torch.log_softmax, values)

    def _over_levels(self, function: Callable[[Tensor, int], Tensor], values: Tensor) -> Tensor:
        """Apply a function to more rows, as torch rounds those that fill no vector in another way, or along many levels."""
        n = values.shape[-2]
        if n == 1 or self.is_wide:
            return function(self.of_rows(values), -1).movedim(-3, -1)
        of_list, missing = self.of_list(values), -n % VECTOR
        return function(pad(of_list, (0, missing)) if missing else of_list, -2)[..., :n]


@lru_cache(maxsize=256)
def runs(n_levels: tuple[int, ...]) -> tuple[Run, ...]:
    """Return the runs of columns that have as many levels: a call for each is faster than one for a table with gaps."""
    found, column, level = [], 0, 0
    for n, same in groupby(n_levels):
        shape = len(list(same)), n
        found.append(Run(slice(column, column + shape[0]), slice(level, level + shape[0] * n), shape))
        column, level = found[-1].columns.stop, found[-1].levels.stop
    return tuple(found)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """Return values[..., index] along the last axis, where the other axes broadcast."""
    if values.shape[:-1] != index.shape[:-1]:
        shape = torch.broadcast_tensors(values[..., 0], index[..., 0])[0].shape  # torch.broadcast_shapes imports sympy
        values, index = values.expand(*shape, -1), index.expand(*shape, -1)
    return values.gather(-1, index)


def drawn_or_last(below: Tensor, n_levels: tuple[int, ...]) -> Tensor:
    """Count how many levels lie below, at most as many as leave one.  # (..., d, most) bool -> (..., d)"""
    return below.sum(-1).minimum(constant(n_levels, below, torch.int64) - 1)


class Levels(Likelihood):
    """Base of the likelihoods of categories."""

    is_density = False
    is_whole = True
    _parameter_constraints = {"n_levels": [Interval(Integral, 1, None, closed="left"), tuple, None]}

    def __init__(self, n_levels=None):
        self.n_levels = n_levels

    @property
    def reads_codes(self):
        return self.n_levels is None  # else cells are the numbers of levels already

    @property
    def support(self):
        levels = self.n_levels
        if levels is None:
            return (0.0, float("inf"))
        return (0.0, float(levels - 1) if isinstance(levels, Integral) else tuple(float(n - 1) for n in levels))

    def validate(self):
        super().validate()
        if isinstance(self.n_levels, tuple) and not all(isinstance(n, Integral) and n >= 1 for n in self.n_levels):
            raise ValueError(
                f"The 'n_levels' of {type(self).__name__} must be whole numbers of at least 1, one per column. "
                f"Got {self.n_levels!r}."
            )
        return self

    def bind(self, columns):
        if self.n_levels is not None:
            return self
        low, high = columns.low.tolist(), columns.high.tolist()
        bad = [j for j, (a, b) in enumerate(zip(low, high)) if a < 0 or b % 1 or b >= _MANY_LEVELS]
        if bad:
            raise ValueError(
                f"{type(self).__name__} takes categories coded as whole numbers from 0, but the column(s) number {bad[:5]} "
                f"have others: column {bad[0]} goes from {low[bad[0]]:g} to {high[bad[0]]:g}. Encode them first, for example "
                f"with OrdinalEncoder; if there are more than {_MANY_LEVELS:,} categories, say so by 'n_levels'."
            )
        return type(self)(tuple(int(b) + 1 for b in high))

    def units(self, columns):
        return columns.mean * 0.0, columns.mean * 0.0 + 1.0

    def levels(self, n_columns: int) -> tuple[int, ...]:
        """Return the number of levels of every column."""
        levels = self.n_levels
        if levels is None:
            raise ValueError(
                f"The number of levels is not known yet. Fit the model, or use {type(self).__name__}(n_levels=...)."
            )
        if isinstance(levels, Integral):
            return (int(levels),) * n_columns
        if len(levels) != n_columns:
            raise ValueError(f"'n_levels' has {len(levels)} entries, one per column, but there are {n_columns} columns.")
        return tuple(levels)

    def n_expected(self, n_columns):
        return sum(self.levels(n_columns))

    def _levels_of(self, n_values: int) -> tuple[int, ...]:
        """Return the number of levels of every column, given how many there are in all."""
        return self.n_levels if isinstance(self.n_levels, tuple) else self.levels(n_values // self.n_levels)

    def shares(self, x: Tensor) -> Tensor:
        """Return how often every level occurs, where none never occurs: half a row more has each.  # (d, most)"""
        n_levels = self.levels(x.shape[-1])
        where = places(n_levels, x.device)
        counts = (x.index_select(-1, where.column) == where.level).sum(-2, dtype=torch.float64) + 0.5  # nothing equals NaN
        table = to_table(counts, n_levels, 0.0)
        return table / table.sum(-1, keepdim=True)

    def mean(self, params, eta):
        """Return the level that stands for p(x|z): levels have no mean."""
        return self.point(self.expectation(params, eta))


class Categorical(Levels):
    r"""Categorical likelihood for columns of categories, :math:`p(x_j = l \mid z) = \mathrm{softmax}(\eta_j(z))_l`.

    Categories are coded as whole numbers 0, 1, 2, ..., as :class:`~sklearn.preprocessing.OrdinalEncoder` does; their order
    means nothing. The encoder reads a column as one number per category, one of which is 1 (one-hot); none is, where a cell is
    missing. What `reconstruct` and `inverse_transform` give is the most probable category.

    Parameters
    ----------
    n_levels : int, tuple of int or None, default=None
        The number of categories: of all columns, of each of them, or None for as many as the largest code of the training data
        says. Give it where later rows may have categories that are not in the training data, which are refused otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Categorical
    >>> X = np.random.default_rng(0).integers(3, size=(60, 1)) + np.array([[0, 1, 2]])
    >>> vae = VAETransformer(1, likelihood=Categorical(), max_iter=5, learning_rate="cosine", random_state=0).fit(X)
    >>> vae.sample(2, random_state=0).shape
    (2, 3)
    """

    runs_along_rows = True

    def n_inputs(self, n_columns):
        return sum(self.levels(n_columns))

    def inputs(self, params, x):
        n_levels = self.levels(x.shape[-1])
        place = places(n_levels, x.device).first + x.nan_to_num().long()
        is_there = (x == x).to(x.dtype)  # nothing equals NaN
        return x.new_zeros((*x.shape[:-1], sum(n_levels))).scatter_(-1, place, is_there)

    def n_outputs(self, n_columns):
        return sum(self.levels(n_columns))

    def start(self, params, x):
        return to_list(self.shares(x).log(), self.levels(x.shape[-1])).to(x.dtype)

    def log_prob(self, params, eta, x):
        code = x.long().mT[..., None, :]  # (..., d, 1, n)

        def of_code(run: Run) -> Tensor:
            values, index = run.log_softmax(eta).mT, code[..., run.columns, :, :].mT
            return picked(values, index)[..., 0]

        return torch.cat([of_code(run) for run in runs(self.levels(x.shape[-1]))], -2).mT

    def derivative(self, params, eta, x, weight):
        n_levels = self.levels(x.shape[-1])
        where = places(n_levels, x.device)
        for run in runs(n_levels):
            run.of_list(eta).copy_(run.softmax(eta))
        eta.mul_(-weight if weight.shape[-1] == 1 else -weight.index_select(-1, where.column))
        there = x.isfinite()
        code = torch.where(there, x, 0.0).long()
        return eta.scatter_add_(-1, where.first + code, torch.where(there, weight, 0.0)), {}

    def expectation(self, params, eta):
        """Return the probabilities of all categories, those of one column after the other.  # (..., n, n_expected)"""
        shares = [run.softmax(eta).flatten(-3, -2) for run in runs(self._levels_of(eta.shape[-1]))]
        return torch.cat(shares, -2).mT

    def point(self, expectation):
        """Return the most probable category of every column.  # (..., n, d)"""
        levels = [run.of_list(expectation).argmax(-2) for run in runs(self._levels_of(expectation.shape[-1]))]
        return torch.cat(levels, -2).mT.to(expectation.dtype)

    def sample(self, params, eta, stream):
        n_levels = self._levels_of(eta.shape[-1])
        drawn = uniform((*eta.shape[:-1], len(n_levels)), stream, eta.dtype).mT[..., None, :]  # (..., d, 1, n)
        levels = []
        for run in runs(n_levels):
            below = drawn[..., run.columns, :, :] >= run.softmax(eta).cumsum(-2)
            levels.append(below.sum(-2).clamp(max=run.shape[1] - 1))
        return torch.cat(levels, -2).mT.to(eta.dtype)


class Ordinal(Levels):
    r"""Cumulative logit likelihood for columns of ordered levels.

    The decoder gives one number per column, which says where on a scale the row lies; thresholds :math:`c_{j0} < c_{j1} < ...`,
    which are learnt, part the scale into levels, :math:`P(x_j \le l \mid z) = \mathrm{sigmoid}(c_{jl} - \eta_j(z))`. So
    neighbouring levels are alike, and a column takes one output, however many levels it has. What `reconstruct` and
    `inverse_transform` give is the median level.

    Parameters
    ----------
    n_levels : int, tuple of int or None, default=None
        The number of levels, which are coded as 0, 1, 2, ...: of all columns, of each of them, or None for as many as the
        largest code of the training data says.

    References
    ----------
    McCullagh, *Regression Models for Ordinal Data*, 1980. Nazábal, Olmos, Ghahramani & Valera, *Handling Incomplete
    Heterogeneous Data using VAEs*, 2020.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Ordinal
    >>> VAETransformer(2, likelihood=Ordinal(n_levels=5))
    VAETransformer(likelihood=Ordinal(n_levels=5), n_components=2)
    """

    def inputs(self, params, x):
        last = constant(self.levels(x.shape[-1]), x) - 1
        scaled = 2 * x / last.clamp(min=1) - 1
        return torch.where(x.isnan(), 0.0, scaled)

    def shapes(self, n_columns):
        return {"threshold": (1, sum(self.levels(n_columns)) - n_columns)}

    def _n_steps(self, n_columns):
        """Return the number of thresholds of every column."""
        return tuple(n - 1 for n in self.levels(n_columns))

    def start(self, params, x):
        """Write the thresholds at which an output of zero gives every level its share of the rows."""
        cumulative = self.shares(x).cumsum(-1)[:, :-1]
        thresholds = cumulative.clamp(max=1 - 1e-9).logit()
        steps = (thresholds.diff(dim=-1) - _SMALLEST_STEP).clamp(min=_SMALLEST_STEP)
        raw = torch.cat([thresholds[:, :1], steps + (-(-steps).expm1()).log()], -1)  # softplus undone
        params["threshold"].copy_(to_list(raw, self._n_steps(x.shape[-1])))

    def _scale(self, params, n_columns):
        """Return thresholds (..., 1, d, most - 1), infinite beyond the last, and the distances between neighbours."""
        n_steps = self._n_steps(n_columns)
        raw = to_table(params["threshold"], n_steps, 0.0)
        steps = softplus(raw[..., 1:]) + _SMALLEST_STEP
        numbers = torch.arange(raw.shape[-1], device=raw.device) < constant(n_steps, raw, torch.int64)[:, None]
        thresholds = torch.cat([raw[..., :1], steps], -1).cumsum(-1)
        return torch.where(numbers, thresholds, torch.inf), torch.where(numbers[:, 1:], steps, torch.inf)

    def _edges(self, params, eta, x):
        """Return how far the edges of levels x lie below and above the output, and how far they are apart."""
        thresholds, steps = self._scale(params, x.shape[-1])
        code = x.long()[..., None]
        lower, upper, width = (
            pad(thresholds, (1, 0), value=-torch.inf),
            pad(thresholds, (0, 1), value=torch.inf),
            _widths(steps, thresholds),
        )
        of_level = [picked(table, code)[..., 0] for table in (lower, upper, width)]
        return of_level[0] - eta, of_level[1] - eta, of_level[2]

    def log_prob(self, params, eta, x):
        # sigmoid(b) - sigmoid(a) = (1 - exp(a - b)) sigmoid(-a) sigmoid(b), of which nothing cancels.
        below, above, width = self._edges(params, eta, x)
        return (-(-width).expm1()).log() + logsigmoid(-below) + logsigmoid(above)

    def derivative(self, params, eta, x, weight):
        # In double precision, because torch rounds in ways that depend on what else a call has to do.
        params = {name: value.double() for name, value in params.items()}
        below, above, width = self._edges(params, eta.double(), x)
        pull_down, pull_up = below.sigmoid(), (-above).sigmoid()
        steep = 1 / width.expm1()
        by_params = {"threshold": self._by_thresholds(params, x, -(pull_down + steep) * weight, (pull_up + steep) * weight)}
        return eta.copy_(pull_down - pull_up).mul_(weight), by_params

    def _by_thresholds(self, params, x, by_lower, by_upper):
        """Return slopes by the raw thresholds, given those by the lower and the upper edge of every cell's level."""
        n_steps = self._n_steps(x.shape[-1])
        where = places(n_steps, x.device)
        code, lower, upper = (values.index_select(-1, where.column) for values in (x, by_lower, by_upper))
        slopes = sum_over_rows(torch.where(code == where.level, upper, 0.0) + torch.where(code == where.level + 1, lower, 0.0))
        table = to_table(slopes, n_steps, 0.0).flip(-1).cumsum(-1).flip(-1)  # a step moves all thresholds above it
        raw = to_table(params["threshold"].double(), n_steps, 0.0)
        return to_list(torch.cat([table[..., :1], table[..., 1:] * raw[..., 1:].sigmoid()], -1), n_steps)

    def expectation(self, params, eta):
        """Return the probabilities of all levels, those of one column after the other.  # (..., n, n_expected)"""
        n_columns = eta.shape[-1]
        thresholds, steps = self._scale(params, n_columns)
        below, above = (
            pad(thresholds, side, value=edge) - eta[..., None] for side, edge in (((1, 0), -torch.inf), ((0, 1), torch.inf))
        )
        log_probs = (-(-_widths(steps, thresholds)).expm1()).log() + logsigmoid(-below) + logsigmoid(above)
        return to_list(log_probs.exp(), self.levels(n_columns))

    def point(self, expectation):
        """Return the median level of every column.  # (..., n, d)"""
        n_levels = self._levels_of(expectation.shape[-1])
        cumulative = to_table(expectation, n_levels, 0.0).cumsum(-1)
        return drawn_or_last(cumulative < 0.5, n_levels).to(expectation.dtype)

    def sample(self, params, eta, stream):
        thresholds, _ = self._scale(params, eta.shape[-1])
        latent = eta + uniform(eta.shape, stream, eta.dtype).logit()
        return (latent[..., None] >= thresholds).sum(-1).to(eta.dtype)


def _widths(steps: Tensor, thresholds: Tensor) -> Tensor:
    """Return the widths of all levels, of which the first and the last are infinite.  # (..., 1, d, most)"""
    ends = 2 if thresholds.shape[-1] else 1
    return pad(steps, (1, ends - 1), value=torch.inf)
