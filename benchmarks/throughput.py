"""Seconds per epoch of skvae and its peers, doing the same work: network, batch size, likelihood, Adam, number of steps.

    python benchmarks/throughput.py                     # every workload and competitor: about an hour
    python benchmarks/throughput.py --only W1 W2        # workloads by the beginning of their names
    python benchmarks/throughput.py --peers skvae JAX   # competitors by the beginning of theirs
    python benchmarks/throughput.py --quick             # two small workloads: does everything run?

Competitors run as processes of their own, in turns (A B C A B C), and only one works at a time. Counted are blocks of epochs
after the first one; blocks during which other programs were busy are left out where enough others remain. The floor is the time
of the matrix products alone, in the same turns. Ratios are of medians: above 1 the competitor takes longer than skvae.
"""

import sys
from pathlib import Path

import numpy as np
from _timing import SPREAD, Block, chosen, header, keep, measure, number, parse, parser, ratio, summary, table
from _workers import attempt, start
from _workloads import WORKLOADS, Rows, fields

LINEUP = ("skvae", "pythae", "PyOD", "TVAE", "textbook loop", "hand-tuned loop", "JAX", "GEMM floor")
QUICK = ["W1", "W2-100"]


def run(workload, rows: Path, lineup, args) -> dict:
    """Return blocks and reasons of all competitors on one workload."""
    absent = {name: reason for name, reason in workload.absent.items() if name in lineup}
    workers, reasons, versions = start({name: (name, workload.threads) for name in lineup if name not in absent})
    reasons.update(absent)
    n_rows, notes = len(np.load(rows, mmap_mode="r")), {}
    n_epochs = max(20, workload.epochs) if args.quick else workload.epochs
    tasks = {name: workload.task(rows, name, args.quick) for name in lineup}
    for name in list(workers):
        notes[name] = attempt(workers, reasons, name, lambda worker, name=name: prepare(worker, tasks[name]))
    blocks = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name in list(workers):
            block = attempt(workers, reasons, name, lambda worker: one_block(worker, n_epochs))
            if block is not None:
                blocks[name].append(block)
                print(f"  {workload.name} {name}: {block.seconds:.4g} s", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    whole = min(n_rows, workload.quick_rows) if args.quick else n_rows
    scales = {name: whole / min(whole, task.n_rows) for name, task in tasks.items()}
    blocks = {name: measured for name, measured in blocks.items() if name not in reasons}
    return {
        "title": workload.title, "batch_size": workload.batch_size, "rows": whole, "seconds_per_epoch": blocks,
        "scales": scales, "reasons": reasons, "notes": notes, "versions": versions,
    }  # fmt: skip


def prepare(worker, task) -> str:
    """Build the model and train it for one epoch, which is not counted; return what is to be said of the competitor."""
    note = worker.ask("prepare", task=fields(task))["note"]
    if worker.competitor != "skvae":  # whose blocks begin with an epoch of their own
        worker.ask("epochs", n=1)
    return note


def one_block(worker, n_epochs: int) -> Block:
    """Return the seconds of one epoch, from a block of several, with the loads during the block."""
    reply, block = measure(lambda: worker.ask("epochs", n=n_epochs))
    return Block(reply["seconds"] / n_epochs, block.cores, block.foreign)


def report(found: dict) -> None:
    """Print the table of one workload, the fastest competitor first."""
    summaries = {name: summary(blocks, found["scales"][name]) for name, blocks in found["seconds_per_epoch"].items()}
    own, floor = (summaries[name].median if name in summaries else None for name in ("skvae", "GEMM floor"))
    steps = -(-found["rows"] // found["batch_size"])
    rows = []
    for name, seen in sorted(summaries.items(), key=lambda item: item[1].median):
        ratios = ratio(seen.median, own), ratio(seen.median, floor)
        rows.append([name, number(seen.median), seen.spread(), number(1e6 * seen.median / steps), *ratios])
    rows += [[name, reason] for name, reason in found["reasons"].items()]
    notes = [f"{name}: {note}" for name, note in found["notes"].items() if note]
    notes += [
        f"{name}: trained on fewer rows, scaled by {s:.3g}"
        for name, s in found["scales"].items()
        if s > 1 and name in summaries
    ]
    columns = ("", "s/epoch", SPREAD, "us/step", "x skvae", "x floor")
    table(found["title"], columns, rows, notes)


def main():
    """Parse the command line and run."""
    options = parser(__doc__, rounds=7)
    options.add_argument("--peers", nargs="*", default=[], metavar="NAME", help="competitors, by the beginning of their names")
    options.add_argument("--threads", type=int, help="threads in place of those of the workload")
    args = parse(options)
    lineup, found = chosen(LINEUP, args.peers), {}
    with Rows() as rows:
        for name in chosen(QUICK if args.quick and not args.only else list(WORKLOADS), args.only):
            workload = WORKLOADS[name].on(args.threads)
            found[name] = run(workload, rows.file(workload.rows), lineup, args)
    print(header({k: v for results in found.values() for k, v in results["versions"].items()}))
    for results in found.values():
        report(results)
    keep(args.json, found)


if __name__ == "__main__":
    main()
