"""Objectives: weights of the KL, warm-up, and the order of the bounds."""

import math

import pytest
import torch

from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE, log_weights
from skvae.posteriors import Normal
from skvae.priors import StandardNormal


@pytest.fixture
def problem():
    """A model with random parameters, a batch and the noise of 64 draws per row."""
    network = MLP((8,), activation="tanh")
    model = Model(Pieces(network, network, Normal(), StandardNormal(), Gaussian()), 4, 2, 0)
    flat = 0.3 * normal((model.layout.size,), generator(0, "parameters"), torch.float64)
    batch = Batch(normal((9, 4), generator(0, "rows"), torch.float64))
    return model, model.unpack(flat), batch, normal((64, 9, 2), generator(0, "noise"), torch.float64)


def test_beta_weighs_the_kl_in_training_but_not_in_the_bound(problem):
    model, params, batch, noise = problem
    kl = model.posterior.kl(model.encode(params, batch), model.prior).sum(-1)
    one, four = (ELBO(beta=b)(model, params, batch, noise) for b in (1.0, 4.0))
    torch.testing.assert_close(one - four, 3 * kl)
    torch.testing.assert_close(ELBO(beta=4.0).bound(model, params, batch, noise), one)


def test_warmup_grows_linearly_to_full_strength():
    weights = [ELBO(warmup=4).annealing(epoch) for epoch in range(6)]
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert ELBO().annealing(0) == 1.0


def test_annealing_scales_the_kl(problem):
    model, params, batch, noise = problem
    kl = model.posterior.kl(model.encode(params, batch), model.prior).sum(-1)
    full, half = (ELBO()(model, params, batch, noise, a) for a in (1.0, 0.5))
    torch.testing.assert_close(half - full, 0.5 * kl)


def test_estimator_a_averages_the_log_weights(problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(
        ELBO(kl="monte_carlo").bound(model, params, batch, noise), log_weights(model, params, batch, noise).mean(0)
    )


def test_importance_weighted_bound_with_one_draw_is_estimator_a(problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(
        IWAE(1).bound(model, params, batch, noise[:1]), ELBO(kl="monte_carlo").bound(model, params, batch, noise[:1])
    )


def test_importance_weighted_bound_rises_with_the_draws(problem):
    """Averaged over disjoint subsets of the same draws the bound cannot fall as they grow (Burda et al., theorem 1)."""
    model, params, batch, noise = problem
    log_w = log_weights(model, params, batch, noise)
    values = [(torch.logsumexp(log_w.unflatten(0, (64 // k, k)), 1) - math.log(k)).mean(0) for k in (1, 2, 4, 8, 16, 32, 64)]
    for smaller, larger in zip(values[:-1], values[1:], strict=True):
        assert (smaller <= larger + 1e-12).all()


def test_bounds_have_one_value_per_row_that_does_not_depend_on_the_others(problem):
    model, params, batch, _ = problem
    noise = normal((8, 1, 2), generator(0, "common"), torch.float64)
    for objective in (ELBO(), ELBO(kl="monte_carlo"), IWAE(8)):
        whole = objective.bound(model, params, batch, noise)
        assert whole.shape == (9,)
        torch.testing.assert_close(objective.bound(model, params, batch.slice(3, 5), noise), whole[3:5])


def test_a_missing_closed_form_is_told_with_the_remedy(problem):
    model, params, batch, noise = problem

    class Plain(Normal):
        """A normal posterior that has forgotten its closed form."""

        def kl(self, q, prior):
            return None

    model.posterior = Plain()
    with pytest.raises(ValueError, match=r"Use ELBO\(kl='auto'\)"):
        ELBO(kl="analytic")(model, params, batch, noise)
    torch.testing.assert_close(ELBO()(model, params, batch, noise), ELBO(kl="monte_carlo")(model, params, batch, noise))


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"kl": "closed"}, {"n_samples": 0}, {"warmup": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter of ELBO"):
        ELBO(**bad).validate()
