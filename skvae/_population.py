"""Fits that wait for each other and train as one: models of one structure, side by side.

A search runs its fits as tasks of a joblib backend of our own, in threads. Each task does its own preparation; when it comes to
training it hands its model over and waits. Once every running task waits, the models are sorted into groups of one structure,
each group trains together, and the tasks go on. So whatever scikit-learn runs works, because it is scikit-learn that runs it.
"""

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from joblib import Parallel, parallel_config
from joblib.parallel import FallbackToBackend, ParallelBackendBase, SequentialBackend

from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._course import Trainee
from skvae._devices import gradients
from skvae._engine import train, work_of_step
from skvae._judging import Judge
from skvae._model import Model
from skvae._settings import check_whole
from skvae._shares import Call, SharesBackend
from skvae._supply import WINDOW_CELLS, Supply

_STARTING = 0.5  # seconds that tasks in the queue get to start, once all others wait
_PATIENCE = 5.0  # seconds after which those that wait no longer wait for tasks that do something else
_CALLS_FLOPS = 8e6  # what a processor computes while the interpreter is busy with the calls of one step

_thread = threading.local()


@contextmanager
def fused_fits(max_models: int = 64, max_bytes: int = 2**30) -> Iterator[None]:
    """Train all fits of a search together, as one batched model.

    Inside this context `GridSearchCV`, `RandomizedSearchCV`, the halving searches, `cross_validate`, `learning_curve` and
    whatever else runs its fits through joblib work as they always do, with any pipeline and any scorer: scikit-learn runs them.
    But the fits are tasks in threads, and those whose models have one structure wait for each other and train side by side,
    up to twice as fast as one after the other. Each model keeps its own data, seed, learning rate, weight of the KL,
    early stopping and best weights, and becomes the model that it would have become alone.

    Models of one structure have the same number and kind of layers, the same likelihood, solver and kind of objective and
    optimizer, the same number of columns and rows per step; the widths of hidden layers and the number of components may
    differ. What has no partner, or no closed form (the User Guide tells which), trains alone.

    Parameters
    ----------
    max_models : int, default=64
        Number of tasks at a time, and so of models in a group. A search with more fits runs in waves.

    max_bytes : int, default=2**30
        Memory for the models that train at the same time, about, with all that they compute; larger groups are cut. A model
        that needs more trains all the same, alone.

    Notes
    -----
    The `n_jobs` of the search is its number of processes, as ever: each gets a share of the fits and trains it together, under
    limits of its own. Where none are running, their start takes some seconds, so it pays for searches that take longer than
    that. For a search inside another one, `n_jobs` is left at None: its fits train with those of the outer one.

    The time of a fit, as a search reports it, is the time of its group. `max_time` counts from the start of the group. Outside
    of tasks, as in the refit of a search, nothing changes.

    Examples
    --------
    >>> import skvae
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.utils import shuffle
    >>> X = shuffle(load_wine().data, random_state=0)  # its rows come class by class
    >>> vae = skvae.VAETransformer(learning_rate="cosine", max_iter=20, random_state=0)
    >>> with skvae.fused_fits():
    ...     search = GridSearchCV(vae, {"n_components": [1, 2, 4]}, cv=3).fit(X)
    >>> search.best_params_
    {'n_components': 4}
    """
    max_models, max_bytes = check_whole("max_models", max_models), check_whole("max_bytes", max_bytes)
    meeting = Meeting(max_models, max_bytes, torch.get_num_threads())
    with parallel_config(backend=FusedBackend(meeting), n_jobs=1):
        yield


def _run_together(calls: list[Call], max_models: int, max_bytes: int) -> list[Any]:
    """Run tasks in this process, as parts of one search."""
    with fused_fits(max_models, max_bytes):
        return Parallel()(calls)


def train_in_company(trainee: Trainee) -> None:
    """Train one model: together with others if this thread runs a task of a fused search, else alone."""
    meeting = getattr(_thread, "meeting", None)
    if meeting is None:
        train([trainee])
    else:
        meeting.train(trainee)


# --- who trains with whom --------------------------------------------------------------------------------------------


