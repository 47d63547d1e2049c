"""The training loop, written once, and everything that knows devices and threads."""

import ctypes
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from skvae._batch import Batch, minibatches
from skvae._model import Model, Params
from skvae._random import generator, normal
from skvae.objectives import ELBO, kl_per_component
from skvae.solvers import Problem, Solver, SolverState

_TILE_ROWS = 128  # rows per call of a network at inference
_TILE_DRAWS = 1024  # row-samples per call when latents are drawn, where that makes whole vectors
_VECTOR_ROWS = 64  # rows, of which every tile has a multiple: torch rounds the rest that fills no vector in another way
_MAX_TILE_CELLS = 8_000_000  # cells per call, beyond which rows go one by one: alone, a row has no place to depend on
_PARALLEL_FLOPS = 1e8  # work per call below which a second thread costs more than it brings
_MAX_ROLLBACKS = 3
_MAX_REDUCTIONS = 3  # of the learning rate, each to a quarter


class DivergenceError(ValueError):
    """Training left the finite numbers and could not be brought back by smaller steps."""


# --- devices and threads ---------------------------------------------------------------------------------------------


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that a `device` parameter names; "auto" is CUDA when there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.empty(0, device=device)
        probe.cpu()  # fails on "meta", which has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}). Use 'auto' or 'cpu'."
        ) from error
    return probe.device


