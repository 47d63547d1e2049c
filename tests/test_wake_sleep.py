"""Wake-sleep and reweighted wake-sleep: the gradient of each phase, dreams, and where training ends on a linear model."""

import math

import numpy as np
import pytest
import torch
from conftest import SmallNet
from test_exact import gaussian_log_likelihood, linear_model_at_optimum, linear_vae, model_covariance, ppca, standardized
from test_solvers import make_batch, make_params, make_problem, own, start
from torch.distributions import Normal as OracleNormal

from skvae import VAETransformer
from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Bernoulli, Gaussian, SelfMasking
from skvae.likelihoods._mixed import PerColumn
from skvae.networks import MLP, Module
from skvae.objectives import IWAE
from skvae.posteriors import Normal
from skvae.priors import StandardNormal
from skvae.solvers import WakeSleep, dream, patterns, sleep

F64 = torch.float64
MODES = [WakeSleep(), WakeSleep(4), WakeSleep(4, encoder_phase="wake"), WakeSleep(4, encoder_phase="both")]


def noise_for(solver, problem):
    return normal((1, solver.n_samples, 9, problem.model.n_components), generator(0, "noise"), F64)


def take_step(solver, problem, params, weight=None, rate=0.1):
    """Return the state after one step from `params`."""
    state = start(solver, problem, params)
    state.begin_epoch([rate], [1.0])
    solver.step(state, make_batch(weight), noise_for(solver, problem))
    return state


def by_piece(problem, flat):
    """Return the parts of a vector that belong to the encoder, and to everything else."""
    layout = problem.model.layout
    encoder = torch.cat([flat[part] for (piece, _), part in layout.slices.items() if piece == "encoder"])
    others = torch.cat([flat[part] for (piece, _), part in layout.slices.items() if piece != "encoder"])
    return encoder, others


def slopes_by_hand(problem, params, noise, dreams, weight, awake):
    """Return minus the gradient of both phases, from the formulas and torch's own densities."""
    model, flat = problem.model, params.clone().requires_grad_()
    views, x = model.unpack(flat), make_batch().x[0]

    def moments(rows):
        mean, log_scale = model.encode(views, Batch(rows)).chunk(2, -1)
        return OracleNormal(mean, log_scale.exp())

    q = moments(x)
    z = (q.mean + q.stddev * noise[0]).detach()
    variance = 0.01**2 + (2 * 2.0 * views["likelihood"]["log_scale"]).exp()
    log_px = OracleNormal(model.decode(views, z), variance.sqrt()).log_prob(x).sum(-1)
    log_joint, log_q = log_px + OracleNormal(0.0, 1.0).log_prob(z).sum(-1), q.log_prob(z).sum(-1)
    w = (log_joint - log_q).exp().detach()
    w = w / w.sum(0)
    awakened = ((w * log_joint).sum(0) * weight).mean() + awake * ((w * log_q).sum(0) * weight).mean()
    asleep = moments(dreams[1]).log_prob(dreams[0]).sum(-1).mean()
    (-(awakened + (1 - awake) * asleep)).backward()
    return flat.grad


