"""The training loop, written once: the course of one model's training, and the epochs that several models take together."""

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from statistics import fmean

import torch
from torch import Tensor

from skvae import _kernels as kernels
from skvae._batch import Batch, Rows
from skvae._devices import capture, matmul_precision, threads_for
from skvae._inference import value_of_rows, weighted_mean
from skvae._model import Model, Params, nested
from skvae._random import generator, normal, restart
from skvae._settings import belongs_with
from skvae._supply import Supply
from skvae._windows import BatchesOfOne, Window, become, copy_of, one_after_the_other, side_by_side
from skvae.objectives import ELBO, Objective
from skvae.optimizers import Slots
from skvae.solvers import Problem, Solver, SolverState

_MAX_ROLLBACKS = 3
_MAX_REDUCTIONS = 3  # of the learning rate, each to a quarter
_AHEAD_CELLS = 2**22  # of epochs that are prepared together, for all models
_MEASURED_CELLS = 2**20  # numbers per call when the bound is measured
_MEASURED_EVERY = 8  # batches, of which one tells the history about the objective
_TIDY_STEPS = 64
_WEIGHT_DRAWS = 4  # of uncertain weights, by which training is judged
_COMPARED_ROWS = 1024  # on which objectives are judged that compare rows with each other, in pairs,
_COMPARED_DRAWS = 2  # of each


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
    matmul_precision: str = "highest"  # of products of float32 numbers, as torch names it

    def measures_after(self, epoch: int) -> bool:
        """Tell whether the bound is measured at the end of the epoch that makes this number of them."""
        return epoch % self.evaluate_every == 0 or epoch == self.max_iter


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
    data: Rows
    watched: Batch  # rows on which training is judged, as the model sees them
    noise: Tensor  # (s, 1, k) with which it is
    params: Tensor
    best: Tensor
    slots: Slots | None
    watched_weight: float = 1.0  # how often a watched row occurs whose weight is one
    is_judged: bool = True  # False: the mean over the training batches has to do
    callbacks: Iterable[Callback] = ()
    error: BaseException | None = None
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


# --- the course of one model -----------------------------------------------------------------------------------------

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
        if not progress.history["epoch"]:
            _record(progress, plan, value, bound)
        progress.best_value = progress.reference_value = value
        trainee.best.copy_(trainee.result())
        restart.keep(trainee)
    n_measured = 0
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
                if _is_stale(trainee, value):
                    _shorten_steps(trainee)
            else:
                _roll_back(trainee)
            restart.keep(trainee)
        told_to_stop = [callback(progress, trainee.state) for callback in trainee.callbacks]  # a list: all see every epoch
        if any(told_to_stop) or time.monotonic() > deadline:
            progress.stopped = True
            break
    if progress.n_rollbacks and not n_measured:
        raise divergence(progress)


def learning_rate(plan: Plan, progress: Progress, epoch: int) -> float:
    """Return the learning rate of an epoch."""
    rate = plan.learning_rate_init * progress.learning_rate_factor
    if plan.learning_rate == "cosine":
        rate *= 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * epoch / plan.max_iter))
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


# --- several models together -----------------------------------------------------------------------------------------


def train(trainees: Sequence[Trainee]) -> None:
    """Train models of one structure together, each on a course of its own; alone is a company of one.

    Progress, best parameters and state of each change in place. What goes wrong for one model is its `error`, and does not
    touch the others; alone it is raised.
    """
    with threads_for(work_of_step(trainees)), matmul_precision(trainees[0].plan.matmul_precision):
        cohort = Cohort(assemble(trainees))
        courses = {id(trainee): course(trainee) for trainee in trainees}
        wishes: dict[int, str] = {}

        def go_on(trainee, answer):
            try:
                wishes[id(trainee)] = courses[id(trainee)].send(answer)
            except StopIteration:
                cohort.leave(trainee)
            except Exception as error:
                if len(trainees) == 1:
                    raise
                trainee.error = error
                cohort.leave(trainee)

        for trainee in list(cohort.trainees):
            go_on(trainee, None)
        while cohort.trainees:
            measured = [trainee for trainee in cohort.trainees if wishes[id(trainee)] == MEASURE]
            if measured:
                answers = cohort.measure(measured)
            else:
                measured = list(cohort.trainees)
                means = cohort.run_epoch(any(wishes[id(trainee)] == MEASURED_EPOCH for trainee in measured))
                answers = [(mean, mean) for mean in means]
            for trainee, answer in zip(measured, answers, strict=True):
                go_on(trainee, answer)


