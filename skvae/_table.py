"""The table's codec: arrays and frames of cells to tensors in the model's units, and back. numpy becomes torch here, once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from skvae._batch import Batch, shuffled_windows
from skvae.likelihoods import Likelihood

_CHUNK_CELLS = 2**18  # cells converted at a time, 2 MB of float64


def array_of_tensor(X: Tensor) -> np.ndarray:
    """Return a torch tensor on the CPU as an array; refuse others."""
    if X.device.type != "cpu":
        raise TypeError(
            f"X is a torch tensor on {X.device}; arrays on the CPU are accepted. Pass X.cpu(): the estimator moves its work to "
            "the device that its `device` parameter names."
        )
    return X.detach().resolve_conj().resolve_neg().numpy()


def explain_columns(X, error: Exception) -> None:
    """Raise an error that names the columns, where `error` came from cells that are no finite numbers."""
    if isinstance(error, ValueError) and re.search("NaN|infinity", str(error)):
        names = [name for name, column in _columns(X) if not _is_finite(column)]
        what = "NaN" if "NaN" in str(error) else "infinity or a value too large"
        raise ValueError(
            f"Input X contains {what} in {len(names)} column(s): {names[:5]}. Fill or drop such cells first, for example with "
            "SimpleImputer."
        ) from error
    if hasattr(X, "columns"):
        bad = [name for name, column in _columns(X) if not _reads_as_numbers(column)]
        if bad:
            raise ValueError(
                f"{len(bad)} column(s) cannot be read as numbers: {bad[:5]}. Encode them first, for example with a "
                "OneHotEncoder in a ColumnTransformer, or leave them out."
            ) from error


def _columns(X) -> list[tuple[str, np.ndarray]]:
    if hasattr(X, "columns"):
        return [(name, np.asarray(X[name])) for name in X.columns]
    return [(f"x{j}", column) for j, column in enumerate(np.asarray(X).T)]


def _is_finite(cells: np.ndarray) -> bool:
    numbers = pd.to_numeric(pd.Series(cells), errors="coerce")  # makes NaN of None and NA
    return bool(np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan)).all())


def _reads_as_numbers(cells: np.ndarray) -> bool:
    try:
        cells.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return cells.dtype.kind not in "mM"


@dataclass(frozen=True)
class Column:
    """One column of the training data: its name, its likelihood, and the map `(x - loc) / scale` to the model's units."""

    name: str
    kind: str
    loc: float
    scale: float
    constant: bool = False  # never varied, so it is left out of the model


class Schema(tuple):
    """The columns of the training data, in order; prints as a table."""

    def __repr__(self):
        width = max([len(c.name) for c in self[:20]] + [6])
        lines = [f"{'column':<{width}}  {'kind':<10}  {'loc':>10}  {'scale':>10}"]
        for c in self[:20]:
            kind = "constant" if c.constant else c.kind
            lines.append(f"{c.name:<{width}}  {kind:<10}  {c.loc:>10.4g}  {c.scale:>10.4g}")
        if len(self) > 20:
            lines.append(f"... and {len(self) - 20} more columns")
        return "\n".join(lines)


@dataclass(frozen=True)
class ColumnStatistics:
    """Weighted moments and limits of every column of the training data."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def canonical_rows(X: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows of X in an order of their own, as row numbers, and how often each counts.

    Rows of weight zero are dropped and equal rows merged, so a row of weight 3 and three copies of it are the same data, down
    to the order of minibatches. The order is that of a 64-bit hash of the row: it does not depend on the order in X.
    """
    hashed = row_hashes(X)
    rows = None if weight is None else np.flatnonzero(weight > 0)
    order = np.argsort(hashed if rows is None else hashed[rows], kind="stable")
    rows = _small_integers(order if rows is None else rows[order], len(X))
    del order
    first = np.ones(len(rows), dtype=bool)
    for part in _chunks_of(len(rows) - 1):
        first[1:][part] = hashed[rows[1:][part]] != hashed[rows[:-1][part]]
    del hashed
    if first.all():
        return rows, np.broadcast_to(1.0, len(rows)) if weight is None else weight[rows]
    if not _equal_within_groups(X, rows, first):
        rows, first = _sort_by_value(X, rows)
    group = np.cumsum(first) - 1
    return rows[first], np.bincount(group, weights=None if weight is None else weight[rows]).astype(np.float64, copy=False)


