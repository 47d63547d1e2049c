"""Searches in several processes, each of which gets a share of the tasks and runs it as one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from joblib.parallel import BatchedCalls, LokyBackend

Call = tuple[Callable, tuple, dict]  # as joblib passes them: function, arguments, named arguments
Run = Callable[[list[Call]], list[Any]]

_send = LokyBackend.submit if hasattr(LokyBackend, "submit") else LokyBackend.apply_async  # its name before joblib 1.5


class SharesBackend(LokyBackend):
    """A joblib backend that deals tasks out to processes, up to `max_tasks` to each at a time; there `run` does them.

    joblib hands tasks over one by one, so they are kept until it waits for results. It takes their number at a time, which is
    that of the processes times `max_tasks`, for a number of workers.
    """

    def __init__(self, run: Run, max_tasks: int, **kwargs):
        super().__init__(**kwargs)
        self.run, self.max_tasks = run, max_tasks
        self.n_processes = 0  # that are at work
        self.lock = threading.Lock()
        self.kept: list[tuple[BatchedCalls, Future]] = []

    def effective_n_jobs(self, n_jobs):
        """Return the number of processes; once they are at work, how many tasks joblib may hand over at a time."""
        return self.n_processes * self.max_tasks or super().effective_n_jobs(n_jobs)

    def configure(self, n_jobs=1, parallel=None, **kwargs):
        """Start the processes; return how many tasks joblib may hand over at a time."""
        self.n_processes = 0
        self.n_processes = super().configure(n_jobs, parallel, **kwargs)
        return self.n_processes * self.max_tasks

    def compute_batch_size(self):
        """Return how many tasks come as one."""
        return 1

    def submit(self, func, callback=None):
        """Keep a task for the next shares."""
        future: Future = Future()
        if callback is not None:
            future.add_done_callback(callback)
        with self.lock:
            self.kept.append((func, future))
        return future

    apply_async = submit

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Deal out what there is, because joblib now waits for results."""
        self._deal(self.n_processes)
        yield

    def terminate(self):
        """Give the processes back, which stay for the next search."""
        super().terminate()
        self.n_processes = 0

    def abort_everything(self, ensure_ready=True):
        """End the processes, because a task has failed or the user has had enough."""
        with self.lock:
            self.kept.clear()
        super().abort_everything(ensure_ready)

    def _deal(self, n_processes: int) -> None:
        """Send all kept tasks in shares of about equal length, the same number of them to each process."""
        with self.lock:
            tasks, self.kept = self.kept, []
        n_shares = min(n_processes * -(-len(tasks) // (n_processes * self.max_tasks)), len(tasks))
        for i in range(n_shares):
            batches, futures = zip(*tasks[i::n_shares])
            try:
                _send(self, partial(_results, self.run, batches), lambda done, futures=futures: self._pass_on(done, futures))
            except BaseException as error:  # nobody else would tell those who wait
                _fail(futures, error)
                raise

    def _pass_on(self, done: Future, futures: Sequence[Future]) -> None:
        """Give each task of a share its result, or all of them the error; joblib hands new tasks over while that happens."""
        try:
            results = done.result()
        except BaseException as error:
            _fail(futures, error)
        else:
            for future, result in zip(futures, results, strict=True):
                future.set_result(result)
        self._deal(1)


def _fail(futures: Sequence[Future], error: BaseException) -> None:
    for future in futures:
        future.set_exception(error)


def _results(run: Run, batches: Sequence[BatchedCalls]) -> list[list[Any]]:
    """Run the tasks of some batches, as joblib made them, together; return the results of each."""
    results = iter(run([call for batch in batches for call in batch.items]))
    return [[next(results) for _ in batch.items] for batch in batches]
