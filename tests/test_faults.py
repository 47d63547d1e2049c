"""Faults: diverging training, interruptions, full disks, damaged and forged files. Nothing is half-done, nothing is lost."""

import contextlib
import json
import pickle
import signal
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
from conftest import assert_same_training
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae import DivergenceError, SkvaeFileError, VAETransformer, persistence
from skvae.callbacks import Checkpoint
from skvae.likelihoods import Gaussian

X = np.random.default_rng(0).normal(size=(80, 2)) @ np.random.default_rng(1).normal(size=(2, 4))
X += 0.3 * np.random.default_rng(2).normal(size=X.shape)
FRAME = pd.DataFrame(X, columns=["a", "b", "c", "d"])


def small_vae(**params):
    defaults = {"hidden_layer_sizes": (6,), "max_iter": 30, "learning_rate": "cosine", "batch_size": 16, "random_state": 0}
    return VAETransformer(**{"n_components": 2, **defaults, **params})


# --- numbers that are not finite -------------------------------------------------------------------------------------


class Breaking(Gaussian):
    """Does something else than it should from a given call on, for a given number of calls."""

    n_good, n_bad, act = 0, 0, None

    def log_prob(self, params, eta, x):
        value = super().log_prob(params, eta, x)
        if Breaking.n_good > 0:
            Breaking.n_good -= 1
        elif Breaking.n_bad > 0:
            Breaking.n_bad -= 1
            return Breaking.act(value)
        return value


def give_nan(value):
    return value * float("nan")


def press_ctrl_c(value):
    raise KeyboardInterrupt


@pytest.fixture
def breaking():
    """A function that says when and how the likelihood `Breaking` breaks."""

    def plan(n_good, n_bad, act):
        Breaking.n_good, Breaking.n_bad, Breaking.act = n_good, n_bad, staticmethod(act)

    yield plan
    plan(0, 0, None)


def test_exploding_training_is_an_error_that_says_what_to_do():
    vae = small_vae(learning_rate_init=1e30)
    with pytest.raises(DivergenceError, match="non-finite values in epoch .* Use a smaller learning_rate_init"):
        vae.fit(X)
    with pytest.raises(NotFittedError):
        vae.transform(X)
    assert not hasattr(vae, "n_features_in_")


def test_divergence_is_a_value_error_that_a_search_survives():
    assert issubclass(DivergenceError, ValueError)
    search = GridSearchCV(small_vae(), {"learning_rate_init": [1e-3, 1e30]}, cv=2)
    with pytest.warns(FitFailedWarning, match="2 fits failed"), pytest.warns(UserWarning, match="scores are non-finite"):
        search.fit(X)
    assert search.best_params_ == {"learning_rate_init": 1e-3}


@pytest.mark.parametrize("n_good", [0, 1, 40, 100])
def test_nan_that_stays_is_an_error(breaking, n_good):
    breaking(n_good, 10**9, give_nan)
    vae = small_vae(likelihood=Breaking(), batch_size=4)
    with pytest.raises(DivergenceError, match="also after the learning rate had been divided by 8"):
        vae.fit(X)
    assert not hasattr(vae, "lower_bound_")


def test_nan_in_all_there_is_of_a_short_training_is_an_error(breaking):
    breaking(0, 10**9, give_nan)
    with pytest.raises(DivergenceError, match=r"in epoch 2\. Use a smaller"):
        small_vae(likelihood=Breaking(), max_iter=2).fit(X)


def test_nan_in_partial_fit_is_an_error_and_takes_the_epoch_back(breaking):
    vae, undisturbed = (small_vae(likelihood=Breaking()).partial_fit(X) for _ in range(2))
    breaking(2, 1, give_nan)
    with pytest.raises(DivergenceError, match="in epoch 2"):
        vae.partial_fit(X)
    assert_same_training(vae.partial_fit(X), undisturbed.partial_fit(X))


