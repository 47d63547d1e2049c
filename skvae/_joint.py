"""log p(x, z) of some rows as a density of z, which knows its slope where that has a closed form."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._hmc import LogDensity, WithSlope, slope_of
from skvae._model import Model, Params


def log_joint(model: Model, params: Params, batch: Batch, z: Tensor) -> Tensor:
    """Return log p(x, z) of n rows at latents z (..., n, k), in nats per row.  # (..., n)"""
    return model.log_px(params, batch, z) + model.log_pz(params, z, batch.x)


def joint_density(model: Model, params: Params, batch: Batch) -> LogDensity:
    """Return log p(x, z) of the rows as a function of z."""
    value = partial(log_joint, model, params, batch)
    return WithSlope(value, JointSlope(model, params, batch)) if kernels.has_slopes_of_latents(model) else value


class JointSlope:
    """The gradient of log p(x, z) by z, of n rows at latents z (..., n, k), on buffers that are used again."""

    def __init__(self, model: Model, params: Params, batch: Batch):
        self.model, self.params, self.x = model, params, batch.x
        self.kernels: dict[int, kernels.JointKernel] = {}  # one for every number of latents per row

    def __call__(self, z: Tensor) -> Tensor:
        """Return the gradient.  # (..., n, k)"""
        n_draws = z.shape[:-2].numel()
        if n_draws not in self.kernels:
            self.kernels[n_draws] = kernels.JointKernel(self.model, self.params, self.x, n_draws)
        return self.kernels[n_draws].slope(z.reshape(1, -1, z.shape[-1])).view(z.shape)


def tempered(joint: LogDensity, start: LogDensity, level: float, scale: Tensor) -> LogDensity:
    """Return level * joint(z) + (1 - level) * start(z) at z = u * scale, as a function of u."""

    def mixed(of_joint: Callable[[Tensor], Tensor], of_start: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        z = u * scale
        if level in (0, 1):
            return (of_joint if level else of_start)(z)
        return level * of_joint(z) + (1 - level) * of_start(z)

    value = partial(mixed, joint, start)
    if not isinstance(joint, WithSlope):
        return value
    return WithSlope(value, lambda u: mixed(joint.slope, partial(slope_of, start), u) * scale)
