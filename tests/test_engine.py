"""The loop: recorded steps, and models that train together without touching each other."""

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SETTINGS, SmallNet, table_for
from sklearn.exceptions import ConvergenceWarning
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skvae import VAETransformer, _engine, _supply
from skvae._batch import Batch
from skvae._course import DivergenceError, Plan, Progress, Trainee
from skvae._engine import Mean, train
from skvae._model import Model, Pieces
from skvae._random import generator, normal, paired_normal
from skvae.likelihoods import Gaussian, Mixed, SelfMasking
from skvae.networks import MLP, Module, VariationalMLP
from skvae.objectives import ELBO, IWAE, InfoVAE
from skvae.optimizers import Adam
from skvae.posteriors import Normal
from skvae.priors import StandardNormal
from skvae.solvers import AEVB, MonteCarloEM, Problem, SolverState, WakeSleep

F32 = torch.float32
post_init, replay_with = SolverState.__post_init__, _engine.Recording.replay_with


def make_trainee(n=50, k=2, network=None, seed=0, x=None, decoder=None, solver=None, **plan):
    network = network or MLP((8,))
    model = Model(Pieces(network, decoder or network, Normal(), StandardNormal(), Gaussian()), 4, k, seed)
    data = Batch(normal((n, 4), generator(seed, "rows"), F32) if x is None else x)
    params = model.init(F32)
    plan = {"batch_size": 16, "max_iter": 6, "learning_rate_init": 0.01, "learning_rate": "constant", "tol": 0.0, **plan}
    plan = Plan(seed, n_iter_no_change=10**6, evaluate_every=2, **plan)
    noise = paired_normal(16, k, generator(seed, "watched"), F32)
    problem = Problem(model, ELBO(), Adam(), 0.0, float(n))
    return Trainee(problem, solver or AEVB(), plan, Progress(), data, data, noise, params, params.clone(), None)


def what_it_learnt(trainee):
    return trainee.own(trainee.best), trainee.own(trainee.state.params[trainee.row]), trainee.progress


def assert_same_course(one, other):
    assert torch.equal(what_it_learnt(one)[0], what_it_learnt(other)[0])
    assert torch.equal(what_it_learnt(one)[1], what_it_learnt(other)[1])
    assert one.progress.epoch == other.progress.epoch and one.progress.n_steps == other.progress.n_steps
    torch.testing.assert_close(one.progress.history, other.progress.history, rtol=1e-5, atol=1e-5)


def test_means_count_rows():
    mean = Mean(2, torch.device("cpu"))
    mean.add(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))
    mean.add(torch.tensor([2.0]), torch.tensor([1.0]))
    assert mean.result() == [1.25, 5.0]
    mean.reset()
    assert math.isnan(mean.result()[0])


@pytest.mark.parametrize("hidden", [(16,), (48, 16), (7,)])
def test_a_model_learns_alone_what_it_learns_in_company_to_the_last_bit(hidden):
    kinds = [
        {"n": 50, "k": 2}, {"n": 51, "k": 5, "learning_rate_init": 0.03}, {"n": 33, "k": 1, "max_iter": 3}, {"n": 90},
        {"n": 47, "k": 9}, {"n": 64, "k": 20},
    ]  # fmt: skip

    def make():
        widths = [tuple(h + 3 * i for h in hidden) for i in range(len(kinds))]
        return [make_trainee(seed=i, network=MLP(widths[i]), **kind) for i, kind in enumerate(kinds)]

    alone, together = make(), make()
    for trainee in alone:
        train([trainee])
    train(together)
    for one, other in zip(alone, together):
        assert_same_course(one, other)


def test_models_of_several_widths_share_windows_of_many_draws(monkeypatch):
    """The windows of all must have as many batches, whatever their noise takes."""
    monkeypatch.setattr(_supply, "WINDOW_CELLS", 2000)

    def make():
        trainees = [
            make_trainee(n=600, k=2, batch_size=4, max_iter=2),
            make_trainee(n=592, k=5, seed=1, batch_size=4, max_iter=2),
        ]
        for trainee in trainees:
            trainee.problem = replace(trainee.problem, objective=IWAE(3))
        return trainees

    alone, together = make(), make()
    for trainee in alone:
        train([trainee])
    train(together)
    for one, other in zip(alone, together):
        assert_same_course(one, other)


def test_what_goes_wrong_for_one_model_does_not_touch_the_others():
    def told_to_fail(progress, state):
        if progress.epoch == 3:
            raise ZeroDivisionError
        return False

    good, bad, failing = make_trainee(), make_trainee(seed=1, learning_rate_init=1e30), make_trainee(seed=2)
    failing.callbacks = [told_to_fail]
    train([good, bad, failing])
    alone = make_trainee()
    train([alone])
    assert_same_course(good, alone)
    assert good.error is None
    assert isinstance(bad.error, DivergenceError) and isinstance(failing.error, ZeroDivisionError)


