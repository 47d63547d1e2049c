"""PyOD's VAE: squared error only, so it has no Bernoulli likelihood, and it drops the short last batch."""

from itertools import count

import numpy as np
import torch
from pyod.models.vae import VAE
from pyod.utils.torch_utility import TorchDataset
from torch.utils.data import DataLoader

from _peers import _bound, _search
from _peers._task import seconds_of

PACKAGES = ("pyod",)
NOTE = (
    "squared error in place of any other likelihood; drops the short last batch; the scoring at the end of fit is not counted"
)


class Training:
    """A detector whose training loop is called again and again, on the loader that its fit would make."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        self.detector = VAE(
            preprocessing=False, lr=task.learning_rate, batch_size=task.batch_size, verbose=0, optimizer_params={},
            beta=2 / X.shape[1], capacity=1e30,  # its error is a mean over the columns, its KL is cut off at the capacity
            encoder_neuron_list=list(task.hidden), decoder_neuron_list=list(task.hidden[::-1]), latent_dim=task.latent,
            dropout_rate=0.0, device=torch.device("cpu"),
        )  # fmt: skip
        self.detector.data_num, self.detector.feature_size = X.shape
        self.detector.build_model()
        self.detector.training_prepare()
        self.loader = DataLoader(TorchDataset(X=X, y=None), batch_size=task.batch_size, shuffle=True, drop_last=True)

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        self.detector.epoch_num = n
        return seconds_of(self.detector.train, self.loader)


def search(**request):
    """Search over detectors, judged by the mean distance of held-out rows from their reconstructions."""
    torch.set_num_threads(request["threads"])
    detector = VAE(
        preprocessing=False, epoch_num=request["epochs"], batch_size=request["batch_size"], verbose=0, optimizer_params={},
        beta=2 / 30, capacity=1e30, encoder_neuron_list=[64], decoder_neuron_list=[64], dropout_rate=0.0,
    )  # fmt: skip
    return _search.search(detector, ("latent_dim", "lr"), request, scoring=closeness)


def closeness(detector, X, y=None):
    """Return minus the mean outlier score."""
    return -float(detector.decision_function(X).mean())


class Watched(VAE):
    """A detector that measures the bound at the ends of epochs."""

    watch = None

    def epoch_update(self):
        """Measure."""
        if self.watch:
            self.watch()


def default(train, held=None, likelihood="gaussian", target=None):
    """Fit with the defaults, on tables only."""
    if likelihood != "gaussian":
        raise ValueError("has no Bernoulli likelihood")
    X, detector, course, numbers = np.load(train), Watched(verbose=0), _bound.Course(target), count(1)

    def bound():
        mean, scale, model = (torch.from_numpy(detector.X_mean), torch.from_numpy(detector.X_std), detector.model.eval())
        value = _bound.elbo(
            lambda x: model.encode((x - mean) / scale), lambda z: model.decode(z) * scale + mean, X, np.load(held), likelihood
        )
        model.train()
        return value

    def watch():
        number = next(numbers)
        course.epoch(number, bound, number == detector.epoch_num)

    detector.watch = watch if held else None
    return _bound.run(lambda: detector.fit(X), course)
