"""Seconds from the start of a process to a held-out bound that every competitor reaches, each with its defaults.

    python benchmarks/time_to_bound.py                         # everything: more than an hour
    python benchmarks/time_to_bound.py --only start            # only: a default fit of breast_cancer, imports included
    python benchmarks/time_to_bound.py --only california
    python benchmarks/time_to_bound.py --quick                 # breast_cancer, one round: does everything run?

The bound is the ELBO of the same held-out rows, in nats per row, of standardised columns or of MNIST's grey levels. skvae is
judged by its own model. Peers whose noise has a fixed variance are given, after the fact, the variance per column that fits
their reconstructions of the training rows best; TVAE's density is that of its chosen modes, with such variances as well. The
time of measuring is taken out.

A first pass finds how far each gets. The common target is the worst of those, less a margin (a hundredth, or 0.1 nats); the own
target of a peer is what both it and skvae reach, less the margin. skvae's time is, strictly, that of its whole default fit; it
is also given for a fit cut short after the first of 1, 2, 4, ... epochs that is good enough, a prefix of the whole one. The
one thing set for MNIST is the likelihood.
"""

import os
import sys
import time

import numpy as np
from _data import numeric_table
from _timing import SPREAD, Block, chosen, header, keep, measure, number, parse, parser, ratio, summary, table
from _workers import PeerError, Unavailable, Worker
from _workloads import Rows, mnist, mnist_test, raw_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

PEERS = ("pythae", "PyOD", "TVAE", "textbook loop")
STARTERS = ("skvae", "pythae", "PyOD", "TVAE", "sklearn PCA", "sklearn MLPRegressor")
PARTS = ("start", "breast_cancer", "california_housing", "mnist")


