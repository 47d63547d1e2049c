"""Data sources: rows that need not fit in memory, which `fit`, `score` and `transform` read block by block.

A large `numpy.memmap` is read this way by itself. To read anything else, write a :class:`Source`.
"""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

MEMORY_BUDGET = 2**28  # bytes of a memory-mapped array beyond which it is trained on out of core: 256 MB
_BLOCK_BYTES = 2**16  # of an array that are read in one go
_MAX_BLOCKS = 2**16  # of an array, beyond which they grow, up to `_MAX_BLOCK_BYTES`
_MAX_BLOCK_BYTES = 2**21
_SMALL_TYPES = ("float", "halffloat", "null")  # of arrow, which single precision holds
_STREAM_CELLS = 2**18  # cells that a parquet file gives at a time, where its rows are read in order
_INDEX = r"__index_level_\d+__"  # columns of a parquet file that are the index of a frame of pandas


class Source:
    """Base of the data sources: a table in blocks, any of which can be read at any time.

    A source of your own sets two attributes and one method. Blocks should be small, a hundred kilobytes to a few megabytes:
    training holds several at a time, and the more of them are mixed, the less the order of the rows matters.

    Attributes
    ----------
    feature_names : list of str or None
        Names of the columns, if they have some.

    n_features : int
        Number of columns.

    block_sizes : list of int
        Number of rows of each block.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import VAETransformer
    >>> from skvae.data import Source
    >>> class Waves(Source):
    ...     n_features = 3
    ...     block_sizes = [100] * 5
    ...
    ...     def read(self, block, rows=None):
    ...         t = np.arange(100 * block, 100 * (block + 1))
    ...         X = np.sin(t[:, None] * [0.1, 0.2, 0.3])
    ...         return X if rows is None else X[rows]
    >>> vae = VAETransformer(2, max_iter=5, learning_rate="cosine", random_state=0).fit(Waves())
    >>> vae.transform(Waves()).shape
    (500, 2)
    """

    feature_names: list[str] | None = None
    n_features: int
    block_sizes: Sequence[int]

    def read(self, block, rows=None):
        """Return the rows of a block.

        Parameters
        ----------
        block : int
            Number of the block.

        rows : ndarray of int, default=None
            Which of its rows, in ascending order; None for all.

        Returns
        -------
        X : ndarray of shape (n_rows, n_features)
            The rows, numbers of any dtype; NaN for missing cells.
        """
        raise NotImplementedError

    def stream(self, block):
        """Yield all rows of a block in order, in one or more arrays: what statistics, scores and `transform` read.

        Parameters
        ----------
        block : int
            Number of the block.

        Yields
        ------
        X : ndarray of shape (n_rows, n_features)
            Some rows.
        """
        yield self.read(block)

    def name_of(self, block):
        """Return a name of the block for messages.

        Parameters
        ----------
        block : int
            Number of the block.

        Returns
        -------
        name : str
            Such as the file's name.
        """
        return f"block {block} of {type(self).__name__}"

    def __len__(self) -> int:
        return sum(self.block_sizes)


