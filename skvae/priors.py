"""Priors p(z) over the latent space."""

import math

import torch
from torch import Tensor

from skvae._random import normal
from skvae._settings import Settings, register


class Prior(Settings):
    """Base of the priors."""

    def shapes(self, n_components: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters that are learnt with the model."""
        return {}

    def init(self, n_components: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Return the parameters at the start of training."""
        return {}

    def log_prob(self, params: dict[str, Tensor], z: Tensor) -> Tensor:
        """Return log p(z) in nats, one value per component."""
        raise NotImplementedError

    def sample(self, params: dict[str, Tensor], shape: tuple[int, ...], stream: torch.Generator, dtype) -> Tensor:
        """Draw latents of `shape` (..., k)."""
        raise NotImplementedError


class StandardNormal(Prior):
    """The standard normal distribution N(0, I), the prior of the paper."""

    def log_prob(self, params, z):
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    def sample(self, params, shape, stream, dtype):
        return normal(shape, stream, dtype)


register("prior", normal=StandardNormal)
