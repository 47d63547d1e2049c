"""
Filling holes
=============

Cells of a table are missing. How well can they be filled, how well does that work beside other ways, and can one know how
sure a filling is?
"""

# %%
# Data
# ----
# Thirty measurements of 569 biopsies. A random third of the cells is taken away, so that the truth is known.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer

X, _ = load_breast_cancer(return_X_y=True, as_frame=True)
is_hidden = np.random.default_rng(0).random(X.shape) < 1 / 3
holes = X.mask(is_hidden)

# %%
# Model
# -----
# It is fitted on the table with the holes and fills them afterwards. The other imputers see the columns standardised,
# as neighbours and ridge regressions want them.

vae = VAETransformer(random_state=0).fit(holes)

scaler = StandardScaler().set_output(transform="pandas")
standard = scaler.fit_transform(holes)
imputers = {
    "mean": SimpleImputer(),
    "KNNImputer": KNNImputer(),
    "IterativeImputer": IterativeImputer(max_iter=20, tol=1e-2, random_state=0),
}
filled = {
    name: scaler.inverse_transform(imputer.fit_transform(standard))
    for name, imputer in imputers.items()
}
filled["VAETransformer"] = vae.impute(holes)

# %%
# Errors
# ------
# The root mean squared error of the hidden cells, in standard deviations of their columns: one dot per column, a line
# at the mean over columns.


def errors(table):
    """Return the error of every column."""
    squares = ((table - X) / X.std()) ** 2
    return np.sqrt(squares.where(is_hidden).mean())


fig, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
for place, (name, table) in enumerate(filled.items()):
    of_columns = errors(table)
    ax.plot(of_columns, np.full(len(of_columns), place), "o", ms=4, alpha=0.5, color="#4477AA")
    ax.plot(of_columns.mean(), place, "|", ms=22, mew=2, color="#EE6677")
    print(f"{name:<16} {of_columns.mean():.3f}")
ax.set_yticks(range(len(filled)), filled)
ax.set(xlabel="error, standard deviations", xlim=(0, None))
plt.show()

# %%
# How sure?
# ---------
# For the hidden cells of two columns: their truth, the filling, and the interval in which the model expects them with a
# probability of 90 %. One is nearly determined by the others, the other is not. (`n_draws` is above its default of 1,000, of
# which too few count for one row.)

low, high = vae.predictive_interval(holes, coverage=0.9, n_draws=1500)
is_inside = (X.ge(low) & X.le(high)).where(is_hidden)
print(f"{is_inside.stack().mean():.1%} of the hidden cells of all columns are inside")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for ax, name in zip(axes, ("mean area", "mean symmetry")):
    rows = holes.index[holes[name].isna()][:40]
    rows = X.loc[rows, name].sort_values().index
    places = np.arange(len(rows))
    ax.vlines(places, low.loc[rows, name], high.loc[rows, name], color="0.75", lw=4)
    ax.plot(places, filled["VAETransformer"].loc[rows, name], "_", color="#4477AA", ms=8, mew=2)
    ax.plot(places, X.loc[rows, name], ".", color="#EE6677")
    ax.set(title=name, xticks=[], xlabel="forty hidden cells, by their truth")
axes[0].legend(["90 % interval", "filled", "truth"], frameon=False)
plt.show()


# %%
# What we see
# -----------
# Means err by one standard deviation, by definition. Neighbours do better, and what follows from the other columns of the
# whole table better still: ridge regressions in rounds and the auto-encoder, which is a little ahead and is the only one
# that also says how sure it is.
#
# The area of a nucleus is nearly determined by its radius and its perimeter, as long as one of them is there, and the
# interval is narrow; nothing tells the symmetry well, and the interval is wide. Taken over all columns, intervals of
# 90 % hold somewhat more than they promise. The noise of a column is one normal distribution for all rows, so its width
# has to serve the few rows that are far out as well.
