"""Priors against torch's distributions, and their draws against their densities."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import PAIRS
from scipy import special, stats
from torch import distributions

from skvae import priors
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP
from skvae.posteriors import Gamma, Normal

F64 = torch.float64
OWN = [prior for _, prior in PAIRS if not prior.shapes(3, 4)]


@pytest.mark.parametrize("prior", OWN, ids=repr)
def test_the_density_integrates_to_one(prior):
    if prior.support.sums_to_one:  # three shares: a triangle in the plane of the first two
        u = (torch.arange(600, dtype=F64) + 0.5) / 600
        first, second = torch.meshgrid(u, u, indexing="ij")
        z = torch.stack([first, second, 1 - first - second], -1).view(-1, 3)
        z = z[z[:, 2] > 0]
        assert float(prior.log_prob({}, z).sum(-1).exp().sum() / 600**2) == pytest.approx(1, abs=0.01)
        return
    low, high = prior.support.low, prior.support.high
    t = torch.linspace(-0.9999, 0.9999, 2_000_001, dtype=F64)[:, None]
    if math.isinf(low):
        z, slope = t / (1 - t.square()), (1 + t.square()) / (1 - t.square()).square()
    elif math.isinf(high):
        z, slope = low + (1 + t) / (1 - t), 2 / (1 - t).square()
    else:
        z, slope = low + (high - low) * (1 + t) / 2, torch.full_like(t, (high - low) / 2)
    integral = torch.trapezoid((prior.log_prob({}, z).exp() * slope)[:, 0], t[:, 0])
    assert float(integral) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("prior", OWN, ids=repr)
def test_draws_have_the_density(prior):
    z = prior.sample({}, (100_000, 3), generator(0), F64)
    assert z.shape == (100_000, 3)
    other = prior.sample({}, (100_000, 3), generator(1), F64)
    half = z[:, 0].median()  # the mass below the median of one set of draws, by the other and by the density
    assert abs(float((other[:, 0] < half).double().mean()) - 0.5) < 0.01
    assert prior.log_prob({}, z).isfinite().all()


@pytest.mark.parametrize("prior", [prior for prior in OWN if not prior.support.sums_to_one], ids=repr)
def test_draws_lie_below_the_quantiles_as_often_as_they_say(prior):
    u = torch.tensor([0.05, 0.5, 0.8], dtype=F64)
    z = prior.sample({}, (100_000, 1), generator(0), F64)
    torch.testing.assert_close((z < prior.quantile(u)).double().mean(0), u, rtol=0, atol=0.006)


def test_components_that_depend_on_each_other_have_no_quantiles():
    offered = {type(prior).__name__ for _, prior in PAIRS if not prior.offers("quantile")}
    assert offered == {"Dirichlet", "MixtureOfNormals", "VampPrior"}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("concentration", [0.01, 0.02, 0.3])
@pytest.mark.parametrize("k", [2, 5])
def test_sparse_dirichlet_draws_have_beta_marginals(k, concentration, dtype):
    z = priors.Dirichlet(concentration).sample({}, (20_000, k), generator(0), dtype)
    assert z.dtype == dtype
    torch.testing.assert_close(z.sum(-1), torch.ones(20_000, dtype=dtype))
    marginal = stats.beta(concentration, (k - 1) * concentration)
    for low, high in ((0.01, 0.4), (0.4, 0.6), (0.6, 0.99)):
        p = np.diff(marginal.cdf([low, high])).item()
        for share in z.mT.numpy():
            assert abs(np.mean((low < share) & (share < high)) - p) < 5 * np.sqrt(p / 20_000)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (F64, 1e-13)])
@pytest.mark.parametrize("concentration", [0.03, 1.0, 2.0, 7.5])
def test_dirichlet_density_keeps_its_digits_at_the_corners_in_any_order(concentration, dtype, tolerance):
    """The sum of (a - 1) log z and a constant, of which a part of all but 1e-12 leaves digits in any float."""
    for shares in ([1 - 3e-12, 1e-12, 2e-12], [1e-30, 1 - 1e-6, 1e-6], [0.2, 0.5, 0.3]):
        exact = (concentration - 1) * np.log(shares).sum() + special.gammaln(3 * concentration)
        exact -= 3 * special.gammaln(concentration)
        for order in itertools.permutations(shares):
            z = torch.tensor(order, dtype=F64).to(dtype)
            value = float(priors.Dirichlet(concentration).log_prob({}, z).sum())
            assert value == pytest.approx(exact, rel=tolerance, abs=tolerance)


def test_dirichlet_density_of_each_component_is_that_given_those_before_it():
    a, z = 0.7, torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    values = priors.Dirichlet(a).log_prob({}, z)
    assert float(values[0]) == pytest.approx(stats.beta(a, 2 * a).logpdf(0.2))
    assert float(values[1]) == pytest.approx(stats.beta(a, a).logpdf(0.5 / 0.8) - math.log(0.8))
    assert float(values[2]) == 0


def test_rows_of_mixtures_have_the_sums_of_components():
    prior = priors.MixtureOfNormals(7)
    params = {name: value.double() for name, value in prior.init(3, 5, generator(0)).items()}
    z = torch.randn(2, 400, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    expected = prior.log_prob(params, z).sum(-1)
    torch.testing.assert_close(prior.log_prob_rows(params, z), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(params, z).sum(-1), expected, rtol=1e-12, atol=1e-12)


def test_mixture_is_that_of_torch():
    prior = priors.MixtureOfNormals(4)
    params = {name: value.double() for name, value in prior.init(3, 5, generator(0)).items()}
    params["logit"] = torch.tensor([[0.1], [-1.0], [2.0], [0.0]], dtype=F64)
    params["log_scale"] = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) / 2
    modes = distributions.Independent(distributions.Normal(params["mean"], params["log_scale"].exp()), 1)
    oracle = distributions.MixtureSameFamily(distributions.Categorical(logits=params["logit"][:, 0]), modes)
    z = torch.randn(7, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    values = prior.log_prob(params, z)
    assert values.shape == z.shape
    torch.testing.assert_close(values.sum(-1), oracle.log_prob(z))
    draws = prior.sample(params, (100_000, 3), generator(2), F64)
    torch.testing.assert_close(draws.mean(0), oracle.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(draws.var(0), oracle.variance, rtol=0.05, atol=0)


def model_with(prior, posterior, likelihood):
    net = MLP((8,), activation="tanh", skip=False)
    return Model(Pieces(net, net, posterior, prior, likelihood), 4, 3, 0)


@pytest.mark.parametrize("posterior", [Normal(), Gamma()], ids=repr)
def test_vamp_prior_is_the_average_of_posteriors(posterior):
    prior = priors.VampPrior(5)
    model = model_with(prior, posterior, Gaussian())
    params = model.unpack(model.init(F64))
    params["prior"]["logit"].copy_(torch.tensor([[0.1], [-1.0], [2.0], [0.0], [0.5]]))
    given = prior.given(model, params)
    z = posterior.sample(given["q"][:2], torch.randn(6, 2, posterior.n_noise(3), dtype=F64))
    weights = params["prior"]["logit"][:, 0].softmax(0)
    each = torch.stack([posterior.log_prob(given["q"][j], z).sum(-1).exp() for j in range(5)], -1)
    torch.testing.assert_close(model.log_prior(params, z).sum(-1), (each * weights).sum(-1).log())
    draws = prior.sample(given, (50_000, 3), generator(2), F64)
    torch.testing.assert_close(draws.mean(0), (weights[:, None] * posterior.mean(given["q"])).sum(0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("prior", [priors.MixtureOfNormals(4), priors.VampPrior(5)], ids=repr)
def test_rows_with_conditions_have_weights_of_their_own(prior):
    model = model_with(prior, Normal(), Gaussian())
    own = prior.given(model, model.unpack(model.init(F64)))
    log_odds, z = 3 * normal((3, prior.n_weights), generator(0), F64), normal((6, 3, 3), generator(1), F64)
    params = {**own, "log_odds": log_odds}
    density, draws = prior.log_prob(params, z), prior.sample(params, (40_000, 3, 3), generator(2), F64)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(params, z), density)
    common = prior.sample(params, (50, 1, 3), generator(3), F64)
    assert common.shape == (50, 3, 3)
    for i in range(3):
        alone = {**own, "logit": own["logit"] + log_odds[i, :, None]}
        torch.testing.assert_close(density[:, i], prior.log_prob(alone, z[:, i]))
        if prior.offers("log_prob_rows"):
            torch.testing.assert_close(prior.log_prob_rows(params, z)[:, i], prior.log_prob_rows(alone, z[:, i]))
        others = prior.sample(alone, (40_000, 3), generator(4), F64)
        torch.testing.assert_close(draws[:, i].mean(0), others.mean(0), rtol=0, atol=0.04)
        only = {**own, "log_odds": log_odds[i : i + 1]}
        torch.testing.assert_close(prior.sample(only, (50, 1, 3), generator(3), F64), common[:, i : i + 1])


def test_pseudo_inputs_start_as_rows_of_the_data_and_stay_within_bounds():
    prior, x = priors.VampPrior(5), torch.rand(8, 4)
    params = prior.init(3, 4, generator(0))
    prior.start_from(params, x, seed=0)
    assert all((row == x).all(1).any() for row in params["pseudo_inputs"])
    assert len(params["pseudo_inputs"].unique(dim=0)) == 5
    few = prior.init(3, 4, generator(0))
    prior.start_from(few, x[:2], seed=0)
    assert len(few["pseudo_inputs"].unique(dim=0)) == 2
    model = model_with(prior, Normal(), Bernoulli())
    far, edge = (model.unpack(model.init(F64)) for _ in range(2))
    far["prior"]["pseudo_inputs"].fill_(7.0)
    edge["prior"]["pseudo_inputs"].fill_(1.0)
    torch.testing.assert_close(prior.given(model, far)["q"], prior.given(model, edge)["q"])
