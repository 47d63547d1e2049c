"""The loop of the tutorials: DataLoader, nn.Module, Adam."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from _peers._task import seconds_of
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
