"""Models whose answers are known: probabilistic PCA, factor analysis, quadrature in two latent dimensions."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae._batch import Batch
from skvae._linear import factor_analysis
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE, log_weights
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LOADERS = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}
CASES = [("iris", 2), ("wine", 2), ("wine", 5), ("breast_cancer", 5), ("breast_cancer", 10)]


def standardized(name):
    return StandardScaler().fit_transform(LOADERS[name]().data)


def ppca(X, q):
    """Return the maximal log-likelihood per row of probabilistic PCA, its noise variance and the eigenvalues of cov(X)."""
    d = X.shape[1]
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))[::-1]
    noise = eigenvalues[q:].mean()
    log_likelihood = -0.5 * (d * math.log(2 * math.pi) + np.log(eigenvalues[:q]).sum() + (d - q) * math.log(noise) + d)
    return log_likelihood, noise, eigenvalues


def linear_vae(n_components, **params):
    settings = {"likelihood": Gaussian("shared"), "hidden_layer_sizes": (), "early_stopping": False, "random_state": 0}
    return VAETransformer(n_components, **{**settings, **params})


def model_covariance(vae):
    """Return the covariance of p(x) of a fitted linear model in the user's units, from its parameters."""
    params = vae._fitted.model.unpack(torch.tensor(vae._fitted.params).double())
    loadings = params["decoder"]["weight0"].numpy() * vae._fitted.codec.scale
    return loadings.T @ loadings + np.diag(vae.noise_variance_)


def gaussian_log_likelihood(X, mean, covariance):
    centred = X - mean
    maha = (centred @ np.linalg.inv(covariance) * centred).sum(1)
    return -0.5 * (maha + np.linalg.slogdet(covariance)[1] + X.shape[1] * math.log(2 * math.pi))


# --- probabilistic PCA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "q"), CASES)
def test_linear_model_reaches_the_closed_form_of_probabilistic_pca(name, q):
    X = standardized(name)
    start = time.perf_counter()
    vae = linear_vae(q).fit(X)
    assert time.perf_counter() - start < 10
    assert vae.lower_bound_ == pytest.approx(ppca(X, q)[0], abs=0.001)


