"""Monte Carlo EM: chains against quadrature, updates against their formula, and the stationary point of a linear model."""

import warnings

import numpy as np
import pytest
import torch
from conftest import table_for
from sklearn.exceptions import ConvergenceWarning
from test_exact import (
    MODELS,
    gaussian_log_likelihood,
    linear_vae,
    model_covariance,
    ppca,
    quadrature,
    random_model,
    standardized,
)
from test_solvers import make_params, make_problem, start
from torch.distributions import Normal as OracleNormal

from skvae import VAETransformer, _hmc
from skvae._batch import Batch
from skvae._random import generator, normal
from skvae.data import ArraySource
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import SGD, Adam
from skvae.solvers import MonteCarloEM, Problem, _some_of

F64 = torch.float64


def problem_of_nine(batch_size=9, optimizer=None):
    problem = make_problem(optimizer=optimizer)
    return Problem(problem.model, ELBO(), problem.optimizer, 0.0, 50.0, n_rows=9, batch_size=batch_size)


def nine_rows(weight=None):
    x = normal((9, 4), generator(0, "rows"), F64)
    return Batch(x[None], (torch.ones(9, dtype=F64) if weight is None else weight)[None] / 9)


def sweep(solver, state, batch, rate=0.1, noise=None):
    """Take one step and return its value."""
    state.begin_epoch([rate], [1.0])
    model = state.problems[0].model
    noise = torch.zeros((1, 1, batch.x.shape[1], model.n_components), dtype=F64) if noise is None else noise
    return solver.step(state, batch, noise)


# --- E: the chains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "d"), [MODELS[0], MODELS[2]], ids=lambda v: repr(v))
def test_chains_follow_the_true_posterior(likelihood, d):
    """With the parameters at rest, moments and histogram of what chains visit are those of quadrature."""
    model, params, batch = random_model(likelihood, d)
    batch, n_copies = batch.slice(0, 3), 300
    flat = model.layout.flatten({(piece, name): params[piece][name] for piece, name in model.layout.shapes}, F64)
    rows = Batch(batch.x.repeat(n_copies, 1)[None], torch.full((1, 3 * n_copies), 1 / (3 * n_copies), dtype=F64))
    solver = MonteCarloEM(n_updates=1)
    state = start(solver, Problem(model, ELBO(), SGD(), 0.0, 1.0, n_rows=3 * n_copies, batch_size=1), flat)
    visited = []
    for number in range(120):
        sweep(solver, state, rows, rate=0.0)
        if number >= 40:
            visited.append(state.slots["chains"][0].view(n_copies, 3, 2).clone())
    z = torch.stack(visited).flatten(0, 1)  # (draws, 3, 2)
    log_evidence, nodes, log_joint = quadrature(model, params, batch)
    probability = (log_joint - log_evidence).exp()  # (nodes, 3)
    mean = (probability[..., None] * nodes).sum(0)
    second = (probability[..., None] * nodes.square()).sum(0)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(z.square().mean(0), second, rtol=0, atol=0.1)
    for edge in (-1.5, -0.5, 0.5, 1.5):
        below = (probability[..., None] * (nodes < edge)).sum(0)
        torch.testing.assert_close((z < edge).double().mean(0), below, rtol=0, atol=0.03)


