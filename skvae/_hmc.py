r"""Hamiltonian Monte Carlo over latents: many chains at once, none of which looks at another.

A chain moves along the paths of a particle with the potential energy :math:`-\log p(z)` and a random momentum :math:`v`. A
move is accepted with probability :math:`\min(1, e^{H - H'})`, where :math:`H = -\log p(z) + \frac12\|v\|^2` before and after
it, which makes up for the finite steps. All randomness comes in as arguments: chains of different rows can share it, so that
what a row gets does not depend on the rows around it.

Shapes: z (..., k), log densities and uniform numbers (...), step sizes (...) or single numbers.

Sources: Neal, *MCMC using Hamiltonian dynamics*, 2011; Kingma & Welling, 2013, appendices D and E.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skvae._families import Support

LogDensity = Callable[[Tensor], Tensor]  # z (..., k) -> (...)


@dataclass(frozen=True)
class WithSlope:
    """A log density whose gradient by z needs no autograd."""

    value: LogDensity
    slope: Callable[[Tensor], Tensor]  # z (..., k) -> (..., k)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the log density."""
        return self.value(z)


def refuse_simplex(support: Support, who: str, remedy: str) -> None:
    """Refuse latents that sum to one: paths leave the simplex at once, and would follow densities that mean nothing there."""
    if support.sums_to_one:
        raise ValueError(f"{who} moves latents freely, and cannot keep a sum of one, as Dirichlet latents have. {remedy}")


def value_and_slope(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log density and its gradient by z."""
    if isinstance(log_density, WithSlope):
        with torch.no_grad():
            return log_density.value(z), log_density.slope(z)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = log_density(leaf)
        if not value.requires_grad:  # a density that is the same everywhere
            return value, torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def slope_of(log_density: LogDensity, z: Tensor) -> Tensor:
    """Return the gradient by z alone."""
    if isinstance(log_density, WithSlope):
        with torch.no_grad():
            return log_density.slope(z)
    return value_and_slope(log_density, z)[1]


def leapfrog(
    log_density: LogDensity, z: Tensor, momentum: Tensor, step_size: Tensor, n_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow the path for some steps; return where it ends, the momentum there, and the log density here and there.

    Reversible: from the end with minus the momentum, the same number of steps leads back.
    """
    step = step_size[..., None]
    start, slope = value_and_slope(log_density, z)
    momentum = momentum + 0.5 * step * slope
    for _ in range(n_steps - 1):
        z = z + step * momentum
        momentum = momentum + step * slope_of(log_density, z)
    z = z + step * momentum
    end, slope = value_and_slope(log_density, z)
    return z, momentum + 0.5 * step * slope, start, end


def transition(
    log_density: LogDensity, z: Tensor, step_size: Tensor, n_leapfrog: int, momentum: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Move every chain once, or leave it where it is; return the latents and the probability with which each was moved.

    `momentum` is standard normal and `uniform` in [0, 1); both may have axes of length one where chains share them.
    """
    momentum = momentum.expand_as(z)
    proposal, momentum_there, here, there = leapfrog(log_density, z, momentum, step_size, n_leapfrog)
    gain = there - here + 0.5 * (momentum.square() - momentum_there.square()).sum(-1)
    probability = gain.clamp(max=0).exp().nan_to_num(nan=0.0)  # a path that left the finite numbers leads nowhere
    return torch.where((uniform < probability)[..., None], proposal, z), probability
