"""The truncated normal likelihood against mpmath and scipy, also far in the tails, and the range that nothing leaves."""

import math

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import cells_for
from scipy import stats

import skvae
from skvae import VAETransformer
from skvae._kernels import structure
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian, Mixed, TruncatedNormal
from skvae.likelihoods._truncated import truncation
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.posteriors import Normal
from skvae.priors import StandardNormal, VampPrior

F64 = torch.float64
D = 3
AWKWARD = (0.1, 0.7)  # no binary fractions
RANGES = [(-1.0, 2.0), (0.0, math.inf), (-math.inf, 0.5), (-math.inf, math.inf), (0.0, 1e-6), (3.0, 3.0 + 1e-9)]


def cases():
    """Return means, scales, limits and cells: means up to 300 scales outside of ranges, wide and narrow."""
    rng, rows = np.random.default_rng(0), []
    for low, high in RANGES:
        for distance in (0.0, 1e-3, 0.3, 1.0, 5.0, 29.0, 31.0, 300.0):
            for scale in (0.02, 0.4, 1.0, 50.0, 1e4):
                for beyond in (low, high):
                    edge = beyond if math.isfinite(beyond) else 0.0
                    mean = edge + math.copysign(distance * scale, -1 if beyond == low else 1)
                    reach = (max(low, min(mean, high) - 3 * scale), min(high, max(mean, low) + 3 * scale))
                    rows.append((mean, scale, low, high, rng.uniform(*reach)))
    return np.array(rows)


