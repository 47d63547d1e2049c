"""
Which rows are odd, and which of their cells
============================================

Somebody has mistyped some values in a table. Each of them is within the range of its column, so no column alone gives it
away. A model of the whole table finds the rows, and in them the cells.
"""

# %%
# Data
# ----
# Thirty measurements of 569 biopsies. The model learns from half of the rows. In 30 of the others a random cell that is
# rather large becomes rather small, or the other way round: a value at the share :math:`q` of its column is replaced
# by the one at :math:`1 - q`.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

X, _ = load_breast_cancer(return_X_y=True, as_frame=True)
train, test = train_test_split(X, test_size=0.5, random_state=0)
test = test.reset_index(drop=True)

n_wrong = 30
rng = np.random.default_rng(0)
ranks = test.apply(lambda column: np.searchsorted(np.sort(train[column.name]), column))
shares = ranks.to_numpy() / len(train)
rows = rng.choice(len(test), n_wrong, replace=False)
columns = [rng.choice(np.flatnonzero(np.abs(shares[row] - 0.5) > 0.2)) for row in rows]
table = test.copy()
for row, column in zip(rows, columns):
    table.iloc[row, column] = train.iloc[:, column].quantile(1 - shares[row, column])
is_wrong = np.isin(np.arange(len(table)), rows)

# %%
# Which rows?
# -----------
# A row is odd if its score is low. For comparison, a row is scored by the largest deviation of its cells from the mean of
# their columns, each column alone.

vae = VAETransformer(random_state=0).fit(train)
scores = vae.score_samples(table)
alone = -((table - train.mean()) / train.std()).abs().max(axis=1)

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
measures = {"the score of the model, nats": scores, "minus the largest deviation": alone}
groups = {"clean rows": (~is_wrong, "0.7"), "with a wrong cell": (is_wrong, "#EE6677")}
for ax, (name, values) in zip(axes, measures.items()):
    bins = np.linspace(np.quantile(values, 0.01), values.max(), 30)
    for label, (chosen, colour) in groups.items():
        shown = np.clip(values[chosen], bins[0], None)
        ax.hist(shown, bins, density=True, color=colour, alpha=0.7, label=label)
    ax.set(xlabel=name, yticks=[], title=f"AUC {roc_auc_score(is_wrong, -values):.2f}")
axes[0].legend(frameon=False)
plt.show()

print(f"of {n_wrong} rows with a wrong cell, a cut that flags a tenth of the clean rows finds")
for name, values in measures.items():
    print(f"{np.sum(values[is_wrong] < np.quantile(values[~is_wrong], 0.1)):>4} by {name}")

# %%
# Which cells?
# ------------
# The score of every cell of the twenty oddest rows. The lowest cell of a row is the first to be looked at; circles mark
# the cells that were planted.

oddest = np.argsort(scores)[:20]
cells = vae.score_cells(table.iloc[oddest])

fig, ax = plt.subplots(figsize=(9, 5.2), layout="constrained")
values = cells.to_numpy()
image = ax.imshow(values, cmap="RdBu", vmin=-25, vmax=25, aspect="auto", interpolation="nearest")
planted = [(column, list(oddest).index(row)) for row, column in zip(rows, columns) if row in oddest]
ax.plot(*np.transpose(planted), "o", mfc="none", mec="black", mew=4, ms=11)
ax.plot(*np.transpose(planted), "o", mfc="none", mec="white", mew=2, ms=11)
ax.set_xticks(range(X.shape[1]), X.columns, rotation=90, fontsize="small")
ax.set(yticks=[], ylabel="the oddest rows, the oddest on top")
fig.colorbar(image, ax=ax, label="score of the cell, nats")
plt.show()

first = dict(zip(oddest, values.argmin(axis=1)))
found = sum(first[row] == column for row, column in zip(rows, columns) if row in first)
print(f"{len(planted)} of the 20 oddest rows have a wrong cell; in {found} it is the lowest")

# %%
# What would fit?
# ---------------
# In one of these rows: what is there, and where the other cells of the row say it should be. The warning
# is right: where the planted cell is among those given, hardly any latents fit all of them, so the intervals of the blue
# cells are rough. That of the planted cell follows from the others, which are as they were.

row, column = next((row, column) for row in oddest for r, column in zip(rows, columns) if r == row)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    low, high = vae.predictive_interval(table.iloc[[row]], coverage=0.99)
print(*(warning.message for warning in caught))
cells = [low.iloc[0], high.iloc[0], table.iloc[row]]
standard = [(values - train.mean()) / train.std() for values in cells]

fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
places = np.arange(X.shape[1])
ax.vlines(places, *standard[:2], color="0.75", lw=6, label="99 % interval, given the other cells")
others = places != column
ax.plot(places[others], standard[2][others], "o", color="#4477AA", label="other cells of the row")
ax.plot(column, standard[2].iloc[column], "o", color="#EE6677", label="the planted cell")
ax.set_xticks(places, X.columns, rotation=90, fontsize="small")
ax.set(ylabel="standard deviations")
fig.legend(loc="outside upper center", ncols=3, frameon=False)
plt.show()

print(
    f"true {test.iloc[row, column]:.4g}, planted {table.iloc[row, column]:.4g}, "
    f"expected between {low.iloc[0, column]:.4g} and {high.iloc[0, column]:.4g}"
)

# %%
# What we see
# -----------
# The wrong values do not stand out in their columns, and the largest deviation of a row does not find them. The score of
# the whole row finds about three in four, where a tenth of the clean rows may be looked at in vain. What it misses are cells
# that the other columns do not determine, where a small value is as good as a large one.
#
# About half of the twenty oddest rows are as they were: rare, but right. In those with a wrong cell, that is the lowest one.
# Several others of the row may be low as well, since cells that depend on the wrong one fit less without being wrong: in
# the last figure, some of the blue dots lie outside of intervals that the red one has moved.
