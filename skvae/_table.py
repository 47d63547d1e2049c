"""The table's codec: arrays and frames of cells to tensors in the model's units, and back. numpy becomes torch here, once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from skvae._batch import Batch, shuffled_windows
from skvae._frames import Form, array_of_list
from skvae._schema import Column, ColumnStatistics, Group, Schema
from skvae._sparse import SparseRows
from skvae.likelihoods import Likelihood
from skvae.likelihoods._mixed import Given, PerColumn

Cells = np.ndarray | SparseRows

_CHUNK_CELLS = 2**18  # cells converted at a time, 2 MB of float64
_NOTHING = 1e-30  # a limit below it, but above zero, stands for zero itself, which is outside


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
    has_texts = "could not convert string" in str(error)
    if isinstance(error, ValueError) and not has_texts and re.search("NaN|infinity", str(error)):
        names = [name for name, column in _columns(X) if not _is_finite(column)]
        what = "NaN" if "NaN" in str(error) else "infinity or a value too large"
        raise ValueError(
            f"Input X contains {what} in {len(names)} column(s): {names[:5]}. Fill or drop such cells first, for example with "
            "SimpleImputer."
        ) from error
    if hasattr(X, "columns") or (has_texts and np.ndim(array_of_list(X)) == 2):
        bad = [name for name, column in _columns(X) if not _reads_as_numbers(column)]
        if bad:
            raise ValueError(
                f"{len(bad)} column(s) cannot be read as numbers: {bad[:5]} ({str(error)[:100]}). A model that is fitted to a "
                "frame reads columns of other kinds (set_output(transform='pandas') makes a ColumnTransformer give one). Else "
                "encode them first, for example with a OneHotEncoder, or leave them out."
            ) from error


def _columns(X) -> list[tuple[str, np.ndarray]]:
    if hasattr(X, "columns"):
        return [(name, np.asarray(X[name])) for name in X.columns]
    if sparse.issparse(X):
        X = X.tocsc()
        return [(f"x{j}", X.data[X.indptr[j] : X.indptr[j + 1]]) for j in range(X.shape[1])]
    return [(f"x{j}", column) for j, column in enumerate(np.asarray(array_of_list(X)).T)]


def _is_finite(cells: np.ndarray) -> bool:
    numbers = pd.to_numeric(pd.Series(cells), errors="coerce")  # makes NaN of None and NA
    return bool(np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan)).all())


def _reads_as_numbers(cells: np.ndarray) -> bool:
    try:
        cells.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return cells.dtype.kind not in "mM"


def canonical_rows(X: Cells, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
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


def row_hashes(X: Cells) -> np.ndarray:
    """Hash each row of X to 64 bits, the sum of its mixed cells; -0.0 counts as 0.0, and every NaN as the same."""
    salt = _salt(X.shape[1])
    if isinstance(X, SparseRows):
        return _hashes_of_sparse_rows(X.matrix, salt)
    hashed = np.empty(len(X), dtype=np.uint64)
    for part in _chunks(X):
        np.sum(_mix(_bits(X[part]) ^ salt), axis=1, out=hashed[part])
    return hashed


def _hashes_of_sparse_rows(matrix, salt: np.ndarray) -> np.ndarray:
    """Return the hashes that the rows of a dense matrix have: those of zeros, and what other cells change."""
    of_zeros = _mix(salt.copy())
    hashed = np.full(matrix.shape[0], of_zeros.sum(dtype=np.uint64))
    for part in _chunks_of(matrix.shape[0], matrix.nnz // matrix.shape[0]):
        ends = matrix.indptr[part.start : part.stop + 1]
        here = slice(ends[0], ends[-1])
        columns = matrix.indices[here]
        changes = _mix(_bits(matrix.data[here]) ^ salt[columns]) - of_zeros[columns]
        reached = np.concatenate([[np.uint64(0)], np.cumsum(changes, dtype=np.uint64)])[ends - ends[0]]
        hashed[part] += reached[1:] - reached[:-1]
    return hashed


def _bits(cells: np.ndarray) -> np.ndarray:
    """Return cells as words of 64 bits, the same for equal cells."""
    cells = np.add(cells, 0.0, dtype=np.float64, order="C")
    cells[np.isnan(cells)] = np.nan
    return cells.view(np.uint64)


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


def _chunks(X: Cells, n_rows: int | None = None) -> list[slice]:
    """Cut rows of X into slices of bounded memory."""
    return _chunks_of(len(X) if n_rows is None else n_rows, X.shape[1])


def _chunks_of(n_rows: int, n_columns: int = 1) -> list[slice]:
    step = max(1, _CHUNK_CELLS // max(n_columns, 1))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _equal_within_groups(X: Cells, rows: np.ndarray, first: np.ndarray) -> bool:
    """Tell whether rows of equal hash really are equal: a collision has a chance of about n**2 / 2**65."""
    repeated = np.flatnonzero(~first)
    return all(_same_cells(X[rows[repeated[p]]], X[rows[repeated[p] - 1]]).all() for p in _chunks(X, len(repeated)))


def _same_cells(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Tell of each cell whether both are equal, or both missing."""
    return (X == Y) | (np.isnan(X) & np.isnan(Y))


