"""Moments and limits of every column of the training data, in one pass or part by part."""

from dataclasses import dataclass, fields, replace

import numpy as np

from skvae._form import Form
from skvae._sparse import Cells, chunks


@dataclass(frozen=True)
class ColumnStatistics:
    """Weighted moments and limits of every column of the training data, over the cells that are not missing."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    missing: np.ndarray  # share of the weight whose cell is missing

    def take(self, columns) -> "ColumnStatistics":
        """Return the statistics of some columns."""
        return ColumnStatistics(*(getattr(self, f.name)[columns] for f in fields(self)))

    def where(self, chosen: np.ndarray, other: "ColumnStatistics") -> "ColumnStatistics":
        """Return these statistics for the chosen columns, and others for the rest."""
        return ColumnStatistics(*(np.where(chosen, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def with_categories(self, form: Form) -> "ColumnStatistics":
        """Return the statistics with limits that leave room for all categories, seen or not."""
        high = self.high.copy()
        for j, column in enumerate(form.formats):
            if column.categories is not None:
                high[j] = len(column.categories) - 1 if high[j] >= 0 else high[j]
        low = np.where([column.categories is not None for column in form.formats], np.minimum(self.low, 0.0), self.low)
        return ColumnStatistics(self.mean, self.std, low, high, self.missing)


@np.errstate(under="ignore")
def column_statistics(X: Cells, rows: np.ndarray, weight: np.ndarray) -> ColumnStatistics:
    """Return weighted moments of X[rows] in float64, chunk by chunk, safe for values whose squares overflow.

    Missing cells are left out; a column of nothing else has NaN for moments and limits.
    """
    heaviest = weight.max()
    total = (weight / heaviest).sum()
    share = lambda p: weight[p] / heaviest / total  # noqa: E731
    parts = chunks(X, len(rows))
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
