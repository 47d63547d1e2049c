"""Priors p(z) over the latent space."""

import math
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from skvae import _families as families
from skvae._constants import constant
from skvae._families import Family, Support
from skvae._random import generator, normal
from skvae._settings import Interval, Settings, belongs_with, register

_LOG_SCALES = (-10, 5)  # of the normals of a mixture
_VECTOR = 32  # numbers that an elementwise function takes at a time
_CELLS = 100_000  # of rows, modes and components that are worked on at once where nobody needs them afterwards

_POSITIVE = [Interval(Real, 0, None, closed="neither")]
_REAL = [Interval(Real, None, None, closed="neither")]


class Prior(Settings):
    """Base of the priors."""

    #: where p(z) > 0; None for a prior that follows the posterior
    support: Support | None = Support()

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
        """Return what `log_prob` and `sample` read as `params`: the prior's own, unless it depends on the rest of the model."""
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
        are 0, and whose density must be N(0, 1). Parameters have a value per component on the last axis, or one for all.
        """
        raise NotImplementedError

    def sample(self, params: dict, shape: tuple[int, ...], stream: torch.Generator, dtype) -> Tensor:
        """Draw latents of `shape` (..., k)."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """Return the values below which a component lies with probability u.

        Optional: for a prior under which all components are independent and alike.
        """
        raise NotImplementedError


class StandardNormal(Prior):
    """The standard normal distribution N(0, I), the prior of the paper."""

    growth = 2.0

    def log_prob(self, params, z):
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    def sample(self, params, shape, stream, dtype):
        return normal(shape, stream, dtype)

    def quantile(self, u):
        return torch.special.ndtri(u)


# --- components that are independent and alike -----------------------------------------------------------------------


class FamilyPrior(Prior):
    """Base of the priors under which the components are independent members of one family, with given parameters."""

    def family(self) -> Family:
        """Return the family."""
        raise NotImplementedError

    def member(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of the family, in its order."""
        return tuple(like.new_full((), getattr(self, name)) for name in self.family().parameters)

    @property
    def support(self):
        return self.family().support

    @property
    def growth(self):
        return self.family().growth

    def log_prob(self, params, z):
        return self.family().log_prob(z, *self.member(z))

    def sample(self, params, shape, stream, dtype):
        noise = normal((*shape[:-1], shape[-1] * self.family().n_noise), stream, dtype)
        return self.family().draw(noise, *self.member(noise))

    def quantile(self, u):
        return self.family().quantile(u, *self.member(u))


class LocationScalePrior(FamilyPrior):
    """Base of the priors with a location and a scale.

    Parameters
    ----------
    loc : float, default=0.0
        Where the distribution lies.

    scale : float, default=1.0
        How wide it is.
    """

    _parameter_constraints = {"loc": _REAL, "scale": _POSITIVE}

    def __init__(self, loc=0.0, scale=1.0):
        self.loc = loc
        self.scale = scale


class Laplace(LocationScalePrior):
    """Laplace distribution: most components near `loc`, a few far from it.

    Parameters
    ----------
    loc : float, default=0.0
        Mean.

    scale : float, default=1.0
        Mean distance from `loc`.
    """

    def family(self):
        return families.Laplace()


class Logistic(LocationScalePrior):
    """Logistic distribution.

    Parameters
    ----------
    loc : float, default=0.0
        Mean.

    scale : float, default=1.0
        Scale; the standard deviation is 1.81 times as large.
    """

    def family(self):
        return families.Logistic()


class StudentT(LocationScalePrior):
    """Student's t distribution, with heavy tails.

    Parameters
    ----------
    df : float, default=5.0
        Degrees of freedom.

    loc : float, default=0.0
        Centre.

    scale : float, default=1.0
        Scale.
    """

    _parameter_constraints = {"df": _POSITIVE, **LocationScalePrior._parameter_constraints}

    def __init__(self, df=5.0, loc=0.0, scale=1.0):
        super().__init__(loc, scale)
        self.df = df

    def family(self):
        return families.StudentT(self.df)


class _Bounded(LocationScalePrior):
    """A prior on an interval."""

    @property
    def support(self):
        return Support(self.loc - self.scale, self.loc + self.scale)


