"""The training loop, written once."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from skvae._batch import Rows
from skvae._random import generator, normal
from skvae.solvers import Problem, Solver, SolverState

_MAX_ROLLBACKS = 3
_MAX_REDUCTIONS = 3  # of the learning rate, each to a quarter


class DivergenceError(ValueError):
    """Training left the finite numbers and could not be brought back by smaller steps."""


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
    data: Rows,
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


def run_epoch(problem: Problem, solver: Solver, state: SolverState, data: Rows, plan: Plan, progress: Progress) -> float:
    """Take one pass over the data; return the mean of the objective over its rows, in nats."""
    rate = _learning_rate(plan, progress, progress.epoch)
    annealing = problem.objective.annealing(progress.epoch)
    order = generator(plan.seed, "order", progress.epoch, device=data.device)
    total: Tensor | float = 0.0
    for rows, sizes in data.epoch(plan.batch_size, order, 64):
        start = 0
        for size in sizes:
            batch, start = rows.slice(start, start + size), start + size
            stream = generator(plan.seed, "noise", progress.epoch, progress.n_steps, device=data.device)
            noise = normal((problem.objective.n_samples, size, problem.model.n_components), stream, data.dtype)
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