def work_of_step(trainees: Sequence[Trainee]) -> float:
    """Return the floating point operations of one step."""
    return sum(flops_of_step(t.problem.model, t.solver.n_draws(t.problem.objective), t.plan.batch_size) for t in trainees)


def flops_of_step(model: Model, n_draws: int, batch_size: int) -> float:
    """Return about how many floating point operations a step of one model is."""
    return 6.0 * model.n_products * batch_size * n_draws


def assemble(trainees: Sequence[Trainee]) -> list[Trainee]:
    """Put the models into one state, those with the most batches first, so that the ones in a step are always the first."""
    solver = trainees[0].solver
    for t in trainees:
        n_draws = solver.n_draws(t.problem.objective)
        t.supply = Supply(t.problem.model, t.data, t.plan.seed, t.plan.batch_size, n_draws, once=not t.is_judged)
    trainees = sorted(trainees, key=lambda t: -len(t.supply.sizes))
    problems = [trainee.problem for trainee in trainees]
    arrangement = solver.arrange(problems)
    place = arrangement.place
    params = [place(i, t.params) for i, t in enumerate(trainees)]
    slots = [t.slots and {name: place(i, slot) for name, slot in t.slots.items()} for i, t in enumerate(trainees)]
    state = solver.init(problems, arrangement, params, slots)
    for i, trainee in enumerate(trainees):
        trainee.join(state, i)
        trainee.best = place(i, trainee.best)
        trainee.restart = Restart(trainee)
    return trainees