def test_an_error_of_a_model_alone_is_raised():
    with pytest.raises(DivergenceError, match="learning rate had been divided by"):
        train([make_trainee(learning_rate_init=1e30)])


def test_models_leave_when_a_callback_says_so():
    stopping, going_on = make_trainee(), make_trainee(seed=1)
    stopping.callbacks = [lambda progress, state: progress.epoch == 2]
    train([stopping, going_on])
    assert (stopping.progress.epoch, going_on.progress.epoch) == (2, 6)
    assert stopping.progress.stopped and not going_on.progress.stopped


def test_a_module_of_the_user_learns_through_autograd():
    trainee = make_trainee(network=Module(SmallNet), max_iter=20)
    train([trainee])
    bounds = trainee.progress.history["lower_bound"]
    assert trainee.state.arrangement.places is None and max(bounds) > bounds[0]


REFUSED = (  # a number is looked at, made from a Python object, or decides on a shape
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default, torch.ops.aten.unique_consecutive.default, torch.ops.aten._unique2.default,
)  # fmt: skip
RESHAPED = (torch.ops.aten.unsqueeze_.default, torch.ops.aten.squeeze_.dim, torch.ops.aten.t_.default)
INDEXED = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default


class Tape(TorchDispatchMode):
    """A stand-in for CUDA graphs: notes every operation with its arguments, and can do the same again on the same memory.

    As in a graph, what is not an operation on tensors is not repeated, and to look at a number is an error.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [index for index in tree_leaves(args) if getattr(index, "dtype", None) is torch.bool]
        if func in REFUSED or (masks and func in INDEXED):
            raise RuntimeError(f"{func} needs the processor, while a device is recording")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.inference_mode():
            for func, args, kwargs, result in self.calls:
                if func in RESHAPED:  # it has been, for good
                    continue
                for one, again in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs))):
                    if isinstance(again, torch.Tensor) and again.data_ptr() != one.data_ptr():
                        one.view(again.shape).copy_(again)


def record_on_cpu(work, changed, random):
    before, random_before = [tensor.clone() for tensor in changed], random.get_state()
    work()
    with Tape() as tape:
        work()
    for tensor, kept in zip(changed, before):
        tensor.copy_(kept)
    random.set_state(random_before)
    return tape.replay


@pytest.fixture
def replayed(monkeypatch):
    """Let the processor record its steps as a device would; the windows that were replayed."""
    windows = []
    monkeypatch.setattr(_engine, "capture", record_on_cpu)
    monkeypatch.setattr(SolverState, "__post_init__", lambda self: (post_init(self), setattr(self, "stays_on_device", True)))
    monkeypatch.setattr(_engine.Recording, "replay_with", lambda self, w: (windows.append(w), replay_with(self, w)))
    return windows


@pytest.mark.parametrize("learning_rate", ["constant", "cosine"])
def test_recorded_steps_are_the_steps(request, learning_rate):
    """What CUDA graphs do on a device, as far as a CPU can show it."""

    def make():
        kinds = [{"n": 170}, {"n": 100, "k": 3, "learning_rate_init": 0.03}]
        return [make_trainee(seed=i, learning_rate=learning_rate, **kind) for i, kind in enumerate(kinds)]

    eager, recorded = make(), make()
    train(eager)
    windows = request.getfixturevalue("replayed")
    train(recorded)
    assert len(windows) >= 6, "every epoch must have replayed its windows"
    for one, other in zip(eager, recorded):
        assert_learnt_alike(one, other)


def assert_learnt_alike(one, other):
    torch.testing.assert_close(what_it_learnt(one)[1], what_it_learnt(other)[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.progress.history, other.progress.history, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("kind", [
    {"network": Module(SmallNet)},
    {"decoder": VariationalMLP((8,))},
    {"solver": WakeSleep},
    {"solver": partial(WakeSleep, 3, encoder_phase="both")},
], ids=repr)  # fmt: skip
def test_recorded_steps_by_autograd_are_the_steps(request, kind, averaging):
    """The draws of uncertain weights and of dreams among them."""
    kind = {"solver": AEVB, "n": 70, **kind}

    def make():
        return make_trainee(**{**kind, "solver": kind["solver"](averaging=averaging)})

    eager, recorded = make(), make()
    train([eager])
    windows = request.getfixturevalue("replayed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train([recorded])
    assert len(windows) == 6
    assert_learnt_alike(eager, recorded)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(map(repr, s.values())))
def test_every_piece_trains_by_steps_that_a_device_can_record(request, settings):
    def fit():
        vae = VAETransformer(2, batch_size=16, max_iter=4, hidden_layer_sizes=(8,), random_state=0, device="cpu", **settings)
        return vae.fit(X)

    if isinstance(settings.get("solver"), MonteCarloEM) or isinstance(settings.get("objective"), InfoVAE):
        pytest.skip("its steps are not a fixed sequence of work")
    X = table_for(settings.get("likelihood", Gaussian()), n_rows=80)
    eager, windows = fit(), request.getfixturevalue("replayed")
    recorded = fit()
    assert len(windows) == 4
    np.testing.assert_allclose(recorded.transform(X), eager.transform(X), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(recorded.history_["objective"], eager.history_["objective"], rtol=1e-3, atol=1e-3)


def test_dreams_with_holes_are_recorded(request):
    """Holes like those of the rows, and such as the likelihood gives."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(80, 3)), columns=list("abc"))
    X = X.mask(rng.random(X.shape) < 0.3)
    likelihood = Mixed({"a": SelfMasking(missing="high"), "b": "gaussian", "c": "student_t"})
    settings = {"batch_size": 16, "max_iter": 4, "hidden_layer_sizes": (8,), "early_stopping": False, "random_state": 0}

    def fit():
        return VAETransformer(2, likelihood=likelihood, solver="wake-sleep", device="cpu", **settings).fit(X)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        eager = fit()
        windows = request.getfixturevalue("replayed")
        recorded = fit()
    assert len(windows) == 4
    np.testing.assert_allclose(recorded.transform(X), eager.transform(X), rtol=1e-3, atol=1e-3)


