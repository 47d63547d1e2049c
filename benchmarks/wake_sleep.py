"""Wake-sleep and AEVB on Frey faces in the recipe of the paper (its figure 2). Prints the bound over samples evaluated.

    python benchmarks/wake_sleep.py [samples, default 100000]

The data are pixels / 256, split at random; nats are those of these units. Takes about two minutes of a core.
"""

import sys
import warnings

import numpy as np
from _data import data_folder

from skvae import VAETransformer
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.optimizers import Adagrad
from skvae.solvers import AEVB, WakeSleep


class SigmoidMean(Gaussian):
    """Gaussian whose mean is the sigmoid of the decoder's output, as pixels are between 0 and 1."""

    def _mean_and_log_scale(self, params, eta):
        mean, log_scale = super()._mean_and_log_scale(params, eta)
        return mean.sigmoid(), log_scale

    def log_prob(self, params, eta, x):
        """Return the density; overridden so that the closed derivative of the base is not used."""
        return super().log_prob(params, eta, x)


def frey_faces():
    """Return training and test rows, split at random as in the paper."""
    X = np.load(data_folder() / "frey_faces.npz")["X"] / 256.0
    order = np.random.default_rng(0).permutation(len(X))
    return X[order[:1565]], X[order[1565:]]


def recipe(solver, likelihood, n_components, learning_rate_init=0.02):
    """Return the estimator of section 5 of the paper."""
    network = MLP((200,), activation="tanh", skip=False, init_std=0.01)
    return VAETransformer(
        n_components, likelihood=likelihood, encoder=network, decoder=network, objective=ELBO(kl="monte_carlo"), solver=solver,
        optimizer=Adagrad(accumulate_first=10), learning_rate="constant", learning_rate_init=learning_rate_init, alpha=1.0,
        batch_size=100, tol=0.0, n_iter_no_change=10**6, early_stopping=False, warm_start=True, init="random", random_state=0,
        score_method="elbo",
    )  # fmt: skip


def independent_pixels(X_train, X):
    """Return nats per row of one normal distribution per pixel, the best that a decoder can do that ignores its input."""
    mean, variance = X_train.mean(0), X_train.var(0)
    return float((-0.5 * ((X - mean) ** 2 / variance + np.log(2 * np.pi * variance))).sum(1).mean())


def main(n_samples):
    """Print test and training bounds at a third of the samples, and at all."""
    warnings.simplefilter("ignore")
    X_train, X_test = frey_faces()
    test, train = (independent_pixels(X_train, X) for X in (X_test, X_train))
    print(f"independent pixels: test {test:.1f}, train {train:.1f}")
    print(f"{'solver':10s}  {'mean':8s}  {'Nz':>2s}  {'samples':>8s}  {'test':>7s}  {'train':>7s}  {'active':>6s}")
    for mean, likelihood in (("sigmoid", SigmoidMean), ("plain", Gaussian)):
        for name, solver in (("wake-sleep", WakeSleep()), ("aevb", AEVB(averaging=0))):
            for n_components in (2, 10):
                vae = recipe(solver, likelihood("network", standardize=False), n_components)
                for share in (1 / 3, 1):
                    epochs = round(share * n_samples / len(X_train))
                    vae.set_params(max_iter=epochs).fit(X_train)
                    scores = f"{vae.score(X_test):7.1f}  {vae.score(X_train):7.1f}  {vae.active_units_:6d}"
                    print(f"{name:10s}  {mean:8s}  {n_components:2d}  {epochs * len(X_train):8d}  {scores}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
