"""The loop of the tutorials: DataLoader, nn.Module, Adam."""

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from _peers import _bound
from _peers._task import Task, seconds_of
from _peers._torch import VAE, negative_elbo

PACKAGES = ("torch",)


class Training:
    """A model, its optimizer and its loader."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        self.likelihood = task.likelihood
        self.model = VAE(*task.widths(X.shape[1]))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate)
        self.loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=task.batch_size, shuffle=True)

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        return seconds_of(self._train, n)

    def _train(self, n):
        self.model.train()
        for _ in range(n):
            total = 0.0
            for (x,) in self.loader:
                self.optimizer.zero_grad()
                loss = negative_elbo(*self._outputs(x), self.likelihood) / len(x)
                loss.backward()
                total += loss.item()
                self.optimizer.step()

    def _outputs(self, x):
        output, mean, log_variance = self.model(x)
        return output, x, mean, log_variance


def default(train, held=None, likelihood="gaussian", target=None):
    """Train as the tutorials do: 400 hidden units, 20 latents, batches of 128, Adam at 1e-3, ten epochs of MNIST."""
    if likelihood != "bernoulli":
        raise ValueError("the tutorials have images only")
    X, course = np.load(train), _bound.Course(target)
    training = Training(Task(train, (400,), 20, likelihood, 128, torch.get_num_threads()), X)

    def fit():
        for number in range(1, 11):
            training.epochs(1)
            if held:
                course.epoch(number, bound, number == 10)

    def bound():
        model = training.model
        return _bound.elbo(
            lambda x: model.encoder(x).chunk(2, dim=1), lambda z: model.decoder(z).sigmoid(), X, np.load(held), likelihood
        )  # fmt: skip

    return _bound.run(fit, course)
