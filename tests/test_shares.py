"""Searches in several processes: each trains its share together, and the results are those of the serial search."""

import os
import threading

import numpy as np
import pytest
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer, fused_fits
from skvae.likelihoods import Bernoulli

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_wine(return_X_y=True)
X = X[np.random.default_rng(0).permutation(178)]


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 8, "hidden_layer_sizes": (8,), "random_state": 0, **params})


def process_and_company(estimator, X, y=None):
    """Return a number that tells in which process a fit ran, and beside how many others."""
    company = sum(thread.name.startswith("skvae-fit") for thread in threading.enumerate())
    return {"process": os.getpid(), "company": company, "score": estimator.score(X)}


@pytest.mark.parametrize("max_models", [64, 2])
def test_each_process_trains_its_share_together(max_models):
    search = GridSearchCV(make_pipeline(StandardScaler(), vae()), {"vaetransformer__n_components": [1, 2, 3, 4]}, cv=3,
                          scoring=process_and_company, refit="score", error_score="raise")  # fmt: skip
    serial = search.fit(X)
    with fused_fits(max_models):
        shared = clone(search).set_params(n_jobs=2).fit(X)
    for name in ("split0_test_score", "split2_test_score", "rank_test_score"):
        np.testing.assert_array_equal(shared.cv_results_[name], serial.cv_results_[name])
    processes = {value for i in range(3) for value in shared.cv_results_[f"split{i}_test_process"]}
    assert len(processes) == 2 and os.getpid() not in processes
    assert shared.cv_results_["mean_test_company"].tolist() == [min(max_models, 6)] * 4


def test_nested_searches_meet_in_each_process():
    inner = GridSearchCV(vae(), {"n_components": [1, 2, 3]}, cv=2)
    serial = cross_val_score(inner, X, cv=4)
    with fused_fits():
        np.testing.assert_array_equal(cross_val_score(inner, X, cv=4, n_jobs=2), serial)
        found = cross_validate(inner, X, cv=4, n_jobs=2, scoring=process_and_company, return_estimator=True)
    assert len(set(found["test_process"])) == 2
    np.testing.assert_array_equal(found["test_score"], serial)
    assert [search.n_splits_ for search in found["estimator"]] == [2] * 4


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_fails_in_a_process_fails_alone():
    grid = {"learning_rate_init": [0.01, 1e30]}
    serial = GridSearchCV(vae(), grid, cv=2, refit=False).fit(X).cv_results_["mean_test_score"]
    with fused_fits():
        shared = GridSearchCV(vae(), grid, cv=2, refit=False, n_jobs=2).fit(X).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(shared, serial)


@pytest.mark.timeout(60)
def test_an_error_in_a_process_ends_the_search_and_leaves_the_context_usable():
    grid = {"likelihood": ["gaussian", Bernoulli("observed")], "init": ["linear"]}
    with fused_fits():
        with pytest.raises(ValueError, match="init='linear'"):
            GridSearchCV(vae(), grid, cv=2, error_score="raise", n_jobs=2).fit(X)
        assert np.isfinite(cross_val_score(vae(), X, cv=2, n_jobs=2)).all()


def test_tasks_that_share_memory_stay_in_this_process():
    forest = RandomForestClassifier(5, n_jobs=2, random_state=0).fit(X, Y)  # its trees add up in one array
    with fused_fits():
        np.testing.assert_array_equal(forest.predict_proba(X), forest.set_params(n_jobs=1).predict_proba(X))
        here = Parallel(n_jobs=2, prefer="threads")(delayed(os.getpid)() for _ in range(4))
    assert set(here) == {os.getpid()}


def test_searches_inside_other_tasks_are_fused():
    def search():
        with fused_fits():
            return cross_validate(vae(), X, cv=4, scoring=process_and_company)["test_company"].tolist()

    assert Parallel(n_jobs=2, backend="threading")(delayed(search)() for _ in range(1)) == [[4] * 4]


def test_others_are_told_the_number_of_processes():
    with fused_fits():
        assert (effective_n_jobs(None), effective_n_jobs(1), effective_n_jobs(2)) == (1, 1, 2)
        bagged = BaggingClassifier(n_estimators=4, random_state=0).fit(X, Y)
    assert len(bagged.estimators_) == 4


def number_and_sum(i, array):
    return i, float(array.sum())


def test_batches_of_joblib_keep_their_results():
    with fused_fits(max_models=2):
        found = Parallel(n_jobs=2, batch_size=2)(delayed(number_and_sum)(i, np.ones(1)) for i in range(16))
    assert found == [(i, 1.0) for i in range(16)]


def test_large_arrays_pass_beside_ordinary_calls():
    def call(value):
        array = np.full(200_000, value)  # which joblib maps into memory
        return Parallel(n_jobs=2)(delayed(number_and_sum)(i, array) for i in range(4))

    for value in (1.0, 2.0):
        assert call(value) == [(i, 200_000 * value) for i in range(4)]
        with fused_fits():
            assert call(value) == [(i, 200_000 * value) for i in range(4)]