@pytest.mark.parametrize(("name", "q", "epochs"), [("iris", 2, 3000), ("wine", 2, 3000), ("wine", 5, 4000)])
def test_training_from_random_weights_reaches_it_too(name, q, epochs):
    X = standardized(name)
    start = time.perf_counter()
    vae = linear_vae(q, init="random", batch_size=len(X), max_iter=epochs, learning_rate="cosine", learning_rate_init=0.01).fit(
        X
    )
    assert time.perf_counter() - start < 10
    assert vae.lower_bound_ == pytest.approx(ppca(X, q)[0], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("q", [5, 10])
def test_training_from_random_weights_reaches_it_on_breast_cancer(q):
    X = standardized("breast_cancer")
    vae = linear_vae(q, init="random", batch_size=569, max_iter=12_000, learning_rate="cosine", learning_rate_init=0.01)
    assert vae.fit(X).lower_bound_ == pytest.approx(ppca(X, q)[0], abs=0.01)


@pytest.mark.parametrize(("name", "q"), CASES)
def test_kl_per_component_is_half_the_log_signal_to_noise_ratio(name, q):
    X = standardized(name)
    _, noise, eigenvalues = ppca(X, q)
    kl = np.sort(linear_vae(q).fit(X).kl_per_component_)[::-1]
    np.testing.assert_allclose(kl, 0.5 * np.log(eigenvalues[:q] / noise), atol=0.01)


@pytest.mark.parametrize(("name", "q"), CASES)
def test_importance_weighted_score_is_the_exact_log_likelihood_of_the_model(name, q):
    X = standardized(name)
    vae = linear_vae(q, score_method=IWAE(2000)).fit(X)
    exact = gaussian_log_likelihood(X, X.mean(0), model_covariance(vae)).mean()
    assert vae.score(X) == pytest.approx(exact, abs=1e-3)


def test_pca_of_scikit_learn_gives_the_same_score():
    X = standardized("wine")
    n = len(X)
    ours = linear_vae(3).fit(X).score(X)
    assert ours == pytest.approx(PCA(3).fit(X * math.sqrt((n - 1) / n)).score(X), abs=0.02)


@pytest.mark.parametrize("noise", [0.3, 0.6, 0.9])
def test_active_units_are_the_eigenvalues_above_the_fixed_noise(noise):
    X = standardized("wine")
    eigenvalues = ppca(X, 1)[2]
    vae = linear_vae(10, likelihood=Gaussian(noise=noise)).fit(X)
    assert vae.active_units_ == (eigenvalues > noise**2).sum().clip(max=10)


def test_active_units_are_found_from_random_weights_too():
    X = standardized("wine")
    vae = linear_vae(8, likelihood=Gaussian(noise=1.0), init="random", batch_size=178, max_iter=2000,
                     learning_rate="cosine", learning_rate_init=0.01).fit(X)  # fmt: skip
    assert vae.active_units_ == (ppca(X, 1)[2] > 1.0).sum()


@pytest.mark.parametrize("beta", [2.0, 4.0])
def test_beta_acts_like_noise_scaled_by_beta(beta):
    """With fixed noise, decoder weights of a beta-VAE satisfy ||w_j||**2 = lambda_j - beta * noise."""
    X = standardized("wine")
    eigenvalues = ppca(X, 1)[2]
    noise = 0.5
    vae = linear_vae(
        4, likelihood=Gaussian(noise=noise), objective=ELBO(beta=beta, n_samples=4), batch_size=178, max_iter=3000,
        learning_rate="cosine", learning_rate_init=0.01,
    ).fit(X)  # fmt: skip
    weights = vae._fitted.model.unpack(torch.tensor(vae._fitted.params))["decoder"]["weight0"].numpy()
    expected = np.clip(eigenvalues[:4] - beta * noise**2, 0, None)
    np.testing.assert_allclose(np.linalg.eigvalsh(weights @ weights.T)[::-1], expected, atol=0.02)


def test_useless_components_change_nothing():
    X = standardized("iris")
    noise = math.sqrt(1.2 * ppca(X, 2)[2][2])
    small, large = (linear_vae(q, likelihood=Gaussian(noise=noise)).fit(X) for q in (2, 4))
    assert large.lower_bound_ == pytest.approx(small.lower_bound_, abs=1e-3)
    assert large.active_units_ == 2


# --- factor analysis -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "q"), [("iris", 1), ("wine", 2), ("breast_cancer", 5)])
def test_linear_model_with_noise_per_feature_reaches_factor_analysis(name, q):
    X = standardized(name)
    exact = FactorAnalysis(q, tol=1e-8, max_iter=5000, svd_method="lapack").fit(X).score(X)
    vae = linear_vae(q, likelihood=Gaussian("feature", floor=1e-3)).fit(X)
    assert vae.lower_bound_ == pytest.approx(exact, abs=0.005)
    assert vae.lower_bound_ <= exact + 1e-4


def test_many_rounds_of_the_linear_start_are_factor_analysis():
    X = standardized("wine")
    S = torch.tensor(np.cov(X.T, bias=True))
    solution = factor_analysis(S, 2, "feature", 1e-3, n_iter=3000)
    covariance = solution.loadings.mT @ solution.loadings + torch.diag(solution.noise_variance[0])
    exact = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(X).score(X)
    assert gaussian_log_likelihood(X, X.mean(0), covariance.numpy()).mean() == pytest.approx(exact, abs=1e-5)


def test_linear_start_has_the_exact_posterior():
    X = standardized("wine")
    S = torch.tensor(np.cov(X.T, bias=True))
    solution = factor_analysis(S, 3, "feature", 1e-3)
    W, psi = solution.loadings.numpy(), solution.noise_variance.numpy()[0]
    M = np.eye(3) + W / psi @ W.T
    np.testing.assert_allclose(np.diag(np.exp(2 * solution.log_scale.numpy()[0])), np.linalg.inv(M), atol=1e-12)
    np.testing.assert_allclose(solution.projection.numpy().T, np.linalg.inv(M) @ W / psi, atol=1e-12)


# --- two latent dimensions: quadrature -------------------------------------------------------------------------------


def random_model(likelihood, n_columns, seed=0):
    """Return a model with a nonlinear decoder, random float64 parameters, and rows drawn from it."""
    network = MLP((16,), activation="tanh")
    model = Model(Pieces(network, network, Normal(), StandardNormal(), likelihood), n_columns, 2, seed)
    flat = 0.5 * normal((model.layout.size,), generator(seed, "test"), torch.float64)
    params = model.unpack(flat)
    params["encoder"] = {name: 0.05 * v for name, v in params["encoder"].items()}
    if params["likelihood"]:
        likelihood.set_noise(params["likelihood"], torch.full((1, n_columns), math.log(0.5), dtype=torch.float64))
    x = model.sample(params, 20, generator(seed, "rows"), noise=True, dtype=torch.float64)
    return model, params, Batch(x)


def quadrature(model, params, batch, n_nodes=300, limit=8.0):
    """Return log p(x) per row by the trapezoid rule on [-8, 8]**2, with nodes and log joint densities."""
    axis = torch.linspace(-limit, limit, n_nodes, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None, :]  # (s, 1, 2)
    log_joint = model.log_likelihood(params, batch, z).sum(-1) + model.log_prior(params, z).sum(-1)
    log_cell = 2 * math.log(float(axis[1] - axis[0]))
    return torch.logsumexp(log_joint, 0) + log_cell, z, log_joint + log_cell


MODELS = [(Gaussian("feature"), 5), (Gaussian("network"), 4), (Bernoulli(), 10)]


@pytest.mark.parametrize(("likelihood", "d"), MODELS, ids=lambda v: repr(v))
def test_importance_weighted_bound_matches_quadrature(likelihood, d):
    model, params, batch = random_model(likelihood, d)
    exact = quadrature(model, params, batch)[0]
    noise = normal((20_000, 1, 2), generator(1, "score"), torch.float64)
    # A posterior as wide as the prior covers every mode, so that importance weights have a finite variance.
    params["encoder"] = {name: torch.zeros_like(v) for name, v in params["encoder"].items()}
    estimate = IWAE(20_000).bound(model, params, batch, noise)
    assert float((estimate - exact).mean()) == pytest.approx(0.0, abs=1e-2)


@pytest.mark.parametrize(("likelihood", "d"), MODELS, ids=lambda v: repr(v))
def test_log_evidence_is_elbo_plus_kl_to_the_true_posterior(likelihood, d):
    """Equation 1 of the paper, both sides by quadrature over the same nodes."""
    model, params, batch = random_model(likelihood, d)
    log_evidence, z, log_joint = quadrature(model, params, batch)
    q = model.encode(params, batch)
    log_q = model.posterior.log_prob(q, z).sum(-1)
    log_cell = 2 * math.log(16 / 299)
    weight = (log_q + log_cell).exp()
    elbo = (weight * (log_joint - log_cell - log_q)).sum(0)
    kl = (weight * (log_q - (log_joint - log_cell - log_evidence))).sum(0)
    draws = log_weights(model, params, batch, normal((20_000, 20, 2), generator(0, "draws"), torch.float64))
    torch.testing.assert_close(elbo + kl, log_evidence, atol=1e-6, rtol=0)
    assert ((draws.mean(0) - elbo).abs() < 5 * draws.std(0) / math.sqrt(len(draws))).all()
    assert (kl > 0).all()


def test_fitted_nonlinear_model_scores_match_quadrature():
    X = standardized("iris")
    vae = VAETransformer(2, hidden_layer_sizes=(16,), max_iter=200, random_state=0, score_method=IWAE(5000)).fit(X)
    fitted = vae._fitted
    params = fitted.model.unpack(torch.tensor(fitted.params).double())
    batch = fitted.codec.encode(X[:40], dtype=torch.float64)
    exact = quadrature(fitted.model, params, batch)[0].numpy() + fitted.codec.log_jacobian
    assert vae.score_samples(X[:40]).mean() == pytest.approx(exact.mean(), abs=1e-2)
    assert logsumexp(exact) >= logsumexp(vae.set_params(score_method="elbo").score_samples(X[:40])) - 1e-2


# --- the two estimators (section 1.1 of the paper) -------------------------------------------------------------------


def linear_model_at_optimum(q=2):
    """Return the optimal linear model of wine, in float64, with its data."""
    X = torch.tensor(standardized("wine"))
    S = X.mT @ X / len(X)
    solution = factor_analysis(S, q, "shared", 1e-3)
    network, likelihood = MLP(()), Gaussian("shared", floor=1e-6)
    model = Model(Pieces(network, network, Normal(), StandardNormal(), likelihood), 13, q, 0)
    flat = model.init(torch.float64)
    params = model.unpack(flat)
    zero = torch.zeros_like(solution.projection)
    bias = torch.cat([torch.zeros_like(solution.log_scale), solution.log_scale], 1)
    model.encoder.set_linear(params["encoder"], torch.cat([solution.projection, zero], 1), bias)
    model.decoder.set_linear(params["decoder"], solution.loadings, torch.zeros(1, 13, dtype=torch.float64))
    likelihood.set_noise(params["likelihood"], 0.5 * solution.noise_variance.log())
    return model, params, Batch(X)


def test_estimators_a_and_b_agree_in_mean():
    model, params, batch, = linear_model_at_optimum()  # fmt: skip
    batch = batch.slice(0, 20)
    params["encoder"]["bias0"][:, 2:] += math.log(2.0)  # a posterior twice too wide
    noise = normal((20_000, 20, 2), generator(0, "ab"), torch.float64)
    a = log_weights(model, params, batch, noise)
    b = torch.stack([ELBO().bound(model, params, batch, e[None]) for e in noise[:4000]])
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


def test_value_of_estimator_a_has_no_variance_at_the_exact_posterior():
    model, params, batch = linear_model_at_optimum()
    noise = normal((200, len(batch), 2), generator(0, "variance"), torch.float64)
    a = log_weights(model, params, batch, noise)
    b = torch.stack([ELBO().bound(model, params, batch, e[None]) for e in noise])
    assert float(a.var(0).max()) < 1e-20
    assert float(b.var(0).mean()) == pytest.approx(0.98, abs=0.1)


@pytest.mark.parametrize("widening", [1.0, 2.0])
def test_gradient_variances_are_ordered(widening):
    """Reparameterised gradients beat the score function by far, and estimator B beats A (with respect to the mean of q)."""
    model, params, batch = linear_model_at_optimum()
    q = model.encode(params, batch).clone()
    q[:, 2:] += math.log(widening)
    n_draws = 2000
    noise = normal((n_draws, len(batch), 2), generator(0, "gradient"), torch.float64)

    def joint_and_entropy(q):
        z = model.posterior.sample(q, noise)
        log_joint = model.log_likelihood(params, batch, z).sum(-1) + model.log_prior(params, z).sum(-1)
        return z, log_joint, model.posterior.log_prob(q, z).sum(-1)

    def mean_gradient_variance(value):
        # Gradient of every draw with respect to that draw's own copy of the mean.
        gradient = torch.autograd.grad(value.sum(), copies)[0][..., :2]
        return float(gradient.var(0).sum(-1).mean())

    copies = q.expand(n_draws, *q.shape).clone().requires_grad_()
    z, log_joint, log_q = joint_and_entropy(copies)
    a = mean_gradient_variance(log_joint - log_q)
    copies = q.expand(n_draws, *q.shape).clone().requires_grad_()
    z, _, _ = joint_and_entropy(copies)
    kl = model.posterior.kl(copies, model.prior).sum(-1)
    b = mean_gradient_variance(model.log_likelihood(params, batch, z).sum(-1) - kl)
    copies = q.expand(n_draws, *q.shape).clone().requires_grad_()
    z, log_joint, log_q = joint_and_entropy(copies)
    learning_signal = (log_joint - log_q).detach()
    score = mean_gradient_variance(learning_signal * model.posterior.log_prob(copies, z.detach()).sum(-1))
    assert b <= a
    assert score >= 10 * b


# --- invariances -----------------------------------------------------------------------------------------------------


def quick_vae(**params):
    return VAETransformer(2, hidden_layer_sizes=(16,), max_iter=20, random_state=0, **params)


def test_rescaling_columns_moves_the_score_by_minus_the_log_scales():
    X = load_wine().data
    scale = np.exp(np.linspace(-3, 3, 13))
    shift = np.linspace(-5, 5, 13)
    before, after = quick_vae().fit(X), quick_vae().fit(X * scale + shift)
    expected = before.score_samples(X) - np.log(scale).sum()
    np.testing.assert_allclose(after.score_samples(X * scale + shift), expected, atol=2e-3)
    np.testing.assert_allclose(after.transform(X * scale + shift), before.transform(X), atol=2e-3)
    assert after.lower_bound_ == pytest.approx(before.lower_bound_ - np.log(scale).sum(), abs=2e-3)


def test_rescaling_by_powers_of_two_is_exact():
    X = load_wine().data
    scale = 2.0 ** np.arange(-6, 7)
    before, after = quick_vae().fit(X), quick_vae().fit(X * scale)
    np.testing.assert_array_equal(after.transform(X * scale), before.transform(X))
    np.testing.assert_allclose(after.score_samples(X * scale), before.score_samples(X) - np.log(scale).sum(), atol=1e-10)


def test_permuting_columns_of_the_linear_model_leaves_the_score():
    X = standardized("wine")
    order = np.random.default_rng(0).permutation(13)
    vae, permuted = linear_vae(3).fit(X), linear_vae(3).fit(X[:, order])
    assert permuted.lower_bound_ == pytest.approx(vae.lower_bound_, abs=1e-3)
    np.testing.assert_allclose(permuted.noise_variance_, vae.noise_variance_[order], rtol=0.01)


def test_duplicating_every_row_leaves_the_model():
    X = standardized("wine")
    vae, doubled = quick_vae().fit(X), quick_vae().fit(np.vstack([X, X]))
    np.testing.assert_array_equal(doubled.transform(X), vae.transform(X))
    assert doubled.score(X) == vae.score(X)


def test_constant_columns_change_nothing():
    X = load_wine().data
    wide = np.hstack([np.full((178, 1), 7.0), X, np.zeros((178, 2))])
    vae, padded = quick_vae().fit(X), quick_vae().fit(wide)
    np.testing.assert_allclose(padded.transform(wide), vae.transform(X), rtol=1e-4)
    np.testing.assert_allclose(padded.score_samples(wide), vae.score_samples(X), rtol=1e-6)
    sample = padded.sample(5, random_state=0)
    np.testing.assert_array_equal(sample[:, [0, 14, 15]], np.tile([7.0, 0.0, 0.0], (5, 1)))
    np.testing.assert_allclose(sample[:, 1:14], vae.sample(5, random_state=0), rtol=1e-5)


def test_samples_have_the_moments_of_the_model():
    X = standardized("wine")
    vae = linear_vae(3).fit(X)
    sample = vae.sample(200_000, random_state=0)
    np.testing.assert_allclose(sample.mean(0), X.mean(0), atol=0.02)
    np.testing.assert_allclose(np.cov(sample.T), model_covariance(vae), atol=0.02)


def test_bounds_are_ordered():
    X = standardized("iris")
    vae = VAETransformer(2, hidden_layer_sizes=(16,), max_iter=50, random_state=0).fit(X)
    scores = [vae.set_params(score_method=method).score(X) for method in (ELBO(n_samples=512), IWAE(10), IWAE(1000))]
    assert scores[0] <= scores[1] <= scores[2]
