"""Numbers of settings as tensors, made once for each device."""

import weakref
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

Numbers = bool | float | tuple["Numbers", ...]

_KEPT: dict[int, dict] = {}  # numbers that were learnt, by the identity of their owner


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return zeros of some shapes by their names, on the processor, whatever torch's default types are."""
    return {name: torch.zeros(shape, dtype=torch.float32, device="cpu") for name, shape in shapes.items()}


def constant(values: Numbers, like: Tensor, dtype: torch.dtype | None = None, owner: object = None) -> Tensor:
    """Return numbers as a tensor on the device of another one, which nobody may change.

    To copy numbers to a device takes as long as a calculation there, waits for all before it, and cannot be recorded. Numbers
    of settings are few and stay for good; those that were learnt stay as long as their `owner`.
    """
    key = values, like.dtype if dtype is None else dtype, like.device
    if owner is None:
        return _constant(*key)
    if id(owner) not in _KEPT:
        weakref.finalize(owner, _KEPT.pop, id(owner), None).atexit = False
    kept = _KEPT.setdefault(id(owner), {})
    return kept[key] if key in kept else kept.setdefault(key, _constant.__wrapped__(*key))


@cache  # without a limit: a recorded step knows where a tensor lies and does not keep it
def _constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # autograd may need it later
        return torch.tensor(values, dtype=dtype, device=device)
