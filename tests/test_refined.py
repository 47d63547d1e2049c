"""Importance weighting with draws from a mode, against exact answers where the encoder is wrong."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from test_conditional import CENTRE, COVARIANCE, linear_model, rows
from test_exact import MODELS, quadrature, random_model
from torch.distributions import MultivariateNormal, kl_divergence

from skvae import VAETransformer, posteriors, priors
from skvae._batch import Batch
from skvae._marginal import estimate_rows
from skvae._modes import climb
from skvae._random import generator, normal, paired_normal
from skvae._refined import RefinedImportance, gaps_to_modes, refined_log_weights
from skvae.evaluation import log_likelihood
from skvae.networks import Module
from skvae.objectives import IWAE

F64 = torch.float64
ALWAYS = RefinedImportance(max_gap=0)


def log_density(X):
    """Return the exact log p(x) of rows with holes under the linear model."""
    found = []
    for row in X:
        known = ~np.isnan(row)
        centred, covariance = (row - CENTRE)[known], COVARIANCE[np.ix_(known, known)]
        found.append(-0.5 * (centred @ np.linalg.solve(covariance, centred) + np.linalg.slogdet(2 * np.pi * covariance)[1]))
    return np.array(found)


def misled(shift):
    """Return the linear model with an encoder whose means are `shift` prior standard deviations off."""
    model, params = linear_model()
    params["encoder"]["bias0"][..., :2] += shift
    return model, params


# --- against exact answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("shift", [1.0, 5.0, 100.0])
def test_a_wrong_encoder_does_not_matter_to_a_linear_model(shift, holes):
    model, params = misled(shift)
    X = rows(holes=holes)
    found = estimate_rows(ALWAYS, model, params, Batch(torch.tensor(X)), 0)[:, 0].numpy()
    np.testing.assert_allclose(found, log_density(X), atol=0.1)
    by_encoder = estimate_rows(IWAE(10_000), model, params, Batch(torch.tensor(X)), 0)[:, 0].numpy()
    if shift > 1:
        assert (by_encoder < log_density(X) - 10).mean() > 0.5


@pytest.mark.parametrize("wider", [1.0, 7.5])
@pytest.mark.parametrize("max_gap", [0, 1])
def test_the_estimate_of_the_density_has_no_bias_and_its_logarithm_errs_downwards(max_gap, wider):
    model, params = misled(0.4)
    params["encoder"]["bias0"][..., 2:] += math.log(wider)
    X = rows(200, holes=0.0)
    batch, method = Batch(torch.tensor(X)), RefinedImportance(20, max_gap=max_gap)
    errors = np.array([estimate_rows(method, model, params, batch, seed)[:, 0].numpy() - log_density(X) for seed in range(200)])
    ratios = np.exp(errors).mean(1)  # of a seed, whose rows share their noise
    standard_error = ratios.std() / math.sqrt(len(ratios))
    assert ratios.mean() == pytest.approx(1, abs=3 * standard_error)
    assert errors.mean() < 3 * standard_error


@pytest.mark.parametrize(("likelihood", "d"), MODELS, ids=lambda v: repr(v))
def test_other_models_are_measured_within_their_errors(likelihood, d):
    model, params, batch = random_model(likelihood, d)
    exact = quadrature(model, params, batch)[0]
    method = RefinedImportance(4_000, max_gap=0)
    value, error, size = estimate_rows(method, model, params, batch, 0).unbind(-1)
    assert (error < 0.2).all()
    assert ((value - exact).abs() < 5 * error + 1e-3).all()
    assert (size > 50).all()


def test_draws_are_weighed_by_the_mixture_of_both_densities():
    model, params = misled(0.5)
    batch = Batch(torch.tensor(rows(6, holes=0.0)))
    noise, at_mode = (normal((3, 1, 2), generator(seed), F64) for seed in (1, 2))
    found = refined_log_weights(model, params, batch, noise, at_mode)
    q, mode = model.encode(params, batch), climb(model, params, batch, torch.zeros(1, 6, 2, dtype=F64), 1)
    mean, covariance = mode.z[0], 1.2 * mode.covariance[0] + 1e-9 * torch.eye(2)
    z = torch.cat([model.posterior.sample(q, noise), mean + (torch.linalg.cholesky(covariance) @ at_mode[..., None])[..., 0]])
    log_q = model.posterior.log_prob(q, z).sum(-1)
    log_normal = torch.distributions.MultivariateNormal(mean, covariance).log_prob(z)
    log_joint = model.log_px(params, batch, z) + model.log_pz(params, z)
    torch.testing.assert_close(found, log_joint - torch.logaddexp(log_q, log_normal) + math.log(2), rtol=0, atol=1e-2)


# --- which rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cancer():
    X = load_breast_cancer().data
    vae = VAETransformer(5, hidden_layer_sizes=(32,), max_iter=30, learning_rate="cosine", random_state=0).fit(X[:400])
    return vae, np.vstack([X[400:], X[400:410] * 3])


def test_scores_are_those_of_importance_weighting_where_the_encoder_is_right(cancer):
    vae, X = cancer
    by_encoder, refined = (vae.set_params(score_method=m).score_samples(X) for m in ("iwae", "refined"))
    is_same = abs(by_encoder - refined) < 1e-5
    assert 0.5 < is_same.mean() < 1
    assert (refined[-10:] > by_encoder[-10:]).mean() > 0.7
    assert refined[-10:].mean() > by_encoder[-10:].mean() + 5
    without = vae.set_params(score_method=RefinedImportance(max_gap=math.inf)).score_samples(X)
    np.testing.assert_allclose(without, by_encoder, atol=1e-5)


def test_refined_estimates_tell_how_sure_they_are(cancer):
    vae, X = cancer
    by_encoder, refined = (log_likelihood(vae, X, method) for method in ("iwae", ALWAYS))
    few = by_encoder.effective_sample_size < 5
    assert few.any()
    assert refined.effective_sample_size[few].min() > 1.5 * by_encoder.effective_sample_size[few].min()
    assert np.median(refined.standard_error[few]) < np.median(by_encoder.standard_error[few])


def test_a_narrow_encoder_that_is_wrong_is_found_out_though_its_draws_weigh_the_same():
    model, params = misled(0.7)
    params["encoder"]["bias0"][..., 2:] -= 4.0
    batch = Batch(torch.tensor(rows(holes=0.0)))
    by_encoder, refined = (estimate_rows(method, model, params, batch, 0) for method in (IWAE(100), RefinedImportance()))
    assert (by_encoder[:, 2] > 10).any()
    np.testing.assert_allclose(refined[:, 0], log_density(batch.x.numpy()), atol=0.1)


@pytest.mark.parametrize("wider", [-2.0, 0.0, 1.0])
def test_gaps_are_divergences_from_the_posterior_of_a_linear_model(wider):
    model, params = misled(0.7)
    params["encoder"]["bias0"][..., 2:] += wider
    batch = Batch(torch.tensor(rows(holes=0.0)))
    q = model.encode(params, batch)
    mode = climb(model, params, batch, model.posterior.mean(q)[None], 2)
    gaps = gaps_to_modes(model, params, batch, paired_normal(32, 2, generator(0, "gaps"), F64))
    for gap, row, centre, covariance in zip(gaps, q, mode.z[0], 1.2 * mode.covariance[0], strict=True):
        mean, log_scale = row.chunk(2)
        q_of_row = MultivariateNormal(mean, scale_tril=log_scale.exp().diag())
        assert float(gap) == pytest.approx(float(kl_divergence(MultivariateNormal(centre, covariance), q_of_row)), rel=1e-3)


def test_a_narrow_encoder_is_found_out_and_its_error_told():
    model, params = misled(0.3)
    params["encoder"]["bias0"][..., 2:] -= 2.5
    batch, exact = Batch(torch.tensor(rows(holes=0.0))), log_density(rows(holes=0.0))
    found = torch.stack([estimate_rows(RefinedImportance(), model, params, batch, seed) for seed in range(60)])
    np.testing.assert_allclose(found[..., 0].mean(0).numpy(), exact, atol=0.03)
    spread = found[..., 0].std(0)
    assert ((0.6 * spread < found[..., 1].mean(0)) & (found[..., 1].mean(0) < 1.7 * spread)).all()


class Steep(torch.nn.Module):
    """A decoder whose outputs leave the finite numbers not far from the origin."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = torch.nn.Linear(n_in, n_out)

    def forward(self, z):
        return self.linear((4 * z).exp())


