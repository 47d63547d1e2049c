"""How well VAETransformer() does on tables as they are: holes, kinds of columns, odd cells, new rows; beside other ways.

    python benchmarks/tables.py                          # every table below
    python benchmarks/tables.py --only imputation mnar   # some of them
    python benchmarks/tables.py --quick                  # fewer rows, to see that everything runs
    python benchmarks/tables.py --out tables.json        # keep all results

imputation  HI-VAE's tables with its masks: the average error of filled cells, as HI-VAE defines it
mnar        values above the mean are missing (the protocol of not-MIWAE): root mean squared error of filled cells
generation  rows generated for adult: what classifiers learn from them, and how far they are from real rows
cells       rows with one planted wrong cell: how often it gets the worst score of its row
coverage    simulated tables: how often predictive intervals of missing cells hold the true value
roundtrip   seven tables: whether what comes out has the kinds, levels and order of what went in

The data are read from the folder that SKVAE_DATA names. Rivals are checked against published figures where there are any:
those stand beside the ones found here.
"""

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _cells import Apart, Simulated, blame, hide, plant
from _data import hivae_table, mixed_table
from _imputers import FOREST, FOREST_ROUNDS, N_DONORS, boosting, forest, iterative, mean_mode, neighbours, vae
from _synthetic import TARGET, adult_parts, quality, shuffled, tvae_sample, vae_sample
from _timing import header, machine, table
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import SelfMasking
from skvae.objectives import IWAE

# ---- imputation


def average_error(truth, filled, hidden, kinds):
    """Return HI-VAE's error of every column on its hidden cells.

    Numbers: root mean squared error over the range; levels: share of wrong ones; ordered levels: mean shift over their number.
    """
    errors = []
    for x, guess, mask, kind in zip(truth.T, filled.T, hidden.T, kinds):
        shift = guess[mask] - x[mask]
        if kind == "cat":
            errors.append(np.mean(shift != 0))
        elif kind == "ordinal":
            errors.append(np.mean(np.abs(shift)) / np.unique(x[~np.isnan(x)]).size)
        else:
            errors.append(np.sqrt(np.mean(shift**2)) / np.ptp(x[~np.isnan(x)]))
    return np.array(errors)


HIVAE = {"wine": ("0.1120", "0.1123"), "adult": ("0.2850", "0.2842")}  # of mean and mode at 20 and 50 %, ten masks
IMPUTERS = {
    "mean and mode": mean_mode,
    "IterativeImputer": iterative,
    "KNNImputer": neighbours,
    "iterative forest": forest,
    "boosting by column": boosting,
    "skvae": vae,
    "skvae, IWAE(5)": partial(vae, objective=IWAE(5)),
}


def imputation(args):
    """Print the average error of every imputer on HI-VAE's tables."""
    settings = [(name, share) for name in HIVAE for share in (20, 50)]
    found = {name: {} for name in IMPUTERS}
    for name, share in settings:
        X, kinds, masks = hivae_table(name)
        for method, fill in IMPUTERS.items():
            runs = [fill_masked(X, kinds, masks[f"mask_{share}_{mask}"], fill, args.quick) for mask in args.masks]
            found[method][f"{name} {share} %"] = runs
            print(f"  {name} {share} % {method}: {summary_of(runs)}", flush=True)
    table(
        "imputation: average error of hidden cells over columns, HI-VAE's tables and masks (seconds of processor)",
        ["", *(f"{name} {share} %" for name, share in settings)],
        [
            ["mean and mode, published", *(figure for figures in HIVAE.values() for figure in figures)],
            *([method, *map(summary_of, runs.values())] for method, runs in found.items()),
        ],
        [
            f"masks {args.masks}; the published figures are means over ten masks",
            "IterativeImputer and KNNImputer see an indicator for each level, the largest wins; ordered levels are numbers",
            f"KNNImputer finds neighbours among {N_DONORS} rows; forest: {FOREST}, {FOREST_ROUNDS} rounds",
            "boosting: HistGradientBoosting for every column, which reads the holes of the others",
        ],
    )
    return found


