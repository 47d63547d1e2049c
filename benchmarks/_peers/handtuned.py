"""The textbook model, trained as fast as autograd allows: rows in memory, no DataLoader, fused Adam, denormals flushed."""

import math

import torch
from torch.nn import functional as F

from _peers._task import seconds_of
from _peers._torch import VAE, train_one_epoch

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
            train_one_epoch(self.model, self.optimizer, self.X, self.task)


class Inference:
    """A model with random weights, which take as long as others."""

    chunks = (1, 5, 10, 50, 100)  # rows whose draws are decoded at once

    def __init__(self, task, score_rows, draws):
        torch.set_num_threads(task.threads)
        self.X, self.n, self.draws = torch.from_numpy(task.load()), score_rows, draws
        self.model = VAE(*task.widths(self.X.shape[1]))

    def score_samples(self):
        """Return the seconds of scoring the first rows with the best size of chunks."""
        return min(seconds_of(self._score, chunk) for chunk in self.chunks)

    @torch.inference_mode()
    def _score(self, chunk):
        return torch.cat([self._importance_weighted(x) for x in self.X[: self.n].split(chunk)])

    def _importance_weighted(self, x):
        mean, log_variance = self.model.encoder(x).chunk(2, dim=1)
        noise = torch.randn(self.draws, *mean.shape)
        z = mean + torch.exp(0.5 * log_variance) * noise
        output = self.model.decoder(z)
        log_px = -F.binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none").sum(-1)
        log_weight = log_px - 0.5 * (z**2 - noise**2 - log_variance).sum(-1)
        return torch.logsumexp(log_weight, 0) - math.log(self.draws)

    @torch.inference_mode()
    def transform(self):
        """Return the seconds of encoding all rows, in chunks of 1,000."""
        return seconds_of(lambda: [self.model.encoder(x).chunk(2, dim=1)[0] for x in self.X.split(1_000)])
