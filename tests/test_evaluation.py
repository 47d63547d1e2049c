"""Evaluation of fitted estimators, in data units: against exact answers, and as scikit-learn uses it."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import table_for
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_exact import gaussian_log_likelihood, linear_vae, model_covariance, quadrature, standardized

from skvae import VAETransformer
from skvae.evaluation import (
    AnnealedImportance,
    PosteriorDensity,
    RefinedImportance,
    active_units,
    bracket,
    kl_per_component,
    log_likelihood,
    mutual_information,
)
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.objectives import ELBO, IWAE
from skvae.priors import MixtureOfNormals

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS = [IWAE(1000), PosteriorDensity(100), AnnealedImportance(30, n_leapfrog=4)]


@pytest.fixture(scope="module")
def wine():
    """The linear model of wine in its own units, which are far from those of the model."""
    X = load_wine().data
    return linear_vae(2, dtype="float64").fit(X), X


@pytest.fixture(scope="module")
def iris():
    """A model of iris with a hidden layer, and two components for quadrature."""
    X = load_iris().data
    return VAETransformer(2, hidden_layer_sizes=(16,), max_iter=100, random_state=0).fit(X), X


def exact_log_likelihood(vae, X):
    """Return log p(x) of every row by quadrature, in the units of the data."""
    fitted = vae._fitted
    params = fitted.model.unpack(torch.tensor(fitted.params).double())
    batch = fitted.codec.encode(X, dtype=torch.float64)
    return quadrature(fitted.model, params, batch)[0].numpy() + fitted.codec.log_jacobian


# --- log p(x) ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_finds_the_exact_log_likelihood_in_data_units(method, wine):
    vae, X = wine
    exact = gaussian_log_likelihood(X[:40], X.mean(0), model_covariance(vae))
    found = log_likelihood(vae, X[:40], method)
    assert found.value.shape == found.standard_error.shape == found.effective_sample_size.shape == (40,)
    assert (np.abs(found.value - exact) < 5 * found.standard_error + 1e-3).all()
    assert found.value.mean() == pytest.approx(exact.mean(), abs=0.02)


@pytest.mark.parametrize("method", ["iwae", "refined"])
def test_holes_that_training_has_not_seen_change_nothing_in_other_rows(method, wine):
    vae, X = wine
    X = X[:40].copy()
    X[::3, [0, 12]] = np.nan
    has_hole = np.isnan(X[:, 0])
    found = log_likelihood(vae, X, method)
    for rows in (has_hole, ~has_hole):
        for value, alone in zip(found, log_likelihood(vae, X[rows], method), strict=True):
            np.testing.assert_array_equal(value[rows], alone)
    seen = np.arange(1, 12)  # of the rows with holes, exactly
    mean, covariance = load_wine().data.mean(0)[seen], model_covariance(vae)[np.ix_(seen, seen)]
    exact = gaussian_log_likelihood(X[np.ix_(has_hole, seen)], mean, covariance)
    found = log_likelihood(vae, X, RefinedImportance(1000, max_gap=0)).value[has_hole]
    np.testing.assert_allclose(found, exact, atol=0.05)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_matches_quadrature_on_a_fitted_network(method, iris):
    vae, X = iris
    exact = exact_log_likelihood(vae, X[::5])
    found = log_likelihood(vae, X[::5], method)
    assert (np.abs(found.value - exact) < 5 * found.standard_error + 0.05).mean() > 0.95
    assert found.value.mean() == pytest.approx(exact.mean(), abs=0.06)


@pytest.mark.parametrize("likelihood", [Gaussian("network"), Bernoulli(limits="observed")], ids=repr)
def test_annealing_matches_quadrature_for_other_likelihoods(likelihood, iris):
    X = iris[1][::3]
    vae = VAETransformer(2, likelihood=likelihood, hidden_layer_sizes=(8,), max_iter=60, random_state=0).fit(X)
    found = log_likelihood(vae, X, "ais")
    assert found.value.mean() == pytest.approx(exact_log_likelihood(vae, X).mean(), abs=0.05)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_standard_errors_are_those_of_repetition(method, iris):
    vae, X = iris
    repeats = [log_likelihood(vae, X[::15], method, random_state=seed) for seed in range(12)]
    spread = np.std([r.value for r in repeats], axis=0, ddof=1)
    told = np.mean([r.standard_error for r in repeats], axis=0)
    assert np.median(told / spread) == pytest.approx(1, abs=0.5)


def test_draws_are_those_of_the_seed(iris):
    vae, X = iris
    for method in ("iwae", "hmc", AnnealedImportance(3)):
        first, again, other = (log_likelihood(vae, X[:5], method, random_state=s).value for s in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).all()
        np.testing.assert_array_equal(log_likelihood(vae, X[:5], method).value, log_likelihood(vae, X[:5], method).value)


def test_global_random_states_stay_as_they_are(iris):
    vae, X = iris
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    bracket(vae, 3, AnnealedImportance(2, n_chains=2))
    log_likelihood(vae, X[:3], "hmc")
    mutual_information(vae, X[:10])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


# --- the bracket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [2, 10])
def test_bracket_is_narrow_and_has_the_mean_log_likelihood_of_the_model_in_it(q):
    X = load_wine().data
    vae = linear_vae(q, dtype="float64").fit(X)
    found = bracket(vae, 200, AnnealedImportance(10))
    covariance = model_covariance(vae)
    entropy = 0.5 * np.linalg.slogdet(covariance)[1] + 6.5 * math.log(2 * math.pi * math.e)
    assert abs(found.gap.value) < 0.05
    # log p(x) of rows from a normal distribution has mean minus its entropy and variance d / 2.
    assert found.lower.value.mean() == pytest.approx(-entropy, abs=4 * math.sqrt(6.5 / 200))


def test_bracket_of_a_network_closes_with_more_levels(iris):
    vae, _ = iris
    few = bracket(vae, 240, AnnealedImportance(5, start="prior", n_chains=4)).gap
    many = bracket(vae, 30, AnnealedImportance(100)).gap
    assert few.value > 4 * few.standard_error
    assert abs(many.value) < 0.05 + 2 * many.standard_error
    assert many.value < few.value


# --- what latents carry ------------------------------------------------------------------------------------------------


def test_kl_and_active_units_are_those_of_the_fit():
    X = standardized("wine")
    vae = linear_vae(6, likelihood=Gaussian(noise=1.0), dtype="float64").fit(X)
    np.testing.assert_allclose(kl_per_component(vae, X), vae.kl_per_component_, atol=1e-12)
    active = active_units(vae, X)
    assert active.dtype == bool
    assert active.shape == (6,)
    assert active.sum() == vae.active_units_ < 6
    assert kl_per_component(vae, X)[~active].max() < 0.01 < kl_per_component(vae, X)[active].min()
    assert active_units(vae, X, threshold=10.0).sum() == 0


def test_a_fit_tells_the_kl_of_components_without_a_closed_form_from_few_draws():
    X = table_for(Gaussian(), n_rows=200, n_columns=6)
    vae = VAETransformer(3, prior=MixtureOfNormals(4), max_iter=60, learning_rate="cosine", random_state=0).fit(X)
    np.testing.assert_allclose(vae.kl_per_component_, kl_per_component(vae, X), atol=0.05)


def test_information_of_the_linear_model_is_that_of_normal_distributions():
    """At the optimum latents are N(0, I) together, so that what the KL is worth is all information."""
    X = np.random.default_rng(0).normal(size=(1500, 3)) * [2.0, 1.0, 0.5]
    vae = linear_vae(2, dtype="float64").fit(X)
    split = mutual_information(vae, X, n_samples=4)
    params = vae._fitted.model.unpack(torch.tensor(vae._fitted.params))["encoder"]
    posterior_variance = np.exp(2 * params["bias0"][0, 2:].numpy())
    assert split.information.value == pytest.approx(-0.5 * np.log(posterior_variance).sum(), abs=0.03)
    assert split.marginal_kl.value == pytest.approx(0, abs=0.03)


def test_information_of_few_rows_matches_quadrature():
    X = standardized("wine")[:12]
    vae = linear_vae(1, dtype="float64").fit(X)
    mean, std = (part[:, 0] for part in vae.posterior_moments(X))
    z = np.linspace(-10, 10, 20_001)
    density = norm.pdf(z[:, None], mean, std)
    aggregated = density.mean(1)
    information = np.trapezoid(-aggregated * np.log(aggregated + 1e-300), z) - norm.entropy(scale=std).mean()
    marginal_kl = np.trapezoid(aggregated * (np.log(aggregated + 1e-300) - norm.logpdf(z)), z)
    split = mutual_information(vae, X, n_samples=4000)
    assert split.information.value == pytest.approx(information, abs=4 * split.information.standard_error)
    assert split.marginal_kl.value == pytest.approx(marginal_kl, abs=4 * split.marginal_kl.standard_error)
    assert 0 < split.information.standard_error < 0.01


def test_both_parts_add_up_to_the_kl_of_the_bound(iris):
    vae, X = iris
    split = mutual_information(vae, X, n_samples=200)
    total = split.information.value + split.marginal_kl.value
    assert total == pytest.approx(kl_per_component(vae, X).sum(), abs=0.02)
    assert split.information.value < math.log(len(X))


def test_rows_that_cannot_be_confused_carry_the_logarithm_of_their_number():
    X = np.random.default_rng(0).normal(size=(8, 1)) * np.ones((1, 20)) + 1e-3 * np.random.default_rng(1).normal(size=(8, 20))
    vae = linear_vae(1, likelihood=Gaussian(noise=0.01), dtype="float64").fit(X)
    assert mutual_information(vae, X).information.value == pytest.approx(math.log(8), abs=1e-6)
    assert mutual_information(vae, np.repeat(X[:1], 5, 0)).information.value == pytest.approx(0, abs=1e-12)


def test_errors_of_the_information_are_those_of_repetition(iris):
    vae, X = iris
    splits = [mutual_information(vae, X[:50], 4, random_state=seed) for seed in range(40)]
    for part in ("information", "marginal_kl"):
        values, told = np.array([getattr(split, part) for split in splits]).T
        assert told.mean() == pytest.approx(values.std(), rel=0.5)


def test_information_of_dependent_components_is_told_in_bounded_memory(monkeypatch):
    solve, cells = torch.linalg.solve_triangular, []

    def watched(factor, columns, **options):
        batch = torch.broadcast_shapes(factor.shape[:-2], columns.shape[:-2])
        cells.append(math.prod(batch) * max(math.prod(factor.shape[-2:]), math.prod(columns.shape[-2:])))
        return solve(factor, columns, **options)

    X = np.random.default_rng(0).normal(size=(600, 8))
    vae = VAETransformer(8, posterior="full_normal", max_iter=2, random_state=0).fit(X)
    monkeypatch.setattr(torch.linalg, "solve_triangular", watched)
    mutual_information(vae, X, n_samples=2)
    assert max(cells) <= 4_000_000


# --- as scikit-learn uses it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PosteriorDensity(20), AnnealedImportance(4, n_chains=4)], ids=repr)
def test_scores_are_the_values_of_the_method(method, iris):
    vae, X = iris
    vae = copy.copy(vae).set_params(score_method=method)
    np.testing.assert_array_equal(vae.score_samples(X[:9]), log_likelihood(vae, X[:9], method).value)
    assert vae.score(X[:9]) == pytest.approx(vae.score_samples(X[:9]).mean())


def test_methods_stand_in_grids_and_have_names():
    X = standardized("iris")
    vae = linear_vae(1, score_method=AnnealedImportance(3, n_chains=2, n_leapfrog=2))
    assert clone(vae).score_method == vae.score_method
    search = GridSearchCV(vae, {"n_components": [1, 2], "score_method__n_temperatures": [2, 3]}, cv=2).fit(X)
    assert search.best_params_["n_components"] == 2
    named = linear_vae(1, score_method="ais").set_params(score_method__n_chains=2)
    assert named.score_method == AnnealedImportance(n_chains=2)
    assert np.isfinite(linear_vae(1, score_method="hmc").fit(X).score(X[:5]))


def test_what_cannot_be_measured_is_told_with_the_remedy(iris):
    vae, X = iris
    with pytest.raises(NotFittedError):
        log_likelihood(VAETransformer(), X)
    with pytest.raises(NotFittedError):
        bracket(VAETransformer())
    pipe = make_pipeline(StandardScaler(), vae)
    for function in (log_likelihood, kl_per_component, active_units, mutual_information):
        with pytest.raises(TypeError, match=r"got Pipeline.*pipe\[-1\], pipe\[:-1\].transform\(X\)"):
            function(pipe, X)
    with pytest.raises(TypeError, match="is a bound, not an estimate"):
        log_likelihood(vae, X, ELBO())
    with pytest.raises(
        ValueError, match=r"'gibbs' is no way to measure log p\(x\). Use one of \['ais', 'elbo', 'hmc', 'iwae', 'refined'\]"
    ):
        log_likelihood(vae, X, "gibbs")
    with pytest.raises(ValueError, match="The 'n_chains' parameter of AnnealedImportance"):
        log_likelihood(vae, X, AnnealedImportance(n_chains=0))
    with pytest.raises(TypeError, match="annealing both ways, not by IWAE"):
        bracket(vae, method="iwae")
    with pytest.raises(ValueError, match="n_rows must be a whole number of at least 2, got 1"):
        bracket(vae, n_rows=1)
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 2.*got 1"):
        mutual_information(vae, X, n_samples=1)
    with pytest.raises(ValueError, match="4 features"):
        log_likelihood(vae, X[:, :3])


@pytest.mark.parametrize("posterior", ["uniform", "triangular", "beta", "gamma"])
def test_a_bracket_from_a_posterior_that_misses_latents_is_refused_with_the_way_that_works(posterior):
    vae = VAETransformer(2, posterior=posterior, prior="normal", max_iter=20, random_state=0).fit(load_iris().data)
    with pytest.raises(ValueError, match=r"cannot reach all latents.*AnnealedImportance\(start='prior'\)"):
        bracket(vae, n_rows=10)
    with pytest.raises(ValueError, match="cannot reach all latents"):
        log_likelihood(vae, load_iris().data, "ais")
    with pytest.raises(ValueError, match="cannot reach all latents"):
        clone(vae).set_params(score_method="ais").fit(load_iris().data)
    assert abs(bracket(vae, n_rows=10, method=AnnealedImportance(200, start="prior")).gap.value) < 0.2