def test_a_finite_score_stays_finite_where_the_way_to_a_mode_is_not():
    X = load_breast_cancer().data[:60, :4]
    vae = VAETransformer(2, decoder=Module(Steep), max_iter=3, learning_rate="cosine", random_state=0).fit(X)
    odd = np.vstack([X[:5] * 1e3, -X[:5] * 1e5])
    by_encoder, refined = (vae.set_params(score_method=m).score_samples(odd) for m in ("iwae", ALWAYS))
    assert np.isfinite(refined[np.isfinite(by_encoder)]).all()
    alone = vae.set_params(score_method=RefinedImportance(max_gap=math.inf)).score_samples(odd)
    np.testing.assert_allclose(alone, by_encoder, rtol=1e-6)


@pytest.mark.parametrize("method", [ALWAYS, RefinedImportance()], ids=repr)
def test_a_refined_row_does_not_look_at_others(cancer, method):
    vae, X = cancer
    vae.set_params(score_method=method)
    whole, order = vae.score_samples(X), np.random.default_rng(0).permutation(len(X))
    np.testing.assert_array_equal(vae.score_samples(X[order]), whole[order])
    np.testing.assert_array_equal(vae.score_samples(X[-3:]), whole[-3:])


def test_annealing_agrees_about_odd_rows(cancer):
    vae, X = cancer
    odd = X[-10:]
    annealed = log_likelihood(vae, odd, "ais").value
    assert (log_likelihood(vae, odd, ALWAYS).value > annealed - 1).all()


@pytest.mark.parametrize(
    "family",
    [(posteriors.Gamma(), priors.Gamma(2.0, 1.5)), (posteriors.Beta(), priors.Uniform())],
    ids=repr,
)
def test_latents_with_limits_come_from_the_encoder_alone(family):
    posterior, prior = family
    X = load_breast_cancer().data[:60, :4]
    vae = VAETransformer(
        2, posterior=posterior, prior=prior, max_iter=3, learning_rate="cosine", random_state=0, score_method=ALWAYS
    ).fit(X)
    refined = vae.score_samples(X)
    np.testing.assert_allclose(refined, vae.set_params(score_method="iwae").score_samples(X), rtol=1e-6)


@pytest.mark.parametrize("posterior", ["laplace", "student_t", "full_normal"])
def test_other_families_without_limits_are_helped_as_well(posterior):
    X = load_breast_cancer().data
    vae = VAETransformer(3, posterior=posterior, max_iter=20, learning_rate="cosine", random_state=0).fit(X[:400])
    odd = X[400:420] * 3
    by_encoder, refined = (vae.set_params(score_method=m).score_samples(odd) for m in ("iwae", ALWAYS))
    assert refined.mean() > by_encoder.mean()
    assert (refined > by_encoder - math.log(2) - 0.5).all()
