"""Latents of separate values, a user's own: wake-sleep trains them, with log p(x) by enumeration beside it; others refuse."""

import itertools

import numpy as np
import pytest
import torch
from conftest import table_for

from skvae import VAETransformer
from skvae.evaluation import RefinedImportance, bracket, log_likelihood
from skvae.likelihoods import Gaussian
from skvae.objectives import IWAE, Objective
from skvae.posteriors import Posterior
from skvae.priors import Prior
from skvae.solvers import AEVB, MonteCarloEM, WakeSleep

X = table_for(Gaussian())


class Bits(Posterior):
    """Independent bits, of which the encoder gives the log odds."""

    is_discrete = True

    def n_outputs(self, n_components):
        return n_components

    def mean(self, q):
        return q.sigmoid()

    def scale(self, q):
        return (q.sigmoid() * (-q).sigmoid()).sqrt()

    def sample(self, q, noise):
        return (torch.special.ndtr(noise) < q.sigmoid()).to(q.dtype)

    def log_prob(self, q, z):
        return -torch.nn.functional.softplus((1 - 2 * z) * q)


class FairBits(Prior):
    """Bits of probability one half."""

    def log_prob(self, params, z):
        return torch.full_like(z, 0.5).log()

    def sample(self, params, shape, stream, dtype):
        return torch.randint(2, shape, generator=stream, device=stream.device).to(dtype)


class ScoreFunction(Objective):
    """The bound with the score-function gradient, which asks for no gradient of draws."""

    n_samples = 4
    differentiates_draws = False

    def __call__(self, model, params, batch, noise, annealing=1.0):
        q = model.encode(params, batch)
        z = model.posterior.sample(q, noise).detach()
        log_q = model.posterior.log_prob(q, z).sum(-1)
        value = model.log_px(params, batch, z) + model.log_pz(params, z) - log_q
        return (value + log_q * (value - value.mean(0)).detach()).mean(0)


def model_of(**params):
    settings = {"max_iter": 60, "learning_rate": "cosine", "learning_rate_init": 0.01, "random_state": 0}
    return VAETransformer(3, posterior=Bits(), prior=FairBits(), **{**settings, **params})


def exact(vae):
    """Return the mean of log p(x) over the rows, a sum over all eight latents."""
    model, rows = vae._fitted.model, vae._fitted.codec.encode(X, dtype=torch.float64)
    params = model.unpack(torch.tensor(vae._fitted.params).double())
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)[:, None].expand(-1, len(X), -1)
    with torch.no_grad():
        log_joint = model.log_px(params, rows, z) + model.log_pz(params, z)
    return float(torch.logsumexp(log_joint, 0).mean()) + vae._fitted.codec.log_jacobian


@pytest.mark.parametrize("phase", ["sleep", "wake", "both"])
def test_wake_sleep_trains_bits_and_scores_find_the_sum_over_all_of_them(phase):
    vae = model_of(solver=WakeSleep(5, encoder_phase=phase), score_method=IWAE(3000)).fit(X)
    begun = model_of(solver=WakeSleep(5, encoder_phase=phase), max_iter=1).fit(X)
    assert exact(vae) > exact(begun) + 0.5
    assert vae.score(X) == pytest.approx(exact(vae), abs=0.02)
    assert vae.set_params(score_method="elbo").score(X) < exact(vae)
    assert set(np.unique(vae.sample_posterior(X, 3, random_state=0))) <= {0.0, 1.0}


@pytest.mark.parametrize("params", [{}, {"objective": "iwae"}, {"solver": MonteCarloEM()}, {"solver": "mcem"}], ids=repr)
def test_solvers_that_follow_gradients_of_latents_refuse_them(params):
    with pytest.raises(ValueError, match=r"follows gradients of latents, and those of Bits\(\) are discrete"):
        model_of(**params).fit(X)


def test_an_objective_of_ones_own_may_do_without_gradients_of_draws():
    settings = {"solver": AEVB(averaging=0), "objective": ScoreFunction(), "early_stopping": False}
    begun, ended = (exact(model_of(max_iter=n, **settings).fit(X)) for n in (1, 150))
    assert ended > begun + 0.5


def test_refined_scores_leave_discrete_latents_to_the_encoder():
    vae = model_of(solver=WakeSleep(), max_iter=20, score_method=RefinedImportance(3000, max_gap=0)).fit(X)
    assert vae.score(X) == pytest.approx(exact(vae), abs=0.02)
    assert vae.score(X) == pytest.approx(vae.set_params(score_method=IWAE(3000)).score(X), abs=1e-5)


@pytest.mark.parametrize("method", ["ais", "hmc"])
def test_scores_that_move_latents_refuse_them(method):
    vae = model_of(solver=WakeSleep(), max_iter=2).fit(X)
    for score in (lambda: vae.set_params(score_method=method).score(X), lambda: log_likelihood(vae, X, method)):
        with pytest.raises(ValueError, match="are discrete. Use importance weighting"):
            score()
    with pytest.raises(ValueError, match="are discrete"):
        bracket(vae, n_rows=4)