class Uniform(_Bounded):
    """Uniform distribution on `loc - scale` to `loc + scale`.

    Parameters
    ----------
    loc : float, default=0.5
        Middle of the interval.

    scale : float, default=0.5
        Half of its width.
    """

    def __init__(self, loc=0.5, scale=0.5):
        super().__init__(loc, scale)

    def family(self):
        return families.Uniform()


class Triangular(_Bounded):
    """Symmetric triangular distribution on `loc - scale` to `loc + scale`.

    Parameters
    ----------
    loc : float, default=0.5
        Middle of the interval.

    scale : float, default=0.5
        Half of its width.
    """

    def __init__(self, loc=0.5, scale=0.5):
        super().__init__(loc, scale)

    def family(self):
        return families.Triangular()


class Cauchy(LocationScalePrior):
    """Cauchy distribution, whose tails are so heavy that it has no mean.

    Parameters
    ----------
    loc : float, default=0.0
        Median.

    scale : float, default=1.0
        Half of the width of the middle half of the distribution.
    """

    def family(self):
        return families.Cauchy()


class Gumbel(LocationScalePrior):
    """Gumbel distribution, of maxima.

    Parameters
    ----------
    loc : float, default=0.0
        Mode.

    scale : float, default=1.0
        Scale.
    """

    def family(self):
        return families.Gumbel()


class Exponential(FamilyPrior):
    """Exponential distribution of positive numbers.

    Parameters
    ----------
    scale : float, default=1.0
        Mean.
    """

    _parameter_constraints = {"scale": _POSITIVE}

    def __init__(self, scale=1.0):
        self.scale = scale

    def family(self):
        return families.Exponential()


class Rayleigh(FamilyPrior):
    """Rayleigh distribution of positive numbers.

    Parameters
    ----------
    scale : float, default=1.0
        Mode.
    """

    _parameter_constraints = {"scale": _POSITIVE}

    def __init__(self, scale=1.0):
        self.scale = scale

    def family(self):
        return families.Rayleigh()


class Weibull(FamilyPrior):
    """Weibull distribution of positive numbers.

    Parameters
    ----------
    scale : float, default=1.0
        Scale.

    concentration : float, default=1.0
        Shape: 1 is the exponential distribution, larger ones have a mode away from zero.
    """

    _parameter_constraints = {"scale": _POSITIVE, "concentration": _POSITIVE}

    def __init__(self, scale=1.0, concentration=1.0):
        self.scale = scale
        self.concentration = concentration

    @property
    def growth(self):
        return self.concentration

    def family(self):
        return families.Weibull()


class Pareto(FamilyPrior):
    """Pareto distribution of numbers above 1.

    Parameters
    ----------
    concentration : float, default=3.0
        Shape: the density falls like `z ** -(concentration + 1)`.
    """

    _parameter_constraints = {"concentration": _POSITIVE}

    def __init__(self, concentration=3.0):
        self.concentration = concentration

    def family(self):
        return families.Pareto()


class LogNormal(LocationScalePrior):
    """Log-normal distribution of positive numbers.

    Parameters
    ----------
    loc : float, default=0.0
        Mean of the logarithm.

    scale : float, default=1.0
        Standard deviation of the logarithm.
    """

    def family(self):
        return families.LogNormal()


class Gamma(FamilyPrior):
    """Gamma distribution of positive numbers.

    Parameters
    ----------
    concentration : float, default=1.0
        Shape: the mean is `concentration / rate`. Below 0.1, part of the mass is at numbers that float32 does not have: 1.3 %
        of it at 0.05, 42 % at 0.01. Draws that belong there become the smallest number there is; `dtype="float64"` has more.

    rate : float, default=1.0
        Inverse of the scale.
    """

    _parameter_constraints = {"concentration": _POSITIVE, "rate": _POSITIVE}

    def __init__(self, concentration=1.0, rate=1.0):
        self.concentration = concentration
        self.rate = rate

    def family(self):
        return families.Gamma()


