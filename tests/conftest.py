"""The pieces that every property test runs over, and small data. Who adds a piece adds it to a list here."""

import os

os.environ["SCIPY_ARRAY_API"] = "1"  # before scipy is imported, or scikit-learn's check of array API inputs does nothing

import numpy as np
import pytest
import torch
from torch import nn

from skvae import posteriors, priors
from skvae.evaluation import AnnealedImportance, PosteriorDensity, RefinedImportance
from skvae.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    Gamma,
    Gaussian,
    Laplace,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    NormalMixture,
    Ordinal,
    Poisson,
    SelfMasking,
    StudentT,
    TruncatedNormal,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from skvae.networks import MLP, Conv, ConvTranspose, Module, VariationalMLP
from skvae.objectives import ELBO, IWAE, BetaTCVAE, InfoVAE
from skvae.optimizers import SGD, Adagrad, Adam
from skvae.solvers import AEVB, MonteCarloEM, WakeSleep


class SmallNet(nn.Module):
    """A user's own module; the class is its own factory. Its widths fill cache lines, so a row's place does not matter."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.n_out = n_out
        self.layers = nn.Sequential(nn.Linear(n_in, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, n_out + -n_out % 16))

    def forward(self, x):
        return self.layers(x)[:, : self.n_out]


LIKELIHOODS = [
    Gaussian(),
    Gaussian(noise="shared"),
    Gaussian(noise="network"),
    Gaussian(noise=0.5),
    Gaussian(standardize=False),
    Gaussian(link="logit"),
    Gaussian(noise="network", link="logit", standardize=False),
    Bernoulli(),
    Bernoulli(limits=(0, 16)),
    Bernoulli(limits="observed"),
    Bernoulli(limits=(0, 16), binarize="dynamic"),
    Bernoulli(binarize=0.3),
    Categorical(4),
    Ordinal(4),
    Poisson(),
    NegativeBinomial(),
    ZeroInflatedPoisson(),
    ZeroInflatedNegativeBinomial(),
    StudentT(),
    StudentT(4.0, standardize=False),
    Laplace(),
    NormalMixture(3),
    LogNormal(),
    Gamma(),
    Beta(),
    ContinuousBernoulli(),
    TruncatedNormal(ends=(-2.0, 2.5)),
    TruncatedNormal((-1.0, 4.0), standardize=False),
    SelfMasking(),
]
NETWORKS = [MLP((8,)), MLP(()), MLP((8, 4), activation="tanh", skip=False), MLP((8,), init_std=0.01), Module(SmallNet)]
ENCODERS = [*NETWORKS, MLP((6,)), Conv(channels=(4,)), Conv((1, 4), channels=(3, 5), activation="relu")]
DECODERS = [
    *NETWORKS,
    VariationalMLP((8,)),
    ConvTranspose(channels=(4,)),
    ConvTranspose((1, 4), channels=(5, 3), activation="relu"),
]
PAIRS = [
    (posteriors.Normal(), priors.StandardNormal()),
    (posteriors.FullNormal(), priors.StandardNormal()),
    (posteriors.Laplace(), priors.Laplace()),
    (posteriors.Laplace(), priors.StandardNormal()),
    (posteriors.Logistic(), priors.Logistic()),
    (posteriors.StudentT(4.0), priors.StudentT(4.0)),
    (posteriors.Uniform(), priors.StandardNormal()),
    (posteriors.Triangular(), priors.StandardNormal()),
    (posteriors.Cauchy(), priors.Cauchy(0.1, 1.2)),
    (posteriors.Gumbel(), priors.Gumbel()),
    (posteriors.Exponential(), priors.Exponential(0.7)),
    (posteriors.Rayleigh(), priors.Rayleigh(1.3)),
    (posteriors.Weibull(), priors.Weibull(1.2, 1.5)),
    (posteriors.Pareto(), priors.Pareto(2.5)),
    (posteriors.LogNormal(), priors.LogNormal(0.2, 0.9)),
    (posteriors.Gamma(), priors.Gamma(2.0, 1.5)),
    (posteriors.ChiSquared(), priors.ChiSquared(4.0)),
    (posteriors.Beta(), priors.Beta(1.5, 2.0)),
    (posteriors.Beta(), priors.Uniform()),
    (posteriors.Beta(), priors.Triangular()),
    (posteriors.Dirichlet(), priors.Dirichlet(1.5)),
    (posteriors.Normal(), priors.MixtureOfNormals(4)),
    (posteriors.Normal(), priors.VampPrior(6)),
    (posteriors.FullNormal(), priors.VampPrior(6)),
    (posteriors.Dirichlet(), priors.VampPrior(6)),
]
OBJECTIVES = [
    ELBO(),
    ELBO(beta=4, warmup=3),
    ELBO(kl="monte_carlo", n_samples=3),
    ELBO(free_bits=0.3),
    ELBO(kl="monte_carlo", free_bits=0.3),
    IWAE(n_samples=5),
    IWAE(n_samples=5, gradient="doubly_reparameterized"),
    InfoVAE(),
    BetaTCVAE(),
]
OPTIMIZERS = [Adam(), Adagrad(), Adagrad(accumulate_first=2), SGD(), SGD(momentum=0.9)]
SOLVERS = [
    AEVB(),
    AEVB(averaging=0),
    WakeSleep(),
    WakeSleep(3, encoder_phase="wake", averaging=0.9),
    WakeSleep(5, encoder_phase="both"),
    MonteCarloEM(),
    MonteCarloEM(n_leapfrog=3, acceptance=0.7, n_updates=2, averaging=0.9),
]

# every piece once, as parameters of an estimator
SETTINGS = [
    *[{"likelihood": one} for one in LIKELIHOODS],
    *[{"decoder": one} for one in DECODERS],
    *[{"posterior": q, "prior": p} for q, p in PAIRS],
    *[{"objective": one} for one in OBJECTIVES],
    *[{"optimizer": one} for one in OPTIMIZERS],
    *[{"solver": one} for one in SOLVERS],
    {"encoder": Conv((1, 4), channels=(3, 5)), "decoder": ConvTranspose((1, 4), channels=(5, 3))},
]
SCORE_METHODS = [
    PosteriorDensity(n_samples=12, n_moves=6), PosteriorDensity(n_samples=12, density="kde", n_moves=6),
    AnnealedImportance(3, n_chains=2, n_leapfrog=2), AnnealedImportance(3, start="prior", n_chains=2, n_leapfrog=2),
    RefinedImportance(7, max_gap=0),
]  # fmt: skip


def table_for(likelihood, n_rows=40, n_columns=4, seed=0):
    """Return rows that a likelihood accepts: two groups, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_columns)) + 3 * rng.integers(2, size=(n_rows, 1))
    if isinstance(likelihood, Bernoulli):
        low, high = (0, 1) if likelihood.limits == "observed" else likelihood.limits
        if likelihood.binarize is not None:
            return low + (high - low) / (1 + np.exp(-X))
        return low + (high - low) * (X.mean() < X)
    if isinstance(likelihood, Gaussian) and likelihood.link == "logit" and not likelihood.standardize:
        return 1 / (1 + np.exp(-X))
    return within_support(likelihood, X) if isinstance(likelihood, Likelihood) else X


def within_support(likelihood, X):
    """Return numbers that a likelihood accepts, given normal ones."""
    low, high = likelihood.support
    if low <= -1e6:
        return X
    cells = np.exp(0.5 * X) if high > 1e6 else low + (high - low) / (1 + np.exp(-X))
    return np.rint(cells) if likelihood.is_whole else cells


def cells_for(likelihood, shape, seed=0, dtype=torch.float64):
    """Return cells of a table in the units of a likelihood, as a tensor."""
    cells = within_support(likelihood, np.random.default_rng(seed).normal(size=shape))
    return torch.tensor(cells, dtype=dtype)


def assert_same_training(one, other):
    """Assert that two fits ended with the same parameters, history and report, to the last bit."""
    np.testing.assert_array_equal(one._fitted.params, other._fitted.params)
    assert one.history_.keys() == other.history_.keys()
    for name in one.history_:
        np.testing.assert_array_equal(one.history_[name], other.history_[name])
    for name in ("lower_bound_", "n_iter_", "n_steps_", "converged_"):
        assert getattr(one, name) == getattr(other, name)


@pytest.fixture
def X():
    """Forty rows of four numbers."""
    return table_for(Gaussian())
