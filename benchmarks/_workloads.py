"""The workloads of the speed comparisons: rows, network, batch size, threads."""

import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from _data import data_folder
from _peers._task import Task
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler


def mnist(part: str = "X_train") -> np.ndarray:
    """Return the training images of MNIST between 0 and 1; made-up sparse images of that size where the folder lacks it."""
    folder = data_folder()
    if folder is None or not (folder / "mnist.npz").is_file():
        return made_up_images()
    with np.load(folder / "mnist.npz") as file:
        return (file[part].reshape(-1, 784) / 255).astype(np.float32)


def mnist_test() -> np.ndarray:
    """Return the 10,000 test images of MNIST."""
    return mnist("X_test")


def made_up_images() -> np.ndarray:
    """Return images as sparse as MNIST's, with pixels that are always zero."""
    rng = np.random.default_rng(0)
    rate = np.where(np.arange(784) % 8 == 0, 0.0, rng.beta(0.3, 1.0, 784))
    return (rng.random((60_000, 784)) * (rng.random((60_000, 784)) < rate)).astype(np.float32)


def breast_cancer() -> np.ndarray:
    """Return the standardised table of 569 rows and 30 columns."""
    return StandardScaler().fit_transform(load_breast_cancer().data).astype(np.float32)


def raw_breast_cancer() -> np.ndarray:
    """Return the table of 569 rows and 30 columns in its own units."""
    return load_breast_cancer().data.astype(np.float32)


def made_up_table(n_rows: int = 1_000_000, n_columns: int = 32) -> np.ndarray:
    """Return standardised rows that bend around four latent dimensions."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n_rows, 4), dtype=np.float32)
    X = np.tanh(z @ rng.standard_normal((4, n_columns), dtype=np.float32))
    X += 0.3 * rng.standard_normal(X.shape, dtype=np.float32)
    return (X - X.mean(0)) / X.std(0)


@dataclass(frozen=True)
class Workload:
    """One row set and one network, and what is peculiar to a competitor on it."""

    name: str
    title: str
    rows: object  # a function that makes them
    hidden: tuple[int, ...]
    latent: int
    likelihood: str
    batch_size: int
    threads: int
    epochs: int  # in one measured block
    quick_rows: int
    shares: dict[str, int] = field(default_factory=dict)  # competitor -> the rows it is given, where all would take too long
    absent: dict[str, str] = field(default_factory=dict)  # competitor -> why it is left out

    def on(self, threads: int | None) -> "Workload":
        """Return the workload with other threads, if a number is given."""
        return self if threads is None else replace(self, title=f"{self.title} -> {threads}", threads=threads)

    def task(self, rows: Path, competitor: str, quick: bool = False) -> Task:
        """Return the task of a competitor on the rows that lie in a file."""
        n_rows = min(self.shares.get(competitor, 10**9), self.quick_rows if quick else 10**9)
        return Task(str(rows), self.hidden, self.latent, self.likelihood, self.batch_size, self.threads, n_rows=n_rows)


_W1 = Workload(
    "W1", "MNIST 60,000 x 784, 784-500-20, Bernoulli, batch 100, 2 threads", mnist, (500,), 20, "bernoulli", 100, 2,
    epochs=2, quick_rows=2_000, absent={"TVAE": "left out: fits a mixture to each of the 784 columns first, for hours"},
)  # fmt: skip
_W2 = Workload(
    "W2-100", "breast_cancer 569 x 30, 30-64-5, Gaussian, batch 100, 1 thread", breast_cancer, (64,), 5, "gaussian", 100, 1,
    epochs=100, quick_rows=200,
)  # fmt: skip
_W3 = Workload(
    "W3-512", "made up 1,000,000 x 32, 128-64-8, Gaussian, batch 512, 2 threads", made_up_table, (128, 64), 8, "gaussian", 512,
    threads=2, epochs=1, quick_rows=10_000,
    shares={"pythae": 200_000, "PyOD": 200_000, "TVAE": 10_000, "textbook loop": 200_000},
)  # fmt: skip
WORKLOADS = {
    workload.name: workload
    for workload in (
        _W1,
        _W2,
        replace(_W2, name="W2-32", title=_W2.title.replace("batch 100", "batch 32"), batch_size=32),
        _W3,
        replace(_W3, name="W3-4096", title=_W3.title.replace("batch 512", "batch 4096"), batch_size=4096),
    )
}


class Rows:
    """A temporary folder of rows as files, each made once."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *raised):
        self.folder.cleanup()

    def file(self, make) -> Path:
        """Return the file of the rows that a function makes."""
        path = Path(self.folder.name) / f"{make.__name__}.npy"
        return path if path.exists() else self.save(make.__name__, make())

    def save(self, name: str, rows: np.ndarray) -> Path:
        """Write rows to a file; return its path."""
        path = Path(self.folder.name) / f"{name}.npy"
        np.save(path, rows)
        return path


def write_parquet(rows: Rows, task: Task, n_files: int = 8) -> Path:
    """Write the rows of a task as a folder of parquet files; return the folder."""
    folder = Path(rows.folder.name) / "parquet"
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(np.array_split(np.load(task.rows, mmap_mode="r")[: task.n_rows], n_files)):
        frame = pd.DataFrame(part, columns=[f"x{j}" for j in range(part.shape[1])])
        frame.to_parquet(folder / f"part-{i:03}.parquet")
    return folder


def fields(task: Task) -> dict:
    """Return a task as plain values."""
    return asdict(task)
