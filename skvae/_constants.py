"""Numbers of settings as tensors, made once for each device."""

from functools import cache

import torch
from torch import Tensor

Numbers = bool | float | tuple["Numbers", ...]


def constant(values: Numbers, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on the device of another one, which nobody may change.

    To copy numbers to a device takes as long as a calculation there, waits for all before it, and cannot be recorded.
    """
    return _constant(values, like.dtype if dtype is None else dtype, like.device)


@cache  # without a limit: a recorded step knows where a tensor lies and does not keep it
def _constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # autograd may need it later
        return torch.tensor(values, dtype=dtype, device=device)
