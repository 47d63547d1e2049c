"""A good neighbour: global generators, threads, dtypes and settings are the same before and after every call."""

import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch.overrides import TorchFunctionMode

from skvae import VAETransformer, evaluation, load

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = load_iris().data
WITH_HOLES = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 5, "hidden_layer_sizes": (8,), "random_state": 0, **params})


def global_state():
    kind, keys, position, *_ = np.random.get_state()  # noqa: NPY002
    return {
        "numpy": (kind, keys.tobytes(), position),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precision": torch.get_float32_matmul_precision(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "errors": np.geterr(),
    }


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    FITTED, HOLED = vae().fit(X), vae().fit(WITH_HOLES)
CALLS = {
    "fit": lambda: vae().fit(X),
    "fit without a seed": lambda: vae(random_state=None).fit(X),
    "fit of a user's network": lambda: vae(encoder=lambda i, o: torch.nn.Linear(i, o)).fit(X),
    "partial_fit": lambda: vae().partial_fit(X),
    "transform": lambda: FITTED.transform(X),
    "inverse_transform": lambda: FITTED.inverse_transform(np.zeros((2, 2))),
    "score": lambda: FITTED.score(X),
    "score_samples": lambda: FITTED.score_samples(X),
    "sample": lambda: FITTED.sample(5),
    "sample_posterior": lambda: FITTED.sample_posterior(X, 2),
    "posterior_moments": lambda: FITTED.posterior_moments(X),
    "reconstruct": lambda: FITTED.reconstruct(X),
    "interpolate": lambda: FITTED.interpolate(X[:1], X[1:2], 3),
    "attribute_direction and edit": lambda: FITTED.edit(X, FITTED.attribute_direction(X, X[:, 0] > X[:, 0].mean())),
    "sample given a column": lambda: FITTED.sample(5, given={0: 5.0}, n_draws=200),
    "impute": lambda: HOLED.impute(WITH_HOLES),
    "multiple_impute": lambda: HOLED.multiple_impute(WITH_HOLES, 2),
    "score_cells": lambda: FITTED.score_cells(X[:5]),
    "predictive_interval": lambda: FITTED.predictive_interval(X[:5]),
    "log_likelihood": lambda: evaluation.log_likelihood(FITTED, X[:5]),
    "bracket": lambda: evaluation.bracket(FITTED, n_rows=2),
    "kl_per_component": lambda: evaluation.kl_per_component(FITTED, X),
    "active_units": lambda: evaluation.active_units(FITTED, X),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_no_trace(call):
    before = global_state()
    CALLS[call]()
    assert global_state() == before


@pytest.mark.parametrize("call", CALLS)
def test_small_work_waits_for_no_other_thread(call):
    """Of two threads one waits for the other in every operation, for milliseconds where something else runs there."""
    seen, before = set(), torch.get_num_threads()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.add(torch.get_num_threads())
            return function(*args, **(kwargs or {}))

    torch.set_num_threads(2)
    try:
        with Watch():
            CALLS[call]()
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_saving_and_loading_leave_no_trace(tmp_path):
    before = global_state()
    FITTED.save(tmp_path / "model.skvae")
    load(tmp_path / "model.skvae")
    assert global_state() == before


def test_a_call_that_fails_leaves_no_trace():
    before = global_state()
    with pytest.raises(ValueError, match="non-finite"):
        vae(learning_rate_init=1e30).fit(X)
    with pytest.raises(ValueError, match="features"):
        FITTED.transform(X[:, :2])
    assert global_state() == before


def test_other_threads_keep_their_number_of_threads():
    """While one thread fits, another one sees the number it had."""
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(torch.get_num_threads())
            time.sleep(0.001)

    before = torch.get_num_threads()
    watcher = threading.Thread(target=watch)
    watcher.start()
    vae(max_iter=50).fit(X)
    stop.set()
    watcher.join()
    assert torch.get_num_threads() == before
    assert len(seen) == 1


def test_fits_in_threads_equal_fits_in_sequence():
    in_sequence = [vae(random_state=s, max_iter=20).fit(X).transform(X) for s in range(4)]
    results = [None] * 4

    def work(s):
        results[s] = vae(random_state=s, max_iter=20).fit(X).transform(X)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(in_sequence, results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_users_networks_fit_in_threads_as_in_sequence():
    def factory(n_in, n_out):
        return torch.nn.Sequential(torch.nn.Linear(n_in, 8), torch.nn.Tanh(), torch.nn.Linear(8, n_out))

    alone = vae(encoder=factory, decoder=factory).fit(X).transform(X)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(vae(encoder=factory, decoder=factory).fit(X).transform(X)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results:
        np.testing.assert_array_equal(found, alone)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("settings", ["condition_on=[0]", "likelihood='self_masking'", "likelihood='ordinal'"])
def test_no_fit_loads_the_symbolic_algebra_of_torch(settings):
    out = run(
        "import sys, warnings, numpy as np; from skvae import VAETransformer; before = list(warnings.filters);"
        "X = np.random.default_rng(0).integers(3, size=(60, 3)) * 1.0; X[::7, 1] = np.nan;"
        f"VAETransformer(1, {settings}, max_iter=2, learning_rate='cosine').fit(X).score(X);"
        "print('sympy' in sys.modules, warnings.filters == before)"
    )
    assert out.split() == ["False", "True"]


def test_neither_import_nor_fit_loads_the_compiler_of_torch():
    out = run(
        "import sys, warnings, numpy as np; warnings.simplefilter('ignore'); import skvae;"
        "print('torch._dynamo' in sys.modules);"
        "skvae.VAETransformer(max_iter=2).fit(np.random.default_rng(0).normal(size=(60, 3)));"
        "print('torch._dynamo' in sys.modules)"
    )
    assert out.split() == ["False", "False"]


def test_import_does_not_load_the_plotting_library():
    assert run("import sys, skvae; print('matplotlib' in sys.modules)").split() == ["False"]


TIMED_FIT = (
    "import sys, time, warnings, numpy as np, torch; warnings.simplefilter('ignore'); from skvae import VAETransformer\n"
    "from sklearn.datasets import load_breast_cancer; X = load_breast_cancer().data\n"
    "def fit(n_threads):\n"
    "    torch.set_num_threads(n_threads); wall, cpu = time.perf_counter(), time.process_time()\n"
    "    VAETransformer(max_iter=20, hidden_layer_sizes=(128,), batch_size=64, random_state=0).fit(X)\n"
    "    return time.perf_counter() - wall, time.process_time() - cpu\n"
    "fit(1); times = [[fit(n) for n in (1, 2)] for _ in range(5)]\n"
    "print(*np.median(times, axis=0).ravel())"
)


def test_a_small_fit_keeps_one_core_busy_whatever_the_number_of_threads():
    _, _, wall, cpu = map(float, run(TIMED_FIT).split())
    assert cpu < 1.4 * wall


@pytest.mark.slow
def test_a_second_thread_never_makes_a_small_fit_slower_on_busy_cores():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            one, _, two, _ = map(float, run(TIMED_FIT).split())
        finally:
            busy.kill()
    assert two < 1.5 * one
