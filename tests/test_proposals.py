"""Draws from mixtures of densities, against scipy."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from skvae._proposals import Component, normal_draws, total_log_mass
from skvae._random import generator, normal

F64 = torch.float64


def moments(k, n=3):
    """Return means and covariances of n rows."""
    root = normal((n, k, k), generator(k), F64)
    return normal((n, k), generator(k, "mean"), F64), root @ root.mT + 0.1 * torch.eye(k, dtype=F64)


@pytest.mark.parametrize("k", [1, 3, 8, 11])
def test_normal_draws_have_the_moments_and_the_density_of_a_wider_normal(k):
    mean, covariance = moments(k)
    drawn = normal_draws(mean, covariance, normal((20_000, 1, k), generator(0), F64), F64)
    z = drawn.z[:50]
    log_density = drawn.log_density(z)
    for i in range(len(mean)):
        oracle = multivariate_normal(mean[i].numpy(), 1.2 * covariance[i].numpy())
        np.testing.assert_allclose(log_density[:, i], np.atleast_1d(oracle.logpdf(z[:, i].numpy())), atol=1e-5)
        found = np.cov(drawn.z[:, i].numpy().T).reshape(k, k)
        np.testing.assert_allclose(found, 1.2 * covariance[i], atol=0.08 * float(covariance[i].diagonal().max()))


def test_a_row_without_a_covariance_leaves_the_others_theirs():
    g = generator(0, "covariance")
    mean, noise = normal((3, 2), g, torch.float64), normal((5, 3, 2), g, torch.float64)
    covariance = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    whole = normal_draws(mean, covariance, noise, torch.float64)
    covariance[1] = torch.nan
    found = normal_draws(mean, covariance, noise, torch.float64)
    torch.testing.assert_close(found.z[:, [0, 2]], whole.z[:, [0, 2]], rtol=0, atol=0)
    assert found.z.isfinite().all()


def test_mass_of_components_is_that_of_their_mixture_times_the_number_of_draws():
    mean, covariance = moments(2, n=1)
    few = normal_draws(mean, covariance, normal((3, 1, 2), generator(1), F64), F64)
    prior = Component(normal((5, 1, 2), generator(2), F64), None)
    z = normal((7, 1, 2), generator(3), F64)
    log_prior = -0.5 * z.square().sum(-1) - np.log(2 * np.pi)
    log_normal = multivariate_normal(mean[0].numpy(), 1.2 * covariance[0].numpy()).logpdf(z[:, 0].numpy())
    expected = logsumexp([log_normal + np.log(3), log_prior[:, 0].numpy() + np.log(5)], axis=0)
    np.testing.assert_allclose(total_log_mass([few, prior], z, log_prior)[:, 0], expected, atol=1e-6)
