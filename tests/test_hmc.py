"""Hamiltonian Monte Carlo against distributions whose moments are known."""

import pytest
import torch

from skvae._hmc import leapfrog, transition, value_and_slope
from skvae._random import generator, normal, uniform

F64 = torch.float64


def gaussian(covariance):
    """Return the log density of N(0, covariance)."""
    precision = torch.linalg.inv(covariance)
    return lambda z: -0.5 * ((z @ precision) * z).sum(-1)


COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 2.0]], dtype=F64)


def test_slope_is_the_gradient():
    z = normal((5, 3), generator(0), F64)
    value, slope = value_and_slope(gaussian(COVARIANCE), z)
    torch.testing.assert_close(slope, -z @ torch.linalg.inv(COVARIANCE))
    assert value.shape == (5,)
    assert not value.requires_grad


def test_a_density_that_is_the_same_everywhere_has_no_slope():
    z = normal((3, 2), generator(0, "z"), torch.float64)
    value, slope = value_and_slope(lambda z: torch.zeros(3, dtype=torch.float64), z)
    assert value.tolist() == [0.0] * 3 and slope.tolist() == [[0.0] * 2] * 3


def test_paths_are_reversible():
    log_density = gaussian(COVARIANCE)
    z, momentum = (normal((7, 3), generator(0, name), F64) for name in ("z", "v"))
    step = torch.full((7,), 0.2, dtype=F64)
    there, momentum_there, _, _ = leapfrog(log_density, z, momentum, step, 12)
    back, momentum_back, _, _ = leapfrog(log_density, there, -momentum_there, step, 12)
    assert (there - z).abs().min() > 1e-3
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(momentum_back, -momentum, rtol=0, atol=1e-10)


def test_energy_error_is_of_second_order():
    log_density = gaussian(COVARIANCE)
    z, momentum = (normal((200, 3), generator(0, name), F64) for name in ("z", "v"))

    def error(step, n_steps):
        _, momentum_there, here, there = leapfrog(log_density, z, momentum, torch.full((200,), step, dtype=F64), n_steps)
        return float((there - here + 0.5 * (momentum.square() - momentum_there.square()).sum(-1)).abs().mean())

    assert error(0.02, 10) / error(0.01, 20) == pytest.approx(4, rel=0.05)


def visited(z, step_size, n_moves, n_leapfrog, n_streams, seed):
    """Return where chains come from z by moves with random numbers of their own, or of all, and the probabilities of moves."""
    stream, steps = generator(seed), torch.full((len(z),), step_size, dtype=F64)
    places, probabilities = [], []
    for _ in range(n_moves):
        momentum, level = normal((n_streams, 3), stream, F64), uniform((n_streams,), stream, F64)
        z, probability = transition(gaussian(COVARIANCE), z, steps, n_leapfrog, momentum, level)
        places.append(z)
        probabilities.append(probability)
    return torch.stack(places), torch.stack(probabilities)


def test_chains_have_the_moments_of_the_density_and_move_as_often_as_they_say():
    """With steps so long that three moves in ten are refused, without which a variance would be 0.14 larger."""
    start = torch.full((400, 3), 3.0, dtype=F64)
    places, probabilities = (of_moves[100:] for of_moves in visited(start, 0.5, 400, 4, 400, seed=1))
    assert 0.6 < probabilities.mean() < 0.8
    moves = (places[1:] != places[:-1]).any(-1).double()
    assert float(moves.mean()) == pytest.approx(float(probabilities[1:].mean()), abs=0.005)
    z = places.flatten(0, 1)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=0.03)
    torch.testing.assert_close(z.mT @ z / len(z), COVARIANCE, rtol=0, atol=0.04)


def test_probability_of_a_move_is_that_of_the_energy_it_gains():
    z, momentum = (normal((50, 3), generator(0, name), F64) for name in ("z", "v"))
    step, level = torch.full((50,), 0.3, dtype=F64), uniform((50,), generator(3), F64)
    there, probability = transition(gaussian(COVARIANCE), z, step, 10, momentum, level)
    end, momentum_there, _, _ = leapfrog(gaussian(COVARIANCE), z, momentum, step, 10)
    energy, energy_there = (
        0.5 * v.square().sum(-1) - gaussian(COVARIANCE)(at) for at, v in ((z, momentum), (end, momentum_there))
    )
    torch.testing.assert_close(probability, (energy - energy_there).exp().clamp(max=1))
    assert 0 < (level >= probability).sum() < 50
    torch.testing.assert_close(there, torch.where((level < probability)[:, None], end, z), rtol=0, atol=0)


def test_chains_that_share_numbers_do_not_look_at_each_other():
    start = normal((4, 3), generator(0), F64)
    all_, one = (visited(z, 0.3, 15, 4, 1, seed=2)[0] for z in (start, start[2:3]))
    torch.testing.assert_close(all_[:, 2:3], one, rtol=0, atol=1e-12)


def test_a_step_that_is_too_long_is_refused():
    z = normal((6, 3), generator(0), F64)
    there, probability = transition(
        gaussian(COVARIANCE), z, torch.full((6,), 1e200, dtype=F64), 5, torch.ones_like(z), torch.zeros(6, dtype=F64)
    )
    torch.testing.assert_close(there, z, rtol=0, atol=0)
    assert (probability == 0).all()
