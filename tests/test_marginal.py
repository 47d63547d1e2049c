"""Estimators of log p(x) against exact answers: the linear model, quadrature, and densities of scipy."""

import math

import numpy as np
import pytest
import torch
from conftest import SCORE_METHODS
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.model_selection import GridSearchCV
from test_exact import MODELS, linear_model_at_optimum, quadrature, random_model

from skvae import VAETransformer
from skvae._batch import Batch
from skvae._joint import joint_density
from skvae._marginal import (
    AnnealedImportance,
    Path,
    PosteriorDensity,
    estimate_rows,
    gaussian_density,
    kernel_density,
    log_mean,
)
from skvae._random import RowStreams, generator, normal
from skvae._refined import RefinedImportance
from skvae._settings import REGISTRY
from skvae.objectives import ELBO, IWAE

F64 = torch.float64


def linear_model(q, n_rows=24):
    """Return the optimal linear model of wine, rows drawn from it with their latents, and their exact log p(x)."""
    model, params, _ = linear_model_at_optimum(q)
    stream = generator(q, "rows")
    z = model.prior.sample(params["prior"], (n_rows, q), stream, F64)
    batch = Batch(model.likelihood.sample(params["likelihood"], model.decode(params, z), stream))
    return model, params, batch, z, log_evidence(model, params, batch)


def log_evidence(model, params, batch):
    """Return log p(x) at the exact posterior: log p(x, z) - log q(z|x), whatever z."""
    q = model.encode(params, batch)
    z = model.posterior.mean(q)
    return joint_density(model, params, batch)(z) - model.posterior.log_prob(q, z).sum(-1)


def misled(params, q):
    """Return the parameters with an encoder whose means are off and whose scales are too wide and too narrow in turn."""
    bias = params["encoder"]["bias0"].clone()
    bias[:, :q] += 0.3
    bias[:, q:] += 0.7 * (-1.0) ** torch.arange(q)
    return {**params, "encoder": {**params["encoder"], "bias0": bias}}


# --- the mean of weights ---------------------------------------------------------------------------------------------


def test_equal_weights_leave_no_doubt():
    found = log_mean(torch.full((7, 3), -1000.0))
    torch.testing.assert_close(found, torch.tensor([[-1000.0, 0.0, 7.0]] * 3, dtype=F64))


def test_one_weight_that_outweighs_all_is_one_draw():
    log_w = torch.zeros(50, 1, dtype=F64)
    log_w[3] = 100.0
    value, error, size = log_mean(log_w)[0]
    assert float(size) == pytest.approx(1)
    assert float(value) == pytest.approx(100 - math.log(50))
    assert float(error) == pytest.approx(1)


def test_of_a_single_weight_no_error_is_told():
    assert log_mean(torch.zeros(1, 2))[:, 1].isnan().all()


def test_standard_error_is_that_of_repetition():
    log_w = 0.5 * normal((400, 4000), generator(0), F64)
    value, error, size = log_mean(log_w).unbind(-1)
    assert float(error.mean()) == pytest.approx(float(value.std()), rel=0.05)
    assert float(size.mean()) == pytest.approx(400 / math.exp(0.25), rel=0.02)


# --- importance weighting ------------------------------------------------------------------------------------------------


def test_exact_posterior_counts_every_draw():
    model, params, batch, _, exact = linear_model(5)
    found = estimate_rows(IWAE(50), model, params, batch, 0)
    torch.testing.assert_close(found[:, 0], exact, rtol=0, atol=1e-10)
    assert float(found[:, 1].max()) < 1e-10
    torch.testing.assert_close(found[:, 2], torch.full_like(exact, 50.0))


@pytest.mark.parametrize(("likelihood", "d"), MODELS, ids=lambda v: repr(v))
def test_importance_weighting_finds_quadrature_within_its_error(likelihood, d):
    model, params, batch = random_model(likelihood, d)
    exact = quadrature(model, params, batch)[0]
    params["encoder"] = {name: torch.zeros_like(v) for name, v in params["encoder"].items()}  # q(z|x) = p(z) has no thin tails
    value, error, size = estimate_rows(IWAE(20_000), model, params, batch, 0).unbind(-1)
    assert (error < 0.2).all()
    assert ((value - exact).abs() < 5 * error).all()
    assert (size < 20_000).all()


# --- appendix D --------------------------------------------------------------------------------------------------------


