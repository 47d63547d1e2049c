"""The base of the priors, and the prior of the paper."""

import torch
from torch import Tensor

from skvae._families import Support
from skvae._numbers import HALF_LOG_2PI
from skvae._random import normal
from skvae._settings import Settings, belongs_with


class Prior(Settings):
    """Base of the priors."""

    #: where p(z) > 0; None for a prior that follows the posterior
    support: Support | None = Support()

    #: how many weights p(z) has that conditions may move: those of the parts of a mixture
    n_weights: int = 0

    #: names of the parameters that give those weights
    weighed_by: tuple[str, ...] = ()

    #: True for a prior that is made of posteriors, so that it changes with the encoder
    follows_encoder: bool = False

    #: as which power of :math:`|z|` -log p(z) grows, as far as it is known: 0 for slower ones, infinite for an exponential
    growth: float = 0.0

    def shapes(self, n_components: int, n_inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters that are learnt with the model."""
        return {}

    def init(self, n_components: int, n_inputs: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Return the parameters at the start of training."""
        return {}

    def start_from(self, params: dict[str, Tensor], x: Tensor, seed: int) -> None:
        """Adapt freshly initialised parameters, in place, to rows x (n, d) of the training data."""

    def given(self, model, params) -> dict:
        """Return what `log_prob` and `sample` read as `params`: the prior's own, unless it depends on the rest of the model.

        In a model with conditions, a prior with `n_weights` finds beside them `log_odds` (..., n, n_weights), which conditions
        of n rows add to the logits of its weights.
        """
        return params["prior"]

    def log_prob(self, params: dict, z: Tensor) -> Tensor:
        """Return log p(z) in nats, one value per component: of each given those before it, if they are not independent."""
        raise NotImplementedError

    def offers(self, name: str) -> bool:
        """Tell whether an optional method is there and belongs to `log_prob`: a subclass that overrides one means that one."""
        return getattr(type(self), name) is not getattr(Prior, name) and belongs_with(self, name, "log_prob")

    def log_prob_rows(self, params: dict, z: Tensor) -> Tensor:
        """Return log p(z), the sum of `log_prob` over the components, of shape (..., n).

        Optional: for a prior whose density is no product.
        """
        raise NotImplementedError

    def derivative(self, params: dict[str, Tensor], z: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the derivatives of `sum(weight * log_prob_rows)` by z and by the prior's parameters.

        Optional: a prior that has it trains without autograd. All have a leading axis, of models, and `weight` has the shape
        (..., n, 1). Models of fewer components than others in a batch are filled up: with components where z and all parameters
        are 0, and whose density must be N(0, 1). Parameters have a value per component on the last axis, or one for all. Where
        `params` has `log_odds`, so have the derivatives, of shape (..., n, n_weights).
        """
        raise NotImplementedError

    def sample(self, params: dict, shape: tuple[int, ...], stream: torch.Generator, dtype) -> Tensor:
        """Draw latents of `shape` (..., k)."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """Return the values below which a component lies with probability u, 0 < u < 1.

        Optional: for a prior under which all components are independent and alike.
        """
        raise NotImplementedError


class StandardNormal(Prior):
    """The standard normal distribution N(0, I), the prior of the paper."""

    growth = 2.0

    def log_prob(self, params, z):
        return -0.5 * z.square() - HALF_LOG_2PI

    def sample(self, params, shape, stream, dtype):
        return normal(shape, stream, dtype)

    def quantile(self, u):
        return torch.special.ndtri(u)
