r"""Estimators of :math:`\log p(x)` by Hamiltonian Monte Carlo: settings, and functions on tensors that say how sure they are.

An estimate is three numbers per row: its value and standard error in nats, and its effective sample size.
"""

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._families import Support
from skvae._hmc import LogDensity, refuse_simplex, transition
from skvae._inference import Rows, map_rows_with_slopes, value_of_rows
from skvae._joint import joint_density, tempered
from skvae._model import Model, Params
from skvae._numbers import HALF_LOG_2PI
from skvae._random import RowStreams, generator, normal
from skvae._settings import Interval, Settings, StrOptions, register
from skvae.objectives import IWAE, log_weights
from skvae.posteriors import covers, refuse_discrete

_N_BANDWIDTHS = 10
_STEEPNESS = 4.0  # of the sigmoid schedule, as in Wu et al., 2017
_TUNED_LEVELS = 50  # on the way, between which step sizes hardly change
_FIRST_MOVES = 10  # at the start, to find the step size there
_ACCEPTANCE = 0.8


def log_mean(log_w: Tensor, n_strata: int = 1) -> Tensor:
    """Return the log of the mean weight of every row, its standard error (delta method) and effective sample size.

    Shapes: log_w (s, n), independent along s -> (n, 3). Of a single weight the error is nan. Draws that come from several
    densities, as many from each and one after the other, are strata: what differs between those is no error. The size follows
    from the error; of one stratum it is the square of the sum of the weights over the sum of their squares.
    """
    log_w = log_w.double()
    n_weights = len(log_w)
    value = torch.logsumexp(log_w, 0) - math.log(n_weights)
    relative = (log_w - value).exp().unflatten(0, (n_strata, -1))  # mean one
    n_each = relative.shape[1]
    variance = relative.var(1).sum(0) * n_each / n_weights**2 if n_each > 1 else value * math.nan
    size = (n_weights / (1 + (n_weights - 1) * variance)).clamp(min=1) if n_each > 1 else value.new_ones(value.shape)
    return torch.stack([value, variance.sqrt(), size], -1)


def reciprocal(estimate: Tensor) -> Tensor:
    """Return the estimate of minus what was estimated, which is as sure.  # (n, 3)"""
    value, *sureness = estimate.unbind(-1)
    return torch.stack([-value, *sureness], -1)


def estimate_rows(method: "MarginalLikelihood | IWAE", model: Model, params: Params, rows: Rows, seed: int) -> Tensor:
    """Return log p(x) of every row, its standard error and effective sample size.  # (n, 3)

    `method` is a MarginalLikelihood, or IWAE.
    """
    if isinstance(method, IWAE):
        noise = normal((method.n_samples, 1, model.n_noise), generator(seed, "importance"), rows.dtype)
        return by_importance(model, params, rows, noise.to(rows.device))
    method.check(model)
    return method.estimate_rows(model, params, rows, seed)


def by_importance(model: Model, params: Params, rows: Rows, noise: Tensor) -> Tensor:
    """Return what draws of q(z|x) say, made of noise (s, 1, n_noise) that all rows share.  # (n, 3)"""
    return value_of_rows(model, params, rows, lambda *args: log_mean(log_weights(*args)), noise)


def in_double(params: Params) -> Params:
    """Return a copy of the parameters in double precision, with which gradients can be taken whatever the mode."""
    with torch.inference_mode(False):
        return {
            piece: {name: value.to(torch.float64, copy=True) for name, value in named.items()}
            for piece, named in params.items()
        }


