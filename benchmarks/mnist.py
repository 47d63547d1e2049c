"""How probable test images of MNIST are under a VAE with the settings of Burda, Grosse & Salakhutdinov (2016), table 1.

    python benchmarks/mnist.py                                # 200 epochs in batches of 100
    python benchmarks/mnist.py --schedule burda               # the published one: 3,280 epochs in batches of 20, for a GPU
    python benchmarks/mnist.py --schedule defaults            # the package's defaults, with 50 components
    python benchmarks/mnist.py --schedule defaults --hidden 200 200                  # and with layers of 200 units
    python benchmarks/mnist.py --epochs 40 --rows 10000 --draws 1 50 500 5000

Both networks have two hidden layers of 200 tanh units, without a linear path, around 50 latent components; pixels are drawn
anew in every epoch. Adam's step size falls from 1e-3 to 1e-4 in eight stages, i = 0, ..., 7, at 1e-3 * 10 ** (-i / 7): stages
of 3 ** i epochs in the published schedule, of equal length in the other. The last iterate is kept, not an average.

The negative log-likelihood is importance weighted, in nats per test image, and each image is binarised once, by a fixed seed. A
single draw gives the ELBO, measured as the mean over 32 of them. A run is saved after every stage (`--out`); started again with
the same options, it goes on where it was, and one that is complete is measured only.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _data import data_folder
from sklearn.exceptions import ConvergenceWarning

import skvae
from skvae import VAETransformer
from skvae.evaluation import active_units, log_likelihood
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import Adam
from skvae.solvers import AEVB

N_STAGES = 8
LONGEST = 100  # epochs without a save
# Burda et al., 2016, table 1, one stochastic layer: test NLL by 5,000 draws, active units.
PUBLISHED = {"VAE": (86.76, 19), "IWAE, k = 5": (85.54, 22), "IWAE, k = 50": (84.78, 25)}


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels of the training images, between 0 and 1, and test images of zeros and ones."""
    folder = data_folder()
    if folder is None or not (folder / "mnist.npz").is_file():
        raise SystemExit("mnist.npz is needed: name a folder that holds it in SKVAE_DATA.")
    with np.load(folder / "mnist.npz") as arrays:
        X, X_test = (arrays[name].reshape(-1, 784) / np.float32(255) for name in ("X_train", "X_test"))
    return X, (np.random.default_rng(0).random(X_test.shape) < X_test).astype(np.float32)


def stages(schedule: str, n_epochs: int) -> list[tuple[int, float]]:
    """Return the step sizes and the number of epochs, in all, after which each of them ends."""
    lengths = 3 ** np.arange(N_STAGES) if schedule == "burda" else np.full(N_STAGES, n_epochs / N_STAGES)
    ends = np.round(np.cumsum(lengths)).astype(int)
    return [(int(end), float(0.001 * 10 ** (-i / (N_STAGES - 1)))) for i, end in enumerate(ends)]


def model(schedule: str, n_weights: int, hidden: list[int]) -> VAETransformer:
    """Return the estimator before training; `hidden` units per layer replace those of the defaults."""
    likelihood = Bernoulli(binarize="dynamic")
    if schedule == "defaults":
        networks = {"encoder": MLP(tuple(hidden)), "decoder": MLP(tuple(hidden))} if hidden else {}
        return VAETransformer(50, likelihood=likelihood, random_state=0, **networks)
    published = schedule == "burda"
    network = MLP((200, 200), activation="tanh", skip=False)
    return VAETransformer(
        50, likelihood=likelihood, encoder=network, decoder=network, objective=ELBO() if n_weights == 1 else IWAE(n_weights),
        solver=AEVB(averaging=0), optimizer=Adam(epsilon=1e-4 if published else 1e-8), learning_rate="constant",
        batch_size=20 if published else 100, early_stopping=False, tol=0, n_iter_no_change=10**9, warm_start=True,
        random_state=0,
    )  # fmt: skip


