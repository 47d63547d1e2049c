"""The form of a table: cells of any kind as numbers, codes for categories and NaN for what is missing, and back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from skvae._formats import FLAGS, Format, check_can_be_written, dense_type, name_of_type, polars, written
from skvae._frames import (
    column_of,
    columns_of,
    is_frame,
    is_number,
    is_polars,
    numbers_of,
    refusal,
    refuse_equal_names,
    refuse_unreadable,
)
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, NormalMixture, Ordinal

_MOST_LEVELS = 1000  # of a column of categories that nobody asked for: beyond, the decoder would be all about it
_NEAR = 0.03  # standard deviations within which likelihoods cannot tell numbers apart: three of their narrowest modes
_FREQUENT = 0.01  # share of the cells from which on a number is one that occurs again and again,
_ALONE = 0.9  # and share of the cells near it that have it
_FEWEST_OF_TWO = 10  # cells, from which on two distinct numbers are taken for a flag


@dataclass(frozen=True)
class Form:
    """The form of a table: what kind of frame or array it is, and the format of every column."""

    container: str  # "pandas", "polars", "array", or "numbers": an array of numbers alone, which is read and written as it is
    formats: list[Format]
    handle_unknown: str = "error"
    level_names: list | None = None  # of the columns of a frame of pandas, one for each level; None if they have none

    @classmethod
    @lru_cache(maxsize=16)
    def of_numbers(cls, n_columns: int) -> "Form":
        """Return the form of an array of numbers alone."""
        return cls("numbers", [Format(j, "float64") for j in range(n_columns)])

    @property
    def is_of_numbers(self) -> bool:
        """Whether it is that of an array of numbers alone."""
        return self.container == "numbers"

    @property
    def is_of_frame(self) -> bool:
        """Whether it is that of a frame."""
        return self.container in ("pandas", "polars")

    @property
    def names(self) -> list:
        """The names of the columns, their numbers in an array."""
        return [format.name for format in self.formats]

    @property
    def has_categories(self) -> bool:
        """Whether some columns are not plain numbers."""
        return any(f.categories is not None for f in self.formats)

    @property
    def has_varying_categories(self) -> bool:
        """Whether training rows differ in a category."""
        return any(f.n_levels > 1 for f in self.formats)

    @classmethod
    def learn(
        cls,
        X,
        likelihoods: Sequence[Likelihood | None],
        numbers: Likelihood | None,
        handle_unknown: str,
        conditions: Sequence[int] = (),
        weight: np.ndarray | None = None,
    ) -> tuple["Form", list[Likelihood]]:
        """Return the form of a table, and the likelihood of every column, where None stands for what its type suggests.

        Columns of numbers then get the likelihood `numbers`; if that is None, a mixture of normals in a table whose rows differ
        in a category, and a normal in others. Columns of a chosen likelihood and conditions, given by their numbers, may
        have any number of categories. Weights of the rows, all of them positive, count as repetitions.
        """
        container = "polars" if is_polars(X) else "pandas" if is_frame(X) else "array"
        columns, default = columns_of(X), numbers or Gaussian()
        weight = np.ones(len(X)) if weight is None else as_repetitions(weight)
        learnt = [
            _learn_column(*column, weight, one, default, j in conditions)
            for j, (column, one) in enumerate(zip(columns, likelihoods, strict=True))
        ]
        seen = [_with_seen(one, series, weight) for (one, _), (_, series, _) in zip(learnt, columns)]
        form = cls(container, seen, handle_unknown, _level_names(X))
        found = [one for _, one in learnt]
        if numbers is None and form.has_varying_categories:
            found = [NormalMixture() if one is default else one for one in found]
        told = zip(form.formats, found, columns, strict=True)
        formats = [_with_frequent(one, likelihood, column[1], weight) for one, likelihood, column in told]
        check_can_be_written(formats, container)
        return replace(form, formats=formats), found

    def cells(self, X, counts: np.ndarray | None = None, unread: Sequence[int] = ()) -> np.ndarray:
        """Return the cells of a table as numbers, in double precision unless all are single.

        Categories that are unknown are missing in rows that do not count, if `counts` tells of every row whether it does; so
        are all cells of the columns that are to stay unread.
        """
        if not is_frame(X) and self.is_of_frame:
            X = pd.DataFrame(np.asarray(X), columns=self.names)
        told = [(j, format) for j, format in enumerate(self.formats) if j not in unread]
        columns = {j: self.cells_of(column_of(X, j)[0], format, counts) for j, format in told}
        single = all(column.dtype == np.float32 for column in columns.values())
        out = np.full((len(X), len(self.formats)), np.nan, dtype=np.float32 if single else np.float64)
        for j, column in columns.items():
            out[:, j] = column
        return out

    def cells_of_some(self, X) -> np.ndarray:
        """Return the cells of a frame that may leave columns out, whose cells then are missing."""
        names = self.names
        refuse_equal_names(X)
        columns = {name: series for name, series, _ in columns_of(X)}
        unknown = [name for name in columns if name not in names]
        if unknown:
            raise ValueError(
                f"{len(unknown)} column(s) are not among those of the training data: {unknown[:5]}. Use some of {names[:10]}."
            )
        out = np.full((len(X), len(names)), np.nan)
        for j, format in enumerate(self.formats):
            if format.name in columns:
                out[:, j] = self.cells_of(columns[format.name], format)
        return out

    def cells_of(self, series: pd.Series, format: Format, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the cells of one column as numbers."""
        if format.categories is None:
            return numbers_of(series, format.name)
        codes = _codes(series, format)
        missing = series.isna().to_numpy(dtype=bool)
        unknown = (codes < 0) & ~missing & (True if counts is None else counts)
        if unknown.any() and self.handle_unknown == "error":
            raise ValueError(_unknown_categories(format, pd.unique(series[unknown]).tolist()))
        return np.where(codes < 0, np.nan, codes.astype(np.float64))

    def table(self, cells: np.ndarray, like=None):
        """Return numbers as a table of this form, with the index of the frame `like` if there is one."""
        if self.is_of_numbers:
            return cells
        columns = [written(cells[:, j], format, self.container) for j, format in enumerate(self.formats)]
        if self.container == "polars":
            return polars("DataFrame")(columns)
        if self.container == "array":
            return np.column_stack(columns)
        frame = pd.DataFrame(dict(enumerate(columns)))
        frame.columns = pd.Index(self.names)
        if self.level_names is not None:
            frame.columns = frame.columns.set_names(self.level_names)
        return frame.set_axis(like.index, axis=0) if isinstance(like, pd.DataFrame) else frame

    def within_limits(self, cells: np.ndarray) -> np.ndarray:
        """Return cells with numbers moved into the range that their column had in training; arrays of numbers have none."""
        if self.is_of_numbers:
            return cells
        limits = [format.limits or (-np.inf, np.inf) for format in self.formats]
        return np.clip(cells, *np.transpose(limits))

    def among_seen(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) in which categories that no training row has give way to one that some have.

        It is the nearest of ordered ones, and else the most frequent; a model takes the others for all but impossible.
        """
        for j, format in enumerate([] if self.is_of_numbers else self.formats):
            if format.seen is not None:
                cells[..., j] = _among_seen(cells[..., j], format)
        return cells

    def having_seen(self, columns: Iterable[tuple[np.ndarray, np.ndarray]], likelihoods: dict[int, Likelihood]) -> "Form":
        """Return the form after more training rows, given the cells of every column and their weights.

        A column that the model leaves out has no likelihood, and stays as it is.
        """
        if self.is_of_numbers:
            return self
        told = enumerate(zip(self.formats, columns, strict=True))
        return replace(self, formats=[_having_seen(format, *cells, likelihoods.get(j)) for j, (format, cells) in told])

    def settled(self, cells: np.ndarray) -> np.ndarray:
        """Return cells (..., d) that were drawn within the limits; those near a number that occurs again and again become it.

        A density cannot say that a column has exactly this number, only that it is close by.
        """
        cells = self.within_limits(cells)
        for j, format in enumerate([] if self.is_of_numbers else self.formats):
            for number, distance in format.frequent or []:
                column = cells[..., j]
                column[np.abs(column - number) <= distance] = number
        return cells

    def pack(self) -> dict | None:
        """Return the form as plain values; nothing for an array of numbers."""
        if self.is_of_numbers:
            return None
        formats = [[f.name, f.dtype, f.categories, f.ordered, f.limits, f.seen, f.frequent] for f in self.formats]
        packed = {"container": self.container, "formats": formats, "handle_unknown": self.handle_unknown}
        return packed if self.level_names is None else {**packed, "level_names": self.level_names}

    @classmethod
    def unpack(cls, packed: dict | None, n_columns: int) -> "Form":
        """Rebuild a form from what `pack` returned."""
        if packed is None:
            return cls.of_numbers(n_columns)
        formats = [Format(*f) for f in packed["formats"]]
        return cls(packed["container"], formats, packed["handle_unknown"], packed.get("level_names"))


# --- what a column teaches


def _learn_column(
    name,
    series: pd.Series,
    dtype: str,
    weight: np.ndarray,
    likelihood: Likelihood | None,
    numbers: Likelihood,
    is_condition: bool,
) -> tuple[Format, Likelihood]:
    """Return the format of a column, and its likelihood, chosen or suggested by its type."""
    if likelihood is not None:
        coded = likelihood.reads_codes or (isinstance(likelihood, Bernoulli) and not is_number(series))
        return (_coded(name, series, dtype) if coded else _numeric(name, series, dtype, likelihood)), likelihood
    refuse_unreadable(name, series, dtype)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _of_categories(_coded(name, series, dtype), is_condition)
    if is_number(series):
        two = _two_values(name, series, weight)
        return (_numeric(name, series, dtype, numbers), numbers) if two is None else (Format(name, dtype, two), Bernoulli())
    if series.isna().all():
        return Format(name, dtype, [None]), Bernoulli()
    return _of_categories(_coded(name, series, dtype), is_condition)


def _of_categories(format: Format, is_condition: bool) -> tuple[Format, Likelihood]:
    """Return a format of categories with the likelihood that suits it; refuse more of them than a model should spell out."""
    assert format.categories is not None
    if len(format.categories) > _MOST_LEVELS and not is_condition:
        kind = "ordinal" if format.ordered else "categorical"
        raise ValueError(
            f"Column {format.name!r} has {len(format.categories)} categories, more than the {_MOST_LEVELS} that a column may "
            "have unasked. If it is an identifier or a text, leave it out; otherwise group rare categories, for example with "
            "OneHotEncoder's or OrdinalEncoder's max_categories, or ask for it by name: "
            f"likelihood=Mixed({{{format.name!r}: {kind!r}}})."
        )
    if len(format.categories) <= 2:
        return format, Bernoulli()
    return format, Ordinal() if format.ordered else Categorical()


def _numeric(name, series: pd.Series, dtype: str, likelihood: Likelihood) -> Format:
    """Return the format of a column of numbers, without limits if what is missing in it may lie beyond what is there."""
    values = numbers_of(series, name, "Leave its likelihood to likelihood='auto', encode it first, or leave it out")
    missing = np.isnan(values)
    unlimited = missing.any() if likelihood.reads_missing else missing.all()
    limits = None if unlimited else (float(np.nanmin(values)), float(np.nanmax(values)))
    return Format(name, dtype, limits=limits)


def _coded(name, series: pd.Series, dtype: str) -> Format:
    """Return the format of a column whose cells stand for categories."""
    ordered = False
    if isinstance(series.dtype, pd.CategoricalDtype):
        categories, ordered = series.cat.categories.tolist(), bool(series.cat.ordered)
        dtype = f"category[{name_of_type(series.cat.categories.dtype)}]" if dtype == "category" else dtype
    elif dense_type(dtype) in FLAGS or pd.api.types.infer_dtype(series, skipna=True) == "boolean":
        categories = [False, True]
    else:
        try:
            values = pd.unique(series.dropna().astype(object)).tolist()
        except (TypeError, NotImplementedError):  # lists and the like, of which none is told from another
            raise ValueError(refusal(name, dtype, cells=series)) from None
        try:
            categories = sorted(values)
        except TypeError:
            categories = sorted(values, key=lambda value: (str(type(value)), str(value)))
    return Format(name, dtype, categories or [None], ordered)


def _two_values(name, series: pd.Series, weight: np.ndarray) -> list | None:
    """Return the two numbers of a column that has no others and enough cells to tell."""
    values = numbers_of(series, name)
    there = ~np.isnan(values)
    values = values[there]
    if weight[there].sum() < _FEWEST_OF_TWO:
        return None
    low, high = float(values.min()), float(values.max())
    return [low, high] if low < high and bool(((values == low) | (values == high)).all()) else None


def _level_names(X) -> list | None:
    """Return the names of the levels of the columns, if they have some and come back as levels when a frame is made of them."""
    if not isinstance(X, pd.DataFrame) or X.columns.nlevels != pd.Index(list(X.columns)).nlevels:
        return None
    names = list(X.columns.names)
    return None if all(name is None for name in names) else names


def as_repetitions(weight: np.ndarray) -> np.ndarray:
    """Return weights that are 1 at least on average, so that rows which share a weight of 1 are still as many as they are."""
    return weight * max(1.0, len(weight) / weight.sum())


def _with_seen(format: Format, series: pd.Series, weight: np.ndarray) -> Format:
    """Return the format of a column with the categories that it has, where those are not all."""
    if format.categories is None:
        return format
    codes = _codes(series, format)
    counts = np.bincount(codes[codes >= 0], weight[codes >= 0], minlength=len(format.categories))
    if counts.all() or not counts.any():
        return format
    return replace(format, seen=[int(code) for code in np.argsort(-counts, kind="stable") if counts[code]])


def _with_frequent(format: Format, likelihood: Likelihood, series: pd.Series, weight: np.ndarray) -> Format:
    """Return the format of a column with the numbers for which a mixture of normals has a mode of their own."""
    if format.categories is None and isinstance(likelihood, NormalMixture):
        return replace(format, frequent=_frequent(*_counted(numbers_of(series, format.name), weight)))
    return format


def _counted(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct numbers among values, in their order, and how often each occurs."""
    there = ~np.isnan(values)
    numbers, places = np.unique(values[there].astype(np.float64), return_inverse=True)
    return numbers, np.bincount(places, weight[there], minlength=len(numbers))


