"""Values that are missing because of what they are: densities against quadrature, exact models, and what is filled in."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, special, stats
from sklearn.base import clone

import skvae
from skvae import VAETransformer
from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian, Mixed, SelfMasking
from skvae.likelihoods._mixed import PerColumn
from skvae.likelihoods._self_masking import Chance, log_ndtr
from skvae.networks import MLP
from skvae.objectives import IWAE
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
F64 = torch.float64
KINDS = [
    SelfMasking(Gaussian(noise), missing=missing, columns=(0, 2))
    for noise, missing in [("feature", "either"), ("shared", "high"), (0.5, "low"), ("network", "either")]
]


def random_case(likelihood, steepness=1.0, dtype=F64):
    """Return parameters, decoder outputs, and six rows of three columns with holes in every one."""
    eta = normal((6, likelihood.n_outputs(3)), generator(0, "eta"), dtype)
    params = {k: normal(shape, generator(1, k), dtype) for k, shape in likelihood.shapes(3).items()}
    params["slope"] = steepness * params["slope"]
    x = normal((6, 3), generator(2, "x"), dtype)
    x[::2, 0], x[1::2, 2], x[:3, 1] = torch.nan, torch.nan, torch.nan
    return params, eta, x


def normals(likelihood, params, eta):
    """Return mean and standard deviation of the values."""
    own = {name: params[name] for name in params if name not in ("slope", "intercept")}
    mean, log_scale = likelihood.of_values.as_normal(own, eta)
    return mean, log_scale.exp().expand(mean.shape)


def slopes_and_intercepts(likelihood, params):
    raw = params["slope"]
    slope = {"either": raw, "high": raw.exp().log1p(), "low": -raw.exp().log1p()}[likelihood.missing]
    return slope[0].tolist(), params["intercept"][0].tolist()


def integral_of_missing(mean, scale, slope, intercept, power=0):
    """Return the integral of x**power p(x|z) P(missing|x) by adaptive quadrature."""
    bend = np.clip(-intercept / slope, mean - 11 * scale, mean + 11 * scale)
    density = lambda t: math.exp(-0.5 * t * t) * special.ndtr(slope * (mean + scale * t) + intercept)  # noqa: E731
    moment = lambda t: (mean + scale * t) ** power * density(t) / math.sqrt(2 * math.pi)  # noqa: E731
    return integrate.quad(moment, -12, 12, points=[(bend - mean) / scale], limit=500, epsabs=0, epsrel=1e-11)[0]


@pytest.mark.parametrize("steepness", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("likelihood", KINDS, ids=repr)
def test_density_is_that_of_the_integral_over_what_is_missing(likelihood, steepness):
    params, eta, x = random_case(likelihood, steepness)
    found = likelihood.log_prob(params, eta, x)
    mean, scale = normals(likelihood, params, eta)
    expected = torch.where(x.isnan(), 0.0, torch.distributions.Normal(mean, scale).log_prob(x.nan_to_num()))
    for slope, intercept, j in zip(*slopes_and_intercepts(likelihood, params), likelihood.columns):
        for i in range(len(x)):
            if x[i, j].isnan():
                expected[i, j] = math.log(integral_of_missing(mean[i, j].item(), scale[i, j].item(), slope, intercept))
            else:
                expected[i, j] += stats.norm.logcdf(-(slope * x[i, j].item() + intercept))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("likelihood", KINDS, ids=repr)
def test_gradients_are_right(likelihood):
    params, eta, x = random_case(likelihood)
    names = list(params)
    assert torch.autograd.gradcheck(
        lambda eta, *values: likelihood.log_prob(dict(zip(names, values)), eta, x),
        (eta.requires_grad_(), *(value.requires_grad_() for value in params.values())),
    )


@pytest.mark.parametrize("steepness", [1.0, 50.0])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("likelihood", [*KINDS, SelfMasking(Gaussian(link="logit"))], ids=repr)
def test_closed_form_of_the_derivative_is_that_of_autograd(likelihood, per_cell, steepness):
    params, eta, x = random_case(likelihood, steepness)
    weight = torch.rand((6, 3 if per_cell else 1), generator=generator(3, "weight"), dtype=F64)
    weight[2] = 0.0
    leaves = [value.clone().requires_grad_() for value in (eta, *params.values())]
    value = (weight * likelihood.log_prob(dict(zip(params, leaves[1:])), leaves[0], x)).sum()
    by_eta, *by_params = torch.autograd.grad(value, leaves)
    found, found_params = likelihood.derivative(params, eta.clone(), x, weight)
    torch.testing.assert_close(found, by_eta, rtol=1e-12, atol=1e-12)
    for name, slope in zip(params, by_params):
        torch.testing.assert_close(found_params[name], slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("far", [-1e7, -1e4, -300.0, -10.0, 0.0, 10.0, 1e7])
def test_tails_keep_value_and_slope_in_single_precision(far):
    u = torch.tensor(far, requires_grad=True)
    value = log_ndtr(u)
    (slope,) = torch.autograd.grad(value, u)
    exact = stats.norm.logcdf(far)
    np.testing.assert_allclose(value.item(), exact, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(slope.item(), np.exp(stats.norm.logpdf(far) - exact) if far > -300 else -far, rtol=2e-5)


def test_extreme_outputs_and_cells_give_finite_numbers():
    likelihood = SelfMasking()
    params, eta, x = random_case(likelihood, 50.0, torch.float32)
    x = torch.where(x > 0, 1e6, x)
    for factor in (1e3, 1e6):
        assert likelihood.log_prob(params, factor * eta, x).isfinite().all()
        by_eta, by_params = likelihood.derivative(params, factor * eta, x, torch.ones((6, 1)))
        assert by_eta.isfinite().all() and all(slope.isfinite().all() for slope in by_params.values())
        assert likelihood.expectation_of_missing(params, factor * eta).isfinite().all()


@pytest.mark.parametrize("steepness", [1.0, 50.0])
@pytest.mark.parametrize("likelihood", KINDS, ids=repr)
def test_expectation_of_missing_cells_is_that_of_quadrature(likelihood, steepness):
    params, eta, _ = random_case(likelihood, steepness)
    mean, scale = normals(likelihood, params, eta)
    expected = mean.clone()
    for slope, intercept, j in zip(*slopes_and_intercepts(likelihood, params), likelihood.columns):
        for i in range(len(eta)):
            case = mean[i, j].item(), scale[i, j].item(), slope, intercept
            expected[i, j] = integral_of_missing(*case, power=1) / integral_of_missing(*case)
    torch.testing.assert_close(likelihood.expectation_of_missing(params, eta), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("intercept", [0.5, -8.0, -60.0])
def test_missing_cells_are_drawn_from_their_density(intercept):
    """At -60, the chance of being missing is below what double precision holds; there a shifted exponential is the limit."""
    n, scale, slope = 20_000, 0.7, 3.0
    one = lambda value: torch.full((n, 1), value, dtype=F64)  # noqa: E731
    chance = Chance(one(0.3), one(scale), one(slope), one(intercept))
    x = chance.sample(generator(0, "sample"))[:, 0]
    mean, std = (moment[0, 0].item() for moment in chance.moments())
    assert abs(x.mean().item() - mean) < 4 * std / math.sqrt(n)
    assert x.std().item() == pytest.approx(std, rel=0.03)
    if intercept > -30:
        total = integral_of_missing(0.3, scale, slope, intercept)
        grid = np.linspace(mean - 6 * std, mean + 6 * std, 4001)
        density = stats.norm.pdf(grid, 0.3, scale) * stats.norm.cdf(slope * grid + intercept) / total
        below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
        assert stats.kstest(x.numpy(), lambda t: np.interp(t, grid, below)).pvalue > 1e-3


# --- models whose evidence is known ----------------------------------------------------------------------------------


def linear_model(missing="either"):
    """Return a linear model of three columns, two with a chance of being missing, its parameters, and its exact posterior."""
    likelihood = PerColumn((SelfMasking(missing=missing, columns=(0, 1)),), (3,), (0.0, math.log(2.0), 0.0), (0, 1))
    model = Model(Pieces(MLP(()), MLP(()), Normal(), StandardNormal(), likelihood), 3, 2, 0)
    params = model.unpack(torch.zeros(model.layout.size, dtype=F64))
    params["decoder"]["weight0"].copy_(torch.tensor([[1.0, 0.5, -0.7], [0.0, 0.8, 0.6]]))
    params["decoder"]["bias0"].copy_(torch.tensor([[0.1, -0.2, 0.3]]))
    params["likelihood"]["0_log_scale"].copy_(torch.tensor([[-0.4, -0.2, -0.3]]))
    params["likelihood"]["0_slope"].copy_(torch.tensor([[2.0, -30.0]]))
    params["likelihood"]["0_intercept"].copy_(torch.tensor([[-0.5, 4.0]]))
    return model, params


def exact_evidence(model, params, row):
    """Return log p of what is there and of what is missing, by normal densities and distribution functions."""
    W, mean = params["decoder"]["weight0"].numpy(), params["decoder"]["bias0"].numpy()[0]
    own = {name.removeprefix("0_"): value for name, value in params["likelihood"].items()}
    of_noise = np.exp(
        2 * model.likelihood.likelihoods[0].of_values.as_normal(own, torch.zeros((1, 3), dtype=F64))[1].numpy()[0]
    )
    S = W.T @ W + np.diag(of_noise)
    slope, intercept = own["slope"].numpy()[0], own["intercept"].numpy()[0]
    seen = ~np.isnan(row)
    total = stats.multivariate_normal.logpdf(row[seen], mean[seen], S[np.ix_(seen, seen)]) - math.log(2.0) * seen[1]
    total += sum(stats.norm.logcdf(-(slope[j] * row[j] + intercept[j])) for j in (0, 1) if seen[j])
    gone = ~seen
    if not gone.any():
        return total
    gain = S[np.ix_(gone, seen)] @ np.linalg.inv(S[np.ix_(seen, seen)])
    centre = mean[gone] + gain @ (row[seen] - mean[seen])
    left = S[np.ix_(gone, gone)] - gain @ S[np.ix_(seen, gone)]
    a, c = np.diag(slope[gone[:2]]), intercept[gone[:2]]
    return total + stats.multivariate_normal.logcdf(a @ centre + c, np.zeros(gone.sum()), a @ left @ a + np.eye(gone.sum()))


ROWS = [[0.4, -0.1, 1.0], [np.nan, -0.1, 1.0], [0.4, np.nan, -1.0], [np.nan, np.nan, 0.2]]


def test_evidence_of_the_linear_model_is_exact():
    """By the trapezoid rule over both latents, and by the importance-weighted bound."""
    model, params = linear_model()
    batch = Batch(torch.tensor(ROWS, dtype=F64))
    exact = torch.tensor([exact_evidence(model, params, np.array(row)) for row in ROWS], dtype=F64)
    axis = torch.linspace(-7, 7, 500, dtype=F64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    log_joint = model.log_likelihood(params, batch, z).sum(-1) + model.log_prior(params, z).sum(-1)
    by_quadrature = torch.logsumexp(log_joint, 0) + 2 * math.log(14 / 499)
    torch.testing.assert_close(by_quadrature, exact, rtol=0, atol=1e-5)
    bound = IWAE(20_000).bound(model, params, batch, normal((20_000, 1, 2), generator(1, "score"), F64))
    torch.testing.assert_close(bound, exact, rtol=0, atol=2e-2)


def test_bound_of_the_linear_model_with_ignorable_holes_is_the_density_of_what_is_there():
    """With the exact posterior of each row, every importance weight is log N(x_o; mu_o, S_oo)."""
    model, params = linear_model()
    plain = PerColumn((Gaussian(),), (3,), model.likelihood.log_units, (0, 1))
    model = Model(Pieces(MLP(()), MLP(()), Normal(), StandardNormal(), plain), 3, 2, 0)
    W, mean = params["decoder"]["weight0"].numpy(), params["decoder"]["bias0"].numpy()[0]
    own = {"0_log_scale": params["likelihood"]["0_log_scale"]}
    S = W.T @ W + np.diag(plain.noise_variance(own, 3).numpy()[0])
    for row in np.array(ROWS):
        seen = ~np.isnan(row)
        exact = stats.multivariate_normal.logpdf(row[seen], mean[seen], S[np.ix_(seen, seen)]) - math.log(2.0) * seen[1]
        blind = {**params, "likelihood": own, "encoder": {name: v * 0 for name, v in params["encoder"].items()}}
        noise = normal((20_000, 1, 2), generator(1, "score"), F64)
        found = IWAE(20_000).bound(model, blind, Batch(torch.tensor(row[None])), noise)
        assert found.item() == pytest.approx(exact, abs=2e-2)


# --- fitting ---------------------------------------------------------------------------------------------------------


def removed_above_the_mean(n=600, seed=0):
    """Return five columns that two factors explain, and the same with the high values of the first two removed."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(n, 5))
    holed = X.copy()
    holed[:, :2][X[:, :2] > X[:, :2].mean(0)] = np.nan
    return X, holed


