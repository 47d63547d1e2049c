"""log p(x, z) of some rows as a density of z, which knows its slope where that has a closed form."""

from functools import partial

from torch import Tensor

from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._hmc import LogDensity, slope_of
from skvae._model import Model, Params


def log_joint(model: Model, params: Params, batch: Batch, z: Tensor) -> Tensor:
    """Return log p(x, z) of n rows at latents z (..., n, k), in nats per row.  # (..., n)"""
    return model.log_px(params, batch, z) + model.log_pz(params, z)


def joint_density(model: Model, params: Params, batch: Batch) -> LogDensity:
    """Return log p(x, z) of the rows as a function of z."""
    by_hand = kernels.has_slopes_of_latents(model)
    return JointByHand(model, params, batch) if by_hand else partial(log_joint, model, params, batch)


class JointByHand:
    """log p(x, z) of n rows, with its slope, at latents z (..., n, k)."""

    def __init__(self, model: Model, params: Params, batch: Batch):
        self.model, self.params, self.batch = model, params, batch
        self.kernels: dict[int, kernels.JointKernel] = {}  # one for every number of latents per row

    def __call__(self, z: Tensor) -> Tensor:
        """Return log p(x, z).  # (..., n)"""
        return log_joint(self.model, self.params, self.batch, z)

    def slope(self, z: Tensor) -> Tensor:
        """Return the gradient by z.  # (..., n, k)"""
        n_draws = z.shape[:-2].numel()
        if n_draws not in self.kernels:
            self.kernels[n_draws] = kernels.JointKernel(self.model, self.params, self.batch.x, n_draws)
        return self.kernels[n_draws].slope(z.reshape(1, -1, z.shape[-1])).view(z.shape)


def tempered(joint: LogDensity, start: LogDensity, level: float, scale: Tensor) -> LogDensity:
    """Return level * log p(x, z) + (1 - level) * log_start(z) at z = u * scale, as a function of u.

    It knows its slope if log p(x, z) does.
    """
    if isinstance(joint, JointByHand):
        return TemperedByHand(joint, start, level, scale)
    return partial(_mixed, joint, start, level, scale)


def _mixed(of_joint: LogDensity, of_start: LogDensity, level: float, scale: Tensor, u: Tensor) -> Tensor:
    z = u * scale
    if level in (0, 1):
        return (of_joint if level else of_start)(z)
    return level * of_joint(z) + (1 - level) * of_start(z)


class TemperedByHand:
    """The density of `tempered`, with its slope."""

    def __init__(self, joint: JointByHand, start: LogDensity, level: float, scale: Tensor):
        self.joint, self.start, self.level, self.scale = joint, start, level, scale

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log density.  # (..., n)"""
        return _mixed(self.joint, self.start, self.level, self.scale, u)

    def slope(self, u: Tensor) -> Tensor:
        """Return the gradient by u.  # (..., n, k)"""
        return _mixed(self.joint.slope, partial(slope_of, self.start), self.level, self.scale, u) * self.scale
