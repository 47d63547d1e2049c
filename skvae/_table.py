"""The table's codec: arrays and frames of cells to tensors in the model's units, and back. numpy becomes torch here, once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from skvae._batch import Batch, shuffled_windows
from skvae._form import Form
from skvae._hashing import canonical_rows, row_hashes
from skvae._schema import Column, Group, Schema
from skvae._sparse import Cells, SparseRows, chunks, chunks_of
from skvae._statistics import ColumnStatistics, column_statistics
from skvae._warnings import warn
from skvae.likelihoods import Likelihood
from skvae.likelihoods._mixed import Given, PerColumn

_NOTHING = 1e-30  # a limit below it, but above zero, stands for zero itself, which is outside


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
    form: Form
    per_cell: bool = False  # whether the likelihood itself heeds the units, cell by cell

    @classmethod
    def learn(cls, statistics: ColumnStatistics, groups: Sequence[Group], names: Sequence[str], form: Form) -> "TableCodec":
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
        awaits_holes = form.has_varying_categories  # where categories are new
        per_cell = len(groups) > 1 or has_holes or reads_holes or awaits_holes
        return cls(
            schema, loc, scale, order, low.astype(float), high.astype(float), clips, is_density, is_whole, form, per_cell
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
        for part in chunks(X, n):
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
        return self.form.among_seen(out)

    def table(self, cells: np.ndarray, like=None):
        """Return cells in the form in which the training data came; `like` is a frame whose index they get."""
        return self.form.table(cells, like)

    def drawn_table(self, cells: np.ndarray):
        """Return cells that were drawn as a table."""
        return self.table(self.settled(cells))

    def settled(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) that were drawn, those of columns of several kinds moved to numbers that they can have."""
        return self.form.settled(cells)

    def within_limits(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) that were drawn, those of columns of several kinds moved into their range in training."""
        return self.form.within_limits(cells)

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
            "form": self.form.pack(),
        }  # fmt: skip

    @classmethod
    def unpack(cls, packed: dict) -> "TableCodec":
        """Rebuild a codec from what `pack` returned."""
        names = ("loc", "scale", "order", "low", "high", "clips", "is_density", "is_whole")
        arrays: dict[str, Any] = {name: np.array(packed[name]) for name in names}
        loc, scale, order = (arrays[name] for name in names[:3])
        form = Form.unpack(packed["form"], len(loc))
        schema = _schema(packed["names"], packed["kinds"], loc, scale, order, form)
        return cls(schema, **arrays, per_cell=packed["per_cell"], form=form)


def warn_of_columns_left_out(names: list[str]) -> None:
    """Warn of columns, if there are some, that the model leaves out and that tell something now."""
    if names:
        warn(
            f"{len(names)} column(s) had no cell or a single value in the training so far, so the model leaves them out, and "
            f"have others now: {names[:5]}. For a model that describes them, train a clone anew."
        )


def _schema(names, kinds, loc: np.ndarray, scale: np.ndarray, order: np.ndarray, form: Form) -> Schema:
    """Return the columns, of which those that are not in the order of the model never varied."""
    constant = ~np.isin(np.arange(len(loc)), order)
    categories = [tuple(format.categories or ()) for format in form.formats]
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
    form: Form | None = None  # that X teaches, and the
    likelihoods: Sequence[Likelihood] | None = None  # of its columns; both where a model is made for it alone

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

    def head(self, n_rows: int) -> np.ndarray:
        """Return the first of the distinct rows, up to `n_rows`, and of a sparse matrix no more than are dense at a time."""
        at_a_time = len(self.rows) if isinstance(self.X, np.ndarray) else chunks(self.X)[0].stop
        return self.X[self.rows[: min(n_rows, at_a_time)]]

    def limits(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest cells of some columns in the distinct rows, NaN where there are none."""
        parts = [self.X[self.rows[part]][:, columns] for part in chunks(self.X, self.n_rows)]
        return tuple(ends.reduce([ends.reduce(part, 0) for part in parts], 0) for ends in (np.fmin, np.fmax))

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
        for part in chunks_of(len(self), self.n_columns):
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
    for part in chunks(X, len(rows)):
        hashed[part] = row_hashes(codec.encode(X, rows[part], dtype).x.numpy())
    return hashed
