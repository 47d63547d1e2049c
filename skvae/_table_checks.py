"""How alike two tables are: columns one by one, columns in pairs, and whole rows by a classifier that tells them apart."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.utils import check_random_state

from skvae._frames import columns_of, is_frame, is_number, numbers_of
from skvae._rows import seed_of

_N_PERMUTATIONS = 200
_CHANCE = 0.95  # of the distances of tables of one distribution lie below `chance`
_MOST_LEVELS = 255  # that the classifier tells apart
_N_FOLDS = 5


class TableComparison(NamedTuple):
    """How alike two tables are; `columns` lists the distances, `association_difference` sums the associations up.

    Parameters
    ----------
    names : list
        Names of the columns, or their numbers in arrays.

    is_category : ndarray of bool of shape (n_features,)
        Which columns hold categories, the others hold numbers.

    distances : ndarray of shape (n_features,)
        Between the two distributions of each column, from 0 to 1: total variation of categories, Kolmogorov-Smirnov of numbers.

    chance : ndarray of shape (n_features,)
        What a distance stays below in 95 of 100 cases if both tables have the same distribution, by permutations of the rows.

    real_associations : ndarray of shape (n_features, n_features)
        Of every two columns of the real table: Pearson's correlation of numbers, Cramér's V of categories, the correlation
        ratio of a number and a category. 0 with a column that does not vary.

    synthetic_associations : ndarray of shape (n_features, n_features)
        The same of the synthetic table.

    auc : float
        Area under the ROC curve of a classifier that tells synthetic rows from real ones, on rows that it has not seen: 0.5 if
        it cannot, 1 if it always can, and far below 0.5 if the tables share rows.
    """

    names: list
    is_category: np.ndarray
    distances: np.ndarray
    chance: np.ndarray
    real_associations: np.ndarray
    synthetic_associations: np.ndarray
    auc: float

    @property
    def columns(self) -> pd.DataFrame:
        """The distances as a frame, the largest first."""
        kind = np.where(self.is_category, "category", "number")
        frame = pd.DataFrame({"kind": kind, "distance": self.distances, "chance": self.chance}, index=self.names)
        return frame.sort_values("distance", ascending=False, kind="stable")

    @property
    def association_difference(self) -> float:
        """Mean absolute difference of the associations of two different columns."""
        above = np.triu_indices(len(self.names), 1)
        difference = np.abs(self.real_associations - self.synthetic_associations)[above]
        return float(difference.mean()) if len(difference) else 0.0


def compare_tables(real, synthetic, *, categorical=(), random_state=None):
    r"""Tell how alike two tables are: column by column, in pairs of columns, and in whole rows.

    Each of the three sees what the ones before cannot. Distances of columns say nothing about how columns go together,
    associations nothing about what is not a trend, and the classifier, which sees everything, does not say where it looks.

    Parameters
    ----------
    real : array-like of shape (n_real, n_features)
        Rows of the data. Rows that a model has not been trained on make the comparison honest.

    synthetic : array-like of shape (n_synthetic, n_features)
        Rows to be compared with them, of the same columns.

    categorical : sequence of column, default=()
        Columns of numbers that stand for categories, by name, or by number in arrays. Those that hold no numbers are
        categories anyway.

    random_state : int, RandomState instance or None, default=None
        Where permutations, the folds of the classifier, and holes come from; None gives others each time.

    Returns
    -------
    comparison : TableComparison
        A named tuple of `distances` and `chance` per column, `real_associations` and `synthetic_associations`, and
        `auc`; its properties `columns`, a frame of the distances, the largest first, and `association_difference`.

    Notes
    -----
    Distances and associations use the cells that are there. The classifier, scikit-learn's `HistGradientBoostingClassifier` in
    five folds, would see at once that one table has holes and the other has none, so if only the real one has any, synthetic
    rows get those of real rows, drawn at random. Where cells are missing depending on others, some difference remains that is
    not the model's fault.

    References
    ----------
    Lopez-Paz & Oquab, *Revisiting Classifier Two-Sample Tests*, 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae.evaluation import compare_tables
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> wider = X.iloc[1::2].assign(**{"sepal width (cm)": lambda rows: rows["sepal width (cm)"] + 1})
    >>> comparison = compare_tables(X.iloc[::2], wider, random_state=0)
    >>> comparison.columns.index[0], bool(comparison.auc > 0.9)
    ('sepal width (cm)', True)
    """
    names, is_category, cells = _both(real, synthetic, categorical)
    return compare_cells(names, is_category, cells, len(real), seed_of(random_state))


def compare_cells(names: list, is_category: np.ndarray, cells: np.ndarray, n_real: int, seed: int) -> TableComparison:
    """Compare the first rows of an array of numbers and codes of categories, the real ones, with the others."""
    rng = check_random_state(seed)
    is_real = np.arange(len(cells)) < n_real
    columns = zip(cells.T, is_category, strict=True)
    distances, chance = np.transpose([_distance(column, coded, is_real, rng) for column, coded in columns])
    of_real, of_synthetic = (_associations(cells[side], is_category) for side in (is_real, ~is_real))
    auc = _auc(_with_equal_holes(cells, is_real, rng), is_category, is_real, int(rng.randint(2**31 - 1)))
    return TableComparison(names, is_category, distances, chance, of_real, of_synthetic, auc)


# --- reading -------------------------------------------------------------------------------------------------------------


def _both(real, synthetic, categorical):
    """Return names of columns, which hold categories, and the cells of both tables as numbers, categories as codes."""
    tables = [X if is_frame(X) else np.asarray(X) for X in (real, synthetic)]
    first, second = (columns_of(X) for X in tables)
    names = [name for name, _, _ in first]
    _check_tables(tables, names, [name for name, _, _ in second], categorical)
    is_category = np.array([name in list(categorical) or not is_number(series) for name, series, _ in first])
    pairs = zip(names, first, second, is_category, strict=True)
    cells = [(_joint_codes if coded else _joint_numbers)(name, a, b) for name, (_, a, _), (_, b, _), coded in pairs]
    return names, is_category, np.column_stack(cells)


def _check_tables(tables, names, other_names, categorical) -> None:
    """Refuse tables that cannot be compared."""
    if len(names) != len(other_names) or (all(is_frame(X) for X in tables) and names != other_names):
        raise ValueError(f"Both tables must have the same columns in the same order, got {names[:10]} and {other_names[:10]}.")
    few = min(len(X) for X in tables)
    if few < 2 * _N_FOLDS:
        raise ValueError(f"Both tables must have at least {2 * _N_FOLDS} rows, got {few}.")
    unknown = [name for name in categorical if name not in names]
    if unknown:
        raise ValueError(f"categorical names column(s) that are not there: {unknown[:5]}. There are {names[:10]}.")


def _joint_numbers(name, real, synthetic) -> np.ndarray:
    return np.concatenate([numbers_of(series, name).astype(np.float64) for series in (real, synthetic)])


def _joint_codes(name, real, synthetic) -> np.ndarray:
    """Return codes of the categories of both columns, NaN for missing cells."""
    codes, _ = pd.factorize(np.concatenate([series.astype(object) for series in (real, synthetic)]), use_na_sentinel=True)
    return np.where(codes < 0, np.nan, codes)


# --- columns one by one --------------------------------------------------------------------------------------------------


def _distance(cells: np.ndarray, is_category: bool, is_real: np.ndarray, rng) -> tuple[float, float]:
    """Return the distance of the two distributions of a column, and what it stays below by chance."""
    observed = ~np.isnan(cells)
    is_real = is_real[observed]
    if is_real.all() or not is_real.any():
        return np.nan, np.nan  # one table has no cell in this column
    values, places = np.unique(cells[observed], return_inverse=True)

    def distance(is_real) -> float:
        counts = (np.bincount(places[side], minlength=len(values)) for side in (is_real, ~is_real))
        real, synthetic = (count / count.sum() for count in counts)
        if is_category:
            return 0.5 * float(np.abs(real - synthetic).sum())
        return float(np.abs(np.cumsum(real - synthetic)).max())

    by_chance = [distance(rng.permutation(is_real)) for _ in range(_N_PERMUTATIONS)]
    return distance(is_real), float(np.quantile(by_chance, _CHANCE))


# --- columns in pairs ----------------------------------------------------------------------------------------------------


def _associations(cells: np.ndarray, is_category: np.ndarray) -> np.ndarray:
    """Return the association of every two columns, over rows that have both."""
    d = cells.shape[1]
    found = np.eye(d)
    for i in range(d):
        for j in range(i):
            both = ~np.isnan(cells[:, [i, j]]).any(axis=1)
            pair = sorted([(is_category[i], i), (is_category[j], j)])  # a number stands before a category
            x, y = (cells[both, k] for _, k in pair)
            found[i, j] = found[j, i] = _association(x, y, sum(coded for coded, _ in pair))
    return found


def _association(x: np.ndarray, y: np.ndarray, n_categories: int) -> float:
    """Return the association of two columns, of which the last ones are categories."""
    if len(x) == 0 or (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float((_pearson, _correlation_ratio, _cramers_v)[n_categories](x, y))


def _pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


def _correlation_ratio(x, y):
    """Return the root of the share of the variance of x that the means of the categories y explain."""
    _, group = np.unique(y, return_inverse=True)
    sizes = np.bincount(group)
    means = np.bincount(group, x) / sizes
    return np.sqrt((sizes * np.square(means - x.mean())).sum() / np.square(x - x.mean()).sum())


def _cramers_v(x, y):
    """Return the root of the chi-squared statistic of two categories over its maximum."""
    (_, row), (_, column) = (np.unique(codes, return_inverse=True) for codes in (x, y))
    counts = np.zeros((row.max() + 1, column.max() + 1))
    np.add.at(counts, (row, column), 1.0)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(x)
    return np.sqrt((np.square(counts - expected) / expected).sum() / len(x) / (min(counts.shape) - 1))


# --- rows ----------------------------------------------------------------------------------------------------------------


def _with_equal_holes(cells: np.ndarray, is_real: np.ndarray, rng) -> np.ndarray:
    """Return the cells with holes of random real rows in the synthetic ones, if those have none."""
    if np.isnan(cells[~is_real]).any():
        return cells
    holes = np.isnan(cells[is_real])
    cells = cells.copy()
    n_synthetic = int((~is_real).sum())
    donors = np.arange(n_synthetic) % len(holes)
    cells[~is_real] = np.where(holes[rng.permutation(len(holes))[donors]], np.nan, cells[~is_real])
    return cells


def _auc(cells: np.ndarray, is_category: np.ndarray, is_real: np.ndarray, seed: int) -> float:
    """Return how well a classifier tells the synthetic rows from the real ones, on rows of other folds."""
    cells = np.column_stack([_few_levels(column) if coded else column for column, coded in zip(cells.T, is_category)])
    varies = [len(np.unique(column[~np.isnan(column)])) > 1 for column in cells.T]
    if not any(varies):
        return 0.5
    classifier = HistGradientBoostingClassifier(categorical_features=is_category[varies], random_state=seed)
    folds = StratifiedKFold(_N_FOLDS, shuffle=True, random_state=seed)
    chances = cross_val_predict(classifier, cells[:, varies], is_real, cv=folds, method="predict_proba")
    return float(roc_auc_score(is_real, chances[:, 1]))


def _few_levels(codes: np.ndarray) -> np.ndarray:
    """Return codes with the most frequent levels first, and the rarest together if there are too many."""
    known = ~np.isnan(codes)
    _, places, counts = np.unique(codes[known], return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    ranks = np.full(len(codes), np.nan)
    ranks[known] = np.minimum(rank[places], _MOST_LEVELS - 1)
    return ranks
