"""What a graphics card must not change: needs one, and is skipped without."""

import contextlib
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SCORE_METHODS, SETTINGS, table_for
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from test_engine import make_trainee, what_it_learnt
from test_kernels import OBJECTIVES as BOUNDS
from test_kernels import flat_params, make_model

import skvae
from skvae import VAETransformer, _engine
from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._engine import train
from skvae._model import nested
from skvae._random import generator, normal
from skvae.evaluation import AnnealedImportance, bracket
from skvae.likelihoods import Bernoulli, Gaussian, Mixed, NormalMixture
from skvae.objectives import IWAE
from skvae.priors import MixtureOfNormals, StandardNormal, VampPrior
from skvae.solvers import MonteCarloEM

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
F64 = torch.float64


def vae(**params):
    settings = {"n_components": 2, "max_iter": 6, "hidden_layer_sizes": (8,), "random_state": 0, "device": "cuda", **params}
    return VAETransformer(**settings)


def on_processor(model):
    return deepcopy(model).set_params(device="cpu")


def mixed_table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=n)
    frame = pd.DataFrame({
        "kind": pd.Categorical.from_codes(kind, ["a", "b", "c"]),
        "size": kind + rng.normal(size=n),
        "count": rng.poisson(1 + 2 * kind),
        "is_odd": kind == 1,
    })  # fmt: skip
    frame.loc[rng.random(n) < 0.2, "size"] = np.nan
    return frame


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(4)])
@pytest.mark.parametrize("objective", BOUNDS, ids=repr)
def test_the_closed_forms_give_the_numbers_of_the_processor(objective, prior):
    model = make_model(NormalMixture(3), hidden=(7, 5), prior=prior)
    if not kernels.supports(model, objective):
        pytest.skip("by autograd")
    n, s, wide = 12, objective.n_samples, kernels.widened([model])
    x, weight = normal((1, n, 5), generator(0, "x"), F64), normal((1, n, 1), generator(0, "w"), F64).abs()
    noise, flat = normal((1, s, n, wide.n_components), generator(0, "noise"), F64), flat_params(model)
    noise[..., model.n_components :] = 0
    found = []
    for device in ("cpu", "cuda"):
        layout, place = kernels.aligned_layout(wide), kernels.positions(model, wide)
        params, slopes = (torch.zeros((1, layout.size), dtype=F64) for _ in range(2))
        params[0, place] = flat
        params, slopes = params.to(device), slopes.to(device)
        kernel = kernels.Kernel(wide, nested(layout.views(params)), n, s)
        kernel.learn(objective, nested(layout.views(slopes)), torch.ones((1, 1, 1), dtype=F64, device=device))
        value = kernel.gradient(*(t.to(device) for t in (x, noise, weight)), measured=True)
        found.append((value.cpu(), slopes[0, place.to(device)].cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)


def to_cuda(trainee):
    """Move a trainee of the tests of the engine to the device."""
    for name in ("data", "watched", "noise", "params", "best"):
        setattr(trainee, name, getattr(trainee, name).to("cuda"))
    return trainee


@pytest.mark.parametrize("learning_rate", ["constant", "adaptive"])
def test_recorded_steps_are_the_steps(monkeypatch, learning_rate):
    def make():
        kinds = [{"n": 170}, {"n": 100, "k": 3, "learning_rate_init": 0.03}]
        return [to_cuda(make_trainee(seed=i, learning_rate=learning_rate, **kind)) for i, kind in enumerate(kinds)]

    recorded, eager = make(), make()
    replays, replay_with = [], _engine.Recording.replay_with
    monkeypatch.setattr(_engine.Recording, "replay_with", lambda self, w: (replays.append(w), replay_with(self, w)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(recorded)
    assert len(replays) >= 6
    monkeypatch.setattr(_engine.Cohort, "_recording", lambda self, window, measured: None)
    train(eager)
    for one, other in zip(eager, recorded):
        torch.testing.assert_close(what_it_learnt(one)[1], what_it_learnt(other)[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.progress.history, other.progress.history, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device_inside_an_epoch(monkeypatch):
    run_window, waits = _engine.Cohort._run_window, []

    def watch(self, window, measured):
        if self.recordings and (measured, *window.shape()) in self.recordings:  # recording itself waits
            torch.cuda.set_sync_debug_mode("error")
            waits.append(False)
        try:
            run_window(self, window, measured)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(_engine.Cohort, "_run_window", watch)
    train([to_cuda(make_trainee(n=170, max_iter=8))])
    assert len(waits) >= 4


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(map(repr, s.values())))
def test_every_piece_trains_on_the_device_and_means_the_same_on_the_processor(settings):
    X = table_for(settings.get("likelihood", Gaussian()), n_rows=80)
    batch = {} if isinstance(settings.get("solver"), MonteCarloEM) else {"batch_size": 16}
    model = vae(**{**batch, **settings}).fit(X)
    there = on_processor(model)
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(model.transform(X), there.transform(X), **close)
    np.testing.assert_allclose(
        model.inverse_transform(model.transform(X)), there.inverse_transform(there.transform(X)), **close
    )
    assert abs(model.score(X) - there.score(X)) < 2e-3
    assert model.sample(5, random_state=0).shape == (5, 4)


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(4), VampPrior(4)], ids=repr)
@pytest.mark.parametrize("method", ["elbo", "iwae", "refined", *SCORE_METHODS], ids=str)
def test_rows_score_as_on_the_processor(method, prior):
    X = table_for(Gaussian())
    model = vae(score_method=method, prior=prior).fit(X)
    tolerance = 5e-3 if "refined" in repr(method).lower() else 1e-4  # nine steps do not end at the modes of a mixture
    np.testing.assert_allclose(model.score_samples(X), on_processor(model).score_samples(X), rtol=1e-4, atol=tolerance)


def test_what_a_table_with_holes_and_categories_asks_for():
    frame = mixed_table()
    model = vae(likelihood=Mixed(), max_iter=20, batch_size=32).fit(frame)
    there = on_processor(model)
    np.testing.assert_allclose(model.transform(frame), there.transform(frame), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.score_cells(frame).sum(axis=1), model.score_samples(frame), rtol=1e-4, atol=1e-3)
    assert abs(model.score(frame) - there.score(frame)) < 0.05
    filled = model.impute(frame)
    assert not filled.isna().any().any() and (filled.dtypes == frame.dtypes).all()
    assert (filled["kind"] == there.impute(frame)["kind"]).mean() > 0.99
    drawn = model.sample(50, given={"kind": "b"}, random_state=0)
    assert (drawn["kind"] == "b").all() and list(drawn) == list(frame)
    assert len(model.multiple_impute(frame.head(20), 2, random_state=0)) == 2
    low, high = model.predictive_interval(frame, n_draws=60)
    assert (low["size"] < high["size"]).all()


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(4), VampPrior(4)], ids=repr)
def test_what_a_table_with_conditions_asks_for(prior):
    frame = mixed_table()
    model = vae(prior=prior, condition_on="kind", max_iter=20, batch_size=32).fit(frame)
    there = on_processor(model)
    np.testing.assert_allclose(model.transform(frame), there.transform(frame), rtol=1e-3, atol=1e-3)
    assert abs(model.score(frame) - there.score(frame)) < 0.05
    given = frame[["kind"]]
    drawn, other = (of.sample(20, given=given, random_state=0) for of in (model, there))
    assert (drawn["kind"].array == given["kind"].repeat(20).array).all() and (drawn.dtypes == frame.dtypes).all()
    assert abs(drawn["size"].mean() - other["size"].mean()) < 0.1
    assert not model.impute(frame).isna().any().any()
    partly = model.sample(5, given={"kind": "b", "is_odd": True}, random_state=0)
    assert partly["is_odd"].all()
    chains = model.set_params(score_method=AnnealedImportance(20, start="prior"))
    np.testing.assert_allclose(chains.score_samples(frame), on_processor(chains).score_samples(frame), rtol=1e-3, atol=1e-3)


