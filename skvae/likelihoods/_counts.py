"""Likelihoods of counts: the Poisson and what spreads more than it."""

import math

import torch
from torch import Tensor

from skvae._random import uniform
from skvae.likelihoods._base import ReadInUnits
from skvae.likelihoods._numerics import (
    FARTHEST_LOG,
    log_floored,
    raw_of,
    slope_of_log_floored,
    softplus,
    sum_over_rows,
)

_LARGEST_COUNT = 1e13  # about exp(FARTHEST_LOG), the largest mean
_SMALLEST_DISPERSION = 1e-6  # below which nobody can tell a negative binomial from a Poisson


class Counts(ReadInUnits):
    """Base of the likelihoods of counts, whose decoder gives the logarithm of the mean of every column."""

    is_density = False
    is_whole = True

    @property
    def support(self):
        return (0.0, _LARGEST_COUNT)

    def units(self, columns):
        return columns.mean * 0.0, columns.mean * 0.0 + 1.0

    def read(self, x):
        """Return log(1 + x)."""
        return x.log1p()

    def smallest_scale(self, loc):
        """Return that of the base, or the standard deviation that chance alone gives the logarithm of counts."""
        return (-loc / 2).exp().maximum(super().smallest_scale(loc))

    def start(self, params, x):
        super().start(params, x)
        return mean_of(x).log().to(x.dtype)

    def mean(self, params, eta):
        return rate_of(eta)


def mean_of(x: Tensor) -> Tensor:
    """Return the means of the columns as if each had half a count more, in float64; missing cells do not count.  # (d,)"""
    return (x.nansum(0, dtype=torch.float64) + 0.5) / (x.isfinite().sum(0) + 1)


def rate_of(eta: Tensor) -> Tensor:
    """Return exp(eta), at most exp(30)."""
    return eta.clamp(max=FARTHEST_LOG).exp()


class Poisson(Counts):
    r"""Poisson likelihood for columns of counts, :math:`x_j \mid z \sim \mathrm{Poisson}(e^{\eta_j(z)})`.

    Mean and variance of a count are the same, given z. The encoder reads :math:`\log(1 + x)`, centred and scaled.

    See Also
    --------
    NegativeBinomial : Where counts of equal rows spread more than their mean says.
    ZeroInflatedPoisson : Where more of them are zero.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import VAETransformer
    >>> X = np.random.default_rng(0).poisson([1, 10, 100], size=(50, 3))
    >>> vae = VAETransformer(1, likelihood="poisson", max_iter=5, learning_rate="cosine", random_state=0).fit(X)
    >>> vae.sample(2, random_state=0).shape
    (2, 3)
    """

    def log_prob(self, params, eta, x):
        beyond = (eta - FARTHEST_LOG).clamp(min=0.0)  # from where on log p is a straight line, as its slope is finite
        at_least_one = x.clamp(min=1.0)
        ratio = (eta - beyond) - at_least_one.log()
        # log p is largest at ratio = 0; what it loses elsewhere is computed apart, which keeps the digits of large counts.
        lost = torch.where(x > 0, x * (ratio.expm1() - ratio), ratio.exp())
        return _log_poisson_at_best(x).to(eta.dtype) - lost + (x - math.exp(FARTHEST_LOG)) * beyond

    def derivative(self, params, eta, x, weight):
        return torch.sub(x, eta.clamp_(max=FARTHEST_LOG).exp_(), out=eta).mul_(weight), {}

    def sample(self, params, eta, stream):
        return torch.poisson(rate_of(eta), generator=stream)


def _log_poisson_at_best(x: Tensor) -> Tensor:
    """Return log p(x) under the Poisson of mean x, in float64."""
    x = x.double()
    return torch.xlogy(x, x) - x - torch.lgamma(x + 1)


