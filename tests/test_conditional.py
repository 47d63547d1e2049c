"""Weighted latents of rows with holes, against closed forms of linear models and quadrature of others."""

import math

import numpy as np
import pytest
import torch
from conftest import PAIRS
from scipy.stats import norm

from skvae import posteriors, priors
from skvae._batch import Batch
from skvae._conditional import (
    Proposal,
    _exponent,
    draws,
    expectations,
    leave_one_out,
    quantiles,
    weighted_quantiles,
)
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Categorical, Gaussian, Ordinal, Poisson
from skvae.likelihoods._mixed import PerColumn
from skvae.networks import MLP
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

D = 6
LOADINGS = np.array([[1.0, -0.7, 0.9, 0, 0, 0], [0, 0, 0, 1.2, 0.8, -1.1]])  # apart, so the exact posterior is diagonal
CENTRE, SCALE = np.linspace(-1, 1, D), np.linspace(0.3, 0.6, D)
COVARIANCE = LOADINGS.T @ LOADINGS + np.diag(SCALE**2)
ALL = range(D)


def linear_model(exact=True):
    """Return a linear model in double precision, whose encoder is exact for complete rows or knows nothing."""
    likelihood = PerColumn((Gaussian(floor=1e-6),), (D,), (0.0,) * D)
    model = Model(Pieces(MLP(()), MLP(()), Normal(), StandardNormal(), likelihood), D, 2, 0)
    params = model.unpack(model.init(torch.float64))
    model.decoder.set_linear(params["decoder"], torch.tensor(LOADINGS), torch.tensor(CENTRE)[None])
    Gaussian(floor=1e-6).set_noise({"log_scale": params["likelihood"]["0_log_scale"]}, torch.tensor(SCALE).log()[None])
    if exact:
        precision = np.eye(2) + LOADINGS / SCALE**2 @ LOADINGS.T
        projection = (np.linalg.inv(precision) @ LOADINGS / SCALE**2).T
        weight = torch.tensor(np.hstack([projection, np.zeros((D, 2))]))
        bias = torch.tensor(np.concatenate([-CENTRE @ projection, -0.5 * np.log(np.diag(precision))]))[None]
        model.encoder.set_linear(params["encoder"], weight, bias)
    return model, params


def rows(n=40, holes=0.4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal(CENTRE, COVARIANCE, size=n)
    return np.where(rng.random(X.shape) < holes, np.nan, X)


def given_others(row, j):
    """Return mean and variance of a cell given the other cells of its row that are not missing."""
    known = ~np.isnan(row)
    known[j] = False
    slope = np.linalg.solve(COVARIANCE[np.ix_(known, known)], COVARIANCE[known, j])
    return CENTRE[j] + slope @ (row - CENTRE)[known], COVARIANCE[j, j] - slope @ COVARIANCE[known, j]


def exact_moments(X):
    """Return mean and standard deviation of every cell given the others of its row."""
    mean, variance = np.moveaxis([[given_others(row, j) for j in range(D)] for row in X], -1, 0)
    return mean, np.sqrt(variance)


def assert_near(found, exact, scale, atol):
    """Assert that the root mean square of an error, in units of `scale`, is small."""
    assert np.sqrt(np.nanmean(((np.asarray(found) - exact) / scale) ** 2)) < atol


# --- linear models -------------------------------------------------------------------------------------------------------


def test_at_the_exact_posterior_all_weights_are_the_density_of_the_row():
    model, params = linear_model()
    X = rows(holes=0)
    pool = Proposal(50, 0, adapts=False, from_prior=0.0).pool(model, params, Batch(torch.tensor(X)), 0)
    centred = X - CENTRE
    exact = -0.5 * ((centred @ np.linalg.inv(COVARIANCE) * centred).sum(1) + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1])
    np.testing.assert_allclose(pool.log_w, np.tile(exact, (50, 1)), atol=1e-10)
    np.testing.assert_allclose(pool.effective_sample_size, 50, rtol=1e-12)