class MarginalLikelihood(Settings):
    """Base of the estimators of log p(x): `estimate` moves latents along gradients, or `estimate_rows` goes another way."""

    n_chains: int  # latents per row that move at the same time
    n_slopes: int  # how many gradients are taken one after the other

    def check(self, model: Model) -> None:
        """Refuse a model of which this cannot tell log p(x), if that does not depend on the rows."""

    def estimate(self, model: Model, params: Params, batch: Batch, seed: int) -> Tensor:
        """Return log p(x) of every row in nats, its standard error and effective sample size.  # (n, 3)

        Random numbers are a function of `seed` and of what stands in the row. Rows and parameters come in double precision.
        """
        raise NotImplementedError

    def estimate_rows(self, model: Model, params: Params, rows: Rows, seed: int) -> Tensor:
        """Return what `estimate` gives for rows of any number.  # (n, 3)"""
        double = in_double(params)
        return map_rows_with_slopes(
            lambda batch: self.estimate(model, double, batch, seed), rows, model, self.n_chains, self.n_slopes
        )

    def score_rows(self, model: Model, params: Params, rows: Rows) -> Tensor:
        """Return log p(x) of every row in nats, with random numbers of the model's seed.  # (n,)"""
        return self.estimate_rows(model, params, rows, model.seed)[:, 0]


Noise = tuple[Tensor, Tensor, Tensor]  # of one move