class NegativeBinomial(Counts):
    r"""Negative binomial likelihood for columns of counts that spread more than a Poisson.

    .. math:: p(x \mid z) = \frac{\Gamma(x + 1/\alpha)}{x! \, \Gamma(1/\alpha)}
              \frac{(\alpha m)^x}{(1 + \alpha m)^{x + 1/\alpha}},

    a Poisson whose rate varies from row to row like a gamma variable. The mean is :math:`m_j(z) = e^{\eta_j(z)}`, the variance
    :math:`m_j + \alpha_j m_j^2`; the dispersion :math:`\alpha` of every column is learnt. The encoder reads
    :math:`\log(1 + x)`, centred and scaled.

    See Also
    --------
    Poisson : No dispersion.
    ZeroInflatedNegativeBinomial : More zeros.

    References
    ----------
    Lopez, Regier, Cole, Jordan & Yosef, *Deep generative modeling for single-cell transcriptomics*, 2018.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="negative_binomial")
    VAETransformer(likelihood='negative_binomial', n_components=2)
    """

    def shapes(self, n_columns):
        return {**super().shapes(n_columns), "dispersion": (1, n_columns)}

    def start(self, params, x):
        log_mean = super().start(params, x)
        mean = mean_of(x)
        variance = mean_of((x - mean).square())
        params["dispersion"].copy_(raw_of(((variance - mean) / mean.square()).clamp(min=1e-2), _SMALLEST_DISPERSION))
        return log_mean

    def _log_shape(self, params):
        """Return log(1 / dispersion), the shape of the gamma variable."""
        return -log_floored(params["dispersion"], _SMALLEST_DISPERSION)

    def log_prob(self, params, eta, x):
        log_shape = self._log_shape(params)
        log_x, shape = x.clamp(min=1.0).log(), log_shape.exp()
        log_odds, ratio = log_x - log_shape, eta - log_x
        # log p is largest at ratio = 0; what it loses elsewhere is computed apart, which keeps the digits of large counts,
        # and from the smaller one of the shares x / (x + shape) and shape / (x + shape), as the other one is 1 but for a rest.
        is_over = log_odds > 0
        lesser, turned = torch.where(is_over, -log_odds, log_odds), torch.where(is_over, -ratio, ratio)
        near = (lesser.sigmoid() * turned.clamp(-1.0, 1.0).expm1()).log1p()
        far = softplus(lesser + turned) - softplus(lesser)
        lost = (shape + x) * torch.where(turned.abs() <= 1, near, far) - torch.where(is_over, shape, x) * turned
        lost = torch.where(x > 0, lost, shape * softplus(eta - log_shape))
        return _log_negative_binomial_at_best(x, log_shape).to(eta.dtype) - lost

    def derivative(self, params, eta, x, weight):
        # In double precision, as x less its share cancels where x is large.
        log_shape = self._log_shape({name: value.double() for name, value in params.items()})
        shape, log_odds, count = log_shape.exp(), eta.double().sub_(log_shape), x.double()
        by_eta = count - (count + shape) * log_odds.sigmoid()
        by_shape = _by_log_shape(shape, log_odds, count) - by_eta
        slope = slope_of_log_floored(params["dispersion"].double(), _SMALLEST_DISPERSION)
        return by_eta.to(eta.dtype).mul_(weight), {"dispersion": -slope * sum_over_rows(by_shape * weight)}

    def sample(self, params, eta, stream):
        log_shape = self._log_shape(params)
        gamma = torch._standard_gamma(log_shape.exp().expand(eta.shape).contiguous(), generator=stream)
        return torch.poisson((gamma.log() + eta - log_shape).clamp(max=FARTHEST_LOG).exp(), generator=stream)


def _log_negative_binomial_at_best(x: Tensor, log_shape: Tensor) -> Tensor:
    """Return log p(x) under the negative binomial of mean x, in float64."""
    x, shape = x.double(), log_shape.double().exp()
    log_odds = x.clamp(min=1.0).log() - log_shape.double()
    total = x + shape
    log_choices = torch.lgamma(total) - torch.lgamma(shape) - torch.lgamma(x + 1)
    return torch.where(x > 0, log_choices - total * softplus(log_odds) + x * log_odds, 0.0)


