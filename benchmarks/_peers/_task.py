"""The work that all competitors are given: one architecture, one batch size, one likelihood, Adam at 1e-3."""

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Task:
    """One workload: encoder d-hidden-2*latent, decoder latent-hidden reversed-d, ReLU."""

    rows: str  # file of the training rows, single precision
    hidden: tuple[int, ...]
    latent: int
    likelihood: str  # "bernoulli", or "gaussian" with variance one
    batch_size: int
    threads: int
    learning_rate: float = 1e-3
    n_rows: int | None = None  # the first so many rows only
    memmap: bool = False

    def load(self) -> np.ndarray:
        """Return the training rows; of a folder of parquet files, skvae's own reader of them."""
        if Path(self.rows).is_dir():
            return import_module("skvae.data").ParquetSource(self.rows)
        X = np.load(self.rows, mmap_mode="r" if self.memmap else None)[: self.n_rows]
        return X if self.memmap else np.ascontiguousarray(X)

    def widths(self, n_columns: int) -> tuple[list[int], list[int]]:
        """Return the widths of encoder and decoder, from input to output."""
        hidden = list(self.hidden)
        return [n_columns, *hidden, 2 * self.latent], [self.latent, *hidden[::-1], n_columns]


def task_of(fields: dict) -> Task:
    """Return the task that a JSON object describes."""
    return Task(**{**fields, "hidden": tuple(fields["hidden"])})


def seconds_of(work, *args) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start