def test_gaussian_density_is_that_of_scipy():
    draws, z = normal((20, 3, 2), generator(0), F64), normal((5, 3, 2), generator(1), F64)
    found = gaussian_density(draws)(z)
    for i in range(3):
        oracle = multivariate_normal(draws[:, i].mean(0).numpy(), np.cov(draws[:, i].numpy().T))
        np.testing.assert_allclose(found[:, i].numpy(), oracle.logpdf(z[:, i].numpy()))


def test_kernel_density_is_that_of_scipy_with_the_bandwidth_that_draws_held_out_prefer():
    draws, z = normal((20, 3, 2), generator(0), F64), normal((5, 3, 2), generator(1), F64)
    found = kernel_density(draws)(z)
    for i in range(3):
        x = draws[:, i].numpy().T
        factors = 20 ** (-1 / 6) * np.exp((np.arange(10) - 5) / 2)
        best = max(factors, key=lambda factor: gaussian_kde(x[:, 10:], factor).logpdf(x[:, :10]).sum())
        np.testing.assert_allclose(found[:, i].numpy(), gaussian_kde(x, best).logpdf(z[:, i].numpy().T))


# Bias per row and its standard deviation with 50 exact draws, half of which fit a normal density: linear model of wine.
BIAS_OF_GAUSSIAN = {1: (-0.004, 0.05), 2: (-0.008, 0.09), 3: (0.014, 0.15), 5: (-0.006, 0.25), 8: (0.11, 0.34)}
# The same for kernels; with more components the bias is no longer small.
BIAS_OF_KERNELS = {1: (0.010, 0.13), 2: (-0.008, 0.26), 3: (0.108, 0.31), 5: (0.165, 0.77), 8: (1.43, 1.29)}


def errors_with_exact_draws(q, method, n_repeats=4):
    model, params, batch = linear_model_at_optimum(q)
    exact, encoded = log_evidence(model, params, batch), model.encode(params, batch)
    errors = []
    for repeat in range(n_repeats):
        noise = normal((method.n_samples, len(batch), q), generator(repeat, "draws"), F64)
        z = model.posterior.sample(encoded, noise)
        errors.append(method.estimate_from_draws(joint_density(model, params, batch), z)[:, 0] - exact)
    return torch.cat(errors)


@pytest.mark.parametrize("q", BIAS_OF_GAUSSIAN)
def test_bias_of_a_gaussian_fit_is_small(q):
    bias, spread = BIAS_OF_GAUSSIAN[q]
    errors = errors_with_exact_draws(q, PosteriorDensity(50))
    assert float(errors.std()) == pytest.approx(spread, rel=0.35)
    # Both figures are means over a few hundred rows, and the published one of one draw each.
    assert float(errors.mean()) == pytest.approx(bias, abs=4 * spread / math.sqrt(178))


@pytest.mark.parametrize("q", BIAS_OF_KERNELS)
def test_bias_of_kernels_grows_with_the_components(q):
    bias, spread = BIAS_OF_KERNELS[q]
    errors = errors_with_exact_draws(q, PosteriorDensity(50, density="kde"))
    assert float(errors.std()) == pytest.approx(spread, rel=0.35)
    assert float(errors.mean()) == pytest.approx(bias, abs=4 * spread / math.sqrt(178))


@pytest.mark.parametrize(("n_samples", "density", "bias"), [(200, "kde", 0.21), (400, "kde", 0.1), (1000, "gaussian", 0.001)])
def test_bias_in_eight_dimensions_falls_with_the_draws(n_samples, density, bias):
    errors = errors_with_exact_draws(8, PosteriorDensity(n_samples, density=density), 1)
    assert -0.02 < float(errors.mean()) < bias + 0.02


@pytest.mark.parametrize("q", [2, 5])
def test_draws_by_hamiltonian_monte_carlo_are_as_good_as_exact_ones(q):
    model, params, batch, _, exact = linear_model(q, n_rows=64)
    value, error, _ = PosteriorDensity(50).estimate(model, misled(params, q), batch, 0).unbind(-1)
    spread = BIAS_OF_GAUSSIAN[q][1]
    assert float((value - exact).std()) == pytest.approx(spread, rel=0.5)
    assert float((value - exact).mean()) == pytest.approx(0, abs=4 * spread / 8 + 0.01)
    assert 0.5 < float(error.mean()) / spread < 1.5


