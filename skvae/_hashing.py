"""Rows by their hashes: which are equal, and an order and a fingerprint that do not depend on how they came."""

import numpy as np
from torch import Tensor

from skvae._sparse import Cells, SparseRows, chunks, chunks_of


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
    for part in chunks_of(len(rows) - 1):
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
    for part in chunks(X):
        np.sum(_mix(_bits(X[part]) ^ salt), axis=1, out=hashed[part])
    return hashed


def _hashes_of_sparse_rows(matrix, salt: np.ndarray) -> np.ndarray:
    """Return the hashes that the rows of a dense matrix have: those of zeros, and what other cells change."""
    of_zeros = _mix(salt.copy())
    hashed = np.full(matrix.shape[0], of_zeros.sum(dtype=np.uint64))
    for part in chunks_of(matrix.shape[0], matrix.nnz // matrix.shape[0]):
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


def _equal_within_groups(X: Cells, rows: np.ndarray, first: np.ndarray) -> bool:
    """Tell whether rows of equal hash really are equal: a collision has a chance of about n**2 / 2**65."""
    repeated = np.flatnonzero(~first)
    return all(_same_cells(X[rows[repeated[p]]], X[rows[repeated[p] - 1]]).all() for p in chunks(X, len(repeated)))


def _same_cells(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Tell of each cell whether both are equal, or both missing."""
    return (X == Y) | (np.isnan(X) & np.isnan(Y))


def _sort_by_value(X: Cells, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows sorted by their values, and where each distinct one begins."""
    rows = rows[np.lexsort(X[rows].T[::-1])]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = ~_same_cells(X[rows[1:]], X[rows[:-1]]).all(axis=1)
    return rows, first


def hash_sum(hashed: np.ndarray, weight: Tensor | None, n_columns: int) -> int:
    """Return a number that tells rows, given by their hashes, and weights from others, whatever their order: sums add up."""
    total = 0
    for part in chunks_of(len(hashed)):
        row = hashed[part].copy()
        if weight is not None:  # as one column more
            row += _mix(weight[part].numpy().astype(np.float64).view(np.uint64) ^ _salt(n_columns + 1)[-1])
        total += int(_mix(row).sum(dtype=np.uint64))
    return total


def fingerprint(total: int) -> int:
    """Return a sum of hashes as a number below 2**63."""
    return total % 2**64 >> 1
