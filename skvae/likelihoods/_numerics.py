"""Functions that several likelihoods share: limits that keep numbers finite, and the parameters behind positive ones."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from skvae._numbers import VECTOR

# Adam moves every parameter at the same rate, and scales have the longest way to go: log(scale) is a multiple of its parameter.
RATE = 2.0

FARTHEST_LOG = 30.0  # of means, 1e13 units: beyond counts and amounts that occur; squares of slopes stay finite in float32
SMALLEST = torch.finfo(torch.float32).tiny  # what stands for "above zero" in a closed interval


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact everywhere (that of torch drops terms of 2e-9)."""
    return -logsigmoid(-x)


def growth(x: Tensor) -> Tensor:
    """Return exp(x) - 1, which goes on as a straight line beyond exp(30), so that slopes stay finite and point back."""
    return x.clamp(max=FARTHEST_LOG).expm1() + math.exp(FARTHEST_LOG) * (x - FARTHEST_LOG).clamp(min=0.0)


def slope_of_growth(x: Tensor) -> Tensor:
    """Return the derivative of `growth`: exp(x), at most exp(30)."""
    return x.clamp(max=FARTHEST_LOG).exp()


def log_floored(raw: Tensor, floor: float) -> Tensor:
    """Return the logarithm of a positive parameter, log(floor + exp(RATE * raw)): no gradient is ever cut off."""
    return torch.logaddexp(RATE * raw, raw.new_full((), math.log(floor)))


def slope_of_log_floored(raw: Tensor, floor: float) -> Tensor:
    """Return the derivative of `log_floored` by `raw`."""
    return RATE * (RATE * raw - math.log(floor)).sigmoid()


def raw_of(value: Tensor, floor: float) -> Tensor:
    """Return the raw parameter of a positive number, the inverse of `log_floored`; near the floor, that of twice the floor."""
    return (value - floor).clamp(min=floor).log() / RATE


def along_rows(values: Tensor) -> Tensor:
    """Return columns of rows, filled up to whole vectors: torch rounds a rest in another way.  # (..., n, c) -> (..., c, n)

    A single row, which may stand for all, stays one.
    """
    n = values.shape[-2]
    missing = -n % VECTOR if n > 1 else 0
    return (pad(values, (0, 0, 0, missing)) if missing else values).mT.contiguous()


def sum_over_rows(values: Tensor) -> Tensor:
    """Return sums over the rows, in double precision: torch rounds in ways that depend on what else a call has to do."""
    return values.sum(-2, keepdim=True, dtype=torch.float64)
