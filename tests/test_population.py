"""Searches that train together: the same results as in serial, whatever scikit-learn runs, and no model in another's way."""

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SmallNet
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_iris, load_wine
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
)  # fmt: skip
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_engine import make_trainee
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import skvae
from skvae import VAETransformer, _population
from skvae._engine import train
from skvae._population import Meeting, fused_fits, train_groups
from skvae.likelihoods import Bernoulli, Gaussian, Mixed
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import Adam
from skvae.priors import MixtureOfNormals
from skvae.solvers import AEVB

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_wine(return_X_y=True)
X = X[np.random.default_rng(0).permutation(178)]


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 8, "hidden_layer_sizes": (8,), "random_state": 0, **params})


@pytest.fixture
def groups(monkeypatch):
    """The number of models of each call of `train` that fused searches make."""
    sizes, original = [], _population.train

    def spy(trainees):
        sizes.append(len(trainees))
        return original(trainees)

    monkeypatch.setattr(_population, "train", spy)
    return sizes


def with_one_thread(monkeypatch):
    monkeypatch.setattr(_population.torch, "get_num_threads", lambda: 1)


def assert_same_results(one, other, atol=0.0):
    assert list(one.cv_results_) == list(other.cv_results_)
    for name, values in one.cv_results_.items():
        if name.startswith(("split", "mean_test", "std_test", "rank")):
            np.testing.assert_allclose(other.cv_results_[name], values, rtol=0, atol=atol)


def both_ways(search, X=X, y=None, atol=0.0):
    """Fit a search in serial and fused; return both."""
    serial = search().fit(X, y)
    with fused_fits():
        fused = search().fit(X, y)
    assert_same_results(serial, fused, atol)
    return serial, fused


# --- the same results ------------------------------------------------------------------------------------------------


def test_a_grid_of_pipelines_gives_the_serial_results_from_one_group(groups, monkeypatch):
    with_one_thread(monkeypatch)
    grid = {
        "vaetransformer__n_components": [1, 3, 5],
        "vaetransformer__hidden_layer_sizes": [(8,), (20,)],
        "vaetransformer__learning_rate_init": [0.003, 0.03],
    }
    serial, fused = both_ways(lambda: GridSearchCV(make_pipeline(StandardScaler(), vae()), grid, cv=5, error_score="raise"))
    assert 60 in groups, "12 candidates and 5 folds of unequal length must train together"
    np.testing.assert_array_equal(fused.best_estimator_[-1]._fitted.params, serial.best_estimator_[-1]._fitted.params)


@pytest.mark.parametrize(
    "params",
    [
        {"likelihood": Gaussian("shared"), "activation": "relu"},
        {"likelihood": Gaussian("network"), "activation": "tanh"},
        {"likelihood": Bernoulli("observed"), "activation": "gelu"},
        {"likelihood": Bernoulli("observed", binarize="dynamic")},
        {"objective": ELBO(n_samples=3, kl="monte_carlo"), "batch_size": 20},
        {"prior": MixtureOfNormals(5)},
        {"prior": MixtureOfNormals(50), "objective": ELBO(n_samples=2)},
        {"optimizer": "adagrad", "alpha": 1.0},
        {"optimizer": "sgd", "learning_rate_init": 1e-3},
        {"solver": AEVB(averaging=0), "learning_rate": "cosine", "early_stopping": False},
        {"max_iter": 200, "learning_rate_init": 0.05},
        {"encoder": MLP((8, 8), skip=False), "decoder": MLP((12,)), "init": "random"},
    ],
    ids=lambda params: " ".join(map(str, params.values())),
)
def test_every_kind_of_model_learns_the_same_weights(params):
    grid = {"n_components": [1, 3], "random_state": [0, 1]}
    with fused_fits():
        fused = cross_all(vae(**params), grid)
    for one, other in zip(cross_all(vae(**params), grid), fused, strict=True):
        np.testing.assert_array_equal(other._fitted.params, one._fitted.params)
        assert (other.n_iter_, other.n_steps_, other.converged_) == (one.n_iter_, one.n_steps_, one.converged_)


