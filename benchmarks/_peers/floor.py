"""The least an epoch can cost: its matrix products alone, at their real shapes, into buffers that are there already."""

import torch

from _peers._task import seconds_of

PACKAGES = ("torch",)
NOTE = "torch.mm of every product of a step: forward, weight gradients, input gradients but the first layer's"


class Training:
    """The products of an epoch, without anything between them."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        encoder, decoder = task.widths(X.shape[1])
        layers = [*zip(encoder[:-1], encoder[1:]), *zip(decoder[:-1], decoder[1:])]
        full, rest = divmod(len(X), task.batch_size)
        self.parts = [(full, products(task.batch_size, layers)), (1, products(rest, layers) if rest else [])]

    def epochs(self, n):
        """Multiply what n epochs multiply; return the seconds."""
        return seconds_of(multiply, self.parts * n)


@torch.inference_mode()
def multiply(parts):
    """Multiply every list of factors as many times as is said with it."""
    for times, triples in parts:
        for _ in range(times):
            for a, b, out in triples:
                torch.mm(a, b, out=out)


def products(n, layers):
    """Return the factors and results of all products of one step on n rows."""
    triples = []
    for i, (n_in, n_out) in enumerate(layers):
        x, weight, gradient = torch.rand(n, n_in), torch.rand(n_in, n_out), torch.rand(n, n_out)
        triples.append((x, weight, torch.empty(n, n_out)))
        triples.append((x.t(), gradient, torch.empty(n_in, n_out)))
        if i:
            triples.append((gradient, weight.t(), torch.empty(n, n_in)))
    return triples


class Inference:
    """The products of inference, without anything between them."""

    def __init__(self, task, score_rows, draws):
        torch.set_num_threads(task.threads)
        X = torch.from_numpy(task.load())
        encoder, decoder = task.widths(X.shape[1])
        self.scoring = [(1, forward(score_rows, encoder)), (score_rows * draws // 1_000, forward(1_000, decoder))]
        self.encoding = [(len(X) // 1_000, forward(1_000, encoder))]

    def score_samples(self):
        """Return the seconds of the products of scoring, 1,000 decoded draws at a time."""
        return seconds_of(multiply, self.scoring)

    def transform(self):
        """Return the seconds of the products of encoding."""
        return seconds_of(multiply, self.encoding)


def forward(n, widths):
    """Return factors and results of the products of one pass of n rows through a network."""
    return [(torch.rand(n, i), torch.rand(i, o), torch.empty(n, o)) for i, o in zip(widths[:-1], widths[1:])]
