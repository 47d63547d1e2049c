"""Likelihoods of positive numbers: the log-normal and the gamma distribution."""

import math
from numbers import Real

import torch
from torch import Tensor

from skvae._numbers import HALF_LOG_2PI
from skvae._random import normal
from skvae._settings import Interval
from skvae.likelihoods._base import ReadInUnits
from skvae.likelihoods._numerics import (
    FARTHEST_LOG,
    SMALLEST,
    growth,
    log_floored,
    raw_of,
    slope_of_growth,
    slope_of_log_floored,
    sum_over_rows,
)


class Positive(ReadInUnits):
    """Base of the likelihoods of positive numbers, which see columns divided by their means."""

    _parameter_constraints = {"floor": [Interval(Real, 0, None, closed="neither")]}
    filler = 1.0

    def __init__(self, *, floor=0.01):
        self.floor = floor

    @property
    def support(self):
        return (SMALLEST, math.inf)

    def units(self, columns):
        return columns.mean * 0.0, columns.mean

    def read(self, x):
        """Return log x."""
        return log(x)


def log(x: Tensor) -> Tensor:
    """Return the logarithm, a finite number also for the zeros that fill up batches."""
    return x.clamp(min=SMALLEST).log()


class LogNormal(Positive):
    r"""Log-normal likelihood for columns of positive numbers, :math:`\log x_j \mid z \sim N(\mu_j(z), \sigma_j^2)`.

    For amounts, durations, concentrations: numbers whose errors are relative, and whose right tail is long. The standard
    deviation :math:`\sigma` of the logarithm of every column is learnt. The encoder reads logarithms, centred and scaled.
    Exact zeros have no density: add a small constant where zero means "too small to measure".

    Parameters
    ----------
    floor : float, default=0.01
        Smallest :math:`\sigma` that learning can reach.

    See Also
    --------
    Gamma : A lighter right tail, a heavier one towards zero.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="log_normal")
    VAETransformer(likelihood='log_normal', n_components=2)
    """

    def shapes(self, n_columns):
        return {**super().shapes(n_columns), "scale": (1, n_columns)}

    def start(self, params, x):
        super().start(params, x)
        mean = log(x).nanmean(0)
        params["scale"].copy_(raw_of((log(x) - mean).square().nanmean(0).sqrt(), self.floor))
        return mean

    def _log_scale(self, params):
        """Return log sigma, in float64.  # (..., 1, d)"""
        return log_floored(params["scale"].double(), self.floor)

    def log_prob(self, params, eta, x):
        log_scale, log_x = self._log_scale(params), log(x)
        distance = (log_x - eta) * (-log_scale).exp().to(eta.dtype)
        return -0.5 * distance.square() - (log_scale + HALF_LOG_2PI).to(eta.dtype) - log_x

    def derivative(self, params, eta, x, weight):
        precision = (-self._log_scale(params)).exp().to(eta.dtype)
        distance = torch.sub(log(x.double()), eta).mul_(precision).to(eta.dtype)
        slope = slope_of_log_floored(params["scale"].double(), self.floor)
        by_params = {"scale": slope * sum_over_rows((distance.square() - 1) * weight)}
        return distance.mul_(precision).mul_(weight), by_params

    def mean(self, params, eta):
        variance = (2 * self._log_scale(params)).exp().to(eta.dtype)
        return (eta + variance / 2).clamp(max=FARTHEST_LOG).exp()

    def sample(self, params, eta, stream):
        noise = self._log_scale(params).exp().to(eta.dtype) * normal(eta.shape, stream, eta.dtype)
        return (eta + noise).clamp(max=FARTHEST_LOG).exp().clamp(min=SMALLEST)


class Gamma(Positive):
    r"""Gamma likelihood for columns of positive numbers.

    The decoder gives the logarithm of the mean, :math:`m_j(z) = e^{\eta_j(z)}`; the shape :math:`a_j` of every column is
    learnt, :math:`p(x) \propto x^{a - 1} e^{-a x / m}`. The coefficient of variation is :math:`a^{-1/2}` whatever the mean: 1
    makes it exponential. The encoder reads logarithms, centred and scaled. Exact zeros are refused: add a small constant
    where zero means "too small to measure".

    Parameters
    ----------
    floor : float, default=0.01
        Smallest coefficient of variation that learning can reach.

    See Also
    --------
    LogNormal : A heavier right tail.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="gamma")
    VAETransformer(likelihood='gamma', n_components=2)
    """

    def shapes(self, n_columns):
        return {**super().shapes(n_columns), "variation": (1, n_columns)}

    def start(self, params, x):
        super().start(params, x)
        mean = x.nanmean(0)
        # The shape that fits is about half of 1 / (log of the mean - mean of the logs).
        params["variation"].copy_(raw_of((2 * (log(mean) - log(x).nanmean(0))).clamp(min=0.0).sqrt(), self.floor))
        return log(mean)

    def _shape(self, params):
        """Return the shape, the inverse square of the coefficient of variation, in float64.  # (..., 1, d)"""
        return (-2 * log_floored(params["variation"].double(), self.floor)).exp()

    def log_prob(self, params, eta, x):
        shape, log_x = self._shape(params), log(x)
        ratio = log_x - eta
        return _log_gamma_at_best(shape).to(eta.dtype) - shape.to(eta.dtype) * (growth(ratio) - ratio) - log_x

    def derivative(self, params, eta, x, weight):
        shape = self._shape(params)
        ratio = torch.sub(log(x.double()), eta)
        lost = (
            growth(ratio) - ratio
        )  # in double precision, because torch rounds in ways that depend on what else a call has to do
        slope = -2 * shape * slope_of_log_floored(params["variation"].double(), self.floor)
        by_params = {"variation": slope * sum_over_rows((shape.log() - torch.digamma(shape) - lost) * weight)}
        return (slope_of_growth(ratio) - 1).mul_(shape).to(eta.dtype).mul_(weight), by_params

    def mean(self, params, eta):
        return eta.clamp(max=FARTHEST_LOG).exp()

    def sample(self, params, eta, stream):
        shape = self._shape(params)
        standard = torch._standard_gamma(shape.to(eta.dtype).expand(eta.shape).contiguous(), generator=stream)
        return (log(standard) + (eta - shape.log().to(eta.dtype))).clamp(max=FARTHEST_LOG).exp().clamp(min=SMALLEST)


def _log_gamma_at_best(shape: Tensor) -> Tensor:
    """Return the log density of log x at its largest, in float64."""
    return torch.xlogy(shape, shape) - shape - torch.lgamma(shape)