@pytest.mark.parametrize("judged", [(), ALL], ids=["of rows", "of cells"])
def test_the_mean_weight_is_the_density_of_the_known_cells(judged):
    model, params = linear_model(exact=False)
    X = rows()
    pool = Proposal(4000, 0, judged).pool(model, params, Batch(torch.tensor(X)), 0)
    found = pool.log_w.logsumexp(0) - math.log(4000)
    for row, value in zip(X, found):
        known = ~np.isnan(row)
        centred, covariance = (row - CENTRE)[known], COVARIANCE[np.ix_(known, known)]
        exact = -0.5 * (centred @ np.linalg.solve(covariance, centred) + np.linalg.slogdet(2 * np.pi * covariance)[1])
        assert float(value) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("exact", [True, False], ids=["exact encoder", "encoder that knows nothing"])
def test_expectations_tend_to_conditional_means(exact):
    model, params = linear_model(exact)
    X = rows()
    mean, scale = exact_moments(X)
    for n_draws, atol in ((100, 0.2), (1000, 0.02), (10_000, 0.005)):
        found, _ = expectations(model, params, Batch(torch.tensor(X)), Proposal(n_draws, 0))
        assert_near(np.where(np.isnan(X), found, np.nan), mean, scale, atol)


def test_later_stages_make_up_for_an_encoder_that_knows_nothing():
    model, params = linear_model(exact=False)
    batch = Batch(torch.tensor(rows()))
    at_once, in_stages = (
        Proposal(500, 0, adapts=adapts).pool(model, params, batch, 0).effective_sample_size for adapts in (False, True)
    )
    assert at_once.median() < 50
    assert in_stages.median() > 300


def narrow_model():
    """Return a linear model with little noise, whose encoder knows nothing: p(z|x) is hard to find."""
    model, params = linear_model(exact=False)
    noise = Gaussian(floor=1e-6)
    noise.set_noise({"log_scale": params["likelihood"]["0_log_scale"]}, torch.full((1, D), math.log(0.01), dtype=torch.float64))
    return model, params


def test_modes_lead_to_posteriors_that_stages_do_not_find():
    model, params = narrow_model()
    X = rows()
    covariance = LOADINGS.T @ LOADINGS + 0.01**2 * np.eye(D)
    found, sizes = expectations(model, params, Batch(torch.tensor(X)), Proposal(200, 0))
    in_stages = Proposal(200, 0).pool(model, params, Batch(torch.tensor(X)), 0).effective_sample_size
    assert in_stages.quantile(0.05) < 10
    assert sizes.min() > 40
    for row, value in zip(X, found.numpy()):
        m, o = np.isnan(row), ~np.isnan(row)
        slope = np.linalg.solve(covariance[np.ix_(o, o)], covariance[np.ix_(o, m)]).T
        scale = np.sqrt(np.diag(covariance[np.ix_(m, m)] - slope @ covariance[np.ix_(o, m)]))
        np.testing.assert_array_less(np.abs(value[m] - CENTRE[m] - slope @ (row - CENTRE)[o]) / scale, 0.25)


def test_draws_have_the_conditional_moments():
    model, params = linear_model()
    row = np.array([[0.5, np.nan, np.nan, 1.0, np.nan, -1.0]])
    m, o = np.isnan(row[0]), ~np.isnan(row[0])
    slope = COVARIANCE[np.ix_(m, o)] @ np.linalg.inv(COVARIANCE[np.ix_(o, o)])
    mean = CENTRE[m] + slope @ (row[0] - CENTRE)[o]
    covariance = COVARIANCE[np.ix_(m, m)] - slope @ COVARIANCE[np.ix_(o, m)]
    x, size = draws(model, params, Batch(torch.tensor(np.repeat(row, 200, 0))), Proposal(1000, 0, is_common=False), 100, True)
    drawn = x.flatten(0, 1)[:, m].numpy()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.03)
    assert size.min() > 100


def test_means_without_noise_spread_as_the_latents_do():
    model, params = linear_model()
    row = torch.full((50, D), torch.nan, dtype=torch.float64)
    x, _ = draws(model, params, Batch(row), Proposal(1000, 0, is_common=False), 100, False)
    np.testing.assert_allclose(np.cov(x.flatten(0, 1).T.numpy()), LOADINGS.T @ LOADINGS, atol=0.1)


