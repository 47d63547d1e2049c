"""Likelihoods of shares, which lie between two limits: the beta and the continuous Bernoulli distribution."""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from skvae._random import uniform
from skvae._settings import Interval
from skvae.likelihoods._limits import Limited
from skvae.likelihoods._numerics import SMALLEST, log_floored, raw_of, slope_of_log_floored, sum_over_rows

_LARGEST = 1.0 - 2.0**-53  # below one
_NEAR = 0.5  # to zero, where the series of the continuous Bernoulli replaces differences that cancel
_SERIES = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000, 1 / 1046139494400)


class Beta(Limited):
    r"""Beta likelihood for columns of shares strictly between two limits.

    The decoder gives the log odds of the mean, :math:`m_j(z)`; the precision :math:`\phi_j` of every column is learnt,
    :math:`x_j \mid z \sim \mathrm{Beta}(m \phi, (1 - m) \phi)`, with variance :math:`m (1 - m) / (1 + \phi)`. Cells at a limit
    have no density and are refused: move them inwards by half of the smallest step that was measured, or use
    :class:`ContinuousBernoulli`.

    Parameters
    ----------
    limits : tuple of two floats, default=(0.0, 1.0)
        The values between which all cells lie, for example `(0, 100)` for percentages.

    floor : float, default=0.0001
        Smallest :math:`1 / \phi` that learning can reach.

    References
    ----------
    Ferrari & Cribari-Neto, *Beta Regression for Modelling Rates and Proportions*, 2004.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Beta
    >>> VAETransformer(2, likelihood=Beta(limits=(0, 100)))
    VAETransformer(likelihood=Beta(limits=(0, 100)), n_components=2)
    """

    _parameter_constraints = {"limits": [tuple], "floor": [Interval(Real, 0, None, closed="neither")]}
    filler = 0.5

    def __init__(self, limits=(0.0, 1.0), *, floor=0.0001):
        super().__init__(limits)
        self.floor = floor

    @property
    def support(self):
        return (SMALLEST, _LARGEST)

    def shapes(self, n_columns):
        return {"spread": (1, n_columns)}

    def start(self, params, x):
        mean, variance = x.nanmean(0), (x - x.nanmean(0)).square().nanmean(0)
        params["spread"].copy_(raw_of(variance / (mean * (1 - mean) - variance).clamp(min=SMALLEST), self.floor))
        return mean.logit()

    def _precision(self, params):
        """Return phi, in float64.  # (..., 1, d)"""
        return (-log_floored(params["spread"].double(), self.floor)).exp()

    def log_prob(self, params, eta, x):
        # In float64, as large logarithms of gammas cancel; lgamma(a) = lgamma(a + 1) - log(a), of which log(a) is known.
        precision, odds = self._precision(params), eta.double()
        a, b = odds.sigmoid() * precision, (-odds).sigmoid() * precision
        log_beta = (a + 1).lgamma() + (b + 1).lgamma() - precision.lgamma() - 2 * precision.log()
        log_beta = log_beta - logsigmoid(odds) - logsigmoid(-odds)
        log_x, log_rest = _logs(x)
        return ((a - 1) * log_x + (b - 1) * log_rest - log_beta).to(eta.dtype)

    def derivative(self, params, eta, x, weight):
        precision, odds = self._precision(params), eta.double()
        mean, rest = odds.sigmoid(), (-odds).sigmoid()
        log_x, log_rest = _logs(x)
        by_a, by_b = log_x - (mean * precision + 1).digamma(), log_rest - (rest * precision + 1).digamma()
        by_eta = precision * mean * rest * (by_a - by_b) + rest - mean
        by_precision = precision.digamma() + 2 / precision + mean * by_a + rest * by_b
        slope = -precision * slope_of_log_floored(params["spread"].double(), self.floor)
        return by_eta.to(eta.dtype).mul_(weight), {"spread": slope * sum_over_rows(by_precision * weight)}

    def mean(self, params, eta):
        return inside(eta.sigmoid(), self.limits)

    def point(self, expectation):
        return inside(expectation, self.limits)  # an average of means may round to a limit

    def sample(self, params, eta, stream):
        precision, odds = self._precision(params), eta.double()
        a, b = (_log_gamma_draw(share.sigmoid() * precision, stream) for share in (odds, -odds))
        return inside((a - b).sigmoid().to(eta.dtype), self.limits)


