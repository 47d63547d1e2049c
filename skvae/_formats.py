"""Formats: the name, the type and the categories of a column, and numbers written as a column in its type."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

FLAGS = ("bool", "boolean", "bool[pyarrow]", "Boolean")  # types of flags
_WIDEST = 64  # bits of whole numbers that numpy knows
_EXACT = 2.0**53  # up to which double precision holds all whole numbers


@dataclass(frozen=True)
class Format:
    """How one column comes and goes: its name, its type, and its categories if it has any."""

    name: Any
    dtype: str  # as pandas or polars writes it
    categories: list | None = None  # of codes 0, 1, ...; None for numbers
    ordered: bool = False
    limits: tuple[float, float] | None = None  # of numbers, in the training data
    seen: list[int] | None = None  # codes of the categories that training rows have, the most frequent first; None for all
    frequent: list[tuple[float, float]] | None = None  # numbers that occur again and again, and how near others never come

    @property
    def n_levels(self) -> int:
        """Number of categories that training rows have; 0 for numbers."""
        return len(self.categories or ()) if self.seen is None else len(self.seen)

    @property
    def occurring(self) -> list:
        """The categories that training rows have, in their order."""
        categories = self.categories or []
        return categories if self.seen is None else [categories[code] for code in sorted(self.seen)]

    @property
    def is_whole(self) -> bool:
        """Whether the type is one of whole numbers."""
        return re.match(r"u?int\d", dense_type(self.dtype).lower()) is not None

    @property
    def exact_up_to(self) -> float:
        """Number up to which double precision holds all that the type does; infinite for types of floating point and others."""
        is_decimal = dense_type(self.dtype).lower().startswith("decimal")
        return _EXACT if self.is_whole else _EXACT / 10.0 ** _digits(self.dtype)[1] if is_decimal else np.inf

    @property
    def is_flag(self) -> bool:
        """Whether the type is one of flags."""
        return dense_type(self.dtype) in FLAGS


def polars(name: str):
    """Return what polars has under a name."""
    import polars as pl

    return getattr(pl, name)


# --- types as texts --------------------------------------------------------------------------------------------------


def name_of_type(dtype) -> str:
    """Return a type of pandas as a text, from which `type_of_name` makes it again."""
    if isinstance(dtype, pd.StringDtype) and str(dtype) == "string" and dtype.storage == "python":
        return "string[python]"
    if isinstance(dtype, pd.SparseDtype):
        return f"Sparse[{dtype.subtype}, {dtype.fill_value}]"
    return str(dtype)


def type_of_name(name: str):
    """Return the type of pandas of a name; pandas itself does not read all that it writes."""
    if name.endswith("[pyarrow]"):
        return pd.ArrowDtype(_arrow_type(name.removesuffix("[pyarrow]")))
    sparse = re.fullmatch(r"Sparse\[(\w+), (.+)\]", name)
    if sparse:
        number = np.dtype(sparse[1]).type
        return pd.SparseDtype(number, sparse[2] == "True" if number is np.bool_ else number(sparse[2]).item())
    return pd.api.types.pandas_dtype(name)


def dense_type(name: str) -> str:
    """Return the type of the cells of a column, sparse or not."""
    return re.sub(r"^Sparse\[(\w+), .+\]$", r"\1", name)


def _arrow_type(name: str):
    import pyarrow as pa

    decimal = re.fullmatch(r"(decimal\d+)\((\d+), (-?\d+)\)", name)
    if decimal:
        return getattr(pa, decimal[1])(int(decimal[2]), int(decimal[3]))
    dictionary = re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", name)
    if dictionary:
        return pa.dictionary(_arrow_type(dictionary[2]), _arrow_type(dictionary[1]), dictionary[3] == "1")
    return pa.type_for_alias(name)


def _polars_type(format: Format):
    """Return the type of polars of a column."""
    kind = format.dtype.split("(")[0]
    if kind == "Enum":
        return polars("Enum")(format.categories)
    return polars(kind)(*_digits(format.dtype)) if kind == "Decimal" else polars(kind)


def _digits(dtype: str) -> tuple[int | None, int]:
    """Return how many digits a type of decimal numbers has, None for as many as there can be, and how many after the point."""
    *before, after = map(int, re.findall(r"\d+", re.sub(r"^\D*\d*\(", "(", dtype)))
    return (before[0] if before else None), after


# --- numbers as columns ----------------------------------------------------------------------------------------------


def written(cells: np.ndarray, format: Format, container: str):
    """Return numbers as a column of a frame of pandas or polars, or of an array."""
    if container == "polars":
        return _polars_column(cells, format)
    return _pandas_column(cells, format) if container == "pandas" else np.asarray(values_of(cells, format), format.dtype)


def _pandas_column(cells: np.ndarray, format: Format):
    """Return numbers as a column of pandas in its type."""
    missing, name = np.isnan(cells), dense_type(format.dtype)
    if name.startswith("category["):
        categories = [] if format.categories == [None] else format.categories
        dtype = pd.CategoricalDtype(pd.Index(categories, dtype=type_of_name(name[9:-1])), format.ordered)
        missing = missing | (not categories)
        return pd.Categorical.from_codes(np.where(missing, -1, np.nan_to_num(_clipped(cells, format))).astype(int), dtype=dtype)
    values = values_of(cells, format)
    if name == "object":
        return pd.Series(np.where(missing, np.nan, values), dtype=object)
    if missing.any() and re.fullmatch(r"u?int\d+|bool", name):  # types without a place for holes
        return pd.array(values, dtype="boolean" if name == "bool" else None)
    if missing.any() and values.dtype.kind != "f":
        values = np.where(missing, np.array(None), values)
    if name.startswith("decimal") and format.categories is None:
        values = _decimals(values, name)
    column = pd.array(values, dtype=type_of_name(name))
    return column if name == format.dtype else pd.Series(column).astype(type_of_name(format.dtype))


def _polars_column(cells: np.ndarray, format: Format):
    """Return numbers as a column of polars in its type."""
    whole, values = format.is_whole, values_of(cells, format)
    if format.dtype.startswith("Decimal") and format.categories is None:
        values = _decimals(values, format.dtype)
    told = zip(np.isnan(cells), values.tolist(), strict=True)
    listed = [None if gone else int(value) if whole else value for gone, value in told]
    return polars("Series")(format.name, listed, dtype=_polars_type(format))


def _decimals(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers as decimal ones with the digits that the type can hold, None for those that are missing."""
    before, after = _digits(dtype)
    largest = Decimal(10**before - 1 if before else 10**38 - 1).scaleb(-after)
    exact = [None if np.isnan(v) else Decimal(f"{v:.{max(after, 0)}f}").min(largest).max(-largest) for v in values]
    return np.array(exact, dtype=object)


