"""Every pair of posterior and prior, from fit to score, with the exact log-likelihood by quadrature beside it."""

import pickle

import numpy as np
import pytest
import torch
from conftest import PAIRS, table_for
from scipy import stats
from sklearn.base import clone

from skvae import VAETransformer, posteriors, priors
from skvae._batch import Batch
from skvae._families import Support
from skvae.evaluation import AnnealedImportance, PosteriorDensity, log_likelihood
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import IWAE

F64 = torch.float64
X = table_for(Gaussian(), n_rows=80)
N_NODES = 300


def model_of(posterior, prior, **params):
    settings = {"hidden_layer_sizes": (16,), "max_iter": 60, "dtype": "float64", "random_state": 0}
    return VAETransformer(2, posterior=posterior, prior=prior, learning_rate="cosine", **{**settings, **params})


def quantiles(prior):
    """Return the quantiles of a prior in one dimension at the midpoints of a fine grid."""
    u = (np.arange(N_NODES) + 0.5) / N_NODES
    if isinstance(prior, priors.StudentT):
        return stats.t(prior.df, prior.loc, prior.scale).ppf(u)
    if isinstance(prior, priors.Beta):
        return stats.beta(prior.concentration1, prior.concentration0).ppf(u)
    if isinstance(prior, priors.StandardNormal):
        return stats.norm.ppf(u)
    noise = torch.tensor(stats.norm.ppf(u))
    return prior.family.draw(noise, *prior.member(noise)).numpy()


def nodes(vae):
    """Return nodes z and weights with which sums over nodes are integrals under the prior.  # (n, 2), (n,)"""
    prior = vae.prior
    if isinstance(prior, priors.Dirichlet):
        first = stats.beta(prior.concentration, prior.concentration).ppf((np.arange(20_000) + 0.5) / 20_000)
        return np.column_stack([first, 1 - first]), np.full(20_000, 1 / 20_000)
    if prior.shapes(2, 4):  # a mixture, of any place and width: a wide and fine grid, weighed by the density
        grid = np.linspace(-12, 12, 1201)
        if vae._fitted.model.posterior.support.sums_to_one:
            angle = (np.arange(40_000) + 0.5) / 40_000 * np.pi / 2  # nodes crowd at both ends, where densities may rise
            z, cell = np.column_stack([np.sin(angle) ** 2, np.cos(angle) ** 2]), np.sin(2 * angle) * np.pi / 2 / 40_000
        else:
            z, cell = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2), (grid[1] - grid[0]) ** 2
        model = vae._fitted.model
        with torch.no_grad():
            log_p = model.log_prior(model.unpack(torch.tensor(vae._fitted.params)), torch.tensor(z)).sum(-1)
        return z, log_p.exp().numpy() * cell
    axis = quantiles(prior)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), np.full(N_NODES**2, 1 / N_NODES**2)


def exact(vae, rows):
    """Return log p(x) of a few rows by quadrature over the latents that q(z|x) reaches: all, if it is not bounded."""
    z, weight = nodes(vae)
    assert weight.sum() == pytest.approx(1, abs=0.01)
    model = vae._fitted.model
    params = model.unpack(torch.tensor(vae._fitted.params))
    encoded = vae._fitted.codec.encode(rows, dtype=F64).x
    with torch.no_grad():
        eta = model.decode(params, torch.tensor(z))
        values = []
        for x in encoded:
            log_px = model.likelihood.log_prob(params["likelihood"], eta, x[None]).sum(-1)
            log_q = model.posterior.log_prob(model.encode(params, Batch(x[None])), torch.tensor(z)).sum(-1)
            reached = torch.where(log_q > -torch.inf, 0.0, -torch.inf)
            values.append(torch.logsumexp(log_px + torch.tensor(weight).log() + reached, 0))
    return torch.stack(values).numpy() + vae._fitted.codec.log_jacobian


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_scores_match_quadrature(posterior, prior):
    vae = model_of(posterior, prior, score_method=IWAE(5000)).fit(X)
    rows = X[::8]
    values = vae.score_samples(rows)
    np.testing.assert_allclose(values.mean(), exact(vae, rows).mean(), atol=0.05)
    assert vae.set_params(score_method="elbo").score(rows) <= values.mean() + 0.05


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_chains_match_quadrature_or_are_refused(posterior, prior):
    vae = model_of(posterior, prior, max_iter=30).fit(X)
    rows, support = X[::8], vae._fitted.model.support
    for method in (AnnealedImportance(50), PosteriorDensity(100)):
        if support.sums_to_one or (support != Support() and isinstance(method, PosteriorDensity)):
            with pytest.raises(ValueError, match="Use importance weighting|Use score_method"):
                log_likelihood(vae, rows, method)
        elif type(posterior).__name__ not in ("Uniform", "Triangular"):  # which are exact on a box alone
            found = log_likelihood(vae, rows, method)
            error = 5 * np.sqrt(np.mean(found.standard_error**2) / len(rows)) + 0.02
            assert abs(found.value.mean() - exact(vae, rows).mean()) < error