def exact(mean, scale, low, high, x):
    """Return log density, mean, variance, and the slopes of the log density by mean and log scale, by mpmath."""
    with mpmath.workdps(60):
        mean, scale, low, high, x = map(mpmath.mpf, (mean, scale, low, high, x))
        a, b = (low - mean) / scale, (high - mean) / scale
        side = 1
        if a + b < 0:
            a, b, side = -b, -a, -1
        density = lambda t: mpmath.exp(-t * t / 2) / mpmath.sqrt(2 * mpmath.pi)  # noqa: E731
        times = lambda t: t * density(t) if mpmath.isfinite(t) else 0  # noqa: E731
        mass = (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2
        first, second = (density(a) - density(b)) / mass, 1 + (times(a) - times(b)) / mass
        t = (x - mean) / scale
        log_density = mpmath.log(density(t) / mass / scale)
        found = (
            log_density,
            mean + side * scale * first,
            scale**2 * (second - first**2),
            (t - side * first) / scale,
            t**2 - second,
        )
        return tuple(map(float, found))


CASES = cases()
EXACT = np.array([exact(*row) for row in CASES]).T


def likelihood_at(low, high, scale, dtype=F64):
    """Return a likelihood of columns of given limits, and parameters that give them their scales."""
    ends = (tuple(map(float, low)), tuple(map(float, high)))
    raw = 0.5 * torch.tensor(np.asarray(scale) - 1e-9, dtype=dtype).log()
    return TruncatedNormal(ends=ends, floor=1e-9), {"scale": raw[None]}


@pytest.fixture(scope="module")
def extreme():
    mean, scale, low, high, x = CASES.T
    return (*likelihood_at(low, high, scale), torch.tensor(mean)[None], torch.tensor(x)[None])


def test_density_keeps_its_digits_far_outside_and_on_narrow_ranges(extreme):
    likelihood, params, eta, x = extreme
    np.testing.assert_allclose(likelihood.log_prob(params, eta, x)[0], EXACT[0], rtol=1e-12, atol=1e-10)


def test_mean_keeps_its_digits_far_outside_and_on_narrow_ranges():
    mean, scale, low, high, _ = (torch.tensor(column) for column in CASES.T)
    cut = truncation(mean, scale, low.clamp(min=-1e30), high.clamp(max=1e30))
    first, second = cut.moments()
    distance = np.abs(EXACT[1] - CASES[:, 0])
    assert (np.abs(cut.cells(first).numpy() - EXACT[1]) <= 1e-13 * (1e-3 + distance + np.abs(EXACT[1]))).all()
    known = EXACT[2] > 1e-5 * (distance**2).clip(min=1e-300)  # of the others the squares cancel
    variance = ((second - first**2) * scale**2).numpy()
    np.testing.assert_allclose(variance[known], EXACT[2][known], rtol=1e-8)


def test_slopes_keep_their_digits_far_outside_and_on_narrow_ranges(extreme):
    likelihood, params, eta, x = extreme
    by_eta, by_params = likelihood.derivative(params, eta.clone(), x, torch.ones((1, 1), dtype=F64))
    mean, scale, low, high, _ = CASES.T
    beyond = np.maximum(np.maximum(low - mean, mean - high) / scale, 1.0)
    assert (np.abs(by_eta[0].numpy() - EXACT[3]) * scale <= 1e-13 * beyond).all()
    by_log_scale = by_params["scale"][0].numpy() / 2 / (1 - 1e-9 / scale)
    assert (np.abs(by_log_scale - EXACT[4]) <= 1e-12 * beyond**2).all()


def test_slopes_are_those_of_autograd_at_the_extremes(extreme):
    likelihood, params, eta, x = extreme
    eta, params = eta.clone().requires_grad_(), {"scale": params["scale"].clone().requires_grad_()}
    likelihood.log_prob(params, eta, x).sum().backward()
    with torch.no_grad():
        by_eta, by_params = likelihood.derivative(params, eta.detach().clone(), x, torch.ones((1, 1), dtype=F64))
    size = torch.tensor(CASES[:, 1])
    torch.testing.assert_close(by_eta * size, eta.grad * size, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_params["scale"], params["scale"].grad, rtol=1e-12, atol=0)


def test_single_precision_loses_no_more_than_its_rounding():
    mean, scale, low, high, x = CASES[np.isfinite(CASES[:, 2:4]).all(1) & (CASES[:, 3] - CASES[:, 2] > 1)].T
    likelihood, params = likelihood_at(low, high, scale, torch.float32)
    eta, x = (torch.tensor(v, dtype=torch.float32)[None] for v in (mean, x))
    wide = {"scale": params["scale"].double()}
    expected = likelihood.log_prob(wide, eta.double(), x.double())
    torch.testing.assert_close(likelihood.log_prob(params, eta, x).double(), expected, rtol=1e-6, atol=1e-6)
    assert likelihood.mean(params, eta).dtype == torch.float32


def test_without_limits_it_is_the_gaussian():
    likelihood, gaussian = TruncatedNormal((-math.inf, math.inf), standardize=False), Gaussian()
    eta = normal((50, D), generator(0, "eta"), F64)
    x, weight = cells_for(gaussian, (50, D)), torch.rand((50, 1), generator=generator(0, "w"), dtype=F64, device="cpu")
    params = {"scale": 0.5 * normal((1, D), generator(1, "scale"), F64)}
    log_scale = likelihood.log_scale(params)
    own = {"log_scale": ((2 * log_scale).exp() - 0.01**2).log() / 4}
    torch.testing.assert_close(likelihood.log_prob(params, eta, x), gaussian.log_prob(own, eta, x), rtol=1e-13, atol=1e-13)
    found, expected = (one.derivative(p, eta.clone(), x, weight)[0] for one, p in ((likelihood, params), (gaussian, own)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(likelihood.mean(params, eta), eta, rtol=0, atol=0)
    torch.testing.assert_close(likelihood.noise_variance(params, D), gaussian.noise_variance(own, D), rtol=1e-13, atol=0)
    sample = likelihood.sample(params, torch.zeros((20_000, D), dtype=F64), generator(0, "sample"))
    for j in range(D):
        assert stats.kstest(sample[:, j].numpy(), stats.norm(0, math.exp(log_scale[0, j])).cdf).pvalue > 1e-4


def test_noise_of_a_range_depends_on_the_row():
    assert TruncatedNormal((0, math.inf)).noise_variance({"scale": torch.zeros(1, D)}, D) is None


@pytest.mark.parametrize(
    "mean, scale, low, high",
    [
        (0.3, 0.5, -1.0, 2.0), (-8.0, 0.5, 0.0, 1.0), (40.0, 1.0, 0.0, 1.0), (-35.0, 1.0, 0.0, math.inf),
        (9.0, 0.2, -math.inf, 0.5), (0.0, 5.0, 0.0, 0.3), (-20.0, 8.0, 0.0, 0.5), (5.0, 0.5, 0.0, 10.0),
    ],
)  # fmt: skip
def test_sampler_draws_from_the_distribution_of_scipy_also_in_the_tail(mean, scale, low, high):
    likelihood, params = likelihood_at([low], [high], [scale])
    sample = likelihood.sample(params, torch.full((20_000, 1), mean, dtype=F64), generator(0, "sample"))[:, 0].numpy()
    expected = stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale)
    assert stats.kstest(sample, expected.cdf).pvalue > 1e-3


def test_quantiles_undo_the_distribution_function_at_the_extremes():
    mean, scale, low, high, _ = (torch.tensor(column)[:, None] for column in CASES.T)
    cut = truncation(mean, scale, low.clamp(min=-1e30), high.clamp(max=1e30))
    share = torch.tensor([[1e-9, 1e-3, 0.2, 0.5, 0.8, 0.999, 1 - 1e-9]], dtype=F64)
    found = cut.mass(cut.quantiles(share)) / cut.mass(cut.high)
    torch.testing.assert_close(found, share.expand_as(found), rtol=1e-9, atol=1e-12)


# --- in the estimator -----------------------------------------------------------------------------------------------------


def fit(X, likelihood="truncated_normal", **params):
    defaults = {"max_iter": 30, "hidden_layer_sizes": (8,), "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(1, likelihood=likelihood, **{**defaults, **params}).fit(X)


def shares(n_rows=200, limits=AWKWARD, seed=0):
    """Return two columns that share a cause and crowd at both limits, which some cells reach."""
    rng = np.random.default_rng(seed)
    raw = 2 * rng.normal(size=(n_rows, 1)) + 0.5 * rng.normal(size=(n_rows, 2))
    low, high = limits
    X = np.clip(low + (high - low) / (1 + np.exp(-3 * raw)), low, high)
    X[0], X[1] = low, high
    return X


@pytest.mark.parametrize(
    "likelihood", [TruncatedNormal(), TruncatedNormal(AWKWARD), TruncatedNormal(AWKWARD, standardize=False)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_that_comes_out_leaves_the_range_and_all_of_it_may_go_in_again(likelihood, dtype):
    X = shares()
    vae = fit(X, likelihood, dtype=dtype)
    ends = vae.inverse_transform(np.array([[-50.0], [0.0], [50.0]]))
    for rows in (vae.sample(5000, random_state=0), vae.reconstruct(X), ends):
        assert AWKWARD[0] <= rows.min() and rows.max() <= AWKWARD[1]
        assert np.isfinite(vae.score_samples(rows)).all()


def test_a_normal_likelihood_leaves_the_range():
    rows = fit(shares(), "gaussian").sample(5000, random_state=0)
    assert rows.min() < AWKWARD[0] and rows.max() > AWKWARD[1]


def test_later_cells_move_into_an_observed_range():
    X = shares()
    vae = fit(X)
    outside, edge = np.array([[-3.0, 0.3]]), np.array([[0.1, 0.3]])
    np.testing.assert_allclose(vae.score_samples(outside), vae.score_samples(edge), rtol=1e-6)


@pytest.mark.parametrize("limits, bad", [(AWKWARD, 0.71), ((0.0, math.inf), -0.01), ((-math.inf, 0.7), 5.0)])
def test_cells_outside_of_given_limits_are_refused(limits, bad):
    X = shares()
    X[3, 1] = bad
    with pytest.raises(ValueError, match=rf"1 column.*\['x1'\]; for example {bad:g} in 'x1'"):
        fit(X, TruncatedNormal(limits))


@pytest.mark.parametrize("limits", [(1.0, 0.0), (math.nan, 1.0), (1.0,), (0.0, "1")])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match=r"'limits' of TruncatedNormal must be two numbers, the lower one first"):
        TruncatedNormal(limits).validate()


@pytest.mark.parametrize("likelihood", [TruncatedNormal(), TruncatedNormal((0, 1))])
def test_limits_must_be_known_in_the_units_of_the_model(likelihood):
    with pytest.raises(ValueError, match="not known in the model's units yet"):
        likelihood.log_prob({"scale": torch.zeros(1, 1)}, torch.zeros(1, 1), torch.zeros(1, 1))


def test_a_cut_off_normal_column_is_learnt():
    mean, scale, low, high = 10.0, 4.0, 8.0, 30.0
    source = stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale)
    X = source.rvs(size=(4000, 2), random_state=0)
    limits = TruncatedNormal((low, high))
    vae = fit(X, limits, max_iter=60)
    np.testing.assert_allclose(vae.score(X), source.logpdf(X).sum(1).mean(), atol=0.03)
    assert vae.score(X) > fit(X, "gaussian", max_iter=60).score(X) + 0.15


@pytest.mark.parametrize("limits", ["observed", (0.0, 2.0)])
def test_scores_are_in_the_units_of_the_data(limits):
    X = shares(limits=(0.0, 1.0))
    grown = limits if limits == "observed" else (0.0, 16.0)
    one, other = (fit(f * X, TruncatedNormal(end), max_iter=10).score(f * X) for f, end in ((1, limits), (8, grown)))
    np.testing.assert_allclose(other, one - 2 * math.log(8), rtol=1e-5)


def test_a_table_may_have_columns_within_a_range_and_holes():
    X = pd.DataFrame(shares(), columns=["share", "other"]).assign(group=np.arange(200) % 3).astype({"group": "category"})
    X.loc[::7, "share"] = np.nan
    vae = fit(X, Mixed({"share": TruncatedNormal(AWKWARD), "other": "truncated_normal"}))
    assert [column.kind for column in vae.schema_] == ["truncated_normal", "truncated_normal", "categorical"]
    full = vae.impute(X)
    assert full["share"].between(*AWKWARD).all() and np.isfinite(vae.score_samples(X)).all()
    assert vae.sample(1000, random_state=0)["share"].between(*AWKWARD).all()


@pytest.mark.parametrize("limits", ["observed", (0.0, 4.0)])
def test_a_column_that_did_not_vary_in_the_first_batch_has_a_range(limits):
    X = np.column_stack([shares(), np.full(200, 3.0)])
    vae = VAETransformer(1, likelihood=TruncatedNormal(limits), random_state=0).partial_fit(X)
    X[:, 2] = np.linspace(2.5, 3.5, 200)
    assert np.isfinite(vae.partial_fit(X).score_samples(X)).all()


def test_files_keep_the_limits(tmp_path):
    X = shares()
    vae = fit(X, TruncatedNormal((-math.inf, 0.7)))
    vae.save(tmp_path / "model.skvae")
    np.testing.assert_array_equal(skvae.load(tmp_path / "model.skvae").score_samples(X), vae.score_samples(X))


def test_pseudo_inputs_stay_within_the_limits_of_their_columns():
    X = shares()
    assert np.isfinite(fit(X, prior=VampPrior(5)).score_samples(X)).all()


def test_models_share_a_batch_where_their_limits_are_the_same():
    def of(likelihood):
        pieces = Pieces(MLP((7,)), MLP((7,)), Normal(), StandardNormal(), likelihood)
        return structure(Model(pieces, D, 2, seed=0), ELBO())

    assert of(TruncatedNormal(ends=(0.0, 1.0))) == of(TruncatedNormal(ends=(0.0, 1.0)))
    assert of(TruncatedNormal(ends=(0.0, 1.0))) != of(TruncatedNormal(ends=(0.0, 2.0)))
