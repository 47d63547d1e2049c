"""Importance weighting that helps the encoder out: where it is far off, other draws come from a mode of p(z|x)."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._families import Support
from skvae._inference import Rows, map_draws
from skvae._marginal import MarginalLikelihood, by_importance, log_mean
from skvae._model import Model, Params
from skvae._modes import climb, surveyor
from skvae._proposals import normal_draws
from skvae._random import generator, normal, paired_normal
from skvae._settings import Interval, register

_STEPS = 9  # to a mode: one is enough where the decoder is linear
_GAP_DRAWS = 32  # by which it is judged whether a row needs them


class RefinedImportance(MarginalLikelihood):
    r"""Importance weighting by the encoder, helped out by the decoder where the encoder is wrong.

    The encoder has learnt from training rows. Of a row that is far from all of them, :math:`q(z \mid x)` can be far from
    :math:`p(z \mid x)`: then the bound lies up to hundreds of nats below :math:`\log p(x)`, however many draws there are. Such
    rows are measured by as many draws more, of the normal approximation at a mode of :math:`p(z \mid x)`, to which Gauss-Newton
    steps lead from the mean of :math:`q(z \mid x)`. All draws weigh :math:`p(x, z) / r(z)`, where r is the mixture of both
    densities. Which rows these are, and r, are functions of the row and not of the draws, so the mean weight is an unbiased
    estimate of :math:`p(x)` and its logarithm errs downwards, as in :class:`~skvae.objectives.IWAE`.

    Parameters
    ----------
    n_samples : int, default=100
        Draws of :math:`q(z \mid x)` per row, and of the normal approximation for each row that gets some.

    max_gap : float, default=4
        Nats that :math:`\mathrm{KL}(\tilde p \,\|\, q)` may have before a row gets draws of the normal approximation at a mode;
        :math:`\tilde p` is the normal approximation of :math:`p(z \mid x)` after one Gauss-Newton step from the mean of q.
        Importance weighting takes about as many draws as the exponential of this divergence. 0 gives them to all rows, which
        makes the most of a number of draws and takes several times as long; infinity makes this importance weighting alone.
        Where the prior has limits, or latents are discrete, there is no normal approximation, and all draws come from
        :math:`q(z \mid x)`.

    References
    ----------
    Chatterjee & Diaconis, *The Sample Size Required in Importance Sampling*, 2018.
    Hjelm, Cho, Chung, Salakhutdinov, Calhoun & Jojic, *Iterative Refinement of the Approximate Posterior for Directed Belief
    Networks*, 2016. Hesterberg, *Weighted Average Importance Sampling and Defensive Mixture Distributions*, 1995.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import RefinedImportance
    >>> VAETransformer(score_method=RefinedImportance(max_gap=0))
    VAETransformer(score_method=RefinedImportance(max_gap=0))
    """

    _parameter_constraints = {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "max_gap": [Interval(Real, 0, None, closed="both")],
    }

    def __init__(self, n_samples=100, *, max_gap=4):
        self.n_samples = n_samples
        self.max_gap = max_gap

    def estimate_rows(self, model, params, rows, seed):
        stream = generator(seed, "importance")
        return self._estimates(model, params, rows, normal((self.n_samples, 1, model.n_noise), stream, rows.dtype), stream)

    def score_rows(self, model, params, rows):
        stream = generator(model.seed, "score")
        noise = model.noise(self.n_samples, stream, rows.dtype, averages_weights=True)
        return self._estimates(model, params, rows, noise, stream)[:, 0]

    def _estimates(self, model: Model, params: Params, rows: Rows, noise: Tensor, stream: torch.Generator) -> Tensor:
        """Return what draws of q(z|x) say, made of noise (s, 1, n_noise), and others where they are far off.  # (n, 3)"""
        noise = noise.to(rows.device)
        found = by_importance(model, params, rows, noise)
        if self.max_gap == math.inf or model.posterior.is_discrete or model.support != Support():
            return found
        n_near = 4 * (1 + model.n_components)  # latents decoded at a time on the way to a mode, in double precision
        # Which rows are refined has nothing to do with the draws that follow.
        noise_of_gaps = paired_normal(_GAP_DRAWS, model.n_components, generator(model.seed, "gaps"), torch.float64)

        def gap(params: Params, batch: Batch, start: int) -> Tensor:
            return gaps_to_modes(model, params, batch, noise_of_gaps.to(batch.device)).clamp(min=0)

        far = (~(map_draws(gap, model, params, rows, n_near) < self.max_gap)).nonzero()[:, 0]  # nan, too
        if not len(far):
            return found
        noise_at_mode = normal((self.n_samples, 1, model.n_components), stream, torch.float64).to(rows.device)

        def refined(params: Params, batch: Batch, start: int) -> Tensor:
            return log_mean(refined_log_weights(model, params, batch, noise, noise_at_mode), n_strata=2)

        again = map_draws(refined, model, params, rows.take(far), max(2 * self.n_samples, n_near))
        return found.index_copy(0, far, torch.where(again[:, :1].isfinite(), again, found[far]))


def gaps_to_modes(model: Model, params: Params, batch: Batch, noise: Tensor) -> Tensor:
    """Return about KL(p(z|x) || q(z|x)), by noise (s, 1, k): p is taken to be normal, as it looks at the mean of q.  # (n,)"""
    q = model.encode(params, batch)
    place = surveyor(model, params, batch)(model.posterior.mean(q)[None])
    z, log_p = normal_draws((place.z + place.step)[0], place.covariance[0], noise, q.dtype)
    return (log_p(z) - model.posterior.log_prob(q, z).sum(-1).double()).mean(0)  # type: ignore[misc]


def refined_log_weights(model: Model, params: Params, batch: Batch, noise: Tensor, noise_at_mode: Tensor) -> Tensor:
    """Return log weights of draws of q(z|x), of noise (s, 1, n_noise), and of a normal at a mode, (s, 1, k).  # (2 s, n)"""
    q = model.encode(params, batch)
    mode = climb(model, params, batch, model.posterior.mean(q)[None], _STEPS)
    others = normal_draws(mode.z[0], mode.covariance[0], noise_at_mode, q.dtype)
    drawn = model.posterior.sample(q, noise)
    log_q = torch.cat([model.posterior.log_prob_of_draws(q, noise, drawn), model.posterior.log_prob(q, others.z)]).sum(-1)
    z = torch.cat([drawn, others.z])
    log_prior = model.log_pz(params, z, batch.x).double()
    log_mass = torch.logaddexp(log_q.double() + math.log(len(drawn)), others.log_mass(z, log_prior))
    return model.log_px(params, batch, z) + log_prior - log_mass + math.log(len(z))


register("score_method", refined=RefinedImportance)
