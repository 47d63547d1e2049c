"""Which columns of a table are meant: by their names, by a mask or by a function, and the likelihoods that they get."""

from collections.abc import Iterable, Sequence

import numpy as np

from skvae._frames import is_frame
from skvae.likelihoods import Likelihood, Mixed
from skvae.likelihoods._mixed import Given


def likelihoods_of(X, likelihood: Likelihood) -> list[Likelihood | None]:
    """Return the likelihood that is chosen for every column of a table, None where its type is to decide."""
    names = _names(X)
    if not isinstance(likelihood, Mixed):
        return [likelihood] * len(names)
    chosen: list[Likelihood | None] = [None] * len(names)
    for one, columns in likelihood.chosen():
        for j in _selected(columns, X, names):
            chosen[j] = one
    return chosen


def conditions_of(X, condition_on) -> list[int]:
    """Return the numbers of the columns that `condition_on` selects."""
    if condition_on is None:
        return []
    names = _names(X)
    chosen = sorted(set(_selected(condition_on, X, names, "condition_on")))
    if len(chosen) == len(names):
        raise ValueError("condition_on names all columns of X: at least one must be left to be modelled.")
    return chosen


def with_conditions(likelihoods: list[Likelihood], conditions: Sequence[int]) -> list[Likelihood]:
    """Return the likelihoods of the columns, of which some are conditions."""
    return [Given(likelihood) if j in conditions else likelihood for j, likelihood in enumerate(likelihoods)]


def _names(X) -> list:
    """Return the names of the columns, numbers for those of an array."""
    return list(X.columns) if is_frame(X) else list(range(X.shape[1]))


def _selected(columns, X, names: list, who: str = "Mixed") -> list[int]:
    """Return the numbers of columns that a name, a list of names, a mask or a callable selects."""
    places = {(_is_flag(name), name): j for j, name in reversed(list(enumerate(names)))}  # of equal names the first
    if _place(columns, places) is None and callable(columns):
        columns = columns(X)
    is_one = _place(columns, places) is not None or isinstance(columns, str) or not isinstance(columns, Iterable)
    chosen = [columns] if is_one else list(columns)
    found = [_place(one, places) for one in chosen]
    unknown = [one for one, place in zip(chosen, found, strict=True) if place is None]
    if unknown and all(map(_is_flag, chosen)):
        return _selected_by_mask(columns, chosen, len(names), who)
    if unknown:
        raise ValueError(
            f"{who} names column(s) that X does not have: {unknown[:5]}. X has {len(names)} feature(s): {names[:10]}."
        )
    return [place for place in found if place is not None]


def _place(name, places: dict) -> int | None:
    """Return the number of the column of that name, None if there is none; True and False are not 1 and 0."""
    try:
        return places.get((_is_flag(name), name))
    except TypeError:  # a list or an array, or a tuple with some
        return None


def _is_flag(one) -> bool:
    return isinstance(one, (bool, np.bool_))


def _selected_by_mask(columns, mask: list, n_columns: int, who: str) -> list[int]:
    """Return the numbers of columns that a mask selects, which has one flag per column."""
    if _is_flag(columns) or len(mask) != n_columns:
        what = f"is the single flag {columns}" if _is_flag(columns) else f"has a mask of {len(mask)} flag(s)"
        raise ValueError(
            f"{who} {what}, and X has {n_columns} feature(s). Pass names of columns, their numbers in an array, or a mask with "
            "a flag for each column."
        )
    return np.flatnonzero(mask).tolist()