def test_chains_begin_at_draws_of_the_encoder():
    solver, problem = MonteCarloEM(acceptance=0.999), problem_of_nine()
    params, noise = make_params(problem), normal((1, 1, 9, 2), generator(0, "noise"), F64)
    state, model = start(solver, problem, params), problem.model
    state.slots["step_size"].fill_(1e-9)  # so they stay where they begin
    sweep(solver, state, nine_rows(), noise=noise)
    q = model.encode(model.unpack(params), Batch(nine_rows().x[0]))
    torch.testing.assert_close(state.slots["chains"][0], model.posterior.sample(q, noise[0])[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("acceptance", [0.6, 0.9])
def test_the_step_size_is_tuned_to_the_acceptance(monkeypatch, acceptance):
    seen, original = [], _hmc.transition

    def watched(*args):
        moved, probability = original(*args)
        seen.append(float(probability.mean()))
        return moved, probability

    monkeypatch.setattr(_hmc, "transition", watched)
    model, params, batch = random_model(Gaussian("feature"), 5)
    flat = model.layout.flatten({(piece, name): params[piece][name] for piece, name in model.layout.shapes}, F64)
    rows = Batch(batch.x.repeat(20, 1)[None], torch.full((1, 400), 1 / 400, dtype=F64))
    solver = MonteCarloEM(acceptance=acceptance, n_updates=1)
    state = start(solver, Problem(model, ELBO(), SGD(), 0.0, 1.0, n_rows=400, batch_size=1), flat)
    state.slots["step_size"].fill_(1e-3)
    for _ in range(150):
        sweep(solver, state, rows, rate=0.0)
    assert np.mean(seen[50:]) == pytest.approx(acceptance, abs=0.08)


@pytest.mark.parametrize(("n_rows", "factor"), [(9, 1.02**9), (400, 1.25)])
def test_the_step_size_changes_by_the_rule(n_rows, factor):
    problem = make_problem()
    problem = Problem(problem.model, ELBO(), SGD(), 0.0, 1.0, n_rows=n_rows, batch_size=1)
    rows = Batch(normal((1, n_rows, 4), generator(0), F64), torch.full((1, n_rows), 1 / n_rows, dtype=F64))
    for tiny_or_huge, expected in ((1e-6, factor), (1e6, 1 / factor)):
        state = start(MonteCarloEM(), problem, make_params(problem))
        state.slots["step_size"].fill_(tiny_or_huge)
        sweep(MonteCarloEM(), state, rows)
        assert float(state.slots["step_size"][0]) == pytest.approx(tiny_or_huge * expected, rel=1e-6)


def test_rows_that_weigh_nothing_do_not_tune_the_step_size():
    solver, problem = MonteCarloEM(), problem_of_nine()
    weight = torch.tensor([9.0] + [0.0] * 8, dtype=F64)
    rows = nine_rows(weight)
    rows.x[0, 1:] = 1e6  # whose chains go nowhere
    state = start(solver, problem, make_params(problem))
    state.slots["step_size"].fill_(1e-4)
    sweep(solver, state, rows)
    assert float(state.slots["step_size"][0]) > 1e-4


def test_chains_moved_in_parts_stay_the_same(monkeypatch):
    solver, problem = MonteCarloEM(), problem_of_nine()
    states = []
    for cells in (2**21, 8):  # two rows at a time
        monkeypatch.setattr("skvae.solvers._PART_CELLS", cells)
        states.append(start(solver, problem, make_params(problem)))
        sweep(solver, states[-1], nine_rows())
    torch.testing.assert_close(states[1].slots["chains"], states[0].slots["chains"], rtol=0, atol=1e-12)


# --- M: the updates --------------------------------------------------------------------------------------------------


def test_an_update_follows_the_formula():
    solver, problem = MonteCarloEM(n_updates=1), problem_of_nine()
    params, weight = make_params(problem), torch.linspace(0.2, 1.8, 9, dtype=F64)
    state, model = start(solver, problem, params), problem.model
    value = sweep(solver, state, nine_rows(weight))
    z, x = state.slots["chains"][0], nine_rows().x[0]
    flat = params.clone().requires_grad_()
    views = model.unpack(flat)
    variance = 0.01**2 + (2 * 2.0 * views["likelihood"]["log_scale"]).exp()
    log_px = OracleNormal(model.decode(views, z), variance.sqrt()).log_prob(x).sum(-1)
    mean, log_scale = model.encode(views, Batch(x)).chunk(2, -1)
    log_joint = log_px + OracleNormal(0.0, 1.0).log_prob(z).sum(-1)
    log_q = OracleNormal(mean, log_scale.exp()).log_prob(z).sum(-1)
    (-((log_joint + log_q) * weight).mean()).backward()
    torch.testing.assert_close(state.grad[0], flat.grad)
    torch.testing.assert_close(state.params[0], params - 0.1 * flat.grad)
    torch.testing.assert_close(value[0], (log_joint * weight).mean().detach())


def test_the_encoder_has_no_part_in_what_the_decoder_learns():
    solver = MonteCarloEM(n_updates=3)
    problem = problem_of_nine(batch_size=4)
    layout, outcomes = problem.model.layout, []
    for scale in (1.0, 3.0):
        params = make_params(problem)
        for (piece, _), part in layout.slices.items():
            if piece == "encoder":
                params[part] *= scale
        state = start(solver, problem, params)
        state.slots["chains"].fill_(0.3)
        state.slots["n_sweeps"].fill_(1)  # so chains do not begin at the encoder's draws
        for _ in range(3):
            sweep(solver, state, nine_rows())
        outcomes.append(torch.cat([state.params[0, part] for (piece, _), part in layout.slices.items() if piece != "encoder"]))
    assert torch.equal(*outcomes)


def test_the_parts_of_the_rows_agree_in_mean_with_them_all():
    rows = Batch(torch.arange(9, dtype=F64)[:, None], torch.linspace(0.2, 1.8, 9, dtype=F64) / 9)
    chains, total = rows.x.clone(), 0.0
    stream = generator(0)
    for _ in range(4000):
        batch, z = _some_of(rows, chains, 4, stream)
        assert torch.equal(batch.x, z) and len(batch.x.unique()) == 4
        total += float((batch.weight * batch.x[:, 0]).sum()) / 4000
    assert total == pytest.approx(float((rows.weight * rows.x[:, 0]).sum()), rel=0.02)
    assert _some_of(rows, chains, 9, stream) == (rows, chains)


def test_a_batch_too_large_for_the_memory_is_taken_in_parts(monkeypatch):
    solver, problem = MonteCarloEM(n_updates=1), problem_of_nine()
    states = [start(solver, problem, make_params(problem)) for _ in range(2)]
    sweep(solver, states[0], nine_rows())
    original, sizes = MonteCarloEM._gradient, []

    def limited(self, state, batch, z, part):
        sizes.append(len(batch.x[part or slice(None)]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, state, batch, z, part)

    monkeypatch.setattr(MonteCarloEM, "_gradient", limited)
    sweep(solver, states[1], nine_rows())
    assert sizes == [9, 5, 3, 3, 3]
    torch.testing.assert_close(states[1].params, states[0].params, rtol=1e-12, atol=1e-12)


def test_chains_go_on_when_training_starts_over():
    solver, problem = MonteCarloEM(), problem_of_nine(optimizer=Adam())
    state = start(solver, problem, make_params(problem))
    for _ in range(3):
        sweep(solver, state, nine_rows())
    before = {name: slot.clone() for name, slot in state.slots.items()}
    solver.start_over(state, 0, make_params(problem))
    for name in ("chains", "step_size", "n_sweeps"):
        assert torch.equal(state.slots[name], before[name])
    assert not state.slots["mean"].any() and before["mean"].any()


def test_chains_of_another_number_of_rows_are_not_used():
    solver, problem = MonteCarloEM(), problem_of_nine()
    arrangement, params = solver.arrange([problem]), make_params(problem)
    old = {**solver.fresh_slots(problem, params), "chains": torch.ones((7, 2), dtype=F64)}
    assert not solver.init([problem], arrangement, [params], [old]).slots["chains"].any()
    kept = {**old, "chains": torch.ones((9, 2), dtype=F64)}
    assert solver.init([problem], arrangement, [params], [kept]).slots["chains"].all()


# --- a linear model, whose answers are known -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """A linear model of wine, trained from random weights, and its data."""
    X = standardized("wine")
    solver = MonteCarloEM(n_updates=1, averaging=0.998)
    vae = linear_vae(
        2, solver=solver, init="random", batch_size=1000, max_iter=900, learning_rate="cosine", learning_rate_init=0.02
    )
    return vae.fit(X), X


def test_the_stationary_point_is_probabilistic_pca(linear):
    vae, X = linear
    exact, noise, eigenvalues = ppca(X, 2)
    vectors = np.linalg.eigh(np.cov(X.T, bias=True))[1][:, ::-1][:, :2]
    signal = vectors * (eigenvalues[:2] - noise) @ vectors.T
    learnt = model_covariance(vae) - np.diag(vae.noise_variance_)
    np.testing.assert_allclose(learnt, signal, atol=0.04)
    assert vae.noise_variance_[0] == pytest.approx(noise, abs=0.004)
    reached = gaussian_log_likelihood(X, X.mean(0), model_covariance(vae)).mean()
    assert exact - 0.002 < reached <= exact + 1e-6


def test_transform_is_the_mean_of_the_true_posterior(linear):
    vae, X = linear
    W = vae._fitted.model.unpack(torch.tensor(vae._fitted.params).double())["decoder"]["weight0"].numpy()
    precision = W @ W.T + vae.noise_variance_[0] * np.eye(2)
    exact = np.linalg.solve(precision, W @ X.T).T
    np.testing.assert_allclose(vae.transform(X), exact, atol=0.15)
    std = np.sqrt(np.diag(vae.noise_variance_[0] * np.linalg.inv(precision)))
    np.testing.assert_allclose(vae.posterior_moments(X).std.mean(0), std, rtol=0.1)


def test_importance_weighted_scores_are_those_of_the_model(linear):
    vae, X = linear
    exact = gaussian_log_likelihood(X, X.mean(0), model_covariance(vae))
    vae.set_params(score_method=IWAE(2000))
    np.testing.assert_allclose(vae.score_samples(X), exact, atol=0.05)


# --- in the hands of a user ------------------------------------------------------------------------------------------


def small(**params):
    return VAETransformer(
        **{"n_components": 2, "hidden_layer_sizes": (8,), "solver": "mcem", "max_iter": 20, "random_state": 0, **params}
    )


def test_an_epoch_is_a_sweep_and_measurements_count_updates():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        vae = small(batch_size=16).fit(table_for(Gaussian()))
    assert vae.n_steps_ == vae.n_iter_ == 20
    assert vae.history_["epoch"].tolist() == [0, 10, 20]  # fifty updates of five a sweep


def test_the_number_of_rows_per_update_matters():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [
            small(batch_size=size, init="random", early_stopping=False).fit(table_for(Gaussian())) for size in (10, 40, 1000)
        ]
    assert not np.array_equal(models[0]._fitted.params, models[1]._fitted.params)
    np.testing.assert_array_equal(models[1]._fitted.params, models[2]._fitted.params)


def test_what_would_not_have_all_rows_is_refused():
    X = table_for(Gaussian())
    with pytest.raises(ValueError, match="takes all rows in every step.*cannot train by partial_fit.*Use solver='aevb'"):
        small().partial_fit(X)
    with pytest.raises(ValueError, match="cannot train by a data source.*or fit an array"):
        small().fit(ArraySource(X))


@pytest.mark.parametrize(
    "params", [{"n_leapfrog": 0}, {"acceptance": 1.0}, {"acceptance": 0}, {"n_updates": 0}, {"averaging": 1.0}], ids=repr
)
def test_impossible_settings_are_refused(params):
    with pytest.raises(ValueError, match=f"The '{next(iter(params))}' parameter of MonteCarloEM"):
        MonteCarloEM(**params).validate()
