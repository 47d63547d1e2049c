"""Families of distributions against scipy, torch and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae import _families as families
from skvae._random import generator, normal, paired_normal

F64 = torch.float64

# family, parameters, the same distribution in scipy
CASES = [
    (families.Laplace(), (0.3, 1.7), stats.laplace(0.3, 1.7)),
    (families.Logistic(), (-0.5, 0.6), stats.logistic(-0.5, 0.6)),
    (families.StudentT(5.0), (0.2, 1.4), stats.t(5.0, 0.2, 1.4)),
    (families.Uniform(), (0.5, 2.0), stats.uniform(-1.5, 4.0)),
    (families.Triangular(), (0.5, 2.0), stats.triang(0.5, -1.5, 4.0)),
    (families.Cauchy(), (0.5, 2.0), stats.cauchy(0.5, 2.0)),
    (families.Gumbel(), (0.5, 2.0), stats.gumbel_r(0.5, 2.0)),
    (families.Exponential(), (1.7,), stats.expon(scale=1.7)),
    (families.Rayleigh(), (1.7,), stats.rayleigh(scale=1.7)),
    (families.Weibull(), (1.7, 0.8), stats.weibull_min(0.8, scale=1.7)),
    (families.Weibull(), (1.7, 2.5), stats.weibull_min(2.5, scale=1.7)),
    (families.Pareto(), (2.6,), stats.pareto(2.6)),
    (families.LogNormal(), (0.3, 0.7), stats.lognorm(0.7, scale=math.exp(0.3))),
    (families.Gamma(), (0.4, 1.3), stats.gamma(0.4, scale=1 / 1.3)),
    (families.Gamma(), (5.0, 2.0), stats.gamma(5.0, scale=0.5)),
    (families.ChiSquared(), (3.4,), stats.chi2(3.4)),
    (families.Beta(), (0.7, 2.3), stats.beta(0.7, 2.3)),
]
NAMES = [f"{type(family).__name__}{params}" for family, params, _ in CASES]
each_case = pytest.mark.parametrize("family, params, oracle", CASES, ids=NAMES)


def tensors(params):
    return [torch.tensor(p, dtype=F64) for p in params]


def draws(family, params, n=4000):
    return family.draw(normal((n, family.n_noise), generator(0, type(family).__name__), F64), *tensors(params))[:, 0]


@each_case
def test_draws_follow_the_distribution(family, params, oracle):
    z = draws(family, params).numpy()
    assert stats.kstest(z, oracle.cdf).pvalue > 1e-3
    assert stats.kstest(1.2 * z, oracle.cdf).pvalue < 1e-3


def test_standard_deviations_of_narrow_weibulls_survive_single_precision():
    concentration = torch.tensor([2.0, 50.0, 1000.0])
    found = families.Weibull().std(torch.tensor(1.7), concentration)
    expected = [stats.weibull_min(c, scale=1.7).std() for c in concentration.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=0)


@each_case
def test_density_moments_and_entropy_are_those_of_scipy(family, params, oracle):
    z = torch.tensor(oracle.ppf(np.linspace(0.001, 0.999, 41)))
    torch.testing.assert_close(family.log_prob(z, *tensors(params)), torch.tensor(oracle.logpdf(z.numpy())))
    mean = oracle.median() if isinstance(family, families.Cauchy) else oracle.mean()
    assert float(family.mean(*tensors(params))) == pytest.approx(mean, rel=1e-9)
    if not isinstance(family, families.Cauchy):
        assert float(family.std(*tensors(params))) == pytest.approx(oracle.std(), rel=1e-9)
    assert float(family.entropy(*tensors(params))) == pytest.approx(float(oracle.entropy()), rel=1e-6, abs=1e-9)


@each_case
def test_quantiles_are_those_of_scipy(family, params, oracle):
    u = np.array([1e-6, 0.001, 0.1, 0.5, 0.8, 0.999])
    np.testing.assert_allclose(family.quantile(torch.tensor(u), *tensors(params)), oracle.ppf(u), rtol=1e-9)


@each_case
def test_noise_far_out_gives_finite_draws(family, params, oracle):
    noise = torch.tensor([[-8.0], [0.0], [8.0]]).expand(3, family.n_noise)
    z = family.draw(noise, *(p.float() for p in tensors(params)))
    assert z.isfinite().all()
    assert not family.log_prob(z, *(p.float() for p in tensors(params))).isnan().any()


@each_case
def test_nothing_lies_outside_the_support(family, params, oracle):
    low, high, _ = family.support
    outside = [x for x in (low - 1, high + 1) if math.isfinite(x)]
    z = torch.tensor(outside, dtype=F64)
    assert (family.log_prob(z, *tensors(params)) == -math.inf).all()
    z = draws(family, params)
    assert ((z > low) & (z < high)).all()


@each_case
def test_gradient_of_the_mean_is_that_of_its_closed_form(family, params, oracle):
    if isinstance(family, families.Cauchy):
        pytest.skip("has no mean")
    leaves = [p.clone().requires_grad_() for p in tensors(params)]
    if family.n_noise == 1:  # the quantiles of a fine grid, whose mean is an integral
        grid = torch.special.ndtri((torch.arange(200_000, dtype=F64) + 0.5) / 200_000)[:, None]
    else:
        grid = paired_normal(200_000, family.n_noise, generator(1), F64)[:, 0]
    z = family.draw(grid, *leaves).mean()
    sampled = torch.autograd.grad(z, leaves, allow_unused=True)
    exact = torch.autograd.grad(family.mean(*leaves), leaves, allow_unused=True)
    for one, other in zip(sampled, exact, strict=True):
        one, other = (torch.zeros((), dtype=F64) if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def same_family(family, params):
    """Return another member of the family."""
    return tuple(p * 1.3 + (0.2 if kind == "real" else 0.1) for p, kind in zip(params, family.parameters.values()))


def kl_by_quadrature(q, p):
    """Return KL(q || p) of distributions of scipy, an integral over the quantiles of q."""
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    z = q.ppf(u)
    return np.mean(q.logpdf(z) - p.logpdf(z))


@each_case
def test_kl_to_the_standard_normal(family, params, oracle):
    kl = family.kl_to_normal(*tensors(params))
    if isinstance(family, families.Cauchy | families.Pareto):
        assert kl is None
    else:
        assert float(kl) == pytest.approx(kl_by_quadrature(oracle, stats.norm()), rel=2e-3, abs=1e-4)


@each_case
def test_kl_within_the_family(family, params, oracle):
    other = same_family(family, params)
    kl = family.kl_within(tuple(tensors(params)), tuple(tensors(other)))
    if isinstance(family, families.Logistic | families.StudentT | families.Uniform | families.Triangular):
        assert kl is None
        return
    z = torch.tensor(oracle.ppf((np.arange(2_000_000) + 0.5) / 2_000_000))
    integral = (family.log_prob(z, *tensors(params)) - family.log_prob(z, *tensors(other))).mean()
    torch.testing.assert_close(kl, integral, rtol=2e-3, atol=1e-5)
    assert float(family.kl_within(tuple(tensors(params)), tuple(tensors(params)))) == pytest.approx(0, abs=1e-12)


def test_laplace_against_normal_is_the_formula_of_the_appendix():
    loc, scale = torch.tensor(0.3, dtype=F64), torch.tensor(1.7, dtype=F64)
    formula = -math.log(2 * 1.7) - 1 + 0.5 * math.log(2 * math.pi) + 0.5 * (0.3**2 + 2 * 1.7**2)
    assert float(families.Laplace().kl_to_normal(loc, scale)) == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("a, b", [(0.01, 0.01), (0.02, 0.02), (0.01, 0.05)])
def test_sparse_beta_draws_have_the_right_mass_in_the_middle(a, b, dtype):
    """Both gammas may underflow, and equal shares of nothing would be a half."""
    params = [torch.tensor(p, dtype=dtype) for p in (a, b)]
    z = families.Beta().draw(normal((50_000, 2), generator(0), dtype), *params)[:, 0].numpy()
    assert z.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    for low, high in ((0.0, 0.01), (0.01, 0.4), (0.4, 0.6), (0.6, 0.99)):
        p = np.diff(stats.beta(a, b).cdf([low, high])).item()
        assert abs(np.mean((low < z) & (z < high)) - p) < 5 * np.sqrt(p / 50_000)
