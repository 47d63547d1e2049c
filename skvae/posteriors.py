"""Families of approximate posteriors q(z|x): what the encoder's outputs mean, how z is drawn, its density and its KL."""

import math

from torch import Tensor

from skvae._settings import Settings, register
from skvae.priors import Prior, StandardNormal

#: of a standard deviation, from 4.5e-5 to 148: wide enough for any column at the noise floor, safe to square in float32
LOG_SCALE_RANGE = (-10.0, 5.0)

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Posterior(Settings):
    """Base of the posterior families; `q` stands for the encoder's outputs, rows in its last axis but one."""

    def n_outputs(self, n_components: int) -> int:
        """Return how many numbers per row the encoder must give."""
        raise NotImplementedError

    def mean(self, q: Tensor) -> Tensor:
        """Return E[z|x], of shape (..., n, k)."""
        raise NotImplementedError

    def scale(self, q: Tensor) -> Tensor:
        """Return the standard deviation of each component, of shape (..., n, k)."""
        raise NotImplementedError

    def sample(self, q: Tensor, noise: Tensor) -> Tensor:
        """Return z = g(noise, x), differentiable in `q`; `noise` is standard normal, of shape (s, n or 1, k)."""
        raise NotImplementedError

    def log_prob(self, q: Tensor, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats, one value per component."""
        raise NotImplementedError

    def kl(self, q: Tensor, prior: Prior) -> Tensor | None:
        """Return KL(q(z|x) || p(z)) in nats, one value per component; None where there is no closed form."""
        return None


class Normal(Posterior):
    """Normal posterior with diagonal covariance: z = mean + scale * noise.

    The encoder gives the mean and the logarithm of the standard deviation of each component.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, sections 2.4 and 3, appendix B.

    Examples
    --------
    >>> from skvae.posteriors import Normal
    >>> Normal().n_outputs(n_components=3)
    6
    """

    def n_outputs(self, n_components: int) -> int:
        return 2 * n_components

    def _split(self, q: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = q.chunk(2, -1)
        return mean, log_scale.clamp(*LOG_SCALE_RANGE)

    def mean(self, q: Tensor) -> Tensor:
        return q.chunk(2, -1)[0]

    def scale(self, q: Tensor) -> Tensor:
        return self._split(q)[1].exp()

    def sample(self, q: Tensor, noise: Tensor) -> Tensor:
        mean, log_scale = self._split(q)
        return mean + log_scale.exp() * noise  # (s, n, k)

    def log_prob(self, q: Tensor, z: Tensor) -> Tensor:
        mean, log_scale = self._split(q)
        return -0.5 * ((z - mean) * (-log_scale).exp()).square() - log_scale - _HALF_LOG_2PI

    def kl(self, q: Tensor, prior: Prior) -> Tensor | None:
        """Return the KL of appendix B for a standard normal prior."""
        if not isinstance(prior, StandardNormal):
            return None
        mean, log_scale = self._split(q)
        return 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale


register("posterior", normal=Normal)