@pytest.mark.parametrize("n_good", [20, 60])
def test_nan_that_passes_costs_a_smaller_step_and_no_more(breaking, n_good):
    breaking(n_good, 1, give_nan)
    vae = small_vae(likelihood=Breaking(), learning_rate="constant", batch_size=4, tol=10.0, n_iter_no_change=5).fit(X)
    assert vae.converged_
    assert vae.history_["learning_rate"][-1] < vae.history_["learning_rate"][0]
    assert np.isfinite(vae.history_["objective"]).all()
    assert np.isfinite(vae.score(X))


def test_failed_refit_leaves_the_earlier_model_in_use():
    vae = small_vae().fit(FRAME)
    before, Z = dict(vars(vae)), vae.transform(FRAME)
    vae.set_params(learning_rate_init=1e30)
    with pytest.raises(DivergenceError):
        vae.fit(np.hstack([X, X]))
    assert vars(vae.set_params(learning_rate_init=small_vae().learning_rate_init)) == before
    np.testing.assert_array_equal(vae.transform(FRAME), Z)
    np.testing.assert_array_equal(vae.feature_names_in_, FRAME.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(FRAME[["b", "a", "c", "d"]])


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "bad", [np.full((5, 4), np.nan), np.full((5, 4), "x"), np.zeros((5, 0)), np.zeros(5)], ids=["nan", "str", "0", "1d"]
)
def test_refused_data_leave_the_earlier_model_in_use(method, bad):
    vae = small_vae().fit(X)
    before, Z = dict(vars(vae)), vae.transform(X)
    with pytest.raises(ValueError, match="."):
        getattr(vae, method)(bad)
    assert vars(vae) == before
    np.testing.assert_array_equal(vae.transform(X), Z)


def test_failed_continuation_leaves_the_training_where_it_was():
    vae, undisturbed = (small_vae(warm_start=True).fit(X) for _ in range(2))
    rate, more = vae.learning_rate_init, 2 * vae.max_iter
    with pytest.raises(DivergenceError):
        vae.set_params(learning_rate_init=1e30, max_iter=more).fit(X)
    assert_same_training(vae.set_params(learning_rate_init=rate).fit(X), undisturbed.set_params(max_iter=more).fit(X))


# --- interruptions ---------------------------------------------------------------------------------------------------

needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
needs_callbacks = pytest.mark.skipif(find_spec("sklearn.callback") is None, reason="needs scikit-learn 1.9")


@contextlib.contextmanager
def interrupt_after(seconds):
    """Press Ctrl-C once this much time of the CPU has been spent."""

    def press(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, press)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Interrupter:
    """A callback at whose turn the user presses Ctrl-C."""

    def __init__(self, epoch):
        self.epoch = epoch

    def setup(self, estimator, context):
        """Do nothing."""

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch" and context.task_id == self.epoch:
            raise KeyboardInterrupt


@needs_timer
def test_interruption_at_any_moment_leaves_a_training_that_goes_on_exactly():
    params = {"max_iter": 60, "batch_size": 8}
    undisturbed = small_vae(**params).fit(X)
    start = time.process_time()
    small_vae(**params).fit(X)
    duration = time.process_time() - start
    n_interrupted = 0
    for moment in np.random.default_rng(0).uniform(0.1, 0.9, size=5):
        vae = small_vae(**params)
        try:
            with (
                pytest.warns(ConvergenceWarning, match="Training was interrupted; .* warm_start=True"),
                interrupt_after(moment * duration),
            ):
                vae.fit(X)
        except (KeyboardInterrupt, pytest.fail.Exception):  # before or after the training itself
            continue
        n_interrupted += 1
        assert vae.n_iter_ < 60
        assert np.isfinite(vae.score(X))
        assert_same_training(vae.set_params(warm_start=True).fit(X), undisturbed)
    assert n_interrupted >= 2


@needs_callbacks
@pytest.mark.parametrize("epoch", [0, 10, 29])
def test_interruption_warns_and_leaves_a_model_in_use(epoch):
    vae = small_vae().set_callbacks(Interrupter(epoch))
    with pytest.warns(ConvergenceWarning, match=f"best one of its first {(epoch + 1) // 11 * 11 if epoch < 29 else 30} epochs"):
        vae.fit(X)
    assert np.isfinite(vae.score(X))
    assert not vae.converged_
    vae.set_callbacks().set_params(warm_start=True)
    if epoch < 29:
        assert_same_training(vae.fit(X), small_vae().fit(X))