class ArraySource(Source):
    """An array on disk as a source: a memory-mapped one, or anything with a shape whose slices are arrays (HDF5, zarr).

    `fit` makes one by itself of a `numpy.memmap` of more than 256 MB (`skvae.data.MEMORY_BUDGET`).

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The array. It is read, a few hundred kilobytes at a time, and never written to.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.data import ArraySource
    >>> len(ArraySource(np.zeros((10_000, 8))))
    10000
    """

    def __init__(self, X):
        if not (hasattr(X, "shape") and hasattr(X, "dtype")):
            raise TypeError(
                f"An ArraySource takes an array, which has a shape and a dtype, got a {type(X).__name__}. Fit a frame itself, "
                "whose columns may be of any kind, or pass its numbers, X.to_numpy()."
            )
        if len(X.shape) != 2 or 0 in X.shape:
            raise ValueError(f"An ArraySource needs a table with rows and columns, got an array of shape {tuple(X.shape)}.")
        if np.dtype(X.dtype).kind not in "fiub":
            raise ValueError(f"An ArraySource needs numbers, got an array of {X.dtype}.")
        self.X = X
        n_rows, self.n_features = X.shape
        row_bytes = self.n_features * np.dtype(X.dtype).itemsize
        self._step = max(1, min(max(_BLOCK_BYTES, n_rows * row_bytes // _MAX_BLOCKS), _MAX_BLOCK_BYTES) // row_bytes)
        full, rest = divmod(n_rows, self._step)
        self.block_sizes = [self._step] * full + [rest] * (rest > 0)

    def read(self, block, rows=None):
        start = block * self._step
        X = np.asarray(self.X[start : start + self._step])
        return X if rows is None else X[rows]

    def name_of(self, block):
        start = block * self._step
        return f"rows {start} to {start + self.block_sizes[block] - 1}"


class ParquetSource(Source):
    """A parquet file, or a folder of them, as a source. It needs pyarrow: `pip install pyarrow`.

    Of a folder, all files that end in `.parquet` count, also in folders within it, in the order of their names; those whose
    name begins with a dot or an underscore do not. They must have the same columns, in any order, all of them numbers
    (integers, floats, decimals, booleans); a null is a missing cell, and so is NaN. An index without a name that pandas has
    stored is no column, and a column that folders hold in their names (`year=2024/`) cannot be read. Files are never written
    to. They must stay as they are while they are in use: a file that has changed since the source was made is refused.

    The blocks are the row groups of the files. One column at a time is read of a row group, so large row groups cost time, not
    memory.

    Parameters
    ----------
    path : str or path-like
        The file or the folder.

    columns : list of str, default=None
        Which columns to read, in this order; None for all.

    Raises
    ------
    FileNotFoundError
        There is no such file, or no parquet file in the folder.
    ValueError
        Columns are missing, differ between files, hold no numbers, or are parts of the names of folders; or a file is damaged.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.data import ParquetSource
    >>> vae = VAETransformer(8).fit(ParquetSource("rows/"))  # doctest: +SKIP
    """

    def __init__(self, path, columns=None):
        pq = _pyarrow_parquet()
        self.path = Path(path)
        self.columns = _chosen(columns)
        self._files = []
        self._is_small = True  # all columns in single precision
        self._groups = []  # (number of the file, number of the row group in it)
        self.feature_names = self.columns
        for file in _parquet_files(self.path):
            with _naming(file), pq.ParquetFile(file, memory_map=True) as opened:
                self._check_folders(file, opened.schema_arrow)
                self._check_columns(file, opened.schema_arrow)
                self._groups += [(len(self._files), group) for group in range(opened.num_row_groups)]
                self._files.append((file, opened.metadata, _stamp(file)))
        self.n_features = len(self.feature_names)
        self.block_sizes = [self._files[file][1].row_group(group).num_rows for file, group in self._groups]
        if not sum(self.block_sizes):
            raise ValueError(f"{str(self.path)!r} holds no rows.")

    def __repr__(self):
        return f"ParquetSource({str(self.path)!r}, columns={self.columns!r})"

    def _check_folders(self, file, schema):
        """Refuse to lose a column whose values are parts of the names of folders."""
        folders = file.relative_to(self.path).parts[:-1] if file != self.path else ()
        lost = [part.partition("=")[0] for part in folders if "=" in part]
        lost = [name for name in lost if name not in schema.names and (self.columns is None or name in self.columns)]
        if lost:
            raise ValueError(
                f"{str(file)!r} has the column(s) {lost[:5]} in the names of its folders alone, where a ParquetSource does not "
                "read them. Write them into the files as columns, or name the columns to read without them: columns=[...]."
            )

    def _check_columns(self, file, schema):
        names = [name for name in schema.names if not re.fullmatch(_INDEX, name)]
        if self.feature_names is None:
            self.feature_names = names
        missing = [name for name in self.feature_names if name not in names]
        extra = [name for name in names if name not in self.feature_names] if self.columns is None else []
        if missing or extra:
            what = [f"lacks the column(s) {missing[:5]}"] * bool(missing) + [f"has the column(s) {extra[:5]} more"] * bool(
                extra
            )
            raise ValueError(
                f"{str(file)!r} {' and '.join(what)}. All files must have the same columns; `columns` chooses among them."
            )
        if not names or len(set(names)) < len(names) or len(set(self.feature_names)) < len(self.feature_names):
            raise ValueError(f"{str(file)!r} has no columns or two of one name: {self.feature_names[:5]}.")
        bad = [name for name in self.feature_names if not _is_number(schema.field(name).type)]
        if bad:
            raise ValueError(
                f"{len(bad)} column(s) of {str(file)!r} hold no numbers: {bad[:5]}, for example {schema.field(bad[0]).type}. "
                "Leave them out with `columns`, or encode them first."
            )

        self._is_small = self._is_small and all(str(schema.field(n).type) in _SMALL_TYPES for n in self.feature_names)

    def read(self, block, rows=None):
        n = self.block_sizes[block] if rows is None else len(rows)
        X = np.empty((n, self.n_features), dtype=self._dtype)
        with self._opened(block) as (file, group):
            for j, name in enumerate(self.feature_names):
                cells = _cells(file.read_row_group(group, columns=[name], use_threads=False).column(0), self._dtype)
                X[:, j] = cells if rows is None else cells[rows]
        return X

    def stream(self, block):
        step = max(1, _STREAM_CELLS // self.n_features)
        with self._opened(block) as (file, group):
            for part in file.iter_batches(step, row_groups=[group], columns=self.feature_names, use_threads=False):
                yield np.stack([_cells(part.column(name), self._dtype) for name in self.feature_names], axis=1)

    def name_of(self, block):
        return repr(str(self._files[self._groups[block][0]][0]))

    @property
    def _dtype(self):
        return np.dtype(np.float32 if self._is_small else np.float64)

    @contextmanager
    def _opened(self, block):
        """Open the file of a block and give it with the number of the row group; refuse a file that is not as it was."""
        pq = _pyarrow_parquet()
        number, group = self._groups[block]
        path, metadata, stamp = self._files[number]
        try:
            if _stamp(path) != stamp:
                raise ValueError(f"{str(path)!r} has changed since this {self!r} was made. Make a new one, and fit again.")
            with _naming(path), pq.ParquetFile(path, metadata=metadata, memory_map=True) as file:
                yield file, group
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{str(path)!r} is gone; it was there when this {self!r} was made. Put it back, or make a new source."
            ) from error


def _pyarrow_parquet():
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("ParquetSource needs pyarrow: pip install pyarrow.") from error
    return pq


def _chosen(columns) -> list | None:
    """Return names of columns as a list, None for all; refuse what is no list of names, and none."""
    if isinstance(columns, str):
        raise TypeError(f"columns must be a list of names, got the text {columns!r}. Pass columns=[{columns!r}].")
    names = None if columns is None else list(columns)
    if names == []:
        raise ValueError("columns is empty. Name the columns to read, or leave it at None for all.")
    return names


@contextmanager
def _naming(file):
    """Name the file in errors of arrow, which cannot read it; those of the system name it themselves."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = str(error).partition("\n")[0].rstrip(": .")
        raise ValueError(
            f"{str(file)!r} cannot be read as a parquet file: it is empty, incomplete, damaged or of another kind ({why}). "
            "Write it again, or take it out of the folder."
        ) from error


def _parquet_files(path: Path) -> list[Path]:
    """Return a parquet file, or those in a folder, in the order of their names."""
    if path.is_file():
        return [path]
    hidden = lambda file: any(part.startswith((".", "_")) for part in file.relative_to(path).parts)  # noqa: E731
    files = sorted(file for file in path.rglob("*.parquet") if file.is_file() and not hidden(file))
    if not files:
        what = "has no files that end in .parquet" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{str(path)!r} {what}. Pass a parquet file or a folder of them.")
    return files


def _stamp(file: Path) -> tuple[int, int]:
    """Return what changes when a file does."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _is_number(kind) -> bool:
    import pyarrow as pa

    types = pa.types
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def _cells(column, dtype: np.dtype) -> np.ndarray:
    """Return a column of arrow as numbers; nulls become NaN."""
    return column.cast(str(dtype), safe=False).to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def as_source(X) -> Source | None:
    """Return X as a source if it is to be read block by block: a Source, or a memory-mapped table above the budget."""
    if isinstance(X, Source):
        return X
    if isinstance(X, np.memmap) and X.ndim == 2 and X.nbytes > MEMORY_BUDGET and X.dtype.kind in "fiub":
        return ArraySource(X)
    return None
