"""The TVAE of the ctgan package: trains on a wider table of its own making, so never the same work."""

import queue
import threading
import time
from functools import cache

import numpy as np
import pandas as pd
import torch
from ctgan import TVAE
from ctgan.synthesizers import tvae

from _peers import _bound
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


def find_encoder() -> dict:
    """Return a dictionary in which the encoder of the next fit will be found: `fit` itself keeps the decoder only."""
    found, forward = {}, tvae.Encoder.forward

    def noting(self, x):
        found["encoder"] = self
        return forward(self, x)

    tvae.Encoder.forward = noting
    return found


def default(train, held=None, likelihood="gaussian", target=None):
    """Fit with the defaults, on tables only."""
    if likelihood != "gaussian":
        raise ValueError("fits a mixture to each column first, for hours where there are hundreds")
    X, model, course = np.load(train), TVAE(enable_gpu=False), _bound.Course(target)

    @cache
    def encoded():
        return [model.transformer.transform(np.load(file)) for file in (train, held)]

    def progress(epochs, **_):
        for epoch in epochs:
            yield epoch
            if held:
                course.epoch(epoch + 1, lambda: elbo(encoders["encoder"], model, *encoded()), epoch + 1 == model.epochs)

    tvae.tqdm, encoders = progress, find_encoder()
    return _bound.run(lambda: model.fit(X), course)


@torch.no_grad()
def elbo(encoder, model, train, held, n_draws=32):
    """Return the mean evidence lower bound of held-out rows, in nats and in the units of the rows.

    The density of a row is the sum over the modes of its columns; the modes that the encoding chose are one term of it, and
    so give a lower bound. The noise is the best one after the fact, as it is for the other peers.
    """
    known, x = (torch.from_numpy(rows.astype("float32")) for rows in (train[:5_000], held))
    numbers, modes = columns_of(model)
    output, _ = decoded(encoder, model, known)
    variance = (known[:, numbers] - torch.tanh(output[:, numbers])).square().mean(0).clamp(min=1e-4)
    total = 0.0
    for _ in range(n_draws):
        output, kl = decoded(encoder, model, x)
        squares = (x[:, numbers] - torch.tanh(output[:, numbers])) ** 2
        normal = -0.5 * (squares / variance + torch.log(2 * torch.pi * variance)).sum(1)
        chosen = sum((output[:, span].log_softmax(1) * x[:, span]).sum(1) for span, _ in modes)
        jacobian = sum((x[:, span] * torch.log(4 * scales)).sum(1) for span, scales in modes)
        total += float((normal + chosen - jacobian - kl).mean()) / n_draws
    return total


def decoded(encoder, model, x):
    """Return the decoder's output at a draw of the latents, and the KL of every row."""
    mean, std, log_variance = encoder(x)
    kl = 0.5 * (mean**2 + std**2 - 1 - log_variance).sum(1)
    return model.decoder(mean + std * torch.randn_like(std))[0], kl


def columns_of(model):
    """Return the places of the numbers in the encoding, and for each the span of its modes with their standard deviations."""
    numbers, modes, place = [], [], 0
    for info in model.transformer._column_transform_info_list:
        mixture, valid = info.transform._bgm_transformer, info.transform.valid_component_indicator
        scales = torch.from_numpy(mixture.covariances_.ravel()[valid]).sqrt().float()
        numbers.append(place)
        modes.append((slice(place + 1, place + info.output_dimensions), scales))
        place += info.output_dimensions
    return numbers, modes


def generate(train, discrete, epochs, n_rows, out, seed=0):
    """Fit to a table in a CSV file, the defaults but for the number of epochs; write rows that it generates to another."""
    torch.manual_seed(seed)
    frame, model = pd.read_csv(train), TVAE(enable_gpu=False, epochs=epochs)
    model.set_random_state(seed)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.fit(frame, discrete)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    model.sample(n_rows).to_csv(out, index=False)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "n_rows": len(frame), "epochs": epochs}