def test_the_bracket_of_a_likelihood_closes():
    found = bracket(vae().fit(table_for(Gaussian())), 50, random_state=0)
    assert abs(found.gap[0]) < 3 * found.gap[1] + 0.1


def test_a_search_fused_on_the_device_gives_the_scores_of_the_serial_one():
    X = table_for(Gaussian(), n_rows=120)
    grid = {"n_components": [1, 2, 3], "learning_rate_init": [1e-3, 1e-2]}
    scores = []
    for scope in (contextlib.nullcontext, skvae.fused_fits):
        with scope():
            search = GridSearchCV(vae(batch_size=16), grid, cv=3, refit=False).fit(X)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)


def test_groups_that_cannot_share_a_step_take_turns_on_the_device():
    X, grid = table_for(Gaussian(), n_rows=120), {"activation": ["tanh", "relu", "gelu", "silu"], "n_components": [1, 2]}
    n_threads, scores = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        for scope in (contextlib.nullcontext(), skvae.fused_fits(max_models=4)):
            with scope, warnings.catch_warnings():
                warnings.filterwarnings("error", message="The training step was not recorded")
                search = GridSearchCV(vae(batch_size=16), grid, cv=3, refit=False, error_score="raise").fit(X)
            scores.append(search.cv_results_["mean_test_score"])
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)