def test_a_cell_given_the_others_tends_to_the_closed_form():
    model, params = linear_model()
    X = rows()
    mean, scale = exact_moments(X)
    for n_draws, judged, atol in ((300, ALL, 0.25), (10_000, ALL, 0.03), (10_000, [4, 1], 0.03)):
        found = leave_one_out(model, params, Batch(torch.tensor(X)), Proposal(n_draws, 0, judged))[0].numpy()
        assert np.array_equal(np.isnan(found), np.isnan(X[:, judged]))
        assert_near(found, norm.logpdf(X, mean, scale)[:, judged], 1.0, atol)


def test_quantiles_tend_to_those_of_the_normal_conditionals():
    model, params = linear_model()
    X = rows()
    mean, scale = exact_moments(X)
    found, _ = quantiles(model, params, Batch(torch.tensor(X)), Proposal(10_000, 0, ALL), (0.05, 0.5, 0.9))
    for values, level in zip(found.movedim(1, 0), (0.05, 0.5, 0.9)):
        assert_near(values, norm.ppf(level, mean, scale), scale, 0.06)


# --- other models --------------------------------------------------------------------------------------------------------


def mixed_model(posterior, prior, seed=0):
    """Return a model of five columns of four kinds with one latent variable and random parameters, and rows with holes."""
    likelihood = PerColumn((Gaussian(), Categorical(3), Ordinal(4), Poisson()), (2, 1, 1, 1), (0.0,) * 5, (0, 1, 2, 3, 4))
    network = MLP((8,), activation="tanh")
    model = Model(Pieces(network, network, posterior, prior, likelihood), 5, 1, seed)
    params = model.unpack(0.7 * normal((model.layout.size,), generator(seed, "test"), torch.float64))
    x = model.sample(params, 12, generator(seed, "rows"), True, torch.float64)
    holes = torch.rand((12, 5), generator=generator(seed, "holes"), dtype=torch.float64) < 0.5
    return model, params, x.where(~holes, torch.nan)


def on_a_grid(model, params, x):
    """Return the weights of p(z|x) on a fine grid of one latent variable, log p(x_j|z), and outputs."""
    if isinstance(model.prior, StandardNormal):
        z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    else:
        z = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    z = z[:, None, None].expand(-1, len(x), 1)
    eta = model.decode(params, z)
    log_px = model.likelihood.log_prob(params["likelihood"], eta, x)
    return log_px.sum(-1) + model.log_prior(params, z).sum(-1), log_px, eta


BOUNDED = (posteriors.Beta(), priors.Beta(1.5, 2.0))


@pytest.mark.parametrize("pair", [(Normal(), StandardNormal()), BOUNDED], ids=repr)
def test_columns_of_any_kind_agree_with_quadrature(pair):
    model, params, x = mixed_model(*pair)
    log_w, log_px, eta = on_a_grid(model, params, x)
    exact = (log_w.softmax(0)[..., None] * model.likelihood.expectation(params["likelihood"], eta)).sum(0)
    found, _ = expectations(model, params, Batch(x), Proposal(20_000, 0))
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.02)
    known = ~x.isnan()
    exact = log_w.logsumexp(0)[:, None] - (log_w[..., None] - log_px).logsumexp(0)
    found, _ = leave_one_out(model, params, Batch(x), Proposal(20_000, 0, range(x.shape[1])))
    torch.testing.assert_close(found[known], exact[known], atol=0.05, rtol=0)


