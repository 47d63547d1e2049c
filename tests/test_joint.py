"""log p(x, z) as a density of z: its closed slopes against autograd."""

from functools import partial

import pytest
import torch
from conftest import LIKELIHOODS, cells_for
from test_kernels import F64, flat_params, make_model

from skvae._batch import Batch
from skvae._hmc import WithSlope, leapfrog, slope_of, value_and_slope
from skvae._joint import joint_density, log_joint, tempered
from skvae._kernels import ACTIVATIONS
from skvae._random import generator, normal
from skvae.likelihoods import Bernoulli, Categorical, Gaussian
from skvae.likelihoods._mixed import Given, PerColumn
from skvae.networks import MLP
from skvae.priors import Laplace, MixtureOfNormals, StandardNormal


def latents(*shape, seed=0):
    return normal(shape, generator(seed, "z"), F64)


def both_densities(model, x):
    """Return log p(x, z) as it is used, and without its own slope."""
    params, batch = model.unpack(flat_params(model)), Batch(x)
    return joint_density(model, params, batch), partial(log_joint, model, params, batch)


def assert_same_slopes(model, x, *shapes):
    density, plain = both_densities(model, x)
    assert isinstance(density, WithSlope)
    for _ in range(2):  # twice: nothing may be left over from one call to the next
        for shape in shapes:
            z = latents(*shape, len(x), model.n_components)
            value, slope = value_and_slope(plain, z)
            torch.testing.assert_close(value_and_slope(density, z), (value, slope), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(slope_of(density, z), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_slopes_are_those_of_autograd(likelihood):
    assert_same_slopes(make_model(likelihood), cells_for(likelihood, (6, 5), 0), (), (4,), (2, 3))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_slopes_in_single_precision(likelihood):
    model, x, z = make_model(likelihood), cells_for(likelihood, (6, 5), 0), latents(4, 6, 3)
    exact = slope_of(both_densities(model, x)[0], z)
    single = joint_density(model, model.unpack(flat_params(model).float()), Batch(x.float()))
    slope = slope_of(single, z.float())
    assert slope.dtype == torch.float32
    torch.testing.assert_close(slope.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", [{}, {"skip": False}, {"hidden": ()}, {"hidden": (9, 4)}], ids=repr)
def test_networks(activation, network):
    assert_same_slopes(make_model(Gaussian(), activation=activation, **network), cells_for(Gaussian(), (6, 5), 0), (3,))


def test_mixture_as_prior():
    assert_same_slopes(make_model(Gaussian(), prior=MixtureOfNormals(4)), cells_for(Gaussian(), (6, 5), 0), (), (3,))


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(4)], ids=repr)
def test_conditions_and_missing_cells(prior):
    likelihood = PerColumn((Gaussian(), Given(Categorical(4), 1), Bernoulli()), (2, 1, 2), (0.0,) * 5, (1, 3))
    x = torch.cat([cells_for(kind, (6, d)) for kind, d in ((Gaussian(), 2), (Categorical(4), 1), (Bernoulli(), 2))], -1)
    x[2, [1, 3]] = torch.nan
    assert_same_slopes(make_model(likelihood, n_columns=5, prior=prior), x, (), (3,))


class OtherNetwork(MLP):
    """A network that may compute something else."""


@pytest.mark.parametrize("piece", [{"decoder": OtherNetwork()}, {"prior": Laplace()}], ids=repr)
def test_what_has_no_closed_form_goes_by_autograd(piece):
    density, _ = both_densities(make_model(Gaussian(), **piece), cells_for(Gaussian(), (6, 5), 0))
    assert not isinstance(density, WithSlope)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prior", [None, Laplace()], ids=["closed", "autograd"])
def test_tempered_densities(level, prior):
    model = make_model(Gaussian(), prior=prior)
    density, plain = both_densities(model, cells_for(Gaussian(), (6, 5), 0))
    scale, z = latents(6, 3, seed=1).exp(), latents(2, 6, 3)

    def log_start(z):
        return -(z**4).sum(-1)

    def expected(u):
        return level * plain(u * scale) + (1 - level) * log_start(u * scale)

    at_level = tempered(density, log_start, level, scale)
    value, slope = value_and_slope(expected, z)
    torch.testing.assert_close(at_level(z), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope_of(at_level, z), slope, rtol=1e-12, atol=1e-12)


def test_paths_are_those_of_autograd():
    density, plain = both_densities(make_model(Bernoulli()), cells_for(Bernoulli(), (6, 5), 0))
    z, momentum, step = latents(4, 6, 3), latents(4, 6, 3, seed=1), torch.full((4, 6), 0.1, dtype=F64)
    for n_steps in (1, 7):
        one, other = (leapfrog(function, z, momentum, step, n_steps) for function in (density, plain))
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