class ChiSquared(FamilyPrior):
    """Chi-squared distribution of positive numbers.

    Parameters
    ----------
    df : float, default=3.0
        Degrees of freedom, the mean.
    """

    _parameter_constraints = {"df": _POSITIVE}

    def __init__(self, df=3.0):
        self.df = df

    def family(self):
        return families.ChiSquared()


class Beta(FamilyPrior):
    """Beta distribution of numbers between 0 and 1.

    Parameters
    ----------
    concentration1 : float, default=1.0
        Pulls towards 1; the mean is `concentration1 / (concentration1 + concentration0)`. Numbers close to 1 have few digits:
        for sparse shares, well below 0.5, prefer :class:`Dirichlet` latents, which keep the small share beside the large one.

    concentration0 : float, default=1.0
        Pulls towards 0.
    """

    _parameter_constraints = {"concentration1": _POSITIVE, "concentration0": _POSITIVE}

    def __init__(self, concentration1=1.0, concentration0=1.0):
        self.concentration1 = concentration1
        self.concentration0 = concentration0

    def family(self):
        return families.Beta()


# --- components that depend on each other ----------------------------------------------------------------------------


class Dirichlet(Prior):
    """Symmetric Dirichlet distribution of shares: positive components that sum to one.

    Parameters
    ----------
    concentration : float, default=1.0
        Of every component: 1 is uniform on the simplex, smaller ones prefer its corners, larger ones its middle.
        The posterior's own are 0.22 or more. Under a prior with smaller ones it reaches the corners too seldom, so that scores
        stay below log p(x): with two components and 0.03, by 0.35 nats after 20,000 draws.
    """

    _parameter_constraints = {"concentration": _POSITIVE}
    support = Support(0.0, 1.0, sums_to_one=True)

    def __init__(self, concentration=1.0):
        self.concentration = concentration

    def log_prob(self, params, z):
        return dirichlet_log_prob(z, torch.full_like(z, self.concentration))

    def sample(self, params, shape, stream, dtype):
        noise = normal(shape, stream, dtype)
        return dirichlet_draw(noise, torch.full_like(noise, self.concentration))


def dirichlet_draw(noise: Tensor, concentration: Tensor) -> Tensor:
    """Return gamma variables divided by their sum, by logarithms, as no float holds gammas of small shape.  # (..., k)"""
    shares = families.log_gamma_quantile(noise, concentration).softmax(-1)
    return shares.to(noise.dtype).clamp(min=torch.finfo(noise.dtype).tiny)


def dirichlet_log_prob(z: Tensor, concentration: Tensor) -> Tensor:
    """Return the log density of shares, of each component given those before it, zero for the last one.  # (..., k)

    Each takes a beta-distributed part of what those before it have left. Both the part and the rest of it are quotients of
    sums of shares: one less the part would have no digits where the part is close to one.
    """
    z = z.clamp(min=torch.finfo(z.dtype).tiny)
    log_left = F.pad(_sum_of_rest(z)[..., 1:].log(), (1, 0))  # of the components from each on; of all of them, it is 1
    rest = _sum_of_rest(concentration)[..., 1:]
    first, before, after = concentration[..., :-1], log_left[..., :-1], log_left[..., 1:]
    values = (first - 1) * z[..., :-1].log() + (rest - 1) * after - (first + rest - 1) * before
    return F.pad(values - families.log_beta(first, rest), (0, 1))


def dirichlet_kl(q: Tensor, p: Tensor) -> Tensor:
    """Return KL(q || p) of Dirichlet distributions, of each component given those before it.  # (..., k)"""
    (q_rest, p_rest) = (_sum_of_rest(a)[..., 1:] for a in (q, p))
    kl = families.Beta().kl_within((q[..., :-1], q_rest), (p[..., :-1], p_rest))
    return F.pad(kl, (0, 1))


def _sum_of_rest(values: Tensor) -> Tensor:
    """Return the sums of the components from each on."""
    return values.flip(-1).cumsum(-1).flip(-1)


def mixture_log_prob(log_weights: Tensor, log_probs: Tensor) -> Tensor:
    """Return the log density of a mixture, of each component given those before it.  # (..., k)

    `log_weights` (modes, 1) are normalised, `log_probs` (..., modes, k) the densities of the components in each mode.
    """
    so_far = torch.logsumexp(log_weights + log_probs.cumsum(-1), -2)
    return torch.diff(so_far, dim=-1, prepend=torch.zeros_like(so_far[..., :1]))


