"""The normal likelihood of numbers that cannot leave a range."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._constants import constant
from skvae._random import uniform
from skvae._settings import StrOptions
from skvae.likelihoods._heavy import Scaled
from skvae.likelihoods._limits import Limited
from skvae.likelihoods._numerics import raw_of

_FARTHEST = 1e30  # units away stands for infinity: no double knows a density there, and products with zeros stay zeros
_MARGIN = 2.0**-20  # of the range, which means and draws keep away from its ends: no rounding carries them over
_SHORT = 0.5  # how far exponents may reach over a range whose integrals come from Gauss and Legendre's rule of six places
_NODES = (0.2386191860831969, 0.6612093864662645, 0.9324695142031521)
_WEIGHTS = (0.46791393457269104, 0.3607615730481386, 0.17132449237917036)
_FAR = 30.0  # standard deviations outside of the range, where tail probabilities begin to underflow
_STEPS = 4  # of Newton's, which double the digits
_SMALLEST_SHARE = 2.0**-53  # what one more or less is to a double


class TruncatedNormal(Limited, Scaled):
    r"""A normal distribution cut off at two limits, for real-valued columns that cannot leave a range.

    .. math:: p(x_j \mid z) = \frac{N(x_j; \mu_j(z), \sigma_j^2)}
              {\Phi((b_j - \mu_j(z)) / \sigma_j) - \Phi((a_j - \mu_j(z)) / \sigma_j)}, \qquad a_j \le x_j \le b_j

    For percentages, ratings, ages within the window of a study, sensors that saturate: :class:`Gaussian` gives part of its
    probability to values that there are not. The decoder's output :math:`\mu` may lie far outside of the range: the density
    then falls from one of the limits about exponentially. What comes out of the model, means and draws alike, lies within
    the range.

    Parameters
    ----------
    limits : "observed" or tuple of two floats, default="observed"
        The limits, which cells may reach. "observed" takes the smallest and the largest value of each column of the training
        data, and moves later cells to that range. Of two numbers, for all columns, one or both may be infinite,
        as in `(0, math.inf)`; cells outside are refused.

    standardize : bool, default=True
        Whether the model sees columns with mean 0 and standard deviation 1. Scores are in the units of the data either way.

    floor : float, default=0.01
        Smallest :math:`\sigma` that learning can reach, in the model's units.

    ends : tuple of two, default=None
        The limits in the model's units, each a number or a tuple of one per column; `fit` finds them.

    See Also
    --------
    Gaussian : Its `link="logit"` keeps means within a range, but not draws.
    ContinuousBernoulli : A density between two limits that rises or falls exponentially, without a mode in between.
    Beta : For shares that never reach the limits.

    References
    ----------
    Johnson, Kotz & Balakrishnan, *Continuous Univariate Distributions*, volume 1, 1994, section 10.1.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import TruncatedNormal
    >>> VAETransformer(2, likelihood=TruncatedNormal(limits=(0, 100)))
    VAETransformer(likelihood=TruncatedNormal(limits=(0, 100)), n_components=2)
    """

    _parameter_constraints = {
        **Scaled._parameter_constraints,
        "limits": [tuple, StrOptions({"observed"})],
        "ends": [tuple, None],
    }
    _may_be_infinite = True

    def __init__(self, limits="observed", *, standardize=True, floor=0.01, ends=None):
        Scaled.__init__(self, standardize=standardize, floor=floor)
        self.limits = limits
        self.ends = ends

    @property
    def support(self):
        return self._ends()

    @property
    def drops_constant(self):
        return self.standardize or self.limits == "observed"

    def units(self, columns):
        return Scaled.units(self, columns)

    def bind(self, columns):
        """Return the likelihood with the limits of its columns in the model's units, computed as those of the cells are."""
        if self.limits != "observed" and not self.standardize:
            return TruncatedNormal(self.limits, standardize=False, floor=self.floor)
        d = len(columns.low)
        low, high = (columns.low, columns.high) if self.limits == "observed" else ([end] * d for end in self.limits)
        pairs = [_in_units(*map(float, column)) for column in zip(low, high, *self.units(columns), strict=True)]
        ends = tuple(tuple(pair[side] for pair in pairs) for side in (0, 1))
        return TruncatedNormal(self.limits, standardize=self.standardize, floor=self.floor, ends=ends)

    def _ends(self) -> tuple:
        """Return the limits in the model's units."""
        if self.ends is None and (self.standardize or self.limits == "observed"):
            raise ValueError(
                "The limits are not known in the model's units yet. Fit the model, or use TruncatedNormal(ends=...)."
            )
        return self.limits if self.ends is None else self.ends

    def _limits(self, like: Tensor) -> list[Tensor]:
        """Return both limits, in the precision of the cells.  # each (d,) or ()"""
        ends = (tuple(end) if isinstance(end, list | tuple) else end for end in self._ends())
        return [constant(end, like, owner=self).clamp(-_FARTHEST, _FARTHEST) for end in ends]

    def _truncation(self, log_scale, eta) -> "Truncation":
        """Return what a row says of its cells, in float64.  # (..., n, d)"""
        low, high = (limit.double() for limit in self._limits(eta))
        return truncation(eta.double(), log_scale.exp(), low, high)

    def start(self, params, x):
        mean = x.nanmean(0)
        params["scale"].copy_(raw_of((x - mean).square().nanmean(0).sqrt(), self.floor))
        return mean

    def log_prob(self, params, eta, x):
        log_scale = self.log_scale(params)
        cut = self._truncation(log_scale.detach(), eta.detach())
        t = cut.places(x)
        value = -(cut.rate + t / 2) * t - cut.mass(cut.high).log() - log_scale.detach()
        if torch.is_grad_enabled():  # the exact slopes, where those of torch cancel on narrow ranges
            by_eta, by_log_scale = cut.slopes(t)
            value = value + by_eta * (eta - eta.detach()) + by_log_scale * (log_scale - log_scale.detach())
        return value.to(eta.dtype)

    def derivative(self, params, eta, x, weight):
        cut = self._truncation(self.log_scale(params), eta)
        by_eta, by_log_scale = cut.slopes(cut.places(x))
        return by_eta.to(eta.dtype).mul_(weight), {"scale": self._by_raw_scale(params, by_log_scale * weight)}

    def mean(self, params, eta):
        cut = self._truncation(self.log_scale(params), eta)
        return self._inside(cut.cells(cut.moments()[0]), eta)

    def sample(self, params, eta, stream):
        cut = self._truncation(self.log_scale(params), eta)
        return self._inside(cut.cells(cut.quantiles(uniform(eta.shape, stream, torch.float64))), eta)

    def _inside(self, values: Tensor, eta: Tensor) -> Tensor:
        """Return values in the precision of the outputs, so far inside that no change of units can carry them outside."""
        low, high = self._limits(eta)
        size = torch.where(low.abs() < _FARTHEST, low.abs(), 1.0).maximum(torch.where(high.abs() < _FARTHEST, high.abs(), 1.0))
        margin = (_MARGIN * torch.minimum(high - low, size.clamp(min=1.0))).maximum(2 * torch.finfo(eta.dtype).eps * size)
        margin = margin.minimum((high - low) / 2)
        return values.to(eta.dtype).maximum(low + margin).minimum(high - margin)

    def noise_variance(self, params, n_columns):
        is_cut = self.limits == "observed" or any(map(math.isfinite, self.limits))
        return None if is_cut else (2 * self.log_scale(params)).exp()


