"""Seconds of a whole grid search: 3 latent sizes x 3 learning rates x 5 folds on breast_cancer, and 60 fits of a pipeline.

    python benchmarks/search.py                  # everything
    python benchmarks/search.py --only grid      # without the pipeline
    python benchmarks/search.py --quick          # small grids: does everything run?

Every fit has 50 epochs of batches of 32 and the network 30-64-k (ReLU, Gaussian of variance one, Adam). The refit and the
scores of the held-out folds are part of the time: 100 draws per row in skvae, one in the peers. The first search of a process
is given for itself; with n_jobs it starts the other processes. The fused search must give what the serial one gives, and that
is checked.
"""

import sys
from dataclasses import dataclass

import numpy as np
from _timing import SPREAD, Block, chosen, header, keep, measure, number, parse, parser, ratio, summary, table
from _workers import attempt, start
from _workloads import Rows, breast_cancer, raw_breast_cancer


@dataclass(frozen=True)
class Way:
    """One way to search."""

    competitor: str
    threads: int
    n_jobs: int | None = None
    fused: bool = False

    def __str__(self):
        how = ", ".join(["fused"] * self.fused + [f"n_jobs={self.n_jobs}"] * bool(self.n_jobs)) or "serial"
        return f"{self.competitor}, {how}, {self.threads} thread{'s' * (self.threads > 1)}"


WAYS = (
    Way("skvae", 1), Way("skvae", 2), Way("skvae", 1, n_jobs=2), Way("skvae", 1, fused=True), Way("skvae", 2, fused=True),
    Way("skvae", 1, n_jobs=2, fused=True),
    Way("PyOD", 1, n_jobs=2), Way("skorch", 1), Way("skorch", 1, n_jobs=2),
)  # fmt: skip
SEARCHES = {
    "grid": {"latents": [2, 5, 10], "learning_rates": [3e-4, 1e-3, 3e-3], "folds": 5, "pipeline": False},
    "pipeline": {"latents": [2, 3, 5, 10], "learning_rates": [3e-4, 1e-3, 3e-3], "folds": 5, "pipeline": True},
}
SMALL = {"latents": [2, 5], "learning_rates": [1e-3, 3e-3], "folds": 2}
NOTES = (
    "PyOD has squared error only, drops the short last batch, and scores the training rows at the end of every fit",
    "with n_jobs=2 every process has one thread",
)


def ask(worker, way: Way, request: dict) -> dict:
    """Have one search done; return what it found and its block of time."""
    arguments = {"n_jobs": way.n_jobs, "threads": way.threads, **request}
    if way.competitor == "skvae":
        arguments["fused"] = way.fused
    reply, block = measure(lambda: worker.ask("search", **arguments))
    return {**reply, "block": Block(reply["seconds"], block.cores, block.foreign)}


def run(request: dict, ways, rounds: int) -> dict:
    """Return everything that the ways found, in turns, and reasons for those that could not."""
    workers, reasons, versions = start({str(way): (way.competitor, way.threads) for way in ways})
    for way in ways:
        if way.fused and str(way) in workers and not workers[str(way)].ask("features")["fused_fits"]:
            reasons[str(way)] = "this skvae has no fused_fits"
            workers.pop(str(way)).close()
    found = {name: [] for name in workers}
    for _ in range(rounds + 1):  # the first round is the cold one
        for way in ways:
            name = str(way)
            reply = (
                attempt(workers, reasons, name, lambda worker, way=way: ask(worker, way, request)) if name in workers else None
            )
            if reply:
                found[name].append(reply)
                print(f"  {name}: {reply['seconds']:.3g} s", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return {"found": {k: v for k, v in found.items() if k not in reasons}, "reasons": reasons, "versions": versions}


def agreement(found: dict) -> str:
    """Compare the results of fused and serial searches; return a line that says how they differ."""
    serial, fused = ([v[0] for k, v in found.items() if k.startswith("skvae") and how in k] for how in ("serial", "fused"))
    if not (serial and fused):
        return "fused and serial searches were not compared"
    pairs = [(a, b) for a in serial for b in fused]
    worst = max(float(np.abs(np.subtract(a["scores"], b["scores"])).max()) for a, b in pairs)
    ranks = "equal" if all(a["ranks"] == b["ranks"] for a, b in pairs) else "DIFFERENT"
    return f"fused against serial: largest difference of a fold's score {worst:.2g} nats per row, ranks {ranks}"


def report(title: str, results: dict) -> None:
    """Print the table of one search."""
    summaries = {name: summary([r["block"] for r in replies[1:]]) for name, replies in results["found"].items()}
    skvae = min((seen.median for name, seen in summaries.items() if name.startswith("skvae")), default=None)
    rows = [
        [name, number(seen.median), seen.spread(), number(results["found"][name][0]["seconds"]), ratio(seen.median, skvae)]
        for name, seen in sorted(summaries.items(), key=lambda item: item[1].median)
    ]
    rows += [[name, reason] for name, reason in results["reasons"].items()]
    table(title, ("", "seconds", SPREAD, "first search", "x best skvae"), rows, [*NOTES, agreement(results["found"])])


def main():
    """Parse the command line and run."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--peers", nargs="*", default=[], metavar="NAME", help="competitors, by the beginning of their names")
    args, results = parse(options), {}
    competitors = chosen([way.competitor for way in WAYS], args.peers)
    ways = [way for way in WAYS if way.competitor in competitors]
    with Rows() as rows:
        for name in chosen(list(SEARCHES), args.only):
            file = rows.file(raw_breast_cancer if SEARCHES[name]["pipeline"] else breast_cancer)
            request = {**SEARCHES[name], "rows": str(file), "epochs": 5 if args.quick else 50, "batch_size": 32}
            request |= SMALL if args.quick else {}
            n_fits = len(request["latents"]) * len(request["learning_rates"]) * request["folds"]
            results[f"{name}: {n_fits} fits and a refit"] = run(request, ways, 1 if args.quick else args.rounds)
    print(header({k: v for found in results.values() for k, v in found["versions"].items()}))
    for title, found in results.items():
        report(title, found)
    keep(args.json, results)


if __name__ == "__main__":
    main()
