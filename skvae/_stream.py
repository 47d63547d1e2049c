"""Training out of core: one pass that learns all about the rows of a source, and epochs through a bounded window of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from skvae._batch import Batch, batch_sizes
from skvae._form import Form
from skvae._hashing import fingerprint, hash_sum, row_hashes
from skvae._random import generator
from skvae._statistics import ColumnStatistics, RunningStatistics
from skvae._table import TableCodec
from skvae.data import Source
from skvae.likelihoods import Likelihood

_WINDOW_BYTES = 2**26  # encoded rows that are held and shuffled at a time: 64 MB
_MIXED_BLOCKS = 32  # so many blocks a window should mix; larger ones give it a part of their rows
_MAX_PARTS = 8  # and are read so many times per epoch at most for that
_PIECE_CELLS = 2**18  # of rows that are read in order, at a time
_HELD_ROWS = 30_000  # distinct rows kept in memory, for validation and as a sample
_HELD_BYTES = 2**25  # fewer where rows are long, but at least a thousand


@dataclass(frozen=True, eq=False)
class Held:
    """The distinct rows with the smallest hashes: a sample of the distinct rows that no order of the rows changes."""

    hashed: np.ndarray  # (k,) uint64, ascending
    X: np.ndarray  # (k, d)
    count: np.ndarray  # (k,) copies of each row in the source
    weight: np.ndarray  # (k,) and the sum of their weights


class Holder:
    """Finds the rows to hold. Counts are exact: a hash that is once not among the smallest never will be."""

    def __init__(self, limit: int | None = None):
        self.limit = limit or 0
        self.parts: list[Held] = []  # the rows held, then candidates

    def add(self, hashed: np.ndarray, X: np.ndarray, weight: np.ndarray) -> None:
        """Look at more rows."""
        if not self.limit:
            self.limit = max(1000, min(_HELD_ROWS, _HELD_BYTES // X[0].nbytes))
        if self.parts and len(self.parts[0].hashed) == self.limit:
            near = np.flatnonzero(hashed <= self.parts[0].hashed[-1])
            hashed, X, weight = hashed[near], X[near], weight[near]
        self.parts.append(Held(hashed, X, np.ones(len(hashed)), weight))
        if sum(len(part.hashed) for part in self.parts) > 1.5 * self.limit:
            self.parts = [self.held()]

    def held(self) -> Held:
        """Return the rows with the smallest hashes, equal ones merged."""
        hashed, X, count, weight = (np.concatenate([getattr(part, f.name) for part in self.parts]) for f in fields(Held))
        smallest, first, group = np.unique(hashed, return_index=True, return_inverse=True)
        count, weight = (np.bincount(group, weights=values)[: self.limit] for values in (count, weight))
        return Held(smallest[: self.limit], X[first[: self.limit]], count, weight)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over a source finds out."""

    n_rows: int  # of positive weight
    total_weight: float
    statistics: ColumnStatistics
    held: Held
    data_hash: int

    @property
    def n_distinct(self) -> float:
        """Number of distinct rows: exact if all are held, else estimated from how dense the smallest hashes lie."""
        held = self.held.hashed
        return len(held) if self.held.count.sum() == self.n_rows else (len(held) - 1) / (int(held[-1]) / 2**64)