def test_chains_reach_the_posterior_from_a_misled_encoder():
    model, params, batch, _, _ = linear_model(3)
    method = PosteriorDensity(2000, n_moves=40)
    path = Path("posterior", model, misled(params, 3), batch)
    z = method._posterior_draws(path, RowStreams(batch.x, 0, "density"))
    q = model.encode(params, batch)
    centred = (z - model.posterior.mean(q)) / model.posterior.scale(q)
    torch.testing.assert_close(centred.mean(0), torch.zeros(24, 3, dtype=F64), rtol=0, atol=0.12)
    torch.testing.assert_close(centred.var(0), torch.ones(24, 3, dtype=F64), rtol=0, atol=0.18)


@pytest.mark.parametrize(("likelihood", "d"), MODELS[::2], ids=lambda v: repr(v))
@pytest.mark.parametrize(("density", "largest_error"), [("gaussian", 0.15), ("kde", 0.2)])
def test_appendix_d_matches_quadrature(likelihood, d, density, largest_error):
    """But in rows that say by their effective sample size that chains have not arrived, one in twenty at some seeds."""
    model, params, batch = random_model(likelihood, d)
    exact = quadrature(model, params, batch)[0]
    value, error, size = PosteriorDensity(400, density=density).estimate(model, params, batch, 0).unbind(-1)
    arrived = size >= 10
    assert arrived.double().mean() >= 0.9
    value, error, exact = value[arrived], error[arrived], exact[arrived]
    assert (error < largest_error).all()
    assert ((value - exact).abs() < 5 * error).all()
    assert float((value - exact).mean()) == pytest.approx(0, abs=0.03)


def test_chains_that_have_not_arrived_show_as_a_small_effective_sample_size():
    """Noise that the decoder sets at random makes posteriors of narrow, separate modes, which an untrained encoder misses."""
    model, params, batch = random_model(*MODELS[1])
    exact = quadrature(model, params, batch)[0]
    value, _, size = PosteriorDensity(200).estimate(model, params, batch, 0).unbind(-1)
    wrong = (value - exact).abs() > 5
    assert wrong.any()
    assert (size[wrong] < 10).all()


def test_too_few_draws_for_the_components_are_told():
    model, params, batch, _, _ = linear_model(8)
    with pytest.raises(ValueError, match="Half of n_samples=16.*in 8 dimensions.*18 or more; 80 are"):
        PosteriorDensity(16).estimate(model, params, batch, 0)


# --- annealed importance sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [2, 10])
def test_annealing_from_the_exact_posterior_has_no_variance_either_way(q):
    model, params, batch, z, exact = linear_model(q)
    method = AnnealedImportance(10)
    for found in (method.estimate(model, params, batch, 0), method.upper_estimate(model, params, batch, z, 0)):
        torch.testing.assert_close(found[:, 0], exact, rtol=0, atol=1e-9)
        assert float(found[:, 1].max()) < 1e-9
        torch.testing.assert_close(found[:, 2], torch.full_like(exact, 16.0))


@pytest.mark.parametrize(("q", "start", "n_levels"), [(2, "posterior", 100), (5, "prior", 250), (10, "posterior", 500)])
def test_annealing_brackets_the_exact_log_likelihood_within_a_twentieth_nat(q, start, n_levels):
    model, params, batch, z, exact = linear_model(q)
    method, params = AnnealedImportance(n_levels, start=start), misled(params, q)
    lower = method.estimate(model, params, batch, 0)[:, 0] - exact
    upper = method.upper_estimate(model, params, batch, z, 0)[:, 0] - exact
    assert float(lower.mean()) == pytest.approx(0, abs=0.05)
    assert float(upper.mean()) == pytest.approx(0, abs=0.05)


def test_fewer_levels_widen_the_bracket_on_both_sides():
    model, params, batch, z, exact = linear_model(10)
    method = AnnealedImportance(10, start="prior", n_chains=4)
    assert float((method.estimate(model, params, batch, 0)[:, 0] - exact).mean()) < -1
    assert float((method.upper_estimate(model, params, batch, z, 0)[:, 0] - exact).mean()) > 1


def test_mean_weight_of_annealing_is_unbiased_and_its_error_that_of_repetition():
    model, params, _, _, _ = linear_model(2)
    batch = Batch(torch.ones(1, 13, dtype=F64))
    exact = log_evidence(model, params, batch)
    method = AnnealedImportance(20, start="prior", n_chains=32, n_leapfrog=3)
    found = torch.stack([method.estimate(model, params, batch, seed)[0] for seed in range(30)])
    ratio = (found[:, 0] - exact).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / math.sqrt(30))
    assert float(found[:, 1].mean()) == pytest.approx(float(found[:, 0].std()), rel=0.35)


