"""The side of the script: competitors as processes of their own, each in its environment, told what to do line by line."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _environments import Unavailable, interpreter

#: competitor -> (environment, module of `_peers`)
COMPETITORS = {
    "skvae": ("own", "skvae"),
    "pythae": ("peers", "pythae"),
    "PyOD": ("peers", "pyod"),
    "TVAE": ("peers", "tvae"),
    "textbook loop": ("own", "textbook"),
    "hand-tuned loop": ("own", "handtuned"),
    "JAX": ("peers", "jax"),
    "skorch": ("peers", "skorch"),
    "sklearn PCA": ("own", "pca"),
    "sklearn MLPRegressor": ("own", "mlp"),
    "GEMM floor": ("own", "floor"),
}


class PeerError(RuntimeError):
    """A competitor failed; the message says how."""


class Worker:
    """A process that runs one competitor: started by the constructor, ready after `wait`."""

    def __init__(self, competitor: str, threads: int, timeout: float = 1200.0):
        environment, module = COMPETITORS[competitor]
        self.competitor, self.timeout = competitor, timeout
        self.log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [interpreter(environment), "-m", "_peers", module]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parent, env=_environment(threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def wait(self) -> dict:
        """Wait until the competitor is imported; return its versions."""
        return self._reply()

    def ask(self, command: str, **arguments) -> dict:
        """Have the competitor do something and return its answer."""
        try:
            self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise PeerError(self._last_words()) from error
        return self._reply()

    def _reply(self) -> dict:
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                self.close()
                raise PeerError(f"gave no answer within {self.timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def _last_words(self) -> str:
        self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f"ended with {self.process.returncode}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def _environment(threads: int) -> dict:
    """Return environment variables that give every library so many threads."""
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    flags = "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false"
    return {**os.environ, **dict.fromkeys(limits, str(threads)), "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def start(lineup: dict[str, tuple[str, int]]) -> tuple[dict[str, Worker], dict[str, str], dict[str, str]]:
    """Start competitors side by side, each given with its threads under the name of a row of the table.

    Return the workers that are ready, reasons for the others, and all versions.
    """
    workers, reasons, versions = {}, {}, {}
    for name, (competitor, threads) in lineup.items():
        try:
            workers[name] = Worker(competitor, threads)
        except (Unavailable, OSError) as error:
            reasons[name] = str(error)
    for name in list(workers):
        try:
            versions.update(workers[name].wait()["versions"])
        except PeerError as error:
            reasons[name] = str(error)
            workers.pop(name).close()
    return workers, reasons, versions


def attempt(workers: dict[str, Worker], reasons: dict[str, str], name: str, work):
    """Return what `work` gives for a worker; if it fails, note the reason, end the worker and return None."""
    try:
        return work(workers[name])
    except PeerError as error:
        reasons[name] = str(error)
        print(f"{name}: {error}", file=sys.stderr)
        workers.pop(name).close()
        return None
