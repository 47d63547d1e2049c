"""Tables of numbers, dense or sparse, which are read a few rows at a time."""

import numpy as np

_CHUNK_CELLS = 2**18  # cells converted at a time, 2 MB of float64


class SparseRows:
    """A sparse matrix that gives its rows as arrays; what reads a table part by part takes it for an array.

    It is never written to; the user's own matrix is kept where its rows are stored one after the other, without duplicates.
    """

    def __init__(self, matrix):
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        self.matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.matrix.shape

    @property
    def dtype(self) -> np.dtype:
        """Precision of the cells."""
        return self.matrix.dtype

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return self.matrix[rows].toarray()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.matrix.toarray().astype(dtype or self.dtype, copy=False)

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return the rows of some numbers, as of an array."""
        assert axis == 0
        return self[rows]

    def of_rows(self, rows) -> "SparseRows":
        """Return some rows, still sparse."""
        return SparseRows(self.matrix[rows])

    def incomplete_rows(self, columns: np.ndarray) -> np.ndarray:
        """Tell of every row whether cells of some columns are missing.  # (n,) bool"""
        holes = np.flatnonzero(np.isnan(self.matrix.data))
        holes = holes[np.isin(self.matrix.indices[holes], columns)]
        found = np.zeros(len(self), dtype=bool)
        found[np.searchsorted(self.matrix.indptr, holes, side="right") - 1] = True
        return found


Cells = np.ndarray | SparseRows


def rows_of(X: Cells, rows) -> Cells:
    """Return some rows of a table, sparse if it is."""
    return X.of_rows(rows) if isinstance(X, SparseRows) else X[rows]


def chunks(X: Cells, n_rows: int | None = None) -> list[slice]:
    """Cut rows of X into slices of bounded memory."""
    return chunks_of(len(X) if n_rows is None else n_rows, X.shape[1])


def chunks_of(n_rows: int, n_columns: int = 1) -> list[slice]:
    """Cut so many rows into slices of bounded memory."""
    step = max(1, _CHUNK_CELLS // max(n_columns, 1))
    return [slice(start, start + step) for start in range(0, n_rows, step)]
