"""The training loop, written once: the epochs that several models take together, each on a course of its own."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, zip_longest

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._course import MEASURE, MEASURED_EPOCH, Restart, Trainee, course
from skvae._devices import capture, matmul_precision, threads_for
from skvae._judging import Judge, judged_alone, kl_of_weights
from skvae._model import Model
from skvae._random import restart
from skvae._supply import Supply
from skvae._warnings import warn
from skvae._windows import BatchesOfOne, Window, become, copy_of, one_after_the_other, side_by_side

_AHEAD_CELLS = 2**22  # of epochs that are prepared together, for all models
_MEASURED_EVERY = 8  # batches, of which one tells the history about the objective
_TIDY_STEPS = 64


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
        self.left: list[Trainee] = []  # whose training has ended in this state
        self.mean = Mean(len(self.trainees), self.state.params.device)
        self.records = self.state.stays_on_device and self.solver.can_be_recorded(self.state)

    def leave(self, trainee: Trainee) -> None:
        """Let a model go, whose training has ended."""
        trainee.has_ended = True
        self.trainees = [other for other in self.trainees if other is not trainee]
        self.left.append(trainee)
        if not self.trainees:
            self.state.kept.clear()

    def _close_ranks(self) -> None:
        """Copy the remaining models into a state of their own, if some have left, and so those, who would hold the old one."""
        if self.left:
            for trainee in self.left:
                trainee.join(self.state.only([trainee.row]), 0)
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
                warn(f"The training step was not recorded as a CUDA graph, so it runs call by call: {error}")
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