def _in_units(low: float, high: float, loc: float, scale: float) -> tuple[float, float]:
    """Return the limits of a column in the model's units; one that never varied gets a unit of room."""
    if not high > low:
        return -0.5, 0.5
    return (low - loc) / (scale or 1.0), (high - loc) / (scale or 1.0)


class Truncation(NamedTuple):
    r"""Normal distributions on ranges, seen from the place of the range that is most probable.

    A cell is `edge + side * scale * t`, where t has the density :math:`e^{-rate \cdot t - t^2 / 2}` but for a constant, from
    `low` to `high`; the rate is never negative. If the mean lies within the range, the rate is zero and the edge is the mean.
    """

    edge: Tensor
    side: Tensor  # 1 or -1: the greater part of the range lies above or below the mean
    scale: Tensor
    rate: Tensor
    low: Tensor  # never positive
    high: Tensor

    def places(self, x: Tensor) -> Tensor:
        """Return t of cells."""
        return self.side * (x - self.edge) / self.scale

    def cells(self, t: Tensor) -> Tensor:
        """Return cells, given their t."""
        return self.edge + self.side * self.scale * t

    def at(self, t: Tensor) -> Tensor:
        """Return the density but for the constant."""
        return (-(self.rate + t / 2) * t).exp()

    def mass(self, t: Tensor) -> Tensor:
        """Return the integral of the density, but for the constant, from `low` to t."""
        return torch.where(self._is_short(t), self._by_rule(t, (0,))[0], self._by_differences(t))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the means of t and of its square."""
        mass, at_low, at_high = self._by_differences(self.high), self.at(self.low), self.at(self.high)
        mean = (at_low - at_high) / mass - self.rate
        mean_square = 1 + (self.low * at_low - self.high * at_high) / mass - self.rate * mean
        is_short = self._is_short(self.high)
        short, first, second = self._by_rule(self.high, (0, 1, 2))
        return torch.where(is_short, first / short, mean), torch.where(is_short, second / short, mean_square)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the log density at t by the mean and by the logarithm of the scale."""
        mean, mean_square = self.moments()
        beyond = t - mean
        return self.side * beyond / self.scale, t.square() - mean_square + 2 * self.rate * beyond

    def quantiles(self, share: Tensor) -> Tensor:
        """Return t below which shares of the probability lie, the shares counted from `low`."""
        share = share.clamp(min=_SMALLEST_SHARE)
        tail = (1 - share) * upper_tail(self.rate + self.low) + share * upper_tail(self.rate + self.high)
        by_tails = -torch.special.ndtri(tail) - self.rate
        is_short = self._is_short(self.high)
        is_steep = is_short | (self.rate > _FAR)
        if not is_steep.any():
            return by_tails
        by_steps = self._by_newton(share, self.rate + torch.where(is_short, (self.low + self.high) / 2, 0.0))
        return torch.where(is_steep, by_steps, by_tails)

    def _by_newton(self, share: Tensor, decay: Tensor) -> Tensor:
        """Return quantiles where the density is nearly exponential, with a rate of decay, from which Newton's steps begin."""
        decay = decay.clamp(min=_SMALLEST_SHARE)
        t = self.low - (share * (-decay * (self.high - self.low)).expm1()).log1p() / decay
        wanted = share * self.mass(self.high)
        for _ in range(_STEPS):
            t = (t + (wanted - self.mass(t)) / self.at(t)).clamp(self.low, self.high)
        return t

    def _is_short(self, t: Tensor) -> Tensor:
        """Tell where differences of integrals from afar would cancel."""
        return (t - self.low) * (self.rate + (t + self.low) / 2).clamp(min=1.0) < _SHORT

    def _by_differences(self, t: Tensor) -> Tensor:
        """Return the mass up to t, right for ranges that are not short."""
        outside = mills(self.rate) - self.at(t) * mills(self.rate + t)
        return torch.where(self.rate > 0, outside, erf(t) - erf(self.low))

    def _by_rule(self, t: Tensor, powers: tuple[int, ...]) -> list[Tensor]:
        """Return integrals of the density times powers of the place from `low` to t, right for short ranges."""
        half = (t - self.low) / 2
        integrals = [torch.zeros_like(half)] * len(powers)
        for node, weight in zip(_NODES, _WEIGHTS):
            for sign in (-1, 1):
                place = self.low + half * (1 + sign * node)
                density = half * weight * self.at(place)
                integrals = [so_far + density * place**power for so_far, power in zip(integrals, powers)]
        return integrals


def truncation(mean: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Truncation:
    """Return the normal distributions of given means and standard deviations between limits."""
    is_above = mean > (low + high) / 2
    side = torch.where(is_above, -1.0, 1.0).to(mean.dtype)
    near, far = torch.where(is_above, high, low), torch.where(is_above, low, high)
    to_near = side * (near - mean) / scale
    is_outside = to_near > 0
    return Truncation(
        edge=torch.where(is_outside, near, mean),
        side=side,
        scale=scale,
        rate=torch.where(is_outside, to_near, 0.0),
        low=torch.where(is_outside, 0.0, to_near),
        high=side * torch.where(is_outside, far - near, far - mean) / scale,
    )


def erf(t: Tensor) -> Tensor:
    """Return the integral of exp(-t**2 / 2) from 0."""
    return math.sqrt(math.pi / 2) * torch.special.erf(t * math.sqrt(0.5))


def upper_tail(t: Tensor) -> Tensor:
    """Return the probability of standard normal numbers above t."""
    return torch.special.erfc(t * math.sqrt(0.5)) / 2


def mills(t: Tensor) -> Tensor:
    """Return Mills' ratio, the integral of exp(-t * u - u**2 / 2) over all positive u."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(t * math.sqrt(0.5))
