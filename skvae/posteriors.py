"""Families of approximate posteriors q(z|x): what the encoder's outputs mean, how z is drawn, its density and its KL.

The encoder gives locations as they are, and positive parameters by their logarithms, which have limits: scales, half widths
and rates stay between exp(-10) and exp(5) (that of LogNormal below e), shapes and degrees of freedom between exp(-1.5) = 0.22
and exp(7) = 1,097, so that draws and densities are finite numbers in single precision.
"""

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from skvae import _families as families
from skvae._families import Family, Support
from skvae._numbers import HALF_LOG_2PI
from skvae._settings import Interval, Settings, belongs_with, register
from skvae.priors import Dirichlet as DirichletPrior
from skvae.priors import FamilyPrior, Prior, StandardNormal
from skvae.priors._dirichlet import dirichlet_draw, dirichlet_kl, dirichlet_log_prob

#: of a standard deviation, from 4.5e-5 to 148: wide enough for any column at the noise floor, safe to square in float32
LOG_SCALE_RANGE = (-10.0, 5.0)

#: of the mean of log z, and of the logarithm of its standard deviation: draws within 8 of those are safe to square in float32
LOG_NORMAL_RANGES = (-20.0, 20.0), (-10.0, 1.0)

#: of the logarithm of a shape parameter: smaller ones put their mass at numbers that float32 does not have
LOG_CONCENTRATION_RANGE = (-1.5, 7.0)