@needs_callbacks
def test_interrupted_training_survives_save_and_pickle(tmp_path):
    vae = small_vae().set_callbacks(Interrupter(15))
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        vae.fit(X)
    vae.set_callbacks().save(tmp_path / "model.skvae")
    for after in (skvae.load(tmp_path / "model.skvae"), pickle.loads(pickle.dumps(vae))):
        assert_same_training(after.set_params(warm_start=True).fit(X), small_vae().fit(X))


@needs_callbacks
def test_interrupted_partial_fit_is_told_and_takes_the_epoch_back(breaking):
    vae, undisturbed = (small_vae(likelihood=Breaking()).partial_fit(X) for _ in range(2))
    breaking(2, 1, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        vae.partial_fit(X)
    assert_same_training(vae.partial_fit(X), undisturbed.partial_fit(X))


@needs_callbacks
def test_interruption_inside_a_pipeline_is_passed_on():
    pipeline = make_pipeline(StandardScaler(), small_vae().set_callbacks(Interrupter(3)))
    with pytest.raises(KeyboardInterrupt):
        pipeline.fit(X)


@needs_callbacks
def test_interruption_inside_a_search_is_passed_on():
    search = GridSearchCV(small_vae().set_callbacks(Interrupter(3)), {"n_components": [1, 2]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)


@pytest.mark.parametrize(
    "fit",
    [
        lambda vae: cross_val_score(vae, X, cv=2),
        lambda vae: FeatureUnion([("one", vae)]).fit(X),
        lambda vae: ColumnTransformer([("one", vae, [0, 1])]).fit(X),
        lambda vae: FeatureUnion([("one", vae)]).fit_transform(X),
    ],
    ids=["cross-validation", "union", "columns", "union, at once"],
)
def test_interruption_inside_others_is_passed_on(fit, breaking):
    breaking(20, 1, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        fit(small_vae(likelihood=Breaking()))


@needs_callbacks
def test_interruption_inside_an_estimator_that_passes_callbacks_on_is_passed_on(breaking):
    from sklearn.callback import CallbackSupportMixin

    class Twice(CallbackSupportMixin, BaseEstimator):
        """An estimator of somebody else, whose own code fits ours."""

        def fit(self, X, y=None):
            context = self._init_callback_context(max_subtasks=2)
            for _ in range(2):
                vae = small_vae(likelihood=Breaking())
                with context.subcontext(task_name="member").propagate_callback_context(vae):
                    vae.fit(X)

    breaking(20, 1, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        Twice().fit(X)


@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_interruption_of_ones_own_fit_leaves_a_model(method, breaking):
    vae = small_vae(likelihood=Breaking())
    breaking(20, 1, press_ctrl_c)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        getattr(vae, method)(X)
    assert np.isfinite(vae.score(X))


@needs_callbacks
def test_interruption_in_a_worker_thread_is_passed_on():
    vae = small_vae().set_callbacks(Interrupter(3))
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(vae.fit, X).result()
    assert not hasattr(vae, "lower_bound_")


@needs_callbacks
def test_interruption_that_is_passed_on_leaves_the_earlier_model():
    vae = small_vae().fit(X)
    before = dict(vars(vae))
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(vae.set_callbacks(Interrupter(3)).fit, X[:, :2]).result()
    assert vars(vae.set_callbacks()) == before


# --- threads ---------------------------------------------------------------------------------------------------------


def test_fits_in_threads_equal_fits_in_sequence():
    seeds = range(4)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: small_vae(random_state=seed).fit(X), seeds))
    for seed, vae in zip(seeds, together):
        assert_same_training(vae, small_vae(random_state=seed).fit(X))


def test_transform_while_another_thread_refits_sees_the_one_or_the_other_model():
    vae = small_vae().fit(X)
    states = [vae.transform(X), small_vae(random_state=1).fit(X).transform(X)]
    vae.set_params(random_state=1)
    stop, seen, errors = threading.Event(), set(), []

    def look():
        try:
            while not stop.is_set():
                Z = vae.transform(X)
                seen.add(next(i for i, state in enumerate(states) if np.array_equal(Z, state)))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    vae.fit(X)
    time.sleep(0.05)
    stop.set()
    thread.join()
    assert not errors
    assert seen == {0, 1}


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_with_room_for(n_bytes):
    """Let files grow to `n_bytes` only, the nearest thing to a full disk. Python ignores the signal that comes with it."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.skvae"
    old = small_vae().fit(X)
    old.save(path)
    content = path.read_bytes()
    with disk_with_room_for(2000), pytest.raises(OSError, match="too large|space"):
        small_vae(random_state=1).fit(X).save(path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(skvae.load(path).transform(X), old.transform(X))


@needs_callbacks
def test_full_disk_during_training_is_a_warning_and_training_goes_on(tmp_path):
    path = tmp_path / "model.skvae"
    vae = small_vae(max_iter=4).set_callbacks(Checkpoint(path, every=3))
    with disk_with_room_for(2000), pytest.warns(UserWarning, match="could not be written .*; training goes on"):
        vae.fit(X)
    assert list(tmp_path.iterdir()) == []
    assert_same_training(vae, small_vae(max_iter=4).fit(X))


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a small file with all there can be in one."""
    path = tmp_path_factory.mktemp("faults") / "model.skvae"
    small_vae(warm_start=True).fit(FRAME).save(path)
    return path.read_bytes()


def assert_refused(path, content, match="."):
    path.write_bytes(content)
    with pytest.raises(SkvaeFileError, match=match):
        skvae.load(path)


def test_every_flipped_bit_is_found(tmp_path, content):
    rng = np.random.default_rng(0)
    for at, bit in zip(rng.integers(len(content), size=300), rng.integers(8, size=300)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        assert_refused(tmp_path / "damaged.skvae", bytes(damaged))


def test_every_flipped_bit_of_the_length_and_of_the_first_bytes_is_found(tmp_path, content):
    for at in range(24):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            assert_refused(tmp_path / "damaged.skvae", bytes(damaged))


def test_every_truncation_is_found(tmp_path, content):
    lengths = np.random.default_rng(0).integers(len(content), size=56).tolist()
    for length in [0, 1, 8, len(content) - 1, *lengths]:
        assert_refused(tmp_path / "damaged.skvae", content[:length])


@pytest.mark.parametrize("extra", [b"\0", b"more", bytes(1000)])
def test_bytes_after_the_end_are_found(tmp_path, content, extra):
    assert_refused(tmp_path / "damaged.skvae", content + extra, match="cut off or damaged")


def test_exchanged_tensors_are_found(tmp_path, content):
    _, tensors = taken_apart(content)
    tensors["codec.loc"], tensors["codec.scale"] = tensors["codec.scale"], tensors["codec.loc"]
    exchanged = safetensors.numpy.save(tensors, header_of(content)["__metadata__"])
    assert_refused(tmp_path / "damaged.skvae", exchanged, match="checksum")


# --- forged files ----------------------------------------------------------------------------------------------------


def header_of(content):
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def taken_apart(content):
    return json.loads(header_of(content)["__metadata__"]["skvae"]), safetensors.numpy.load(content)


def forged(content, change):
    """Change the manifest and the tensors of a file, and give it the digest that belongs to them."""
    manifest, tensors = taken_apart(content)
    change(manifest, tensors)
    text = json.dumps(manifest)
    digest = persistence._digest(text, tensors)
    return safetensors.numpy.save(tensors, {"skvae": text, "sha256": digest})


def entry(*keys, to):
    """Return a change that sets one entry of the manifest."""

    def change(manifest, tensors):
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        if to is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to

    return change


def tensor(name, to):
    """Return a change that makes one tensor another."""

    def change(manifest, tensors):
        tensors[name] = to(tensors[name]).copy()

    return change


HUGE = 10**12


def mlp(*hidden_layer_sizes):
    return {"class": "network.MLP", "params": {"hidden_layer_sizes": {"~tuple": hidden_layer_sizes}}}


def gaussian(**params):
    return {"~settings": "likelihood.Gaussian", "params": params}


FORGERIES = {
    "huge layer": entry("state", "pieces", "encoder", to=mlp(HUGE)),
    "huge layers": entry("state", "pieces", "decoder", to=mlp(HUGE, HUGE, HUGE)),
    "many layers": entry("state", "pieces", "encoder", to=mlp(*[1] * 4 * 10**5)),
    "layers of no units": entry("state", "pieces", "encoder", to=mlp(0)),
    "huge number of columns": entry("state", "n_columns", to=HUGE),
    "huge number of components": entry("state", "n_components", to=HUGE),
    "huge seed": entry("state", "seed", to=10**4000),
    "negative number of columns": entry("state", "n_columns", to=-1),
    "no components": entry("state", "n_components", to=0),
    "fractional number of components": entry("state", "n_components", to=2.0),
    "boolean number of components": entry("state", "n_components", to=True),
    "huge number of columns of the estimator": entry("attributes", "n_features_in_", to=HUGE),
    "missing number of columns of the estimator": entry("attributes", "n_features_in_", to=...),
    "too few feature names": entry("attributes", "feature_names_in_", to={"~strings": ["a"]}),
    "feature names that are numbers": entry("attributes", "feature_names_in_", to={"~strings": [1, 2, 3, 4]}),
    "feature names that are a string": entry("attributes", "feature_names_in_", to="abcd"),
    "too few columns": entry("state", "codec", "names", to=["a"]),
    "columns named by numbers": entry("state", "codec", "names", to=[1, 2, 3, 4]),
    "limits that are no numbers": entry("state", "codec", "low", to=["a", "b"]),
    "limits of other columns": tensor("codec.low", lambda a: a[:-1]),
    "flag that is a word": entry("state", "codec", "clips", to="yes"),
    "state that is null": entry("state", to=None),
    "state that is empty": entry("state", to={}),
    "missing codec": entry("state", "codec", to=...),
    "missing parameters": entry("params", to=...),
    "parameter that does not exist": entry("params", "colour", to="blue"),
    "parameter of the wrong type": entry("params", "max_iter", to="many"),
    "parameter out of its range": entry("params", "validation_fraction", to=3.0),
    "parameter with an unknown piece": entry("params", "likelihood", to={"~settings": "likelihood.Evil", "params": {}}),
    "parameter with a piece of another role": entry("params", "likelihood", to={"~settings": "network.MLP", "params": {}}),
    "settings with a parameter that does not exist": entry("params", "likelihood", to=gaussian(colour=1)),
    "settings out of their range": entry("params", "likelihood", to=gaussian(floor=-1.0)),
    "unknown piece": entry("state", "pieces", "prior", "class", to="os.system"),
    "piece of another role": entry("state", "pieces", "prior", "class", to="posterior.Normal"),
    "piece that runs code": entry("state", "pieces", "encoder", to={"class": "network.Module", "params": {"factory": "abort"}}),
    "missing piece": entry("state", "pieces", "prior", to=...),
    "unknown class": entry("class", to="VAEOracle"),
    "class that is a function": entry("class", to="load"),
    "class that is an error": entry("class", to="DivergenceError"),
    "class of another package": entry("class", to="sklearn.decomposition.PCA"),
    "class that is a path": entry("class", to="../../evil"),
    "class that is a special name": entry("class", to="__builtins__"),
    "class that is a list": entry("class", to=["VAETransformer"]),
    "attribute that is a method": entry("attributes", "transform", to=3),
    "attribute that is special": entry("attributes", "__class__", to="VAETransformer"),
    "attribute that is the state": entry("attributes", "_fitted", to={}),
    "attribute that is a parameter": entry("attributes", "device", to="cpu"),
    "attribute that is a path": entry("attributes", "../x", to=3),
    "attribute of scikit-learn": entry("attributes", "_skl_callbacks", to=[]),
    "output that does not exist": entry("output", to="excel"),
    "tensor that does not exist": entry("state", "params", to={"~array": "../params"}),
    "tensor that is used twice": entry("state", "codec", "loc", to={"~array": "codec.scale"}),
    "tag that does not exist": entry("state", "seed", to={"~exec": "import os"}),
    "float that is none": entry("params", "tol", to={"~float": "1e9999"}),
    "arrays of a finished training that does not exist": entry("state", "training", to=None),
    "epochs before the first": entry("state", "training", "progress", "epoch", to=-5),
    "epochs that are words": entry("state", "training", "progress", "epoch", to="five"),
    "history with a gap": entry("state", "training", "progress", "history", "objective", to=[1.0]),
    "history that is a word": entry("state", "training", "progress", "history", to="good"),
    "progress with more than there is": entry("state", "training", "progress", "colour", to=1),
    "last epoch that is none": entry("state", "training", "max_iter", to=None),
    "longer parameters": tensor("params", lambda a: np.append(a, a)),
    "shorter parameters": tensor("params", lambda a: a[:-1]),
    "parameters in a matrix": tensor("params", lambda a: a[None]),
    "parameters that are a number": tensor("params", lambda a: a[:1].reshape(())),
    "whole-numbered parameters": tensor("params", lambda a: a.astype(np.int64)),
    "parameters in half precision": tensor("params", lambda a: a.astype(np.float16)),
    "units in a matrix": tensor("codec.loc", lambda a: a[:, None]),
    "units in single precision": tensor("codec.scale", lambda a: a.astype(np.float32)),
    "too many units": tensor("codec.loc", lambda a: np.append(a, a)),
    "flags that are numbers": tensor("codec.clips", lambda a: a.astype(np.int64)),
    "column that is not in the model": tensor("codec.order", lambda a: a[:-1]),
    "memory of another size": tensor("training.slots.mean", lambda a: a[:-1]),
    "memory of whole numbers": tensor("training.slots.mean", lambda a: a.astype(np.int32)),
    "best parameters of another size": tensor("training.best", lambda a: a[:-1]),
    "extra tensor": lambda m, t: t.update(extra=np.zeros(3)),
}  # fmt: skip


def peak_memory():
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_file_with_a_good_digest_is_refused_at_once(tmp_path, content, forgery):
    path = tmp_path / "forged.skvae"
    path.write_bytes(forged(content, FORGERIES[forgery]))
    before, start = peak_memory(), time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(SkvaeFileError, match=r"forged\.skvae' cannot be loaded: .*\. The file was altered"):
            skvae.load(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 3
    assert peak_memory() - before < 100e6


def test_file_with_the_digest_recomputed_and_nothing_forged_loads(tmp_path, content):
    path = tmp_path / "same.skvae"
    path.write_bytes(forged(content, lambda manifest, tensors: None))
    assert_same_training(skvae.load(path), small_vae(warm_start=True).fit(FRAME))


@pytest.mark.parametrize("claim", [2**63, 2**40, 2**30, 10**8 + 1])
def test_header_that_claims_to_be_huge_is_refused_at_once(tmp_path, content, claim):
    before = peak_memory()
    assert_refused(tmp_path / "forged.skvae", claim.to_bytes(8, "little") + content[8:], match="no safetensors file")
    assert peak_memory() - before < 100e6


def test_tensors_that_claim_to_be_huge_are_refused_at_once(tmp_path, content):
    header = header_of(content)
    header["params"]["shape"] = [2**40]
    header["params"]["data_offsets"][1] = header["params"]["data_offsets"][0] + 2**42
    text = json.dumps(header).encode()
    assert_refused(tmp_path / "forged.skvae", len(text).to_bytes(8, "little") + text, match="cut off or damaged")


def test_manifest_of_huge_parameters_loads_without_allocating_them(tmp_path, content):
    """Constructor parameters describe the next fit, not the model in the file: they cost nothing until then."""
    path = tmp_path / "large.skvae"
    path.write_bytes(forged(content, entry("params", "hidden_layer_sizes", to={"~tuple": [HUGE]})))
    assert skvae.load(path).hidden_layer_sizes == (HUGE,)