def _by_log_shape(shape: Tensor, log_odds: Tensor, x: Tensor) -> Tensor:
    """Return the slope of log p by the log of the shape, that by the log of the mean apart; `log_odds` is log(mean / shape)."""
    return shape * (torch.digamma(x + shape) - torch.digamma(shape) - softplus(log_odds))


class ZeroInflated(Counts):
    """Base of the likelihoods of counts of which some are zero for a reason of its own, whose log odds the decoder gives."""

    #: likelihood of the counts without that reason
    counts: Counts

    def n_outputs(self, n_columns):
        return 2 * n_columns

    def shapes(self, n_columns):
        return self.counts.shapes(n_columns)

    def init(self, n_columns):
        return self.counts.init(n_columns)

    def start(self, params, x):
        """Give half of the zeros to their own reason."""
        zeros = mean_of((x == 0).to(x.dtype).where(x.isfinite(), torch.nan)) / 2
        log_mean = self.counts.start(params, x) - (-zeros).log1p().to(x.dtype)
        return torch.cat([log_mean, zeros.logit().to(x.dtype)])

    def log_prob(self, params, eta, x):
        log_mean, logit = eta.chunk(2, -1)
        counted = self.counts.log_prob(params, log_mean, x)
        return torch.where(x == 0, torch.logaddexp(logit, counted), counted) - softplus(logit)

    def derivative(self, params, eta, x, weight):
        log_mean, logit = eta.chunk(2, -1)
        # In double precision, because torch rounds in ways that depend on what else a call has to do.
        doubled = {name: value.double() for name, value in params.items()}
        odds = logit.double() - self.counts.log_prob(doubled, log_mean.double(), x)
        apart = torch.where(x == 0, odds.sigmoid(), 0.0).to(eta.dtype)  # probability that a zero has its own reason
        counted = torch.where(x == 0, (-odds).sigmoid(), 1.0).to(eta.dtype)
        by_mean, by_params = self.counts.derivative(params, log_mean, x, counted * weight)
        if by_mean is not log_mean:
            log_mean.copy_(by_mean)
        torch.sub(apart, logit.sigmoid_(), out=logit).mul_(weight)
        return eta, by_params

    def mean(self, params, eta):
        log_mean, logit = eta.chunk(2, -1)
        return (-logit).sigmoid() * rate_of(log_mean)

    def sample(self, params, eta, stream):
        log_mean, logit = eta.chunk(2, -1)
        is_zero = uniform(logit.shape, stream, eta.dtype) < logit.sigmoid()
        return torch.where(is_zero, 0.0, self.counts.sample(params, log_mean, stream))


class ZeroInflatedPoisson(ZeroInflated):
    r"""Poisson likelihood with additional zeros.

    For counts that are zero for two reasons: nothing happened, or nothing could have. With probability :math:`\pi_j(z)` a count
    is zero, else it is :math:`\mathrm{Poisson}(e^{\eta_j(z)})`; the decoder gives :math:`\eta` and the log odds of :math:`\pi`.
    The encoder reads :math:`\log(1 + x)`, centred and scaled.

    References
    ----------
    Lambert, *Zero-inflated Poisson regression*, 1992.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="zero_inflated_poisson")
    VAETransformer(likelihood='zero_inflated_poisson', n_components=2)
    """

    counts = Poisson()


class ZeroInflatedNegativeBinomial(ZeroInflated):
    r"""Negative binomial likelihood with additional zeros.

    As :class:`ZeroInflatedPoisson`, for counts that spread more than a Poisson, as :class:`NegativeBinomial` has them. The
    encoder reads :math:`\log(1 + x)`, centred and scaled.

    References
    ----------
    Lopez, Regier, Cole, Jordan & Yosef, *Deep generative modeling for single-cell transcriptomics*, 2018.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="zero_inflated_negative_binomial")
    VAETransformer(likelihood='zero_inflated_negative_binomial', n_components=2)
    """

    counts = NegativeBinomial()