def fill_masked(X, kinds, mask, fill, quick):
    """Hide the cells of a mask, fill them and return the errors of the columns and the seconds of processor."""
    rows = slice(1_000 if quick else None)
    X, mask = X[rows].astype(float), mask[rows]
    hidden = mask & ~np.isnan(X)
    start = time.process_time()
    filled = fill(np.where(mask, np.nan, X), kinds)
    return {"errors": average_error(X, filled, hidden, kinds).tolist(), "seconds": time.process_time() - start}


def summary_of(runs):
    """Return the mean error of some runs, and their mean seconds in parentheses."""
    return f"{np.mean([r['errors'] for r in runs]):.4f} ({np.mean([r['seconds'] for r in runs]):.0f})"


# ---- mnar

NOT_MIWAE = {  # RMSE: mean, MICE as checked; PPCA, MIWAE and, knowing the mechanism or not, not-MIWAE as published
    "white": {"mean": 1.7393, "iterative": 1.4116, "PPCA": 1.57, "MIWAE": 1.55, "not-MIWAE": 1.04, "not-MIWAE-PPCA": 0.99},
    "red": {"mean": 1.8383, "iterative": 1.6806, "PPCA": 1.61, "MIWAE": 1.62, "not-MIWAE": 1.08, "not-MIWAE-PPCA": 1.13},
}