def mixed_table(n=120):
    """Return a frame of several kinds with holes, of which every fold has units of its own."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(5, 3, n), "count": rng.poisson(4, n), "kind": rng.choice(["a", "b", "c"], n)})
    frame["weight"] = 10 * frame["size"] + rng.normal(size=n)
    return frame.mask(rng.random(frame.shape) < 0.1)


@pytest.mark.parametrize("params", [{}, {"condition_on": "kind", "early_stopping": False}], ids=repr)
def test_folds_of_mixed_tables_train_together_in_units_of_their_own(groups, monkeypatch, params):
    with_one_thread(monkeypatch)
    frame = mixed_table()
    estimator = vae(**params, max_iter=12, likelihood=Mixed({"count": "poisson"}))
    grid = {"n_components": [1, 3], "learning_rate_init": [0.003, 0.03]}
    both_ways(lambda: GridSearchCV(estimator, grid, cv=5, error_score="raise"), frame)
    assert 20 in groups


def test_histories_of_mixed_tables_are_in_units_of_their_own():
    def fitted_by(scope):
        kept = []
        estimator = vae(early_stopping=False)
        with scope:
            cross_validate(estimator, mixed_table(), cv=3, scoring=lambda e, X: kept.append(e) or 0.0)
        return sorted(kept, key=lambda e: e._fitted.codec.loc.tolist())

    for one, other in zip(fitted_by(nullcontext()), fitted_by(fused_fits()), strict=True):
        np.testing.assert_array_equal(other._fitted.params, one._fitted.params)
        for name, values in one.history_.items():
            np.testing.assert_allclose(other.history_[name], values, rtol=1e-6, atol=1e-5)


def test_importance_weighted_models_agree_up_to_rounding():
    both_ways(lambda: GridSearchCV(vae(objective=IWAE(4)), {"n_components": [1, 3]}, cv=3, refit=False), atol=1e-6)


def cross_all(estimator, grid):
    """Return the fitted estimators of all candidates and folds."""
    kept = []

    def keep(estimator, X, y=None):
        kept.append(estimator)
        return 0.0

    GridSearchCV(estimator, grid, cv=3, scoring=keep, refit=False, error_score="raise").fit(X)
    return sorted(kept, key=lambda e: (e.n_components, e.random_state, e._fitted.codec.loc.tolist()))


def test_betas_and_settings_objects_of_their_own(groups, monkeypatch):
    with_one_thread(monkeypatch)
    grid = {"objective__beta": [0.5, 1.0, 4.0], "optimizer": [Adam(), Adam((0.8, 0.99))], "objective__warmup": [0, 3]}
    both_ways(lambda: GridSearchCV(vae(objective=ELBO()), grid, cv=2, refit=False, error_score="raise"))
    assert 24 in groups


def test_structures_that_differ_form_groups_of_their_own(groups, monkeypatch):
    with_one_thread(monkeypatch)
    grid = {"activation": ["relu", "tanh"], "n_components": [1, 2]}
    both_ways(lambda: GridSearchCV(vae(), grid, cv=3, refit=False))
    assert sorted(size for size in groups if size > 1) == [6, 6]


def test_what_cannot_be_batched_trains_alone_and_gives_the_same(groups, monkeypatch):
    with_one_thread(monkeypatch)
    grid = {"learning_rate_init": [0.01, 0.02]}
    both_ways(lambda: GridSearchCV(vae(encoder=SmallNet, decoder=SmallNet), grid, cv=2, refit=False, error_score="raise"))
    assert set(groups) == {1}


def test_randomized_halving_and_learning_curve():
    options = {"n_components": [1, 2, 3, 4], "alpha": [0.0, 0.1, 1.0]}
    both_ways(lambda: RandomizedSearchCV(vae(), options, n_iter=4, cv=2, random_state=0))
    both_ways(
        lambda: HalvingGridSearchCV(
            vae(), {"n_components": [1, 2, 3]}, cv=2, resource="max_iter", max_resources=9, min_resources=1, random_state=0
        )
    )
    serial = learning_curve(vae(), X, None, cv=3, train_sizes=[0.2, 0.5, 1.0])
    with fused_fits():
        fused = learning_curve(vae(), X, None, cv=3, train_sizes=[0.2, 0.5, 1.0])
    for one, other in zip(serial, fused):
        np.testing.assert_array_equal(one, other)


def test_cross_validate_with_several_scorers():
    scoring = {"bound": lambda e, X, y=None: e.lower_bound_, "score": lambda e, X, y=None: e.score(X)}
    serial = cross_validate(vae(), X, cv=3, scoring=scoring, return_train_score=True)
    with fused_fits():
        fused = cross_validate(vae(), X, cv=3, scoring=scoring, return_train_score=True)
    for name in ("test_bound", "test_score", "train_score"):
        np.testing.assert_array_equal(fused[name], serial[name])


def test_nested_searches_meet(groups, monkeypatch):
    with_one_thread(monkeypatch)
    serial = cross_val_score(GridSearchCV(vae(), {"n_components": [1, 2, 3]}, cv=2), X, cv=3)
    with fused_fits():
        fused = cross_val_score(GridSearchCV(vae(), {"n_components": [1, 2, 3]}, cv=2), X, cv=3)
    np.testing.assert_array_equal(fused, serial)
    assert max(groups) >= 6, "the inner searches must train in groups"


def test_a_search_is_the_same_in_waves(groups, monkeypatch):
    with_one_thread(monkeypatch)
    search = GridSearchCV(vae(), {"n_components": [1, 2, 3]}, cv=4, refit=False)
    serial = search.fit(X).cv_results_["mean_test_score"]
    with fused_fits(max_models=5):
        np.testing.assert_array_equal(search.fit(X).cv_results_["mean_test_score"], serial)
    assert max(groups) <= 5
    groups.clear()
    with fused_fits(max_bytes=2 * 10**6):
        np.testing.assert_array_equal(search.fit(X).cv_results_["mean_test_score"], serial)
    assert 1 < max(groups) < 12


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_one_job_is_this_process(groups, monkeypatch, n_jobs):
    with_one_thread(monkeypatch)
    both_ways(lambda: GridSearchCV(vae(), {"n_components": [1, 2]}, cv=3, n_jobs=n_jobs, refit=False))
    assert max(groups) == 6


def wide():
    return vae(hidden_layer_sizes=(150, 150), max_iter=2)


def test_two_threads_train_two_halves_of_large_groups(groups, monkeypatch):
    monkeypatch.setattr(_population.torch, "get_num_threads", lambda: 2)
    both_ways(lambda: GridSearchCV(wide(), {"n_components": [1, 2, 3]}, cv=2, refit=False))
    assert groups.count(3) == 2


@pytest.mark.parametrize("estimator, n_waves", [(vae(), 1), (wide(), 3)], ids=["small", "large"])
def test_many_threads_share_only_what_is_worth_their_calls(groups, monkeypatch, estimator, n_waves):
    monkeypatch.setattr(_population.torch, "get_num_threads", lambda: 64)
    with fused_fits():
        GridSearchCV(estimator, {"random_state": [0, 1, 2]}, cv=2, refit=False).fit(X)
    assert len(groups) == n_waves


def test_parts_of_all_threads_together_keep_to_the_memory(monkeypatch):
    monkeypatch.setattr(_population.torch, "get_num_threads", lambda: 8)
    found, original = [], _population.waves_of

    def spy(group, max_bytes, n_threads):
        waves = original(group, max_bytes, n_threads)
        n_together = min(n_threads, len(waves))
        found.extend((n_together * _population.bytes_of(wave, len(wave)), len(wave)) for wave in waves)
        return waves

    monkeypatch.setattr(_population, "waves_of", spy)
    with fused_fits(max_bytes=10**8):
        GridSearchCV(wide(), {"random_state": list(range(12))}, cv=2, refit=False).fit(X)
    assert max(n for _, n in found) > 1
    assert all(size <= 10**8 or n == 1 for size, n in found)


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that this thread has made and that are still there, and how many they were at most."""

    def __init__(self):
        super().__init__()
        self.storages, self.total, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]:
            self._forget(storage._cdata)
            if storage._cdata not in self.storages:
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.total += storage.nbytes()
        if self.total > self.peak:
            self.peak = max(self.peak, self.left())
        return result

    def _forget(self, key):
        if key in self.storages and self.storages[key][0].expired():
            self.total -= self.storages.pop(key)[1]

    def left(self):
        for key in list(self.storages):
            self._forget(key)
        return self.total


