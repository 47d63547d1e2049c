"""The step of AEVB: its gradient, its penalty, its weights, and the average of its iterates."""

import pytest
import torch

from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.optimizers import SGD, Adam
from skvae.posteriors import Normal
from skvae.priors import StandardNormal
from skvae.solvers import AEVB, Problem


def make_problem(alpha=0.0, optimizer=None, dtype=torch.float64):
    network = MLP((6,), activation="tanh")
    model = Model(Pieces(network, network, Normal(), StandardNormal(), Gaussian()), 4, 2, 0)
    problem = Problem(model, ELBO(), optimizer or SGD(), alpha, total_weight=50.0)
    params = model.init(dtype) + 0.1 * normal((model.layout.size,), generator(1, "p"), dtype)
    batch = Batch(normal((9, 4), generator(0, "rows"), dtype))
    return problem, params, batch, normal((1, 9, 2), generator(0, "noise"), dtype)


def objective_of(problem, flat, batch, noise):
    return problem.objective(problem.model, problem.model.unpack(flat), batch, noise)


def test_a_step_of_sgd_follows_the_gradient_of_the_mean():
    problem, params, batch, noise = make_problem()
    flat = params.clone().requires_grad_()
    (-objective_of(problem, flat, batch, noise).mean()).backward()
    solver = AEVB(averaging=0.0)
    state = solver.init(problem, params.clone())
    solver.step(problem, state, batch, noise, 0.1, 1.0)
    torch.testing.assert_close(state.params, params - 0.1 * flat.grad)


def test_the_gradient_vector_is_that_of_a_sliced_vector_for_every_objective_weight():
    problem, params, batch, noise = make_problem()
    weight = torch.linspace(0.2, 1.8, 9, dtype=torch.float64)
    flat = params.clone().requires_grad_()
    (-(objective_of(problem, flat, batch, noise) * weight).mean()).backward()
    solver = AEVB()
    state = solver.init(problem, params.clone())
    solver.step(problem, state, Batch(batch.x, weight), noise, 0.1, 1.0)
    torch.testing.assert_close(state.grad, flat.grad)


def test_alpha_is_a_gaussian_prior_on_the_weight_matrices_alone():
    solver = AEVB()
    gradients = []
    for alpha in (0.0, 3.0):
        problem, params, batch, noise = make_problem(alpha)
        state = solver.init(problem, params.clone())
        solver.step(problem, state, batch, noise, 0.1, 1.0)
        gradients.append(state.grad.clone())
    views = problem.model.layout.views(gradients[1] - gradients[0])
    for (piece, name), difference in views.items():
        value = problem.model.layout.views(params)[piece, name]
        expected = 3.0 / 50.0 * value if name.startswith(("weight", "skip")) else torch.zeros_like(value)
        torch.testing.assert_close(difference, expected, atol=1e-12, rtol=1e-9)


def test_the_result_is_a_running_average_that_forgets_its_beginning():
    problem, params, batch, noise = make_problem(optimizer=Adam())
    solver = AEVB(averaging=0.5)
    state = solver.init(problem, params.clone())
    average = params.clone()
    for t in range(1, 30):
        solver.step(problem, state, batch, noise, 0.05, 1.0)
        average = average + (1 - min(0.5, t / (t + 9))) * (state.params - average)
        torch.testing.assert_close(solver.result(state), average)
    assert AEVB(averaging=0.0).result(state) is state.params


def test_starting_over_empties_the_memory():
    problem, params, batch, noise = make_problem(optimizer=Adam())
    solver = AEVB()
    state = solver.init(problem, params.clone())
    for _ in range(5):
        solver.step(problem, state, batch, noise, 0.05, 1.0)
    solver.start_over(problem, state, params)
    fresh = solver.init(problem, params.clone())
    torch.testing.assert_close(state.params, params)
    assert state.slots.keys() == fresh.slots.keys()
    for name, value in fresh.slots.items():
        torch.testing.assert_close(state.slots[name], value)
    solver.step(problem, state, batch, noise, 0.05, 1.0)
    solver.step(problem, fresh, batch, noise, 0.05, 1.0)
    torch.testing.assert_close(state.params, fresh.params)


def test_the_memory_of_another_optimizer_is_not_used():
    problem, params, batch, noise = make_problem(optimizer=SGD(momentum=0.9))
    foreign = Adam().init(params)
    state = AEVB().init(problem, params.clone(), foreign)
    AEVB().step(problem, state, batch, noise, 0.1, 1.0)
    assert "velocity" in state.slots


def test_leaves_share_the_storage_of_the_vectors():
    problem, params, _, _ = make_problem()
    state = AEVB().init(problem, params)
    state.params.fill_(2.0)
    assert all((leaf == 2.0).all() for named in state.leaves.values() for leaf in named.values())
    state.grad.fill_(3.0)
    assert all((leaf.grad == 3.0).all() for named in state.leaves.values() for leaf in named.values())


@pytest.mark.parametrize("averaging", [-0.1, 1.0, "yes"])
def test_impossible_averaging_is_refused(averaging):
    with pytest.raises(ValueError, match="The 'averaging' parameter of AEVB"):
        AEVB(averaging=averaging).validate()
