"""Searches in several processes, each of which gets a share of the tasks and runs it as one."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from joblib.parallel import BatchedCalls, LokyBackend, ParallelBackendBase

Call = tuple[Callable, tuple, dict]  # as joblib passes them: function, arguments, named arguments
Run = Callable[[list[Call]], list[Any]]


class SharesBackend(ParallelBackendBase):
    """A joblib backend that deals tasks out to processes, up to `max_tasks` to each at a time; there `run` does them.

    joblib hands tasks over one by one, so they are kept until it waits for results.
    """

    supports_retrieve_callback = True

    def __init__(self, run: Run, max_tasks: int, **kwargs):
        super().__init__(**kwargs)
        self.run, self.max_tasks = run, max_tasks
        self.processes = LokyBackend(**kwargs)
        self.n_processes = 0
        self.lock = threading.Lock()
        self.kept: list[tuple[BatchedCalls, Future]] = []

    def effective_n_jobs(self, n_jobs):
        """Return how many tasks joblib may hand over at a time."""
        return self.processes.effective_n_jobs(n_jobs) * self.max_tasks

    def configure(self, n_jobs=1, parallel=None, **kwargs):
        """Start the processes; return how many tasks joblib may hand over at a time."""
        self.parallel = parallel
        self.n_processes = self.processes.configure(n_jobs, parallel, **kwargs)
        return self.n_processes * self.max_tasks

    def submit(self, func, callback=None):
        """Keep a task for the next shares."""
        future: Future = Future()
        if callback is not None:
            future.add_done_callback(callback)
        with self.lock:
            self.kept.append((func, future))
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, future: Future):
        """Return the result of a task, or raise its error."""
        return self.processes.retrieve_result_callback(future)

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Deal out what there is, because joblib now waits for results."""
        self._deal(self.n_processes)
        yield

    def terminate(self):
        """Give the processes back, which stay for the next search."""
        self.processes.terminate()

    def abort_everything(self, ensure_ready=True):
        """End the processes, because a task has failed or the user has had enough."""
        with self.lock:
            self.kept.clear()
        self.processes.abort_everything(ensure_ready)

    def _deal(self, n_processes: int) -> None:
        """Send all kept tasks in shares of about equal length, the same number of them to each process."""
        with self.lock:
            tasks, self.kept = self.kept, []
        n_shares = n_processes * -(-len(tasks) // (n_processes * self.max_tasks))
        for i in range(min(n_shares, len(tasks))):
            batches, futures = zip(*tasks[i::n_shares])
            send = getattr(self.processes, "submit", None) or self.processes.apply_async
            send(Share(self.run, batches), lambda done, futures=futures: self._pass_on(done, futures))

    def _pass_on(self, done: Future, futures: tuple[Future, ...]) -> None:
        """Give each task of a share its result, or all of them the error; joblib hands new tasks over while that happens."""
        try:
            for future, result in zip(futures, done.result(), strict=True):
                future.set_result([result])
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
        self._deal(1)


class Share:
    """Tasks that one process runs."""

    def __init__(self, run: Run, batches: tuple[BatchedCalls, ...]):
        self.run, self.batches = run, batches

    def __call__(self):
        """Return the result of each."""
        return self.run([call for batch in self.batches for call in batch.items])
