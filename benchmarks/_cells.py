"""Rows with one planted wrong cell each, and simulated tables whose missing cells have known distributions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

N_KNOWN, N_NEIGHBOURS = 5_000, 50  # rows among which the neighbours of a row are looked for, and how many of them count

# ---- one wrong cell


@dataclass
class Planted:
    """Clean rows, other rows with one wrong cell each, and the position of the column that it is in."""

    clean: pd.DataFrame
    wrong: pd.DataFrame
    column: np.ndarray


def plant(train, held, seed=0) -> Planted:
    """Keep one half of the held-out rows clean and plant a wrong cell into a random column of every row of the other."""
    rng = np.random.default_rng(seed)
    clean, wrong = (held.iloc[part].reset_index(drop=True) for part in np.array_split(rng.permutation(len(held)), 2))
    planter = Planter(train, rng)
    cells = [planter.cell(row) for row in planter.codes(wrong)]
    wrong = wrong.copy()
    for i, (j, code) in enumerate(cells):
        wrong.iat[i, j] = planter.value(j, code)
    return Planted(clean, wrong, np.array([j for j, _ in cells]))


class Planter:
    """Chooses wrong values: another level at random, or a number from the far tail that no similar row comes near.

    Rows become codes: the share of training rows below a number, the position of a level; NaN for a hole.
    """

    def __init__(self, train, rng):
        self.rng, self.columns = rng, [train[name] for name in train]
        self.is_level = np.array([isinstance(column.dtype, pd.CategoricalDtype) for column in self.columns])
        self.sorted = [None if level else np.sort(c.dropna().to_numpy()) for c, level in zip(self.columns, self.is_level)]
        self.known = self.codes(train.iloc[rng.permutation(len(train))[:N_KNOWN]])

    def codes(self, frame):
        """Return the codes of some rows."""
        columns = [self._code(frame.iloc[:, j], j) for j in range(frame.shape[1])]
        return np.column_stack(columns)

    def _code(self, column, j):
        if self.is_level[j]:
            codes = column.cat.codes.to_numpy(float)
            return np.where(codes < 0, np.nan, codes)
        values = column.to_numpy(float, na_value=np.nan)
        below, upto = (np.searchsorted(self.sorted[j].astype(float), values, side=side) for side in ("left", "right"))
        return np.where(np.isnan(values), np.nan, (below + upto) / (2 * len(self.sorted[j])))

    def cell(self, row):
        """Return the position of a column and a wrong code for it; columns are tried at random."""
        gaps = np.where(self.is_level, self.known != row, np.abs(self.known - row))
        gaps = np.where(np.isnan(self.known) | np.isnan(row), 0.5, gaps)
        for j in self.rng.permutation(np.flatnonzero(~np.isnan(row))):
            code = self._other_level(row, j) if self.is_level[j] else self._far_number(row, j, gaps.sum(axis=1) - gaps[:, j])
            if code is not None:
                return j, code
        raise ValueError(f"no cell of the row {row!r} can be made wrong")

    def _other_level(self, row, j):
        n_levels = len(self.columns[j].cat.categories)
        return (row[j] + self.rng.integers(1, n_levels)) % n_levels

    def _far_number(self, row, j, distance):
        """Return a place in the other 5 % tail outside what the nearest known rows have, or None if twenty draws are not."""
        similar = self.known[np.argsort(distance)[:N_NEIGHBOURS], j]
        low, high = np.nanmin(similar), np.nanmax(similar)
        for place in self.rng.uniform(0, 0.05, 20):
            place = 1 - place if row[j] < 0.5 else place
            found = self._code(pd.Series([self.value(j, place)]), j)[0]
            if not low <= found <= high:
                return place
        return None

    def value(self, j, code):
        """Return the level or number of a code."""
        if self.is_level[j]:
            return self.columns[j].cat.categories[int(code)]
        return self.sorted[j][int(code * (len(self.sorted[j]) - 1))]


class Apart:
    """The scores of cells by their own columns alone: shares of levels, and of thirty equal steps of numbers."""

    def __init__(self, train, n_steps=30):
        self.tables = [self._table(train[name], n_steps) for name in train]

    def _table(self, column, n_steps):
        if isinstance(column.dtype, pd.CategoricalDtype):
            return None, np.log(column.value_counts(sort=False).to_numpy() + 0.5)
        values = column.dropna().to_numpy(float)
        edges = np.linspace(values.min(), values.max(), n_steps + 1)[1:-1]
        return edges, np.log(np.bincount(np.digitize(values, edges), minlength=n_steps) + 0.5)

    def score_cells(self, frame):
        """Return the log-share of every cell, up to a constant a column; 0 for a hole."""
        return np.column_stack([self._score(frame.iloc[:, j], *table) for j, table in enumerate(self.tables)])

    def _score(self, column, edges, logs):
        if edges is None:
            codes = column.cat.codes.to_numpy()
        else:
            codes = np.digitize(column.to_numpy(float, na_value=np.nan), edges)
        return np.where(column.isna(), 0.0, (logs - np.log(np.exp(logs).sum()))[codes])

    def score_samples(self, frame):
        """Return the sums over cells."""
        return self.score_cells(frame).sum(axis=1)


def blame(model, planted) -> dict:
    """Return how many of the rows with a wrong cell a model flags, and in how many of those it blames that cell most.

    A row is flagged if its score is below that of 95 % of the clean rows. The second share takes the score of a cell
    relative to the mean of its column on clean rows.
    """
    threshold = np.quantile(model.score_samples(planted.clean), 0.05)
    flagged = model.score_samples(planted.wrong) < threshold
    cells, usual = (np.asarray(model.score_cells(rows)) for rows in (planted.wrong, planted.clean))
    first = np.nanargmin(cells, axis=1) == planted.column
    relative = np.nanargmin(cells - np.nanmean(usual, axis=0), axis=1) == planted.column
    return {
        "flagged": float(flagged.mean()), "first": float(first[flagged].mean()), "relative": float(relative[flagged].mean()),
        "columns": {
            name: [float(x[planted.column == j].mean()) for x in (flagged, first & flagged, relative & flagged)]
            for j, name in enumerate(planted.wrong) if (planted.column == j).any()
        },
    }  # fmt: skip


# ---- known distributions


class Simulated:
    """x = f(z) + noise with two latent variables: f linear, or a random network of tanh; noise a scale a column."""

    def __init__(self, kind, n_columns=8, seed=0):
        rng = np.random.default_rng(seed)
        self.linear = kind == "linear"
        self.weights = (
            [rng.normal(size=(2, n_columns))] if self.linear else [rng.normal(size=s) for s in ((2, 16), (16, n_columns))]
        )
        self.scales, self.centre = rng.uniform(0.2, 0.6, n_columns), rng.normal(size=n_columns)

    def mean(self, z):
        """Return the noiseless rows of some latent variables."""
        if self.linear:
            return self.centre + z @ self.weights[0]
        return self.centre + np.tanh(1.5 * z @ self.weights[0]) @ self.weights[1] / 2

    def rows(self, n, rng):
        """Return new rows."""
        means = self.mean(rng.normal(size=(n, 2)))
        return means + self.scales * rng.normal(size=means.shape)

    def interval(self, row, coverages, n_draws=20_000, seed=0):
        """Return lower and upper ends of the central intervals of missing cells, given the known model and the other cells."""
        rng = np.random.default_rng(seed)
        means, known = self.mean(rng.normal(size=(n_draws, 2))), ~np.isnan(row)
        log_weights = -0.5 * (((row - means) / self.scales)[:, known] ** 2).sum(axis=1)
        chosen = rng.choice(n_draws, n_draws, p=np.exp(log_weights - np.logaddexp.reduce(log_weights)))
        draws = means[chosen] + self.scales * rng.normal(size=means.shape)
        ends = np.array([[(1 - c) / 2, (1 + c) / 2] for c in coverages])
        return np.quantile(draws[:, ~known], ends, axis=0)  # (coverages, 2, missing cells)


def hide(X, share, rng):
    """Return the table with a share of its cells missing, each row keeping at least one."""
    hidden = rng.random(X.shape) < share
    hidden[hidden.all(axis=1), 0] = False
    return np.where(hidden, np.nan, X)
