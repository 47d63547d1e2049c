"""Callbacks: checkpoints, scikit-learn's callbacks on our epochs, and what is printed."""

import os
import pickle
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import assert_same_training
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae import VAETransformer
from skvae.callbacks import Checkpoint

sklearn_callback = pytest.importorskip("sklearn.callback")

X = np.random.default_rng(0).normal(size=(80, 2)) @ np.random.default_rng(1).normal(size=(2, 4))
X += 0.3 * np.random.default_rng(2).normal(size=X.shape)
Y = np.zeros(len(X))


def small_vae(**params):
    defaults = {"hidden_layer_sizes": (6,), "max_iter": 30, "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(**{"n_components": 2, **defaults, **params})


class Recorder:
    """Notes the hooks that are called, and acts after a given number of calls to one of them."""

    def __init__(self, hook=None, n_calls=1, act=None):
        self.hook, self.n_calls, self.act = hook, n_calls, act
        self.calls = []

    def note(self, hook, context):
        self.calls.append((hook, context.task_name, context.task_id))
        if hook == self.hook and sum(call[0] == hook for call in self.calls) == self.n_calls:
            return self.act()
        return None

    def setup(self, estimator, context):
        return self.note("setup", context)

    def teardown(self, estimator, context):
        return self.note("teardown", context)

    def on_fit_task_begin(self, estimator, context):
        return self.note("on_fit_task_begin", context)

    def on_fit_task_end(self, estimator, context):
        return self.note("on_fit_task_end", context)


class Failure(Exception):
    """What the tests' own callbacks raise."""


def fail():
    raise Failure("the callback failed")


def stop_after(n_epochs, act):
    return Recorder("on_fit_task_end", n_epochs, act)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training.skvae"


def crash(vae, n_epochs, path, every=1):
    """Train with a checkpoint, up to a crash after `n_epochs`."""
    crasher = Recorder("on_fit_task_end", n_epochs, fail)
    with pytest.raises(Failure):
        vae.set_callbacks(Checkpoint(path, every), crasher).fit(X)


@pytest.mark.parametrize("n_epochs", [1, 7, 13, 20])
@pytest.mark.parametrize(
    "params",
    [{}, {"learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 2, "max_iter": 100}],
    ids=["cosine", "adaptive"],
)
def test_training_from_a_checkpoint_ends_like_the_undisturbed_one(path, n_epochs, params):
    params = {"batch_size": 4, **params}
    undisturbed = small_vae(**params).fit(X)
    assert undisturbed.converged_ == ("max_iter" in params)
    crash(small_vae(**params), n_epochs, path)
    resumed = skvae.load(path).set_params(warm_start=True)
    assert resumed.n_iter_ == n_epochs
    assert_same_training(resumed.fit(X), undisturbed)


@pytest.mark.parametrize(
    "params", [{"dtype": "float64"}, {"optimizer": "sgd"}, {"optimizer": "adagrad"}, {"max_iter": 100, "batch_size": 80}]
)
def test_training_goes_on_exactly_whatever_the_precision_optimizer_and_batches(path, params):
    crash(small_vae(**params), 17, path)
    assert_same_training(skvae.load(path).set_params(warm_start=True).fit(X), small_vae(**params).fit(X))


def test_weighted_training_goes_on_exactly(path):
    weight = np.arange(len(X)) % 3
    crasher = Checkpoint(path, 4), Recorder("on_fit_task_begin", 10, fail)
    with pytest.raises(Failure):
        small_vae().set_callbacks(*crasher).fit(X, sample_weight=weight)
    resumed = skvae.load(path).set_params(warm_start=True).fit(X, sample_weight=weight)
    assert_same_training(resumed, small_vae().fit(X, sample_weight=weight))


def test_training_that_crashes_twice_goes_on_exactly(path):
    undisturbed = small_vae().fit(X)
    crash(small_vae(), 11, path, every=5)
    crash(skvae.load(path).set_params(warm_start=True), 9, path, every=5)
    assert_same_training(skvae.load(path).set_params(warm_start=True).fit(X), undisturbed)


def test_warm_start_during_the_crashed_training_does_not_matter(path):
    crash(small_vae(warm_start=True), 11, path)
    assert_same_training(skvae.load(path).fit(X), small_vae().fit(X))


def test_other_data_start_a_new_training(path):
    crash(small_vae(), 11, path)
    resumed = skvae.load(path).set_params(warm_start=True)
    assert resumed.fit(X[::2]).n_iter_ == 11 + 30


def test_epochs_between_saves_are_counted_from_the_start_of_the_training(path):
    crash(small_vae(batch_size=16), 15, path, every=13)
    resumed = skvae.load(path).set_params(warm_start=True)
    start = resumed._fitted.training.progress["epoch"]
    assert resumed.n_iter_ == 13 > start > 0
    crash(resumed, 27 - start, path, every=13)
    assert skvae.load(path).n_iter_ == 26


def test_checkpoint_is_ready_for_use(path):
    crash(small_vae(), 20, path)
    vae = skvae.load(path)
    assert np.isfinite(vae.score(X))
    assert vae.transform(X).shape == (80, 2)
    assert vae.history_["epoch"][-1] <= 20


def test_checkpoint_of_a_refit_shows_nothing_of_the_earlier_fit(path):
    vae = small_vae().fit(X)
    assert hasattr(vae, "noise_variance_")
    crash(vae.set_params(likelihood=skvae.likelihoods.Gaussian(noise="network")), 3, path)
    assert not hasattr(skvae.load(path), "noise_variance_")


def test_no_checkpoint_is_written_before_its_time(path):
    crash(small_vae(), 9, path, every=10)
    assert not path.exists()


def test_checkpoint_that_cannot_be_written_is_a_warning(tmp_path):
    vae = small_vae(max_iter=4).set_callbacks(Checkpoint(tmp_path / "missing" / "training.skvae", every=3))
    with pytest.warns(UserWarning, match=r"checkpoint '.*training\.skvae' could not be written .*; training goes on"):
        vae.fit(X)
    assert_same_training(vae, small_vae(max_iter=4).fit(X))


def test_checkpoint_of_what_cannot_be_saved_fails_before_training(path):
    vae = small_vae(random_state=np.random.RandomState(0)).set_callbacks(Checkpoint(path))
    with pytest.raises(TypeError, match="'random_state' holds an object of type RandomState"):
        vae.fit(X)
    assert not hasattr(vae, "n_features_in_")


def test_checkpoint_on_a_pipeline_is_refused(path):
    with pytest.raises(TypeError, match="belongs to an estimator of skvae, not to Pipeline"):
        make_pipeline(small_vae()).set_callbacks(Checkpoint(path)).fit(X)


def test_checkpoint_works_inside_a_pipeline(path):
    vae = small_vae().set_callbacks(Checkpoint(path, every=30))
    pipeline = make_pipeline(StandardScaler(), vae).fit(X)
    np.testing.assert_array_equal(skvae.load(path).transform(pipeline[0].transform(X)), pipeline.transform(X))


@pytest.mark.parametrize("every", [0, -1, 2.5, None])
def test_epochs_between_saves_must_be_a_positive_whole_number(every):
    with pytest.raises(ValueError, match="every must be a whole number of epochs of at least 1"):
        Checkpoint("training.skvae", every)


def test_checkpoint_is_shared_by_clones_and_survives_pickle(path):
    vae = small_vae().set_callbacks(Checkpoint(path, every=7))
    assert clone(vae)._skl_callbacks[0] is vae._skl_callbacks[0]
    after = pickle.loads(pickle.dumps(vae))
    assert vars(after._skl_callbacks[0]) == {"path": str(path), "every": 7}
    after.fit(X)
    assert vars(after._skl_callbacks[0]) == {"path": str(path), "every": 7}
    assert skvae.load(path).n_iter_ == 28


KILLED = """
    import sys
    import numpy as np
    from skvae import VAETransformer
    from skvae.callbacks import Checkpoint

    X = np.load(sys.argv[1])
    vae = VAETransformer(2, hidden_layer_sizes=(6,), max_iter=20_000, learning_rate="cosine", random_state=0)
    vae.set_callbacks(Checkpoint(sys.argv[2], every=1)).fit(X)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_training_leaves_a_file_from_which_it_goes_on(tmp_path, path):
    np.save(tmp_path / "X.npy", X)
    program = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "X.npy", path]
    process = subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(50):  # while epochs are trained and files are replaced
            assert skvae.load(path).n_features_in_ == 4
        time.sleep(0.1 * np.random.default_rng().random())
    finally:
        process.kill()
        process.wait()
    killed = skvae.load(path)
    n_epochs = killed.n_iter_
    assert 1 <= n_epochs < 20_000
    # Both go on for a while in the plan of 20,000 epochs and stop at the same epoch.
    target = n_epochs + 100
    resumed = killed.set_params(warm_start=True)
    start = resumed._fitted.training.progress["epoch"]
    resumed.set_callbacks(stop_after(target - start, lambda: True)).fit(X)
    undisturbed = small_vae(max_iter=20_000).set_callbacks(stop_after(target, lambda: True)).fit(X)
    assert resumed.n_iter_ == target
    assert_same_training(resumed, undisturbed)


# --- scikit-learn's callbacks ----------------------------------------------------------------------------------------


def test_epochs_are_the_only_subtasks_of_a_fit():
    recorder = Recorder()
    small_vae(max_iter=3).set_callbacks(recorder).fit(X)
    epochs = [(f"on_fit_task_{moment}", "epoch", i) for i in range(3) for moment in ("begin", "end")]
    root = [(hook, "fit", 0) for hook in ("setup", "on_fit_task_begin", "on_fit_task_end", "teardown")]
    assert recorder.calls == [*root[:2], *epochs, *root[2:]]


def test_epochs_are_leaves_of_a_task_with_a_known_number_of_them():
    sizes = []

    class Sizes(Recorder):
        def note(self, hook, context):
            sizes.append((context.task_name, context.max_subtasks))

    small_vae(max_iter=3).set_callbacks(Sizes()).fit(X)
    assert set(sizes) == {("fit", 3), ("epoch", 0)}


def test_training_that_goes_on_announces_the_rest_of_its_epochs():
    vae = small_vae().set_callbacks(stop_after(10, lambda: True)).set_params(warm_start=True).fit(X)
    left = 30 - vae._fitted.training.progress["epoch"]
    recorder = Recorder()
    vae.set_callbacks(recorder).fit(X)
    assert sum(name == "epoch" for _, name, _ in recorder.calls) == 2 * left


def test_callback_stops_training_by_returning_true():
    vae = small_vae().set_callbacks(stop_after(12, lambda: True)).fit(X)
    assert vae.n_iter_ == 12
    assert not vae.converged_
    assert np.isfinite(vae.score(X))


def test_training_that_was_stopped_goes_on_with_warm_start():
    vae = small_vae(warm_start=True).set_callbacks(stop_after(12, lambda: True)).fit(X)
    assert_same_training(vae.set_callbacks().fit(X), small_vae().fit(X))


@pytest.mark.parametrize(
    "hook, n_calls",
    [("setup", 1), ("on_fit_task_begin", 1), ("on_fit_task_begin", 5), ("on_fit_task_end", 5), ("on_fit_task_end", 31)],
)
def test_failing_callback_leaves_the_earlier_fit(hook, n_calls):
    vae = small_vae(n_components=1).fit(X[:, :3])
    before, Z = dict(vars(vae)), vae.transform(X[:, :3])
    witness, failing = Recorder(), Recorder(hook, n_calls, fail)
    with pytest.raises(Failure):
        vae.set_callbacks(witness, failing).set_params(n_components=2).fit(X)
    assert witness.calls[-1] == ("teardown", "fit", 0)
    assert failing.calls[-1] == ("teardown", "fit", 0)
    vae.set_callbacks().set_params(n_components=1)
    assert vars(vae) == before
    np.testing.assert_array_equal(vae.transform(X[:, :3]), Z)
    assert_same_training(vae.set_params(n_components=2).fit(X), small_vae().fit(X))


@pytest.mark.parametrize(
    "hook, n_calls", [("setup", 1), ("on_fit_task_begin", 1), ("on_fit_task_end", 5), ("on_fit_task_end", 31)]
)
def test_failing_callback_leaves_an_unfitted_estimator_unfitted(hook, n_calls):
    vae = small_vae()
    before = dict(vars(vae))
    with pytest.raises(Failure):
        vae.set_callbacks(Recorder(hook, n_calls, fail)).fit(X)
    assert vars(vae.set_callbacks()) == before
    with pytest.raises(NotFittedError):
        vae.transform(X)


def test_failing_teardown_comes_too_late_to_undo_the_fit():
    vae = small_vae().set_callbacks(Recorder("teardown", 1, fail))
    with pytest.raises(Failure):
        vae.fit(X)
    assert_same_training(vae, small_vae().fit(X))


def test_warning_that_is_an_error_leaves_the_earlier_fit():
    vae = small_vae(n_components=1).fit(X[:, :3])
    before = dict(vars(vae))
    vae.set_params(max_iter=3, learning_rate="constant")
    with pytest.raises(ConvergenceWarning):
        vae.fit(X)
    assert vars(vae.set_params(max_iter=30, learning_rate="cosine")) == before


def test_model_of_an_epoch_does_not_change_as_training_goes_on():
    kept = []

    class Keeper(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            kept.append((fitted_estimator, fitted_estimator.transform(X), pickle.dumps(fitted_estimator.set_callbacks())))

    vae = small_vae(max_iter=20).set_callbacks(Keeper()).fit(X)
    for model, Z, pickled in kept:
        np.testing.assert_array_equal(model.transform(X), Z)
        np.testing.assert_array_equal(pickle.loads(pickled).transform(X), Z)
    assert [model.n_iter_ for model, _, _ in kept] == [*range(1, 21), 20]
    np.testing.assert_array_equal(kept[-1][1], vae.transform(X))


def test_callbacks_that_look_at_the_model_do_not_disturb_training():
    class Looker(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            fitted_estimator.score(X)
            fitted_estimator.sample(3)

    assert_same_training(small_vae().set_callbacks(Looker()).fit(X), small_vae().fit(X))


def elbo(estimator, X, y=None, sample_weight=None):
    return {"elbo": estimator.score(X, sample_weight=sample_weight)}


@pytest.mark.parametrize("weight", [None, np.arange(80.0)])
def test_scoring_monitor_sees_the_score_of_every_epoch(weight):
    monitor = sklearn_callback.ScoringMonitor(scoring=elbo)
    vae = small_vae(max_iter=5).set_callbacks(monitor).fit(X, Y, sample_weight=weight)
    scores = [row["elbo"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 5
    assert scores[-1] == vae.score(X, sample_weight=weight)


def test_progress_bar_shows_a_fit(capsys):
    pytest.importorskip("rich")
    small_vae(max_iter=5).set_callbacks(sklearn_callback.ProgressBar()).fit(X)
    assert "VAETransformer - fit" in capsys.readouterr().out


@pytest.fixture(params=["ProgressBar", "ScoringMonitor"])
def propagated(request):
    if request.param == "ProgressBar":
        pytest.importorskip("rich")
        return sklearn_callback.ProgressBar()
    return sklearn_callback.ScoringMonitor(scoring=elbo)


def test_callbacks_of_a_pipeline_reach_its_steps(propagated, capsys):
    if isinstance(propagated, sklearn_callback.AutoPropagatedCallback):
        pipeline = make_pipeline(StandardScaler(), small_vae(max_iter=5)).set_callbacks(propagated)
    else:
        pipeline = make_pipeline(StandardScaler(), small_vae(max_iter=5).set_callbacks(propagated))
    pipeline.fit(X, Y)
    if hasattr(propagated, "get_logs"):
        assert sum(row["task_name"] == "epoch" for row in propagated.get_logs().data) == 5
    else:
        assert "VAETransformer - fit" in capsys.readouterr().out
    assert_same_training(pipeline[-1], small_vae(max_iter=5).fit(StandardScaler().fit_transform(X)))


def test_callbacks_of_a_search_reach_its_candidates(propagated, capsys):
    search = GridSearchCV(small_vae(max_iter=5), {"n_components": [1, 2]}, cv=2)
    if isinstance(propagated, sklearn_callback.AutoPropagatedCallback):
        search.set_callbacks(propagated)
    else:
        search.estimator.set_callbacks(propagated)
    search.fit(X, Y)
    if hasattr(propagated, "get_logs"):
        assert sum(row["task_name"] == "epoch" for log in propagated.get_logs("all") for row in log.data) == 5 * 5
    else:
        assert "GridSearchCV - fit" in capsys.readouterr().out
    assert search.best_score_ == pytest.approx(max(search.cv_results_["mean_test_score"]))


# --- printing --------------------------------------------------------------------------------------------------------


def test_verbose_prints_a_line_for_every_measurement(capsys):
    vae = small_vae(verbose=True).fit(X)
    lines = capsys.readouterr().out.splitlines()
    printed = [float(line.split("lower bound")[1].split()[0]) for line in lines]
    np.testing.assert_allclose(printed[-1], vae.history_["lower_bound"][-1], atol=1e-4)
    assert len(lines) in (len(vae.history_["epoch"]), len(vae.history_["epoch"]) - 1)


def test_training_is_silent_by_default(capsys):
    small_vae().fit(X)
    assert capsys.readouterr() == ("", "")
