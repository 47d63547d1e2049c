r"""Families of distributions of single numbers, each with a sampler that is differentiable in its parameters.

Section 2.4 of the paper names three ways to write a draw as :math:`z = g(\epsilon)`. Here :math:`\epsilon` is standard normal
throughout, so that one stream of noise serves all families and antithetic noise stays antithetic:

- *tractable inverse CDF*: :math:`z = F^{-1}(u)` with :math:`u = \Phi(\epsilon)`; everything is written in :math:`\log u` and
  :math:`\log(1 - u)`, which keep their digits in both tails;
- *location and scale*: :math:`z = \mathrm{loc} + \mathrm{scale} \cdot t` with :math:`t` from the standard member;
- *composition*: the exponential of a normal, quantiles and ratios of gammas.

Functions take and return tensors that broadcast; parameters come in the order of `Family.parameters`.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor
from torch.special import digamma, gammaln, log_ndtr, ndtri

from skvae._gamma_quantile import gamma_quantile, log_gamma_quantile

EULER = 0.5772156649015329  # Euler's constant
_LOG_2PI = math.log(2 * math.pi)


class Support(NamedTuple):
    """Where latents may be: an open interval for every component, and whether they must sum to one."""

    low: float = -math.inf
    high: float = math.inf
    sums_to_one: bool = False

    def holds(self, other: "Support") -> bool:
        """Tell whether `other` lies within it."""
        return self.sums_to_one == other.sums_to_one and self.low <= other.low and other.high <= self.high

    def __str__(self):
        return "that are positive and sum to one" if self.sums_to_one else f"between {self.low:g} and {self.high:g}"


class Family:
    """Base of the families."""

    #: names of the parameters, each "real" or "positive"
    parameters: dict[str, str]

    #: possible values
    support = Support()

    #: whether every member reaches all of it
    fills_support = True

    #: numbers of noise that a draw takes
    n_noise = 1

    #: as which power of |z| minus the log density grows: 0 for a logarithm or none, infinite for an exponential
    growth = 0.0

    #: below which power of |z| every member has a mean of it
    n_moments = math.inf

    #: whether every member has a mean of exp(-t z) for all t > 0
    has_exponential_moments = True

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def draw(self, noise: Tensor, *params: Tensor) -> Tensor:
        """Return z = g(noise); noise (..., k * n_noise) is standard normal.  # (..., k)"""
        raise NotImplementedError

    def quantile(self, u: Tensor, *params: Tensor) -> Tensor:
        """Return the values below which z lies with probability u: where a draw takes one number of noise, it is one."""
        assert self.n_noise == 1, "families of more noise have quantiles of their own"
        return self.draw(ndtri(u), *params)

    def log_prob(self, z: Tensor, *params: Tensor) -> Tensor:
        """Return the log density, in nats."""
        raise NotImplementedError

    def mean(self, *params: Tensor) -> Tensor:
        """Return the mean, or the median where there is none."""
        raise NotImplementedError

    def std(self, *params: Tensor) -> Tensor:
        """Return the standard deviation, infinite where there is none."""
        raise NotImplementedError

    def entropy(self, *params: Tensor) -> Tensor:
        """Return the differential entropy, in nats."""
        raise NotImplementedError

    def kl_to_normal(self, *params: Tensor) -> Tensor | None:
        """Return KL(q || N(0, 1)), in nats; None where it is infinite.

        For every q with a variance it is the cross entropy, a matter of two moments, less the entropy.
        """
        second_moment = self.mean(*params).square() + self.std(*params).square()
        return 0.5 * (_LOG_2PI + second_moment) - self.entropy(*params)

    def kl_within(self, q: tuple[Tensor, ...], p: tuple[Tensor, ...]) -> Tensor | None:
        """Return KL(q || p) of two members, in nats; None where there is no closed form."""
        return None


