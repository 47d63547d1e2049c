"""
How many components? Choosing by likelihood
===========================================

Which model describes a table best, and how large should it be? A likelihood answers both questions with rows that the
model has not seen, without labels.
"""

# %%
# Data
# ----
# Thirty measurements of the nuclei of cells, from 569 biopsies. A quarter of the rows is set aside for the end.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_test = train_test_split(X, random_state=0)
X_train.shape, X_test.shape

# %%
# Models
# ------
# All of them give the log-likelihood of rows as `score`. The linear models come behind a `StandardScaler`, since
# PCA depends on the units of the columns; what the scaling changes, its Jacobian, is taken back below.
# `VAETransformer` does that by itself.

from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer

sizes = [2, 5, 10, 15, 20, 25, 29]
models = {
    "VAETransformer": make_pipeline(VAETransformer(random_state=0)),
    "FactorAnalysis": make_pipeline(StandardScaler(), FactorAnalysis()),
    "PCA": make_pipeline(StandardScaler(), PCA()),
}


def score_in_data_units(pipeline, X, y=None):
    """Return nats per row in the units of the data."""
    scaler = pipeline[0]
    if not isinstance(scaler, StandardScaler):
        return pipeline.score(X)
    return pipeline.score(X) - np.log(scaler.scale_).sum()


searches = {}
for name, pipeline in models.items():
    grid = {f"{pipeline.steps[-1][0]}__n_components": sizes}
    search = GridSearchCV(pipeline, grid, scoring=score_in_data_units, cv=3)
    searches[name] = search.fit(X_train)

# %%
# Which size?
# -----------

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
styles = {"VAETransformer": "#EE6677", "FactorAnalysis": "#4477AA", "PCA": "#228833"}
for name, colour in styles.items():
    scores = searches[name].cv_results_["mean_test_score"]
    ax.plot(sizes, scores, "o-", color=colour, label=name)
ax.set(xlabel="n_components", ylabel="cross-validated score, nats per row", xticks=sizes)
ax.legend(frameon=False)
plt.show()

# %%
# Which model?
# ------------
# Each model with the size that cross-validation chose, on the rows set aside. A mixture of normal distributions
# stands beside them: it has no latent space to look at, but it is a density.

from sklearn.mixture import GaussianMixture

mixture = make_pipeline(StandardScaler(), GaussianMixture(random_state=0))
grid = {"gaussianmixture__n_components": [1, 2, 3, 5]}
search = GridSearchCV(mixture, grid, scoring=score_in_data_units, cv=3)
searches["GaussianMixture"] = search.fit(X_train)

for name, search in searches.items():
    (size,) = search.best_params_.values()
    print(f"{name:<16} {size:>3} components {search.score(X_test):7.2f} nats per new row")

# %%
# What do the components carry?
# -----------------------------
# The KL of a component says how many nats it tells about a row.

vae = searches["VAETransformer"].best_estimator_[-1]

fig, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
order = np.argsort(-vae.kl_per_component_)
ax.bar(order.astype(str), vae.kl_per_component_[order], color="#4477AA")
ax.set(xlabel="component", ylabel="KL, nats per row")
plt.show()

# %%
# And what do they keep of each column?

from skvae.displays import ReconstructionDisplay

ReconstructionDisplay.from_estimator(vae, X_test)
plt.show()

# %%
# What we see
# -----------
# With two components the auto-encoder and factor analysis are as good as each other: so little can only be said in
# a linear way. With more components the auto-encoder finds what is not linear, and leads by some nats per row. Its curve
# flattens from 20 components on instead of falling, as components that are not needed carry next to nothing: the last
# ones in the bar chart.
#
# PCA begins far below, since it has one noise level for all columns, and some of these columns can be told from the
# others almost exactly. With nearly as many components as columns it catches up with factor analysis: both are then
# close to one normal distribution with all its covariances, and no linear model gets beyond that.
#
# On the rows set aside, the auto-encoder is about three nats per row above the linear models. A mixture of two normal
# distributions is the best density of all here, by more than a nat; what it lacks is a representation.
#
# The columns that are reconstructed least are those that depend least on the others: symmetry and the error of the
# texture.