def _log_gamma_draw(shape: Tensor, stream: torch.Generator) -> Tensor:
    """Return logarithms of gamma variables, of which those of small shape are numbers that no float holds.

    A gamma variable is one of a shape larger by 1, times a power of a uniform one (Marsaglia & Tsang, 2000).
    """
    u = torch.rand(shape.shape, generator=stream, dtype=shape.dtype, device=shape.device).clamp(min=SMALLEST)
    return torch._standard_gamma(shape + 1, generator=stream).log() + u.log() / shape


def inside(shares: Tensor, limits: tuple[float, float]) -> Tensor:
    """Return shares of the way between two limits, so far inside that neither units nor precision of a table carry them there.

    A table of single precision has the coarsest numbers: of its own at a limit, half a step rounds to it.
    """
    low, high = map(float, limits)
    below, above = (0.6 * _step_at(limit, high - low) for limit in (low, high))
    return shares.clamp(max(below, 4 * SMALLEST), 1 - max(torch.finfo(shares.dtype).eps, 2.0**-50) - above)


def _step_at(limit: float, width: float) -> float:
    """Return the step from a limit to its neighbour in single precision, as a share of a range of some width.

    Where single precision has few numbers in the range, no table of the column has it, and the step is that of a double.
    """
    single = max(math.ulp(limit) * 2.0**29, 2.0**-149)
    return (single if single < 1e-3 * width else math.ulp(limit)) / width


def _logs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return log x and log(1 - x) in float64, finite numbers also at the limits."""
    x = x.double().clamp(SMALLEST, _LARGEST)
    return x.log(), (-x).log1p()


class ContinuousBernoulli(Limited):
    r"""Continuous Bernoulli likelihood for columns between two limits, which cells may reach.

    A density on [0, 1] that rises or falls exponentially, :math:`p(x_j \mid z) = e^{\eta_j(z) x_j} \eta_j / (e^{\eta_j} - 1)`,
    for grey levels and other numbers to which :class:`Bernoulli` gives scores that are no densities.

    Parameters
    ----------
    limits : tuple of two floats or "observed", default=(0.0, 1.0)
        The values that stand for 0 and 1, for example `(0, 255)` for images of 8 bits. Cells outside are refused. "observed"
        takes the smallest and the largest value of each column of the training data, and moves later cells to that range.

    References
    ----------
    Loaiza-Ganem & Cunningham, *The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders*, 2019.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import ContinuousBernoulli
    >>> VAETransformer(20, likelihood=ContinuousBernoulli(limits=(0, 16)))
    VAETransformer(likelihood=ContinuousBernoulli(limits=(0, 16)), n_components=20)
    """

    def log_prob(self, params, eta, x):
        return (x - 0.5) * eta - _log_normaliser(eta)

    def derivative(self, params, eta, x, weight):
        return torch.sub(x, self.mean(params, eta.double())).to(eta.dtype).mul_(weight), {}

    def mean(self, params, eta):
        near = eta.clamp(-_NEAR, _NEAR)
        terms = [2 * (i + 1) * c * near ** (2 * i + 1) for i, c in enumerate(_SERIES)]
        far = torch.where(eta.abs() < _NEAR, 1.0, eta)
        return torch.where(eta.abs() < _NEAR, 0.5 + sum(terms), -1 / (-far).expm1() - 1 / far)

    def sample(self, params, eta, stream):
        steep = eta.abs().clamp(min=1e-6)
        drawn = 1 + (uniform(eta.shape, stream, eta.dtype) * (-steep).expm1()).log1p() / steep
        return torch.where(eta < 0, 1 - drawn, drawn).clamp(0.0, 1.0)


def _log_normaliser(eta: Tensor) -> Tensor:
    """Return log of the integral of exp(eta * (x - 1/2)) over [0, 1], an even function: log(2 sinh(eta / 2) / eta)."""
    near = eta.clamp(-_NEAR, _NEAR).square()
    series = sum(c * near ** (i + 1) for i, c in enumerate(_SERIES))
    far = eta.abs().clamp(min=_NEAR)
    return torch.where(eta.abs() < _NEAR, series, far / 2 + (-(-far).expm1()).log() - far.log())