def _clipped(cells: np.ndarray, format: Format) -> np.ndarray:
    """Return codes of categories that exist."""
    assert format.categories is not None
    return np.clip(np.rint(cells), 0, len(format.categories) - 1)


def values_of(cells: np.ndarray, format: Format) -> np.ndarray:
    """Return numbers as the values of a column, None for categories that are missing."""
    name = dense_type(format.dtype).lower()
    if format.categories is None:
        return _whole(cells, name) if format.is_whole else _flags(cells) if format.is_flag else cells
    missing = np.isnan(cells)
    categories = np.empty(len(format.categories), dtype=object)
    categories[:] = format.categories
    values = categories[np.nan_to_num(_clipped(cells, format)).astype(int)]
    values[missing] = None
    are_numbers = format.is_whole or name.startswith("float")
    return values.astype(np.float64) if are_numbers and not missing.all() else values


def _flags(cells: np.ndarray) -> np.ndarray:
    """Return numbers as the nearer of False, which is 0, and True; None for those that are missing."""
    flags, missing = cells >= 0.5, np.isnan(cells)
    return np.where(missing, np.array(None), flags) if missing.any() else flags


def _whole(cells: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers rounded to whole ones that the type can hold."""
    match = re.match(r"(u?)int(\d+)", dtype)
    assert match is not None
    limits = np.iinfo(f"{match[1]}int{min(int(match[2]), _WIDEST)}")
    highest = float(limits.max)  # which is rounded up where the type has more digits
    return np.clip(
        np.rint(cells.astype(np.float64)), float(limits.min), highest if highest <= limits.max else np.nextafter(highest, 0)
    )


def check_can_be_written(formats: list[Format], container: str) -> None:
    """Refuse types of which no column can be made of numbers, with whatever error the library that owns the type has."""
    for format in {format.dtype: format for format in formats}.values():
        cell = np.array([format.limits[0] if format.limits else 0.0])
        try:
            written(cell, format, container)
        except Exception as error:
            raise ValueError(
                f"Column {format.name!r} has type {format.dtype}, of which skvae cannot make a column, for example in `sample` "
                f"({error}). Convert it first, for example by astype({'str' if format.categories else 'float'!r})."
            ) from error


# --- holes filled ----------------------------------------------------------------------------------------------------


def filled_series(series: pd.Series, holes: np.ndarray, values: np.ndarray, format: Format, anew: Callable) -> pd.Series:
    """Return a column with its holes filled, in its own type unless that cannot hold the values or the column was empty."""
    if not holes.all():
        try:
            return _filled_in_place(series, holes, values, format)
        except (TypeError, ValueError, OverflowError):
            pass
    return pd.Series(anew(), name=series.name).set_axis(series.index)


def _filled_in_place(series: pd.Series, holes: np.ndarray, values: np.ndarray, format: Format) -> pd.Series:
    if isinstance(series.dtype, pd.CategoricalDtype):
        new = [v for v in pd.unique(values) if v not in series.cat.categories]
        levels = _with_levels(series.cat.categories.tolist(), new, format)
        series = series.cat.add_categories(new).cat.reorder_categories(levels) if new else series
    elif pd.api.types.is_integer_dtype(series.dtype):
        values = np.rint(values.astype(np.float64))
    out = series.copy()
    out.iloc[np.flatnonzero(holes)] = pd.array(values.tolist(), dtype=series.dtype)
    return out


def _with_levels(order: list, new: list, format: Format) -> list:
    """Return levels with new ones, each next to its neighbours in the order of the training data, or last if there is none."""
    known = format.categories or []
    if not format.ordered:
        return order + new
    order = order.copy()
    for level in sorted(new, key=known.index):
        at = known.index(level)
        below = next((order.index(v) for v in reversed(known[:at]) if v in order), None)
        above = next((order.index(v) for v in known[at:] if v in order), len(order))
        order.insert(above if below is None else below + 1, level)
    return order


def filled_polars(series, holes: np.ndarray, values: np.ndarray, format: Format, anew: Callable):
    """Do what `filled_series` does for polars."""
    if not holes.all():
        cells = series.to_list()
        for i, value in zip(np.flatnonzero(holes), values.tolist(), strict=True):
            cells[i] = round(value) if series.dtype.is_integer() else value
        try:
            return type(series)(series.name, cells, dtype=_type_with_levels(series.dtype, values, format))
        except (TypeError, ValueError, OverflowError):
            pass
    return polars("Series")(series.name, anew())


def _type_with_levels(dtype, values: np.ndarray, format: Format):
    """Return a type of polars with the values among its levels, if it has levels."""
    if not isinstance(dtype, polars("Enum")):
        return dtype
    levels = dtype.categories.to_list()
    return polars("Enum")(_with_levels(levels, [v for v in pd.unique(values) if v not in levels], format))
