"""Wake-sleep and Monte Carlo EM in the hands of a user: everything around a fit works as it does with AEVB."""

import pickle

import numpy as np
import pytest
import torch
from conftest import LIKELIHOODS, NETWORKS, assert_same_training, table_for
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from test_exact import gaussian_log_likelihood, linear_vae, model_covariance, standardized
from test_faults import Interrupter, needs_callbacks

import skvae
from skvae import VAETransformer
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import Adagrad
from skvae.solvers import AEVB, MonteCarloEM, WakeSleep

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

COMPETITORS = [WakeSleep(), WakeSleep(3, encoder_phase="both", averaging=0.9), MonteCarloEM(), MonteCarloEM(averaging=0.9)]
X = table_for(Gaussian(), n_rows=60)
competitors = pytest.mark.parametrize("solver", COMPETITORS, ids=repr)


def vae(solver, **params):
    return VAETransformer(
        **{"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 40, "batch_size": 16, "random_state": 0, **params},
        solver=solver,
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("solver", ["wake-sleep", WakeSleep(4), "mcem"], ids=repr)
@pytest.mark.filterwarnings("ignore:The bound was still rising")
def test_any_likelihood_trains(solver, likelihood):
    rows = table_for(likelihood, n_rows=60)
    params = {"likelihood": likelihood, "init": "random", "early_stopping": False}
    model = vae(solver, max_iter=120, **params).fit(rows)
    assert model.transform(rows).shape == (60, 2)
    assert model.score(rows) > vae(solver, max_iter=1, **params).fit(rows).score(rows)
    assert np.isfinite(model.score_samples(rows)).all()


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
@competitors
def test_any_network_trains(solver, network):
    model = vae(solver, encoder=network, decoder=network, max_iter=10).fit(X)
    assert np.isfinite(model.score(X))


@pytest.mark.parametrize(
    "solver", [WakeSleep(averaging=0.95), WakeSleep(5, averaging=0.95), MonteCarloEM(averaging=0.95)], ids=repr
)
def test_a_nonlinear_model_learns_from_random_weights_what_aevb_learns(solver):
    params = {"init": "random", "learning_rate": "cosine", "max_iter": 200, "early_stopping": False, "learning_rate_init": 0.01}
    ours = vae(solver, **params).fit(X).score(X)
    aevb, start = vae(AEVB(), **params).fit(X).score(X), vae(AEVB(), **{**params, "max_iter": 1}).fit(X).score(X)
    assert aevb - start > 1.0
    assert ours > aevb - 0.3


@competitors
def test_names_and_nested_parameters(solver):
    model = vae("mcem" if isinstance(solver, MonteCarloEM) else "wake-sleep").fit(X)
    np.testing.assert_array_equal(vae(type(solver)()).fit(X).transform(X), model.transform(X))
    assert vae(clone(solver)).set_params(solver__averaging=0.5).solver.averaging == 0.5


def test_names_with_a_dash_are_listed_where_another_is_refused():
    with pytest.raises(ValueError, match="The 'solver' parameter of VAETransformer must be .*'wake-sleep'"):
        vae("wake_sleep").fit(X)


@pytest.mark.parametrize(
    "objective",
    ["iwae", ELBO(beta=2), ELBO(warmup=3), ELBO(n_samples=5), ELBO(kl="analytic"), ELBO(kl="monte_carlo"), IWAE(3)],
    ids=repr,
)
@competitors
def test_an_objective_that_would_be_ignored_is_refused(solver, objective):
    with pytest.raises(ValueError, match="needs objective='elbo'.*Use solver='aevb' to raise another objective"):
        vae(solver, objective=objective).fit(X)


@pytest.mark.parametrize(
    "posterior, prior",
    [("uniform", "normal"), ("triangular", "laplace"), ("gamma", "normal"), ("beta", "normal"), ("pareto", "gamma")],
)
@pytest.mark.parametrize("solver", [WakeSleep(), WakeSleep(3, encoder_phase="both"), MonteCarloEM()], ids=repr)
def test_an_encoder_that_cannot_reach_the_latents_of_the_prior_is_refused(solver, posterior, prior):
    with pytest.raises(ValueError, match="cannot reach all of those that the prior"):
        vae(solver, posterior=posterior, prior=prior).fit(X)


@competitors
def test_a_prior_that_is_made_of_the_encoder_is_refused(solver):
    with pytest.raises(ValueError, match=r"VampPrior\(\) is made of its posteriors.*prior='mixture'"):
        vae(solver, prior="vamp").fit(X)


def test_an_encoder_that_learns_from_its_own_draws_need_not_reach_all_latents():
    solver = WakeSleep(8, encoder_phase="wake")
    settings = {"learning_rate": "cosine", "learning_rate_init": 0.01, "posterior": "gamma", "init": "random"}
    begun, ended = (vae(solver, max_iter=n, **settings, score_method="iwae").fit(X).score(X) for n in (1, 150))
    assert ended > begun + 0.2
    with pytest.raises(ValueError, match="as the interval closes"):
        vae(solver, posterior="uniform").fit(X)


@pytest.mark.parametrize("early_stopping", [True, False])
@competitors
def test_weights_count_repetitions(solver, early_stopping):
    times = np.random.default_rng(0).integers(0, 4, size=len(X))
    params = {"early_stopping": early_stopping, "alpha": 1.0}
    weighted = vae(solver, **params).fit(X, sample_weight=times)
    repeated = vae(solver, **params).fit(np.repeat(X, times, axis=0)[::-1])
    np.testing.assert_array_equal(weighted.transform(X), repeated.transform(X))
    plain = vae(solver, **params).fit(X[times > 0])
    assert not np.array_equal(weighted._fitted.params, plain._fitted.params)


@pytest.mark.parametrize("solver", [WakeSleep(averaging=0.99), MonteCarloEM(n_updates=2, averaging=0.99)], ids=repr)
def test_weighted_rows_have_the_density_of_their_repetitions(solver):
    """Against the exact answer for weighted rows, so that weights that are wrong in both ways of giving them would show."""
    rows = standardized("iris")
    times = np.random.default_rng(1).integers(1, 6, size=len(rows)) * (1 + 4 * (rows[:, 0] > 0))
    rows = (rows - np.average(rows, axis=0, weights=times)) / np.cov(rows.T, bias=True, fweights=times).diagonal() ** 0.5
    model = linear_vae(
        1, solver=solver, init="random", batch_size=1000, max_iter=400, learning_rate="cosine", learning_rate_init=0.02
    ).fit(rows, sample_weight=times)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.T, bias=True, fweights=times))[::-1]
    noise = eigenvalues[1:].mean()
    best = -0.5 * (4 * np.log(2 * np.pi) + np.log(eigenvalues[0]) + 3 * np.log(noise) + 4)
    reached = np.average(gaussian_log_likelihood(rows, rows[0] * 0.0, model_covariance(model)), weights=times)
    assert best - 0.01 < reached < best + 1e-6


