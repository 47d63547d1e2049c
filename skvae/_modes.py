"""Modes of p(z|x): climbed by Gauss-Newton steps, of all rows at a time, none of which looks at another.

Networks are asked for values alone, which do not depend on a row's neighbours to the last bit, as their gradients do: how
outputs change is told by latents nearby. The slopes of likelihoods, which are a matter of single cells, come from autograd.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skvae._batch import Batch
from skvae._hmc import value_and_slope
from skvae._model import Model, Params
from skvae._numbers import CACHE_LINE, rounded_up

_APART = 1e-2  # between latents whose outputs tell slopes, where the prior is about as wide as N(0, I)
_LINE = CACHE_LINE // 2  # numbers of double precision in a cache line
_FLATTEST = 0.25  # curvature that the log density is taken to have along any direction, at least


class Place(NamedTuple):
    """The log density at latents, and its normal approximation there, in double precision."""

    z: Tensor  # (..., n, k)
    value: Tensor  # (..., n)
    slope: Tensor  # (..., n, k) of the log density
    step: Tensor  # (..., n, k) to the mode, if the log density is quadratic
    covariance: Tensor  # (..., n, k, k)


def in_lines(values: Tensor, n_axes: int = 1, value: float = 0.0) -> Tensor:
    """Return double values with more at the ends of the last axes, so that the matrices of all rows begin on cache lines.

    Where they begin decides how BLAS rounds.
    """
    ends = [(0, rounded_up(size, _LINE) - size) for size in reversed(values.shape[-n_axes:])]
    return F.pad(values, [n for end in ends for n in end], value=value)


def climb(model: Model, params: Params, batch: Batch, z: Tensor, n_steps: int) -> Place:
    """Follow log p(x, z) upwards from latents (m, n, k), and return where it leads."""
    survey = surveyor(model, params, batch)
    best = survey(z)
    length = torch.ones_like(best.value)
    for _ in range(n_steps):
        found = survey((best.z + length[..., None] * best.step).to(z.dtype))
        is_better = found.value > best.value
        best = Place(*(torch.where(_like(is_better, new), new, old) for new, old in zip(found, best, strict=True)))
        length = torch.where(is_better, (2 * length).clamp(max=1), length / 4)
    return best


def _like(values: Tensor, other: Tensor) -> Tensor:
    """Return values with axes of length one at the end, as many as `other` has."""
    return values[(...,) + (None,) * (other.ndim - values.ndim)]


def surveyor(model: Model, params: Params, batch: Batch) -> Callable[[Tensor], Place]:
    """Return what describes log p(x, z) at latents (m, n, k).

    How the slopes of networks change is left out (Gauss & Newton), so the curvature of a likelihood with one peak is positive.
    """
    with torch.inference_mode(False):  # copies of tensors made in inference mode have gradients
        own = {name: value.clone().double() for name, value in params["likelihood"].items()}
        x = batch.x.clone().double()

    def survey(z: Tensor) -> Place:
        apart = _apart(z)
        near = torch.cat([z[None], z + apart])  # (1 + k, m, n, k)
        eta = model.decode(params, near.flatten(0, 1), batch.x).unflatten(0, near.shape[:2]).double()
        log_px, by_eta = _value_and_slopes(model, own, x, eta)
        change, bend = (in_lines((of[1:] - of[0]).movedim(0, -2) / _APART, 2) for of in (eta, by_eta))  # (m, n, k, outputs)
        log_pz, slope, curvature = _of_prior(model, params, z, batch.x)
        slope = in_lines(slope) + (change @ in_lines(by_eta[0])[..., None])[..., 0]
        covariance = _inverse(torch.diag_embed(in_lines(curvature, value=1.0)) - bend @ change.mT)
        step, k = (covariance @ slope.nan_to_num()[..., None])[..., 0], z.shape[-1]
        return Place(z.double(), log_px + log_pz, slope[..., :k], step[..., :k], covariance[..., :k, :k])

    return survey


def _apart(z: Tensor) -> Tensor:
    """Return the ways to latents nearby.  # (k, 1, 1, k)"""
    return _APART * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)[:, None, None]


def _value_and_slopes(model: Model, own: dict[str, Tensor], x: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) at the first of the outputs (1 + k, m, n, o), and its slopes by all of them."""
    with torch.inference_mode(False):
        log_px, slopes = value_and_slope(lambda eta: model.likelihood.log_prob(own, eta, x).sum(-1), eta.clone())
    return log_px[0], slopes


def _of_prior(model: Model, params: Params, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(z), its slopes and its curvatures along the components.  # (m, n), (m, n, k), (m, n, k)"""
    here = model.log_pz(params, z, x).double()
    above, below = (model.log_pz(params, z + sign * _apart(z), x).double() for sign in (1, -1))
    slope, curvature = (above - below) / (2 * _APART), (2 * here - above - below) / _APART**2
    return here, slope.movedim(0, -1), curvature.movedim(0, -1)


def _inverse(precision: Tensor) -> Tensor:
    """Return the inverse of matrices with the same axes, whose eigenvalues are positive.

    Axes are found only where they are needed, on the processor: a graphics card takes up to a megabyte for each small matrix.
    """
    precision = ((precision + precision.mT) / 2).nan_to_num()
    own = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    is_other = torch.linalg.cholesky_ex(precision - _FLATTEST * own).info != 0
    half = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(precision).L, own.expand_as(precision), upper=False)
    inverse = half.mT @ half
    if is_other.any():
        values, axes = torch.linalg.eigh(precision[is_other].cpu())
        inverse[is_other] = ((axes / values.abs().clamp(min=_FLATTEST)[..., None, :]) @ axes.mT).to(precision.device)
    return inverse
