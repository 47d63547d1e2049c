"""Peak memory of one fit of 1,000,000 x 32 rows, beside the size of the rows and what importing torch takes.

    python benchmarks/memory.py                    # every competitor
    python benchmarks/memory.py --only skvae       # rows in memory, on a memory map, in a folder of parquet files
    python benchmarks/memory.py --quick            # few rows: does everything run?

Everybody is a process of its own and trains for one epoch after the first. The peak of anonymous memory is sampled from outside
every few milliseconds and is what the process itself needs; the high-water mark (VmHWM) is the operating system's own and
includes pages of files. Where the rows are in memory they count, once, as the caller's own. Linux only.
"""

import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from _timing import chosen, header, keep, number, parse, parser, ratio, table
from _workers import PeerError, Unavailable, Worker
from _workloads import WORKLOADS, Rows, fields, write_parquet

_MIB = 2**20
_WORKLOAD = WORKLOADS["W3-512"]
#: row of the table -> (competitor, where its rows lie)
LINEUP = {
    "torch imported only": ("GEMM floor", None),
    "skvae": ("skvae", "memory"),
    "skvae, memory map": ("skvae", "memmap"),
    "skvae, parquet folder": ("skvae", "parquet"),
    "pythae": ("pythae", "memory"),
    "PyOD": ("PyOD", "memory"),
    "TVAE": ("TVAE", "memory"),
    "textbook loop": ("textbook loop", "memory"),
    "hand-tuned loop": ("hand-tuned loop", "memory"),
    "JAX": ("JAX", "memory"),
}


def memory_of(pid: int) -> dict[str, float]:
    """Return anonymous and high-water memory of a process in MiB; nothing if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM") if name in found}


@contextmanager
def peaks(pid: int):
    """Sample a process and keep the highest values in the dictionary that is yielded."""
    highest, done = {}, threading.Event()

    def sample():
        while not done.wait(0.005):
            for name, value in memory_of(pid).items():
                highest[name] = max(highest.get(name, 0.0), value)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield highest
    finally:
        done.set()
        sampler.join()


def one(competitor: str, where: str | None, rows: Rows, quick: bool) -> dict:
    """Return the memory of a competitor when it is imported and at its peak, and how many rows it was given."""
    task = _WORKLOAD.task(rows.file(_WORKLOAD.rows), competitor, quick)
    with Worker(competitor, _WORKLOAD.threads) as worker:
        worker.wait()
        imported = memory_of(worker.process.pid)["RssAnon"]
        if where is None:
            return {"imported": imported, **memory_of(worker.process.pid)}
        if where == "parquet":
            if not worker.ask("features")["parquet"]:
                raise PeerError("this skvae has no skvae.data.ParquetSource")
            task = replace(task, rows=str(write_parquet(rows, task)))
        with peaks(worker.process.pid) as highest:
            worker.ask("prepare", task=fields(replace(task, memmap=where == "memmap")))
            worker.ask("epochs", n=1)
            time.sleep(0.02)
        return {"imported": imported, "n_rows": task.n_rows, **highest}


def report(found: dict, reasons: dict, whole: int) -> None:
    """Print the table."""
    base = found.get("torch imported only", {}).get("RssAnon")
    rows = []
    for name, seen in found.items():
        n_rows = min(seen.get("n_rows", 0), whole)
        data = n_rows * 32 * 4 / _MIB
        above = seen["RssAnon"] - base if base and n_rows else None
        cells = [f"{n_rows:,}" if n_rows else "-", number(seen["imported"], 4), number(seen["RssAnon"], 4)]
        rows.append(
            [name, *cells, number(above, 4), ratio(above, data), ratio(seen["RssAnon"], base), number(seen["VmHWM"], 4)]
        )
    rows += [[name, reason] for name, reason in reasons.items()]
    columns = ("MiB", "rows", "imported", "peak", "above torch", "x data", "x torch", "VmHWM")
    notes = (
        f"data: the rows in single precision, {number(whole * 32 * 4 / _MIB)} MiB for all of them",
        "above torch: peak less what importing torch takes; TVAE's encoding is made by other processes too, not counted",
    )
    table(f"peak memory: {_WORKLOAD.title}", columns, rows, notes)


def main():
    """Parse the command line and run."""
    args, found, reasons = parse(parser(__doc__, rounds=1)), {}, {}
    if not memory_of("self"):
        sys.exit("memory.py reads /proc, which this system does not have")
    with Rows() as rows:
        for name in dict.fromkeys(("torch imported only", *chosen(list(LINEUP), args.only))):
            try:
                found[name] = one(*LINEUP[name], rows, args.quick)
            except (PeerError, Unavailable) as error:
                reasons[name] = str(error)
            print(f"  {name}: {found.get(name, reasons.get(name))}", file=sys.stderr)
    print(header())
    report(found, reasons, _WORKLOAD.quick_rows if args.quick else 1_000_000)
    keep(args.json, {"found": found, "reasons": reasons})


if __name__ == "__main__":
    main()
