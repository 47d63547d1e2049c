"""What latents are drawn from, row by row, to be weighed: mixtures of densities of which each has given some draws."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._modes import in_lines
from skvae._numbers import HALF_LOG_2PI

_INFLATION = 1.2  # of a fitted variance, because a proposal had better be too wide


class Component(NamedTuple):
    """Draws of a density of latents, one density per row."""

    z: Tensor  # (s, n, k)
    log_density: Callable[[Tensor], Tensor] | None  # (..., n, k) -> (..., n); None for the prior, whose density is known

    def log_mass(self, z: Tensor, log_prior: Tensor) -> Tensor:
        """Return the log of how many of the draws there are per unit of volume at z.  # (..., n) in double precision"""
        log_density = log_prior if self.log_density is None else self.log_density(z).double()
        return log_density + math.log(len(self.z))


def total_log_mass(components: Sequence[Component], z: Tensor, log_prior: Tensor) -> Tensor:
    """Return the log of how many draws of all components there are per unit of volume at z.  # (s, n) in double precision"""
    return torch.stack([component.log_mass(z, log_prior) for component in components]).logsumexp(0)


def normal_draws(mean: Tensor, covariance: Tensor, noise: Tensor, dtype: torch.dtype) -> Component:
    """Return draws of a normal distribution for every row, somewhat wider than its covariance says, if it is one."""
    k, least = mean.shape[-1], torch.diag_embed(in_lines(torch.full_like(mean, 1e-9), value=1.0))
    factor, problem = torch.linalg.cholesky_ex(in_lines(_INFLATION * covariance, 2) + least)
    if problem.any():  # in a row whose density is no finite number anywhere
        factor = torch.where(
            problem[..., None, None] == 0, factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        )
    mean = in_lines(mean)
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + k * HALF_LOG_2PI

    def log_density(z: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(factor, (in_lines(z.double()) - mean).movedim(0, -1), upper=False)  # (n, k, s)
        return -0.5 * white.square().sum(1).mT - log_volume

    drawn = mean + (factor @ in_lines(noise).expand(-1, len(mean), -1).movedim(0, -1)).movedim(-1, 0)
    return Component(drawn[..., :k].to(dtype), log_density)