@pytest.mark.parametrize("network", [MLP((6,), activation="tanh"), Module(SmallNet)], ids=repr)
@pytest.mark.parametrize("solver", MODES, ids=repr)
def test_a_step_follows_the_formulas_of_both_phases(solver, network):
    problem = make_problem(network=network)
    params, weight = make_params(problem), torch.linspace(0.2, 1.8, 9, dtype=F64)
    dreams = dream(problem.model, problem.model.unpack(params), 9, generator(problem.model.seed, "steps"))
    awake = {"sleep": 0.0, "both": 0.5, "wake": 1.0}[solver.encoder_phase]
    expected = slopes_by_hand(problem, params, noise_for(solver, problem), dreams, weight, awake)
    state = take_step(solver, problem, params, weight)
    torch.testing.assert_close(own(state, state.grad), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(own(state, state.params), params - 0.1 * expected)


@pytest.mark.parametrize("n_samples", [1, 7])
def test_the_wake_phase_climbs_the_importance_weighted_bound_of_its_draws(n_samples):
    """An identity that the code does not use: the slope of log mean w by the decoder is that of sum of w_k log p(x, z_k)."""
    solver, problem = WakeSleep(n_samples), make_problem()
    params = make_params(problem)
    flat = params.clone().requires_grad_()
    views = problem.model.unpack(flat)
    views["encoder"] = {name: value.detach() for name, value in views["encoder"].items()}
    noise = noise_for(solver, problem)[0]
    (-IWAE(n_samples).bound(problem.model, views, Batch(make_batch().x[0]), noise).mean()).backward()
    state = take_step(solver, problem, params)
    torch.testing.assert_close(by_piece(problem, own(state, state.grad))[1], by_piece(problem, flat.grad)[1])


def test_a_single_sample_in_the_wake_phase_has_weight_one():
    one, problem = WakeSleep(1), make_problem()
    params = make_params(problem)
    same = noise_for(one, problem).expand(1, 5, -1, -1)  # five draws that are one
    states = [start(solver, problem, params) for solver in (one, WakeSleep(5))]
    for solver, state in zip((one, WakeSleep(5)), states):
        state.begin_epoch([0.1], [1.0])
        solver.step(state, make_batch(), same[:, : solver.n_samples])
    torch.testing.assert_close(states[0].params, states[1].params)


def test_the_value_of_a_step_is_the_bound_of_its_draws():
    solver, problem = WakeSleep(6), make_problem()
    params, noise = make_params(problem), noise_for(WakeSleep(6), problem)
    state = start(solver, problem, params)
    state.begin_epoch([0.1], [1.0])
    expected = IWAE(6).bound(problem.model, problem.model.unpack(params), Batch(make_batch().x[0]), noise[0]).mean()
    torch.testing.assert_close(solver.step(state, make_batch(), noise), expected[None])


def test_dreams_are_samples_of_the_model_not_means():
    model, params, _ = linear_model_at_optimum()
    z, x = dream(model, params, 40_000, generator(0, "dream"))
    loadings = params["decoder"]["weight0"]
    noise = model.likelihood.noise_variance(params["likelihood"], 13)
    covariance = loadings.mT @ loadings + torch.diag(noise[0])
    torch.testing.assert_close(x.mT @ x / len(x), covariance, rtol=0, atol=0.05)
    torch.testing.assert_close(z.mT @ x / len(x), loadings, rtol=0, atol=0.05)


def test_dreams_of_a_bernoulli_model_are_zeros_and_ones():
    model = Model(Pieces(MLP((4,)), MLP((4,)), Normal(), StandardNormal(), Bernoulli()), 5, 2, 0)
    z, x = dream(model, model.unpack(model.init(F64)), 100, generator(0, "dream"))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (z.shape, x.shape) == ((100, 2), (100, 5))


def test_every_step_dreams_anew():
    solver, problem, rows = WakeSleep(), make_problem(), make_batch().x[0]
    state = start(solver, problem, make_params(problem))
    first, second = solver._dreams(state, rows), solver._dreams(state, rows)
    assert not torch.equal(first[1], second[1])
    again = solver._dreams(start(solver, problem, make_params(problem)), rows)
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("solver", MODES, ids=repr)
def test_a_batch_too_large_for_the_memory_is_taken_in_parts(monkeypatch, solver):
    problem = make_problem()
    params = make_params(problem)
    whole = take_step(solver, problem, params)
    original, sizes = WakeSleep._gradient, []

    def limited(self, state, batch, *rest):
        sizes.append(batch.x.shape[1])
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, state, batch, *rest)

    monkeypatch.setattr(WakeSleep, "_gradient", limited)
    parts = take_step(solver, problem, params)
    assert sizes == [9, 5, 3, 3, 3]
    torch.testing.assert_close(parts.params, whole.params, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phase", ["wake", "both"])
def test_an_encoder_that_learns_awake_needs_two_samples(phase):
    with pytest.raises(ValueError, match=f"encoder_phase='{phase}' needs n_samples=2 or more.*Raise n_samples, or use"):
        WakeSleep(encoder_phase=phase).validate()


# --- a linear model, whose answers are known -------------------------------------------------------------------------

SHORT = {"init": "random", "batch_size": 1000, "learning_rate": "cosine", "learning_rate_init": 0.02}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("solver", "gap"),
    [(WakeSleep(averaging=0.99), 0.01), (WakeSleep(10, encoder_phase="both", averaging=0.99), 0.05)],
    ids=repr,
)
def test_it_reaches_probabilistic_pca_from_random_weights(solver, gap):
    """On a linear model the encoder can be exact, so both phases want the same; reweighting leaves the axes free."""
    X = standardized("wine")
    vae = linear_vae(2, solver=solver, max_iter=1200, **SHORT).fit(X)
    exact, noise, _ = ppca(X, 2)
    reached = gaussian_log_likelihood(X, X.mean(0), model_covariance(vae)).mean()
    assert exact - 0.002 < reached <= exact + 1e-6
    assert reached - gap < vae.lower_bound_ <= reached + 1e-4
    assert vae.noise_variance_[0] == pytest.approx(noise, abs=0.005)


@pytest.mark.parametrize(("widening", "rests"), [(1.0, True), (1.5, False)])
def test_the_sleep_phase_rests_at_the_exact_posterior_alone(widening, rests):
    model, params, _ = linear_model_at_optimum()
    params["encoder"]["bias0"][:, 2:] += math.log(widening)
    leaves = {**params, "encoder": {name: value.clone().requires_grad_() for name, value in params["encoder"].items()}}
    value = sleep(model, leaves, *dream(model, params, 100_000, generator(0, "dream"))).mean()
    slopes = torch.autograd.grad(value, list(leaves["encoder"].values()))
    assert (max(float(slope.abs().max()) for slope in slopes) < 0.02) == rests