def models_of(m, n, hidden, objective=None, n_watched=None, **params):
    trainees = [make_trainee(n, network=MLP(hidden), seed=seed, max_iter=3, **params) for seed in range(m)]
    for trainee in trainees:
        trainee.problem = replace(trainee.problem, objective=objective or ELBO())
        trainee.watched = trainee.data.head(n_watched or n)
    return trainees


@pytest.mark.parametrize(
    "models",
    [
        {"m": 16, "n": 160, "hidden": (8,)},
        {"m": 4, "n": 1000, "hidden": (150, 150), "n_watched": 100, "batch_size": 64},
        {"m": 3, "n": 160, "hidden": (256,), "n_watched": 18, "batch_size": 256, "objective": IWAE(50)},
        {"m": 4, "n": 8000, "hidden": (128,), "n_watched": 800, "batch_size": 512, "k": 9},
    ],
    ids=["small", "wide", "draws", "rows"],
)
def test_the_memory_of_models_is_known_within_a_factor_of_two(models):
    trainees = models_of(**models)
    with Meter() as meter:
        train(trainees)
    assert 0.5 < _population.bytes_of(trainees, len(trainees)) / meter.peak < 2


def test_models_that_end_one_after_the_other_do_not_hold_the_memory_of_all():
    trainees = models_of(8, 100, (64, 64), n_watched=10)
    for i, trainee in enumerate(trainees):
        trainee.plan = replace(trainee.plan, max_iter=2 * i + 2)
    with Meter() as meter:
        train(trainees)
    assert meter.left() < 0.6 * meter.peak < 1.2 * _population.bytes_of(trainees, 8)


