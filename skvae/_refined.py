"""Importance weighting that helps the encoder out: where few of its draws count, others come from a mode of p(z|x)."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._families import Support
from skvae._inference import Rows, map_draws
from skvae._marginal import MarginalLikelihood, by_importance, log_mean
from skvae._model import Model, Params
from skvae._modes import climb
from skvae._proposals import normal_draws
from skvae._random import generator, normal
from skvae._settings import Interval, register

_STEPS = 8  # to a mode: one is enough where the decoder is linear


class RefinedImportance(MarginalLikelihood):
    r"""Importance weighting by the encoder, helped out by the decoder where the encoder is wrong.

    The encoder has learnt from training rows. Of a row that is far from all of them, :math:`q(z \mid x)` can be far from
    :math:`p(z \mid x)`: all of its draws but one weigh next to nothing, and the bound lies up to hundreds of nats below
    :math:`\log p(x)`, however many there are. Such rows are measured again, by as many draws more, of the normal approximation
    at a mode of :math:`p(z \mid x)`, to which Gauss-Newton steps lead from the mean of :math:`q(z \mid x)`. All draws weigh
    :math:`p(x, z) / r(z)`, where r is the mixture of both densities. As r is a function of the row, the mean weight is an
    unbiased estimate of :math:`p(x)` and its logarithm errs downwards, as in :class:`~skvae.objectives.IWAE`.

    Parameters
    ----------
    n_samples : int, default=100
        Draws of :math:`q(z \mid x)` per row, and of the normal approximation for each row that is measured again.

    min_ess : float, default=5
        Effective sample size below which a row is measured again: the number of equal weights that would be as sure. Infinity
        measures all rows again, which makes the most of a number of draws; 0 makes this importance weighting alone. Latents
        that have limits or are discrete have no normal approximation, and are drawn from :math:`q(z \mid x)` alone.

    References
    ----------
    Hjelm, Cho, Chung, Salakhutdinov, Calhoun & Jojic, *Iterative Refinement of the Approximate Posterior for Directed Belief
    Networks*, 2016. Hesterberg, *Weighted Average Importance Sampling and Defensive Mixture Distributions*, 1995.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import RefinedImportance
    >>> VAETransformer(score_method=RefinedImportance(min_ess=float("inf")))
    VAETransformer(score_method=RefinedImportance(min_ess=inf))
    """

    _parameter_constraints = {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "min_ess": [Interval(Real, 0, None, closed="both")],
    }

    def __init__(self, n_samples=100, *, min_ess=5):
        self.n_samples = n_samples
        self.min_ess = min_ess

    def estimate_rows(self, model, params, rows, seed):
        stream = generator(seed, "importance", device=rows.device)
        return self._estimates(model, params, rows, normal((self.n_samples, 1, model.n_noise), stream, rows.dtype), stream)

    def score_rows(self, model, params, rows):
        stream = generator(model.seed, "score", device=rows.device)
        noise = model.noise(self.n_samples, stream, rows.dtype, averages_weights=True)
        return self._estimates(model, params, rows, noise, stream)[:, 0]

    def _estimates(self, model: Model, params: Params, rows: Rows, noise: Tensor, stream: torch.Generator) -> Tensor:
        """Return what draws of q(z|x) say, made of noise (s, 1, n_noise), and others where they are no good.  # (n, 3)"""
        found = by_importance(model, params, rows, noise)
        unsure = (~(found[:, 2] >= self.min_ess)).nonzero()[:, 0]  # nan, too
        if not len(unsure) or model.support != Support():
            return found
        at_mode = normal((self.n_samples, 1, model.n_components), stream, torch.float64)

        def again(params: Params, batch: Batch, start: int) -> Tensor:
            return log_mean(refined_log_weights(model, params, batch, noise, at_mode))

        return found.index_copy(0, unsure, map_draws(again, model, params, rows.take(unsure), 2 * self.n_samples))


def refined_log_weights(model: Model, params: Params, batch: Batch, noise: Tensor, at_mode: Tensor) -> Tensor:
    """Return log weights of draws of q(z|x), of noise (s, 1, n_noise), and of a normal at a mode, (s, 1, k).  # (2 s, n)"""
    q = model.encode(params, batch)
    mode = climb(model, params, batch, model.posterior.mean(q)[None], _STEPS)
    others = normal_draws((mode.z + mode.step)[0], mode.covariance[0], at_mode, q.dtype)
    drawn = model.posterior.sample(q, noise)
    log_q = torch.cat([model.posterior.log_prob_of_draws(q, noise, drawn), model.posterior.log_prob(q, others.z)]).sum(-1)
    z = torch.cat([drawn, others.z])
    log_prior = model.log_pz(params, z, batch.x).double()
    log_mass = torch.logaddexp(log_q.double() + math.log(len(drawn)), others.log_mass(z, log_prior))
    return model.log_px(params, batch, z) + log_prior - log_mass + math.log(len(z))


register("score_method", refined=RefinedImportance)
