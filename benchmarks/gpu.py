"""Seconds per epoch on a graphics card: skvae, a loop with autograd tuned by hand, and JAX where it is installed.

    python benchmarks/gpu.py                 # the workloads of throughput.py, steps by autograd, a search: about three minutes
    python benchmarks/gpu.py --only W1 W3    # workloads by the beginning of their names; also "autograd" and "search"
    python benchmarks/gpu.py --rounds 5

All run in this interpreter, one after the other, and compute in float32; JAX's compilation and skvae's recording of the steps
are not counted. The search is a GridSearchCV of nine candidates and two folds, on the card and on the processor, in serial and
with `fused_fits`. Steps by autograd are those of models without closed forms, recorded as CUDA graphs and call by call.
"""

import os

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # before JAX is imported, or it takes all memory

import importlib.util
import time
import warnings
from contextlib import nullcontext
from statistics import median

import torch
from _peers._task import Task
from _peers._torch import VAE, train_one_epoch
from _peers.skvae import plain
from _timing import chosen, keep, number, parse, parser, ratio, table
from _workloads import WORKLOADS, made_up_table
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

import skvae
from skvae import VAETransformer, _engine
from skvae.networks import MLP, Conv, ConvTranspose, VariationalMLP

EPOCHS = {"W1": 10, "W2-100": 200, "W2-32": 100, "W3-512": 2, "W3-4096": 8}
SEARCH = "search, 2,000 x 64, 64-512-2..8, Gaussian, batch 256, 18 fits of 40 epochs"
IMAGES = "steps by autograd, MNIST 20,000 x 784, 10 components, Bernoulli, batch 100"
PAPER = MLP((500,), activation="tanh", skip=False)
AUTOGRAD = {
    "wake-sleep": {"solver": "wake-sleep", "optimizer": "adagrad", "encoder": PAPER, "decoder": PAPER},
    "convolutional": {"encoder": Conv((28, 28)), "decoder": ConvTranspose((28, 28))},
    "Laplace posterior": {"posterior": "laplace"},
    "uncertain weights": {"decoder": VariationalMLP((500,))},
}
GRID = {"n_components": [2, 5, 8], "learning_rate_init": [3e-4, 1e-3, 3e-3]}


def seconds(work) -> float:
    """Return how long a call takes, what it leaves to the card included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Ours:
    """skvae: the difference of a long and a short fit."""

    def __init__(self, task, X):
        self.task, self.X = task, X
        self.fit(1)

    def fit(self, n):
        """Fit from the start for so many epochs."""
        plain(self.task, n).set_params(device="cuda").fit(self.X)

    def epoch(self, n):
        """Return the seconds of one of n epochs."""
        short = seconds(lambda: self.fit(1))
        return (seconds(lambda: self.fit(n + 1)) - short) / n


class Loop:
    """The textbook model with the rows on the card and torch's fused Adam."""

    def __init__(self, task, X):
        self.task, self.X = task, torch.from_numpy(X).cuda()
        self.model = VAE(*task.widths(X.shape[1])).cuda()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate, fused=True)
        self.train()

    def train(self):
        """Train for one epoch."""
        train_one_epoch(self.model, self.optimizer, self.X, self.task)

    def epoch(self, n):
        """Return the seconds of an epoch."""
        return seconds(self.train)


class Jax:
    """JAX: an epoch as one compiled scan."""

    def __init__(self, task, X):
        import jax
        from _peers.jax import Training

        jax.config.update("jax_default_matmul_precision", "highest")  # as the others; its default on a card is lower
        self.training = Training(task, X)
        self.training.epochs(1)

    def epoch(self, n):
        """Return the seconds of one of n epochs."""
        return self.training.epochs(n) / n


def run(name: str, lineup: dict, rounds: int) -> dict:
    """Return the seconds per epoch of everybody on one workload, in turns."""
    workload = WORKLOADS[name]
    X = workload.rows()
    task = Task("", workload.hidden, workload.latent, workload.likelihood, workload.batch_size, workload.threads)
    workers = {who: make(task, X) for who, make in lineup.items()}
    found = {who: [] for who in lineup}
    for _ in range(rounds):
        for who, worker in workers.items():
            found[who].append(worker.epoch(EPOCHS[name]))
    return found


def autograd(rounds: int) -> dict:
    """Return the seconds per epoch of models that train by autograd, with and without recordings of their steps."""
    X, found, recording = WORKLOADS["W1"].rows()[:20_000], {}, _engine.Cohort._recording
    ways = {"recorded": recording, "call by call": lambda cohort, window, measured: None}
    common = {
        "likelihood": "bernoulli", "init": "random", "learning_rate": "constant", "batch_size": 100, "early_stopping": False,
        "tol": 0, "n_iter_no_change": 10**9,
    }  # fmt: skip

    def fit(settings: dict, n_epochs: int) -> float:
        vae = VAETransformer(10, max_iter=n_epochs, device="cuda", random_state=0, **common, **settings)
        return seconds(lambda: vae.fit(X))

    for _ in range(rounds):
        for name, settings in AUTOGRAD.items():
            for way, function in ways.items():
                _engine.Cohort._recording = function
                short = min(fit(settings, 1) for _ in range(2))
                found.setdefault(f"{name}, {way}", []).append((fit(settings, 4) - short) / 3)
    _engine.Cohort._recording = recording
    return found


def search(rounds: int) -> dict:
    """Return the seconds of a search, four ways."""
    task, X = Task("", (512,), 8, "gaussian", 256, 2), made_up_table(2_000, 64)
    found = {}
    for _ in range(rounds):
        for device in ("cuda", "cpu"):
            for way, scope in (("serial", nullcontext), ("fused", skvae.fused_fits)):
                model = plain(task, 40).set_params(device=device, score_method="elbo")
                grid = GridSearchCV(model, GRID, cv=2, refit=False)
                with scope():
                    found.setdefault(f"{device}, {way}", []).append(seconds(lambda grid=grid: grid.fit(X)))
    return found


def main():
    """Print a table per workload."""
    options = parser(__doc__, rounds=3)
    args = parse(options)
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here.")
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, skvae {skvae.__version__}")
    lineup = {"skvae": Ours, "hand-tuned loop": Loop, "JAX": Jax}
    if importlib.util.find_spec("jax") is None:
        del lineup["JAX"]
    found = {}
    others = {"autograd": (autograd, IMAGES), "search": (search, SEARCH)}
    for name in chosen([*WORKLOADS, *others], args.only):
        found[name] = others[name][0](args.rounds) if name in others else run(name, lineup, args.rounds)
        best = {who: median(times) for who, times in found[name].items()}
        first = next(iter(best.values()))
        rows = [
            [who, number(value), f"{number(min(found[name][who]))}..{number(max(found[name][who]))}", ratio(value, first)]
            for who, value in best.items()
        ]
        title = others[name][1] if name in others else WORKLOADS[name].title.rpartition(",")[0]
        table(title, ("", "s" if name == "search" else "s/epoch", "range", f"x {next(iter(best))}"), rows)
    keep(args.json, found)


if __name__ == "__main__":
    main()