def test_a_warm_up_is_not_recorded_where_its_share_is_a_number(replayed):
    trainee = make_trainee(network=Module(SmallNet))
    trainee.problem = replace(trainee.problem, objective=ELBO(warmup=3))
    train([trainee])
    assert len(replayed) == 3


def test_steps_that_cannot_be_recorded_run_call_by_call_with_one_warning(monkeypatch):
    def fail(work, changed, random):
        raise RuntimeError("no graphs here")

    eager, other = make_trainee(), make_trainee()
    train([eager])
    monkeypatch.setattr(_engine, "capture", fail)
    monkeypatch.setattr(SolverState, "__post_init__", lambda self: (post_init(self), setattr(self, "stays_on_device", True)))
    with pytest.warns(UserWarning, match="was not recorded as a CUDA graph.*no graphs here") as told:
        train([other])
    assert len(told) == 1
    torch.testing.assert_close(what_it_learnt(eager)[1], what_it_learnt(other)[1], rtol=1e-4, atol=1e-5)


def test_training_computes_in_the_precision_that_was_asked_for_and_tidies_now_and_then(monkeypatch):
    seen, tidied = [], []
    trainee = make_trainee(max_iter=64, matmul_precision="medium")  # of 4 steps each
    trainee.callbacks = [lambda progress, state: seen.append(torch.get_float32_matmul_precision())]
    monkeypatch.setattr(AEVB, "tidy", lambda self, state: tidied.append(trainee.progress.n_steps))
    train([trainee])
    assert set(seen) == {"medium"} and torch.get_float32_matmul_precision() == "highest"
    assert tidied == [4, 68, 132, 196]


def test_a_recording_keeps_alive_what_it_works_on(monkeypatch):
    trainee = make_trainee(max_iter=2)
    train([trainee])
    monkeypatch.setattr(_engine, "capture", record_on_cpu)
    cohort = _engine.Cohort([trainee])
    with torch.inference_mode():
        window = next(cohort._windows())
        recording = cohort._recording(window, False)
    kernels = list(trainee.state.kept["kernel"].values())
    assert all(any(kernel is used for used in sum(recording.uses, [])) for kernel in kernels) and kernels


@pytest.mark.parametrize(("limit", "n_in_stock"), [(2**15, 0), (2**20, 1)])
def test_epochs_are_prepared_together_where_their_windows_do_not_take_much_memory(monkeypatch, limit, n_in_stock):
    """Side by side, small tables take as much of it as the largest."""
    monkeypatch.setattr(_engine, "_AHEAD_CELLS", limit)
    trainees = [make_trainee(500), *(make_trainee(20, seed=seed) for seed in range(1, 13))]
    cohort = _engine.Cohort(_engine.assemble(trainees))
    with torch.inference_mode():
        window = next(cohort._windows())
    assert len(window.n_models) == 32 and len(cohort.stock) == n_in_stock
