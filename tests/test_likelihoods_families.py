"""Likelihoods of numbers and counts against the distributions of scipy: density, mean, sampler, slopes, extremes, start."""

import math
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from conftest import cells_for, table_for
from scipy import stats
from sklearn.model_selection import GridSearchCV

from skvae import VAETransformer, fused_fits
from skvae._random import generator, normal
from skvae.likelihoods import (
    Beta,
    Categorical,
    ContinuousBernoulli,
    Gamma,
    Laplace,
    LogNormal,
    NegativeBinomial,
    NormalMixture,
    Ordinal,
    Poisson,
    StudentT,
    TruncatedNormal,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from skvae.likelihoods._mixture import _standing_out, fit_mixtures
from skvae.likelihoods._numerics import raw_of
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


class Mixture:
    """A mixture of normal distributions, each array (..., modes)."""

    def __init__(self, weight, mean, scale):
        self.weight, self.parts = weight, stats.norm(mean, scale)

    def logpdf(self, x):
        return np.log((self.weight * self.parts.pdf(x[..., None])).sum(-1))

    def cdf(self, x):
        return (self.weight * self.parts.cdf(x[..., None])).sum(-1)

    def mean(self):
        return (self.weight * self.parts.mean()).sum(-1)


def student_t(params, loc, df=None):
    df = 1 + 1 / positive(params["tail"], 1e-6) if df is None else df
    return stats.t(df, loc, positive(params["scale"], 0.01))


def laplace(params, loc):
    return stats.laplace(loc, positive(params["scale"], 0.01))


def mixture(params, *outputs):
    logit, shift = (np.stack(outputs, 1).reshape(len(outputs[0]), 2, D, 3)[:, i] for i in range(2))
    centre, reach = (params[name].reshape(D, 3) for name in ("centre", "log_reach"))
    mean = centre + np.exp(reach) * shift
    weight = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    return Mixture(weight, mean, positive(params["scale"], 0.01).reshape(D, 3))


def log_normal(params, mean):
    return stats.lognorm(positive(params["scale"], 0.01), scale=np.exp(mean))


def gamma(params, log_mean):
    shape = positive(params["variation"], 0.01) ** -2
    return stats.gamma(shape, scale=np.exp(log_mean) / shape)


def beta(params, log_odds):
    precision = 1 / positive(params["spread"], 1e-4)
    return stats.beta(sigmoid(log_odds) * precision, sigmoid(-log_odds) * precision)


class Exponential:
    """An exponential density on [0, 1], of any slope but zero."""

    def __init__(self, slope):
        self.falls, size = slope < 0, np.abs(slope)
        self.falling = stats.truncexpon(size, scale=1 / size)

    def logpdf(self, x):
        return self.falling.logpdf(np.where(self.falls, x, 1 - x))

    def cdf(self, x):
        return np.where(self.falls, self.falling.cdf(x), 1 - self.falling.cdf(1 - x))

    def mean(self):
        return np.where(self.falls, self.falling.mean(), 1 - self.falling.mean())


def truncated_normal(params, loc, low, high):
    scale = positive(params["scale"], 0.01)
    return stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)