# --- each model for itself -------------------------------------------------------------------------------------------


def test_early_stopping_is_each_models_own():
    grid = {"learning_rate_init": [0.01, 0.1], "tol": [0.01, 0.5, 5.0]}
    serial = cross_all_by(grid)
    with fused_fits():
        fused = cross_all_by(grid)
    assert len({e.n_iter_ for e in fused}) > 2, "the example must have models that stop at different times"
    for one, other in zip(serial, fused, strict=True):
        np.testing.assert_array_equal(other._fitted.params, one._fitted.params)


def cross_all_by(grid):
    kept = []

    def keep(estimator, X, y=None):
        kept.append(estimator)
        return 0.0

    GridSearchCV(vae(max_iter=300, n_iter_no_change=1), grid, cv=2, scoring=keep, refit=False, error_score="raise").fit(X)
    return sorted(kept, key=lambda e: (e.learning_rate_init, e.tol, e._fitted.codec.loc.tolist()))


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_fails_fails_alone():
    search = GridSearchCV(vae(), {"learning_rate_init": [0.01, 1e30]}, cv=2, refit=False)
    serial, fused = both_ways(lambda: search)
    assert np.isnan(fused.cv_results_["mean_test_score"]).tolist() == [False, True]


def interrupted_at(epoch, *arguments):
    def interrupt(progress, state):
        if progress.epoch == epoch:
            raise KeyboardInterrupt(*arguments)
        return False

    return interrupt


def test_what_ends_a_group_spares_models_that_have_ended_and_gives_each_other_one_an_error_of_its_own():
    ended, alone, *others = (make_trainee(seed=seed, max_iter=2 if seed < 2 else 9) for seed in (0, 0, 2, 3))
    others[0].callbacks = [interrupted_at(5, "enough", 1)]
    train_groups([ended, *others], 2**30, 1)
    train([alone])
    assert ended.error is None and torch.equal(ended.own(ended.best), alone.own(alone.best))
    one, other = (trainee.error for trainee in others)
    assert one is not other and one.__cause__ is other.__cause__
    assert [(type(error), error.args) for error in (one, other)] == [(KeyboardInterrupt, ("enough", 1))] * 2


