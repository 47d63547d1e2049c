"""Frames of pandas and polars, and arrays of any cells, column by column."""

from typing import Any

import numpy as np
import pandas as pd

from skvae._formats import (
    name_of_type,
    polars,
)

_DATES = ("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period")  # as pandas calls what cells are


def is_frame(X) -> bool:
    """Tell whether X is a frame of pandas or polars."""
    return isinstance(X, pd.DataFrame) or is_polars(X)


def refuse_equal_names(X) -> None:
    """Refuse a frame of which two columns have the same name."""
    names = pd.Index(list(X.columns), dtype=object, tupleize_cols=False)
    again = names[names.duplicated()].unique().tolist()
    if again:
        raise ValueError(
            f"{len(again)} name(s) belong to more than one column: {again[:5]}. Rename these columns, or leave all but one out."
        )


def is_polars(X) -> bool:
    """Tell whether X is a frame of polars."""
    return type(X).__module__.split(".")[0] == "polars" and hasattr(X, "schema")


def array_of_list(X):
    """Return rows that are lists as an array, of objects if there are texts, as numpy would make texts of all cells; else X."""
    if not isinstance(X, (list, tuple)):
        return X
    array = np.asarray(X)
    return np.asarray(X, dtype=object) if array.dtype.kind in "SU" else array


def rows_where(X, chosen: np.ndarray):
    """Return the chosen rows of a frame or an array."""
    return X.filter(chosen) if is_polars(X) else X[chosen]


def columns_of(X) -> list[tuple[Any, pd.Series, str]]:
    """Return name, cells as a series of pandas, and type of every column."""
    names = X.columns if is_frame(X) else range(X.shape[1])
    return [(name, *column_of(X, j)) for j, name in enumerate(names)]


def column_of(X, j: int) -> tuple[pd.Series, str]:
    """Return cells as a series of pandas, and type of one column."""
    if isinstance(X, pd.DataFrame):
        series = X.iloc[:, j]
        return _dense(series), name_of_type(series.dtype)
    if is_polars(X):
        series = X.to_series(j)
        return _series_of_polars(series), str(series.dtype)
    return pd.Series(X[:, j]), str(X.dtype)


def _dense(series: pd.Series) -> pd.Series:
    return series.sparse.to_dense() if isinstance(series.dtype, pd.SparseDtype) else series


def _series_of_polars(series) -> pd.Series:
    kind = str(series.dtype).split("(")[0]
    if kind in ("Categorical", "Enum"):
        return pd.Series(pd.Categorical(series.to_list(), categories=_levels_of_polars(series), ordered=kind == "Enum"))
    if kind in ("String", "Boolean", "Null"):
        return pd.Series(series.to_list(), dtype=object)
    if not series.dtype.is_numeric():
        raise ValueError(refusal(series.name, str(series.dtype)))
    return pd.Series(series.cast(polars("Float32" if kind == "Float32" else "Float64")).to_numpy())


def _levels_of_polars(series) -> list:
    if str(series.dtype).startswith("Enum"):
        return series.dtype.categories.to_list()
    return sorted(series.drop_nulls().unique().cast(polars("String")).to_list())


def refuse_unreadable(name, series: pd.Series, dtype: str) -> None:
    """Refuse dates, durations and complex numbers, also as categories or in a column of type object."""
    cells = series.cat.categories if isinstance(series.dtype, pd.CategoricalDtype) else series
    if isinstance(cells.dtype, pd.ArrowDtype) and not is_number(cells):
        cells = cells.dropna()[:1].astype(object)
    kind = pd.api.types.infer_dtype(cells, skipna=True)
    if cells.dtype.kind in "mMc" or (kind in (*_DATES, "complex") and not cells.isna().all()):
        raise ValueError(refusal(name, dtype, kind, cells))


def refusal(name, dtype: str, kind: str = "", cells=()) -> str:
    """Return the message that refuses a column, with what to do about cells of its kind."""
    example = next((cell for cell in cells if pd.api.types.is_list_like(cell) or not pd.isna(cell)), None)
    what = f"{dtype}, with cells of type {type(example).__name__}" if dtype in ("object", "category") else dtype
    advice = "Turn it into columns of numbers or texts"
    if kind in _DATES or dtype in ("Date", "Time") or dtype.startswith(("Datetime", "Duration")):
        advice = "Turn it into numbers, such as the days since a date, or into texts if its values recur"
    if kind == "complex":
        advice = "Turn it into two columns, its real and its imaginary part"
    return f"Column {name!r} has type {what}, which no likelihood reads. {advice}, or leave it out."


def is_number(series: pd.Series) -> bool:
    """Tell whether the cells are numbers, also in a column of type object; flags are none."""
    if series.dtype == object:
        return pd.api.types.infer_dtype(series, skipna=True) in ("integer", "floating", "mixed-integer-float", "decimal")
    is_real = pd.api.types.is_numeric_dtype(series.dtype) and series.dtype.kind != "c"
    return is_real and not pd.api.types.is_bool_dtype(series.dtype)


def numbers_of(series: pd.Series, name, advice: str = "Correct such cells, or mark them as missing (None)") -> np.ndarray:
    """Return a column as floating point numbers, NaN for what is missing; the advice is for columns that hold others."""
    if series.dtype in (np.float32, np.float64):
        values = series.to_numpy()
    elif is_number(series) or pd.api.types.is_bool_dtype(series.dtype) or series.isna().all():
        found = pd.to_numeric(series) if series.dtype == object else series
        values = found.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        found = pd.to_numeric(series, errors="coerce")
        is_none = series.dtype.kind in "mM" or found.dtype.kind == "c"  # dates and complex numbers, of which that makes some
        values = np.full(len(series), np.nan) if is_none else np.asarray(found, dtype=np.float64)
        bad = series[np.isnan(values) & ~series.isna().to_numpy(dtype=bool)]
        if len(bad):
            raise ValueError(f"Column {name!r} cannot be read as numbers: it has {bad.iloc[0]!r}, for example. {advice}.")
    if np.isinf(values).any():
        raise ValueError(f"Column {name!r} contains infinity. Replace such cells, or mark them as missing (NaN).")
    return values


def raw_cells(X, j: int, name, by_name: bool = True) -> list:
    """Return the cells of one column of a frame, an array, or a dict with a single row as they are; None if it is not there."""
    if isinstance(X, dict):
        return [X.get(name)]
    if not is_frame(X):
        return array_of_list(X)[:, j].tolist()
    names = list(X.columns)
    if by_name and name not in names:
        return [None] * len(X)
    j = names.index(name) if by_name else j
    return X.to_series(j).to_list() if is_polars(X) else X.iloc[:, j].to_list()


def labelled(numbers: np.ndarray, like):
    """Return numbers in a frame with the columns and the index of `like`, if that is one."""
    if isinstance(like, pd.DataFrame):
        return pd.DataFrame(numbers, index=like.index, columns=like.columns)
    if is_polars(like):
        return type(like)(numbers, schema=like.columns)
    return numbers
