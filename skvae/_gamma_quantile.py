"""The quantile of the gamma distribution, differentiable in the concentration.

It has no closed form: it is found by Newton's method, and its derivative by the implicit function theorem (Figurnov, Mohamed &
Mnih, 2018).
"""

import torch
from torch import Tensor
from torch.special import digamma, gammainc, gammaincc, gammaln, log_ndtr

_N_NEWTON = 5  # from the starts below: all digits for concentrations from 1e-4 on, nine of them for large ones
_NEAR_ZERO = -40.0  # log z below which the first term of the series is exact in float64


def gamma_quantile(noise: Tensor, concentration: Tensor) -> Tensor:
    """Return the quantile Phi(noise) of gamma distributions of rate 1, differentiable in the concentration."""
    z = log_gamma_quantile(noise, concentration).exp().to(noise.dtype)
    return z.clamp(min=torch.finfo(noise.dtype).tiny)


def log_gamma_quantile(noise: Tensor, concentration: Tensor) -> Tensor:
    """Return the logarithm of `gamma_quantile`, in float64, which holds it however small the concentration."""
    return _LogGammaQuantile.apply(noise.double(), concentration.double())


class _LogGammaQuantile(torch.autograd.Function):
    """log z with F(z, a) = Phi(noise); d log z / da = -(dF/da) / (dF/d log z)."""

    @staticmethod
    def forward(ctx, noise, concentration):
        eps, a = torch.broadcast_tensors(noise, concentration)
        log_z = _log_gamma_quantile(eps, a)
        ctx.save_for_backward(eps, a, log_z)
        ctx.shape = concentration.shape
        return log_z

    @staticmethod
    def backward(ctx, slope):
        eps, a, log_z = ctx.saved_tensors
        z, log_density = log_z.exp(), a * log_z - log_z.exp() - gammaln(a)  # of log z
        step = 1e-4 * a.clamp(max=1.0) + 1e-5 * a
        below = eps < 0  # differences of the smaller tail keep their digits
        by_a = torch.where(
            below, gammainc(a + step, z) - gammainc(a - step, z), gammaincc(a - step, z) - gammaincc(a + step, z)
        ) / (2 * step)
        near_zero = (digamma(a + 1) - log_z) / a  # the derivative of `_log_quantile_near_zero`
        by_a = torch.where(log_z < _NEAR_ZERO, near_zero, -by_a * (-log_density).exp())
        return None, (slope * by_a).sum_to_size(ctx.shape)


def _log_quantile_near_zero(eps: Tensor, a: Tensor) -> Tensor:
    """Return the limit of log z for small z, where F(z, a) is z ** a / gamma(a + 1); its relative error is that of 1 - z."""
    return (log_ndtr(eps) + gammaln(a + 1)) / a


def _log_gamma_quantile(eps: Tensor, a: Tensor) -> Tensor:
    """Solve for log z, in float64, by Newton's method on the logarithm of the smaller tail, which is concave in log z."""
    below = eps < 0
    log_tail = log_ndtr(-eps.abs())
    cube = 1 - 1 / (9 * a) + eps / (3 * a.sqrt())  # Wilson & Hilferty, 1931
    small = _log_quantile_near_zero(eps, a)
    is_sparse = a < 0.1
    far = (a.log() - log_ndtr(-eps)).clamp(min=1e-3).log()  # of a sparse one, 1 - F(z, a) is about a exp(-z)
    near = torch.where(is_sparse & (far > 0), far, small.clamp(max=0.0))
    log_z = torch.where((cube > 0.3) & ~is_sparse, a.log() + 3 * cube.clamp(min=0.3).log(), near)
    for _ in range(_N_NEWTON):
        z = log_z.exp()
        tail = torch.where(below, gammainc(a, z), gammaincc(a, z)).clamp(min=1e-300)
        log_density = a * log_z - z - gammaln(a)  # of log z
        move = (tail.log() - log_tail) * (tail.log() - log_density).exp()
        log_z = log_z + torch.where(below, -move, move).clamp(-2.0, 2.0)
    return torch.where(small < _NEAR_ZERO, small, log_z)