# likelihood, and what scipy makes of its parameters and of the decoder's outputs, those of one kind after the other
ORACLES = [
    (Poisson(), poisson),
    (NegativeBinomial(), negative_binomial),
    (ZeroInflatedPoisson(), partial(inflated, poisson)),
    (ZeroInflatedNegativeBinomial(), partial(inflated, negative_binomial)),
    (StudentT(), student_t),
    (StudentT(3.5, standardize=False), partial(student_t, df=3.5)),
    (Laplace(), laplace),
    (NormalMixture(3), mixture),
    (LogNormal(), log_normal),
    (Gamma(), gamma),
    (Beta(), beta),
    (ContinuousBernoulli(), lambda params, slope: Exponential(slope)),
    (TruncatedNormal(ends=(-2.0, 2.5)), partial(truncated_normal, low=-2.0, high=2.5)),
    (TruncatedNormal((-0.7, 0.4), standardize=False), partial(truncated_normal, low=-0.7, high=0.4)),
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


def test_modes_far_from_a_cell_change_no_digit_of_its_density():
    params, eta = random_case(NormalMixture(3), 200, scale=40.0)
    x = 5.0 * normal((200, D), generator(2, "x"), F64)
    log_weight, mean, log_scale = NormalMixture(3)._parts(params, eta)
    spread = (x.mT[:, None] - mean[..., :200]) * (-log_scale).exp()
    joint = log_weight[..., :200] - 0.5 * spread.square() - log_scale - 0.5 * math.log(2 * math.pi)
    assert (joint.amax(-2) - joint.amin(-2) > 100).any()
    torch.testing.assert_close(NormalMixture(3).log_prob(params, eta, x), joint.logsumexp(-2).mT, rtol=1e-14, atol=0)


@pytest.mark.parametrize("far", [3e3, 1e5, 1e9])
def test_slopes_of_a_mixture_in_single_precision_are_those_of_double_precision_however_far_a_cell_is(far):
    params, eta = random_case(NormalMixture(3), 40)
    x, weight = torch.full((40, D), far, dtype=F64), torch.ones((40, 1), dtype=F64)
    single = {name: value.float() for name, value in params.items()}, *(values.float() for values in (eta, x, weight))
    (found, found_params), (exact, exact_params) = (
        NormalMixture(3).derivative(*case) for case in (single, (params, eta, x, weight))
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    for name, slope in exact_params.items():
        torch.testing.assert_close(found_params[name].double(), slope, rtol=1e-4, atol=1e-4)


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
    slopes = [value.grad for value in (eta, *params.values()) if value.grad is not None]
    assert all(slope.isfinite().all() and slope.square().isfinite().all() for slope in slopes)
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
    np.testing.assert_allclose(mean, x.mean(0), rtol=0.25, atol=0.25)
    other = {name: value.double() for name, value in likelihood.init(4).items()}
    at_zero = likelihood.log_prob(other, torch.zeros_like(outputs)[None], x).mean(0)
    assert (likelihood.log_prob(params, outputs[None], x).mean(0) >= at_zero - 0.1).all()


def units_of(likelihood, X):
    from skvae._statistics import column_statistics

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


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, Categorical(4), Ordinal(4)], ids=repr)
def test_alone_and_in_company_a_model_learns_the_same(likelihood):
    X, learnt = table_for(likelihood, n_rows=50, n_columns=5), []

    def note(estimator, X, y=None):
        learnt.append((estimator.n_components, estimator.lower_bound_, estimator._fitted.params))
        return 0.0

    model = VAETransformer(likelihood=likelihood, hidden_layer_sizes=(8,), max_iter=20, learning_rate="cosine", random_state=0)
    search = GridSearchCV(model, {"n_components": [1, 3]}, cv=2, scoring=note, refit=False, error_score="raise")
    search.fit(X)
    alone, learnt = sorted(learnt, key=lambda found: found[:2]), []
    with fused_fits():
        search.set_params(scoring=note).fit(X)
    for one, other in zip(alone, sorted(learnt, key=lambda found: found[:2]), strict=True):
        np.testing.assert_array_equal(other[-1], one[-1])


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, Categorical(4), Ordinal(4)], ids=repr)
def test_missing_cells_count_nothing_whatever_the_likelihood(likelihood):
    X = table_for(likelihood, n_rows=60)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    vae = fit(likelihood, X, max_iter=10)
    scores = vae.score_samples(X)
    assert np.isfinite(scores).all() and np.isfinite(vae.transform(X)).all()
    holes = np.full_like(X[:1], np.nan)
    np.testing.assert_allclose(vae.score_samples(holes), 0.0, atol=0.2)  # the bound lacks no more than the KL


@every_likelihood
def test_training_finds_what_columns_share(likelihood):
    X = table_for(likelihood, n_rows=400, seed=1)
    together = fit(likelihood, X, learning_rate_init=0.01)
    rng = np.random.default_rng(0)
    shuffled = np.column_stack([rng.permutation(column) for column in X.T])
    apart = fit(likelihood, shuffled, learning_rate_init=0.01)
    assert together.score(X) > apart.score(shuffled) + 0.1


def test_beta_draws_of_small_precision_lie_at_the_ends():
    likelihood, n = Beta(), 100_000
    for precision, log_odds in ((0.02, -2.0), (0.05, 0.0), (3.0, 1.0)):
        spread = raw_of(torch.tensor([[1 / precision]], dtype=torch.float64), likelihood.floor)
        assert likelihood._precision({"spread": spread}).item() == pytest.approx(precision)
        eta = torch.full((n, 1), log_odds, dtype=torch.float64)
        x = likelihood.sample({"spread": spread}, eta, generator(0, "beta")).numpy()[:, 0]
        mean = 1 / (1 + np.exp(-log_odds))
        exact = stats.beta(mean * precision, (1 - mean) * precision)
        for low, high in ((0.0, 0.01), (0.4, 0.6), (0.99, 1.0)):
            share = exact.cdf(high) - exact.cdf(low)
            assert ((x > low) & (x < high)).mean() == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5 + 1e-4)