def mnar(args):
    """Print the errors on values that are missing because they are large."""
    frame, _ = mixed_table("wine_quality")
    found = {}
    for colour in NOT_MIWAE:
        X = frame[frame["colour"] == colour].drop(columns=["quality", "colour"]).to_numpy(float)
        X = StandardScaler().fit_transform(X)
        hidden = (X > 0) & (np.arange(X.shape[1]) < X.shape[1] // 2)
        numbers = ["real"] * X.shape[1]
        fills = {"mean": mean_mode, "iterative": iterative, "forest": forest} | SELF_MASKING
        found[colour] = {name: float(error_of_hidden(X, hidden, fill, numbers)) for name, fill in fills.items()}
    rows = [*dict.fromkeys([*found["white"], *NOT_MIWAE["white"]])]
    table(
        "mnar: root mean squared error of values above the mean, hidden in the first half of the columns (published)",
        ["", *found],
        [[row, *(beside(found[colour].get(row), NOT_MIWAE[colour].get(row)) for colour in found)] for row in rows],
        ["not-MIWAE as published with self-masking; 'iterative' is IterativeImputer, there called MICE"],
    )
    return found


def error_of_hidden(X, hidden, fill, kinds):
    """Return the root mean squared error of the cells that were hidden and filled."""
    filled = fill(np.where(hidden, np.nan, X), kinds)
    return np.sqrt(np.mean((filled[hidden] - X[hidden]) ** 2))


def beside(found, published):
    """Return a figure with the published one, as far as they are there."""
    return " ".join(["-" if found is None else f"{found:.4f}", "" if published is None else f"({published})"]).strip()


SELF_MASKING = {
    "skvae, missing at random": vae,
    "skvae, SelfMasking()": partial(vae, likelihood=SelfMasking()),
    "skvae, SelfMasking(missing='high')": partial(vae, likelihood=SelfMasking(missing="high")),
}


# ---- generation


def generation(args):
    """Print what rows generated for adult are worth, and how far they are from real ones."""
    train, test = adult_parts()
    epochs = 2 if args.quick else 300
    if args.quick:
        train, test = train.head(1_000), test.head(500)
    generators = {
        "training rows": lambda seed: (train, {}),
        "training rows, with replacement": lambda seed: (train.sample(frac=1, replace=True, random_state=seed), {}),
        "columns shuffled": lambda seed: shuffled(train, seed),
        "TVAE": lambda seed: tvae_sample(train, args.cache, epochs, seed),
        "skvae": lambda seed: vae_sample(train, seed),
        "skvae, given the income": lambda seed: vae_sample(train, seed, condition_on=[TARGET]),
        "skvae, 22 components": lambda seed: vae_sample(train, seed, n_components=22),
        "skvae, 22, IWAE(5)": lambda seed: vae_sample(train, seed, n_components=22, objective=IWAE(5)),
    }
    found = {}
    for name, generate in generators.items():
        found[name] = []
        for seed in args.seeds if name != "training rows" else [0]:
            rows, facts = generate(seed)
            found[name].append(quality(rows, train, test) | {"fit": facts})
            print(f"  {name}, {seed}: {', '.join(f'{m} {found[name][-1][m]:.4f}' for m in MEASURES)}", flush=True)
    table(
        f"generation: {len(train)} rows like those of adult's training part, judged by its {len(test)} test rows",
        ["", *MEASURES, "fit, s", "of processor"],
        [
            [name, *(f"{np.mean([f[m] for f in fits]):.4f}" for m in MEASURES), *seconds_of(fits)]
            for name, fits in found.items()
        ],
        [
            f"means of the seeds {args.seeds}",
            "F1 of income on test rows, learnt from the rows; the others are distances to the test rows, 0 is best",
            "variation: of shares of levels; KS, Wasserstein: of numbers; pairs: of associations of columns, mean absolute",
            "copies: share of training rows to the last cell; nearer: share nearer to a training row than to a test row,",
            "  about 0.5 if nothing is learnt by heart, 0.75 for the training rows themselves (half of them are compared)",
            f"TVAE: defaults, {epochs} epochs; its rows and times are kept in the folder {args.cache.name}",
        ],
    )
    return found


MEASURES = ("F1 AdaBoost", "F1 logistic", "variation", "KS", "Wasserstein", "pairs", "copies", "nearer")


def seconds_of(fits):
    """Return the mean seconds of some fits, and of the processor, as text."""
    facts = [f["fit"] for f in fits]
    return [f"{np.mean([f[name] for f in facts]):.0f}" if all(facts) else "-" for name in ("seconds", "cpu_seconds")]


# ---- cells


def cells(args):
    """Print how often a planted wrong cell gets the worst score of its row."""
    found = {}
    for name in ("adult", "california_housing"):
        frame = mixed_table(name)[0].drop(columns="split", errors="ignore")
        n_held = 400 if args.quick else 8_000
        train, held = train_test_split(frame.head(2_000) if args.quick else frame, test_size=n_held, random_state=0)
        planted = plant(train, held)
        found[name] = {
            "columns apart": blame(Apart(train), planted),
            "skvae": blame(VAETransformer(random_state=0).fit(train), planted),
        }
    table(
        "cells: rows with one planted wrong cell, shares",
        ["", "", "flagged", "it ranks first", "relative to its column"],
        [
            [name, way, *(f"{f[k]:.3f}" for k in ("flagged", "first", "relative"))]
            for name in found
            for way, f in found[name].items()
        ],
        [
            "flagged: scores below those of 95 % of clean rows; the other shares are of the flagged rows",
            "a wrong number is from the other tail and outside what the 50 most similar rows have, a wrong level is random",
            "columns apart: the sum of the log-frequencies of the cells, each within its own column",
        ],
    )
    for name in found:
        table(
            f"cells of {name}, column by column: share flagged, flagged and first, flagged and first relative to its column",
            ["", *found[name]],
            [
                [column, *(" ".join(f"{share:.2f}" for share in f["columns"][column]) for f in found[name].values())]
                for column in found[name]["skvae"]["columns"]
            ],
        )
    return found


# ---- coverage

COVERAGES = (0.5, 0.8, 0.95)


def coverage(args):
    """Print how often predictive intervals hold the true values of missing cells."""
    found = {}
    for kind in ("linear", "nonlinear"):
        simulated, rng = Simulated(kind), np.random.default_rng(1)
        n_train, n_new, n_exact = (500, 200, 50) if args.quick else (5_000, 2_000, 500)
        train, truth = hide(simulated.rows(n_train, rng), 0.2, rng), simulated.rows(n_new, rng)
        holes = hide(truth, 0.25, rng)
        vae = VAETransformer(random_state=0).fit(train)
        found[kind] = {
            "skvae": [share_inside(truth, holes, *vae.predictive_interval(holes, c)) for c in COVERAGES],
            "the known model": exact_coverage(simulated, truth[:n_exact], holes[:n_exact]),
        }
    table(
        "coverage: share of hidden cells inside their predictive interval",
        ["", "", *(f"{c:.0%}" for c in COVERAGES)],
        [[kind, way, *(f"{c:.3f}" for c in shares)] for kind in found for way, shares in found[kind].items()],
        ["8 columns of two latent variables, 20 % of the training cells missing, 25 % of those of new rows"],
    )
    return found


def share_inside(truth, holes, lower, upper):
    """Return the share of the cells at the holes that lie within the bounds."""
    hidden = np.isnan(holes)
    return float(np.mean((lower <= truth)[hidden] & (truth <= upper)[hidden]))


def exact_coverage(simulated, truth, holes):
    """Return the shares that the model which made the rows reaches."""
    inside = []
    for row, hidden in zip(truth, holes):
        if np.isnan(hidden).any():
            lower, upper = np.moveaxis(simulated.interval(hidden, COVERAGES), 1, 0)
            missing = row[np.isnan(hidden)]
            inside.append((lower <= missing) & (missing <= upper))
    return np.concatenate(inside, axis=1).mean(axis=1).tolist()


# ---- round trip

TABLES = ("penguins", "titanic", "credit_approval", "horse_colic", "wine_quality", "california_housing", "adult")


def roundtrip(args):
    """Print what is wrong with the frames that come out, which should be nothing."""
    found = {}
    for name in TABLES:
        frame = of_many_types(mixed_table(name)[0].drop(columns="split", errors="ignore").head(500 if args.quick else 5_000))
        vae = VAETransformer(max_iter=5, random_state=0).fit(frame)
        outcomes = {
            "sample": vae.sample(1_000, random_state=0),
            "reconstruct": vae.reconstruct(frame),
            "inverse_transform": vae.inverse_transform(vae.transform(frame)),
            "impute": vae.impute(frame),
            "impute, drawn": vae.impute(frame, method="draw", random_state=0),
        }
        found[name] = {way: faults(frame, out, "impute" in way) for way, out in outcomes.items()}
    ways = list(found[TABLES[0]])
    table(
        "roundtrip: faults in the frames that come out (names, order, types, categories, values, kept cells)",
        ["", *ways],
        [[name, *("; ".join(found[name][way]) or "none" for way in ways)] for name in found],
    )
    return found


def of_many_types(frame):
    """Return the frame with two-level columns as flags, and every other column of text levels as plain strings."""
    out, plain = frame.copy(), True
    for name in frame.select_dtypes("category"):
        levels = frame[name].cat.categories
        if len(levels) == 2:
            is_second = (frame[name] == levels[1]).astype("boolean").mask(frame[name].isna())
            out[name] = is_second if frame[name].isna().any() else is_second.astype(bool)
        elif levels.dtype.kind not in "iu":
            out[name] = frame[name].astype("str") if plain else frame[name].cat.as_ordered()
            plain = not plain
    return out


def faults(frame, out, keeps_cells):
    """Return what a frame that came out should have of the one that went in and has not."""
    if list(out) != list(frame):
        return ["columns"]
    found = [f"type of {c}: {out[c].dtype}" for c in frame if out[c].dtype != frame[c].dtype]
    found += [f"holes in {c}" for c in frame if out[c].isna().any()]
    for c in frame:
        if not pd.api.types.is_numeric_dtype(frame[c]) and not set(out[c].dropna()) <= set(frame[c].dropna()):
            found.append(f"new levels of {c}")
        if pd.api.types.is_integer_dtype(frame[c]) and not (out[c].dropna().astype(float) % 1 == 0).all():
            found.append(f"broken numbers in {c}")
    if keeps_cells:
        known = frame.notna()
        found += [f"changed cells of {c}" for c in frame if list(out[c][known[c]]) != list(frame[c][known[c]])]
        found += [] if out.index.equals(frame.index) else ["index"]
    return found


# ---- the command line

PARTS = {f.__name__: f for f in (imputation, mnar, generation, cells, coverage, roundtrip)}


def main():
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer rows, to see that everything runs")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of rows that are generated")
    parser.add_argument("--masks", nargs="*", type=int, choices=(1, 2), default=[1, 2], help="HI-VAE's masks")
    parser.add_argument("--out", help="keep machine, versions and all results in a file")
    parser.add_argument("--cache", type=Path, default=Path(__file__).with_name(".cache"), help="folder of TVAE's sample")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    print(header(), flush=True)
    results = {part: PARTS[part](args) for part in args.only}
    if args.out:
        Path(args.out).write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