def fit(likelihood, X, **params):
    defaults = {"max_iter": 40, "hidden_layer_sizes": (), "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(2, likelihood=likelihood, **{**defaults, **params}).fit(X)


@pytest.mark.parametrize("missing", ["either", "high"])
def test_what_was_removed_above_the_mean_is_found_again(missing):
    X, holed = removed_above_the_mean()
    error = lambda found: np.sqrt(np.mean((found - X)[np.isnan(holed)] ** 2))  # noqa: E731
    ours, ignorable = (error(fit(one, holed).impute(holed)) for one in (SelfMasking(missing=missing), "gaussian"))
    by_mean = error(np.where(np.isnan(holed), np.nanmean(holed, 0), holed))
    assert ours < 0.6 * ignorable < 0.6 * by_mean


def test_draws_of_what_is_missing_reach_beyond_what_is_there():
    X, holed = removed_above_the_mean()
    frame = pd.DataFrame(holed, columns=list("abcde"))
    vae = fit(SelfMasking(missing="high"), frame)
    drawn = vae.impute(frame, method="draw", random_state=0)
    assert (drawn.max()[["a", "b"]] > frame.max()[["a", "b"]] + 1).all()
    assert (drawn.max()[["c", "d", "e"]] == frame.max()[["c", "d", "e"]]).all(), "complete columns keep their range"
    low, high = vae.predictive_interval(frame, 0.8)
    is_within = (low.to_numpy() <= X) & (high.to_numpy() >= X)
    assert 0.65 < is_within[np.isnan(holed)].mean() < 0.9
    cells = vae.score_cells(frame)
    np.testing.assert_allclose(cells.sum(axis=1), vae.score_samples(frame), rtol=1e-9)


def test_cells_that_are_not_given_are_unknown_and_not_missing():
    """So a sample given nothing but a number of a complete column is one of p(x|z), whose mean the linear model tells."""
    _, holed = removed_above_the_mean()
    vae = fit(SelfMasking(missing="high"), holed, dtype="float64")
    params = vae._fitted.model.unpack(torch.tensor(vae._fitted.params))
    W, mean = params["decoder"]["weight0"].numpy(), params["decoder"]["bias0"].numpy()[0]
    codec, variance = vae._fitted.codec, vae.noise_variance_ / vae._fitted.codec.scale**2
    given = (1.0 - codec.loc[2]) / codec.scale[2]
    expected = mean + W.T @ W[:, 2] / (W[:, 2] @ W[:, 2] + variance[2]) * (given - mean[2])
    found = vae.sample(20_000, random_state=0, given={2: 1.0}, n_draws=20_000).mean(0)
    np.testing.assert_allclose((found - codec.loc) / codec.scale, np.where(np.arange(5) == 2, given, expected), atol=0.05)


def test_closed_forms_and_autograd_learn_the_same():
    class Plain(MLP):
        pass

    _, holed = removed_above_the_mean(200)
    by_hand, by_autograd = (
        fit(SelfMasking(), holed, encoder=encoder, dtype="float64", init="random", max_iter=10)
        for encoder in (MLP(()), Plain(()))
    )
    np.testing.assert_allclose(by_hand._fitted.params, by_autograd._fitted.params, rtol=1e-8, atol=1e-10)


def test_importance_weighted_training_raises_its_bound():
    _, holed = removed_above_the_mean(200)
    vae = fit(SelfMasking(missing="high"), holed, objective=IWAE(5), max_iter=25)
    assert vae.history_["objective"][-1] > vae.history_["objective"][1]
    assert vae.score(holed) > fit(SelfMasking(missing="low"), holed, objective=IWAE(5), max_iter=25).score(holed)


def test_columns_that_are_complete_in_training_are_passed_over_later():
    _, holed = removed_above_the_mean(300)
    vae = fit(SelfMasking(), holed, max_iter=5)
    assert vae._fitted.model.likelihood.likelihoods[0].columns == (0, 1)
    X = holed[:10].copy()
    X[:, 4] = np.nan
    model = vae._fitted.model
    batch = vae._fitted.codec.encode(X)
    log_px = model.log_likelihood(model.unpack(torch.tensor(vae._fitted.params)), batch, torch.zeros((10, 2)))
    assert (log_px[:, 4] == 0).all() and (log_px[:, :2] != 0).all()
    assert np.isfinite(vae.score_samples(X)).all()


def test_without_missing_cells_it_is_the_likelihood_of_the_values():
    X, _ = removed_above_the_mean(100)
    one, other = fit(SelfMasking(), X, max_iter=5), fit("gaussian", X, max_iter=5)
    np.testing.assert_array_equal(one._fitted.params, other._fitted.params)
    np.testing.assert_array_equal(one.score_samples(X), other.score_samples(X))


def test_score_is_in_the_units_of_the_cells_that_are_there():
    _, holed = removed_above_the_mean(200)
    one, other = (fit(SelfMasking(), scale * holed, max_iter=5) for scale in (1.0, 4.0))
    moved = one.score_samples(holed) - other.score_samples(4.0 * holed)
    np.testing.assert_allclose(moved, math.log(4.0) * (~np.isnan(holed)).sum(1), rtol=1e-5)


def test_it_stands_beside_other_likelihoods_in_a_table():
    _, holed = removed_above_the_mean(200)
    vae = fit(Mixed({0: SelfMasking(missing="high"), 4: Gaussian("network")}), holed, max_iter=5)
    assert [column.kind for column in vae.schema_] == ["self_masking", *["gaussian"] * 4]
    assert np.isfinite(vae.score_samples(holed)).all()
    assert not np.isnan(vae.sample(5, random_state=0)).any()


def test_it_can_be_cloned_saved_and_loaded(tmp_path):
    _, holed = removed_above_the_mean(100)
    vae = fit(SelfMasking(Gaussian("shared"), missing="high"), holed, max_iter=5)
    assert clone(vae).likelihood == vae.likelihood
    vae.save(tmp_path / "model.skvae")
    np.testing.assert_array_equal(skvae.load(tmp_path / "model.skvae").score_samples(holed), vae.score_samples(holed))


@pytest.mark.parametrize("refused", ["bernoulli", "poisson", "auto", SelfMasking()])
def test_values_that_are_not_normal_are_refused(refused):
    with pytest.raises(ValueError, match="needs values that are normal given z"):
        fit(SelfMasking(refused), removed_above_the_mean(20)[1])


@pytest.mark.parametrize(
    "columns, message",
    [
        ((0, 0), r"distinct whole numbers.* Column 0 is there more than once"),
        ((1, -1), r"distinct whole numbers.* Among them is -1"),
        (("a",), r"distinct whole numbers.* Among them is 'a'"),
        ((True, False), r"distinct whole numbers.* Among them is True"),
        ((1, 7), r"name column 7, but this likelihood has 5 in the model. Use numbers below 5"),
    ],
)
def test_columns_that_are_none_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        fit(SelfMasking(columns=columns), removed_above_the_mean(20)[1])


def test_columns_are_counted_among_those_of_the_likelihood():
    _, holed = removed_above_the_mean(50)
    fitted = fit(Mixed({3: SelfMasking(columns=(0,))}), holed, max_iter=2)
    assert [one.columns for one in fitted._fitted.likelihoods if isinstance(one, SelfMasking)] == [(0,)]
    with pytest.raises(ValueError, match=r"name column 3, but this likelihood has 1 in the model"):
        fit(Mixed({3: SelfMasking(columns=(3,))}), holed)