# --- far outliers and several modes --------------------------------------------------------------------------------------


def test_student_t_with_many_degrees_of_freedom_is_normal():
    params = {"scale": torch.zeros(1, D, dtype=F64), "tail": torch.full((1, D), -50.0, dtype=F64)}
    _, eta = random_case(StudentT(), 50)
    x = cells_for(StudentT(), (50, D))
    expected = stats.norm(eta.numpy(), 1.01).logpdf(x.numpy())
    np.testing.assert_allclose(StudentT().log_prob(params, eta, x), expected, atol=1e-3)


def test_an_outlier_pulls_less_the_farther_it_is():
    params = {"scale": torch.zeros(1, 1), "tail": torch.zeros(1, 1)}
    slopes = [StudentT().derivative(params, torch.zeros(1, 1), torch.full((1, 1), x), torch.ones(1, 1))[0] for x in (2.0, 20.0)]
    assert slopes[0] > slopes[1] > 0


def test_degrees_of_freedom_and_scale_are_learnt():
    X = 5 + 3 * np.random.default_rng(0).standard_t(3.0, size=(4000, 2))
    vae = VAETransformer(1, likelihood="student_t", max_iter=60, learning_rate="cosine", random_state=0).fit(X)
    model, params = vae._fitted.model, vae._fitted.model.unpack(torch.tensor(vae._fitted.params))["likelihood"]
    np.testing.assert_allclose(model.likelihood.degrees_of_freedom(params), 3.0, rtol=0.25)
    np.testing.assert_allclose(vae.score(X), stats.t(3, 5, 3).logpdf(X).sum(1).mean(), atol=0.03)


@pytest.mark.parametrize("likelihood", [StudentT(), StudentT(6.0), Laplace()], ids=repr)
def test_variance_is_that_of_the_sampler(likelihood):
    params = {name: value.double() - 1.5 for name, value in likelihood.init(D).items()}
    sample = likelihood.sample(params, torch.zeros((400_000, D), dtype=F64), generator(0, "sample"))
    torch.testing.assert_close(likelihood.noise_variance(params, D)[0], sample.var(0), rtol=0.05, atol=0)


def test_variance_of_heavy_tails_is_infinite():
    params = {"scale": torch.zeros(1, D), "tail": torch.zeros(1, D)}  # two degrees of freedom
    assert StudentT(1.5).noise_variance({"scale": torch.zeros(1, D)}, D).isinf().all()
    assert not StudentT().noise_variance(params, D).isnan().any()


def test_mixture_starts_from_the_modes_of_a_column():
    rng = np.random.default_rng(0)
    modes = rng.integers(3, size=4000)
    x = torch.tensor(np.column_stack([np.array([-1.0, 0.0, 4.0])[modes] + 0.1 * rng.normal(size=4000), rng.normal(size=4000)]))
    x[::7, 0] = torch.nan
    weight, mean, scale = (found[0].numpy() for found in fit_mixtures(x, 3, 0.01))
    order = np.argsort(mean)
    np.testing.assert_allclose(weight[order], np.bincount(modes) / 4000, atol=0.03)
    np.testing.assert_allclose(mean[order], [-1, 0, 4], atol=0.03)
    np.testing.assert_allclose(scale[order], 0.1, atol=0.01)


def test_values_that_stand_out_get_modes_of_their_own():
    rng = np.random.default_rng(0)
    hours = np.rint(rng.normal(40, 12, size=4000))  # every whole number is frequent, few stand out
    hours[:1600], hours[1600:2000], hours[2000:2200] = 40.0, 50.0, 70.0
    x = torch.tensor((hours - hours.mean()) / hours.std())[:, None]
    for n_modes, expected in ((5, [40.0, 50.0]), (8, [40.0, 50.0, 70.0])):
        weight, mean, scale = (found[0].numpy() for found in fit_mixtures(x, n_modes, 0.01))
        mean = mean * hours.std() + hours.mean()
        for value in expected:
            mode = np.abs(mean - value).argmin()
            assert abs(mean[mode] - value) < 0.3 and scale[mode] < 0.02
            assert weight[mode] == pytest.approx((hours == value).mean(), abs=0.03)