class Worded(BaseException):
    """An error that cannot be copied: it is made of something else than what it says."""

    def __init__(self, number):
        super().__init__(f"number {number}")


def test_an_error_that_cannot_be_copied_is_raised_as_it_is():
    trainees = [make_trainee(seed=seed) for seed in range(2)]
    trainees[0].callbacks = [lambda progress, state: (_ for _ in ()).throw(Worded(3))]
    train_groups(trainees, 2**30, 1)
    assert [str(trainee.error) for trainee in trainees] == ["number 3"] * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("together", [False, True])
def test_a_model_that_failed_is_forgotten_at_once(monkeypatch, together):
    """Without waiting for the garbage collector, which may come late."""
    models, original = [], _population.train

    def spy(trainees):
        models.extend(weakref.ref(trainee.params) for trainee in trainees)
        if together:
            raise MemoryError
        return original(trainees)

    monkeypatch.setattr(_population, "train", spy)
    gc.collect()
    gc.disable()
    try:
        with fused_fits(), suppress(ValueError):  # of a search without a result
            GridSearchCV(vae(), {"learning_rate_init": [0.01, 1e30]}, cv=2, refit=False).fit(X)
        assert len(models) == 4 and not [model for model in models if model() is not None]
    finally:
        gc.enable()


def test_models_train_in_the_precision_of_their_own_alone():
    seen = {"highest": set(), "medium": set()}

    def looking(precision):
        def look(progress, state):
            time.sleep(0.001)
            seen[precision].add(torch.get_float32_matmul_precision())
            return False

        return look

    trainees = [make_trainee(seed=i, matmul_precision=name) for i, name in enumerate([*seen] * 2)]
    for trainee in trainees:
        trainee.callbacks = [looking(trainee.plan.matmul_precision)]
    train_groups(trainees, 2**30, 2)
    assert seen == {name: {name} for name in seen}


class Slow(TransformerMixin, BaseEstimator):
    """A step that takes its time, or fails."""

    def __init__(self, seconds=0.0, fails=False):
        self.seconds, self.fails = seconds, fails

    def fit(self, X, y=None):
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("this step always fails")
        return self

    def transform(self, X):
        return X


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
def test_tasks_that_never_come_to_train_keep_nobody_waiting():
    pipeline = make_pipeline(Slow(), vae())
    search = GridSearchCV(pipeline, {"slow__fails": [False, True], "slow__seconds": [0.0, 0.1]}, cv=2, refit=False)
    _, fused = both_ways(lambda: search)
    assert np.isnan(fused.cv_results_["mean_test_score"]).tolist() == [False, False, True, True]


@pytest.mark.timeout(60)
def test_a_task_that_waits_for_another_does_not_stop_all(monkeypatch):
    monkeypatch.setattr(_population, "_PATIENCE", 0.2)
    done = threading.Event()

    class WaitsForAnother(Slow):
        def fit(self, X, y=None):
            if self.seconds:
                assert done.wait(50)
            return self

    def score(estimator, X, y=None):
        done.set()
        return 0.0

    pipeline = make_pipeline(WaitsForAnother(), vae())
    with fused_fits():
        GridSearchCV(pipeline, {"waitsforanother__seconds": [0, 1]}, cv=2, scoring=score, refit=False, error_score="raise").fit(
            X
        )


@pytest.mark.timeout(60)
def test_an_error_ends_the_search_and_leaves_the_context_usable():
    with fused_fits():
        with pytest.raises(ValueError, match="init='linear'"):
            GridSearchCV(vae(max_iter=10**6), {"likelihood": ["gaussian", Bernoulli("observed")], "init": ["linear"]}, cv=2,
                         error_score="raise").fit(X)  # fmt: skip
        assert np.isfinite(cross_val_score(vae(), X, cv=2)).all()


