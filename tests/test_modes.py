"""Modes of p(z|x), against the exact posteriors of linear models, and slopes of others."""

import numpy as np
import pytest
import torch
from test_conditional import CENTRE, LOADINGS, SCALE, linear_model, mixed_model, rows

from skvae._batch import Batch
from skvae._modes import _inverse, climb
from skvae.posteriors import Normal
from skvae.priors import MixtureOfNormals, StandardNormal


def exact_posterior(row):
    """Return mean and covariance of p(z|x) under the linear model."""
    known = ~np.isnan(row)
    to_latents = LOADINGS[:, known] / SCALE[known] ** 2
    covariance = np.linalg.inv(np.eye(2) + to_latents @ LOADINGS[:, known].T)
    return covariance @ to_latents @ (row - CENTRE)[known], covariance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_step_leads_to_the_posterior_of_a_linear_model(dtype):
    model, params = linear_model()
    params = {piece: {key: value.to(dtype) for key, value in named.items()} for piece, named in params.items()}
    X = rows()
    found = climb(model, params, Batch(torch.tensor(X, dtype=dtype)), torch.full((1, len(X), 2), 5.0, dtype=dtype), 1)
    for row, z, covariance in zip(X, found.z[0], found.covariance[0]):
        mean, exact = exact_posterior(row)
        np.testing.assert_allclose(z, mean, atol=0.02)
        np.testing.assert_allclose(covariance, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(3)], ids=repr)
def test_a_climb_ends_where_no_latent_nearby_is_more_probable(prior):
    model, params, x = mixed_model(Normal(), prior)
    found = climb(model, params, Batch(x), torch.zeros(2, len(x), 1, dtype=torch.float64), 30)

    def log_joint(z):
        return model.log_px(params, Batch(x), z) + model.log_pz(params, z)

    for shift in (-0.1, 0.1):
        assert (log_joint(found.z + shift) < found.value + 1e-3).all()
    torch.testing.assert_close(found.value, log_joint(found.z))


def test_a_climb_never_leads_down():
    model, params, x = mixed_model(Normal(), StandardNormal(), seed=1)
    start = torch.linspace(-3, 3, 12, dtype=torch.float64)[None, :, None]
    before, after = (climb(model, params, Batch(x), start, n).value for n in (0, 3))
    assert (after >= before).all()
    assert (after > before).any()


def test_covariances_of_very_unequal_curvatures_have_factors():
    turns, _ = torch.linalg.qr(torch.randn(200, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    curvatures = torch.where(torch.arange(10) < 5, 1.0, 1e12).to(torch.float64) * torch.linspace(1, 2, 10)
    covariance = _inverse((turns * curvatures) @ turns.mT)
    assert (torch.linalg.cholesky_ex(1.2 * covariance + 1e-9 * torch.eye(10)).info == 0).all()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_covariances_have_the_axes_of_the_precision_and_no_flat_ones(k):
    A = torch.randn(40, 3, k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    precision = A @ A.mT + 0.3 * torch.eye(k)
    precision[:10] = A[:10] + A[:10].mT  # of either sign
    precision[10] *= 1e-3
    values, axes = np.linalg.eigh(precision.numpy())
    exact = (axes / np.maximum(np.abs(values), 0.25)[..., None, :]) @ axes.swapaxes(-1, -2)
    np.testing.assert_allclose(_inverse(precision), exact, rtol=1e-9, atol=1e-12)