@pytest.mark.parametrize(("likelihood", "d"), MODELS, ids=lambda v: repr(v))
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_annealing_matches_quadrature(likelihood, d, start):
    model, params, batch = random_model(likelihood, d)
    exact = quadrature(model, params, batch)[0]
    value, error, _ = AnnealedImportance(400, start=start, n_chains=32).estimate(model, params, batch, 0).unbind(-1)
    assert (error < 0.35).all()
    assert ((value - exact).abs() < 5 * error).all()
    assert float((value - exact).mean()) == pytest.approx(0, abs=4 * float(error.square().sum().sqrt()) / len(error))


# --- promises --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in SCORE_METHODS if not isinstance(m, RefinedImportance)], ids=repr)
def test_rows_do_not_look_at_each_other_and_have_numbers_of_their_own(method):
    model, params, batch, _, _ = linear_model(2, n_rows=70)
    params = misled(params, 2)
    whole = estimate_rows(method, model, params, batch, 0)
    order = torch.randperm(70, generator=generator(1))
    torch.testing.assert_close(estimate_rows(method, model, params, batch.take(order), 0), whole[order], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate_rows(method, model, params, batch.slice(41, 42), 0), whole[41:42], rtol=1e-9, atol=1e-9)
    assert not torch.equal(estimate_rows(method, model, params, batch, 1)[:, 0], whole[:, 0])
    errors = estimate_rows(method, model, params, Batch(batch.x[:2] + 1e-9), 0)[:, 0] - whole[:2, 0]
    assert (errors.abs() > 1e-6).all()


def test_single_precision_and_inference_mode_make_no_difference():
    model, params, batch, _, exact = linear_model(2)
    single = {piece: {name: value.float() for name, value in named.items()} for piece, named in params.items()}
    with torch.inference_mode():
        found = estimate_rows(AnnealedImportance(5), model, single, batch.to(batch.device, torch.float32), 0)
    assert found.dtype == F64
    torch.testing.assert_close(found[:, 0], exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [
    PosteriorDensity(2), PosteriorDensity(density="box"), PosteriorDensity(n_leapfrog=0), PosteriorDensity(n_moves=1),
    AnnealedImportance(1), AnnealedImportance(start="here"), AnnealedImportance(n_chains=0), AnnealedImportance(n_leapfrog=0),
    RefinedImportance(0), RefinedImportance(max_gap=-1),
], ids=repr)  # fmt: skip
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"parameter of {type(bad).__name__}"):
        bad.validate()


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changed, found",
    [
        ("iwae", {"n_samples": 10}, IWAE(n_samples=10)),
        ("refined", {"max_gap": 0}, RefinedImportance(max_gap=0)),
        ("elbo", {"kl": "sampled"}, ELBO(n_samples=32, kl="sampled")),
        ("hmc", {"density": "kde"}, PosteriorDensity(density="kde")),
        ("ais", {"start": "prior", "n_temperatures": 5}, AnnealedImportance(5, start="prior")),
    ],
)
def test_nested_names_change_the_method_that_a_name_stands_for(name, changed, found):
    before = repr(REGISTRY["score_method"])
    vae = VAETransformer(score_method=name).set_params(**{f"score_method__{key}": value for key, value in changed.items()})
    assert vae.score_method == found
    assert repr(REGISTRY["score_method"]) == before


def test_number_of_draws_of_scores_can_be_searched():
    X = np.random.default_rng(0).normal(size=(60, 3))
    vae = VAETransformer(1, max_iter=2, learning_rate="cosine", random_state=0)
    search = GridSearchCV(vae, {"score_method__n_samples": [1, 10]}, cv=2).fit(X)
    assert search.best_params_ == {"score_method__n_samples": search.best_estimator_.score_method.n_samples}


@pytest.mark.parametrize(
    "given, match",
    [
        ({"encoder__x": 1}, r"'encoder__x' for estimator VAETransformer\(\): encoder=None .*encoder=MLP"),
        ({"objective": "nope", "objective__beta": 1}, r"objective='nope' has no parameters. .*'elbo', "),
        ({"score_method": "nope", "score_method__k": 1}, r"score_method='nope' .*\['ais', 'elbo', 'hmc', 'iwae', 'refined'\]"),
        ({"n_components__x": 1}, r"n_components=None has no parameters. Set n_components itself"),
        ({"nope__x": 1}, r"Invalid parameter 'nope' for estimator"),
    ],
)
def test_nested_names_that_reach_nothing_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        VAETransformer().set_params(**given)
