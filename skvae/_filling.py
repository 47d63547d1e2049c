"""Cells that are filled into a table of the user's, its type kept, and numbers that double precision cannot hold."""

from decimal import Decimal
from functools import partial
from numbers import Integral

import numpy as np
import pandas as pd

from skvae._form import Form
from skvae._formats import filled_polars, filled_series, values_of, written
from skvae._frames import array_of_list, column_of, is_polars, raw_cells


def filled(X, cells: np.ndarray, holes: np.ndarray, form: Form):
    """Return a copy of a table, its type kept, in which cells are filled from numbers where `holes`.

    A column keeps its type too, unless that cannot hold the values, or says nothing about them because no cell was there.
    """
    formats = form.formats
    values = {int(j): values_of(cells[holes[:, j], j], formats[j]) for j in np.flatnonzero(holes.any(axis=0))}
    like = "polars" if is_polars(X) else "pandas"

    def anew(j):
        """Return a filled column in the type of the training data, if these were a frame of the same kind."""
        series, _ = column_of(X, j)
        column = np.where(holes[:, j], cells[:, j], form.cells_of(series, formats[j]))
        if form.container == like:
            return written(column, formats[j], like)
        return values_of(column, formats[j]).tolist()

    if isinstance(X, pd.DataFrame):
        out = X.copy()
        for j, some in values.items():
            out.isetitem(j, filled_series(X.iloc[:, j], holes[:, j], some, formats[j], partial(anew, j)))
        return out
    if is_polars(X):
        return X.with_columns(
            [filled_polars(X.to_series(j), holes[:, j], some, formats[j], partial(anew, j)) for j, some in values.items()]
        )
    out = np.array(array_of_list(X))
    for j, some in values.items():
        out[holes[:, j], j] = some
    return out


def with_numbers_of(table, X, cells: np.ndarray, kept: np.ndarray, form: Form, times: int = 1, by_name: bool = False):
    """Return a table of a form in which kept cells are the numbers of X themselves, where double precision rounds them.

    Every row of X, a table whose cells were read, stands for as many rows, one after the other. A frame or a dict may have its
    columns by name.
    """
    if form.is_of_numbers:
        return table
    for j, format in enumerate(form.formats):
        rows = np.flatnonzero(kept[:, j] & (np.abs(cells[:, j]) >= format.exact_up_to))
        kind: type = int if format.is_whole else Decimal
        own = raw_cells(X, j, format.name, by_name) if len(rows) else []
        exact = {row: kind(own[row]) for row in rows.tolist() if isinstance(own[row], (Integral, Decimal))}
        if exact:
            table = _with_cells(table, j, {row * times + i: cell for row, cell in exact.items() for i in range(times)})
    return table


def _with_cells(table, j: int, changes: dict):
    """Return a table, of which some cells of one column are changed, unless its type cannot hold them."""
    is_array = isinstance(table, np.ndarray)
    column = table[:, j] if is_array else table.to_series(j) if is_polars(table) else table.iloc[:, j]
    cells = column.tolist() if is_array else column.to_list()
    for row, cell in changes.items():
        cells[row] = cell
    try:
        if is_array:
            table[:, j] = cells
        elif is_polars(table):
            table.replace_column(j, type(column)(column.name, cells, dtype=column.dtype))
        else:
            table.isetitem(j, pd.Series(cells, index=column.index, dtype=column.dtype))
    except (TypeError, ValueError, OverflowError):
        pass
    return table
