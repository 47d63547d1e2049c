"""Mixtures as priors: of normals, and of the posteriors of rows that are made up."""

import math
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from skvae._constants import constant, zeros
from skvae._numbers import HALF_LOG_2PI, VECTOR
from skvae._random import choices, generator, normal, uniform
from skvae._settings import Interval
from skvae.priors._base import Prior

_LOG_SCALES = (-10, 5)  # of the normals
_CELLS = 100_000  # of rows, modes and components that are worked on at once where nobody needs them afterwards


def mixture_log_prob(log_weights: Tensor, log_probs: Tensor) -> Tensor:
    """Return the log density of a mixture, of each component given those before it.  # (..., k)

    `log_weights` (modes, 1), or (n, modes, 1) of n rows, are normalised; `log_probs` (..., modes, k) are the densities of the
    components in each mode.
    """
    so_far = torch.logsumexp(log_weights + log_probs.cumsum(-1), -2)
    return torch.diff(so_far, dim=-1, prepend=torch.zeros_like(so_far[..., :1]))


def _log_weights(params: dict) -> Tensor:
    """Return the logs of the weights of a mixture, one set for all rows or one for each.  # (modes, 1) or (n, modes, 1)"""
    logit = params["logit"]
    return (logit + params["log_odds"][..., None] if "log_odds" in params else logit).log_softmax(-2)


