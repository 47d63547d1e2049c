"""The step of AEVB: its gradient, its penalty, its weights, the average of its iterates, and models in company."""

from dataclasses import replace

import pytest
import torch
from conftest import SmallNet

from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian
from skvae.networks import MLP, Module
from skvae.objectives import ELBO, IWAE, BetaTCVAE, InfoVAE
from skvae.optimizers import SGD, Adam
from skvae.posteriors import Normal
from skvae.priors import StandardNormal
from skvae.solvers import AEVB, MonteCarloEM, Problem, WakeSleep

F64 = torch.float64
NETWORKS = [MLP((6,), activation="tanh"), Module(SmallNet)]  # with closed forms, and without


def make_problem(alpha=0.0, optimizer=None, network=NETWORKS[0], k=2, objective=None, seed=0):
    model = Model(Pieces(network, network, Normal(), StandardNormal(), Gaussian()), 4, k, seed)
    return Problem(model, objective or ELBO(), optimizer or SGD(), alpha, total_weight=50.0)


def make_params(problem, seed=1):
    return problem.model.init(F64) + 0.1 * normal((problem.model.layout.size,), generator(seed, "p"), F64)


def make_batch(weight=None):
    x = normal((9, 4), generator(0, "rows"), F64)
    return Batch(x[None], (torch.ones(9, dtype=F64) if weight is None else weight)[None] / 9)


def make_noise(problem, state):
    """Return noise for the components of the model, and zeros for those that only fill up."""
    own = normal((problem.objective.n_samples, 9, problem.model.n_components), generator(0, "noise"), F64)
    noise = torch.zeros((1, *own.shape[:2], state.arrangement.wide.n_components), dtype=F64)
    noise[0, ..., : own.shape[2]] = own
    return noise, own


def start(solver, problem, params):
    arrangement = solver.arrange([problem])
    return solver.init([problem], arrangement, [arrangement.place(0, params)], [None])


def take_step(solver, problem, params, weight=None, rate=0.1):
    """Return the state after one step from `params`."""
    state = start(solver, problem, params)
    state.begin_epoch([rate], [1.0])
    solver.step(state, make_batch(weight), make_noise(problem, state)[0])
    return state


def slope_by_autograd(problem, params, weight=None):
    flat = params.clone().requires_grad_()
    noise = make_noise(problem, start(AEVB(), problem, params))[1]
    value = problem.objective(problem.model, problem.model.unpack(flat), Batch(make_batch().x[0]), noise)
    (-(value if weight is None else value * weight).mean()).backward()
    return flat.grad


def own(state, vector):
    return state.arrangement.extract(0, vector[0])


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
@pytest.mark.parametrize("objective", [ELBO(), ELBO(kl="monte_carlo", n_samples=3), IWAE(4)], ids=repr)
def test_a_step_of_sgd_follows_the_gradient_of_the_mean(network, objective):
    problem = make_problem(network=network, objective=objective)
    params = make_params(problem)
    state = take_step(AEVB(averaging=0.0), problem, params)
    torch.testing.assert_close(own(state, state.params), params - 0.1 * slope_by_autograd(problem, params))


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_weights_of_rows_weigh_their_gradients(network):
    problem = make_problem(network=network)
    params, weight = make_params(problem), torch.linspace(0.2, 1.8, 9, dtype=F64)
    state = take_step(AEVB(), problem, params, weight)
    torch.testing.assert_close(own(state, state.grad), slope_by_autograd(problem, params, weight))


def test_alpha_is_a_gaussian_prior_on_the_weight_matrices_alone():
    problem, penalised = make_problem(), make_problem(alpha=3.0)
    params = make_params(problem)
    states = [take_step(AEVB(), each, params) for each in (problem, penalised)]
    difference = own(states[1], states[1].grad) - own(states[0], states[0].grad)
    values = problem.model.layout.views(params)
    for (piece, name), found in problem.model.layout.views(difference).items():
        value = values[piece, name]
        expected = 3.0 / 50.0 * value if name.startswith(("weight", "skip")) else torch.zeros_like(value)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_the_penalty_is_what_the_gradient_of_alpha_comes_from():
    problem = make_problem(alpha=3.0)
    solver, params = AEVB(), make_params(problem)
    state = start(solver, problem, params)
    placed = state.params[0].clone()
    weights = [v for name, v in problem.model.layout.views(params).items() if name[1].startswith(("weight", "skip"))]
    assert solver.penalty(state, 0, placed) == pytest.approx(1.5 / 50.0 * sum(float(v.square().sum()) for v in weights))
    assert solver.penalty(start(solver, make_problem(), params), 0, placed) == 0


def test_the_result_is_a_running_average_that_forgets_its_beginning():
    solver, problem = AEVB(averaging=0.5), make_problem(optimizer=Adam())
    state = start(solver, problem, make_params(problem))
    average = state.params[0].clone()
    state.begin_epoch([0.05], [1.0])
    for t in range(1, 30):
        solver.step(state, make_batch(), make_noise(problem, state)[0])
        average = average + (1 - min(0.5, t / (t + 9))) * (state.params[0] - average)
        torch.testing.assert_close(solver.result(state, 0), average)
    assert AEVB(averaging=0.0).result(state, 0).data_ptr() == state.params.data_ptr()