def _draw_modes(log_weights: Tensor, n: int, stream: torch.Generator) -> Tensor:
    """Return the modes of n draws."""
    return torch.multinomial(log_weights[:, 0].exp(), n, replacement=True, generator=stream)


class MixtureOfNormals(Prior):
    """A mixture of normal distributions with diagonal covariances, learnt with the model.

    Where the data fall into groups, the aggregated posterior does as well, and a single normal prior pulls the groups together.

    Parameters
    ----------
    n_modes : int, default=10
        Number of normals.
    """

    _parameter_constraints = {"n_modes": [Interval(Integral, 1, None, closed="left")]}
    growth = 2.0

    def __init__(self, n_modes=10):
        self.n_modes = n_modes

    def shapes(self, n_components, n_inputs):
        return {
            "logit": (self.n_modes, 1),
            "mean": (self.n_modes, n_components),
            "log_scale": (self.n_modes, n_components),
        }

    def init(self, n_components, n_inputs, stream):
        """Return equal weights and standard deviations of 1, around means drawn from N(0, I)."""
        params = {name: torch.zeros(shape, device="cpu") for name, shape in self.shapes(n_components, n_inputs).items()}
        params["mean"].normal_(generator=stream)
        return params

    def log_prob(self, params, z):
        if torch.is_grad_enabled():
            return self._log_prob(params, z)
        n_rows = _VECTOR * max(1, _CELLS // (_VECTOR * params["mean"].numel()))
        parts = [self._log_prob(params, rows) for rows in z.reshape(-1, z.shape[-1]).split(n_rows)]
        return torch.cat(parts).view(z.shape)

    def _log_prob(self, params, z):
        log_scale = params["log_scale"].clamp(*_LOG_SCALES)
        t = (z[..., None, :] - params["mean"]) * (-log_scale).exp()  # (..., n, modes, k)
        log_probs = -0.5 * t.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return mixture_log_prob(params["logit"].log_softmax(-2), log_probs)

    def log_prob_rows(self, params, z):
        return _Modes(params).log_probs(z.double()).logsumexp(-1).to(z.dtype)

    def derivative(self, params, z, weight):
        modes, weight, in_double = _Modes(params), weight.double(), z.double()
        share = weight * modes.log_probs(in_double).softmax(-1)  # (..., n, modes)
        by_z = share @ modes.scaled_mean - in_double * (share @ modes.precision)
        total = share.sum(-2)[..., None]  # (..., modes, 1)
        first, second = share.mT @ in_double, share.mT @ in_double.square()  # (..., modes, k)
        squares = modes.precision * (second - 2 * modes.mean * first + modes.mean.square() * total)
        by_params = {
            "logit": total - modes.log_weight.exp() * weight.sum(-2, keepdim=True),
            "mean": modes.precision * (first - modes.mean * total),
            "log_scale": (squares - total) * modes.is_free,
        }
        n_modes = params["logit"].shape[-2]
        return by_z.to(z.dtype), {name: slope[..., :n_modes, :].to(z.dtype) for name, slope in by_params.items()}

    def sample(self, params, shape, stream, dtype):
        modes = _draw_modes(params["logit"].log_softmax(-2), math.prod(shape[:-1]), stream)
        noise = normal((len(modes), shape[-1]), stream, dtype)
        z = params["mean"][modes] + params["log_scale"].clamp(*_LOG_SCALES)[modes].exp() * noise
        return z.view(shape)


class _Modes:
    """The normals of a mixture as factors of matrix products, in double precision, in which squares may be multiplied out.

    Their number is filled up to whole vectors by modes of weight zero: torch rounds a rest in another way.
    """

    def __init__(self, params: dict[str, Tensor]):
        rest = -params["logit"].shape[-2] % _VECTOR
        logit, self.mean, log_scale = (
            F.pad(params[name].double(), (0, 0, 0, rest), value=value)
            for name, value in (("logit", -math.inf), ("mean", 0.0), ("log_scale", 0.0))
        )
        low, high = _LOG_SCALES
        self.is_free = (low <= log_scale) & (log_scale <= high)
        log_scale = log_scale.clamp(low, high)
        self.log_weight = logit.log_softmax(-2)  # (..., modes, 1)
        self.precision = (-2 * log_scale).exp()  # (..., modes, k)
        self.scaled_mean = self.precision * self.mean
        at_zero = -0.5 * self.mean * self.scaled_mean - log_scale - 0.5 * math.log(2 * math.pi)
        self.constant = self.log_weight + at_zero.sum(-1, keepdim=True)  # (..., modes, 1)

    def log_probs(self, z: Tensor) -> Tensor:
        """Return the log of each mode's weight times its density.  # (..., n, modes)"""
        return self.constant.mT + z @ self.scaled_mean.mT - 0.5 * z.square() @ self.precision.mT


class VampPrior(Prior):
    r"""The variational mixture of posteriors, :math:`p(z) = \sum_j w_j\, q(z \mid u_j)`, whose pseudo-inputs are learnt.

    The best prior for the bound is the aggregated posterior, the average of q(z|x) over the data; this approximates it by the
    posteriors of a few made-up rows :math:`u_j`, which start as rows of the training data.

    Parameters
    ----------
    n_pseudo_inputs : int, default=50
        Number of made-up rows.

    References
    ----------
    Tomczak & Welling, *VAE with a VampPrior*, 2018.
    """

    _parameter_constraints = {"n_pseudo_inputs": [Interval(Integral, 1, None, closed="left")]}
    support = None

    def __init__(self, n_pseudo_inputs=50):
        self.n_pseudo_inputs = n_pseudo_inputs

    def shapes(self, n_components, n_inputs):
        return {"logit": (self.n_pseudo_inputs, 1), "pseudo_inputs": (self.n_pseudo_inputs, n_inputs)}

    def init(self, n_components, n_inputs, stream):
        """Return equal weights and rows of standard normal noise."""
        params = {name: torch.zeros(shape, device="cpu") for name, shape in self.shapes(n_components, n_inputs).items()}
        params["pseudo_inputs"].normal_(generator=stream)
        return params

    def start_from(self, params, x, seed):
        """Take rows of the data as pseudo-inputs, each at most once if there are enough."""
        n_rounds = -(-self.n_pseudo_inputs // len(x))
        stream = generator(seed, "pseudo-inputs")
        rows = torch.cat([torch.randperm(len(x), generator=stream, device="cpu") for _ in range(n_rounds)])
        params["pseudo_inputs"].copy_(x[rows[: self.n_pseudo_inputs].to(x.device)])

    def given(self, model, params):
        """Return the posterior of every pseudo-input; those of a bounded likelihood stay within its bounds."""
        u = params["prior"]["pseudo_inputs"]
        u = u.clamp(*(constant(limit, u) for limit in model.input_limits))
        return {**params["prior"], "posterior": model.posterior, "q": model.encode_inputs(params, u)}

    def log_prob(self, params, z):
        log_probs = params["posterior"].log_prob(params["q"], z[..., None, :])  # (..., n, pseudo-inputs, k)
        return mixture_log_prob(params["logit"].log_softmax(-2), log_probs)

    def sample(self, params, shape, stream, dtype):
        modes = _draw_modes(params["logit"].log_softmax(-2), math.prod(shape[:-1]), stream)
        family = params["posterior"]
        noise = normal((len(modes), family.n_noise(shape[-1])), stream, dtype)
        return family.sample(params["q"][modes], noise[None])[0].view(shape)


register(
    "prior", normal=StandardNormal, laplace=Laplace, logistic=Logistic, student_t=StudentT, uniform=Uniform,
    triangular=Triangular, cauchy=Cauchy, gumbel=Gumbel, exponential=Exponential, rayleigh=Rayleigh, weibull=Weibull,
    pareto=Pareto, log_normal=LogNormal, gamma=Gamma, chi_squared=ChiSquared, beta=Beta, dirichlet=Dirichlet,
    mixture=MixtureOfNormals, vamp=VampPrior,
)  # fmt: skip