def groups_of(trainees: list[Trainee]) -> list[list[Trainee]]:
    """Sort models into groups of one structure, those that cannot share each into its own."""
    groups: dict[object, list[Trainee]] = {}
    for trainee in trainees:
        groups.setdefault(_structure(trainee) or id(trainee), []).append(trainee)
    return list(groups.values())


def _structure(trainee: Trainee) -> tuple | None:
    structure = trainee.solver.structure(trainee.problem)
    data = trainee.data
    if structure is None or not isinstance(data, Batch):
        return None
    plan = trainee.plan
    return (type(trainee.solver), data.dtype, data.device, plan.batch_size, plan.matmul_precision, *structure)


def waves_of(group: list[Trainee], max_bytes: int, n_threads: int) -> list[list[Trainee]]:
    """Cut a group into parts that train at the same time on one thread each, and that together fit into the memory.

    Every part makes calls of its own, for which the threads take turns with the interpreter: the time of n of them is that of
    n times the calls or of an n-th of the work, whichever is longer. Models of similar length stay together, because those
    that have ended or have fewer batches leave the others alone.
    """
    group = sorted(group, key=lambda t: len(t.data))
    n_parts = min(n_threads, max(1, round(math.sqrt(work_of_step(group) / _CALLS_FLOPS))))
    most = -(-len(group) // n_parts)

    def bytes_of_all(n_models: int) -> int:
        return min(n_threads, -(-len(group) // n_models)) * bytes_of(group, n_models)

    n_models = most
    if most > 1 and bytes_of_all(most) > max_bytes:
        n_models = max(1, bisect_right(range(1, most), max_bytes, key=bytes_of_all))
    return [group[i : i + n_models] for i in range(0, len(group), n_models)]


def bytes_of(group: list[Trainee], n_models: int) -> int:
    """Return about how much memory so many models need, side by side, that are as large as the largest of a group.

    Beside data and parameters, the latter some ten times, these are the buffers of windows, steps and measurements. Each unit
    of a layer has three numbers there for every row, or draw of one, in a step, and two in a measurement.
    """
    wide = kernels.widened([trainee.problem.model for trainee in group])
    size = 10 * kernels.aligned_layout(wide).size
    cells = max(_cells_of(trainee, wide, n_models) for trainee in group)
    return n_models * group[0].data.dtype.itemsize * (size + cells)


def _cells_of(trainee: Trainee, wide: Model, n_models: int) -> int:
    """Return how many numbers a model's rows, their noise and its share of the layers are, beside other models."""
    data, watched, plan, n_measured = trainee.data, trainee.watched, trainee.plan, len(trainee.noise)
    n_draws = trainee.solver.n_draws(trainee.problem.objective)
    supply = Supply(trainee.problem.model, data, plan.seed, plan.batch_size, n_draws)
    n_prepared = min(supply.n_together * len(data), max(plan.batch_size, WINDOW_CELLS // supply.row_cells))
    rows = 2 * ((len(data) + len(watched) + n_prepared) * data.n_columns + n_prepared * n_draws * wide.n_components)
    encoder = wide.n_columns + sum(wide.encoder.widths()) + 2 * wide.n_components
    decoder = wide.n_components + sum(wide.decoder.widths()) + wide.likelihood.n_outputs(wide.n_columns)
    step = kernels.padded_rows(max(supply.sizes)) * (encoder + n_draws * decoder)
    n_watched = Judge.rows_per_call(wide, len(watched), n_models * n_measured)
    return rows + 3 * step + 2 * n_watched * (encoder + n_measured * decoder)


def train_groups(trainees: list[Trainee], max_bytes: int, n_threads: int) -> None:
    """Train models together as far as they can share; what goes wrong for one is its `error`.

    A graphics card trains one wave after the other.
    """
    if any(trainee.params.is_cuda for trainee in trainees):
        n_threads = 1
    waves: dict[str, list[list[Trainee]]] = {}
    for group in groups_of(trainees):
        waves.setdefault(group[0].plan.matmul_precision, []).extend(waves_of(group, max_bytes, n_threads))
    with ThreadPoolExecutor(n_threads) as pool:
        for of_one_precision in waves.values():  # of which the process has but one at a time
            list(pool.map(_train_wave, of_one_precision))


def _train_wave(wave: list[Trainee]) -> None:
    try:
        with gradients():
            train(wave)
    except BaseException as error:
        _fail(wave, error)


def _fail(trainees: list[Trainee], error: BaseException) -> None:
    """Tell what went wrong to the models whose training has not ended; each gets an error that it alone raises."""
    failed = [trainee for trainee in trainees if not trainee.has_ended]
    for trainee in failed:
        trainee.error = error if len(failed) == 1 else _copy_of(error)
        trainee.has_ended = True


def _copy_of(error: BaseException) -> BaseException:
    """Return an error that says the same and names this one as its cause; this one if it cannot be copied."""
    with suppress(Exception):
        copied = copy(error)
        if copied.args == error.args:
            copied.__cause__ = error
            return copied
    return error


# --- where they meet -------------------------------------------------------------------------------------------------


class Cancelled(BaseException):
    """Training ended because the search around it did."""


@dataclass(eq=False)
class Request:
    """A model that waits to be trained."""

    trainee: Trainee
    is_done: bool = False


class Meeting:
    """Where tasks hand over their models: trains them once nobody is left to wait for."""

    def __init__(self, max_models: int, max_bytes: int, n_threads: int):
        self.max_models, self.max_bytes, self.n_threads = max_models, max_bytes, n_threads
        self.changed = threading.Condition()
        self.one_at_a_time = threading.Lock()
        self.turns = threading.Semaphore(n_threads)
        self.n_queued = self.n_active = self.n_outer = self.n_threads_of_tasks = 0
        self.waiting: list[Request] = []
        self.is_cancelled = False

    def count(self, queued: int = 0, active: int = 0, outer: int = 0, threads: int = 0) -> None:
        """Take note of tasks that are queued, start, end, or wait for tasks of their own, and of threads for them."""
        with self.changed:
            self.n_queued += queued
            self.n_active += active
            self.n_outer += outer
            self.n_threads_of_tasks += threads
            self.changed.notify_all()

    def begin(self) -> None:
        """Wait for a turn to compute: more tasks at a time than the process has threads would only slow each other down."""
        _thread.has_turn = self.turns.acquire(timeout=_PATIENCE)  # who has waited for too long computes all the same
        _thread.meeting = self

    def pause(self) -> None:
        """Let others compute, because this thread will wait or is done."""
        _thread.meeting = None
        if _thread.has_turn:
            self.turns.release()

    @contextmanager
    def cancelled(self) -> Iterator[None]:
        """End all training; tasks that wait get an error."""
        self.is_cancelled = True
        self.count()
        try:
            yield
        finally:
            self.is_cancelled = False

    def train(self, trainee: Trainee) -> None:
        """Hand over a model, wait until it is trained, raise what went wrong."""
        trainee.callbacks = [*trainee.callbacks, self._check]
        request = Request(trainee)
        with self.changed:
            self.waiting.append(request)
        self.pause()
        self.count(active=-1)
        while not request.is_done:
            self._train_all(self._wait(request))
        self.begin()
        error, trainee.error = trainee.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which leads to this frame, and from here to the model

    def _check(self, progress, state) -> bool:
        if self.is_cancelled:
            raise Cancelled
        return False

    def _wait(self, request: Request) -> list[Request]:
        """Wait until `request` is done or it is this thread's turn to train; return the requests that it shall train."""
        with self.changed:
            while not request.is_done:
                if request in self.waiting:
                    patience = _STARTING if self.n_active <= 0 else _PATIENCE
                    if self._nobody_is_missing() or not self.changed.wait(patience):
                        chosen, self.waiting = self.waiting, []
                        return chosen
                else:
                    self.changed.wait()
        return []

    def _nobody_is_missing(self) -> bool:
        no_more_can_start = self.n_queued <= 0 or len(self.waiting) >= self.n_threads_of_tasks
        return self.is_cancelled or len(self.waiting) >= self.max_models or (self.n_active <= 0 and no_more_can_start)

    def _train_all(self, requests: list[Request]) -> None:
        if not requests:
            return
        trainees = [request.trainee for request in requests]
        try:
            with self.one_at_a_time:
                if self.is_cancelled:
                    raise Cancelled
                train_groups(trainees, self.max_bytes, self.n_threads)
        except BaseException as error:
            _fail(trainees, error)
        with self.changed:
            self.n_active += len(requests)
            for request in requests:
                request.is_done = True
            self.changed.notify_all()


class FusedBackend(ParallelBackendBase):
    """A joblib backend that runs tasks in threads and tells a meeting when they begin and end."""

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    def __init__(self, meeting: Meeting, is_inner: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.meeting, self.is_inner = meeting, is_inner  # inner: of the tasks of a task of ours
        self.pool: ThreadPoolExecutor | None = None
        self.n_threads = 0
        self.called_by_task = False

    def effective_n_jobs(self, n_jobs):
        """Return the number of processes, or of tasks of a task; once it works, that of the tasks that run at the same time."""
        if self.pool is not None:
            return self.n_threads
        return self._room(n_jobs) if self.is_inner else self._in_processes().effective_n_jobs(n_jobs)

    def _room(self, n_jobs) -> int:
        """Return how many tasks run at the same time: as many as a group may have models, which tasks of tasks share."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if not self.is_inner:
            return self.meeting.max_models
        room = max(1, self.meeting.max_models // max(1, self.meeting.n_outer))
        return room if n_jobs is None or n_jobs < 0 else min(n_jobs, room)

    def _in_processes(self) -> SharesBackend:
        """Return a backend of several processes, in each of which one like this runs a share of the tasks."""
        run = partial(_run_together, max_models=self.meeting.max_models, max_bytes=self.meeting.max_bytes)
        return SharesBackend(run, self.meeting.max_models, nesting_level=self.nesting_level)

    def configure(self, n_jobs=1, parallel=None, prefer=None, require=None, **kwargs):
        """Prepare for a call of Parallel; return how many tasks run at the same time."""
        n_tasks = self._room(n_jobs)
        shares = self._in_processes()
        stays = self.is_inner or prefer == "threads" or require == "sharedmem"
        if not stays and shares.effective_n_jobs(n_jobs) > 1:
            raise FallbackToBackend(shares)
        if n_tasks == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self.pool, self.n_threads = ThreadPoolExecutor(n_tasks, "skvae-fit"), n_tasks
        self.meeting.count(threads=n_tasks)
        return n_tasks

    def submit(self, func, callback=None):
        """Let a thread run a task."""
        assert self.pool is not None
        is_outer = int(not self.is_inner)
        self.meeting.count(queued=1, outer=is_outer)
        try:
            future = self.pool.submit(self._run, func, is_outer)
        except BaseException:
            self.meeting.count(queued=-1, outer=-is_outer)
            raise
        future.add_done_callback(lambda f: f.cancelled() and self.meeting.count(queued=-1, outer=-is_outer))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def _run(self, func, is_outer):
        self.meeting.count(queued=-1, active=1)
        self.meeting.begin()
        try:
            return func()
        finally:
            self.meeting.pause()
            self.meeting.count(active=-1, outer=-is_outer)

    def retrieve_result_callback(self, future: Future):
        """Return the result of a task, or raise its error."""
        return future.result()

    def start_call(self):
        """Note that the calling thread now hands out tasks: nobody shall train before it is done with that."""
        self.called_by_task = getattr(_thread, "meeting", None) is not None
        if not self.called_by_task:  # a task is counted anyway
            self.meeting.count(active=1)

    def stop_call(self):
        """Note that the calling thread has all results."""
        if not self.called_by_task:
            self.meeting.count(active=-1)

    @contextmanager
    def retrieval_context(self):
        """Note that the calling thread now waits for its tasks."""
        if self.called_by_task:
            self.meeting.pause()
        self.meeting.count(active=-1)
        try:
            yield
        finally:
            self.meeting.count(active=1)
            if self.called_by_task:
                self.meeting.begin()

    def terminate(self):
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None
            self.meeting.count(threads=-self.n_threads)

    def abort_everything(self, ensure_ready=True):
        """End what is left to do, because a task has failed or the user has had enough."""
        if self.is_inner:  # tasks of other tasks go on
            with self.retrieval_context():
                self.terminate()
        else:
            with self.meeting.cancelled():
                self.terminate()

    def get_nested_backend(self):
        """Return the backend for tasks of a task, which join the same meeting."""
        return FusedBackend(self.meeting, is_inner=True, nesting_level=(self.nesting_level or 0) + 1), -1
