"""Values that are missing because of what they are: a likelihood of the cells of a column and of which of them are missing."""

import math
from collections import Counter
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._constants import constant, zeros
from skvae._random import normal, uniform
from skvae._settings import StrOptions, resolve
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._numerics import softplus, sum_over_rows

_SIGNS = {"high": 1.0, "low": -1.0}
_RAW_OF_ONE = math.log(math.expm1(1.0))  # softplus of it is one
_UNDERFLOW = -700.0  # log of a probability below which double precision loses it


class SelfMasking(Likelihood):
    r"""Likelihood for columns whose cells are missing because of their own values, such as high incomes.

    To every cell belongs a chance of being missing, which is learnt with the rest,

    .. math:: P(\text{missing} \mid x_j) = \Phi(a_j x_j + c_j),

    with the normal distribution function :math:`\Phi`, for a column in the model's units. A cell that is there has the density
    :math:`p(x_j \mid z)\,(1 - P(\text{missing} \mid x_j))`; one that is missing the probability

    .. math:: P(\text{missing} \mid z) = \int p(x \mid z)\,\Phi(a_j x + c_j)\,dx
              = \Phi\left(\frac{a_j \mu_j(z) + c_j}{\sqrt{1 + a_j^2 \sigma_j^2}}\right).

    Other likelihoods pass over missing cells, which is right where the chance of being missing depends on nothing but cells
    that are there. Where it depends on the missing value itself, they take what is left for the whole; this one corrects for
    what was removed. It is the self-masking model of not-MIWAE, with :math:`\Phi` in place of the logistic function, so that
    the integral is exact, however steep the chance.

    The data alone tell little about which values are missing: the correction rests on the noise being normal, on a small latent
    space, and on the side, if you know it. Compare with what `likelihood="gaussian"` gives.

    Columns without a missing cell in training have no chance to learn; where their cells are missing later, they are passed
    over. The score of a row is the log-likelihood of its cells and of which of them are missing, so it does not compare with
    scores of other likelihoods on rows with missing cells.

    Parameters
    ----------
    likelihood : "gaussian" or Gaussian, default="gaussian"
        What the values are.

    missing : {"either", "high", "low"}, default="either"
        Which values are missing more often. "high" and "low" fix the sign of the slopes :math:`a_j`, which is the safer the
        better you know it; "either" leaves it to the data.

    columns : tuple of int or None, default=None
        The columns with a chance of being missing, counted among those of this likelihood. None takes those that had missing
        cells in training.

    References
    ----------
    Ipsen, Mattei & Frellsen, *not-MIWAE: Deep Generative Modelling with Missing not at Random Data*, 2021. Heckman, *Sample
    Selection Bias as a Specification Error*, 1979.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Mixed, SelfMasking
    >>> VAETransformer(likelihood=Mixed({"income": SelfMasking(missing="high")}))
    VAETransformer(likelihood=Mixed(columns={'income': SelfMasking(missing='high')}))
    """

    _parameter_constraints = {
        "likelihood": [str, Likelihood],
        "missing": [StrOptions({"either", "high", "low"})],
        "columns": [tuple, None],
    }

    reads_missing = True

    def __init__(self, likelihood="gaussian", *, missing="either", columns=None):
        self.likelihood = likelihood
        self.missing = missing
        self.columns = columns

    def validate(self):
        super().validate()
        _check_columns(self.columns or ())
        if not self.of_values.offers("as_normal"):
            raise ValueError(
                f"SelfMasking needs values that are normal given z, and {self.likelihood!r} is another likelihood. Use "
                "'gaussian' or a Gaussian."
            )
        return self

    @property
    def of_values(self) -> Likelihood:
        """The likelihood of the values."""
        return resolve("likelihood", self.likelihood) if isinstance(self.likelihood, str) else self.likelihood

    def bind(self, columns):
        """Return the likelihood of the values alone where no cell is missing."""
        chosen = self.columns
        if chosen is None:
            chosen = tuple(j for j, share in enumerate(columns.missing.tolist()) if share > 0)
        _check_range(chosen, len(columns.missing))
        values = self.of_values.bind(columns)
        return SelfMasking(values, missing=self.missing, columns=chosen) if chosen else values

    # --- what the values alone decide --------------------------------------------------------------------------------

    @property
    def support(self):
        return self.of_values.support

    @property
    def clips(self):
        return self.of_values.clips

    @property
    def drops_constant(self):
        return self.of_values.drops_constant

    def units(self, columns):
        return self.of_values.units(columns)

    def n_inputs(self, n_columns):
        return self.of_values.n_inputs(n_columns)

    def inputs(self, params, x):
        return self.of_values.inputs(_of_values(params), x)

    def n_outputs(self, n_columns):
        return self.of_values.n_outputs(n_columns)

    def mean(self, params, eta):
        return self.of_values.mean(_of_values(params), eta)

    def sample(self, params, eta, stream):
        return self.of_values.sample(_of_values(params), eta, stream)

    def noise_variance(self, params, n_columns):
        return self.of_values.noise_variance(_of_values(params), n_columns)

    # --- the chance of being missing ---------------------------------------------------------------------------------

    def _chosen(self, x: Tensor) -> Tensor:
        """Return the numbers of the columns of x that have a chance of being missing."""
        return constant(self._numbers(x.shape[-1]), x, torch.int64)

    def _numbers(self, n_columns: int) -> tuple[int, ...]:
        return tuple(range(n_columns) if self.columns is None else self.columns)

    def shapes(self, n_columns):
        m = len(self._numbers(n_columns))
        return {**self.of_values.shapes(n_columns), "slope": (1, m), "intercept": (1, m)}

    def init(self, n_columns):
        m = len(self._numbers(n_columns))
        own = zeros({"slope": (1, m), "intercept": (1, m)})
        own["slope"].fill_(0.0 if self.missing == "either" else _RAW_OF_ONE)
        return {**self.of_values.init(n_columns), **own}

    def start(self, params, x):
        """Write the intercepts at which a column of zero mean and unit variance has its share of missing cells."""
        gone = x.index_select(-1, self._chosen(x)).isnan()
        share = (gone.sum(-2, dtype=torch.float64) + 0.5) / (len(x) + 1)
        params["intercept"].copy_(torch.special.ndtri(share) * (1 + self._slope(params).double().square()).sqrt())
        return self.of_values.start(_of_values(params), x)

    def _slope(self, params) -> Tensor:
        """Return the slopes a."""
        raw = params["slope"]
        return raw if self.missing == "either" else _SIGNS[self.missing] * softplus(raw)

    def _slope_by_raw(self, params) -> Tensor | float:
        """Return the derivative of the slopes by their parameters."""
        return 1.0 if self.missing == "either" else _SIGNS[self.missing] * params["slope"].double().sigmoid()

    def _chance(self, params, eta) -> "Chance":
        mean, log_scale = self.of_values.as_normal(_of_values(params), eta)
        scale, _ = torch.broadcast_tensors(log_scale.exp(), mean.new_empty(mean.shape[-1:]))  # broadcast_shapes imports sympy
        chosen = self._chosen(mean)
        return Chance(mean.index_select(-1, chosen), scale.index_select(-1, chosen), self._slope(params), params["intercept"])

    def passing_over_holes(self):
        return SelfMasking(self.likelihood, missing=self.missing, columns=())

    def log_prob(self, params, eta, x):
        missing = x.isnan()
        filled = torch.where(missing, self.filler, x)
        values = torch.where(missing, 0.0, self.of_values.log_prob(_of_values(params), eta, filled))
        chosen = self._chosen(x)
        if not len(chosen):
            return values
        chance = self._chance(params, eta)
        at_values = -chance.at(filled.index_select(-1, chosen))
        of_pattern = log_ndtr(torch.where(missing.index_select(-1, chosen), chance.level, at_values))
        return values.index_add(-1, chosen, of_pattern)

    def offers(self, name):
        return super().offers(name) and (name != "derivative" or self.of_values.offers(name))

    def derivative(self, params, eta, x, weight):
        # The slopes of a normal log-density are linear in x and its square: two points with the moments that missing cells have
        # given z, each with half the weight, stand for all that they might be.
        missing, chosen = x.isnan(), self._chosen(x)
        chance = self._chance(params, eta)
        weight = weight.expand(*missing.shape[:-1], x.shape[-1])
        x_chosen = x.index_select(-1, chosen)
        by_chance = chance.slopes(x_chosen, weight.index_select(-1, chosen))
        centre, spread = chance.moments()
        points = []
        for sign in (1.0, -1.0):
            point = torch.where(x_chosen.isnan(), centre + sign * spread, x_chosen)
            points.append(torch.where(missing, self.filler, x).index_copy_(-1, chosen, point))
        is_passed = missing.index_fill(-1, chosen, False)
        half = torch.where(is_passed, 0.0, 0.5 * weight)
        own = _of_values(params)
        first, first_own = self.of_values.derivative(own, eta.clone(), points[0], half)
        second, second_own = self.of_values.derivative(own, eta, points[1], half)
        by_params = {name: first_own[name] + second_own[name] for name in first_own}
        by_params["slope"] = by_chance[0] * self._slope_by_raw(params)
        by_params["intercept"] = by_chance[1]
        return second.add_(first), by_params

    def with_holes(self, params, x, like, stream):
        """Return drawn rows with holes where large or small values are missing, in other columns those of the rows `like`."""
        chosen = self._chosen(x)
        values = x.index_select(-1, chosen)
        is_missing = normal(values.shape, stream, values.dtype) < self._slope(params) * values + params["intercept"]
        own = torch.where(is_missing, torch.nan, values)
        return super().with_holes(params, x, like, stream).index_copy(-1, chosen, own)

    def expectation_of_missing(self, params, eta):
        """Return E[x | z, missing].  # (..., n, d)"""
        return self._with_chosen(self.mean(params, eta), self._chance(params, eta).moments()[0])

    def sample_missing(self, params, eta, stream):
        """Draw x given z and that it is missing.  # (..., n, d)"""
        values = self.sample(params, eta, stream)
        if not self._numbers(values.shape[-1]):
            return values
        return self._with_chosen(values, self._chance(params, eta).sample(stream))

    def _with_chosen(self, values: Tensor, of_chosen: Tensor) -> Tensor:
        """Return values with those of the chosen columns in their places."""
        index = self._chosen(values)
        return values.index_copy(-1, index, of_chosen.expand(*values.shape[:-1], len(index)))