def _log_uniform(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return log u and log(1 - u) of u = Phi(noise)."""
    return log_ndtr(noise), log_ndtr(-noise)


def _by_scipy(function: Callable, *values: Tensor) -> Tensor:
    """Return what a function of scipy, which torch lacks, makes of tensors."""
    found = function(*(value.cpu().numpy() for value in values))
    return torch.as_tensor(found, dtype=values[0].dtype, device=values[0].device)


def _smaller_tail(noise: Tensor) -> Tensor:
    """Return the smaller of u and 1 - u of u = Phi(noise), with all its digits."""
    return log_ndtr(-noise.abs()).exp()


# --- location and scale ----------------------------------------------------------------------------------------------


class LocationScale(Family):
    """loc + scale * t, with t from the standard member."""

    parameters = {"loc": "real", "scale": "positive"}

    #: moments and entropy of the standard member
    standard_mean = 0.0
    standard_std = 1.0
    standard_entropy = math.nan

    def standard(self, noise: Tensor) -> Tensor:
        """Return t = g(noise)."""
        raise NotImplementedError

    def standard_log_prob(self, t: Tensor) -> Tensor:
        """Return the log density of the standard member."""
        raise NotImplementedError

    def draw(self, noise, *params):
        loc, scale = params
        return loc + scale * self.standard(noise)

    def log_prob(self, z, *params):
        loc, scale = params
        return self.standard_log_prob((z - loc) / scale) - scale.log()

    def mean(self, *params):
        return params[0] + params[1] * self.standard_mean

    def std(self, *params):
        return params[1] * self.standard_std

    def entropy(self, *params):
        return self.standard_entropy + params[1].log()


class Laplace(LocationScale):
    """The double exponential distribution."""

    growth = 1.0
    has_exponential_moments = False
    standard_std = math.sqrt(2)
    standard_entropy = 1 + math.log(2)

    def standard(self, noise):
        return -noise.sign() * (log_ndtr(-noise.abs()) + math.log(2))

    def standard_log_prob(self, t):
        return -t.abs() - math.log(2)

    def kl_within(self, q, p):
        distance = (q[0] - p[0]).abs()
        return (p[1] / q[1]).log() + distance / p[1] + q[1] / p[1] * (-distance / q[1]).exp() - 1


class Logistic(LocationScale):
    """The logistic distribution."""

    growth = 1.0
    has_exponential_moments = False
    standard_std = math.pi / math.sqrt(3)
    standard_entropy = 2.0

    def standard(self, noise):
        log_u, log_rest = _log_uniform(noise)
        return log_u - log_rest

    def standard_log_prob(self, t):
        return -t - 2 * torch.nn.functional.softplus(-t)


@cache
def _digamma(x: float) -> float:
    """Return the digamma function of a number."""
    return float(digamma(torch.tensor(x, dtype=torch.float64, device="cpu")))


class StudentT(LocationScale):
    """Student's t with a given number of degrees of freedom: a normal over the root of a gamma."""

    has_exponential_moments = False
    n_noise = 2

    def __init__(self, df: float):
        self.df = self.n_moments = df
        self.standard_std = math.sqrt(df / (df - 2)) if df > 2 else math.inf
        log_beta = math.lgamma(df / 2) - math.lgamma((df + 1) / 2) + 0.5 * math.log(math.pi)
        self.standard_entropy = (df + 1) / 2 * (_digamma((df + 1) / 2) - _digamma(df / 2)) + 0.5 * math.log(df) + log_beta
        self._log_norm = -0.5 * math.log(df) - log_beta

    def standard(self, noise):
        top, below = noise.chunk(2, -1)
        half = below.new_full((), self.df / 2)
        return top * (half / gamma_quantile(below, half)).sqrt()

    def quantile(self, u, *params):
        return params[0] + params[1] * _by_scipy(stdtrit, u.new_full((), self.df), u)

    def standard_log_prob(self, t):
        return self._log_norm - (self.df + 1) / 2 * torch.log1p(t.square() / self.df)

    def kl_to_normal(self, *params):
        return super().kl_to_normal(*params) if self.df > 2 else None


class Uniform(LocationScale):
    """The uniform distribution on loc - scale ... loc + scale."""

    fills_support = False
    standard_std = 1 / math.sqrt(3)
    standard_entropy = math.log(2)

    def standard(self, noise):
        return torch.erf(noise / math.sqrt(2))

    def standard_log_prob(self, t):
        inside = t.abs() <= 1 + 8 * torch.finfo(t.dtype).eps  # a draw from the edge, put back, may be rounded over it
        return torch.where(inside, 0.0, -math.inf).to(t.dtype) - math.log(2)


class Triangular(LocationScale):
    """The symmetric triangular distribution on loc - scale ... loc + scale."""

    fills_support = False
    standard_std = 1 / math.sqrt(6)
    standard_entropy = 0.5

    def standard(self, noise):
        return noise.sign() * (1 - (2 * _smaller_tail(noise)).sqrt())

    def standard_log_prob(self, t):
        height = 1 - t.abs()
        return torch.where(height > -8 * torch.finfo(t.dtype).eps, height.clamp(min=torch.finfo(t.dtype).eps).log(), -math.inf)


class Cauchy(LocationScale):
    """The Cauchy distribution, which has no moments: its `mean` is the median, its `std` infinite."""

    n_moments = 1.0
    has_exponential_moments = False
    standard_std = math.inf
    standard_entropy = math.log(4 * math.pi)

    def standard(self, noise):
        return noise.sign() / torch.tan(math.pi * _smaller_tail(noise))

    def standard_log_prob(self, t):
        return -math.log(math.pi) - torch.log1p(t.square())

    def kl_to_normal(self, *params):
        return None

    def kl_within(self, q, p):
        return (((q[1] + p[1]).square() + (q[0] - p[0]).square()) / (4 * q[1] * p[1])).log()


class Gumbel(LocationScale):
    """The Gumbel distribution, of maxima."""

    growth = math.inf
    standard_mean = EULER
    standard_std = math.pi / math.sqrt(6)
    standard_entropy = 1 + EULER

    def standard(self, noise):
        return -(-log_ndtr(noise)).log()

    def standard_log_prob(self, t):
        return -t - (-t).exp()

    def kl_within(self, q, p):
        ratio, shift = q[1] / p[1], (p[0] - q[0]) / p[1]
        return EULER * (ratio - 1) - ratio.log() - shift + (shift + gammaln(1 + ratio)).exp() - 1


# --- tractable inverse CDF -------------------------------------------------------------------------------------------


class Exponential(Family):
    """The exponential distribution."""

    growth = 1.0
    parameters = {"scale": "positive"}
    support = Support(0.0, math.inf)

    def draw(self, noise, *params):
        return -params[0] * log_ndtr(-noise)

    def log_prob(self, z, *params):
        return _within(z > 0, -z / params[0] - params[0].log())

    def mean(self, *params):
        return params[0]

    def std(self, *params):
        return params[0]

    def entropy(self, *params):
        return 1 + params[0].log()

    def kl_within(self, q, p):
        return (p[0] / q[0]).log() + q[0] / p[0] - 1


class Rayleigh(Family):
    """The Rayleigh distribution, of the length of a normal vector in the plane."""

    growth = 2.0
    parameters = {"scale": "positive"}
    support = Support(0.0, math.inf)

    def draw(self, noise, *params):
        return params[0] * (-2 * log_ndtr(-noise)).sqrt()

    def log_prob(self, z, *params):
        ratio = z / params[0]
        return _within(z > 0, ratio.log() - 0.5 * ratio.square() - params[0].log())

    def mean(self, *params):
        return params[0] * math.sqrt(math.pi / 2)

    def std(self, *params):
        return params[0] * math.sqrt(2 - math.pi / 2)

    def entropy(self, *params):
        return 1 + params[0].log() - 0.5 * math.log(2) + EULER / 2

    def kl_within(self, q, p):
        return 2 * (p[0] / q[0]).log() + (q[0] / p[0]).square() - 1


class Weibull(Family):
    """The Weibull distribution."""

    parameters = {"scale": "positive", "concentration": "positive"}
    support = Support(0.0, math.inf)

    def draw(self, noise, *params):
        scale, concentration = params
        return scale * ((-log_ndtr(-noise)).log() / concentration).exp()

    def log_prob(self, z, *params):
        scale, concentration = params
        log_ratio = (z / scale).log()
        value = (concentration / scale).log() + (concentration - 1) * log_ratio - (concentration * log_ratio).exp()
        return _within(z > 0, value)

    def mean(self, *params):
        return params[0] * gammaln(1 + 1 / params[1]).exp()

    def std(self, *params):
        first, second = (gammaln(1 + n / params[1].double()).exp() for n in (1, 2))  # nearly equal where values vary little
        return params[0] * (second - first.square()).clamp(min=0).sqrt().to(params[0].dtype)

    def entropy(self, *params):
        scale, concentration = params
        return EULER * (1 - 1 / concentration) + (scale / concentration).log() + 1

    def kl_within(self, q, p):
        (scale, shape), (scale_p, shape_p) = q, p
        log_ratio = (scale / scale_p).log()
        powers = (shape_p * log_ratio + gammaln(1 + shape_p / shape)).exp()
        return (shape / shape_p).log() - shape_p * log_ratio - (1 - shape_p / shape) * EULER + powers - 1


class Pareto(Family):
    """The Pareto distribution of values above 1."""

    parameters = {"concentration": "positive"}
    support = Support(1.0, math.inf)

    def draw(self, noise, *params):
        return (-log_ndtr(-noise) / params[0]).exp()

    def log_prob(self, z, *params):
        return _within(z >= 1, params[0].log() - (params[0] + 1) * z.log())

    def mean(self, *params):
        a = params[0]
        return torch.where(a > 1, a / (a - 1), math.inf)

    def std(self, *params):
        a = params[0]
        return torch.where(a > 2, (a / (a - 2)).clamp(min=0).sqrt() / (a - 1), math.inf)

    def entropy(self, *params):
        return 1 + 1 / params[0] - params[0].log()

    def kl_to_normal(self, *params):
        return None  # infinite for concentrations up to 2

    def kl_within(self, q, p):
        return (q[0] / p[0]).log() + p[0] / q[0] - 1


# --- composition -----------------------------------------------------------------------------------------------------


class LogNormal(Family):
    """The exponential of a normal variable; the parameters are those of the normal."""

    parameters = {"loc": "real", "scale": "positive"}
    support = Support(0.0, math.inf)

    def draw(self, noise, *params):
        return (params[0] + params[1] * noise).exp()

    def log_prob(self, z, *params):
        loc, scale = params
        log_z = z.log()
        return _within(z > 0, -0.5 * (((log_z - loc) / scale).square() + _LOG_2PI) - scale.log() - log_z)

    def mean(self, *params):
        return (params[0] + 0.5 * params[1].square()).exp()

    def std(self, *params):
        return self.mean(*params) * torch.expm1(params[1].square()).sqrt()

    def entropy(self, *params):
        return params[0] + 0.5 * (1 + _LOG_2PI) + params[1].log()

    def kl_within(self, q, p):
        ratio, shift = q[1] / p[1], (q[0] - p[0]) / p[1]
        return 0.5 * (ratio.square() + shift.square() - 1) - ratio.log()


class Gamma(Family):
    """The gamma distribution."""

    growth = 1.0
    parameters = {"concentration": "positive", "rate": "positive"}
    support = Support(0.0, math.inf)

    def draw(self, noise, *params):
        return gamma_quantile(noise, params[0]) / params[1]

    def log_prob(self, z, *params):
        a, rate = params
        return _within(z > 0, a * rate.log() + (a - 1) * z.log() - rate * z - gammaln(a))

    def mean(self, *params):
        return params[0] / params[1]

    def std(self, *params):
        return params[0].sqrt() / params[1]

    def entropy(self, *params):
        a, rate = params
        return a - rate.log() + gammaln(a) + (1 - a) * digamma(a)

    def kl_within(self, q, p):
        (a, rate), (a_p, rate_p) = q, p
        return (a - a_p) * digamma(a) - gammaln(a) + gammaln(a_p) + a_p * (rate / rate_p).log() + a * (rate_p - rate) / rate


class ChiSquared(Family):
    """The chi-squared distribution, a gamma distribution of rate 1/2."""

    growth = 1.0
    parameters = {"df": "positive"}
    support = Support(0.0, math.inf)
    _gamma = Gamma()

    def _as_gamma(self, df: Tensor) -> tuple[Tensor, Tensor]:
        return df / 2, df.new_full((), 0.5)

    def draw(self, noise, *params):
        return self._gamma.draw(noise, *self._as_gamma(*params))

    def log_prob(self, z, *params):
        return self._gamma.log_prob(z, *self._as_gamma(*params))

    def mean(self, *params):
        return params[0]

    def std(self, *params):
        return (2 * params[0]).sqrt()

    def entropy(self, *params):
        return self._gamma.entropy(*self._as_gamma(*params))

    def kl_within(self, q, p):
        return self._gamma.kl_within(self._as_gamma(*q), self._as_gamma(*p))


class Beta(Family):
    """The beta distribution, of the share of one gamma in the sum of two."""

    parameters = {"concentration1": "positive", "concentration0": "positive"}
    support = Support(0.0, 1.0)
    n_noise = 2

    def draw(self, noise, *params):
        log_one, log_rest = (log_gamma_quantile(eps, a) for eps, a in zip(noise.chunk(2, -1), params))
        return inside_unit((log_one - log_rest).sigmoid().to(noise.dtype))

    def quantile(self, u, *params):
        return _by_scipy(betaincinv, *params, u)

    def log_prob(self, z, *params):
        a, b = params
        return _within((z > 0) & (z < 1), (a - 1) * z.log() + (b - 1) * torch.log1p(-z) - log_beta(a, b))

    def mean(self, *params):
        return params[0] / (params[0] + params[1])

    def std(self, *params):
        a, b = params
        return (a * b / (a + b + 1)).sqrt() / (a + b)

    def entropy(self, *params):
        a, b = params
        return log_beta(a, b) - (a - 1) * digamma(a) - (b - 1) * digamma(b) + (a + b - 2) * digamma(a + b)

    def kl_within(self, q, p):
        (a, b), (a_p, b_p) = q, p
        more = (a_p + b_p - a - b) * digamma(a + b)
        return log_beta(a_p, b_p) - log_beta(a, b) + (a - a_p) * digamma(a) + (b - b_p) * digamma(b) + more


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return the logarithm of the beta function."""
    return gammaln(a) + gammaln(b) - gammaln(a + b)


def inside_unit(z: Tensor) -> Tensor:
    """Return shares that rounding has not moved to 0 or 1."""
    return z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps)


def _within(inside: Tensor, value: Tensor) -> Tensor:
    """Return log densities, minus infinity outside the support."""
    return torch.where(inside, value, -math.inf)