def _small_integers(numbers: np.ndarray, limit: int) -> np.ndarray:
    """Return whole numbers below `limit` in half the memory where they fit."""
    return numbers.astype(np.int32 if limit <= np.iinfo(np.int32).max else np.int64, copy=False)


def row_hashes(X: np.ndarray) -> np.ndarray:
    """Hash each row of X to 64 bits, the sum of its mixed cells; -0.0 counts as 0.0."""
    salt = _salt(X.shape[1])
    hashed = np.empty(len(X), dtype=np.uint64)
    for part in _chunks(X):
        bits = np.add(X[part], 0.0, dtype=np.float64, order="C").view(np.uint64)
        np.sum(_mix(bits ^ salt), axis=1, out=hashed[part])
    return hashed


def _salt(n_columns: int) -> np.ndarray:
    """Return one word per column, so that cells which change places change the hash."""
    return _mix(np.arange(1, n_columns + 1, dtype=np.uint64))


def _mix(bits: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words in place (the finalizer of splitmix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits


def _chunks(X: np.ndarray, n_rows: int | None = None) -> list[slice]:
    """Cut rows of X into slices of bounded memory."""
    return _chunks_of(len(X) if n_rows is None else n_rows, X.shape[1])


def _chunks_of(n_rows: int, n_columns: int = 1) -> list[slice]:
    step = max(1, _CHUNK_CELLS // max(n_columns, 1))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _equal_within_groups(X: np.ndarray, rows: np.ndarray, first: np.ndarray) -> bool:
    """Tell whether rows of equal hash really are equal: a collision has a chance of about n**2 / 2**65."""
    repeated = np.flatnonzero(~first)
    return all(np.array_equal(X[rows[repeated[p]]], X[rows[repeated[p] - 1]]) for p in _chunks(X, len(repeated)))


def _sort_by_value(X: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows sorted by their values, and where each distinct one begins."""
    rows = rows[np.lexsort(X[rows].T[::-1])]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (X[rows[1:]] != X[rows[:-1]]).any(axis=1)
    return rows, first


def column_statistics(X: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> ColumnStatistics:
    """Return weighted moments of X[rows] in float64, chunk by chunk, safe for values whose squares overflow."""
    heaviest = weight.max()
    total = (weight / heaviest).sum()
    share = lambda p: weight[p] / heaviest / total  # noqa: E731
    parts = _chunks(X, len(rows))
    low = np.min([X[rows[p]].min(axis=0) for p in parts], axis=0).astype(np.float64)
    high = np.max([X[rows[p]].max(axis=0) for p in parts], axis=0).astype(np.float64)
    largest = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.finfo(np.float64).tiny)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # a power of two, so that dividing by it rounds nothing
    mean = sum(share(p) @ (X[rows[p]] / unit) for p in parts)
    centred = lambda p: X[rows[p]] / unit - mean  # noqa: E731
    spread = np.max([np.abs(centred(p)).max(axis=0) for p in parts], axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    variance = sum(share(p) @ np.square(centred(p) / spread) for p in parts)
    return ColumnStatistics(mean * unit, np.sqrt(variance) * spread * unit, low, high)


def merge_statistics(one: ColumnStatistics, weight: float, other: ColumnStatistics, other_weight: float) -> ColumnStatistics:
    """Return the statistics of two sets of rows together, given each set's statistics and total weight."""
    share = other_weight / (weight + other_weight)
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    with np.errstate(over="ignore"):
        step = other.mean - one.mean
        unit = np.maximum(
            np.maximum(one.std, other.std), np.abs(step)
        )  # of the squares, which then neither overflow nor vanish
    unit = np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
    within = (1 - share) * np.square(one.std / unit) + share * np.square(other.std / unit)
    between = share * (1 - share) * np.square(step / unit)
    return ColumnStatistics(one.mean + share * step, np.sqrt(within + between) * unit, low, high)


@dataclass(frozen=True)
class TableCodec:
    """The map between a table in the user's units and the model's tensors."""

    schema: Schema
    loc: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    varying: np.ndarray  # (d,) bool, False for constant columns, which the model does not see
    support: tuple[float, float]
    is_density: bool
    clips: bool

    @classmethod
    def learn(
        cls, statistics: ColumnStatistics, likelihood: Likelihood, names: Sequence[str], drop_constant: bool
    ) -> "TableCodec":
        """Learn the units of every column from its statistics in the training data."""
        loc, scale = (np.asarray(v, dtype=np.float64) for v in likelihood.units(statistics))
        constant = statistics.low == statistics.high
        if likelihood.drops_constant:
            loc, scale = np.where(constant, statistics.low, loc), np.where(constant, 1.0, scale)
        scale = np.where(scale > 0, scale, 1.0)
        dropped = constant & (drop_constant and likelihood.drops_constant)
        kind = type(likelihood).__name__.lower()
        columns = zip(names, loc.tolist(), scale.tolist(), dropped.tolist(), strict=True)
        schema = Schema(Column(str(name), kind, at, unit, gone) for name, at, unit, gone in columns)
        return cls(schema, loc, scale, ~dropped, likelihood.support, likelihood.is_density, likelihood.clips)

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""
        return int(self.varying.sum())

    @property
    def log_jacobian(self) -> float:
        """What a score in the model's units lacks to be one in the user's: minus the sum of log scales, for densities."""
        return -float(np.log(self.scale[self.varying]).sum()) if self.is_density else 0.0

    def variance(self, variance: np.ndarray) -> np.ndarray:
        """Return variances of the model's columns in the user's units; a constant column has none."""
        out = np.zeros(len(self.loc))
        with np.errstate(over="ignore"):
            out[self.varying] = variance * np.square(self.scale[self.varying])
        return out

    def encode(
        self, X: np.ndarray, rows: np.ndarray | None = None, dtype: torch.dtype = torch.float32, is_known: bool = False
    ) -> Batch:
        """Return the chosen rows of X in the model's units; X is read, never written.

        Rows that are known, because they were encoded before, are not checked again.
        """
        n = len(X) if rows is None else len(rows)
        out = torch.empty((n, self.n_columns), dtype=dtype, device="cpu")
        target = out.numpy()
        columns = slice(None) if self.varying.all() else self.varying
        for part in _chunks(X, n):
            cells = X[part] if rows is None else X.take(rows[part], axis=0)
            with np.errstate(over="ignore"):
                scaled = self._scaled(cells[:, columns], target.dtype)
                if self.clips:
                    np.clip(scaled, *self.support, out=scaled)
                target[part] = scaled
            if not is_known:
                self._check(scaled, target[part])
        return Batch(out)

    def _scaled(self, cells: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return `(cells - loc) / scale`, in double precision unless there is nothing to do."""
        loc, scale = self.loc[self.varying], self.scale[self.varying]
        if not (loc.any() or (scale != 1).any()):
            return cells.astype(dtype) if self.clips else cells
        scaled = np.subtract(cells, loc, dtype=np.float64)
        return np.divide(scaled, scale, out=scaled)

    def _check(self, scaled: np.ndarray, encoded: np.ndarray) -> None:
        """Refuse cells outside the support, and those that overflow."""
        low, high = self.support
        if not self.clips and (scaled.min(initial=low) < low or scaled.max(initial=high) > high):
            raise ValueError(self._outside_message(scaled, (scaled < low) | (scaled > high)))
        if not (self.clips or np.isfinite(encoded).all()):
            raise ValueError(f"X has values that are too large for {encoded.dtype}. Rescale or standardize its columns.")

    def _outside_message(self, cells: np.ndarray, outside: np.ndarray) -> str:
        columns = [c for c, seen in zip(self.schema, self.varying, strict=True) if seen]
        bad = np.flatnonzero(outside.any(axis=0))
        first = columns[bad[0]]
        low, high, example = (v * first.scale + first.loc for v in (*self.support, cells[:, bad[0]][outside[:, bad[0]]][0]))
        return (
            f"{len(bad)} column(s) have values outside [{low:g}, {high:g}], which the {first.kind} likelihood does not "
            f"accept: {[columns[j].name for j in bad[:5]]}; for example {example:g} in {first.name!r}. "
            "Rescale them, set the likelihood's limits, or choose another likelihood."
        )

    def decode(self, x: Tensor, dtype: np.dtype) -> np.ndarray:
        """Return model-unit rows as an array in the user's units; constant columns get their constant."""
        values = x.cpu().numpy().astype(np.float64)
        out = np.broadcast_to(self.loc, (*values.shape[:-1], len(self.loc))).copy()
        with np.errstate(over="ignore"):
            out[..., self.varying] += values * self.scale[self.varying]
            return out.astype(dtype)

    def within_support(self, X: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return rows whose cells are moved to the edge of what the likelihood accepts, where they are outside."""
        with np.errstate(over="ignore"):
            low, high = (self.loc + self.scale * edge for edge in self.support)
        return np.clip(X, low, high).astype(dtype, copy=False)

    def pack(self) -> dict:
        """Return the codec as plain values and arrays."""
        return {
            "names": [c.name for c in self.schema], "kinds": [c.kind for c in self.schema],
            "loc": self.loc, "scale": self.scale, "varying": self.varying,
            "support": self.support, "is_density": self.is_density, "clips": self.clips,
        }  # fmt: skip

    @classmethod
    def unpack(cls, packed: dict) -> "TableCodec":
        """Rebuild a codec from what `pack` returned."""
        loc, scale, varying = (np.array(packed[k]) for k in ("loc", "scale", "varying"))
        cells = zip(packed["names"], packed["kinds"], loc.tolist(), scale.tolist(), varying.tolist(), strict=True)
        schema = Schema(Column(name, kind, at, unit, not seen) for name, kind, at, unit, seen in cells)
        return cls(schema, loc, scale, varying, tuple(packed["support"]), packed["is_density"], packed["clips"])


@dataclass(frozen=True, eq=False)
class Table:
    """An array and its distinct rows, ready to train on."""

    X: np.ndarray
    rows: np.ndarray  # numbers of the distinct rows
    weight: np.ndarray  # of each of them

    @classmethod
    def of(cls, X: np.ndarray, weight: np.ndarray | None) -> "Table":
        """Find the distinct rows of X."""
        return cls(X, *canonical_rows(X, weight))

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.X.shape[1]

    @property
    def statistics(self) -> ColumnStatistics:
        """Moments and limits of the columns."""
        return column_statistics(self.X, self.rows, self.weight)


@dataclass(frozen=True, eq=False)
class LazyRows:
    """Rows of a table that are encoded when they are needed; to training they are the Batch of them all, without its memory."""

    codec: TableCodec
    X: np.ndarray  # the user's, never copied
    rows: np.ndarray  # numbers of the rows, in their order
    weight: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""
        return self.codec.n_columns

    def encoded(self) -> Batch:
        """Return all of them, encoded once and for all."""
        x = torch.empty((len(self), self.n_columns), dtype=self.dtype, device=self.device)
        for part in _chunks_of(len(self), self.n_columns):
            x[part] = self._encoded(self.rows[part])
        return Batch(x, None if self.weight is None else self.weight.to(self.device))

    def _encoded(self, rows: np.ndarray) -> Tensor:
        return self.codec.encode(self.X, rows, self.dtype, is_known=True).x

    def take(self, rows: Tensor) -> Batch:
        """Return the chosen rows, encoded."""
        x = self._encoded(self.rows[rows.cpu().numpy()])
        return Batch(x, None if self.weight is None else self.weight[rows.cpu()]).to(self.device)

    def head(self, n_rows: int) -> Batch:
        """Return the first rows, as many as there are up to `n_rows`, encoded."""
        x = self._encoded(self.rows[:n_rows])
        return Batch(x, None if self.weight is None else self.weight[:n_rows]).to(self.device)

    def epoch(self, batch_size: int, order: torch.Generator, window: int) -> Iterator[tuple[Batch, list[int]]]:
        """Yield every row once, as `Batch.epoch` does."""
        return shuffled_windows(len(self), self.take, batch_size, order, window)


def hashes_of_encoded(codec: TableCodec, X: np.ndarray, rows: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return a hash of each of the rows as the model sees it, which gives them an order that no change of units changes."""
    hashed = np.empty(len(rows), dtype=np.uint64)
    for part in _chunks(X, len(rows)):
        hashed[part] = row_hashes(codec.encode(X, rows[part], dtype).x.numpy())
    return hashed


def hash_sum(hashed: np.ndarray, weight: Tensor | None, n_columns: int) -> int:
    """Return a number that tells rows, given by their hashes, and weights from others, whatever their order: sums add up."""
    total = 0
    for part in _chunks_of(len(hashed)):
        row = hashed[part].copy()
        if weight is not None:  # as one column more
            row += _mix(weight[part].numpy().astype(np.float64).view(np.uint64) ^ _salt(n_columns + 1)[-1])
        total += int(_mix(row).sum(dtype=np.uint64))
    return total


def fingerprint(total: int) -> int:
    """Return a sum of hashes as a number below 2**63."""
    return total % 2**64 >> 1
