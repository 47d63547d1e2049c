"""What all benchmarks share: measured blocks with the load of other processes, medians, tables, the command line."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SPREAD = "range (quiet/all; ! busy)"  # title of a column that `Summary.spread` fills
_QUIET = 0.1  # of a core used by other processes, above which a block is not counted if there are enough others


@dataclass
class Block:
    """One measured piece of work: its seconds, and the cores that this process tree and all others used meanwhile."""

    seconds: float
    cores: float | None = None
    foreign: float | None = None


def measure(work: Callable):
    """Return what `work` returns and the block of time it took; the loads are None where there is no /proc."""
    busy, own, start = _busy(), _own(), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    if busy is None:
        return result, Block(seconds)
    own, busy = _own() - own, _busy() - busy
    return result, Block(seconds, own / seconds, max(busy - own, 0.0) / seconds)


def _busy() -> float | None:
    """Return the seconds that all cores together have been busy, or stolen by other machines."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _own() -> float:
    """Return the processor seconds of this process and all its descendants."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS
    tree = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(seconds.get(pid, 0.0) for pid in tree)


def quiet_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks during which other processes used little of the machine."""
    return [block for block in blocks if block.foreign is None or block.foreign < _QUIET]


@dataclass
class Summary:
    """Median and range of one row of a table: of its quiet blocks if those are at least a third and two, otherwise of all."""

    median: float
    low: float
    high: float
    n_quiet: int
    n: int
    is_quiet: bool

    def spread(self, digits: int = 3) -> str:
        """Return the range, how many blocks were quiet, and a mark if those were too few: such a row says nothing."""
        mark = "" if self.is_quiet else "!"
        return f"{number(self.low, digits)}..{number(self.high, digits)} ({self.n_quiet}/{self.n}{mark})"


def summary(blocks: Sequence[Block], scale: float = 1.0) -> Summary:
    """Summarise the blocks, their seconds multiplied by `scale`."""
    quiet = quiet_blocks(blocks)
    is_quiet = len(quiet) >= max(min(2, len(blocks)), len(blocks) / 3)
    seconds = [block.seconds * scale for block in (quiet if is_quiet else blocks)]
    return Summary(statistics.median(seconds), min(seconds), max(seconds), len(quiet), len(blocks), is_quiet)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent where that is short."""
    if value is None:
        return "-"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and 1 <= abs(value) < 1e7 else text


def ratio(value: float | None, other: float | None) -> str:
    """Return how many times `other` a value is, if both are known."""
    return number(value / other) if value is not None and other else "-"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print rows under their columns, the first column to the left, and notes below."""
    cells = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        if len(row) < len(columns):  # a reason instead of numbers
            padded = ["  " + row[1]]
        print("  ".join([row[0].ljust(widths[0]), *padded]).rstrip())
    for note in notes:
        print(f"  * {note}")


def machine() -> dict:
    """Describe the machine and the versions of the packages in the running interpreter."""
    versions = {name: _version(name) for name in ("skvae", "torch", "numpy", "scikit-learn")}
    return {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def header(peers: dict | None = None) -> str:
    """Return the line that heads the output: machine and versions."""
    parts = machine()
    versions = {k: v for k, v in {**parts, **(peers or {})}.items() if k not in ("processor", "cores") and v}
    return f"# {parts['processor']}, {parts['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in versions.items())


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a command line with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small sizes and two rounds, to see that everything runs")
    options.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="parts or competitors to run, by their beginning"
    )
    options.add_argument("--rounds", type=int, default=None, help=f"repetitions (default: {rounds}; with --quick: 2)")
    options.add_argument("--json", metavar="FILE", help="keep machine, versions and every timing in a file")
    options.set_defaults(usual_rounds=rounds)
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and fill in the number of rounds."""
    args = options.parse_args()
    args.rounds = args.rounds or (2 if args.quick else args.usual_rounds)
    return args


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Return those of `names` that `only` selects; all of them if it selects none."""
    found = [name for name in names if any(name.lower().startswith(want.lower()) for want in only)]
    return found or list(names)


def keep(path: str | None, results) -> None:
    """Write machine, versions and results to a JSON file, if a path is given."""
    if path:
        text = json.dumps({"machine": machine(), "results": results}, indent=1, default=_plain)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _plain(value):
    return asdict(value) if isinstance(value, Block | Summary) else str(value)