def standardised(X):
    """Return training and held-out rows, in units of the training rows."""
    train, held = train_test_split(X, test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(train)
    return [scaler.transform(rows).astype(np.float32) for rows in (train, held)]


def data(part: str, n_rows: int | None = None):
    """Return training rows, held-out rows and likelihood; None for the rows that are not to be had."""
    if part == "mnist":
        return mnist()[:n_rows], mnist_test()[:2_000], "bernoulli"
    X = (
        raw_breast_cancer()
        if part != "california_housing"
        else numeric_table("california_housing.csv.gz", "california_housing")
    )
    return (*(standardised(X[:n_rows]) if X is not None else (None, None)), "gaussian")


def fit(competitor: str, threads: int, **request) -> dict:
    """Run one process from its start to the end of a fit; return its answer with moments as seconds since the start."""
    with Worker(competitor, threads, timeout=7_200) as worker:

        def whole():
            ready = worker.wait()
            return ready, worker.ask("default", **request)

        (ready, answer), block = measure(whole)
        ended = answer.get("ended", answer["at"])
        points = [(moment - worker.started, bound) for moment, bound in answer.pop("points", [])]
    load = {"cores": block.cores, "foreign": block.foreign}
    found = {"points": points, "imported": ready["at"] - worker.started, "seconds": ended - worker.started, **load}
    print(f"  {competitor}: {found['seconds']:.3g} s", file=sys.stderr)
    return {**answer, **found, "versions": ready["versions"]}


def first_pass(request: dict, competitors) -> tuple[dict, dict]:
    """Return the whole course of every default fit, and reasons for those that failed."""
    courses, reasons = {}, {}
    for name in competitors:
        try:
            courses[name] = fit(name, **request)
        except (PeerError, Unavailable) as error:
            reasons[name] = str(error)
    return courses, reasons


def targets(courses: dict) -> dict:
    """Return the bound that every competitor is to reach, and that which all reach under "common"."""
    best = {name: max(bound for _, bound in course["points"]) for name, course in courses.items()}
    wanted = {name: min(value, best["skvae"]) for name, value in best.items()}
    wanted["common"] = min(best.values())
    return {name: value - max(0.1, 0.01 * abs(value)) for name, value in wanted.items()}


def epochs_needed(request: dict, target: float, whole: dict) -> int | None:
    """Return the first of 1, 2, 4, ... epochs after which skvae is good enough; None if that takes the whole fit."""
    max_iter = 1
    while max_iter < whole["n_iter"]:
        if fit("skvae", max_iter=max_iter, **request)["points"][-1][1] >= target:
            return max_iter
        max_iter *= 2
    return None


def reached(course: dict, target: float) -> Block:
    """Return the time at which a course reached a target."""
    seconds = next(moment for moment, bound in course["points"] if bound >= target)
    return Block(seconds, course["cores"], course["foreign"])


def race(request: dict, courses: dict, rounds: int) -> dict:
    """Time everybody to the targets, in turns; return the targets and the blocks under (competitor, target)."""
    wanted = targets(courses)
    budgets = {name: epochs_needed(request, wanted[name], courses["skvae"]) for name in wanted if name != "skvae"}
    times = {}
    for _ in range(rounds):
        whole = fit("skvae", **request)
        whole_time = Block(whole["seconds"], whole["cores"], whole["foreign"])
        times.setdefault("skvae|whole", []).append(whole_time)
        for name, budget in budgets.items():
            cut = whole if budget is None else fit("skvae", max_iter=budget, **request)
            times.setdefault(f"skvae|{name}", []).append(Block(cut["seconds"], cut["cores"], cut["foreign"]))
        for name in courses.keys() - {"skvae"}:
            add_peer(times, name, request, wanted)
    return {"targets": wanted, "max_iter": budgets, "times": times}


def add_peer(times: dict, name: str, request: dict, wanted: dict) -> None:
    """Run a peer to its own target and note when it passed that and the common one; a round that falls short is left out."""
    course = fit(name, target=wanted[name], **request)
    for label in (name, "common"):
        if any(bound >= wanted[label] for _, bound in course["points"]):
            times.setdefault(f"{name}|{label}", []).append(reached(course, wanted[label]))


def compare(part: str, rows: Rows, rounds: int, threads: int, n_rows: int | None) -> dict:
    """Return everything about one data set."""
    train, held, likelihood = data(part, n_rows)
    if train is None:
        return {"courses": {}, "reasons": {"all": "the data are not to be had"}}
    request = {
        "train": str(rows.save(f"{part}-train", train)),
        "held": str(rows.save(f"{part}-held", held)),
        "likelihood": likelihood,
        "threads": threads,
    }
    courses, reasons = first_pass(request, ("skvae", *PEERS))
    raced = race(request, courses, rounds) if "skvae" in courses and len(courses) > 1 else {}
    return {"courses": courses, "reasons": reasons, "shape": train.shape, "n_held": len(held), **raced}


def report(part: str, found: dict) -> None:
    """Print the table of one data set."""
    seen = {key: summary(blocks) for key, blocks in found.get("times", {}).items()}
    rows = []
    for name, course in found["courses"].items():
        own, common = seen.get(f"{name}|{name}"), seen.get(f"{name}|common")
        cut, whole = seen.get(f"skvae|{name}"), seen.get("skvae|whole")
        cells = [number(max((bound for _, bound in course["points"]), default=None), 4), number(course["seconds"])]
        cells += [number(common.median if common else None)]
        cells += (
            [number(own.median), own.spread(), ratio(own.median, whole.median), ratio(own.median, cut.median)]
            if own
            else ["-"] * 4
        )
        rows.append([name, *cells])
    rows += [[name, reason] for name, reason in found["reasons"].items()]
    columns = ("", "best bound", "whole fit s", "common target s", "own target s", SPREAD, "x skvae whole", "x skvae cut short")
    notes = notes_of(part, found, seen) if seen else []
    table(f"{part} {found.get('shape', '')}: defaults to a held-out bound, nats per row", columns, rows, notes)


def notes_of(part: str, found: dict, seen: dict) -> list[str]:
    """Return what is to be said below the table of one data set."""
    whole = seen["skvae|whole"]
    return [
        "targets: " + ", ".join(f"{name} {target:.4g}" for name, target in found["targets"].items()),
        f"skvae: whole fit {number(whole.median)} s, {whole.spread()}; epochs until it reaches the target of "
        + ", ".join(f"{name} {epochs or 'all'}" for name, epochs in found["max_iter"].items()),
        "skvae, common target: " + number(seen["skvae|common"].median) + " s by the fit cut short",
        "pythae: tables are scaled to the unit interval, all that its default decoder can give",
        "PyOD: its default capacity of 0 takes the KL out of the loss, so its bound is poor",
    ]


def starts(rows: Rows, rounds: int, threads: int) -> dict:
    """Time whole processes that fit a default model to breast_cancer, in turns."""
    train = rows.save("breast_cancer-train", data("breast_cancer")[0])
    found, reasons = {name: [] for name in STARTERS}, {}
    for _ in range(rounds):
        for name in STARTERS:
            if name not in reasons:
                try:
                    found[name].append(fit(name, threads, train=str(train)))
                except (PeerError, Unavailable) as error:
                    reasons[name] = str(error)
    return {"fits": {name: fits for name, fits in found.items() if fits}, "reasons": reasons}


def report_starts(found: dict) -> None:
    """Print the table of whole processes."""
    seen, imports = {}, {}
    for name, fits in found["fits"].items():
        seen[name] = summary([Block(f["seconds"], f["cores"], f["foreign"]) for f in fits])
        imports[name] = summary([Block(f["imported"], f["cores"], f["foreign"]) for f in fits])
    own = seen["skvae"].median if "skvae" in seen else None
    rows = [
        [name, number(seen[name].median), seen[name].spread(), number(imports[name].median), ratio(seen[name].median, own)]
        for name in sorted(seen, key=lambda name: seen[name].median)
    ]
    rows += [[name, reason] for name, reason in found["reasons"].items()]
    dynamo = any(fit["dynamo"] for fit in found["fits"].get("skvae", []))
    notes = [f"torch._dynamo {'WAS' if dynamo else 'was not'} imported by a fit of skvae"]
    table(
        "breast_cancer: from the start of a process to a default fit",
        ("", "seconds", SPREAD, "imports s", "x skvae"),
        rows,
        notes,
    )


def main():
    """Parse the command line and run."""
    args, found = parse(parser(__doc__, rounds=3)), {}
    rounds, threads, n_rows = (1, 1, 1_000) if args.quick else (args.rounds, os.cpu_count(), None)
    with Rows() as rows:
        for part in chosen(PARTS[:2] if args.quick and not args.only else PARTS, args.only):
            found[part] = starts(rows, rounds, threads) if part == "start" else compare(part, rows, rounds, threads, n_rows)
    print(header(), time.strftime("%Y-%m-%d"))
    for part, results in found.items():
        report_starts(results) if part == "start" else report(part, results)
    keep(args.json, found)


if __name__ == "__main__":
    main()
