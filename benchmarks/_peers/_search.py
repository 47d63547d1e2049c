"""The grid search that all competitors are given: latent sizes times learning rates."""

import time
from contextlib import nullcontext

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler


def search(model, names, request, scoring=None, scope=nullcontext):
    """Search over the parameters that `names` gives for latent size and learning rate; return seconds, scores and ranks."""
    X = np.load(request["rows"])
    if request["pipeline"]:
        model = Pipeline([("scale", StandardScaler()), ("vae", model)])
        names = [f"vae__{name}" for name in names]
    grid = dict(zip(names, (request["latents"], request["learning_rates"])))
    found = GridSearchCV(model, grid, cv=request["folds"], n_jobs=request["n_jobs"], scoring=scoring, error_score="raise")
    start = time.perf_counter()
    with scope():
        found.fit(X)
    seconds = time.perf_counter() - start
    splits = [found.cv_results_[f"split{i}_test_score"].tolist() for i in range(request["folds"])]
    return {"seconds": seconds, "scores": splits, "ranks": found.cv_results_["rank_test_score"].tolist()}