class Chance(NamedTuple):
    r"""Normal values x and :math:`a x + c + \epsilon` with standard normal noise, where which is positive x is missing.

    Given z, both are normal together, with the correlation :math:`\rho = a \sigma / s` and :math:`s^2 = 1 + a^2 \sigma^2`.
    """

    mean: Tensor  # (..., n, m)
    scale: Tensor
    slope: Tensor
    intercept: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviation s."""
        return (1 + (self.slope * self.scale).square()).sqrt()

    @property
    def level(self) -> Tensor:
        """Where the normal distribution function gives P(missing | z)."""
        return self.at(self.mean) / self.spread

    def at(self, values: Tensor) -> Tensor:
        """Return where the normal distribution function gives P(missing | x)."""
        return self.slope * values + self.intercept

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x given z and that it is missing."""
        level, correlation = self.level, self.slope * self.scale / self.spread
        h = hazard(level)
        variance = 1 - correlation.square() * (h * (h + level)).clamp(0.0, 1.0)
        return self.mean + self.scale * correlation * h, self.scale * variance.sqrt()

    def slopes(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the weighted log-probability of what is missing by slope and intercept.  # (..., 1, m)"""
        spread = self.spread
        missing = x.isnan()
        h = hazard(torch.where(missing, self.level, -self.at(x))) * weight
        of_values = (self.mean - self.intercept * self.slope * self.scale.square()) / spread**3
        by_slope = torch.where(missing, h * of_values, -h * x)
        by_intercept = torch.where(missing, h / spread, -h)
        return sum_over_rows(by_slope), sum_over_rows(by_intercept)

    def sample(self, stream: torch.Generator) -> Tensor:
        """Draw x given z and that it is missing."""
        correlation = self.slope * self.scale / self.spread
        latent = -normal_below(self.level, stream)
        rest = normal(self.mean.shape, stream, self.mean.dtype) / self.spread
        return self.mean + self.scale * (correlation * latent + rest)


def _check_columns(columns: tuple) -> None:
    """Refuse what are no distinct numbers of columns."""
    accepted = (
        "The 'columns' of SelfMasking must be distinct whole numbers, counted from 0 among the columns of this likelihood"
    )
    others = [j for j in columns if not isinstance(j, Integral) or isinstance(j, bool) or j < 0]
    if others:
        raise ValueError(f"{accepted}. Among them is {others[0]!r}.")
    repeated = [j for j, times in Counter(columns).items() if times > 1]
    if repeated:
        raise ValueError(f"{accepted}. Column {repeated[0]} is there more than once.")


def _check_range(columns: tuple[int, ...], n_columns: int) -> None:
    """Refuse numbers of columns that there are not."""
    beyond = [j for j in columns if j >= n_columns]
    if beyond:
        raise ValueError(
            f"The 'columns' of SelfMasking name column {beyond[0]}, but this likelihood has {n_columns} in the model. "
            f"Use numbers below {n_columns}, counted among those, or None for all that have missing cells."
        )


def _of_values(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of the likelihood of the values."""
    return {name: value for name, value in params.items() if name not in ("slope", "intercept")}


def hazard(u: Tensor) -> Tensor:
    """Return the slope of log Phi(u), which is the normal density over Phi."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(u * -math.sqrt(0.5))


def log_ndtr(u: Tensor) -> Tensor:
    """Return log Phi(u), whose slope is exact; that of torch is far off below -100."""
    fixed = u.detach()
    value = torch.special.log_ndtr(fixed)
    return value + hazard(fixed) * (u - fixed) if torch.is_grad_enabled() else value


def normal_below(limit: Tensor, stream: torch.Generator) -> Tensor:
    """Draw standard normal numbers that lie below limits."""
    u = limit.double()
    log_share = (1 - uniform(u.shape, stream, u.dtype)).log()
    log_p = torch.special.log_ndtr(u) + log_share
    far = -(u.square() - 2 * log_share).sqrt()  # of the leading term of log Phi, which alone counts where Phi underflows
    return torch.where(log_p > _UNDERFLOW, torch.special.ndtri(log_p.exp()), far).to(limit.dtype)
