"""The TVAE of the ctgan package: trains on a wider table of its own making, so never the same work."""

import queue
import threading

import torch
from ctgan import TVAE
from ctgan.synthesizers import tvae

from _peers._task import seconds_of

PACKAGES = ("ctgan",)
NOTE = "trains on its own encoding of the columns, several times as wide; making that encoding is not counted"


class Paces:
    """An iterator over epochs that waits before each until it is allowed, in place of the progress bar in `fit`."""

    def __init__(self):
        self.allowed, self.done = queue.Queue(), queue.Queue()

    def __call__(self, epochs, **_):
        for epoch in epochs:
            self.done.put(epoch)
            self.allowed.get()
            yield epoch
        self.done.put(None)

    def run(self, n):
        """Let n epochs pass."""
        for _ in range(n):
            self.allowed.put(True)
            _alive(self.done.get())


def _alive(outcome):
    if isinstance(outcome, BaseException):
        raise outcome


class Training:
    """A fit in a thread of its own, epoch by epoch."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        self.paces = tvae.tqdm = Paces()
        model = TVAE(
            embedding_dim=task.latent, compress_dims=task.hidden, decompress_dims=task.hidden[::-1], l2scale=0.0,
            batch_size=task.batch_size, epochs=10**9, enable_gpu=False,
        )  # fmt: skip
        threading.Thread(target=self._fit, args=(model, X), daemon=True).start()
        _alive(self.paces.done.get())

    def _fit(self, model, X):
        try:
            model.fit(X)
        except BaseException as error:
            self.paces.done.put(error)

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        return seconds_of(self.paces.run, n)
