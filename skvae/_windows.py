"""Windows of batches: those of several models put side by side, or those of one model as they are."""

from collections.abc import Iterator, Sequence
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

    def split(self, n_batches: int) -> Iterator["Window"]:
        """Yield windows of so many batches each, in turn."""
        for start in range(0, len(self.n_models), n_batches):
            here = slice(start, start + n_batches)
            yield Window(self.x[:, here], self.weight[:, here], self.noise[:, here], self.counts[here], self.n_models[here])


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
        kept[key] = _shares(sizes, rows.x), torch.tensor(sizes, device="cpu").to(rows.x)[:, None]
    weight, counts = kept[key]
    if rows.weight is not None:
        weight = weight * rows.weight
    return BatchesOfOne(rows.x[None], weight[None], noise[None], counts, sizes)


def side_by_side(parts: Sequence[tuple[Batch, list[int], Tensor]], k: int, kept: dict | None = None) -> Window:
    """Put the batches of several models side by side; noise (s, n, k) gets `k` components, those that fill up have none.

    A model may have batches of no rows, as long as those before it have some. What a window is made of is `kept`, and filled
    again for the next batches of the same sizes.
    """
    kept = {} if kept is None else kept
    key = tuple(tuple(sizes) for _, sizes, _ in parts)
    if key not in kept:
        kept[key] = _Frame(parts, k)
    return kept[key].filled(parts)


class _Frame:
    """A window for batches of the same sizes, which is filled again and again."""

    def __init__(self, parts: Sequence[tuple[Batch, list[int], Tensor]], k: int):
        (like, *_), s, all_sizes = parts[0], len(parts[0][2]), [sizes for _, sizes, _ in parts]
        m, n_batches = len(parts), max(map(len, all_sizes))
        n = kernels.padded_rows(max(map(max, all_sizes)))
        self.fits = m == 1 and set(all_sizes[0]) == {n}  # rows as they lie are a window
        new_zeros = like.x.new_zeros
        x = new_zeros((m, n_batches, 0 if self.fits else n, like.n_columns))
        weight, noise = new_zeros((m, n_batches, n)), new_zeros((m, n_batches, n, s, k))
        self.flat_x, self.flat_weight, self.flat_noise = x.flatten(1, 2), weight.flatten(1), noise.flatten(1, 2)
        self.places = [_places(sizes, n).to(like.device) for sizes in all_sizes]  # of rows in what is flat
        self.shares = [_shares(sizes, like.x) for sizes in all_sizes]
        for flat, place, share in zip(self.flat_weight, self.places, self.shares):
            flat[place] = share
        counts = [[sizes[j] if j < len(sizes) else 0 for sizes in all_sizes] for j in range(n_batches)]
        n_models = [sum(count > 0 for count in row) for row in counts]
        self.window = Window(x, weight, noise.movedim(3, 2), torch.tensor(counts, device="cpu").to(like.x), n_models)

    def filled(self, parts: Sequence[tuple[Batch, list[int], Tensor]]) -> Window:
        """Return the window with these rows and their noise, in the memory of the last one."""
        for i, ((rows, _, draws), place) in enumerate(zip(parts, self.places)):
            self.flat_noise[i, ..., : draws.shape[-1]].index_copy_(0, place, draws.movedim(0, 1))
            if rows.weight is not None:
                self.flat_weight[i].index_copy_(0, place, rows.weight * self.shares[i])
            if not self.fits:
                self.flat_x[i].index_copy_(0, place, rows.x)
        if not self.fits:
            return self.window
        (rows, *_), (_, n_batches, n) = parts[0], self.window.weight.shape
        return self.window._replace(x=rows.x.view(1, n_batches, n, -1))


def _shares(sizes: list[int], like: Tensor) -> Tensor:
    """Return what each row is of its batch, the weight of rows without weights.  # (sum(sizes),)"""
    lengths = torch.tensor(sizes, device="cpu")
    return (1 / lengths).repeat_interleave(lengths).to(like)


def _places(sizes: list[int], n: int) -> Tensor:
    """Return where the rows of batches of these sizes lie if every batch has room for n.  # (sum(sizes),)"""
    lengths = torch.tensor(sizes, device="cpu")
    starts = n * torch.arange(len(sizes), device="cpu")
    before = lengths.cumsum(0) - lengths
    return torch.arange(sum(sizes), device="cpu") + (starts - before).repeat_interleave(lengths)
