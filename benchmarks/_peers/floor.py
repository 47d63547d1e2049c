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
        return seconds_of(self._multiply, n)

    def _multiply(self, n):
        with torch.inference_mode():
            for times, triples in self.parts * n:
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
