"""How skvae's cost grows: per row and epoch with rows, columns and width; and the inference of a model of images.

    python benchmarks/scaling.py                        # everything
    python benchmarks/scaling.py --only rows            # or columns, width, inference
    python benchmarks/scaling.py --quick                # small sizes: does everything run?

The time of an epoch is the difference of a long and a short fit, beside its matrix products at the same shapes. A cost per row
that stays the same means that time grows with the rows alone; that it grows with columns and width is due to the products, as
far as the ratio to them stays the same. Ten million rows come from a memory map in a temporary folder.

Inference uses the shapes of MNIST, 784-500-20. The plain loop draws all latents of a chunk of rows, decodes them and takes the
binary cross entropy; of several sizes of its chunks the best counts.
"""

import sys
from pathlib import Path

import numpy as np
from _peers._task import Task
from _timing import SPREAD, Block, chosen, header, keep, measure, number, parse, parser, ratio, summary, table
from _workers import attempt, start
from _workloads import Rows, fields, made_up_images

PARTS = ("rows", "columns", "width", "inference")
_STEPS = 200  # of a measured block, at least


def sweep(part: str, quick: bool) -> list[tuple[str, tuple[int, int], tuple[int, ...], int]]:
    """Return label, shape of the rows, hidden layers and batch size of every point of a sweep."""
    if part == "rows":
        sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
        return [(f"{n:,} rows", (n, 16), (64,), 500) for n in sizes]
    if part == "columns":
        sizes = (10, 100) if quick else (10, 30, 100, 300, 1_000, 3_000, 10_000)
        return [(f"{d:,} columns", (1_000 if quick else 5_000, d), (64,), 500) for d in sizes]
    sizes = (32, 64) if quick else (32, 64, 128, 256, 512, 1_024, 2_048)
    return [(f"width {w:,}", (1_000 if quick else 10_000, 100), (w,), 500) for w in sizes]


def write_rows(path: Path, shape: tuple[int, int]) -> None:
    """Write standard normal rows with one common factor to a file, a piece at a time."""
    rng = np.random.default_rng(0)
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, shape[0], 100_000):
        piece = X[first : first + 100_000]
        piece[:] = 0.6 * rng.standard_normal(piece.shape, dtype=np.float32)
        piece += 0.8 * rng.standard_normal((len(piece), 1), dtype=np.float32)
    X.flush()


def point(workers: dict, reasons: dict, path: Path, shape, hidden, batch_size: int, rounds: int) -> dict:
    """Return blocks of one epoch of skvae and of its products, in turns."""
    task = Task(str(path), hidden, 5, "gaussian", batch_size, threads=2, memmap=shape[0] > 1_000_000)
    steps = -(-shape[0] // batch_size)
    n_epochs, blocks = max(1, -(-_STEPS // steps)), {}
    for name in list(workers):
        attempt(workers, reasons, name, lambda worker: worker.ask("prepare", task=fields(task)))
    for _ in range(rounds):
        for name in list(workers):
            block = attempt(workers, reasons, name, lambda worker: one_block(worker, n_epochs))
            if block:
                blocks.setdefault(name, []).append(block)
    return {"blocks": blocks, "n_rows": shape[0], "steps": steps}


def one_block(worker, n_epochs: int) -> Block:
    """Return the seconds of one epoch, from a block of several."""
    reply, block = measure(lambda: worker.ask("epochs", n=n_epochs))
    return Block(reply["seconds"] / n_epochs, block.cores, block.foreign)


def grow(part: str, rows: Rows, quick: bool, rounds: int) -> dict:
    """Return the blocks of every point of a sweep."""
    workers, reasons, _ = start({name: (name, 2) for name in ("skvae", "GEMM floor")})
    found = {}
    for label, shape, hidden, batch_size in sweep(part, quick):
        path = Path(rows.folder.name) / "scaling.npy"
        write_rows(path, shape)
        found[label] = point(workers, reasons, path, shape, hidden, batch_size, rounds)
        path.unlink()
        print(f"  {label}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return {"points": found, "reasons": reasons}


def report_growth(part: str, found: dict) -> None:
    """Print the table of one sweep."""
    rows = []
    for label, seen in found["points"].items():
        summaries = {name: summary(blocks) for name, blocks in seen["blocks"].items()}
        if "skvae" not in summaries:
            continue
        own, floor = summaries["skvae"], summaries.get("GEMM floor")
        per_row = [number(1e6 * own.median / seen["n_rows"]), number(1e6 * own.median / seen["steps"])]
        rows.append([label, number(own.median), own.spread(), *per_row, ratio(own.median, floor.median if floor else None)])
    rows += [[name, reason] for name, reason in found["reasons"].items()]
    columns = ("", "s/epoch", SPREAD, "us per row and epoch", "us/step", "x floor")
    table(f"{part}: skvae, Gaussian of variance one, batch 500, 2 threads", columns, rows)


def inference(rows: Rows, quick: bool, rounds: int) -> dict:
    """Return blocks of scoring rows with 100 draws and of transforming rows, in turns, after a round that is not counted."""
    workers, reasons, _ = start({name: (name, 2) for name in ("skvae", "hand-tuned loop", "GEMM floor")})
    task = Task(str(rows.file(made_up_images)), (500,), 20, "bernoulli", 100, 2, n_rows=2_000 if quick else None)
    request = {"score_rows": 100 if quick else 1_000, "draws": 100}
    for name in list(workers):
        attempt(workers, reasons, name, lambda worker: worker.ask("prepare_inference", task=fields(task), **request))
    found = {what: {} for what in ("score_samples", "transform")}
    for number_of_round in range(rounds + 1):
        for what, blocks in found.items():
            for name in list(workers):
                block = attempt(workers, reasons, name, lambda worker, what=what: inferred(worker, what))
                if block and number_of_round:
                    blocks.setdefault(name, []).append(block)
    for worker in workers.values():
        worker.close()
    return {"found": found, "reasons": reasons}


def inferred(worker, what: str) -> Block:
    """Return the time of one inference."""
    reply, block = measure(lambda: worker.ask(what))
    return Block(reply["seconds"], block.cores, block.foreign)


def report_inference(results: dict) -> None:
    """Print the table of inference."""
    rows = []
    for what, blocks in results["found"].items():
        summaries = {name: summary(measured) for name, measured in blocks.items()}
        own, floor = (summaries[name].median if name in summaries else None for name in ("skvae", "GEMM floor"))
        rows += [
            [f"{what}, {name}", number(seen.median), seen.spread(), ratio(seen.median, own), ratio(seen.median, floor)]
            for name, seen in summaries.items()
        ]
    rows += [[name, reason] for name, reason in results["reasons"].items()]
    title = "inference, 784-500-20, Bernoulli, 2 threads: 1,000 rows with 100 draws each; the latents of 60,000 rows"
    table(title, ("", "seconds", SPREAD, "x skvae", "x floor"), rows)


def main():
    """Parse the command line and run."""
    args, found = parse(parser(__doc__, rounds=5)), {}
    with Rows() as rows:
        for part in chosen(PARTS, args.only):
            job = inference(rows, args.quick, args.rounds) if part == "inference" else grow(part, rows, args.quick, args.rounds)
            found[part] = job
    print(header())
    for part, results in found.items():
        report_inference(results) if part == "inference" else report_growth(part, results)
    keep(args.json, found)


if __name__ == "__main__":
    main()
