"""Likelihoods of numbers and counts against the distributions of scipy: density, mean, sampler, slopes, extremes, start."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import cells_for, table_for
from scipy import stats

from skvae import VAETransformer
from skvae._random import generator, normal
from skvae.likelihoods import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from skvae.networks import MLP

F64 = torch.float64
D = 3


def positive(raw, floor):
    return floor + np.exp(2 * raw)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Inflated:
    """A distribution of counts of scipy with additional zeros."""

    def __init__(self, counts, logit):
        self.counts, self.share = counts, sigmoid(logit)

    def pmf(self, x):
        return self.share * (x == 0) + (1 - self.share) * self.counts.pmf(x)

    def logpmf(self, x):
        return np.log(self.pmf(x))

    def mean(self):
        return (1 - self.share) * self.counts.mean()


def poisson(params, log_mean):
    return stats.poisson(np.exp(log_mean))


def negative_binomial(params, log_mean):
    shape = 1 / positive(params["dispersion"], 1e-6)
    return stats.nbinom(shape, shape / (shape + np.exp(log_mean)))


def inflated(counts, params, log_mean, logit):
    return Inflated(counts(params, log_mean), logit)


# likelihood, and what scipy makes of its parameters and of the decoder's outputs, those of one kind after the other
ORACLES = [
    (Poisson(), poisson),
    (NegativeBinomial(), negative_binomial),
    (ZeroInflatedPoisson(), partial(inflated, poisson)),
    (ZeroInflatedNegativeBinomial(), partial(inflated, negative_binomial)),
]
LIKELIHOODS = [likelihood for likelihood, _ in ORACLES]
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
every_oracle = pytest.mark.parametrize("likelihood, oracle", [pytest.param(*both, id=repr(both[0])) for both in ORACLES])


def random_case(likelihood, n, dtype=F64, scale=1.0):
    """Return parameters and decoder outputs."""
    eta = scale * normal((n, likelihood.n_outputs(D)), generator(0, "eta"), dtype)
    params = {k: 0.5 * normal(shape, generator(1, k), dtype) for k, shape in likelihood.shapes(D).items()}
    return params, eta


def distribution(oracle, params, eta):
    parts = [part.numpy() for part in eta.split(D, -1)]
    return oracle({name: value.numpy() for name, value in params.items()}, *parts)


def log_density(distribution, x):
    return getattr(distribution, "logpmf" if hasattr(distribution, "logpmf") else "logpdf")(x.numpy())


@every_oracle
def test_density_and_mean_are_those_of_scipy(likelihood, oracle):
    params, eta = random_case(likelihood, 200)
    x = cells_for(likelihood, (200, D))
    expected = distribution(oracle, params, eta)
    np.testing.assert_allclose(likelihood.log_prob(params, eta, x), log_density(expected, x), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(likelihood.mean(params, eta), expected.mean(), rtol=1e-9)


@every_oracle
def test_sampler_draws_from_the_distribution_of_scipy(likelihood, oracle):
    params, eta = random_case(likelihood, 1)
    sample = likelihood.sample(params, eta.expand(20_000, -1), generator(0, "sample"))
    assert sample.shape == (20_000, D) and sample.dtype == F64
    expected = distribution(oracle, params, eta)
    for j in range(D):
        assert p_value(sample[:, j].numpy(), expected, j) > 1e-4


def p_value(sample, expected, j):
    """Return the probability of a sample that fits worse to column j of a distribution of shape (1, D)."""
    if hasattr(expected, "cdf") and not hasattr(expected, "pmf"):
        return stats.kstest(sample, lambda x: expected.cdf(x[:, None])[:, j]).pvalue
    likely = np.arange(200)
    probs = expected.pmf(likely[:, None])[:, j]
    kept = probs * len(sample) > 5
    counts = np.bincount(sample.astype(int), minlength=200)[:200]
    observed, wanted = (np.append(v[kept], total - v[kept].sum()) for v, total in ((counts, len(sample)), (probs, 1.0)))
    if wanted[-1] * len(sample) < 5:
        observed, wanted = observed[:-1], wanted[:-1]
    return stats.chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue


@every_likelihood
def test_gradients_are_right(likelihood):
    params, eta = random_case(likelihood, 5)
    x = cells_for(likelihood, (5, D))
    values = [value.requires_grad_() for value in params.values()]
    assert torch.autograd.gradcheck(
        lambda eta, *values: likelihood.log_prob(dict(zip(params, values)), eta, x), (eta.requires_grad_(), *values)
    )


@every_likelihood
@pytest.mark.parametrize("far", [50.0, 1e3])
def test_outputs_far_away_give_finite_densities_and_slopes(likelihood, far):
    params, eta = random_case(likelihood, 64, torch.float32)
    eta = (far * eta.sign()).requires_grad_()
    x = cells_for(likelihood, (64, D), dtype=torch.float32)
    params = {name: value.requires_grad_() for name, value in params.items()}
    log_prob = likelihood.log_prob(params, eta, x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert all(v.grad.isfinite().all() and v.grad.square().isfinite().all() for v in (eta, *params.values()))
    with torch.no_grad():
        by_eta, by_params = likelihood.derivative(params, eta.detach().clone(), x, torch.ones((64, 1)))
        torch.testing.assert_close(by_eta, eta.grad, rtol=1e-3, atol=1e-3)
    assert by_eta.isfinite().all() and all(slope.float().isfinite().all() for slope in by_params.values())
    assert likelihood.mean(params, eta).isfinite().all()


@every_likelihood
def test_rows_that_only_fill_up_leave_the_slopes_finite(likelihood):
    """Batches are filled up with rows of zeros and weight zero, whatever the support."""
    params, eta = random_case(likelihood, 4, torch.float32)
    by_eta, by_params = likelihood.derivative(params, eta, torch.zeros((4, D)), torch.zeros((4, 1)))
    assert (by_eta == 0).all() and all((slope == 0).all() for slope in by_params.values())


@every_likelihood
def test_training_starts_near_the_data(likelihood):
    X = table_for(likelihood, n_rows=500) * (1 if not likelihood.is_whole else np.array([1, 10, 100, 0]))
    loc, scale = units_of(likelihood, X)
    x = torch.tensor((X - loc) / scale, dtype=F64)
    params = {name: value.double() for name, value in likelihood.init(4).items()}
    holes = torch.tensor(np.random.default_rng(0).random(X.shape) < 0.1)
    outputs = likelihood.start(params, torch.where(holes, torch.nan, x))
    assert all(value.isfinite().all() for value in params.values())
    outputs = torch.zeros(likelihood.n_outputs(4), dtype=F64) if outputs is None else outputs
    assert outputs.shape == (likelihood.n_outputs(4),) and outputs.isfinite().all()
    mean = likelihood.mean(params, outputs[None])[0]
    np.testing.assert_allclose(mean, x.mean(0), rtol=0.25, atol=0.1)
    other = {name: value.double() for name, value in likelihood.init(4).items()}
    at_zero = likelihood.log_prob(other, torch.zeros_like(outputs)[None], x).mean(0)
    assert (likelihood.log_prob(params, outputs[None], x).mean(0) >= at_zero - 0.1).all()


def units_of(likelihood, X):
    from skvae._table import column_statistics

    return likelihood.units(column_statistics(X, np.arange(len(X)), np.ones(len(X))))


def fit(likelihood, X, **params):
    defaults = {"max_iter": 60, "hidden_layer_sizes": (8,), "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(2, likelihood=likelihood, **{**defaults, **params}).fit(X)


@every_likelihood
def test_closed_forms_and_autograd_learn_the_same(likelihood):
    class Plain(MLP):
        pass

    X = table_for(likelihood, n_rows=60)
    by_hand, by_autograd = (
        fit(likelihood, X, encoder=encoder, dtype="float64", max_iter=20) for encoder in (MLP((8,)), Plain((8,)))
    )
    np.testing.assert_allclose(by_autograd._fitted.params, by_hand._fitted.params, rtol=1e-6, atol=1e-8)


@every_likelihood
def test_training_finds_what_columns_share(likelihood):
    X = table_for(likelihood, n_rows=400, seed=1)
    together = fit(likelihood, X, learning_rate_init=0.01)
    rng = np.random.default_rng(0)
    shuffled = np.column_stack([rng.permutation(column) for column in X.T])
    apart = fit(likelihood, shuffled, learning_rate_init=0.01)
    assert together.score(X) > apart.score(shuffled) + 0.1


# --- counts --------------------------------------------------------------------------------------------------------------

COUNTS = [likelihood for likelihood in LIKELIHOODS if likelihood.is_whole]


@every_oracle
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_counts_keep_their_digits(likelihood, oracle, dtype):
    if not likelihood.is_whole:
        pytest.skip("of numbers")
    x = torch.tensor([0.0, 1.0, 2.0, 17.0, 1e3, 1e4, 1e5]).to(dtype)[:, None].expand(-1, D)
    params, eta = random_case(likelihood, len(x), dtype, scale=0.01)
    eta[:, :D] += x.clamp(min=1).log()
    params = {name: value - 5 for name, value in params.items()}
    exact = log_density(distribution(oracle, {k: v.double() for k, v in params.items()}, eta.double()), x.double())
    atol = 1e-8 if dtype == F64 else 2e-3
    np.testing.assert_allclose(likelihood.log_prob(params, eta, x).double(), exact, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("likelihood", COUNTS, ids=repr)
@pytest.mark.parametrize("bad", [0.5, -1.0])
def test_what_is_no_count_is_refused_with_column_and_value(likelihood, bad):
    X = table_for(likelihood)
    X[3, 2] = bad
    with pytest.raises(ValueError, match=rf"1 column.*\[0, inf\] or no whole numbers.*\['x2'\]; for example {bad:g} in 'x2'"):
        fit(likelihood, X)


def test_negative_binomial_without_dispersion_is_the_poisson():
    params = {"dispersion": torch.full((1, D), -50.0, dtype=F64)}
    _, eta = random_case(Poisson(), 50)
    x = cells_for(Poisson(), (50, D))
    torch.testing.assert_close(
        NegativeBinomial().log_prob(params, eta, x), Poisson().log_prob({}, eta, x), rtol=1e-4, atol=1e-4
    )


def test_dispersion_is_learnt():
    rng = np.random.default_rng(0)
    X = rng.poisson(20 * rng.gamma(4.0, 0.25, size=(3000, 2)))
    vae = VAETransformer(1, likelihood="negative_binomial", max_iter=40, learning_rate="cosine", random_state=0).fit(X)
    exact = stats.nbinom(4, 4 / 24).logpmf(X).sum(1).mean()
    assert abs(vae.score(X) - exact) < 0.03


def test_encoder_reads_logarithms_of_counts_and_zero_for_a_missing_one():
    x = torch.tensor([[0.0, math.e**3 - 1, torch.nan]])
    torch.testing.assert_close(Poisson().inputs(x), torch.tensor([[0.0, 3.0, 0.0]]))