@contextmanager
def gradients() -> Iterator[None]:
    """Allow gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """Let small work run on one thread, and leave larger work, on the main thread, what the process has.

    Two threads that wait for each other on busy cores are ten to fifty times slower than one. The limit holds for this thread
    alone and ends with the scope.
    """
    if flops >= _PARALLEL_FLOPS and threading.current_thread() is threading.main_thread():
        yield
        return
    set_mkl_threads = _mkl_set_num_threads_local()
    before = set_mkl_threads(1)
    try:
        with _threadpools().limit(limits=1, user_api="openmp"):
            yield
    finally:
        set_mkl_threads(before)


@cache
def _threadpools() -> ThreadpoolController:
    """Return the handle of the thread pools, which takes milliseconds to make."""
    return ThreadpoolController()


@cache
def _mkl_set_num_threads_local() -> Callable[[int], int]:
    """Return MKL's function that sets the threads of the calling thread and returns their number before.

    Once somebody has called `torch.set_num_threads`, the MKL inside torch no longer heeds OpenMP's number.
    """
    try:
        return ctypes.CDLL(torch._C.__file__).MKL_Set_Num_Threads_Local
    except (AttributeError, OSError):  # a torch with another BLAS
        return lambda n: 0


# --- inference -------------------------------------------------------------------------------------------------------


def map_rows(function: Callable[[Batch], Tensor], data: Batch, tile: int) -> Tensor:
    """Apply `function`, which gives one result per row, to tiles of `tile` rows, the last one padded.

    Every call has the same shape, so a row's result does not depend, to the last bit, on the rows around it.
    """
    results = []
    with torch.inference_mode():
        for start in range(0, len(data), tile):
            part = data.slice(start, start + tile)
            n = len(part)
            results.append(function(part if n == tile else part.pad(tile - n))[:n])
        return torch.cat(results)


RowValues = Callable[[Model, Params, Batch, Tensor], Tensor]


def value_of_rows(model: Model, params: Params, data: Batch, function: RowValues, noise: Tensor) -> Tensor:
    """Return an objective or its bound for every row, with noise (s, 1, k) common to all rows.  # (n,)"""
    tile = _VECTOR_ROWS * max(1, _TILE_DRAWS // (len(noise) * _VECTOR_ROWS))
    if tile * len(noise) * model.n_columns > _MAX_TILE_CELLS:
        tile = 1
    with threads_for(2.0 * model.layout.size * tile * len(noise)):
        return map_rows(lambda batch: function(model, params, batch, noise), data, tile)


def true_elbo(model: Model) -> ELBO:
    """Return the bound by which training is judged: beta = 1, with the closed-form KL where there is one."""
    return ELBO(kl="analytic" if model.has_closed_kl else "monte_carlo")


def kl_of_rows(model: Model, params: Params, data: Batch, noise: Tensor) -> Tensor:
    """Return KL(q(z|x) || p(z)) of every row, per component, in nats.  # (n, k)"""
    how = true_elbo(model).kl

    def kl(batch: Batch) -> Tensor:
        q = model.encode(params, batch)
        return kl_per_component(model, params, q, model.posterior.sample(q, noise), how)

    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(kl, data, _TILE_ROWS)


def encode_rows(model: Model, params: Params, data: Batch) -> Tensor:
    """Return the encoder's output for every row.  # (n, n_outputs)"""
    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(lambda batch: model.encode(params, batch), data, _TILE_ROWS)


def decode_rows(model: Model, params: Params, z: Tensor) -> Tensor:
    """Return the mean of p(x|z) for every row of z.  # (n, d)"""

    def mean(batch: Batch) -> Tensor:
        return model.likelihood.mean(params["likelihood"], model.decode(params, batch.x))

    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(mean, Batch(z), _TILE_ROWS)


def weighted_mean(values: Tensor, weight: Tensor | None) -> float:
    """Return the mean over rows, in float64."""
    values = values.double()
    return float(values.mean() if weight is None else (values * weight).sum() / weight.double().sum())


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How long, how fast and in which order to train."""

    seed: int
    batch_size: int
    max_iter: int  # epochs in all
    learning_rate_init: float
    learning_rate: str  # the schedule
    tol: float  # nats per row that count as an improvement
    n_iter_no_change: int  # evaluations without one before the schedule acts
    evaluate_every: int  # epochs
    max_time: float | None = None  # seconds


HISTORY = ("epoch", "objective", "lower_bound", "learning_rate")


@dataclass
class Progress:
    """Where training stands: all that is needed, beside parameters and optimizer memory, to go on as if nothing happened."""

    epoch: int = 0
    n_steps: int = 0
    learning_rate_factor: float = 1.0
    n_reductions: int = 0
    n_rollbacks: int = 0
    n_stale: int = 0
    best_value: float = -math.inf  # of the objective on the watched rows
    reference_value: float = -math.inf  # the last one that counted as an improvement
    converged: bool = False
    stopped: bool = False  # by a callback or by max_time
    history: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in HISTORY})


Evaluate = Callable[[Tensor], tuple[float, float]]
Callback = Callable[[Progress, SolverState], bool]


def train(
    problem: Problem,
    solver: Solver,
    state: SolverState,
    data: Batch,
    plan: Plan,
    progress: Progress,
    best: Tensor,
    evaluate: Evaluate | None,
    callbacks: Iterable[Callback],
    restart: "Restart",
) -> None:
    """Run epochs until the objective has stopped rising or the budget is spent; `state`, `progress` and `best` change in place.

    `evaluate` gives, for a parameter vector, the objective at full strength by which training is judged and the ELBO that the
    history shows, in nats per row of the watched rows (None: the training mean serves as both); `best` receives the parameters
    that reached the highest. Callbacks are called after every epoch; training ends when one of them returns True. `restart`
    always holds the last point from which training can go on.
    """
    deadline = math.inf if plan.max_time is None else time.monotonic() + plan.max_time
    if evaluate is not None and not progress.history["epoch"]:
        value, bound = evaluate(solver.result(state))
        _record(progress, plan, value, bound)
        progress.best_value = progress.reference_value = value
        restart.keep(state, best, progress)
    total, n_epochs, n_measured = 0.0, 0, 0
    while progress.epoch < plan.max_iter and not progress.converged:
        total += run_epoch(problem, solver, state, data, plan, progress)
        n_epochs += 1
        progress.epoch += 1
        if progress.epoch % plan.evaluate_every == 0 or progress.epoch == plan.max_iter:
            mean = total / n_epochs
            value, bound = (mean, mean) if evaluate is None else evaluate(solver.result(state))
            if math.isfinite(total) and math.isfinite(value):
                _record(progress, plan, mean, bound)
                n_measured += 1
                if _is_stale(progress, plan, solver.result(state), best, value):
                    _shorten_steps(progress, plan, problem, solver, state, best)
            else:
                _roll_back(progress, restart, state)
            restart.keep(state, best, progress)
            total, n_epochs = 0.0, 0
        told_to_stop = [callback(progress, state) for callback in callbacks]  # a list: every callback sees every epoch
        if any(told_to_stop) or time.monotonic() > deadline:
            progress.stopped = True
            break
    if progress.n_rollbacks and not n_measured:
        raise divergence(progress)


def run_epoch(problem: Problem, solver: Solver, state: SolverState, data: Batch, plan: Plan, progress: Progress) -> float:
    """Take one pass over the data; return the mean of the objective over its rows, in nats."""
    rate = _learning_rate(plan, progress, progress.epoch)
    annealing = problem.objective.annealing(progress.epoch)
    order = generator(plan.seed, "order", progress.epoch, device=data.x.device)
    total: Tensor | float = 0.0
    for i, batch in enumerate(minibatches(data, plan.batch_size, order)):
        stream = generator(plan.seed, "noise", progress.epoch, i, device=data.x.device)
        noise = normal((problem.objective.n_samples, len(batch), problem.model.n_components), stream, data.x.dtype)
        total = total + solver.step(problem, state, batch, noise, rate, annealing)
        progress.n_steps += 1
    return float(total) / len(data)


def _learning_rate(plan: Plan, progress: Progress, epoch: int) -> float:
    rate = plan.learning_rate_init * progress.learning_rate_factor
    if plan.learning_rate == "cosine":
        rate *= 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * epoch / plan.max_iter))
    return rate


def _record(progress: Progress, plan: Plan, objective: float, bound: float) -> None:
    rate = _learning_rate(plan, progress, max(progress.epoch - 1, 0))
    for name, value in zip(HISTORY, (progress.epoch, objective, bound, rate), strict=True):
        progress.history[name].append(value)


def _is_stale(progress: Progress, plan: Plan, result: Tensor, best: Tensor, value: float) -> bool:
    """Keep the best parameters; tell whether they have stood for too long."""
    if value > progress.best_value:
        progress.best_value = value
        best.copy_(result)
    if value > progress.reference_value + plan.tol:
        progress.reference_value = value
        progress.n_stale = 0
    else:
        progress.n_stale += 1
    return progress.n_stale >= plan.n_iter_no_change


def _shorten_steps(progress: Progress, plan: Plan, problem: Problem, solver: Solver, state: SolverState, best: Tensor) -> None:
    """Go on from the best parameters with a quarter of the step; after three times, call it converged."""
    progress.n_stale = 0
    if plan.learning_rate == "adaptive" and progress.n_reductions < _MAX_REDUCTIONS:
        progress.n_reductions += 1
        progress.learning_rate_factor /= 4
        solver.start_over(problem, state, best)
    else:
        progress.converged = plan.learning_rate != "cosine"


class Restart:
    """A copy of the training at its last measurement, where all numbers were finite: from there it can go on, to the last bit.

    The copy is replaced in one assignment, so an interruption at any moment finds it whole.
    """

    def __init__(self, state: SolverState, best: Tensor, progress: Progress):
        self.keep(state, best, progress)

    def keep(self, state: SolverState, best: Tensor, progress: Progress) -> None:
        """Make this moment the one to return to."""
        history = {k: list(v) for k, v in progress.history.items()}
        slots = {k: v.clone() for k, v in state.slots.items()}
        self.kept = (state.params.clone(), slots, best.clone(), replace(progress, history=history))

    def restore(self, state: SolverState) -> None:
        """Write the parameters and the optimizer's memory of that moment into `state`."""
        params, slots, _, _ = self.kept
        state.params.copy_(params)
        for k, v in slots.items():
            state.slots[k].copy_(v)


def divergence(progress: Progress) -> DivergenceError:
    """Return the error that says what happened and what to do."""
    tried = f", also after the learning rate had been divided by {2**progress.n_rollbacks}" if progress.n_rollbacks > 1 else ""
    return DivergenceError(
        f"Training gave non-finite values in epoch {progress.epoch}{tried}. Use a smaller learning_rate_init, and look for "
        "extreme values in the data."
    )


def _roll_back(progress: Progress, restart: Restart, state: SolverState) -> None:
    """Return to the last finite state and halve the steps; give up after a few times."""
    if progress.n_rollbacks == _MAX_ROLLBACKS:
        raise divergence(progress)
    restart.restore(state)
    progress.n_rollbacks += 1
    progress.learning_rate_factor *= 0.5
