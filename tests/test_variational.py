"""Full variational Bayes: uncertain weights against exact evidence, and through the estimator."""

import math

import numpy as np
import pytest
import torch
from conftest import table_for
from scipy import integrate, stats
from torch import distributions

import skvae
from skvae import VAETransformer
from skvae._random import generator
from skvae.evaluation import AnnealedImportance, log_likelihood
from skvae.likelihoods import Gaussian
from skvae.networks import MLP, VariationalMLP

F64 = torch.float64


def leaves_of(network, n_in, n_out):
    return {name: value.clone().requires_grad_() for name, value in network.init(n_in, n_out, seed=0).items()}


def maximise(bound, leaves, n_steps=1200, rate=0.05):
    """Raise a bound by Adam with a falling step size; return its mean over the last steps, where noise has averaged out."""
    optimizer = torch.optim.Adam(leaves.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (-bound()).backward()
        optimizer.step()
        schedule.step()


def test_linear_regression_reaches_the_exact_evidence():
    """With orthogonal inputs the posterior of the weights is normal and without correlations, so the bound is tight."""
    n, noise, prior_std = 16, 0.5, 1.3
    z = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)] * (n // 4), dtype=F64)
    x = z @ torch.tensor([[0.7, -0.2, 0.1], [0.3, 1.5, 0.0]], dtype=F64) + 0.4
    x = x + noise * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    design = torch.cat([z, torch.ones(n, 1, dtype=F64)], 1)
    covariance = prior_std**2 * design @ design.mT + noise**2 * torch.eye(n, dtype=F64)
    evidence = float(distributions.MultivariateNormal(torch.zeros(n, dtype=F64), covariance).log_prob(x.mT).sum())

    network = VariationalMLP((), skip=False, prior_std=prior_std)
    leaves, stream = leaves_of(network, 2, 3), generator(0, "noise")

    def bound():
        out = network.forward({**leaves, "stream": stream}, z.expand(8, n, 2))
        return distributions.Normal(out, noise).log_prob(x).sum((-2, -1)).mean() - network.kl(leaves)

    maximise(bound, leaves)
    with torch.no_grad():
        values = torch.stack([bound() for _ in range(4000)])
    assert float(values.mean()) == pytest.approx(evidence, abs=4 * float(values.std()) / 4000**0.5 + 0.02)
    exact_std = (prior_std**-2 + n / noise**2) ** -0.5
    torch.testing.assert_close(
        leaves["weight0_log_std"].detach().exp(), torch.full((2, 3), exact_std, dtype=F64), rtol=0.1, atol=0
    )


def test_a_bernoulli_column_comes_close_to_its_evidence():
    """One logit with a normal prior, against quadrature; the gap is the KL of the best normal posterior to the true one."""
    ones, n, prior_std = 14, 20, 1.5

    def log_joint(b):
        return ones * -np.logaddexp(0, -b) + (n - ones) * -np.logaddexp(0, b) + stats.norm(0, prior_std).logpdf(b)

    evidence = math.log(integrate.quad(lambda b: math.exp(log_joint(b)), -15, 15)[0])
    network = VariationalMLP((), skip=False, prior_std=prior_std)
    leaves, stream = leaves_of(network, 1, 1), generator(0, "noise")
    x = torch.tensor([1.0] * ones + [0.0] * (n - ones), dtype=F64)

    def bound():
        # The same draw of the logit for all rows: local reparameterisation at one row, which the other rows repeat.
        logit = network.forward({**leaves, "stream": stream}, torch.zeros(64, 1, 1, dtype=F64))[..., 0]
        return distributions.Bernoulli(logits=logit).log_prob(x).sum(-1).mean() - network.kl(leaves)

    maximise(bound, leaves)
    with torch.no_grad():
        value = float(torch.stack([bound() for _ in range(2000)]).mean())
    assert evidence - 0.05 < value < evidence + 0.01
    moments = [integrate.quad(lambda b, p=p: b**p * math.exp(log_joint(b) - evidence), -15, 15)[0] for p in (1, 2)]
    assert float(leaves["bias0"].detach()) == pytest.approx(moments[0], abs=0.05)
    assert float(leaves["bias0_log_std"].detach().exp()) == pytest.approx((moments[1] - moments[0] ** 2) ** 0.5, rel=0.1)


def test_noise_of_rows_has_the_moments_of_drawn_weights():
    network = VariationalMLP((), skip=False)
    params = {name: value + 0.3 for name, value in network.init(3, 2, seed=0).items()}
    params = {name: value - 1 if name.endswith("log_std") else value for name, value in params.items()}
    params = {name: torch.full_like(v, -0.7) if name.endswith("log_std") else v for name, v in params.items()}
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=F64)
    local = network.forward({**params, "stream": generator(0, "a")}, x.expand(200_000, 1, 3))[:, 0]
    stream = generator(0, "b")
    drawn = torch.cat([network.forward(network.draw(params, stream), x) for _ in range(20_000)])
    torch.testing.assert_close(local.mean(0), drawn.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(local.std(0), drawn.std(0), rtol=0.03, atol=0)


def test_kl_is_that_of_torch():
    network = VariationalMLP((5,), prior_std=0.7)
    params = network.init(3, 2, seed=0)
    p = distributions.Normal(torch.zeros((), dtype=F64), 0.7)
    oracle = sum(
        distributions.kl_divergence(distributions.Normal(mean, params[name + "_log_std"].exp()), p).sum()
        for name, mean in network.means(params).items()
    )
    torch.testing.assert_close(network.kl(params), oracle)


def test_without_spread_it_is_the_mlp():
    network, plain = VariationalMLP((5,)), MLP((5,))
    params = {name: torch.full_like(v, -60) if name.endswith("log_std") else v for name, v in network.init(3, 2, 0).items()}
    x = torch.randn(7, 3, dtype=F64)
    torch.testing.assert_close(network.means(params), plain.init(3, 2, 0))
    torch.testing.assert_close(network.forward({**params, "stream": generator(0)}, x), plain.forward(plain.init(3, 2, 0), x))


# --- through the estimator -------------------------------------------------------------------------------------------


def model_of(**params):
    settings = {"hidden_layer_sizes": (8,), "max_iter": 20, "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(2, decoder=VariationalMLP((8,)), **{**settings, **params})


def test_all_methods_work(tmp_path):
    X = table_for(Gaussian(), n_rows=80)
    vae = model_of().fit(X)
    assert vae.transform(X).shape == (80, 2)
    assert vae.reconstruct(X).shape == X.shape
    assert vae.sample(30, random_state=0).shape == (30, 4)
    scores = vae.score_samples(X)
    np.testing.assert_array_equal(vae.score_samples(X[3:9]), scores[3:9])
    vae.save(tmp_path / "m.skvae")
    np.testing.assert_array_equal(skvae.load(tmp_path / "m.skvae").score_samples(X), scores)
    assert np.isfinite(vae.set_params(score_method="elbo").score(X))
    assert np.isfinite(vae.set_params(score_method=AnnealedImportance(3, n_chains=2, n_leapfrog=2)).score(X[:3]))
    with pytest.raises(ValueError, match="weights of this decoder are uncertain"):
        log_likelihood(vae, X)


def test_scores_and_samples_average_over_the_weights():
    X = table_for(Gaussian(), n_rows=30)
    vae = model_of(max_iter=200, learning_rate_init=1e-2).fit(X)
    fitted = vae._fitted
    spread = fitted.model.unpack(torch.tensor(fitted.params))["decoder"]["bias1_log_std"]
    wider = torch.tensor(fitted.params)
    fitted.model.unpack(wider)["decoder"]["bias1_log_std"].fill_(0.5)
    before, samples = vae.score(X), vae.sample(4000, random_state=0)
    object.__setattr__(fitted, "params", wider.numpy())
    assert float(spread.max()) < 0
    assert vae.score(X) < before - 0.5
    assert (vae.sample(4000, random_state=0).std(0) > 1.2 * samples.std(0)).all()


def test_more_rows_make_weights_surer():
    spreads = []
    for n_rows in (20, 2000):
        X = table_for(Gaussian(), n_rows=n_rows)
        vae = model_of(max_iter=400 if n_rows == 20 else 60, learning_rate_init=1e-2, batch_size=100).fit(X)
        params = vae._fitted.model.unpack(torch.tensor(vae._fitted.params))["decoder"]
        spreads.append(float(params["bias1_log_std"].exp().mean()))
    assert spreads[1] < 0.5 * spreads[0]


@pytest.mark.filterwarnings("ignore:The bound was still rising")
def test_training_goes_on_as_if_nothing_had_happened():
    X = table_for(Gaussian(), n_rows=60)
    constant = {"learning_rate": "constant", "tol": 0.0, "n_iter_no_change": 1000, "warm_start": True}
    whole = model_of(max_iter=12, **constant).fit(X)
    parts = model_of(max_iter=5, **constant).fit(X).set_params(max_iter=12).fit(X)
    np.testing.assert_array_equal(parts._fitted.params, whole._fitted.params)


@pytest.mark.parametrize("solver", ["wake-sleep", "mcem"])
def test_other_solvers_refuse_uncertain_weights(solver):
    with pytest.raises(ValueError, match="does not learn uncertain weights"):
        model_of(solver=solver).fit(table_for(Gaussian()))


def test_an_uncertain_encoder_is_refused():
    with pytest.raises(ValueError, match="Use MLP for the encoder"):
        VAETransformer(2, encoder=VariationalMLP()).fit(table_for(Gaussian()))


@pytest.mark.filterwarnings("ignore:The bound was still rising")
def test_few_rows_are_not_overfitted():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1030, 8)) @ rng.normal(size=(8, 8)) / 3
    train, test = X[:30], X[30:]
    options = {"early_stopping": False, "learning_rate": "constant", "tol": 0.0, "n_iter_no_change": 10**6, "init": "random"}
    shared = {"max_iter": 1500, "learning_rate_init": 1e-2, "random_state": 0, "encoder": MLP((32,)), **options}
    point = VAETransformer(4, decoder=MLP((32,)), **shared).fit(train)
    uncertain = VAETransformer(4, decoder=VariationalMLP((32,)), **shared).fit(train)
    assert uncertain.score(test) > point.score(test) + 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_training_is_judged_by_the_bound_on_the_evidence_and_reports_it():
    X = table_for("gaussian")[:45]
    vae = VAETransformer(
        2, decoder=VariationalMLP((8,), prior_std=0.05), early_stopping=False, max_iter=1500, random_state=0
    ).fit(X)
    model, params = vae._fitted.model, vae._fitted.model.unpack(torch.tensor(vae._fitted.params))
    kl = float(model.kl_of_weights(params)) / len(X)
    assert vae.lower_bound_ == pytest.approx(vae.set_params(score_method="elbo").score(X) - kl, abs=0.3)
    assert vae.history_["lower_bound"][-1] == pytest.approx(vae.lower_bound_, abs=0.5)
    independent = stats.norm(X.mean(0), X.std(0)).logpdf(X).sum(1).mean()
    assert kl < 5 and vae.lower_bound_ > independent - 5  # the start, of the linear solution, has a KL of thousands of nats
