"""skvae itself, in the interpreter that runs the benchmark."""

import importlib.util
import sys
import time
from contextlib import nullcontext

import numpy as np

import skvae
from _peers import _search
from _peers._task import Task, seconds_of
from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP
from skvae.objectives import IWAE
from skvae.solvers import AEVB

NOTE = "the difference of a long and a short fit; includes skvae's own measurements of the bound"


def plain(task: Task, max_iter: int) -> VAETransformer:
    """Return an estimator that does what the textbook loop does, for so many epochs."""
    return VAETransformer(
        n_components=task.latent,
        likelihood=Bernoulli() if task.likelihood == "bernoulli" else Gaussian(noise=1.0, standardize=False),
        encoder=MLP(task.hidden, activation="relu", skip=False),
        decoder=MLP(task.hidden[::-1], activation="relu", skip=False),
        init="random", solver=AEVB(averaging=0), optimizer="adam", learning_rate="constant",
        learning_rate_init=task.learning_rate, batch_size=task.batch_size, early_stopping=False,
        max_iter=max_iter, tol=0, n_iter_no_change=10**9, score_method="iwae", random_state=0,
    )  # fmt: skip


class Training:
    """Training by whole fits, because that is all there is to call."""

    def __init__(self, task, X):
        self.task, self.X = task, X
        plain(task, 2).fit(X)  # so that thread pools and caches are there

    def epochs(self, n):
        """Return the seconds of n epochs after the first: of a fit with n + 1 epochs less those of a fit with one."""
        short = seconds_of(plain(self.task, 1).fit, self.X)
        return seconds_of(plain(self.task, n + 1).fit, self.X) - short


def search(**request):
    """Search as a user would, or with the fits fused."""
    task = Task("", (64,), 5, "gaussian", request["batch_size"], request["threads"])
    scope = skvae.fused_fits if request["fused"] else nullcontext
    names = ("n_components", "learning_rate_init")
    return _search.search(plain(task, request["epochs"]), names, request, scope=scope)


def features():
    """Tell what this skvae has of the newer features."""
    data = importlib.import_module("skvae.data") if importlib.util.find_spec("skvae.data") else None
    return {"fused_fits": hasattr(skvae, "fused_fits"), "parquet": hasattr(data, "ParquetSource")}


def default(train, held=None, likelihood="gaussian", max_iter=None, target=None):
    """Fit with the defaults, or for fewer epochs; tell the held-out bound and when the fit had ended."""
    X = np.load(train)
    vae = VAETransformer(likelihood=likelihood, max_iter=max_iter, score_method="elbo", random_state=0).fit(X)
    moment = time.monotonic()
    points = [(moment, vae.score(np.load(held)))] if held else []
    return {"points": points, "n_iter": vae.n_iter_, "dynamo": "torch._dynamo" in sys.modules, "ended": moment}


class Inference:
    """A fitted model of a few rows, to be used on all."""

    def __init__(self, task, score_rows, draws):
        self.X, self.score_rows = task.load(), score_rows
        self.vae = plain(task, 1).set_params(score_method=IWAE(n_samples=draws)).fit(self.X[:1_000])

    def score_samples(self):
        """Return the seconds of scoring the first rows."""
        return seconds_of(self.vae.score_samples, self.X[: self.score_rows])

    def transform(self):
        """Return the seconds of transforming all rows."""
        return seconds_of(self.vae.transform, self.X)