@dataclass(frozen=True, eq=False)
class StreamedTable:
    """The rows of a source and their weights; what it must know of them all, it finds out in one pass when first asked."""

    source: Source
    weight: np.ndarray | None
    likelihoods: Sequence[Likelihood] | None = None  # of its columns; known where a model is made for it

    @property
    def form(self) -> Form:
        """A source holds numbers."""
        return Form.of_numbers(self.n_features)

    @property
    def X(self) -> Source:
        """What the user passed, or what stands for it."""
        return self.source

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.source.n_features

    @property
    def n_rows(self) -> int:
        """Number of distinct rows."""
        return round(self.survey.n_distinct)

    def head(self, n_rows: int) -> np.ndarray:
        """Return some of the distinct rows, as many as are held up to `n_rows`."""
        return self.survey.held.X[:n_rows]

    def limits(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest cells of some columns, NaN where there are none."""
        found = self.statistics.take(columns)
        return found.low, found.high

    @property
    def statistics(self) -> ColumnStatistics:
        """Moments and limits of the columns."""
        return self.survey.statistics

    def has_holes(self, codec: TableCodec) -> bool:
        """Tell whether the model will miss a cell."""
        return bool((self.statistics.missing[codec.order] > 0).any())

    def columns(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield cells of every column in a sample of the distinct rows, with their weights, and its limits, which weigh 0."""
        held, found = self.survey.held, self.statistics
        weight = np.concatenate([held.weight, [0.0, 0.0]])
        for j in range(self.n_features):
            yield np.concatenate([held.X[:, j], [found.low[j], found.high[j]]]), weight

    @cached_property
    def survey(self) -> Survey:
        """The pass over all rows."""
        holder, running = Holder(), RunningStatistics()
        n_rows, hashes = 0, 0
        for X, weight in self.pieces():
            hashed = row_hashes(X)
            hashes += hash_sum(hashed, None if self.weight is None else torch.from_numpy(weight), self.n_features)
            running.add(X, weight)
            holder.add(hashed, X, weight)
            n_rows += len(X)
        if not n_rows:
            raise ValueError(f"Found no rows in {self.source!r}: at least one is needed.")
        if not running.present.any():
            raise ValueError(f"All cells of {self.source!r} are missing (null or NaN), so there is nothing to learn from.")
        return Survey(n_rows, running.total, running.result(), holder.held(), fingerprint(hashes))

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all rows of positive weight in order, with their weights, checked."""
        for X, start in checked_pieces(self.source):
            weight = np.ones(len(X)) if self.weight is None else self.weight[start : start + len(X)]
            if (weight <= 0).any():
                X, weight = X[weight > 0], weight[weight > 0]
            if len(X):
                yield X, weight


def frame(source: Source, X: np.ndarray) -> np.ndarray | pd.DataFrame:
    """Return rows with the names of their columns, if the source has names."""
    return X if source.feature_names is None else pd.DataFrame(X, columns=source.feature_names, copy=False)


def row_of_zeros(source: Source) -> np.ndarray | pd.DataFrame:
    """Return a row in the form of those of a source, of which number and names of the columns can be told."""
    return frame(source, np.zeros((1, source.n_features)))


def checked_pieces(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    """Yield all rows of a source in order, each array with the number of its first row; refuse infinite cells."""
    few: list[np.ndarray] = []  # blocks may be small, and work on a few rows takes as long as on many
    start = n_few = 0
    for X in _checked_blocks(source):
        few.append(X)
        n_few += len(X)
        if n_few * source.n_features >= _PIECE_CELLS:
            yield np.concatenate(few), start
            few, start, n_few = [], start + n_few, 0
    if n_few:
        yield np.concatenate(few), start


def _checked_blocks(source: Source) -> Iterator[np.ndarray]:
    for block, size in enumerate(source.block_sizes):
        n = 0
        for piece in source.stream(block):
            n += len(piece)
            yield checked(source, block, piece)
        if n != size:
            raise ValueError(
                f"{source.name_of(block)} gave {n} rows, and {size} were announced. A source must stay as it is while it is "
                "in use."
            )


def checked(source: Source, block: int, X) -> np.ndarray:
    """Return rows that a source gave as an array of floats, or say what is wrong with them and where."""
    X = np.asarray(X)
    if X.ndim != 2 or X.shape[1] != source.n_features:
        raise ValueError(f"{source.name_of(block)} gave an array of shape {X.shape}; expected {source.n_features} columns.")
    X = X if X.dtype == np.float32 else X.astype(np.float64, copy=False)
    if np.isinf(X).any():
        bad = np.flatnonzero(np.isinf(X).any(axis=0))
        names = source.feature_names or [f"x{j}" for j in range(source.n_features)]
        raise ValueError(
            f"{len(bad)} column(s) have infinite values in {source.name_of(block)}: {[names[j] for j in bad[:5]]}. Replace "
            "such cells, or mark them as missing (NaN)."
        )
    return X


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """The training rows of a source, read anew in every epoch; to training they are what a Batch of them all would be."""

    table: StreamedTable
    codec: TableCodec
    sample: Batch  # distinct rows in a random order, with their weights
    excluded: np.ndarray  # hashes of the rows set aside, ascending
    n_rows: int
    mean_weight: float
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return self.n_rows

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""
        return self.codec.n_columns

    def head(self, n_rows: int) -> Batch:
        """Return a sample of the rows, as many as are held up to `n_rows`."""
        return self.sample.head(n_rows).to(self.device)

    def epoch(self, batch_size: int, order: torch.Generator, window: int) -> Iterator[tuple[Batch, list[int]]]:
        """Yield every row once, in windows as `Batch.epoch` does, in an order drawn from `order`.

        A random sequence of blocks fills a buffer of bounded size, and the rows in it are shuffled.
        """
        seed = int(torch.randint(2**31 - 1, (), generator=order, device=order.device))
        sizes = batch_sizes(len(self), batch_size)
        n_buffers = math.ceil(len(sizes) / max(1, self._window_rows // batch_size))
        step = math.ceil(len(sizes) / n_buffers)
        buffer, pieces, rest = self._buffer(sum(sizes[:step])), self._pieces(seed), self._buffer(0)
        for first in range(0, len(sizes), step):
            part = sizes[first : first + step]
            rows = buffer.head(sum(part))
            rest = self._fill(rows, rest, pieces)
            stream = generator(seed, "window", first)
            permutation = torch.randperm(len(rows), generator=stream, device="cpu")
            start = 0
            for begin in range(0, len(part), window):
                few = part[begin : begin + window]
                yield rows.take(permutation[start : start + sum(few)]).to(self.device), few
                start += sum(few)
        if len(rest) or next(pieces, None) is not None:
            raise self._has_changed()

    @property
    def _window_rows(self) -> int:
        return max(1, _WINDOW_BYTES // (max(1, self.n_columns) * self.dtype.itemsize))

    def _buffer(self, n_rows: int) -> Batch:
        """Return memory for rows."""
        x = torch.empty((n_rows, self.n_columns), dtype=self.dtype, device="cpu")
        return Batch(x, None if self.table.weight is None else torch.empty(n_rows, dtype=self.dtype, device="cpu"))

    def _fill(self, target: Batch, rest: Batch, pieces: Iterator[Batch]) -> Batch:
        """Write rows over `target`, first those of `rest`, then those of the next pieces; return what is left over."""
        filled = 0
        while filled < len(target):
            if not len(rest):
                found = next(pieces, None)
                if found is None:
                    raise self._has_changed()
                rest = found
            n = min(len(rest), len(target) - filled)
            target.x[filled : filled + n] = rest.x[:n]
            if target.weight is not None and rest.weight is not None:
                target.weight[filled : filled + n] = rest.weight[:n]
            rest, filled = rest.slice(n, len(rest)), filled + n
        return rest

    def _has_changed(self) -> ValueError:
        return ValueError(f"{self.table.source!r} has changed while it was read: the number of its rows is another. Fit again.")

    def _pieces(self, seed: int) -> Iterator[Batch]:
        """Yield the training rows, encoded: blocks in random order, of large ones a random part of their rows each time."""
        source, all_weights = self.table.source, self.table.weight
        sizes = np.asarray(source.block_sizes, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        n_windows = math.ceil(sizes.sum() / self._window_rows)
        n_parts, n_rounds = self._rounds(int(sizes.max()), n_windows)
        for part, block in _deal(seed, n_parts, len(sizes), n_rounds):
            rows = _part_of(int(sizes[block]), part, n_parts, generator(seed, "parts", block))
            if rows is not None and not len(rows) or not sizes[block]:
                continue
            X = checked(source, block, source.read(block, rows))
            if len(X) != (sizes[block] if rows is None else len(rows)):
                raise self._has_changed()
            keeps = self._trains(X)
            if all_weights is None:
                weight = None
            else:
                found = all_weights[starts[block] : starts[block] + sizes[block]]
                found = found if rows is None else found[rows]
                keeps &= found > 0
                weight = torch.from_numpy(found[keeps] / self.mean_weight).to(self.dtype)
            if keeps.any():
                yield Batch(self.codec.encode(X, np.flatnonzero(keeps), self.dtype).x, weight)

    def _rounds(self, largest: int, n_windows: int) -> tuple[int, int]:
        """Return in how many parts to read blocks, and in how many rounds to deal out each part.

        A window should mix many blocks, no part should fill it, and a whole number of rounds should.
        """
        fitting = math.ceil(4 * largest / self._window_rows)
        mixing = math.ceil(_MIXED_BLOCKS * largest / self._window_rows)
        n_parts = max(fitting, min(_MAX_PARTS, n_windows, mixing))
        if n_parts >= n_windows:
            return math.ceil(n_parts / n_windows) * n_windows, 1
        n_rounds = math.ceil(n_windows / n_parts)
        return max(fitting, math.ceil(n_windows / n_rounds)), n_rounds

    def _trains(self, X: np.ndarray) -> np.ndarray:
        """Tell which rows were not set aside."""
        if not len(self.excluded):
            return np.ones(len(X), dtype=bool)
        hashed = row_hashes(X)
        trains = hashed > self.excluded[-1]  # nearly all
        near = np.flatnonzero(~trains)
        trains[near] = self.excluded[np.searchsorted(self.excluded, hashed[near])] != hashed[near]
        return trains


def _deal(seed: int, n_parts: int, n_blocks: int, n_rounds: int) -> Iterator[tuple[int, int]]:
    """Yield every part of every block: all blocks for one part, then for the next, each time dealt out in rounds.

    Of `n_rounds` blocks that follow each other in the source, each round gets one. A window is about as long as a round, so
    windows resemble each other, and the whole, also where the rows are sorted.
    """
    run = np.arange(n_blocks) // n_rounds
    for part in range(n_parts):
        draws = torch.rand((2, n_blocks), generator=generator(seed, "blocks", part), device="cpu", dtype=torch.float64).numpy()
        dealt = np.empty(n_blocks, dtype=np.int64)
        dealt[np.lexsort((draws[0], run))] = np.arange(n_blocks) % n_rounds
        for block in np.lexsort((draws[1], dealt)).tolist():
            yield part, block


def _part_of(n_rows: int, part: int, n_parts: int, stream: torch.Generator) -> np.ndarray | None:
    """Return the rows of one of the random parts of a block; None for all."""
    if n_parts == 1:
        return None
    return np.sort(torch.randperm(n_rows, generator=stream, device="cpu")[part::n_parts].numpy())


def split_source(
    table: StreamedTable, codec: TableCodec, seed: int, n_validation: int, dtype: torch.dtype, device: torch.device
) -> tuple[StreamedRows, Batch, float]:
    """Set distinct rows aside; return the others, those set aside, and the total weight of the others."""
    survey = table.survey
    held = survey.held
    low_and_high = np.stack([survey.statistics.low, survey.statistics.high])
    codec.encode(low_and_high, dtype=dtype)  # refuses cells outside the support before training begins
    aside = np.zeros(len(held.hashed), dtype=bool)
    shuffled = torch.randperm(len(aside), generator=generator(seed, "split"), device="cpu")
    aside[shuffled[:n_validation].numpy()] = True
    n_rows = survey.n_rows - int(held.count[aside].sum())
    total = survey.total_weight - float(held.weight[aside].sum())
    mean = total / n_rows
    train = StreamedRows(table, codec, _batch(held, ~aside, codec, dtype), held.hashed[aside], n_rows, mean, dtype, device)
    return train, _batch(held, aside, codec, dtype).to(device), total


def _batch(held: Held, chosen: np.ndarray, codec: TableCodec, dtype: torch.dtype) -> Batch:
    """Return chosen rows of those held, encoded, with weights unless they are even."""
    x, weight = codec.encode(held.X, np.flatnonzero(chosen), dtype).x, held.weight[chosen]
    even = len(weight) == 0 or (weight == weight[0]).all()
    return Batch(x, None if even else torch.from_numpy(weight / weight.mean()).to(dtype))