def train(vae: VAETransformer, X: np.ndarray, course: list[tuple[int, float]], saved: Path) -> VAETransformer:
    """Train to the end of the last stage, from where the saved model is, and save it on the way."""
    if saved.is_file():
        vae = skvae.load(saved)
    done, n_epochs = getattr(vae, "n_iter_", 0), course[-1][0]
    first, began = done, time.perf_counter()
    for end, rate in course:
        while done < end:
            done = min(end, done + LONGEST)
            vae.set_params(max_iter=done, learning_rate_init=rate).fit(X).save(saved)
            left = (time.perf_counter() - began) / (done - first) * (n_epochs - done)
            print(
                f"[{'#' * round(30 * done / n_epochs):30}] {done} epochs, step size {rate:.1e}, ELBO of training images "
                f"{vae.lower_bound_:.2f}, {left:.0f} s to go",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return vae


def nll(vae: VAETransformer, X: np.ndarray, n_draws: int) -> float:
    """Return the mean negative log-likelihood by so many draws per row; by one draw, the negative ELBO."""
    if n_draws == 1:
        return -vae.set_params(score_method="elbo").score(X)
    return -float(log_likelihood(vae, X, IWAE(n_draws)).value.mean())


def main() -> None:
    """Train what is missing, measure it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=("equal", "burda", "defaults"), default="equal")
    parser.add_argument("--epochs", type=int, default=200, help="of the schedule with equal stages (default: 200)")
    parser.add_argument("--hidden", nargs="*", type=int, default=[], help="units per hidden layer, with --schedule defaults")
    parser.add_argument("--weights", type=int, default=1, help="draws per row of the objective; 2 or more train an IWAE")
    parser.add_argument("--rows", type=int, default=1_000, help="test images to measure (default: 1,000; there are 10,000)")
    parser.add_argument("--draws", nargs="+", type=int, default=[1, 50, 500], help="draws per test image")
    parser.add_argument("--out", type=Path, default=Path("mnist"), help="folder of the models")
    args = parser.parse_args()
    if args.hidden and args.schedule != "defaults":
        parser.error("--hidden goes with --schedule defaults; the others have two layers of 200 units.")
    if args.epochs < N_STAGES:
        parser.error(f"--epochs must be at least {N_STAGES}, one per stage.")
    warnings.simplefilter("ignore", ConvergenceWarning)
    args.out.mkdir(parents=True, exist_ok=True)
    X, X_test = data()
    vae = model(args.schedule, args.weights, args.hidden)
    length = f"_{args.epochs}" if args.schedule == "equal" else "".join(f"_{width}" for width in args.hidden)
    saved = args.out / f"{args.schedule}{length}_{args.weights}.skvae"
    start = time.perf_counter()
    if args.schedule == "defaults":
        vae = skvae.load(saved) if saved.is_file() else vae.fit(X)
        vae.save(saved)
    else:
        vae = train(vae, X, stages(args.schedule, args.epochs), saved)
    minutes = (time.perf_counter() - start) / 60
    n = min(args.rows, len(X_test))
    print(
        f"# skvae {skvae.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, {minutes:.1f} minutes now"
    )
    print(f"# negative log-likelihood of {n:,} test images of MNIST, in nats, by so many draws per image")
    print(f"{'':<34}{'epochs':>8}" + "".join(f"{k:>9,}" for k in args.draws) + f"{'active':>9}")
    name = f"here, {args.schedule}" + (f", IWAE, k = {args.weights}" if args.weights > 1 else "")
    values = [nll(vae, X_test[:n], k) for k in args.draws]
    active = int(active_units(vae, X_test).sum())
    print(f"{name:<34}{vae.n_iter_:>8,}" + "".join(f"{value:>9.2f}" for value in values) + f"{active:>9}")
    for name, (value, active) in PUBLISHED.items():
        print(f"{f'published, {name}, 5,000 draws':<34}{3280:>8,}" + f"{value:>{9 * len(args.draws)}.2f}{active:>9}")


if __name__ == "__main__":
    main()