INTERRUPTED = """
import os
import signal, threading, time
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from skvae import VAETransformer, fused_fits

def interrupt():
    time.sleep(1.0)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

endless = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=10**7, learning_rate="cosine", random_state=0)
threading.Thread(target=interrupt).start()
try:
    with fused_fits():
        cross_val_score(endless, load_iris().data, cv=2, n_jobs=int(os.environ["N_JOBS"]))
except KeyboardInterrupt:
    time.sleep(0.1)
    print("interrupted, left:", [t.name for t in threading.enumerate() if t.name.startswith("skvae-fit")])
"""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interruption_ends_all_training(n_jobs):
    # In a process of its own, where nothing that other tests left behind can take the signal.
    program, environment = [sys.executable, "-c", INTERRUPTED], {**os.environ, "OMP_NUM_THREADS": "1", "N_JOBS": str(n_jobs)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "interrupted, left: []", done.stderr


def test_max_time_counts_for_the_group():
    with fused_fits():
        found = cross_validate(vae(max_iter=10**6, max_time=0.3, learning_rate="cosine"), X, cv=2, return_estimator=True)
    assert all(1 <= e.n_iter_ < 10**6 for e in found["estimator"])


# --- the surroundings ------------------------------------------------------------------------------------------------


def test_callbacks_see_every_epoch_of_every_model():
    pytest.importorskip("sklearn.callback")
    seen = []

    class Counter:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            if context.task_name == "epoch":
                seen.append(estimator.random_state)

    estimator = vae(learning_rate="cosine").set_callbacks(Counter())
    with fused_fits():
        GridSearchCV(estimator, {"random_state": [0, 1]}, cv=2, refit=False, error_score="raise").fit(X)
    assert sorted(seen) == [0] * 16 + [1] * 16


def test_global_states_stay_as_they_are():
    np_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    with fused_fits():
        cross_val_score(vae(), X, cv=3)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state) and torch.get_num_threads() == threads


def test_outside_of_tasks_nothing_changes(groups):
    with fused_fits():
        model = vae().fit(X)
    np.testing.assert_array_equal(model._fitted.params, vae().fit(X)._fitted.params)
    assert groups == [1, 1]


def test_warnings_reach_the_user():
    def search():
        with fused_fits(), warnings.catch_warnings():
            warnings.simplefilter("always")
            cross_val_score(vae(max_iter=2), load_iris().data, cv=2)

    with pytest.warns(Warning, match="still rising"):
        search()


@pytest.mark.parametrize("params", [{"max_models": 0}, {"max_bytes": "much"}])
def test_impossible_limits_are_refused(params):
    with pytest.raises(ValueError, match=f"{next(iter(params))} must be a whole number"), fused_fits(**params):
        pass


def test_a_meeting_counts_back_to_nothing(groups):
    meeting = Meeting(4, 2**20, 1)
    with _population.parallel_config(backend=_population.FusedBackend(meeting), n_jobs=1):
        cross_val_score(vae(), X, cv=5)
    assert (meeting.n_queued, meeting.n_active, meeting.n_outer, meeting.waiting) == (0, 0, 0, [])
    assert sum(groups) == 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
def test_inner_searches_that_fail_keep_nobody_waiting(monkeypatch):
    monkeypatch.setattr(_population, "_PATIENCE", 20.0)
    meeting, start = Meeting(16, 2**30, 2), time.monotonic()
    pipeline = make_pipeline(Slow(), vae())
    with _population.parallel_config(backend=_population.FusedBackend(meeting), n_jobs=1):
        inner = GridSearchCV(pipeline, {"slow__fails": [False, True]}, cv=2, error_score="raise")
        with pytest.raises(ValueError, match="All the 3 fits failed"):
            cross_validate(inner, X, cv=3)
    assert time.monotonic() - start < 15
    assert (meeting.n_queued, meeting.n_active, meeting.n_outer, meeting.n_threads_of_tasks) == (0, 0, 0, 0)
    assert meeting.waiting == [] and meeting.turns._value == 2


def test_the_public_name():
    assert skvae.fused_fits is fused_fits