class Cohort:
    """Models in training together, in the rows of one solver state."""

    def __init__(self, trainees: list[Trainee]):
        self.trainees, self.state = trainees, trainees[0].state
        self.solver = trainees[0].solver
        self._begin()

    def _begin(self) -> None:
        """Prepare what belongs to the present state."""
        self.judges: dict = {}
        self.recordings: dict = {}
        self.kept: dict = {}  # what windows of the same sizes use again
        self.stock: list[Window] = []  # of the epochs to come
        self.mean = Mean(len(self.trainees), self.state.params.device)
        self.records = self.state.stays_on_device and self.solver.can_be_recorded(self.state)

    def leave(self, trainee: Trainee) -> None:
        """Let a model go, whose training has ended."""
        self.trainees = [other for other in self.trainees if other is not trainee]

    def _close_ranks(self) -> None:
        """Copy the remaining models into a state of their own, if some have left."""
        if len(self.trainees) < len(self.state.problems):
            self.state = self.state.only([trainee.row for trainee in self.trainees])
            for i, trainee in enumerate(self.trainees):
                trainee.join(self.state, i)
            self._begin()

    def run_epoch(self, measured: bool) -> list[float]:
        """Take every model over its data once; return the mean of each objective over its rows, in nats, if `measured`.

        The mean is over every eighth batch of a window, as the value of the objective costs extra, less what the weights cost
        in the end.
        """
        self._close_ranks()
        trainees, state = self.trainees, self.state
        state.begin_epoch(
            [t.learning_rate() for t in trainees], [t.problem.objective.annealing(t.progress.epoch) for t in trainees]
        )
        self.mean.reset()
        n_batches = 0
        with torch.inference_mode(self._is_by_hand()):
            for window in self._windows():
                self._run_window(window, measured)
                n_taken = len(window.counts)
                if n_batches // _TIDY_STEPS < (n_batches + n_taken) // _TIDY_STEPS:
                    self.solver.tidy(state)
                n_batches += n_taken
            if trainees[0].progress.epoch % max(1, _TIDY_STEPS // n_batches) == 0:
                self.solver.tidy(state)
        if not measured:
            return [math.nan] * len(trainees)
        return [mean - kl - penalty for mean, (kl, penalty) in zip(self.mean.result(), self._costs(trainees), strict=True)]

    def _costs(self, trainees: list[Trainee]) -> list[tuple[float, float]]:
        """Return the KL of the weights of each model, and what a prior on them takes off its objective, in nats per row."""
        with torch.inference_mode():
            return [
                (
                    kl_of_weights(t.problem.model, t.own(t.result()), t.problem.total_weight),
                    self.solver.penalty(self.state, t.row, t.result()),
                )
                for t in trainees
            ]

    def _is_by_hand(self) -> bool:
        """Tell whether the closed forms of many models lie side by side, or one model goes by autograd."""
        return self.state.arrangement.places is not None

    def _windows(self) -> Iterator[Window | BatchesOfOne]:
        """Yield the batches of the present epoch."""
        for t in self.trainees:
            t.progress.n_steps += len(t.supply.sizes)
        if not self._is_by_hand():
            return self._windows_of_one()
        if not self.stock:
            room = _AHEAD_CELLS // self._cells_of_epoch()
            left = [(t.supply.n_ahead(t.progress.epoch), t.plan.max_iter - t.progress.epoch) for t in self.trainees]
            n_epochs = min(room, *map(min, left))
            if n_epochs < 2:
                return self._windows_side_by_side()
            self.stock = self._ahead(n_epochs)
        return iter([self.stock.pop(0)])

    def _cells_of_epoch(self) -> int:
        """Return how many numbers the batches of an epoch are, side by side and as wide as the largest."""
        n_batches = max(len(t.supply.sizes) for t in self.trainees)
        n_rows = max(max(t.supply.sizes) for t in self.trainees)
        n_draws, n_columns = self.trainees[0].supply.n_draws, self.trainees[0].data.n_columns
        return len(self.trainees) * n_batches * n_rows * (n_columns + n_draws * self.state.arrangement.wide.n_components)

    def _windows_of_one(self) -> Iterator[BatchesOfOne]:
        """Yield the batches of the only model, and let the solver draw from a stream that belongs to them."""
        (only,) = self.trainees
        for number, part in enumerate(only.supply.parts(only.progress.epoch)):
            restart(self.state.stream, only.plan.seed, "steps", only.progress.epoch, number)
            yield one_after_the_other(*part, self.kept)

    def _windows_side_by_side(self) -> Iterator[Window]:
        for parts in zip_longest(*(t.supply.parts(t.progress.epoch) for t in self.trainees)):
            yield self._side_by_side([part for part in parts if part is not None])

    def _ahead(self, n_epochs: int) -> list[Window]:
        """Return the batches of some epochs, in which models with fewer batches than others have empty ones at the end."""
        n_batches = max(len(t.supply.sizes) for t in self.trainees)
        parts = []
        for t in self.trainees:
            rows, _, noise = t.supply.ahead(t.progress.epoch, n_epochs)
            sizes = t.supply.sizes + [0] * (n_batches - len(t.supply.sizes))
            parts.append((rows, sizes * n_epochs, noise))
        return list(self._side_by_side(parts).split(n_batches))

    def _side_by_side(self, parts: Sequence[tuple[Batch, list[int], Tensor]]) -> Window:
        return side_by_side(parts, self.state.arrangement.wide.n_components, self.kept)

    def _run_window(self, window: Window | BatchesOfOne, measured: bool) -> None:
        """Take the steps of a window, as a recording where that is possible.

        Autograd takes the share of the KL as a number, which would be that of the recording for ever.
        """
        if self.records and (self._is_by_hand() or self.state.annealing == [1.0]):
            recording = self._recording(window, measured)
            if recording is not None:
                recording.replay_with(window)
                return
        self._take_steps(window, measured)

    def _recording(self, window: Window | BatchesOfOne, measured: bool) -> "Recording | None":
        """Return the recorded steps of windows of this shape; None, with a warning, where they cannot be recorded."""
        key = (measured, *window.shape())
        if key not in self.recordings:
            changed = [self.state.params, self.state.grad, *self.state.slots.values(), self.mean.total, self.mean.count]
            try:
                recording = Recording(copy_of(window), lambda own: self._take_steps(own, measured), changed, self.state.stream)
                recording.uses = [list(kept.values()) for kept in self.state.kept.values()]
                self.recordings[key] = recording
            except RuntimeError as error:
                self.records = False
                warnings.warn(
                    f"The training step was not recorded as a CUDA graph, so it runs call by call: {error}", stacklevel=2
                )
                return None
        return self.recordings[key]

    def _take_steps(self, window: Window | BatchesOfOne, measured: bool) -> None:
        for j, (batch, noise, count) in enumerate(window.batches()):
            looks = measured and j % _MEASURED_EVERY == 0
            value = self.solver.step(self.state, batch, noise, looks)
            if looks and value is not None:
                self.mean.add(value, count)

    def measure(self, trainees: list[Trainee]) -> list[tuple[float, float]]:
        """Return objective and ELBO on the watched rows, at full strength and with noise common to rows and epochs.

        What the weights cost is taken off, as in training: by a prior from the objective, by their KL from both.
        """
        found = zip(self._judged(trainees), self._costs(trainees), strict=True)
        return [(value - kl - penalty, bound - kl) for (value, bound), (kl, penalty) in found]

    def _judged(self, trainees: list[Trainee]) -> list[tuple[float, float]]:
        if self.state.arrangement.places is None:
            return [judged_alone(trainee) for trainee in trainees]
        found: dict[int, tuple[float, float]] = {}
        for _, group in groupby(sorted(trainees, key=lambda t: len(t.noise)), lambda t: len(t.noise)):
            chosen = list(group)
            key = tuple(trainee.row for trainee in chosen)
            if key not in self.judges:
                self.judges[key] = Judge(chosen, self.state)
            values, bounds = self.judges[key].measure(chosen)
            found.update({id(t): pair for t, pair in zip(chosen, zip(values, bounds))})
        return [found[id(trainee)] for trainee in trainees]


class Recording:
    """Steps over a window, recorded on the device: other windows of the same shape replay them.

    `uses` keeps alive what the steps work on, because the device knows only its address.
    """

    uses: list

    def __init__(self, window, take_steps: Callable[..., None], changed: list[Tensor], random: torch.Generator):
        self.window = window
        self.replay = capture(lambda: take_steps(window), changed, random)

    def replay_with(self, window: Window | BatchesOfOne) -> None:
        """Take the recorded steps over the numbers of another window."""
        become(self.window, window)
        self.replay()


class Mean:
    """Running means over rows, one per model, without waiting for the device."""

    def __init__(self, m: int, device: torch.device):
        self.total, self.count = (torch.zeros(m, dtype=torch.float64, device=device) for _ in range(2))

    def reset(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.count.zero_()

    def add(self, values: Tensor, counts: Tensor) -> None:
        """Count means over so many rows, for the first models."""
        self.total[: len(counts)] += values * counts
        self.count[: len(counts)] += counts

    def result(self) -> list[float]:
        """Return the means; nan where nothing was counted."""
        return (self.total / self.count).tolist()


# --- measurements ----------------------------------------------------------------------------------------------------


def judged_alone(trainee: Trainee) -> tuple[float, float]:
    """Return objective and ELBO of one model on its watched rows."""
    problem, rows = trainee.problem, trainee.watched
    model, objective = problem.model, trainee.solver.judge(problem.objective)
    params = model.unpack(trainee.own(trainee.result()))

    def mean_of(mean: Callable[[Params], float]) -> float:
        return fmean(mean(drawn) for drawn in model.draws(params, _WEIGHT_DRAWS, "judge"))

    def mean_over_rows(function) -> float:
        return mean_of(lambda drawn: weighted_mean(value_of_rows(model, drawn, rows, function, trainee.noise), rows.weight))

    bound = mean_over_rows(ELBO().bound)
    if is_elbo(objective):
        return bound, bound
    if objective.is_rowwise:
        return mean_over_rows(objective), bound
    few = rows.head(_COMPARED_ROWS)
    weight = few.x.new_ones(len(few)) if few.weight is None else few.weight
    repeated = replace(few, weight=weight * trainee.watched_weight)
    stream = generator(model.seed, "compared", device=few.device)
    noise = normal((_COMPARED_DRAWS, len(few), model.n_noise), stream, few.dtype)  # not common to rows
    with torch.inference_mode():
        return mean_of(lambda drawn: weighted_mean(objective(model, drawn, repeated, noise), few.weight)), bound


def kl_of_weights(model: Model, flat: Tensor, total_weight: float) -> float:
    """Return the KL of uncertain weights to their prior, in nats per row."""
    return float(model.kl_of_weights(model.unpack(flat))) / total_weight if model.decoder.is_uncertain else 0.0


def is_elbo(objective: Objective) -> bool:
    """Tell whether an objective at full strength is the bound itself."""
    if not isinstance(objective, ELBO) or not objective.is_bound:
        return False
    return all(belongs_with(objective, "is_bound", name) for name in ("__call__", "bound"))


class Judge:
    """Measures several models at once by the closed forms, on the watched rows of each."""

    def __init__(self, trainees: list[Trainee], state: SolverState):
        self.problems = [trainee.problem for trainee in trainees]
        wide, layout, like = state.arrangement.wide, state.arrangement.layout, state.params
        n = max(len(t.watched) for t in trainees)
        self.tile = self._rows_per_call(wide, n, len(trainees) * len(trainees[0].noise))
        n += -n % self.tile
        self.x = like.new_zeros((len(trainees), n, wide.n_columns))
        self.weight = like.new_zeros((len(trainees), n), dtype=torch.float64)
        self.noise = like.new_zeros((len(trainees), len(trainees[0].noise), 1, wide.n_components))
        for i, t in enumerate(trainees):
            self.x[i, : len(t.watched)] = t.watched.x
            self.weight[i, : len(t.watched)] = 1.0 if t.watched.weight is None else t.watched.weight
            self.noise[i, ..., : t.noise.shape[-1]] = t.noise
        self.params = torch.zeros_like(like[: len(trainees)])
        self.kernel = kernels.Kernel(wide, nested(layout.views(self.params)), None, self.tile, len(trainees[0].noise))
        betas = [getattr(problem.objective, "beta", 1.0) for problem in self.problems]
        self.kl_weight = torch.tensor(betas, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    @staticmethod
    def _rows_per_call(wide, n, n_draws):
        widths = (*wide.encoder.widths(), *wide.decoder.widths(), wide.n_columns)
        n_calls = math.ceil(n * n_draws * max(widths) / _MEASURED_CELLS)
        return kernels.padded_rows(math.ceil(n / n_calls))

    def measure(self, trainees: list[Trainee]) -> tuple[list[float], list[float]]:
        """Return objectives and ELBOs."""
        objective, judged_by_bound = self.problems[0].objective, all(is_elbo(problem.objective) for problem in self.problems)
        values, bounds = [], []
        with torch.inference_mode():
            torch.stack([trainee.result() for trainee in trainees], out=self.params)
            for x in self.x.split(self.tile, 1):
                self.kernel.forward(x, self.noise)
                log_px = self.kernel.log_px(x, is_last=True)
                bounds.append(self.kernel.bound(ELBO(), log_px, self.noise, torch.ones_like(self.kl_weight)))
                if not judged_by_bound:
                    values.append(self.kernel.bound(objective, log_px, self.noise, self.kl_weight))
            means = self._means(bounds)
            return (means if judged_by_bound else self._means(values)), means

    def _means(self, parts: list[Tensor]) -> list[float]:
        rows = torch.cat(parts, 1).double()
        return ((rows * self.weight).sum(1) / self.weight.sum(1)).tolist()