def test_drawn_categories_have_the_conditional_probabilities():
    model, params, x = mixed_model(Normal(), StandardNormal())
    row = x[:1].clone()
    row[0, 0], row[0, 2] = 0.5, torch.nan
    log_w, _, eta = on_a_grid(model, params, row)
    exact = (log_w.softmax(0)[..., None] * model.likelihood.expectation(params["likelihood"], eta)).sum(0)[0, 2:5]
    drawn, _ = draws(model, params, Batch(row.expand(200, -1)), Proposal(500, 0, is_common=False), 50, True)
    counts = torch.bincount(drawn[..., 2].flatten().long(), minlength=3)
    torch.testing.assert_close(counts / counts.sum(), exact.float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_every_family_of_latents_gives_finite_numbers(posterior, prior):
    likelihood = PerColumn((Gaussian(),), (4,), (0.0,) * 4)
    model = Model(Pieces(MLP((8,)), MLP((8,)), posterior, prior, likelihood), 4, 2, 0)
    params = model.unpack(model.init(torch.float64))
    x = normal((5, 4), generator(0, "rows"), torch.float64)
    x[0], x[1, :2] = torch.nan, torch.nan
    if hasattr(prior, "start_from"):
        prior.start_from(params["prior"], model.inputs(params, x), 0)
    assert expectations(model, params, Batch(x), Proposal(100, 0))[0].isfinite().all()
    assert leave_one_out(model, params, Batch(x), Proposal(100, 0, range(4)))[0][~x.isnan()].isfinite().all()


def test_cells_that_no_latent_explains_leave_finite_numbers():
    model, params = linear_model()
    x = torch.tensor(rows())
    x[:, 0], x[:, 5] = 1e6, torch.nan
    found, _ = expectations(model, params, Batch(x), Proposal(300, 0))
    assert found.isfinite().all()


# --- random numbers ------------------------------------------------------------------------------------------------------

COMMON = {
    "expectations": lambda model, params, batch: expectations(model, params, batch, Proposal(300, 0))[0],
    "leave_one_out": lambda model, params, batch: leave_one_out(model, params, batch, Proposal(300, 0, ALL))[0],
    "quantiles": lambda model, params, batch: quantiles(model, params, batch, Proposal(300, 0, ALL), (0.1, 0.9))[0],
}


@pytest.mark.parametrize("make", [linear_model, narrow_model])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMMON)
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(name, dtype, make):
    model, params = make()
    params = {piece: {key: value.to(dtype) for key, value in named.items()} for piece, named in params.items()}
    x = torch.tensor(rows(70), dtype=dtype)
    whole = COMMON[name](model, params, Batch(x))
    for start, stop in ((0, 1), (33, 34), (40, 70)):
        torch.testing.assert_close(
            COMMON[name](model, params, Batch(x[start:stop])), whole[start:stop], rtol=0, atol=0, equal_nan=True
        )


def test_equal_rows_have_draws_of_their_own_and_a_seed_fixes_them():
    model, params = linear_model()
    batch = Batch(torch.full((70, D), torch.nan, dtype=torch.float64))
    one, again, other = (draws(model, params, batch, Proposal(50, seed, is_common=False), 1, True)[0] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(one.flatten(0, 1).unique(dim=0)) == 70


# --- pieces --------------------------------------------------------------------------------------------------------------


def test_quantiles_of_equal_weights_are_those_of_the_values():
    values = torch.tensor(np.random.default_rng(0).permutation(100) + 1.0)[:, None]
    found = weighted_quantiles(values, torch.zeros(100, 1, dtype=torch.float64), (0.052, 0.5, 0.999))
    assert found.flatten().tolist() == [6.0, 50.0, 100.0]


def test_a_weight_of_three_is_three_values_in_quantiles():
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=20), rng.integers(1, 4, 20)
    found = weighted_quantiles(torch.tensor(values), torch.tensor(np.log(weight)), (0.1, 0.45, 0.8))
    repeated = torch.tensor(np.repeat(values, weight))
    equal = weighted_quantiles(repeated, torch.zeros(len(repeated)), (0.1, 0.45, 0.8))
    assert torch.equal(found, equal)


def test_weights_are_tempered_as_little_as_gives_the_size():
    log_w = normal((200, 3), generator(0, "w"), torch.float64) * torch.tensor([0.1, 5.0, 1000.0])
    exponent = _exponent(log_w, 20.0)
    size = 1 / (log_w * exponent).softmax(0).square().sum(0)
    assert exponent[0] == 1 and size[0] > 20
    np.testing.assert_allclose(size[1:], 20, rtol=0.01)


@pytest.mark.parametrize("n_draws", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("exact", [True, False], ids=["exact encoder", "encoder that knows nothing"])
def test_cells_are_judged_by_as_few_draws_as_there_are(n_draws, exact):
    model, params = linear_model(exact)
    X, proposal = rows(), Proposal(n_draws, 0, ALL)
    assert len(proposal.pool(model, params, Batch(torch.tensor(X)), 0).z) == n_draws
    log_p, sizes = leave_one_out(model, params, Batch(torch.tensor(X)), proposal)
    np.testing.assert_array_equal(log_p.isnan(), np.isnan(X))
    assert ((sizes > 0.999) & (sizes < n_draws + 0.001)).all()
    ends, _ = quantiles(model, params, Batch(torch.tensor(X)), proposal, (0.1, 0.9))
    assert (ends[:, 0] <= ends[:, 1]).all()
