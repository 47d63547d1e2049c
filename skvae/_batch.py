"""Batch, the one record that travels from table to optimizer, and the ways to cut it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows on their way through a model; an absent field means 'nothing special'."""

    x: Tensor  # (..., n, d) in the model's units
    weight: Tensor | None = None  # (..., n) repetitions of each row, relative to their mean over the data

    def __len__(self) -> int:
        return self.x.shape[-2]

    def _map(self, function) -> "Batch":
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: function(value) for name, value in present.items()})

    def take(self, rows: Tensor) -> "Batch":
        """Return the chosen rows."""
        return self._map(lambda t: t.index_select(0, rows))

    def slice(self, start: int, stop: int) -> "Batch":
        """Return rows `start` to `stop` without a copy."""
        return self._map(lambda t: t[start:stop])

    def pad(self, n_rows: int) -> "Batch":
        """Return the rows followed by `n_rows` rows of zeros."""
        return self._map(lambda t: torch.cat([t, t.new_zeros((n_rows, *t.shape[1:]))]))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Batch":
        """Return the rows on `device`."""
        return self._map(lambda t: t.to(device=device, dtype=dtype))


def minibatches(data: Batch, batch_size: int, order: torch.Generator) -> Iterator[Batch]:
    """Yield one epoch of `data` in an order drawn from `order`, in batches of `batch_size` rows or a little fewer."""
    n = len(data)
    if batch_size >= n:
        yield data
        return
    permutation = torch.randperm(n, generator=order, device=order.device)
    # Batches of nearly equal size: a rest of a few rows would make a step as long as the others and far noisier.
    for rows in permutation.tensor_split(math.ceil(n / batch_size)):
        yield data.take(rows)
