"""The course of one model's training: when it is measured, when its steps shorten, when it ends."""

import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from skvae._batch import Batch, TrainingRows
from skvae._supply import Supply
from skvae.optimizers import Slots
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
    max_iter: int  # epoch at which to end at the latest
    learning_rate_init: float
    learning_rate: str  # the schedule
    tol: float  # nats per row that count as an improvement
    n_iter_no_change: int  # evaluations without one before the schedule acts
    evaluate_every: int  # epochs
    max_time: float | None = None  # seconds
    turns: tuple[int, ...] = ()  # epochs by which the adaptive schedule has shortened the steps once, twice, and so on
    matmul_precision: str = "highest"  # of products of float32 numbers, as torch names it

    def measures_after(self, epoch: int) -> bool:
        """Tell whether the bound is measured at the end of the epoch that makes this number of them."""
        return epoch % self.evaluate_every == 0 or epoch == self.max_iter

    def is_overdue(self, epoch: int, n_reductions: int) -> bool:
        """Tell whether steps have to be shortened so that the budget leaves time for short ones."""
        return n_reductions < len(self.turns) and epoch >= self.turns[n_reductions]


HISTORY = ("epoch", "objective", "lower_bound", "learning_rate")


@dataclass
class Progress:
    """Where training stands: all that is needed, beside parameters and optimizer memory, to go on as if nothing happened."""

    epoch: int = 0
    first: int = 0  # epoch at which training on the present data began
    n_steps: int = 0
    learning_rate_factor: float = 1.0
    n_reductions: int = 0
    n_rollbacks: int = 0
    n_stale: int = 0
    criterion: str = ""  # by which the values below were found
    best_value: float = -math.inf  # of the objective on the watched rows
    reference_value: float = -math.inf  # the last one that counted as an improvement
    converged: bool = False
    stopped: bool = False  # by a callback or by max_time
    history: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in HISTORY})


Callback = Callable[[Progress, SolverState], bool]


@dataclass
class Trainee:
    """One model in training: what it learns from, how it is judged, and where it stands.

    Vectors come in the layout of the model; while `train` is at work, and afterwards, they lie as `state.arrangement` says.
    """

    problem: Problem
    solver: Solver
    plan: Plan
    progress: Progress
    data: TrainingRows
    watched: Batch  # rows on which training is judged, as the model sees them
    noise: Tensor  # (s, 1, k) with which it is
    params: Tensor
    best: Tensor
    slots: Slots | None
    watched_weight: float = 1.0  # how often a watched row occurs whose weight is one
    is_judged: bool = True  # False: the mean over the training batches has to do
    callbacks: Iterable[Callback] = ()
    error: BaseException | None = None
    has_ended: bool = False  # for good or by an error: what goes wrong later is of others
    state: SolverState = field(init=False)
    row: int = field(init=False)  # of the state
    restart: "Restart" = field(init=False)
    supply: Supply = field(init=False)

    def join(self, state: SolverState, row: int) -> None:
        """Become one of the models of a state."""
        self.state, self.row = state, row

    def own(self, vector: Tensor) -> Tensor:
        """Return a vector in the layout of the model."""
        return self.state.arrangement.extract(self.row, vector)

    def result(self) -> Tensor:
        """Return the parameters that training would give if it ended here."""
        return self.solver.result(self.state, self.row)

    def learning_rate(self) -> float:
        """Return the learning rate of the present epoch."""
        return learning_rate(self.plan, self.progress, self.progress.epoch)


MEASURE, EPOCH, MEASURED_EPOCH = "measure", "epoch", "epoch whose objective is wanted"


