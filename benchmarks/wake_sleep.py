"""The paper's figure 2 on Frey faces: AEVB against wake-sleep, in its own recipe. Prints the bound over samples evaluated.

python benchmarks/wake_sleep.py [samples in millions, default 0.3]
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


def frey_faces():
    """Return training and test rows, pixels / 256, split at random as in the paper."""
    X = np.load(data_folder() / "frey_faces.npz")["X"] / 256.0
    order = np.random.default_rng(0).permutation(len(X))
    return X[order[:1565]], X[order[1565:]]


def recipe(solver, n_components, max_iter):
    """Return the estimator of section 5 of the paper."""
    network = MLP((200,), activation="tanh", skip=False, init_std=0.01)
    return VAETransformer(
        n_components, likelihood=Gaussian("network", standardize=False), encoder=network, decoder=network,
        objective=ELBO(kl="monte_carlo"), solver=solver, optimizer=Adagrad(accumulate_first=100),
        learning_rate="constant", learning_rate_init=0.02, alpha=1.0, batch_size=100, max_iter=max_iter, tol=0.0,
        n_iter_no_change=10**6, early_stopping=False, warm_start=True, init="random", random_state=0, score_method="elbo",
    )  # fmt: skip


def independent_pixels(X_train, X):
    """Return nats per row of one normal distribution per pixel, the best that a decoder can do without latents."""
    mean, variance = X_train.mean(0), X_train.var(0)
    return float((-0.5 * ((X - mean) ** 2 / variance + np.log(2 * np.pi * variance))).sum(1).mean())


def main(millions):
    """Print test and training bounds."""
    warnings.simplefilter("ignore")
    X_train, X_test = frey_faces()
    print(
        f"independent pixels: test {independent_pixels(X_train, X_test):.1f}, train {independent_pixels(X_train, X_train):.1f}"
    )
    print(f"{'solver':12s} {'Nz':>3s} {'samples':>9s} {'test':>8s} {'train':>8s} {'active':>6s}")
    for name, solver in (("aevb", AEVB(averaging=0)), ("wake-sleep", WakeSleep())):
        for n_components in (2, 10):
            vae = recipe(solver, n_components, 1)
            for share in (0.1, 0.3, 1.0):
                epochs = max(1, round(share * millions * 1e6 / len(X_train)))
                vae.set_params(max_iter=epochs).fit(X_train)
                print(
                    f"{name:12s} {n_components:3d} {epochs * len(X_train):9d} {vae.score(X_test):8.1f} "
                    f"{vae.score(X_train):8.1f} {vae.active_units_:6d}",
                    flush=True,
                )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.3)