# --- holes ---------------------------------------------------------------------------------------------------------------


def rows_with_holes(n, seed):
    """Return rows of one factor in four columns, with holes at random, and what is known of the factor without training."""
    rng = np.random.default_rng(seed)
    loadings, z = np.array([1.0, 1.2, -1.0, 0.8]), rng.normal(size=n)
    X = z[:, None] * loadings + 0.5 * rng.normal(size=(n, 4))
    X[rng.random(X.shape) < 0.3] = np.nan
    precision = 1 + ((~np.isnan(X)) * loadings**2).sum(1) / 0.25
    return X, np.nansum(X * loadings, 1) / 0.25 / precision, precision**-0.5


def test_the_encoder_learns_in_dreams_what_a_hole_says():
    X, mean, std = rows_with_holes(2000, 0)
    settings = {"hidden_layer_sizes": (16,), "max_iter": 100, "learning_rate": "cosine", "random_state": 0}
    vae = VAETransformer(1, solver="wake-sleep", **settings).fit(X)
    q, few = vae.posterior_moments(X), np.isnan(X).sum(1) == 3
    sign = np.sign(np.corrcoef(q.mean[:, 0], mean)[0, 1])
    assert np.sqrt(np.mean((sign * q.mean[few, 0] - mean[few]) ** 2)) < 0.4
    assert np.mean(q.std[few, 0] / std[few]) == pytest.approx(1, abs=0.15)


def test_rows_lend_their_holes_to_dreams_as_often_as_they_weigh():
    rows, weight = torch.arange(7.0)[:, None], torch.tensor([0.0, 0.1, 5.0, 0.4, 1.0, 0.3, 0.2], dtype=F64) / 7
    found = torch.cat([patterns(rows, weight, normal((1, 1), generator(i, "start"), F64)) for i in range(4000)])
    share = torch.bincount(found[:, 0].long(), minlength=7) / len(found)
    torch.testing.assert_close(share.double(), weight / weight.sum(), rtol=0, atol=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 2, 49, 1000])
def test_rows_of_equal_weight_lend_their_holes_to_one_dream_each(n, dtype):
    rows, weight = torch.arange(float(n))[:, None], torch.full((n,), 1 / n, dtype=dtype)
    for place in (-5.0, -1.0, 0.0, 1.0, 5.0):
        assert torch.equal(patterns(rows, weight, torch.tensor([place], dtype=dtype)), rows)


def test_a_table_incomplete_by_a_hundredth_of_its_weight_has_a_hundredth_of_its_dreams_with_holes(monkeypatch):
    seen, original = [], WakeSleep._gradient

    def spy(self, state, batch, noise, dreams, rows):
        seen.append(dreams[1].isnan().any(1).double().mean())
        return original(self, state, batch, noise, dreams, rows)

    monkeypatch.setattr(WakeSleep, "_gradient", spy)
    X = np.random.default_rng(0).normal(size=(200, 3))
    X[:100, 0] = np.nan
    settings = {"solver": "wake-sleep", "max_iter": 100, "batch_size": 200, "learning_rate": "cosine", "random_state": 0}
    VAETransformer(1, **settings).fit(X, sample_weight=np.repeat([1, 99], 100))
    assert len(seen) == 100
    assert float(torch.stack(seen).mean()) == pytest.approx(0.01, abs=0.002)


def test_dreams_have_the_holes_of_the_rows_but_where_the_model_says_what_is_missing():
    likelihood = PerColumn((Gaussian(), SelfMasking(missing="high", columns=(0,))), (2, 1), (0.0,) * 3, (0, 1, 2))
    params = {name: value.double() for name, value in likelihood.init(3).items()}
    x, like = normal((4000, 3), generator(0, "x"), F64), normal((4000, 3), generator(0, "like"), F64)
    like[like > 1] = torch.nan
    found = likelihood.with_holes(params, x, like, generator(0, "holes"))
    assert torch.equal(found[:, :2].isnan(), like[:, :2].isnan())
    assert torch.equal(found[~found.isnan()], x[~found.isnan()])
    slope = SelfMasking(missing="high")._slope({"slope": params["1_slope"]})
    expected = OracleNormal(0.0, 1.0).cdf(slope[0] * x[:, 2] + params["1_intercept"][0])
    for low, high in ((-9, -0.5), (-0.5, 0.5), (0.5, 9)):
        part = (x[:, 2] > low) & (x[:, 2] < high)
        assert float(found[part, 2].isnan().double().mean()) == pytest.approx(float(expected[part].mean()), abs=0.04)