def test_threads_train_on_one_device():
    X = table_for(Gaussian(), n_rows=120)

    def latents(seed):
        return vae(batch_size=16, random_state=seed).fit(X).transform(X)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The training step was not recorded")
        found = Parallel(n_jobs=6, backend="threading")(delayed(latents)(seed) for seed in range(12))
    np.testing.assert_allclose(found, [latents(seed) for seed in range(12)], rtol=1e-3, atol=1e-3)


def test_the_same_seed_gives_the_same_model():
    X = table_for(Gaussian(), n_rows=200)
    one, other = (vae(batch_size=32, max_iter=10).fit(X) for _ in range(2))
    np.testing.assert_array_equal(one.transform(X), other.transform(X))


def test_it_learns_what_the_processor_learns():
    X, enough = table_for(Gaussian(), n_rows=400, n_columns=6), {"max_iter": None, "hidden_layer_sizes": (32,)}
    here, there = vae(**enough).fit(X), vae(device="cpu", **enough).fit(X)
    assert abs(here.score(X) - there.score(X)) < 0.1


def test_training_goes_on_from_a_file_wherever_it_was(tmp_path):
    X = table_for(Gaussian(), n_rows=100)
    vae(warm_start=True).fit(X).save(tmp_path / "model.skvae")
    on = {device: skvae.load(tmp_path / "model.skvae").set_params(max_iter=12, device=device) for device in ("cpu", "cuda")}
    for model in on.values():
        model.fit(X)
        assert model.n_iter_ == 12
    assert abs(on["cpu"].score(X) - on["cuda"].score(X)) < 0.2


def test_rows_that_stay_off_the_device_come_window_by_window(monkeypatch):
    X = table_for(Gaussian(), n_rows=300)
    resident = vae(batch_size=32).fit(X)
    monkeypatch.setattr("skvae._training.room_for_data", lambda device: 0)
    np.testing.assert_allclose(vae(batch_size=32).fit(X).transform(X), resident.transform(X), rtol=1e-4, atol=1e-4)


def test_a_batch_that_does_not_fit_is_taken_in_parts():
    rng = np.random.default_rng(0)
    X = (rng.random((4096, 512)) < 0.3).astype(np.float32)
    settings = {
        "likelihood": Bernoulli(), "hidden_layer_sizes": (64,), "objective": IWAE(16), "batch_size": 4096, "max_iter": 2,
        "early_stopping": False, "init": "random",
    }  # fmt: skip
    whole = vae(**settings).fit(X)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 400e6) / total))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The training step was not recorded|The CUDA Graph is empty")
            parts = vae(**settings).fit(X)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    np.testing.assert_allclose(parts.transform(X[:50]), whole.transform(X[:50]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_less_exact_where_that_was_asked_for(precision):
    X = table_for(Gaussian(), n_rows=300)
    exact, quick = vae(max_iter=20).fit(X), vae(max_iter=20, matmul_precision=precision).fit(X)
    assert torch.get_float32_matmul_precision() == "highest"
    assert abs(exact.score(X) - quick.score(X)) < 0.2


def test_auto_takes_the_device_for_large_steps_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(_engine.Cohort, "__init__", _spy(_engine.Cohort.__init__, seen))
    X = table_for(Gaussian(), n_rows=600)
    vae(device="auto").fit(X)
    vae(device="auto", hidden_layer_sizes=(1024,), batch_size=512, max_iter=2).fit(X)
    assert seen == ["cpu", "cuda"]


def _spy(init, seen):
    def wrapped(self, trainees):
        seen.append(trainees[0].data.device.type)
        init(self, trainees)

    return wrapped


def test_scores_are_of_the_rows_whatever_is_around_them():
    X = np.random.default_rng(0).normal(size=(3000, 5))
    model = vae(max_iter=3).fit(X)
    np.testing.assert_allclose(model.score_samples(X)[:10], model.score_samples(X[:10]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.transform(X)[-10:], model.transform(X[-10:]), rtol=1e-5, atol=1e-5)


def test_batches_of_the_engine_lie_on_the_device():
    trainee = to_cuda(make_trainee())
    train([trainee])
    assert trainee.best.is_cuda and all(slot.is_cuda for slot in trainee.state.slots.values())
    assert isinstance(trainee.data, Batch) and trainee.data.x.is_cuda
