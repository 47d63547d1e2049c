"""The course of a default fit: the clock without the time of measuring, and one bound for all competitors.

A competitor whose model has a noise of fixed variance is given the variance per column that fits its own reconstructions of its
training rows best, after the fact, though its training knew nothing of it.
"""

import time
from contextlib import suppress

import numpy as np
import torch

_DRAWS = 32
_TRAIN_ROWS = 5_000  # from which the noise is estimated
_LEAST_VARIANCE = 1e-4  # of a standardised column, the floor that skvae has by default
_DUE = {int(np.ceil(1.2**k)) for k in range(60)}


class Reached(Exception):
    """Training may end: the target is reached."""


class Course:
    """Points (moment, bound), the moments as if nothing had been measured."""

    def __init__(self, target=None):
        self.target, self.excluded, self.points = target, 0.0, []

    def epoch(self, number, bound, last=False):
        """Measure after an epoch if it is due; raise `Reached` if that is enough."""
        if number in _DUE or last:
            start = time.monotonic()
            value = float(bound())
            self.points.append((start - self.excluded, value))
            self.excluded += time.monotonic() - start
            if self.target is not None and value >= self.target:
                raise Reached


@torch.no_grad()
def elbo(encode, decode, train, held, likelihood):
    """Return the mean evidence lower bound of held-out rows, in nats; `encode` gives mean and log-variance, `decode` means."""
    x = torch.from_numpy(held)
    if likelihood == "bernoulli":
        return _mean_bound(encode, decode, x, _bernoulli)
    known = torch.from_numpy(train[:_TRAIN_ROWS])
    variance = (known - decode(_draw(*encode(known)))).square().mean(0).clamp(min=_LEAST_VARIANCE)
    return _mean_bound(
        encode, decode, x, lambda x, mean: -0.5 * ((x - mean) ** 2 / variance + torch.log(2 * torch.pi * variance))
    )


def _mean_bound(encode, decode, x, log_prob):
    mean, log_variance = encode(x)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    draws = [log_prob(x, decode(_draw(mean, log_variance))).sum(1) for _ in range(_DRAWS)]
    return (torch.stack(draws).mean(0) - kl).mean()


def _draw(mean, log_variance):
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def _bernoulli(x, mean):
    p = mean.clamp(1e-6, 1 - 1e-6)
    return x * p.log() + (1 - x) * torch.log1p(-p)


def run(fit, course):
    """Call `fit` until it ends or the target is reached; return the course as an answer."""
    with suppress(Reached):
        fit()
    return {"points": course.points}