class Path:
    """Densities on the geometric way from one of known integral, at level 0, to p(x, z), at level 1, for some rows."""

    def __init__(self, start: str, model: Model, params: Params, batch: Batch):
        who, remedy = "Hamiltonian Monte Carlo", "Use importance weighting, score_method='iwae'."
        refuse_simplex(model.support, who, remedy)
        refuse_discrete(model.posterior, who, remedy)
        self.model, self.params = model, params
        self.log_joint = joint_density(model, params, batch)
        self.q, self.x = model.encode(params, batch), batch.x
        self.from_prior = start == "prior"

    def log_start(self, z: Tensor) -> Tensor:
        """Return the log density at level 0.  # (..., n)"""
        if self.from_prior:
            return self.model.log_pz(self.params, z, self.x)
        return self.model.posterior.log_prob(self.q, z).sum(-1)

    def sample(self, n_chains: int, streams: RowStreams) -> Tensor:
        """Draw from level 0.  # (c, n, k)"""
        if self.from_prior:
            shape, dtype = (n_chains, 1, self.model.n_components), self.q.dtype
            params = {piece: {name: value.cpu() for name, value in own.items()} for piece, own in self.params.items()}
            return streams.stack(
                lambda stream, x: self.model.sample_prior(params, shape, stream, dtype, x)[:, 0], self.x.cpu().split(1)
            )
        return self.model.posterior.sample(self.q, streams.normal(n_chains, self.model.n_noise))

    def log_ratio(self, z: Tensor) -> Tensor:
        """Return the log density at level 1 over that at level 0.  # (..., n)"""
        return self.log_joint(z) - self.log_start(z)

    def move(self, z: Tensor, level: float, log_step: Tensor, n_leapfrog: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Move chains (c, n, k) in a way that leaves the density at `level` as it is; return with the chance of every move.

        Steps are in units of what the density is wide, as far as the encoder knows, and their lengths change from move to move,
        which keeps a path from coming back to where it began (Neal, 2011, section 3.2).
        """
        momentum, uniform, jitter = noise
        scale = self._scale(level)
        step = (log_step.exp() * (0.8 + 0.4 * jitter)).expand(z.shape[:-1])
        log_density = tempered(self.log_joint, self.log_start, level, scale)
        u, probability = transition(log_density, z / scale, step, n_leapfrog, momentum, uniform)
        return u * scale, probability

    def _scale(self, level: float) -> Tensor:
        """Return about how wide the density at `level` is along every component.  # (n, k)"""
        scale = self.model.posterior.scale(self.q)
        scale = torch.where(scale.isfinite(), scale, 1.0)  # a heavy-tailed family has no standard deviation
        return ((1 - level) + level / scale.square()).rsqrt() if self.from_prior else scale

    def first_log_step(self) -> Tensor:
        """Return the logarithm of a step size to begin with.  # (n,)"""
        return self.q.new_full((len(self.q),), math.log(0.5))


def tuned(log_step: Tensor, probability: Tensor) -> Tensor:
    """Return step sizes (n,) that bring the chances (c, n) with which chains were moved closer to what is wanted."""
    return log_step + 0.5 * (probability.mean(0) - _ACCEPTANCE)


# --- appendix D ----------------------------------------------------------------------------------------------------------


def gaussian_density(draws: Tensor) -> LogDensity:
    """Return the log density of the normal distribution with the moments of the draws, row by row.  # draws (s, n, k)"""
    mean, factor = _moments(draws)

    def log_prob(z: Tensor) -> Tensor:
        return -0.5 * _whitened(z, mean, factor).square().sum(-1) - _log_volume(factor)

    return log_prob


def kernel_density(draws: Tensor) -> LogDensity:
    """Return a kernel density estimate of the draws, row by row, as in the authors' code.  # draws (s, n, k)

    The kernel is normal, with the covariance of the draws scaled by the square of a bandwidth: Scott's times
    exp((i - 5) / 2), i = 0 ... 9, whichever makes the first half of the draws most likely under the kernels of the others.
    """
    n_draws, _, k = draws.shape
    exponent = (torch.arange(_N_BANDWIDTHS, device=draws.device, dtype=draws.dtype) - 5) / 2
    bandwidths = n_draws ** (-1 / (k + 4)) * exponent.exp()
    held_out, others = draws[: n_draws // 2], draws[n_draws // 2 :]
    scores = torch.stack([_sum_of_kernels(others, b)(held_out).sum(0) for b in bandwidths])
    return _sum_of_kernels(draws, bandwidths[scores.argmax(0)])


def _sum_of_kernels(draws: Tensor, bandwidth: Tensor) -> LogDensity:
    """Return the mean of normal densities around the draws, of the bandwidth (n,) or () of each row.  # draws (s, n, k)"""
    mean, factor = _moments(draws)
    centres = _whitened(draws, mean, factor).movedim(0, 1)
    constant = draws.shape[-1] * bandwidth.log() + _log_volume(factor) + math.log(len(draws))

    def log_prob(z: Tensor) -> Tensor:
        exactly = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(_whitened(z, mean, factor).movedim(0, 1), centres, compute_mode=exactly)  # (n, t, s)
        return torch.logsumexp(-0.5 * (distances / bandwidth[..., None, None]).square(), -1).mT - constant

    return log_prob


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (n, k) and the Cholesky factor of the covariance (n, k, k) of draws (s, n, k)."""
    mean = draws.mean(0)
    centred = (draws - mean).movedim(0, -1)  # (n, k, s)
    return mean, torch.linalg.cholesky(centred @ centred.mT / (len(draws) - 1))


def _whitened(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return z in units in which draws with these moments have mean zero and covariance one.  # (..., n, k)"""
    return torch.linalg.solve_triangular(factor, (z - mean)[..., None], upper=False)[..., 0]


def _log_volume(factor: Tensor) -> Tensor:
    """Return minus the log density of a normal distribution at its mean.  # (n,)"""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + factor.shape[-1] * HALF_LOG_2PI


DENSITIES: dict[str, Callable[[Tensor], LogDensity]] = {"gaussian": gaussian_density, "kde": kernel_density}
_SMALLEST_PART = {"gaussian": ("Half", 2), "kde": ("A quarter", 4)}  # of the draws, from which a covariance is estimated


class PosteriorDensity(MarginalLikelihood):
    r"""The paper's estimator of :math:`\log p(x)`: draws of the true posterior and a density fit to them.

    For any normalised density :math:`f`, the posterior mean of :math:`f(z) / p(x, z)` is :math:`1 / p(x)`. Here one half of the
    draws fits :math:`f` and the other half takes the mean, so the estimate errs upwards where importance weighting errs
    downwards. Each draw is where a chain of Hamiltonian Monte Carlo of its own ends that started at a draw of
    :math:`q(z \mid x)`; the chains of a row have only the length of their steps in common.

    Parameters
    ----------
    n_samples : int, default=50
        Draws per row: the first half fits the density, the second takes the mean. Ten per component are a good number, twenty
        with `density="kde"`. One half, with "kde" a quarter, must be more than there are components.

    density : {"gaussian", "kde"}, default="gaussian"
        What is fitted: a normal distribution with full covariance, or the kernel density of the authors' code, which is
        unreliable from five components on.

    n_leapfrog : int, default=4
        Steps along the gradient per move of a chain.

    n_moves : int, default=30
        Moves of a chain before its draw; in the first half the row's step size is tuned. More where the posterior is far from
        :math:`q(z \mid x)`: a chain that has not arrived shows as an effective sample size near one. Chains do not cross from
        one mode of the posterior to another, and where they start in the wrong ones the estimate is too low: see
        `AnnealedImportance(start="prior")`.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, appendix D.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import PosteriorDensity
    >>> VAETransformer(score_method=PosteriorDensity(density="kde"))
    VAETransformer(score_method=PosteriorDensity(density='kde'))
    """

    _parameter_constraints = {
        "n_samples": [Interval(Integral, 4, None, closed="left")],
        "density": [StrOptions(set(DENSITIES))],
        "n_leapfrog": [Interval(Integral, 1, None, closed="left")],
        "n_moves": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(self, n_samples=50, *, density="gaussian", n_leapfrog=4, n_moves=30):
        self.n_samples = n_samples
        self.density = density
        self.n_leapfrog = n_leapfrog
        self.n_moves = n_moves

    @property
    def n_chains(self):
        return self.n_samples

    @property
    def n_slopes(self):
        return self.n_moves * (self.n_leapfrog + 1)

    def estimate(self, model, params, batch, seed):
        part, n_parts = _SMALLEST_PART[self.density]
        if self.n_samples // n_parts <= model.n_components:
            raise ValueError(
                f"{part} of n_samples={self.n_samples} draws are too few to fit a density in {model.n_components} dimensions. "
                f"Set n_samples of PosteriorDensity to {n_parts * (model.n_components + 1)} or more; "
                f"{5 * n_parts * model.n_components} are a good number."
            )
        if model.support != Support():
            raise ValueError(
                f"PosteriorDensity fits a density on all real numbers, but the prior {model.prior!r} allows only latents "
                f"{model.support}. Use score_method='ais' or 'iwae'."
            )
        path = Path("posterior", model, params, batch)
        return self.estimate_from_draws(path.log_joint, self._posterior_draws(path, RowStreams(batch.x, seed, "density")))

    def estimate_from_draws(self, log_joint: LogDensity, z: Tensor) -> Tensor:
        """Return what independent draws (s, n, k) of the posterior say.  # (n, 3)"""
        half = len(z) // 2
        log_density = DENSITIES[self.density](z[:half])
        return reciprocal(log_mean(log_density(z[half:]) - log_joint(z[half:])))

    def _posterior_draws(self, path: Path, streams: RowStreams) -> Tensor:
        """Return the ends of the chains.  # (s, n, k)"""
        z = path.sample(self.n_samples, streams)
        log_step = path.first_log_step()
        for i, noise in zip(range(self.n_moves), streams.moves(*z.shape[::2])):
            z, probability = path.move(z, 1.0, log_step, self.n_leapfrog, noise)
            if i < self.n_moves // 2:
                log_step = tuned(log_step, probability)
        return z


# --- annealed importance sampling ----------------------------------------------------------------------------------------


class AnnealedImportance(MarginalLikelihood):
    r"""Annealed importance sampling: weights gathered on a way of many small steps to the posterior.

    Chains start where the integral of the density is known and move, by Hamiltonian Monte Carlo, through the densities between
    there and :math:`p(x, z)`. The mean weight is an unbiased estimate of :math:`p(x)`, so its logarithm errs downwards, by less
    the more levels there are. It needs neither a good encoder nor few components, and costs most.

    Parameters
    ----------
    n_temperatures : int, default=100
        Levels between the start and the posterior.

    start : {"posterior", "prior"}, default="posterior"
        Where chains start: at draws of :math:`q(z \mid x)`, the shorter way, or of the prior, which finds modes that the
        encoder does not know of and owes it nothing but the lengths of steps. A posterior that cannot reach all latents that
        the prior allows, such as a uniform or gamma one under a normal prior, needs the prior.

    n_chains : int, default=16
        Chains per row.

    n_leapfrog : int, default=10
        Steps along the gradient per level.

    References
    ----------
    Neal, *Annealed Importance Sampling*, 2001. Wu, Burda, Salakhutdinov & Grosse, *On the Quantitative Analysis of
    Decoder-Based Generative Models*, 2017.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import AnnealedImportance
    >>> VAETransformer(score_method=AnnealedImportance(500, start="prior"))
    VAETransformer(score_method=AnnealedImportance(n_temperatures=500,
                                                   start='prior'))
    """

    _parameter_constraints = {
        "n_temperatures": [Interval(Integral, 2, None, closed="left")],
        "start": [StrOptions({"posterior", "prior"})],
        "n_chains": [Interval(Integral, 1, None, closed="left")],
        "n_leapfrog": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_temperatures=100, *, start="posterior", n_chains=16, n_leapfrog=10):
        self.n_temperatures = n_temperatures
        self.start = start
        self.n_chains = n_chains
        self.n_leapfrog = n_leapfrog

    @property
    def n_slopes(self):
        return (self.n_temperatures + _TUNED_LEVELS) * (self.n_leapfrog + 1)

    def check(self, model):
        """Refuse to begin at a posterior that cannot reach all latents: chains would never come to the others."""
        if self.start == "posterior" and not covers(model.posterior, model.prior):
            raise ValueError(
                f"Annealing begins at q(z|x), but the posterior {model.posterior!r} cannot reach all latents that the prior "
                f"{model.prior!r} allows, and would miss the others. Begin at the prior: AnnealedImportance(start='prior')."
            )

    def estimate(self, model, params, batch, seed):
        path = Path(self.start, model, params, batch)
        streams = RowStreams(batch.x, seed, "annealing")
        z = path.sample(self.n_chains, streams)
        return log_mean(self._log_weights(path, self._levels(), self._log_steps(path, batch, seed), z, streams))

    def upper_estimate(self, model: Model, params: Params, batch: Batch, z: Tensor, seed: int) -> Tensor:
        """Return an estimate that errs upwards: the way back, from latents z (n, k) with which the rows were made.  # (n, 3)"""
        path = Path(self.start, model, params, batch)
        streams = RowStreams(batch.x, seed, "annealing back")
        levels, log_steps = self._levels()[::-1], self._log_steps(path, batch, seed)[::-1]
        return reciprocal(log_mean(self._log_weights(path, levels, log_steps, z.repeat(self.n_chains, 1, 1), streams)))

    def _levels(self) -> list[float]:
        """Return the levels from 0 to 1, close to each other at both ends, where densities change most."""
        x = torch.linspace(-_STEEPNESS, _STEEPNESS, self.n_temperatures + 1, device="cpu", dtype=torch.float64).sigmoid()
        return ((x - x[0]) / (x[-1] - x[0])).tolist()

    def _log_steps(self, path: Path, batch: Batch, seed: int) -> list[Tensor]:
        """Return the log step size of every row at every level, from chains of their own that go the same way in larger steps.

        Steps that were tuned on the chains that gather the weights would bias them.  # (n,)
        """
        streams = RowStreams(batch.x, seed, "step sizes")
        z, log_step = path.sample(self.n_chains, streams), path.first_log_step()
        noise = streams.moves(*z.shape[::2])
        levels, log_steps = self._levels(), []
        stride = math.ceil(len(levels) / _TUNED_LEVELS)
        for i in range(0, len(levels), stride):
            for _ in range(1 if i else _FIRST_MOVES):
                z, probability = path.move(z, levels[i], log_step, self.n_leapfrog, next(noise))
                log_step = tuned(log_step, probability)
            log_steps += [log_step] * stride
        return log_steps[: len(levels)]

    def _log_weights(self, path: Path, levels: list[float], log_steps: list[Tensor], z: Tensor, streams: RowStreams) -> Tensor:
        """Return the log weights that chains (c, n, k) gather from the first level to the last.  # (c, n)"""
        noise = streams.moves(*z.shape[::2])
        log_w = z.new_zeros(z.shape[:-1])
        for i in range(1, len(levels)):
            log_w = log_w + (levels[i] - levels[i - 1]) * path.log_ratio(z)
            if i < len(levels) - 1:
                z, _ = path.move(z, levels[i], log_steps[i], self.n_leapfrog, next(noise))
        return log_w


register("score_method", hmc=PosteriorDensity, ais=AnnealedImportance)