def _draw_modes(params: dict, shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Return the modes of draws of `shape` (...), or (..., 1 or n) where each of n rows has weights of its own."""
    weights = _log_weights(params)[..., 0].exp()
    if "log_odds" not in params:
        return torch.multinomial(weights, math.prod(shape), replacement=True, generator=stream).view(shape)
    n = len(weights)
    drawn = uniform(shape, stream, weights.dtype).expand(*shape[:-1], n)
    return choices(weights, drawn.reshape(-1, n).mT.contiguous()).mT.reshape(drawn.shape)


class MixtureOfNormals(Prior):
    """A mixture of normal distributions with diagonal covariances, learnt with the model.

    Where the data fall into groups, the aggregated posterior does as well, and a single normal prior pulls the groups together.
    In a model with `condition_on` the weights of the normals depend on the conditions, as those of a logistic regression do.

    Parameters
    ----------
    n_modes : int, default=10
        Number of normals.
    """

    _parameter_constraints = {"n_modes": [Interval(Integral, 1, None, closed="left")]}
    growth = 2.0
    weighed_by = ("logit",)

    def __init__(self, n_modes=10):
        self.n_modes = n_modes

    @property
    def n_weights(self):
        return self.n_modes

    def shapes(self, n_components, n_inputs):
        return {
            "logit": (self.n_modes, 1),
            "mean": (self.n_modes, n_components),
            "log_scale": (self.n_modes, n_components),
        }

    def init(self, n_components, n_inputs, stream):
        """Return equal weights and standard deviations of 1, around means drawn from N(0, I)."""
        params = zeros(self.shapes(n_components, n_inputs))
        params["mean"].normal_(generator=stream)
        return params

    def log_prob(self, params, z):
        if torch.is_grad_enabled():
            return self._log_prob(params, z)
        n_rows = VECTOR * max(1, _CELLS // (VECTOR * params["mean"].numel()))
        parts = z.reshape(-1, z.shape[-1]).split(n_rows)
        if "log_odds" not in params:
            return torch.cat([self._log_prob(params, rows) for rows in parts]).view(z.shape)
        log_odds = params["log_odds"].expand(*z.shape[:-1], self.n_modes).reshape(-1, self.n_modes).split(n_rows)
        found = [self._log_prob({**params, "log_odds": odds}, rows) for rows, odds in zip(parts, log_odds, strict=True)]
        return torch.cat(found).view(z.shape)

    def _log_prob(self, params, z):
        log_scale = params["log_scale"].clamp(*_LOG_SCALES)
        t = (z[..., None, :] - params["mean"]) * (-log_scale).exp()  # (..., n, modes, k)
        log_probs = -0.5 * t.square() - log_scale - HALF_LOG_2PI
        return mixture_log_prob(_log_weights(params), log_probs)

    def log_prob_rows(self, params, z):
        return _Modes(params).log_probs(_powers(z)).logsumexp(-1).to(z.dtype)

    def derivative(self, params, z, weight):
        modes, weight, powers = _Modes(params), weight.double(), _powers(z)
        share = weight * modes.log_probs(powers).softmax(-1)  # (..., n, modes)
        linear, quadratic = (share @ modes.factors).chunk(2, -1)
        by_z = torch.addcmul(linear, powers[..., : z.shape[-1]], quadratic, value=2)
        total = share.sum(-2)[..., None]  # (..., modes, 1)
        first, second = (share.mT @ powers).chunk(2, -1)  # (..., modes, k)
        squares = modes.precision * (second - 2 * modes.mean * first + modes.mean.square() * total)
        if "log_odds" in params:
            by_log_odds = share - modes.log_weight.exp() * weight  # (..., n, modes)
            by_logit = by_log_odds.sum(-2)[..., None]
        else:
            by_logit = total - modes.log_weight.mT.exp() * weight.sum(-2, keepdim=True)
        by_params = {
            "logit": by_logit,
            "mean": modes.precision * (first - modes.mean * total),
            "log_scale": (squares - total) * modes.is_free,
        }
        n_modes = params["logit"].shape[-2]
        slopes = {name: slope[..., :n_modes, :].to(z.dtype) for name, slope in by_params.items()}
        if "log_odds" in params:
            slopes["log_odds"] = by_log_odds[..., :n_modes].to(z.dtype)
        return by_z.to(z.dtype), slopes

    def sample(self, params, shape, stream, dtype):
        modes = _draw_modes(params, shape[:-1], stream)
        noise = normal(shape, stream, dtype)
        return params["mean"][modes] + params["log_scale"].clamp(*_LOG_SCALES)[modes].exp() * noise


class _Modes:
    """The normals of a mixture as factors of matrix products, in double precision, in which squares may be multiplied out.

    Their number is filled up to whole vectors by modes of weight zero: torch rounds a rest in another way.
    """

    def __init__(self, params: dict[str, Tensor]):
        rest = -params["logit"].shape[-2] % VECTOR
        logit, self.mean, log_scale = (
            F.pad(params[name].double(), (0, 0, 0, rest), value=value)
            for name, value in (("logit", -math.inf), ("mean", 0.0), ("log_scale", 0.0))
        )
        low, high = _LOG_SCALES
        self.is_free = (low <= log_scale) & (log_scale <= high)
        log_scale = log_scale.clamp(low, high)
        if "log_odds" in params:
            self.log_weight = (logit.mT + F.pad(params["log_odds"].double(), (0, rest))).log_softmax(-1)
        else:
            self.log_weight = logit.log_softmax(-2).mT  # (..., 1 or n, modes)
        self.precision = (-2 * log_scale).exp()  # (..., modes, k)
        scaled_mean = self.precision * self.mean
        self.factors = torch.cat([scaled_mean, -0.5 * self.precision], -1)  # (..., modes, 2k) of z and its square
        at_zero = -0.5 * self.mean * scaled_mean - log_scale - HALF_LOG_2PI
        self.constant = self.log_weight + at_zero.sum(-1, keepdim=True).mT  # (..., 1 or n, modes)

    def log_probs(self, powers: Tensor) -> Tensor:
        """Return the log of each mode's weight times its density, given latents and their squares.  # (..., n, modes)"""
        return self.constant + powers @ self.factors.mT


def _powers(z: Tensor) -> Tensor:
    """Return latents and their squares side by side, in double precision.  # (..., n, 2k)"""
    z = z.double()
    return torch.cat([z, z.square()], -1)


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
    weighed_by = ("logit",)
    follows_encoder = True

    def __init__(self, n_pseudo_inputs=50):
        self.n_pseudo_inputs = n_pseudo_inputs

    @property
    def n_weights(self):
        return self.n_pseudo_inputs

    def shapes(self, n_components, n_inputs):
        return {"logit": (self.n_pseudo_inputs, 1), "pseudo_inputs": (self.n_pseudo_inputs, n_inputs)}

    def init(self, n_components, n_inputs, stream):
        """Return equal weights and rows of standard normal noise."""
        params = zeros(self.shapes(n_components, n_inputs))
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
        u = u.clamp(*(constant(limit, u, owner=model.likelihood) for limit in model.input_limits))
        return {**params["prior"], "posterior": model.posterior, "q": model.encode_inputs(params, u)}

    def log_prob(self, params, z):
        log_probs = params["posterior"].log_prob(params["q"], z[..., None, :])  # (..., n, pseudo-inputs, k)
        return mixture_log_prob(_log_weights(params), log_probs)

    def sample(self, params, shape, stream, dtype):
        modes, family = _draw_modes(params, shape[:-1], stream), params["posterior"]
        noise = normal((*shape[:-1], family.n_noise(shape[-1])), stream, dtype).expand(*modes.shape, -1)
        return family.sample(params["q"][modes.flatten()], noise.reshape(1, modes.numel(), -1))[0].view(*modes.shape, -1)