def test_monte_carlo_em_refuses_shares():
    with pytest.raises(ValueError, match="cannot keep a sum of one"):
        model_of("dirichlet", "dirichlet", solver="mcem").fit(X)


@pytest.mark.parametrize(
    "solver, name",
    [(solver, name) for solver, third in (("wake-sleep", "laplace"), ("mcem", "cauchy")) for name in ("gamma", "beta", third)],
)
def test_other_solvers_train_other_families(solver, name):
    vae = model_of(name, name, solver=solver, max_iter=150, learning_rate_init=1e-2).fit(X)
    begun = model_of(name, name, solver=solver, max_iter=1, learning_rate_init=1e-2).fit(X)
    for model in (vae, begun):  # by what training is judged
        model.set_params(score_method="iwae" if solver == "mcem" else "elbo")
    assert vae.score(X) > begun.score(X) + 0.2
    assert np.isfinite(vae.score_samples(X)).all()


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_all_methods_work(posterior, prior):
    vae = model_of(posterior, prior, max_iter=5, dtype="float32").fit(X)
    Z, support = vae.transform(X), vae._fitted.model.posterior.support
    assert Z.shape == (80, 2)
    assert (support.low < Z).all()
    assert (support.high > Z).all()
    assert vae.inverse_transform(np.where(np.isfinite(Z), Z, 10.0)).shape == X.shape
    assert vae.sample_posterior(X, 3, random_state=0).shape == (3, 80, 2)
    assert vae.posterior_moments(X).std.shape == (80, 2)
    assert vae.sample(30, random_state=0).shape == (30, 4)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.kl_per_component_.shape == (2,)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).transform(X), Z)
    np.testing.assert_array_equal(clone(vae).fit(X).transform(X), Z)
    np.testing.assert_array_equal(vae.transform(X[3:4]), Z[3:4])


@pytest.mark.parametrize("name", ["laplace", "gamma", "dirichlet", "log_normal", "student_t"])
def test_pairs_are_found_by_name(name):
    vae = model_of(name, name, max_iter=2).fit(X)
    assert type(vae._fitted.model.posterior).__name__ == type(vae._fitted.model.prior).__name__


def test_an_impossible_pair_is_refused_by_fit():
    vae = model_of(posteriors.Normal(), priors.Gamma())
    with pytest.raises(ValueError, match="their KL is infinite"):
        vae.fit(X)
    assert not hasattr(vae, "n_features_in_")


def test_a_learnt_prior_finds_the_groups_of_the_data():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 3)) * 0.3 + 4 * rng.integers(2, size=(600, 1)) * np.array([1, -1, 1])
    fits = {
        prior: VAETransformer(
            1,
            prior=prior,
            encoder=MLP((16,)),
            decoder=MLP(()),
            init="random",
            max_iter=100,
            learning_rate="cosine",
            random_state=0,
        ).fit(rows)
        for prior in ("normal", "mixture", "vamp")
    }
    scores = {prior: vae.score(rows) for prior, vae in fits.items()}
    assert scores["mixture"] > scores["normal"] + 0.3
    assert scores["vamp"] > scores["normal"] + 0.3
    z = fits["mixture"].transform(fits["mixture"].sample(500, random_state=0))
    assert stats.kurtosis(z[:, 0]) < -1  # two humps


def test_rows_of_a_vamp_prior_model_do_not_look_at_each_other():
    vae = model_of(posteriors.Normal(), priors.VampPrior(6), max_iter=3, dtype="float32").fit(X)
    np.testing.assert_array_equal(vae.score_samples(X)[5:9], vae.score_samples(X[5:9]))


def test_encoding_pseudo_inputs_takes_rows_as_the_encoder_does():
    vae = model_of(posteriors.Normal(), priors.VampPrior(6), max_iter=3).fit(X)
    model, params = vae._fitted.model, vae._fitted.model.unpack(torch.tensor(vae._fitted.params))
    given = model.prior.given(model, params)
    torch.testing.assert_close(given["q"], model.encode(params, Batch(params["prior"]["pseudo_inputs"])))
