"""Ways to fill holes, from tables of numbers with the kinds of their columns to the same without holes.

The kinds are HI-VAE's: "real", "pos" and "count" are numbers, "cat" has levels without an order, "ordinal" with one.
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes IterativeImputer importable
from sklearn.impute import IterativeImputer, KNNImputer

from skvae import VAETransformer

N_DONORS = 5_000  # rows among which neighbours are looked for
FOREST = {"n_estimators": 100, "max_samples": 2_000, "random_state": 0}
FOREST_ROUNDS = 3
BOOSTING = {"max_iter": 400, "learning_rate": 0.05, "early_stopping": True, "random_state": 0}


def is_number(kind: str) -> bool:
    """Tell whether a column of this kind is filled with means."""
    return kind not in ("cat", "ordinal")


def mean_mode(X, kinds):
    """Fill numbers with the column's mean, levels with its most frequent one."""
    filled = X.copy()
    for column, kind in zip(filled.T, kinds):
        hole = np.isnan(column)
        column[hole] = column[~hole].mean() if is_number(kind) else most_frequent(column[~hole])
    return filled


def most_frequent(values):
    """Return the most frequent value, the smallest of them if there are several."""
    levels, counts = np.unique(values, return_counts=True)
    return levels[counts.argmax()]


class Indicators:
    """A table as estimators of numbers want it: numbers and ordered levels standardised, a 0/1 column for every other level."""

    def __init__(self, X, kinds):
        self.kinds, self.levels = kinds, [np.unique(column[~np.isnan(column)]) for column in X.T]
        self.centre, self.scale = np.nanmean(X, axis=0), np.nanstd(X, axis=0)

    def encode(self, X):
        """Return the wider table; a missing level is missing in all of its columns."""
        return np.hstack([self._columns(column, j) for j, column in enumerate(X.T)])

    def _columns(self, column, j):
        if self.kinds[j] != "cat":
            return ((column - self.centre[j]) / self.scale[j])[:, None]
        return np.where(np.isnan(column)[:, None], np.nan, column[:, None] == self.levels[j])

    def decode(self, Z, X):
        """Return the table with its holes filled: the largest of the columns of a level, the nearest of ordered levels."""
        filled, place = X.copy(), 0
        for j, column in enumerate(filled.T):
            hole, width = np.isnan(column), len(self.levels[j]) if self.kinds[j] == "cat" else 1
            values = Z[hole, place : place + width]
            place += width
            column[hole] = self._value(values, j)
        return filled

    def _value(self, values, j):
        if self.kinds[j] == "cat":
            return self.levels[j][values.argmax(axis=1)]
        numbers = values[:, 0] * self.scale[j] + self.centre[j]
        if is_number(self.kinds[j]):
            return numbers
        return self.levels[j][np.abs(numbers[:, None] - self.levels[j]).argmin(axis=1)]


def iterative(X, kinds):
    """Fill by scikit-learn's IterativeImputer with its defaults, on indicators."""
    code = Indicators(X, kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return code.decode(IterativeImputer(random_state=0).fit_transform(code.encode(X)), X)


def neighbours(X, kinds):
    """Fill by scikit-learn's KNNImputer with its defaults, on indicators, from `N_DONORS` random rows."""
    code = Indicators(X, kinds)
    donors = np.random.default_rng(0).permutation(len(X))[:N_DONORS]
    return code.decode(KNNImputer().fit(code.encode(X[donors])).transform(code.encode(X)), X)


def forest(X, kinds):
    """Fill as missForest does: column by column, the fullest first, by a forest on all others; `FOREST_ROUNDS` times."""
    holes, filled = np.isnan(X), mean_mode(X, kinds)
    order = [j for j in np.argsort(holes.sum(axis=0), kind="stable") if holes[:, j].any()]
    for _ in range(FOREST_ROUNDS):
        for j in order:
            known, others = ~holes[:, j], np.delete(filled, j, axis=1)
            trees = RandomForestRegressor if is_number(kinds[j]) else RandomForestClassifier
            settings = FOREST | {"max_samples": min(FOREST["max_samples"], known.sum())}
            fitted = trees(**settings).fit(others[known], X[known, j])
            filled[~known, j] = fitted.predict(others[~known])
    return filled


def boosting(X, kinds):
    """Fill every column by gradient-boosted trees on the others, holes and all: a model per column, which sees its target."""
    holes, filled = np.isnan(X), X.copy()
    for j in np.flatnonzero(holes.any(axis=0)):
        known, others = ~holes[:, j], np.delete(X, j, axis=1)
        levels = [kind == "cat" for kind in np.delete(kinds, j)]
        trees = HistGradientBoostingRegressor if is_number(kinds[j]) else HistGradientBoostingClassifier
        fitted = trees(categorical_features=levels, **BOOSTING).fit(others[known], X[known, j])
        filled[~known, j] = fitted.predict(others[~known])
    return filled


def as_frame(X, kinds):
    """Return the table as pandas has it: whole numbers as integers, levels as categories, holes as missing values."""
    frame = pd.DataFrame(X, columns=[f"{kind}_{j}" for j, kind in enumerate(kinds)])
    return pd.DataFrame({name: _typed(frame[name], kind) for name, kind in zip(frame, kinds)})


def _typed(column, kind):
    whole = (column.dropna() % 1 == 0).all()
    if kind in ("cat", "ordinal"):
        return column.astype("Int64").astype("category").cat.set_categories(
            np.sort(column.dropna().unique()).astype(int), ordered=kind == "ordinal"
        )  # fmt: skip
    return column.astype("Int64") if whole else column


def vae(X, kinds, **params):
    """Fill by VAETransformer."""
    frame = as_frame(X, kinds)
    return VAETransformer(**{"random_state": 0} | params).fit(frame).impute(frame).astype("float64").to_numpy()
