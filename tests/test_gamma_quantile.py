"""Quantiles of gamma distributions against scipy, and their derivatives against differences."""

import numpy as np
import torch
from scipy import special, stats

from skvae._gamma_quantile import gamma_quantile, log_gamma_quantile

F64 = torch.float64


def test_gamma_quantile_is_that_of_scipy():
    eps = torch.linspace(-7, 7, 57, dtype=F64)
    a = torch.tensor([0.2, 0.5, 1.0, 3.0, 40.0, 1000.0], dtype=F64)[:, None]
    z = gamma_quantile(eps, a).numpy()
    eps, a = eps.numpy(), a.numpy()
    lower, upper = special.gammaincinv(a, stats.norm.cdf(eps)), special.gammainccinv(a, stats.norm.sf(eps))
    np.testing.assert_allclose(z, np.where(eps < 0, lower, upper), rtol=1e-9)


def test_log_of_the_gamma_quantile_where_no_float_holds_it():
    """Its tails are those of scipy, and those of the first term of the series where z underflows."""
    eps = torch.linspace(-6, 6, 61, dtype=F64)
    for a in (1e-3, 0.01, 0.03, 0.07):
        log_z = log_gamma_quantile(eps, torch.tensor(a, dtype=F64)).numpy()
        assert (np.diff(log_z) > 0).all()
        tiny, below = log_z < -30, eps.numpy() < 0
        np.testing.assert_allclose(log_z[tiny], ((stats.norm.logcdf(eps) + special.gammaln(a + 1)) / a)[tiny], rtol=1e-12)
        z = np.exp(log_z)
        lower, upper = ~tiny & below, ~tiny & ~below
        np.testing.assert_allclose(special.gammainc(a, z[lower]), stats.norm.cdf(eps[lower]), rtol=1e-10)
        np.testing.assert_allclose(special.gammaincc(a, z[upper]), stats.norm.sf(eps[upper]), rtol=1e-10)


def test_derivative_of_the_log_of_the_gamma_quantile_for_small_concentrations():
    eps = torch.linspace(-3, 3, 25, dtype=F64)
    a = torch.tensor([0.02, 0.05], dtype=F64)[:, None]
    leaf = a.expand(2, 25).clone().requires_grad_()
    log_gamma_quantile(eps, leaf).sum().backward()
    step = 1e-5 * a
    numeric = (log_gamma_quantile(eps, a + step) - log_gamma_quantile(eps, a - step)) / (2 * step)
    torch.testing.assert_close(leaf.grad, numeric, rtol=1e-5, atol=1e-6)


def test_derivative_of_the_gamma_quantile():
    eps = torch.linspace(-4, 4, 33, dtype=F64)
    a = torch.tensor([0.3, 1.0, 2.5, 60.0], dtype=F64)[:, None]
    leaf = a.expand(4, 33).clone().requires_grad_()
    gamma_quantile(eps, leaf).sum().backward()
    step = 1e-5 * a
    numeric = (gamma_quantile(eps, a + step) - gamma_quantile(eps, a - step)) / (2 * step)
    torch.testing.assert_close(leaf.grad, numeric, rtol=5e-6, atol=1e-12)