def _sort_by_value(X: Cells, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows sorted by their values, and where each distinct one begins."""
    rows = rows[np.lexsort(X[rows].T[::-1])]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = ~_same_cells(X[rows[1:]], X[rows[:-1]]).all(axis=1)
    return rows, first


@np.errstate(under="ignore")
def column_statistics(X: Cells, rows: np.ndarray, weight: np.ndarray) -> ColumnStatistics:
    """Return weighted moments of X[rows] in float64, chunk by chunk, safe for values whose squares overflow.

    Missing cells are left out; a column of nothing else has NaN for moments and limits.
    """
    heaviest = weight.max()
    total = (weight / heaviest).sum()
    share = lambda p: weight[p] / heaviest / total  # noqa: E731
    parts = _chunks(X, len(rows))
    low = np.fmin.reduce([np.fmin.reduce(X[rows[p]], axis=0) for p in parts], axis=0).astype(np.float64)
    high = np.fmax.reduce([np.fmax.reduce(X[rows[p]], axis=0) for p in parts], axis=0).astype(np.float64)
    largest = np.fmax(np.maximum(np.abs(low), np.abs(high)), np.finfo(np.float64).tiny)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # a power of two, so that dividing by it rounds nothing
    mean, missing, present = sum(share(p) @ (X[rows[p]] / unit) for p in parts), np.zeros(X.shape[1]), np.ones(X.shape[1])
    has_holes = bool(np.isnan(mean).any())
    zeros = (lambda cells: np.where(np.isnan(cells), 0.0, cells)) if has_holes else (lambda cells: cells)  # for holes
    if has_holes:
        missing = sum(share(p) @ np.isnan(X[rows[p]]) for p in parts)
        present = sum(share(p) @ ~np.isnan(X[rows[p]]) for p in parts)  # without a difference, which loses digits
        present = np.where(missing > 0, np.where(present > 0, present, np.nan), 1.0)
        mean = sum(share(p) @ zeros(X[rows[p]] / unit) for p in parts) / present
    centred = lambda p: zeros(X[rows[p]] / unit - mean)  # noqa: E731
    spread = np.max([np.abs(centred(p)).max(axis=0) for p in parts], axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    variance = sum(share(p) @ np.square(centred(p) / spread) for p in parts) / present
    return _exact_if_constant(ColumnStatistics(mean * unit, np.sqrt(variance) * spread * unit, low, high, missing))


def _exact_if_constant(found: ColumnStatistics) -> ColumnStatistics:
    """Return the statistics with the moments of columns that do not vary, of which sums would be off by rounding noise."""
    constant = found.low == found.high
    mean = np.where(constant, found.low + 0.0, found.mean)  # no zero is negative
    return replace(found, mean=mean, std=np.where(constant, 0.0, found.std))


class RunningStatistics:
    """Statistics of rows that come part by part; those of all rows, however they are cut, to rounding."""

    statistics: ColumnStatistics
    total: float = 0.0  # weight of the rows so far
    present: np.ndarray  # (d,) and of the cells of every column among them that are not missing
    missing: np.ndarray

    def add(self, X: np.ndarray, weight: np.ndarray) -> None:
        """Count more rows, each of a positive weight."""
        found, total, holes = column_statistics(X, np.arange(len(X)), weight), float(weight.sum()), np.isnan(X)
        missing = weight @ holes if holes.any() else np.zeros(X.shape[1])
        present = np.where(missing > 0, weight @ ~holes, total)  # without a difference, which loses digits
        if self.total:
            found = _merged(self.statistics, self.present, found, present)
            total, present, missing = self.total + total, self.present + present, self.missing + missing
        self.statistics, self.total, self.present, self.missing = found, total, present, missing

    def result(self) -> ColumnStatistics:
        """Return the statistics of all rows so far."""
        return replace(self.statistics, missing=self.missing / self.total)


@np.errstate(under="ignore")
def _merged(one: ColumnStatistics, weight: np.ndarray, other: ColumnStatistics, other_weight: np.ndarray) -> ColumnStatistics:
    """Return the moments and limits of two sets of cells per column together, given those of each set and its weight."""
    one, other = one.where(weight > 0, other), other.where(other_weight > 0, one)
    share = other_weight / np.where(weight + other_weight > 0, weight + other_weight, 1.0)
    with np.errstate(over="ignore"):
        step = other.mean - one.mean
        unit = np.maximum(
            np.maximum(one.std, other.std), np.abs(step)
        )  # of the squares, which then neither overflow nor vanish
    unit = np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
    within = (1 - share) * np.square(one.std / unit) + share * np.square(other.std / unit)
    between = share * (1 - share) * np.square(step / unit)
    std = np.sqrt(within + between) * unit
    low, high = np.fmin(one.low, other.low), np.fmax(one.high, other.high)
    return _exact_if_constant(ColumnStatistics(one.mean + share * step, std, low, high, one.missing))


@dataclass(frozen=True)
class TableCodec:
    """The map between a table in the user's units and the model's tensors."""

    schema: Schema
    loc: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    order: np.ndarray  # the columns that the model sees, in its order
    low: np.ndarray  # of each of them: the limits of its support, in the model's units,
    high: np.ndarray
    clips: np.ndarray  # whether cells outside are moved to the edge,
    is_density: np.ndarray  # whether its likelihood has a unit,
    is_whole: np.ndarray  # and whether its cells are whole numbers
    per_cell: bool = False  # whether the likelihood itself heeds the units, cell by cell
    form: Form | None = None  # None for arrays of numbers

    @classmethod
    def learn(
        cls, statistics: ColumnStatistics, groups: Sequence[Group], names: Sequence[str], form: Form | None = None
    ) -> "TableCodec":
        """Learn the units of every column from its statistics in the training data."""
        d = len(statistics.low)
        loc, scale, kind = statistics.low.copy(), np.ones(d), np.full(d, _kind_of(groups[0].likelihood), dtype=object)
        for group in groups:
            chosen = group.columns
            loc[chosen], scale[chosen] = group.likelihood.units(statistics.take(chosen))
            kind[chosen] = _kind_of(group.likelihood)
        scale = np.where(scale > 0, scale, 1.0)
        order = np.concatenate([group.columns for group in groups])
        spread = lambda values: np.concatenate([np.full(len(g.columns), v) for g, v in zip(groups, values)])  # noqa: E731
        low, high = (spread([np.asarray(group.likelihood.support[side], float) for group in groups]) for side in (0, 1))
        schema = _schema(map(str, names), kind, loc, scale, order, form)
        clips, is_density, is_whole = (
            spread([getattr(group.likelihood, name) for group in groups]).astype(bool)
            for name in ("clips", "is_density", "is_whole")
        )
        has_holes = bool((statistics.missing[order] > 0).any())
        reads_holes = any(group.likelihood.reads_missing for group in groups)
        awaits_holes = form is not None and form.has_varying_categories  # where categories are new
        per_cell = len(groups) > 1 or has_holes or reads_holes or awaits_holes
        return cls(
            schema, loc, scale, order, low.astype(float), high.astype(float), clips, is_density, is_whole, per_cell, form
        )

    def likelihood_of(self, groups: Sequence[Group], statistics: ColumnStatistics) -> Likelihood:
        """Return one likelihood for all columns: that of the only group, or those of all side by side, tolerant of holes."""
        if not self.per_cell:
            return groups[0].likelihood
        missing = np.flatnonzero(statistics.missing[self.order] > 0)
        return self._side_by_side([group.likelihood for group in groups], [len(group.columns) for group in groups], missing)

    def _side_by_side(self, likelihoods, widths, missing=()) -> PerColumn:
        units = tuple(self.log_units.tolist())
        return PerColumn(tuple(likelihoods), tuple(widths), units, tuple(int(j) for j in missing))

    def tolerating_holes(self, likelihood: Likelihood) -> tuple["TableCodec", Likelihood]:
        """Return codec and likelihood, with the same parameters, for rows with holes after a training without any."""
        if self.per_cell:
            return self, likelihood
        return replace(self, per_cell=True), self._side_by_side([likelihood], [self.n_columns])

    @property
    def n_columns(self) -> int:
        """Number of columns that the model sees."""
        return len(self.order)

    @property
    def log_units(self) -> np.ndarray:
        """Log of the unit of each of the model's columns, zero for those without: what a log-density in it is too high."""
        return np.where(self.is_density, np.log(self.scale[self.order]), 0.0)

    @property
    def log_jacobian(self) -> float:
        """What a score in the model's units lacks to be one in the user's; nothing where the likelihood heeds them."""
        return 0.0 if self.per_cell else -float(self.log_units.sum())

    def incomplete_rows(self, X: Cells) -> np.ndarray:
        """Tell of each row whether the model will miss a cell of it.  # (n,)"""
        if isinstance(X, SparseRows):
            return X.incomplete_rows(self.order)
        missing = np.any(np.isnan(X), axis=0)
        return np.any(np.isnan(X[:, self.order[missing[self.order]]]), axis=1)

    def has_new_category(self, X: Cells, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Tell of the cells that the model sees whether their category is in some rows, but not in others.  # (n, d)"""
        new = np.zeros((len(rows), self.n_columns), dtype=bool)
        if self.form is None:
            return new
        for at, j in enumerate(self.order):
            if self.form.formats[j].categories is not None:
                new[:, at] = ~np.isin(X[rows, j], pd.unique(X[others, j]))
        return new

    def of_columns(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., n_columns) of the model's columns as values of all, zero for those it does not see."""
        out = np.zeros((*values.shape[:-1], len(self.loc)))
        out[..., self.order] = values
        return out

    def variance(self, variance: np.ndarray) -> np.ndarray:
        """Return variances of the model's columns in the user's units; a constant column has none."""
        with np.errstate(over="ignore", under="ignore"):
            return self.of_columns(variance * np.square(self.scale[self.order]))

    def encode(
        self, X: Cells, rows: np.ndarray | None = None, dtype: torch.dtype = torch.float32, is_known: bool = False
    ) -> Batch:
        """Return the chosen rows of X in the model's units; X is read, never written.

        Rows that are known, because they were encoded before, are not checked again.
        """
        n = len(X) if rows is None else len(rows)
        out = torch.empty((n, self.n_columns), dtype=dtype, device="cpu")
        target = out.numpy()
        columns = slice(None) if np.array_equal(self.order, np.arange(X.shape[1])) else self.order
        for part in _chunks(X, n):
            cells = X[part] if rows is None else X.take(rows[part], axis=0)
            with np.errstate(over="ignore"):
                scaled = self._scaled(cells[:, columns], target.dtype)
                if self.clips.all():
                    np.clip(scaled, self.low, self.high, out=scaled)
                elif self.clips.any():
                    scaled[:, self.clips] = np.clip(scaled[:, self.clips], self.low[self.clips], self.high[self.clips])
                target[part] = scaled
            if not is_known:
                self._check(scaled, target[part])
        return Batch(out)

    def _scaled(self, cells: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return `(cells - loc) / scale`, in double precision unless there is nothing to do."""
        loc, scale = self.loc[self.order], self.scale[self.order]
        if not (loc.any() or (scale != 1).any()):
            return cells.astype(dtype) if self.clips.any() else cells
        scaled = np.subtract(cells, loc, dtype=np.float64)
        return np.divide(scaled, scale, out=scaled)

    def _check(self, scaled: np.ndarray, encoded: np.ndarray) -> None:
        """Refuse cells outside the support, and those that overflow."""
        if self.clips.all():
            return
        refused = (scaled < self.low) | (scaled > self.high)
        if self.is_whole.any():
            refused |= self.is_whole & (scaled != np.rint(scaled)) & ~np.isnan(scaled)
        if refused.any():
            raise ValueError(self._refusal(scaled, refused))
        if np.isinf(encoded).any():
            raise ValueError(f"X has values that are too large for {encoded.dtype}. Rescale or standardize its columns.")

    def _refusal(self, cells: np.ndarray, refused: np.ndarray) -> str:
        """Return the message that names columns with cells the likelihood does not accept."""
        columns = [self.schema[j] for j in self.order]
        bad = np.flatnonzero(refused.any(axis=0))
        at, first = bad[0], columns[bad[0]]
        example = cells[:, at][refused[:, at]][0]
        is_open = 0 < self.low[at] < _NOTHING
        ends = (0.0 if is_open else self.low[at], 1.0 if self.high[at] == np.nextafter(1.0, 0.0) else self.high[at])
        low, high, example = (v * first.scale + first.loc for v in (*ends, example))
        where = f"{'(' if is_open else '['}{low:g}, {high:g}{')' if is_open else ']'}"
        where += " or no whole numbers" * bool(self.is_whole[at])
        return (
            f"{len(bad)} column(s) have values outside {where}, which the {first.kind} "
            f"likelihood does not accept: {[columns[j].name for j in bad[:5]]}; for example {example:g} in {first.name!r}. "
            + ("Add a small constant where zero is no more than a small number, " if is_open and not low else "Rescale them, ")
            + "set the likelihood's limits, or choose another likelihood."
        )

    def decode(self, x: Tensor, dtype: np.dtype) -> np.ndarray:
        """Return model-unit rows as an array of numbers in the user's units; constant columns get their constant."""
        values = x.cpu().numpy().astype(np.float64)
        out = np.broadcast_to(self.loc, (*values.shape[:-1], len(self.loc))).copy()
        with np.errstate(over="ignore", under="ignore"):
            out[..., self.order] += values * self.scale[self.order]
            out = out.astype(dtype)
        return out if self.form is None else self.form.among_seen(out)

    def table(self, cells: np.ndarray, like=None):
        """Return cells in the form in which the training data came; `like` is a frame whose index they get."""
        return cells if self.form is None else self.form.table(cells, like)

    def drawn_table(self, cells: np.ndarray):
        """Return cells that were drawn as a table."""
        return self.table(self.settled(cells))

    def settled(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) that were drawn, those of columns of several kinds moved to numbers that they can have."""
        return cells if self.form is None else self.form.settled(cells)

    def within_limits(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) that were drawn, those of columns of several kinds moved into their range in training."""
        return cells if self.form is None else self.form.within_limits(cells)

    def within_support(self, X: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return rows whose cells are moved to the edge of what the likelihood accepts, where they are outside."""
        low, high = np.full(len(self.loc), -np.inf), np.full(len(self.loc), np.inf)
        with np.errstate(over="ignore"):
            for limits, edge in ((low, self.low), (high, self.high)):
                limits[self.order] = self.loc[self.order] + self.scale[self.order] * edge
        return np.clip(X, low, high).astype(dtype, copy=False)

    def pack(self) -> dict:
        """Return the codec as plain values and arrays."""
        return {
            "names": [c.name for c in self.schema], "kinds": [c.kind for c in self.schema],
            "loc": self.loc, "scale": self.scale, "order": self.order, "low": self.low, "high": self.high,
            "clips": self.clips, "is_density": self.is_density, "is_whole": self.is_whole, "per_cell": self.per_cell,
            "form": None if self.form is None else self.form.pack(),
        }  # fmt: skip

    @classmethod
    def unpack(cls, packed: dict) -> "TableCodec":
        """Rebuild a codec from what `pack` returned."""
        names = ("loc", "scale", "order", "low", "high", "clips", "is_density", "is_whole")
        arrays: dict[str, Any] = {name: np.array(packed[name]) for name in names}
        form = None if packed["form"] is None else Form.unpack(packed["form"])
        loc, scale, order = (arrays[name] for name in names[:3])
        schema = _schema(packed["names"], packed["kinds"], loc, scale, order, form)
        return cls(schema, **arrays, per_cell=packed["per_cell"], form=form)


def _schema(names, kinds, loc: np.ndarray, scale: np.ndarray, order: np.ndarray, form: Form | None) -> Schema:
    """Return the columns, of which those that are not in the order of the model never varied."""
    constant = ~np.isin(np.arange(len(loc)), order)
    categories = [()] * len(loc) if form is None else [tuple(format.categories or ()) for format in form.formats]
    cells = zip(names, kinds, loc.tolist(), scale.tolist(), constant.tolist(), categories, strict=True)
    return Schema(Column(*column) for column in cells)


def _kind_of(likelihood: Likelihood) -> str:
    """Return the name of a likelihood in lower case, words apart."""
    if isinstance(likelihood, Given):
        return f"given {_kind_of(likelihood.likelihood)}"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(likelihood).__name__).lower()


@dataclass(frozen=True, eq=False)
class Table:
    """An array and its distinct rows, ready to train on."""

    X: Cells
    rows: np.ndarray  # numbers of the distinct rows
    weight: np.ndarray  # of each of them
    form: Form | None = None  # in which the user gave X, and
    likelihoods: Sequence[Likelihood] | None = None  # of its columns; known where a model is made for it

    @classmethod
    def of(cls, X: Cells, weight: np.ndarray | None, *form) -> "Table":
        """Find the distinct rows of X."""
        return cls(X, *canonical_rows(X, weight), *form)

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.X.shape[1]

    @property
    def n_rows(self) -> int:
        """Number of distinct rows."""
        return len(self.rows)

    @property
    def statistics(self) -> ColumnStatistics:
        """Moments and limits of the columns."""
        found = column_statistics(self.X, self.rows, self.weight)
        return found if self.form is None else found.with_categories(self.form)

    def has_holes(self, codec: TableCodec) -> bool:
        """Tell whether the model will miss a cell."""
        return bool(codec.incomplete_rows(self.X)[self.rows].any())

    @property
    def is_empty(self) -> bool:
        """Whether all cells are missing."""
        a_row = self.X[self.rows[:1]]  # which spares a look at the others
        return bool(np.isnan(a_row).all() and np.isnan(self.X[self.rows]).all())

    def columns(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the cells of every column in the distinct rows, and their weights."""
        for j in range(self.n_features):
            yield self.X[self.rows, j], self.weight


@dataclass(frozen=True, eq=False)
class LazyRows:
    """Rows of a table that are encoded when they are needed; to training they are the Batch of them all, without its memory."""

    codec: TableCodec
    X: Cells  # the user's, never copied
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


def hashes_of_encoded(codec: TableCodec, X: Cells, rows: np.ndarray, dtype: torch.dtype) -> np.ndarray:
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
