"""What likelihoods are worth on columns that are skewed, heavy-tailed or of several modes: held-out log-likelihood of tables.

    python benchmarks/heads.py                     # all tables, two splits
    python benchmarks/heads.py --rows 2000 --epochs 60 --only wine_quality
    python benchmarks/heads.py --raw               # as the cells are: spikes have densities without bound

Beside the likelihoods stand two transforms of every column to a normal shape, in front of a Gaussian: by quantiles and by
powers (Yeo and Johnson). All scores are log densities in nats per row in the units of the data, on the same quarter of the rows
held out; transforms contribute their Jacobian. Cells are mostly whole numbers of some unit, so they are spread evenly over it
first: the score then is a lower bound on the log *probability* of the cells, less a constant, and no spike is infinitely dense.
The limits of the truncated normal are those of all rows, held out or not, as if the range of every column were known.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
from _data import numeric_table, tables
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PowerTransformer, QuantileTransformer

from skvae import VAETransformer
from skvae.likelihoods import Gaussian, Laplace, Mixed, NormalMixture, StudentT, TruncatedNormal

LIKELIHOODS = {
    "Gaussian": Gaussian(),
    "Gaussian network": Gaussian(noise="network"),
    "Laplace": Laplace(),
    "StudentT": StudentT(),
    "NormalMixture(5)": NormalMixture(),
    "NormalMixture(10)": NormalMixture(10),
    "NormalMixture(5, floor=0.001)": NormalMixture(floor=0.001),
}


def by_quantiles(train, test):
    """Return both parts with normal columns, and the log of the map's slope in every cell of the second."""
    transform = QuantileTransformer(output_distribution="normal", n_quantiles=min(1000, len(train)), subsample=None).fit(train)
    levels, log_slope = transform.references_, np.zeros_like(test)
    mapped = transform.transform(test)
    for j, quantiles in enumerate(transform.quantiles_.T):
        place = np.clip(np.searchsorted(quantiles, test[:, j], side="right") - 1, 0, len(levels) - 2)
        width = quantiles[place + 1] - quantiles[place]
        inside = (test[:, j] >= quantiles[0]) & (test[:, j] <= quantiles[-1]) & (width > 0)
        nowhere = 1e-6 / train[:, j].std()  # beyond the training data the map has no slope: a small density stands in
        density = np.where(inside, (levels[place + 1] - levels[place]) / np.where(width > 0, width, 1.0), nowhere)
        log_slope[:, j] = np.log(density) - stats.norm.logpdf(mapped[:, j])
    return transform.transform(train), mapped, log_slope


def by_powers(train, test):
    """Return both parts with the columns that Yeo and Johnson make, and the log of the map's slope in every cell."""
    loc, scale = train.mean(0), train.std(0)
    train, test = (train - loc) / scale, (test - loc) / scale
    transform = PowerTransformer(standardize=True).fit(train)
    log_slope = np.sign(test) * (transform.lambdas_ - 1) * np.log1p(np.abs(test)) - np.log(transform._scaler.scale_ * scale)
    return transform.transform(train), transform.transform(test), log_slope


TRANSFORMS = {"quantiles + Gaussian": by_quantiles, "powers + Gaussian": by_powers}


def spread_over_unit(X, seed):
    """Add to every cell an even share of the unit of its column, the usual distance between neighbouring values."""
    units = np.array([np.median(np.diff(np.unique(column))) for column in X.T])
    return X + units * (np.random.default_rng(seed).random(X.shape) - 0.5)


def truncated(X):
    """Return truncated normal likelihoods between the limits of every column."""
    limits = zip(X.min(0).tolist(), X.max(0).tolist(), strict=True)
    return Mixed([(TruncatedNormal(pair), [j]) for j, pair in enumerate(limits)])


def score(likelihood, train, test, seed, epochs):
    """Return the held-out log density per row and the seconds of the fit."""
    start = time.perf_counter()
    vae = VAETransformer(likelihood=likelihood, max_iter=epochs, score_method="iwae", random_state=seed).fit(train)
    return vae.score(test), time.perf_counter() - start


def one_split(X, split, epochs):
    """Return score and seconds of every way on one split."""
    train, test = train_test_split(X, test_size=0.25, random_state=split)
    likelihoods = {**LIKELIHOODS, "TruncatedNormal": truncated(X)}
    found = {name: score(likelihood, train, test, split, epochs) for name, likelihood in likelihoods.items()}
    for name, transform in TRANSFORMS.items():
        mapped, mapped_test, log_slope = transform(train, test)
        value, seconds = score(Gaussian(), mapped, mapped_test, split, epochs)
        found[name] = value + log_slope.sum(1).mean(), seconds
    return found


def columns():
    """Return the tables."""
    others = {name: numeric_table(f"{name}.csv.gz", name) for name in ("adult", "penguins")}
    found = {name: X for name, X in tables().items() if name in ("wine_quality", "california_housing")}
    return {name: X for name, X in others.items() if X is not None} | found


def main():
    """Print a table per data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=None, help="rows of each table, at most")
    parser.add_argument("--epochs", type=int, default=None, help="max_iter")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--raw", action="store_true", help="do not spread cells over their unit")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name, X in columns().items():
        if args.only and name not in args.only:
            continue
        rows = np.random.default_rng(0).permutation(len(X))[: args.rows]
        cells = X[rows] if args.raw else spread_over_unit(X[rows], 0)
        found = [one_split(cells, split, args.epochs) for split in range(args.splits)]
        print(f"{name}: {cells.shape[0]} rows x {cells.shape[1]} columns, nats per row on {len(cells) // 4} rows", flush=True)
        for way in found[0]:
            scores, seconds = zip(*(results[way] for results in found), strict=True)
            each = "  ".join(f"{value:9.3f}" for value in scores)
            print(f"  {way:<32}{statistics.mean(scores):10.3f}   ({each})   {statistics.median(seconds):7.1f} s", flush=True)


if __name__ == "__main__":
    main()