def course(trainee: Trainee) -> Generator[str, tuple[float, float], None]:
    """Train one model until its objective has stopped rising or the budget is spent: asks for epochs and measurements.

    A measurement is answered by the objective at full strength, by which training is judged, and by the ELBO, which the history
    shows, both in nats per row of the watched rows; an epoch by the mean of the objective over its rows, twice. `trainee.best`
    receives the parameters that reached the highest. Callbacks are called after every epoch; training ends when one of them
    returns True.
    """
    plan, progress, restart = trainee.plan, trainee.progress, trainee.restart
    deadline = math.inf if plan.max_time is None else time.monotonic() + plan.max_time
    if trainee.is_judged and progress.best_value == -math.inf:
        value, bound = yield MEASURE
        if math.isfinite(value):
            if not progress.history["epoch"]:
                _record(progress, plan, value, bound)
            progress.best_value = progress.reference_value = value
            trainee.best.copy_(trainee.result())
            restart.keep(trainee)
    n_measured, n_rollbacks = 0, progress.n_rollbacks
    while progress.epoch < plan.max_iter and not progress.converged:
        measures = plan.measures_after(progress.epoch + 1)
        mean, bound = yield MEASURED_EPOCH if measures else EPOCH
        progress.epoch += 1
        if measures:
            value = mean
            if trainee.is_judged:
                value, bound = yield MEASURE
            if math.isfinite(mean) and math.isfinite(value):
                _record(progress, plan, mean, bound)
                n_measured += 1
                if _is_stale(trainee, value) or plan.is_overdue(progress.epoch, progress.n_reductions):
                    _shorten_steps(trainee)
            else:
                _roll_back(trainee)
            restart.keep(trainee)
        told_to_stop = [callback(progress, trainee.state) for callback in trainee.callbacks]  # a list: all see every epoch
        if any(told_to_stop) or time.monotonic() > deadline:
            progress.stopped = True
            break
    if progress.n_rollbacks > n_rollbacks and not n_measured:
        raise divergence(progress)


def learning_rate(plan: Plan, progress: Progress, epoch: int) -> float:
    """Return the learning rate of an epoch."""
    rate = plan.learning_rate_init * progress.learning_rate_factor
    if plan.learning_rate == "cosine":
        share = (epoch - progress.first) / (plan.max_iter - progress.first)
        rate *= 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * share))
    return rate


def _record(progress: Progress, plan: Plan, objective: float, bound: float) -> None:
    rate = learning_rate(plan, progress, max(progress.epoch - 1, 0))
    for name, value in zip(HISTORY, (progress.epoch, objective, bound, rate), strict=True):
        progress.history[name].append(value)


def _is_stale(trainee: Trainee, value: float) -> bool:
    """Keep the best parameters; tell whether they have stood for too long, which they cannot have during a warm-up."""
    progress, plan = trainee.progress, trainee.plan
    if value > progress.best_value:
        progress.best_value = value
        trainee.best.copy_(trainee.result())
    if value > progress.reference_value + plan.tol:
        progress.reference_value = value
        progress.n_stale = 0
    elif trainee.problem.objective.annealing(progress.epoch) == trainee.problem.objective.annealing(progress.epoch - 1):
        progress.n_stale += 1
    return progress.n_stale >= plan.n_iter_no_change


def _shorten_steps(trainee: Trainee) -> None:
    """Go on from the best parameters with a quarter of the step; after three times, call it converged."""
    progress, plan = trainee.progress, trainee.plan
    progress.n_stale = 0
    if plan.learning_rate == "adaptive" and progress.n_reductions < _MAX_REDUCTIONS:
        progress.n_reductions += 1
        progress.learning_rate_factor /= 4
        trainee.solver.start_over(trainee.state, trainee.row, trainee.best)
    else:
        progress.converged = plan.learning_rate != "cosine"


class Restart:
    """A copy of the training at its last measurement, where all numbers were finite: from there it can go on, to the last bit.

    The copy is replaced in one assignment, so an interruption at any moment finds it whole.
    """

    def __init__(self, trainee: Trainee):
        self.keep(trainee)

    def keep(self, trainee: Trainee) -> None:
        """Make this moment the one to return to."""
        history = {k: list(v) for k, v in trainee.progress.history.items()}
        params, _, slots = trainee.state.member(trainee.row)
        slots = {k: v.clone() for k, v in slots.items()}
        self.kept = (params.clone(), slots, trainee.best.clone(), replace(trainee.progress, history=history))

    def restore(self, trainee: Trainee) -> None:
        """Write the parameters and the optimizer's memory of that moment into the state."""
        kept_params, kept_slots, _, _ = self.kept
        params, _, slots = trainee.state.member(trainee.row)
        params.copy_(kept_params)
        for k, v in kept_slots.items():
            slots[k].copy_(v)


def divergence(progress: Progress) -> DivergenceError:
    """Return the error that says what happened and what to do."""
    tried = f", also after the learning rate had been divided by {2**progress.n_rollbacks}" if progress.n_rollbacks > 1 else ""
    return DivergenceError(
        f"Training gave non-finite values in epoch {progress.epoch}{tried}. Use a smaller learning_rate_init, and look for "
        "extreme values in the data."
    )


def _roll_back(trainee: Trainee) -> None:
    """Return to the last finite state and halve the steps; give up after a few times."""
    progress = trainee.progress
    if progress.n_rollbacks == _MAX_ROLLBACKS:
        raise divergence(progress)
    trainee.restart.restore(trainee)
    progress.n_rollbacks += 1
    progress.learning_rate_factor *= 0.5