def test_the_ends_of_an_even_column_do_not_stand_out():
    assert not len(_standing_out(torch.arange(10, dtype=F64).repeat(200)))
    assert _standing_out(torch.cat([torch.zeros(900), torch.arange(10.0).repeat(20)])).tolist() == [0.0]


def test_a_column_of_few_values_has_finite_modes():
    for values in ([0.0], [0.0, 1.0], [0.0, 0.0, 0.0, 5.0], []):
        found = fit_mixtures(torch.tensor(values, dtype=F64).repeat(30)[:, None], 5, 0.01)
        assert all(part.isfinite().all() for part in found)


def test_mixture_learns_a_column_of_two_modes_with_a_spike():
    rng = np.random.default_rng(0)
    X = np.where(rng.random((3000, 2)) < 0.6, 0.0, 2 + rng.normal(size=(3000, 2)))
    scores = {
        name: VAETransformer(1, likelihood=name, max_iter=30, learning_rate="cosine", random_state=0).fit(X).score(X)
        for name in ("gaussian", "normal_mixture")
    }
    assert scores["normal_mixture"] > scores["gaussian"] + 2


@pytest.mark.parametrize("bad", [{"df": 0.0}, {"df": "heavy"}, {"floor": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter of StudentT"):
        StudentT(**bad).validate()


# --- counts --------------------------------------------------------------------------------------------------------------

COUNTS = [likelihood for likelihood in LIKELIHOODS if likelihood.is_whole]


@pytest.mark.parametrize("likelihood, oracle", [pytest.param(*both, id=repr(both[0])) for both in ORACLES if both[0].is_whole])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_counts_keep_their_digits(likelihood, oracle, dtype):
    x = torch.tensor([0.0, 1.0, 2.0, 17.0, 1e3, 1e4, 1e5]).to(dtype)[:, None].expand(-1, D)
    params, eta = random_case(likelihood, len(x), dtype, scale=0.01)
    eta[:, :D] += x.clamp(min=1).log()
    params = {name: value - 5 for name, value in params.items()}
    exact = log_density(distribution(oracle, {k: v.double() for k, v in params.items()}, eta.double()), x.double())
    atol = 1e-8 if dtype == F64 else 2e-3
    np.testing.assert_allclose(likelihood.log_prob(params, eta, x).double(), exact, rtol=1e-5, atol=atol)


DISPERSED = [NegativeBinomial(), ZeroInflatedNegativeBinomial()]


def larger_counts(likelihood, raw, dtype=torch.float32):
    """Return counts up to 1e7, dispersions near exp(2 * raw), and outputs near those that fit."""
    x = torch.tensor([0.0, 1.0, 2.0, 17.0, 1e3, 1e4, 1e5, 1e6, 1e7]).to(dtype)[:, None].expand(-1, D)
    params, eta = random_case(likelihood, len(x), dtype, scale=0.1)
    eta[:, :D] += x.clamp(min=1).log()
    return x, {"dispersion": params["dispersion"] + raw}, eta


@pytest.mark.parametrize("likelihood", DISPERSED, ids=repr)
@pytest.mark.parametrize("raw", [-2, 0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_counts_that_spread_keep_their_digits(likelihood, raw, dtype):
    x, params, eta = larger_counts(likelihood, raw, dtype)
    oracle = dict(ORACLES)[likelihood]
    exact = log_density(distribution(oracle, {k: v.double() for k, v in params.items()}, eta.double()), x.double())
    atol = 1e-7 if dtype == F64 else 1e-4
    np.testing.assert_allclose(likelihood.log_prob(params, eta, x).double(), exact, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("far", [-40.0, -3.0, -0.5, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("raw", [-5, 0, 1])
def test_counts_far_from_the_mean_keep_their_digits(raw, far):
    x, params, eta = larger_counts(NegativeBinomial(), raw)
    doubled = {name: value.double() for name, value in params.items()}
    found, exact = (
        NegativeBinomial().log_prob(*case) for case in ((params, eta + far, x), (doubled, (eta + far).double(), x.double()))
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("likelihood", DISPERSED, ids=repr)
@pytest.mark.parametrize("raw", [-2, 0, 1])
def test_slopes_of_large_counts_keep_their_digits(likelihood, raw):
    x, params, eta = larger_counts(likelihood, raw)
    eta[:, :D] += 0.3 * (1 - 2 * (torch.arange(len(x)) % 2))[:, None]
    weight, doubled = torch.ones(len(x), 1), {name: value.double() for name, value in params.items()}
    found, _ = likelihood.derivative(params, eta.clone(), x, weight)
    exact, _ = likelihood.derivative(doubled, eta.double(), x.double(), weight.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def test_slopes_where_a_count_is_the_shape_are_those_of_a_straight_line():
    """There the two forms of log p meet."""
    params = {"dispersion": torch.full((1, D), 0.5 * math.log(0.25 - 1e-6), dtype=F64).requires_grad_()}  # a shape of 4
    eta = torch.tensor([[1.0, 4.0, math.log(4)]], dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda eta, raw: NegativeBinomial().log_prob({"dispersion": raw}, eta, torch.full((1, D), 4.0, dtype=F64)),
        (eta, params["dispersion"]),
    )


@pytest.mark.parametrize("likelihood", COUNTS, ids=repr)
@pytest.mark.parametrize("bad", [0.5, -1.0])
def test_what_is_no_count_is_refused_with_column_and_value(likelihood, bad):
    X = table_for(likelihood)
    X[3, 2] = bad
    expected = rf"1 column.*\[0, 1e\+13\] or no whole numbers.*\['x2'\]; for example {bad:g} in 'x2'"
    with pytest.raises(ValueError, match=expected):
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
    torch.testing.assert_close(Poisson().inputs(Poisson().init(3), x), torch.tensor([[0.0, 3.0, 0.0]]))


# --- positive numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [LogNormal(), Gamma()], ids=repr)
def test_scores_of_positive_numbers_are_in_the_units_of_the_data(likelihood):
    X = table_for(likelihood, n_rows=200)
    one, other = (fit(likelihood, factor * X, max_iter=10).score(factor * X) for factor in (1.0, 8.0))
    np.testing.assert_allclose(other, one - 4 * math.log(8), rtol=1e-4)


def test_spread_of_logarithms_is_learnt():
    X = stats.lognorm(0.8, scale=30).rvs(size=(3000, 2), random_state=0)
    vae = VAETransformer(1, likelihood="log_normal", max_iter=40, learning_rate="cosine", random_state=0).fit(X)
    np.testing.assert_allclose(vae.score(X), stats.lognorm(0.8, scale=30).logpdf(X).sum(1).mean(), atol=0.03)


def test_shape_of_the_gamma_is_learnt():
    X = stats.gamma(2.5, scale=7).rvs(size=(3000, 2), random_state=0)
    vae = VAETransformer(1, likelihood="gamma", max_iter=40, learning_rate="cosine", random_state=0).fit(X)
    np.testing.assert_allclose(vae.score(X), stats.gamma(2.5, scale=7).logpdf(X).sum(1).mean(), atol=0.03)


@pytest.mark.parametrize("likelihood", [LogNormal(), Gamma()], ids=repr)
@pytest.mark.parametrize("bad", [0.0, -2.0])
def test_zero_and_less_is_refused_with_advice(likelihood, bad):
    X = table_for(likelihood)
    X[3, 1] = bad
    with pytest.raises(ValueError, match=rf"outside \(0, inf\).*\['x1'\]; for example {bad:g} in 'x1'. Add a small constant"):
        fit(likelihood, X)


# --- shares --------------------------------------------------------------------------------------------------------------


def test_continuous_bernoulli_is_exact_for_every_slope():
    slopes = torch.tensor([0.0, 1e-12, 1e-4, 0.1, 0.499, 0.4999999, 0.5, 0.501, 1.0, 7.0, 30.0, 300.0], dtype=F64)
    likelihood = ContinuousBernoulli()
    for slope in (*slopes, *-slopes):
        with mpmath.workdps(150):
            s = mpmath.mpf(slope.item()) or mpmath.mpf("1e-40")
            normaliser = float(mpmath.log((mpmath.exp(s) - 1) / s))
            mean = float(1 / (1 - mpmath.exp(-s)) - 1 / s)
        x = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
        np.testing.assert_allclose(likelihood.log_prob({}, slope, x), x * slope - normaliser, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(likelihood.mean({}, slope), mean, rtol=1e-13)


def test_cells_at_a_limit_have_a_density_under_the_continuous_bernoulli_only():
    X = np.clip(1.4 * table_for(ContinuousBernoulli()) - 0.3, 0.0, 1.0)
    assert {0.0, 1.0} <= set(X.ravel().tolist())
    assert np.isfinite(fit(ContinuousBernoulli(), X).score(X))
    with pytest.raises(ValueError, match=r"outside \(0, 1\).*Add a small constant"):
        fit(Beta(), X)


def test_scores_of_percentages_are_in_the_units_of_the_data():
    X = table_for(Beta(), n_rows=200)
    one, other = (fit(Beta(limits=(0, top)), top * X, max_iter=10).score(top * X) for top in (1.0, 100.0))
    np.testing.assert_allclose(other, one - 4 * math.log(100), rtol=1e-4)


def test_precision_of_shares_is_learnt():
    X = stats.beta(2, 6).rvs(size=(3000, 2), random_state=0)
    vae = VAETransformer(1, likelihood="beta", max_iter=40, learning_rate="cosine", random_state=0).fit(X)
    np.testing.assert_allclose(vae.score(X), stats.beta(2, 6).logpdf(X).sum(1).mean(), atol=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limits", [(0, 1), (0, 100), (5, 6), (-1, 1), (-3.3, 0), (1e6, 1e6 + 1)])
def test_what_comes_out_of_a_beta_model_lies_strictly_within_the_limits(limits, dtype):
    """Most shares of this table are so close to a limit that single precision rounds draws, means and quantiles to it."""
    if limits[0] == 1e6 and dtype == np.float32:
        pytest.skip("sixteen numbers are no column of shares")
    (low, high), shares = limits, stats.beta(0.05, 0.05).rvs(size=(200, 2), random_state=0).clip(1e-5, 1 - 1e-5)
    X = (low + (high - low) * shares).astype(dtype)
    X = X[((low < X) & (high > X)).all(1)]
    vae = VAETransformer(1, likelihood=Beta(limits), max_iter=5, learning_rate="cosine", random_state=0).fit(X)
    holes = X.copy()
    holes[::2, 0] = holes[1::2, 1] = np.nan
    tables = [
        vae.sample(5000, random_state=0), vae.reconstruct(X), vae.inverse_transform(np.array([[1e4], [-1e4]], dtype)),
        vae.impute(holes), vae.impute(holes, method="draw", random_state=0), *vae.predictive_interval(holes, coverage=0.999),
    ]  # fmt: skip
    for table in tables:
        cells = table.astype(dtype).astype(np.float64)
        assert low < cells.min()
        assert cells.max() < high
        assert np.isfinite(vae.score(table.astype(dtype)))  # which refuses a cell at a limit


def test_limits_too_narrow_for_single_precision_leave_the_draws_as_they_are():
    X = 1e9 + stats.beta(2, 3).rvs(size=(300, 2), random_state=0)
    vae = VAETransformer(1, likelihood=Beta((1e9, 1e9 + 1)), max_iter=40, learning_rate="cosine", random_state=0).fit(X)
    assert stats.kstest(vae.sample(3000, random_state=0)[:, 0] - 1e9, X[:, 0] - 1e9).pvalue > 0.01


SHARES_AND_AMOUNTS = [
    Beta(), ContinuousBernoulli(), ContinuousBernoulli((-0.3, 0.7)), TruncatedNormal(), TruncatedNormal((0, 1)), LogNormal(),
    Gamma(),
]  # fmt: skip


@pytest.mark.parametrize("likelihood", SHARES_AND_AMOUNTS, ids=repr)
def test_a_model_scores_each_of_its_own_draws(likelihood):
    X = stats.beta(0.5, 0.5).rvs(size=(300, 2), random_state=0).clip(1e-4, 1 - 1e-4) * 0.7
    X = X / 0.7 if isinstance(likelihood, Beta) else X
    vae = VAETransformer(1, likelihood=likelihood, max_iter=30, learning_rate="cosine", random_state=0).fit(X)
    assert np.isfinite(vae.score(vae.sample(50_000, random_state=0)))


@pytest.mark.parametrize("bad", [(1.0, 0.0), "observed"])
def test_impossible_limits_of_shares_are_refused(bad):
    with pytest.raises(ValueError, match="'limits'"):
        Beta(bad).validate()
