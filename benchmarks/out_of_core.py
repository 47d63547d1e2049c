"""What training out of core costs in quality and memory, on rows sorted by their cluster.

    python benchmarks/out_of_core.py [millions of rows]

Prints, per kind of source and seed, the ELBO of a fit of one epoch on 20,000 of the rows, in nats per row, and the peak of the
anonymous memory of its process beyond what imports take. Files are made in a temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn
import torch

import skvae
from skvae.data import ArraySource, ParquetSource

N_COLUMNS, N_CLUSTERS = 32, 40


def anonymous_memory() -> float:
    """Return the anonymous memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def make(folder: Path, n_rows: int) -> None:
    """Write the rows, sorted by cluster, as an array and as parquet with small and large row groups."""
    rng = np.random.default_rng(0)
    centres, loadings = 2 * rng.normal(size=(N_CLUSTERS, N_COLUMNS)), 0.5 * rng.normal(size=(N_CLUSTERS, 3, N_COLUMNS))
    labels = np.sort(rng.integers(N_CLUSTERS, size=n_rows))
    X = np.lib.format.open_memmap(folder / "rows.npy", "w+", dtype=np.float32, shape=(n_rows, N_COLUMNS))
    for start in range(0, n_rows, 50_000):
        of = labels[start : start + 50_000]
        z = rng.normal(size=(len(of), 3))
        X[start : start + 50_000] = (
            centres[of] + np.einsum("nk,nkd->nd", z, loadings[of]) + 0.5 * rng.normal(size=(len(of), 32))
        )
    for group in (100_000, 1_000_000):
        writer = None
        for start in range(0, n_rows, group):
            table = pa.table({f"c{j}": X[start : start + group, j].copy() for j in range(N_COLUMNS)})
            writer = writer or pq.ParquetWriter(folder / f"{group}.parquet", table.schema)
            writer.write_table(table, row_group_size=group)
        writer.close()


def fit(folder: Path, kind: str, seed: int) -> None:
    """Fit one source and print a line."""
    on_disk = np.load(folder / "rows.npy", mmap_mode="r")
    before, peak, stop = anonymous_memory(), [0.0], threading.Event()

    def watch():
        while not stop.wait(0.005):
            peak[0] = max(peak[0], anonymous_memory())

    threading.Thread(target=watch, daemon=True).start()
    sources = {"in memory": lambda: np.array(on_disk), "memory map": lambda: ArraySource(on_disk)}
    X = sources[kind]() if kind in sources else ParquetSource(folder / f"{kind.split()[-1]}.parquet")
    started = time.perf_counter()
    vae = skvae.VAETransformer(8, max_iter=1, score_method="elbo", random_state=seed)
    warnings.simplefilter("ignore")
    vae.fit(X)
    seconds = time.perf_counter() - started
    stop.set()
    score = vae.score(np.array(on_disk[:: len(on_disk) // 20_000]))
    print(f"{kind:<16} {seed:>5} {score:>9.3f} {peak[0] - before:>8.0f} {seconds:>8.0f}", flush=True)


def main() -> None:
    """Print the table; every fit runs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="?", type=float, default=3.0, help="millions of rows (default: 3)")
    parser.add_argument("--fit", nargs=3, help=argparse.SUPPRESS)  # folder, kind and seed, by which it calls itself
    args = parser.parse_args()
    if args.fit:
        folder, kind, seed = args.fit
        fit(Path(folder), kind, int(seed))
        return
    n_rows = int(1e6 * args.millions)
    print(f"skvae {skvae.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}")
    print(f"{n_rows:,} rows of {N_COLUMNS} columns in float32, {n_rows * N_COLUMNS * 4 / 2**20:.0f} MB")
    print(f"{'source':<16} {'seed':>5} {'nats/row':>9} {'peak MB':>8} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), n_rows)
        for seed in range(3):
            for kind in ("in memory", "memory map", "parquet 100000", "parquet 1000000"):
                subprocess.run([sys.executable, __file__, "--fit", folder, kind, str(seed)], check=True)


if __name__ == "__main__":
    main()