def _frequent(numbers: np.ndarray, counts: np.ndarray, fewest: int = 2) -> list[tuple[float, float]] | None:
    """Return numbers that occur again and again and have hardly any others near, and how far around that holds."""
    total = counts.sum()
    if total < _FEWEST_OF_TWO:
        return None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        distance = _NEAR * float(np.sqrt(counts @ np.square(numbers - counts @ numbers / total) / total))
    if not 0 < distance < np.inf:
        return None
    often = counts >= max(_FREQUENT * total, fewest)
    alone = counts[often] >= _ALONE * _near(numbers[often], distance, numbers, counts)
    return [(float(number), distance) for number in numbers[often][alone]] or None


def _near(centres: np.ndarray, distance, numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return how often numbers occur that are within a distance of each centre."""
    up_to = np.concatenate([[0.0], np.cumsum(counts)])
    ends = np.searchsorted(numbers, centres + distance, "right"), np.searchsorted(numbers, centres - distance, "left")
    return up_to[ends[0]] - up_to[ends[1]]


# --- later rows


def _having_seen(format: Format, cells: np.ndarray, weight: np.ndarray, likelihood: Likelihood | None) -> Format:
    """Return the format of a column after more cells; a category that is new is the least frequent one."""
    there = cells[~np.isnan(cells)]
    if format.seen is not None:
        return replace(format, seen=[*format.seen, *np.setdiff1d(there, format.seen).astype(int).tolist()])
    if format.categories is not None or likelihood is None or not len(there):
        return format
    limits = format.limits and (min(format.limits[0], float(there.min())), max(format.limits[1], float(there.max())))
    frequent = _frequent_still(format, cells, weight) if isinstance(likelihood, NormalMixture) else None
    return replace(format, limits=limits, frequent=frequent)


def _frequent_still(format: Format, cells: np.ndarray, weight: np.ndarray) -> list[tuple[float, float]] | None:
    """Return the numbers that occur again and again after more cells: old ones that enough cells do not deny, and new ones."""
    numbers, counts = _counted(cells, as_repetitions(weight))
    kept = {}
    for number, distance in format.frequent or []:
        have, near = (_near(np.array([number]), reach, numbers, counts)[0] for reach in (0.0, distance))
        if near < _FEWEST_OF_TWO or have >= _ALONE * near:
            kept[number] = distance
    found = dict(_frequent(numbers, counts, fewest=_FEWEST_OF_TWO) or [])
    return sorted({**found, **kept}.items()) or None


def _codes(series: pd.Series, format: Format) -> np.ndarray:
    """Return the number of each cell's category, -1 where it is missing or unknown."""
    categories = format.categories or [None]
    if categories == [None]:
        return np.full(len(series), -1)
    if isinstance(series.dtype, pd.CategoricalDtype) and series.cat.categories.tolist() == categories:
        return series.cat.codes.to_numpy()
    if all(isinstance(category, float) for category in categories):
        series = pd.Series(numbers_of(series, format.name))
    known, found = (pd.Index(cells, dtype=object, tupleize_cols=False) for cells in (categories, series.astype(object)))
    return known.get_indexer(found)


def _unknown_categories(format: Format, values: list) -> str:
    """Return the message about categories that are new, with the way out for numbers of which fit had only two."""
    known = format.categories or []
    if len(known) == 2 and all(type(category) is float for category in known):
        return (
            f"Column {format.name!r} had no numbers but {known[0]:g} and {known[1]:g} in fit, so that it was taken for a flag, "
            f"and now has others: {values[:5]}. If it is none, name its likelihood, so that it does not depend on the rows: "
            f"likelihood=Mixed({{{format.name!r}: 'normal_mixture'}}), or 'poisson' for counts; or declare all its levels with "
            "the type category. To read other numbers as missing, use Mixed(handle_unknown='missing')."
        )
    found = "1 category" if len(values) == 1 else f"{len(values)} categories"
    return (
        f"Column {format.name!r} has {found} that it did not have in fit: {values[:5]}. Known are "
        f"{known[:10]}. Correct or remove them, or read them as missing with likelihood=Mixed(handle_unknown='missing')."
    )


def unseen_among(series: pd.Series, format: Format) -> list:
    """Return the cells of a column that are categories of which no training row has one."""
    if format.categories is None:
        return []
    codes = _codes(series, format)
    is_seen = codes >= 0 if format.seen is None else np.isin(codes, format.seen)
    return series[series.notna() & ~is_seen].tolist()


def _among_seen(cells: np.ndarray, format: Format) -> np.ndarray:
    """Return codes of one column, those that are in no training row replaced."""
    seen = np.array(format.seen)
    unseen = ~np.isin(np.rint(cells), seen) & ~np.isnan(cells)
    if not unseen.any():
        return cells
    cells = cells.copy()
    cells[unseen] = seen[np.abs(cells[unseen, None] - seen).argmin(-1)] if format.ordered else seen[0]
    return cells
