"""Windows of batches: those of several models put side by side, or those of one model as they are."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from skvae import _kernels as kernels
from skvae._batch import Batch


class Window(NamedTuple):
    """Some batches of every model, side by side: as many rows in each, those that only fill up of weight zero."""

    x: Tensor  # (m, n_batches, n, d)
    weight: Tensor  # (m, n_batches, n), divided by the number of rows that count
    noise: Tensor  # (m, n_batches, s, n, k)
    counts: Tensor  # (n_batches, m) rows that count
    n_models: list[int]  # that have a batch, of each batch

    def batches(self) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Yield batches (m, n, ...), noise (m, s, n, k) and counts (m,) of the models that have one."""
        m = len(self.x)
        parts = zip(self.x.unbind(1), self.weight.unbind(1), self.noise.unbind(1), self.counts.unbind(0), self.n_models)
        for x, weight, noise, count, present in parts:
            if present < m:
                x, weight, noise, count = x[:present], weight[:present], noise[:present], count[:present]
            yield Batch(x, weight), noise, count

    def shape(self) -> tuple:
        """Return what two windows must have in common to take the same steps."""
        return (*self.x.shape, *self.noise.shape, *self.n_models)


class BatchesOfOne(NamedTuple):
    """Some batches of one model as they are, without any row that fills up."""

    x: Tensor  # (1, r, d) the rows of all batches
    weight: Tensor  # (1, r), divided by the number of rows of the batch
    noise: Tensor  # (1, s, r, k)
    counts: Tensor  # (n_batches, 1) rows
    sizes: list[int]  # of the batches

    def batches(self) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Yield batches (1, n, ...), noise (1, s, n, k) and counts (1,)."""
        start = 0
        for size, count in zip(self.sizes, self.counts.unbind(0)):
            here, start = slice(start, start + size), start + size
            yield Batch(self.x[:, here], self.weight[:, here]), self.noise[:, :, here], count

    def shape(self) -> tuple:
        """Return what two windows must have in common to take the same steps."""
        return (*self.sizes, *self.noise.shape)


def copy_of(window: Window | BatchesOfOne) -> Window | BatchesOfOne:
    """Return a window of its own memory."""
    x, weight, noise, counts = (numbers.clone() for numbers in window[:4])
    return window._replace(x=x, weight=weight, noise=noise, counts=counts)


def become(window: Window | BatchesOfOne, other: Window | BatchesOfOne) -> None:
    """Let a window take over the numbers of another one of its shape."""
    for mine, theirs in zip(window[:4], other[:4]):
        mine.copy_(theirs)


def one_after_the_other(rows: Batch, sizes: list[int], noise: Tensor, kept: dict | None = None) -> BatchesOfOne:
    """Return the batches of one model, with noise (s, n, k); what depends on `sizes` alone is `kept`."""
    kept = {} if kept is None else kept
    key = tuple(sizes)
    if key not in kept:
        counts = torch.tensor(sizes, device="cpu").to(rows.x)
        kept[key] = (1 / counts).repeat_interleave(torch.tensor(sizes, device=rows.device)), counts[:, None]
    weight, counts = kept[key]
    if rows.weight is not None:
        weight = weight * rows.weight
    return BatchesOfOne(rows.x[None], weight[None], noise[None], counts, sizes)


def side_by_side(parts: list[tuple[Batch, list[int], Tensor]], k: int, kept: dict | None = None) -> Window:
    """Put the batches of several models side by side; noise (s, n, k) gets `k` components, those that fill up have none.

    The weights of rows without weights depend on the sizes of the batches alone, and are `kept` for windows of the same sizes.
    """
    kept = {} if kept is None else kept
    like, s = parts[0][0].x, len(parts[0][2])
    key = tuple(tuple(sizes) for _, sizes, _ in parts)
    if key not in kept:
        kept[key] = _plain_weights(like, [sizes for _, sizes, _ in parts])
    weight, counts, n_models = kept[key]
    if any(rows.weight is not None for rows, _, _ in parts):
        weight = weight.clone()
    m, n_batches, n = weight.shape
    fits = m == 1 and set(parts[0][1]) == {n}
    x = like.view(1, n_batches, n, -1) if fits else like.new_zeros((m, n_batches, n, like.shape[1]))
    noise = like.new_zeros((m, n_batches, n, s, k))
    for i, (rows, sizes, draws) in enumerate(parts):
        for size, batches, here in runs_of(sizes):
            cut = (batches.stop - batches.start, size)
            noise[i, batches, :size, :, : draws.shape[-1]] = draws[:, here].movedim(0, 1).unflatten(0, cut)
            if rows.weight is not None:
                weight[i, batches, :size] = rows.weight[here].view(cut) / size
            if not fits:
                x[i, batches, :size] = rows.x[here].unflatten(0, cut)
    return Window(x, weight, noise.movedim(3, 2), counts, n_models)


def _plain_weights(like: Tensor, sizes_of_models: list[list[int]]) -> tuple[Tensor, Tensor, list[int]]:
    """Return weights (m, n_batches, n) of batches of these sizes, their counts (n_batches, m), and who has a batch."""
    n_batches = max(map(len, sizes_of_models))
    n = kernels.padded_rows(max(map(max, sizes_of_models)))
    weight = like.new_zeros((len(sizes_of_models), n_batches, n))
    for i, sizes in enumerate(sizes_of_models):
        for size, batches, _ in runs_of(sizes):
            weight[i, batches, :size] = 1 / size
    counts = [[sizes[j] if j < len(sizes) else 0 for sizes in sizes_of_models] for j in range(n_batches)]
    return weight, torch.tensor(counts, device="cpu").to(like), [sum(count > 0 for count in row) for row in counts]


def runs_of(sizes: list[int]) -> Iterator[tuple[int, slice, slice]]:
    """Yield runs of batches of equal size: the size, the batches, and their rows."""
    batch, row = 0, 0
    for size, run in groupby(sizes):
        count = len(list(run))
        yield size, slice(batch, batch + count), slice(row, row + count * size)
        batch, row = batch + count, row + count * size