@competitors
def test_two_warm_starts_are_one_long_fit(solver, tmp_path):
    params = {"warm_start": True, "init": "random", "optimizer": Adagrad(accumulate_first=3)}
    twice = vae(solver, max_iter=80, **params).fit(X)
    twice.save(tmp_path / "half.skvae")
    copies = [twice, pickle.loads(pickle.dumps(twice)), skvae.load(tmp_path / "half.skvae")]
    once = vae(solver, max_iter=160, **params).fit(X)
    for half in copies:
        assert_same_training(half.set_params(max_iter=160).fit(X), once)


@needs_callbacks
@competitors
def test_an_interrupted_training_goes_on_exactly(solver):
    undisturbed = vae(solver).fit(X)
    model = vae(solver).set_callbacks(Interrupter(23))
    with pytest.warns(ConvergenceWarning, match="Training was interrupted"):
        model.fit(X)
    assert 0 < model.n_iter_ < 40
    assert_same_training(model.set_callbacks().set_params(warm_start=True).fit(X), undisturbed)


@competitors
def test_a_search_gives_the_same_inside_fused_fits(solver):
    search = GridSearchCV(vae("aevb", max_iter=5), {"solver": [solver, "aevb"], "n_components": [1, 2]}, cv=2, refit=False)
    alone = search.fit(X).cv_results_["mean_test_score"]
    with skvae.fused_fits():
        together = search.fit(X).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(together, alone)


@competitors
def test_alpha_shrinks_the_weights(solver):
    sizes = []
    for alpha in (0.0, 100.0):
        model = vae(solver, alpha=alpha, init="random", max_iter=100, early_stopping=False).fit(X)
        decoder = model._fitted.model.unpack(torch.tensor(model._fitted.params))["decoder"]
        sizes.append(sum(float(w.square().sum()) for name, w in decoder.items() if not name.startswith("bias")))
    assert sizes[1] < 0.8 * sizes[0]


def test_wake_sleep_learns_batch_by_batch():
    model = vae("wake-sleep", init="random")
    bounds = [model.partial_fit(X).lower_bound_ for _ in range(60)]
    assert bounds[-1] > bounds[0] + 0.3
    twin = vae("wake-sleep", init="random")
    for _ in range(60):
        twin.partial_fit(X)
    np.testing.assert_array_equal(twin.transform(X), model.transform(X))


def test_wake_sleep_learns_from_a_data_source():
    assert np.isfinite(vae("wake-sleep").fit(ArraySource(X)).score(X))


def test_a_model_of_mcem_goes_on_with_another_solver():
    """Between parameters that lie as they are and parameters that lie aligned, and with a memory that fits neither."""
    model = vae("mcem", warm_start=True, likelihood=Bernoulli("observed")).fit(X)
    for solver in ("aevb", "mcem", "wake-sleep", "aevb"):
        before = model.n_iter_
        model.set_params(solver=solver, max_iter=before + 10).fit(X)
        assert before < model.n_iter_ <= before + 10
        assert np.isfinite(model.score(X))