class Posterior(Settings):
    """Base of the posterior families; `q` stands for the encoder's outputs, rows in its last axis but one."""

    #: where q(z|x) may be
    support = Support()

    #: whether q(z|x) of every row reaches all of it
    fills_support: bool = True

    #: whether its density jumps at ends that depend on the row, so that the mean slope of its logarithm is not zero
    jumps_at_ends: bool = False

    #: whether draws are separate values, through which no gradient passes; only `WakeSleep` trains these
    is_discrete: bool = False

    #: below which power of :math:`|z|` there is a mean of it, whatever the encoder says
    n_moments: float = math.inf

    #: whether there is a mean of exp(-t z) for all t > 0, whatever the encoder says
    has_exponential_moments: bool = True

    def n_noise(self, n_components: int) -> int:
        """Return how many standard normal numbers per row a draw takes."""
        return n_components

    def n_outputs(self, n_components: int) -> int:
        """Return how many numbers per row the encoder must give."""
        raise NotImplementedError

    def mean(self, q: Tensor) -> Tensor:
        """Return E[z|x], of shape (..., n, k); the median in a family that has no mean."""
        raise NotImplementedError

    def scale(self, q: Tensor) -> Tensor:
        """Return the standard deviation of each component, of shape (..., n, k)."""
        raise NotImplementedError

    def sample(self, q: Tensor, noise: Tensor) -> Tensor:
        """Return z = g(noise, x), differentiable in `q`; `noise` is standard normal, of shape (s, n or 1, n_noise)."""
        raise NotImplementedError

    def log_prob(self, q: Tensor, z: Tensor) -> Tensor:
        """Return log q(z|x) in nats, one value per component: of each given those before it, if they are not independent."""
        raise NotImplementedError

    def log_prob_of_draws(self, q: Tensor, noise: Tensor, z: Tensor) -> Tensor:
        """Return `log_prob` at what `sample` makes of noise, where a family knows it better than from the rounded z."""
        return self.log_prob(q, z)

    def joint_and_marginals(self, q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q(z|x), and log q(z_j|x) of each component by itself, in nats.  # (..., n), (..., n, k)

        A family whose components depend on each other has a method of its own: here the marginals are what `log_prob` gives.
        """
        marginals = self.log_prob(q, z)
        return marginals.sum(-1), marginals

    def kl(self, q: Tensor, prior: Prior) -> Tensor | None:
        """Return KL(q(z|x) || p(z)) in nats, one value per component; None where there is no closed form."""
        return None

    def _knows_kl_to(self, prior: Prior, kind: type[Prior]) -> bool:
        """Tell whether a closed form for priors of this kind holds: neither side has a density of its own."""
        own = all(belongs_with(self, "kl", basis) for basis in ("log_prob", "sample"))
        return own and type(prior).log_prob is kind.log_prob


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
        return mean.contiguous(), _limited(log_scale, LOG_SCALE_RANGE)  # without gaps, which make sums with many draws slow

    def mean(self, q: Tensor) -> Tensor:
        return q.chunk(2, -1)[0]

    def scale(self, q: Tensor) -> Tensor:
        return self._split(q)[1].exp()

    def sample(self, q: Tensor, noise: Tensor) -> Tensor:
        mean, log_scale = self._split(q)
        return mean + log_scale.exp() * noise  # (s, n, k)

    def log_prob(self, q: Tensor, z: Tensor) -> Tensor:
        mean, log_scale = self._split(q)
        return -0.5 * ((z - mean) * (-log_scale).exp()).square() - log_scale - HALF_LOG_2PI

    def kl(self, q: Tensor, prior: Prior) -> Tensor | None:
        """Return the KL of appendix B for a standard normal prior."""
        if not self._knows_kl_to(prior, StandardNormal):
            return None
        mean, log_scale = self._split(q)
        return 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale


class FullNormal(Posterior):
    """Normal posterior with a covariance matrix of its own for every row: z = mean + L noise, with L lower triangular.

    The encoder gives the mean, the logarithm of the diagonal of L, and what is below it. Components may then depend on each
    other, as in the exact posterior of most models; with k components the encoder has k (k + 3) / 2 outputs.

    References
    ----------
    Kingma & Welling, *An Introduction to Variational Autoencoders*, 2019, section 2.5.1.

    Examples
    --------
    >>> from skvae.posteriors import FullNormal
    >>> FullNormal().n_outputs(n_components=3)
    9
    """

    def n_outputs(self, n_components):
        return n_components * (n_components + 3) // 2

    def _split(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (..., k), log diagonal (..., k) and L (..., k, k)."""
        k = (math.isqrt(9 + 8 * q.shape[-1]) - 3) // 2
        mean, log_diagonal, below = q.split([k, k, k * (k - 1) // 2], -1)
        log_diagonal = _limited(log_diagonal, LOG_SCALE_RANGE)
        is_below = torch.ones((k, k), dtype=torch.long, device=q.device).tril_(-1)
        place = is_below.flatten().cumsum(0).view(k, k) * is_below  # row by row from 1; 0 where there is none
        factor = torch.diag_embed(log_diagonal.exp()) + F.pad(below, (1, 0))[..., place]
        return mean, log_diagonal, factor

    def mean(self, q):
        return self._split(q)[0]

    def scale(self, q):
        return self._split(q)[2].square().sum(-1).sqrt()

    def sample(self, q, noise):
        mean, _, factor = self._split(q)
        return mean + (factor * noise[..., None, :]).sum(-1)

    def log_prob(self, q, z):
        mean, log_diagonal, factor = self._split(q)
        return -0.5 * _solved(factor, z - mean).square() - log_diagonal - HALF_LOG_2PI

    def log_prob_of_draws(self, q, noise, z):
        """Return the log density from the noise: where L is nearly singular, that of the rounded z is another one."""
        if not all(belongs_with(self, "log_prob_of_draws", basis) for basis in ("log_prob", "sample")):
            return self.log_prob(q, z)
        return -0.5 * noise.square() - self._split(q)[1] - HALF_LOG_2PI

    def joint_and_marginals(self, q, z):
        mean, scale = self.mean(q), self.scale(q)
        return self.log_prob(q, z).sum(-1), -0.5 * ((z - mean) / scale).square() - scale.log() - HALF_LOG_2PI

    def kl(self, q, prior):
        """Return the KL to a standard normal prior; of each component given those before it."""
        if not self._knows_kl_to(prior, StandardNormal):
            return None
        mean, log_diagonal, factor = self._split(q)
        return 0.5 * (mean.square() + factor.square().sum(-1) - 1) - log_diagonal


def _solved(factor: Tensor, z: Tensor) -> Tensor:
    """Return L^-1 z for factors L (..., k, k), which are not copied for every z that has the same one.  # (s, ..., k)"""
    columns = z.reshape(-1, *z.shape[1 - factor.ndim :]).movedim(0, -1)  # (..., k, s)
    return torch.linalg.solve_triangular(factor, columns, upper=False).movedim(-1, 0).reshape(z.shape)


class FamilyPosterior(Posterior):
    """Base of the posteriors under which the components are independent members of one family."""

    family: Family

    @property
    def support(self):
        return self.family.support

    @property
    def fills_support(self):
        return self.family.fills_support

    @property
    def n_moments(self):
        return self.family.n_moments

    @property
    def has_exponential_moments(self):
        return self.family.has_exponential_moments

    def n_outputs(self, n_components):
        return len(self.family.parameters) * n_components

    def n_noise(self, n_components):
        return self.family.n_noise * n_components

    def member(self, q: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of the family that the encoder's outputs stand for."""
        parameters = self.family.parameters
        return tuple(_link(name, kind, part) for (name, kind), part in zip(parameters.items(), q.chunk(len(parameters), -1)))

    def mean(self, q):
        return self.family.mean(*self.member(q))

    def scale(self, q):
        return self.family.std(*self.member(q))

    def sample(self, q, noise):
        return self.family.draw(noise, *self.member(q))

    def log_prob(self, q, z):
        return self.family.log_prob(z, *self.member(q))

    def kl(self, q, prior):
        """Return the KL to a standard normal prior, or to a prior of the same family, where it has a closed form."""
        if self._knows_kl_to(prior, StandardNormal):
            return self.family.kl_to_normal(*self.member(q))
        if self._knows_kl_to(prior, FamilyPrior) and prior.family == self.family:
            return self.family.kl_within(self.member(q), prior.member(q))
        return None


def _link(name: str, kind: str, output: Tensor) -> Tensor:
    """Return the parameter that an output of the encoder stands for; a positive one is given by its logarithm."""
    if kind == "real":
        return output
    limits = LOG_SCALE_RANGE if name in ("scale", "rate") else LOG_CONCENTRATION_RANGE
    return _limited(output, limits).exp()


def _limited(output: Tensor, limits: tuple[float, float]) -> Tensor:
    """Return an output between two limits, with the slope of one that has none.

    Beyond a limit the slope would be zero, and what training once threw there by a long step would never come back.
    """
    inside = output.clamp(*limits)
    return inside.detach() + (output - output.detach()) if output.requires_grad else inside


class Laplace(FamilyPosterior):
    r"""Laplace posterior, with location m and scale b from the encoder; heavier tails than the normal.

    :math:`q(z \mid x) = e^{-|z - m| / b} / (2 b)`.
    """

    family = families.Laplace()


class Logistic(FamilyPosterior):
    r"""Logistic posterior, with location m and scale b from the encoder.

    :math:`q(z \mid x) = e^{-t} / (b (1 + e^{-t})^2)` with :math:`t = (z - m) / b`.
    """

    family = families.Logistic()


class StudentT(FamilyPosterior):
    r"""Student's t posterior, with location m and scale s from the encoder.

    :math:`q(z \mid x) \propto (1 + t^2 / \nu)^{-(\nu + 1) / 2} / s` with :math:`t = (z - m) / s` and :math:`\nu` degrees of
    freedom.

    Parameters
    ----------
    df : float, default=5.0
        Degrees of freedom. With 2 or fewer there is no variance, and what is said of the :class:`Cauchy` posterior holds.
    """

    _parameter_constraints = {"df": [Interval(Real, 0, None, closed="neither")]}

    def __init__(self, df=5.0):
        self.df = df

    @property
    def family(self):
        return families.StudentT(self.df)


class Uniform(FamilyPosterior):
    r"""Uniform posterior, with middle m and half width w from the encoder.

    :math:`q(z \mid x) = 1 / (2 w)` for :math:`|z - m| < w`.
    """

    jumps_at_ends = True

    family = families.Uniform()


class Triangular(FamilyPosterior):
    r"""Symmetric triangular posterior, with middle m and half width w from the encoder.

    :math:`q(z \mid x) = (1 - |z - m| / w) / w` for :math:`|z - m| < w`.
    """

    family = families.Triangular()


class Cauchy(FamilyPosterior):
    r"""Cauchy posterior, with median m and scale s from the encoder; `transform` returns the median, as there is no mean.

    :math:`q(z \mid x) = 1 / (\pi s (1 + t^2))` with :math:`t = (z - m) / s`. The standard deviations of `posterior_moments` are
    infinite.

    Nor has the squared error of a decoder that goes on growing with z, as the default one does: its ELBO is minus infinity, and
    what an average over draws reports falls with their number. Train and score it by the importance-weighted bound, `"iwae"`.
    """

    family = families.Cauchy()


class Gumbel(FamilyPosterior):
    r"""Gumbel posterior, with mode m and scale b from the encoder; its right tail is the heavier one.

    :math:`q(z \mid x) = e^{-t - e^{-t}} / b` with :math:`t = (z - m) / b`.
    """

    family = families.Gumbel()


class Exponential(FamilyPosterior):
    r"""Exponential posterior of positive latents, with the mean m from the encoder.

    :math:`q(z \mid x) = e^{-z / m} / m`.
    """

    family = families.Exponential()


class Rayleigh(FamilyPosterior):
    r"""Rayleigh posterior of positive latents, with the mode m from the encoder.

    :math:`q(z \mid x) = z e^{-z^2 / (2 m^2)} / m^2`, the length of a normal vector in the plane.
    """

    family = families.Rayleigh()


class Weibull(FamilyPosterior):
    r"""Weibull posterior of positive latents, with scale s and shape a from the encoder.

    :math:`q(z \mid x) = a z^{a - 1} e^{-(z / s)^a} / s^a`.
    """

    family = families.Weibull()


class Pareto(FamilyPosterior):
    r"""Pareto posterior of latents above 1, with the shape a from the encoder.

    :math:`q(z \mid x) = a z^{-(a + 1)}`. The shape stays above 1.22, so that there is a mean; below 2 there is no variance.
    """

    family = families.Pareto()

    n_moments = 1 + math.exp(LOG_CONCENTRATION_RANGE[0])

    def member(self, q):
        (concentration,) = super().member(q)
        return (1 + concentration,)


class LogNormal(FamilyPosterior):
    r"""Log-normal posterior of positive latents, with mean and standard deviation of the logarithm from the encoder.

    :math:`q(z \mid x) = N(\log z; m, s^2) / z`.

    The mean stays within 20 of zero, and the standard deviation below e, so that no draw leaves the numbers of float32.
    """

    family = families.LogNormal()

    def member(self, q):
        loc, log_scale = (_limited(part, limits) for part, limits in zip(q.chunk(2, -1), LOG_NORMAL_RANGES, strict=True))
        return loc, log_scale.exp()


class Gamma(FamilyPosterior):
    r"""Gamma posterior of positive latents, with shape a and rate b from the encoder.

    :math:`q(z \mid x) = b^a z^{a - 1} e^{-b z} / \Gamma(a)`. Gradients pass through the quantile function of the family.
    """

    family = families.Gamma()


class ChiSquared(FamilyPosterior):
    r"""Chi-squared posterior of positive latents, with the degrees of freedom :math:`\nu` from the encoder.

    :math:`q(z \mid x) = z^{\nu / 2 - 1} e^{-z / 2} / (2^{\nu / 2} \Gamma(\nu / 2))`, the gamma distribution of shape
    :math:`\nu / 2` and rate 1/2.
    """

    family = families.ChiSquared()


class Beta(FamilyPosterior):
    r"""Beta posterior of latents between 0 and 1, with both shapes, a and b, from the encoder.

    :math:`q(z \mid x) = z^{a - 1} (1 - z)^{b - 1} / B(a, b)`; the mean is :math:`a / (a + b)`.
    """

    family = families.Beta()


class Dirichlet(Posterior):
    r"""Dirichlet posterior of shares, positive latents that sum to one; the encoder gives a shape :math:`a_i` per component.

    :math:`q(z \mid x) = \Gamma(\sum_i a_i) \prod_i z_i^{a_i - 1} / \Gamma(a_i)`; the means are :math:`a_i / \sum_j a_j`. Shapes
    are 0.22 or more, so posteriors do not gather in the corners as much as a prior of smaller ones does.
    """

    support = Support(0.0, 1.0, sums_to_one=True)

    def n_outputs(self, n_components):
        return n_components

    def _concentration(self, q: Tensor) -> Tensor:
        return _link("concentration", "positive", q)

    def mean(self, q):
        a = self._concentration(q)
        return a / a.sum(-1, keepdim=True)

    def scale(self, q):
        mean, total = self.mean(q), self._concentration(q).sum(-1, keepdim=True)
        return (mean * (1 - mean) / (total + 1)).sqrt()

    def sample(self, q, noise):
        return dirichlet_draw(noise, self._concentration(q))

    def log_prob(self, q, z):
        return dirichlet_log_prob(z, self._concentration(q))

    def joint_and_marginals(self, q, z):
        a = self._concentration(q)
        return self.log_prob(q, z).sum(-1), families.Beta().log_prob(z, a, a.sum(-1, keepdim=True) - a)

    def kl(self, q, prior):
        if not self._knows_kl_to(prior, DirichletPrior):
            return None
        a = self._concentration(q)
        return dirichlet_kl(a, torch.full_like(a, prior.concentration))


def covers(posterior: Posterior, prior: Prior) -> bool:
    """Tell whether q(z|x) of every row reaches all latents that the prior allows."""
    return posterior.fills_support and (prior.support is None or posterior.support.holds(prior.support))


def check_pair(posterior: Posterior, prior: Prior, n_components: int) -> None:
    """Refuse pairs whose KL is infinite, or is so for some of what the encoder can say, so that no draws would tell."""
    _check_reach(posterior, prior)
    _check_moments(posterior, prior)
    if posterior.support.sums_to_one and n_components < 2:
        raise ValueError("Latents that sum to one need n_components of at least 2: a single one would be constant.")


def _check_reach(posterior: Posterior, prior: Prior) -> None:
    """Refuse a posterior that reaches latents which the prior excludes."""
    if posterior.fills_support if prior.support is None else prior.support.holds(posterior.support):
        return
    where = "" if posterior.fills_support else ", in an interval of its own for every row"
    allowed = f"latents {prior.support}" if prior.support else "latents in the intervals of its pseudo-inputs"
    remedy = "the one of the same name" if posterior.fills_support else "prior='normal'"
    raise ValueError(
        f"The posterior {posterior!r} gives latents {posterior.support}{where}, but the prior {prior!r} allows only {allowed}: "
        f"their KL is infinite. Choose a prior that reaches as far as the posterior, such as {remedy}."
    )


def _check_moments(posterior: Posterior, prior: Prior) -> None:
    """Refuse a posterior under which -log p(z) has no mean, where both are known to have the tails of their class."""
    if not (belongs_with(prior, "growth", "log_prob") and belongs_with(posterior, "n_moments", "sample")):
        return
    falls_exponentially = prior.growth == math.inf and posterior.support.low == -math.inf
    if falls_exponentially and not posterior.has_exponential_moments:
        missing = "exp(-z)"
    elif not falls_exponentially and math.isfinite(prior.growth) and prior.growth >= posterior.n_moments:
        missing = f"|z|**{prior.growth:g}"
    else:
        return
    raise ValueError(
        f"-log p(z) of the prior {prior!r} grows like {missing}, and the posterior {posterior!r} has no mean of that, at least "
        "for some of what the encoder may say: their KL is infinite. Choose a prior with heavier tails, such as the one of the "
        "same name, or a posterior with lighter ones."
    )


def refuse_discrete(posterior: Posterior, who: str, remedy: str) -> None:
    """Refuse latents between which there is nothing, for those who follow gradients through or along them."""
    if posterior.is_discrete:
        raise ValueError(f"{who} follows gradients of latents, and those of {posterior!r} are discrete. {remedy}")


register(
    "posterior", normal=Normal, full_normal=FullNormal, laplace=Laplace, logistic=Logistic, student_t=StudentT,
    uniform=Uniform, triangular=Triangular, cauchy=Cauchy, gumbel=Gumbel, exponential=Exponential, rayleigh=Rayleigh,
    weibull=Weibull, pareto=Pareto, log_normal=LogNormal, gamma=Gamma, chi_squared=ChiSquared, beta=Beta,
    dirichlet=Dirichlet,
)  # fmt: skip
