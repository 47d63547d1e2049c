"""Batch, the one record that travels from table to optimizer, and the ways to cut it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows on their way through a model; an absent field means 'nothing special'."""

    x: Tensor  # (..., n, d) in the model's units
    weight: Tensor | None = None  # (..., n) repetitions of each row, relative to their mean over the data

    def __len__(self) -> int:
        return self.x.shape[-2]

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""
        return self.x.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rows."""
        return self.x.dtype

    def present(self) -> list[str]:
        """Return the names of the fields that are not absent."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def _map(self, function) -> "Batch":
        return Batch(**{name: function(getattr(self, name)) for name in self.present()})

    def with_x(self, x: Tensor) -> "Batch":
        """Return rows that differ in `x` alone."""
        return self if x is self.x else replace(self, x=x)

    def take(self, rows: Tensor) -> "Batch":
        """Return the chosen rows."""
        return self._map(lambda t: t.index_select(0, rows))

    def head(self, n_rows: int) -> "Batch":
        """Return the first rows, as many as there are up to `n_rows`."""
        return self.slice(0, n_rows)

    def epoch(self, batch_size: int, order: torch.Generator, window: int) -> Iterator[tuple["Batch", list[int]]]:
        """Yield every row once in an order drawn from `order`, in windows of at most `window` batches.

        A window comes with the number of rows of each of its batches, which follow each other in it.
        """
        if batch_size >= len(self):
            return iter([(self, [len(self)])])
        return shuffled_windows(len(self), self.take, batch_size, order, window)

    def slice(self, start: int, stop: int) -> "Batch":
        """Return rows `start` to `stop` without a copy."""
        return self._map(lambda t: t[start:stop])

    def repeated(self, n_rows: int) -> Tensor:
        """Return so many rows in their order, each as often as its weight says.  # (n_rows, d)"""
        weight = self.x.new_ones(len(self)) if self.weight is None else self.weight
        reached = weight.double().cumsum(0)
        places = torch.arange(0.5, n_rows, device=self.device, dtype=torch.float64) * (reached[-1] / n_rows)
        return self.x[torch.searchsorted(reached, places)]

    def pad(self, n_rows: int) -> "Batch":
        """Return the rows followed by `n_rows` rows of zeros."""
        return self._map(lambda t: torch.cat([t, t.new_zeros((n_rows, *t.shape[1:]))]))

    def clone(self) -> "Batch":
        """Return a copy of the rows."""
        return self._map(torch.clone)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Batch":
        """Return the rows on `device`."""
        return self._map(lambda t: t.to(device=device, dtype=dtype))


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the rows of batches, which have the same fields, one after the other."""
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in batches[0].present()})


class TrainingRows(Protocol):
    """What training needs of its rows: a `Batch` has it, and so have rows that are encoded or read on the way."""

    def __len__(self) -> int: ...

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""

    @property
    def device(self) -> torch.device:
        """Where batches are given."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rows."""

    def head(self, n_rows: int) -> Batch:
        """Return some rows that stand for all, as many as are at hand up to `n_rows`, always the same."""

    def epoch(self, batch_size: int, order: torch.Generator, window: int) -> Iterator[tuple[Batch, list[int]]]:
        """Yield every row once; see `Batch.epoch`."""


def shuffled_windows(
    n_rows: int, take: Callable[[Tensor], Batch], batch_size: int, order: torch.Generator, window: int
) -> Iterator[tuple[Batch, list[int]]]:
    """Yield the windows of `Batch.epoch`; `take` gives the rows of some numbers."""
    sizes = batch_sizes(n_rows, batch_size)
    if len(sizes) == 1:
        yield take(torch.arange(n_rows, device=order.device)), sizes
        return
    permutation = torch.randperm(n_rows, generator=order, device=order.device)
    start = 0
    for first in range(0, len(sizes), window):
        part = sizes[first : first + window]
        yield take(permutation[start : start + sum(part)]), part
        start += sum(part)


def batch_sizes(n_rows: int, batch_size: int) -> list[int]:
    """Return the number of rows of each batch of an epoch: `batch_size` or a little fewer.

    All are nearly equal: a rest of a few rows would make a step as long as the others and far noisier.
    """
    n_batches = math.ceil(n_rows / batch_size)
    size, rest = divmod(n_rows, n_batches)
    return [size + 1] * rest + [size] * (n_batches - rest)