def test_starting_over_empties_the_memory():
    solver, problem = AEVB(), make_problem(optimizer=Adam())
    params = make_params(problem)
    state, fresh = start(solver, problem, params), start(solver, problem, params)
    noise = make_noise(problem, state)[0]
    for each in (state, fresh):
        each.begin_epoch([0.05], [1.0])
    for _ in range(5):
        solver.step(state, make_batch(), noise)
    solver.start_over(state, 0, fresh.params[0])
    torch.testing.assert_close(state.params, fresh.params)
    assert state.slots.keys() == fresh.slots.keys()
    for name, value in fresh.slots.items():
        torch.testing.assert_close(state.slots[name], value)
    for each in (state, fresh):
        solver.step(each, make_batch(), noise)
    torch.testing.assert_close(state.params, fresh.params)


def test_the_memory_of_another_optimizer_is_not_used():
    solver, problem = AEVB(), make_problem(optimizer=SGD(momentum=0.9))
    arrangement = solver.arrange([problem])
    params = arrangement.place(0, make_params(problem))
    state = solver.init([problem], arrangement, [params], [Adam().init(params)])
    assert "velocity" in state.slots and "mean" not in state.slots


def test_leaves_share_the_storage_of_the_vectors():
    problem = make_problem(network=NETWORKS[1])
    state = take_step(AEVB(), problem, make_params(problem))
    leaves = state.kept["leaves"][1]
    with torch.no_grad():
        state.params.fill_(2.0)
        state.grad.fill_(3.0)
    assert all((leaf == 2.0).all() and (leaf.grad == 3.0).all() for named in leaves.values() for leaf in named.values())


@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.5)], ids=repr)
def test_models_of_different_width_share_a_step_and_change_nothing_for_each_other(optimizer):
    solver = AEVB()
    problems = [make_problem(optimizer=optimizer, network=MLP((h,)), k=k, seed=h) for h, k in ((3, 1), (40, 5), (17, 20))]
    params = [make_params(problem, seed) for seed, problem in enumerate(problems)]
    rates = [0.01, 0.03, 0.01]
    alone = []
    for problem, vector, rate in zip(problems, params, rates):
        state = take_step(solver, problem, vector, rate=rate)
        alone.append(own(state, state.params))
    arrangement = solver.arrange(problems)
    placed = [arrangement.place(i, vector) for i, vector in enumerate(params)]
    state = solver.init(problems, arrangement, placed, [None] * 3)
    batch = make_batch()
    noise = torch.zeros((3, 1, 9, arrangement.wide.n_components), dtype=F64)
    for i, problem in enumerate(problems):
        noise[i, ..., : problem.model.n_components] = make_noise(problem, state)[1]
    state.begin_epoch(rates, [1.0] * 3)
    solver.step(state, Batch(batch.x.expand(3, -1, -1), batch.weight.expand(3, -1)), noise)
    for i, expected in enumerate(alone):
        torch.testing.assert_close(arrangement.extract(i, state.params[i]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_a_batch_too_large_for_the_memory_is_taken_in_parts(monkeypatch, network):
    problem = make_problem(network=network)
    params = make_params(problem)
    whole = take_step(AEVB(), problem, params)
    name = "_gradient_by_hand" if network is NETWORKS[0] else "_gradient_by_autograd"
    original, sizes = getattr(AEVB, name), []

    def limited(self, state, batch, *rest, **named):
        sizes.append(batch.x.shape[1])
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, state, batch, *rest, **named)

    monkeypatch.setattr(AEVB, name, limited)
    parts = take_step(AEVB(), problem, params)
    assert sizes == [9, 5, 3, 3, 3]
    torch.testing.assert_close(parts.params, whole.params, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(AEVB, name, lambda *args, **named: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory at all")))
    with pytest.raises(torch.OutOfMemoryError, match="no memory at all"):
        take_step(AEVB(), problem, params)


@pytest.mark.parametrize("averaging", [-0.1, 1.0, "yes"])
def test_impossible_averaging_is_refused(averaging):
    with pytest.raises(ValueError, match="The 'averaging' parameter of AEVB"):
        AEVB(averaging=averaging).validate()


class Observed(AEVB):
    """Counts its updates, which a recording would not."""

    n = 0

    def update(self, state, m):
        Observed.n += 1
        super().update(state, m)


class Fading(ELBO):
    """A user's objective, with a number that changes from call to call."""

    n = 0

    def __call__(self, *args):
        Fading.n += 1
        return super().__call__(*args) / Fading.n


@pytest.mark.parametrize(("solver", "objective", "can"), [
    (AEVB(), ELBO(beta=2.0), True), (WakeSleep(2), ELBO(), True), (AEVB(), BetaTCVAE(), True), (AEVB(), InfoVAE(), False),
    (MonteCarloEM(), ELBO(), False), (Observed(), ELBO(), False), (AEVB(), Fading(), False),
], ids=repr)  # fmt: skip
def test_steps_are_recorded_where_every_piece_says_that_they_can(solver, objective, can):
    problem = replace(make_problem(objective=objective, network=Module(SmallNet)), n_rows=9)
    assert solver.can_be_recorded(start(solver, problem, make_params(problem))) is can
