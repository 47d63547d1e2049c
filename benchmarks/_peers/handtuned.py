"""The textbook model, trained as fast as autograd allows: rows in memory, no DataLoader, fused Adam, denormals flushed."""

import torch

from _peers._task import seconds_of
from _peers._torch import VAE, negative_elbo

PACKAGES = ("torch",)
NOTE = "flushes denormals for the whole process, as a library could not"
torch.set_flush_denormal(True)  # before there are threads: those that exist already would not follow


class Training:
    """A model, its optimizer and the rows."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        self.task, self.X = task, torch.from_numpy(X)
        self.model = VAE(*task.widths(X.shape[1]))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate, fused=True)

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        return seconds_of(self._train, n)

    def _train(self, n):
        for _ in range(n):
            for rows in torch.randperm(len(self.X)).split(self.task.batch_size):
                x = self.X.index_select(0, rows)
                output, mean, log_variance = self.model(x)
                loss = negative_elbo(output, x, mean, log_variance, self.task.likelihood) / len(x)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
