"""How well VAETransformer() does without a parameter: held-out log-likelihood beside factor analysis and a shrunk Gaussian.

    python benchmarks/defaults.py                 # the table, five splits
    python benchmarks/defaults.py --seeds 20      # and whether 20 seeds on one split all stay finite
    python benchmarks/defaults.py --variants      # what each choice is worth: one changed at a time, on the small tables
    python benchmarks/defaults.py --layers        # what a second hidden layer is worth, by the number of rows
    python benchmarks/defaults.py --priors        # what a mixture as prior is worth, and how much new rows vary
    python benchmarks/defaults.py --only iris wine --json defaults.json

Every score is in nats per row in the units of the data, on the same quarter of the rows held out. Factor analysis gets the
number of factors that does best *on the held-out rows*, the toughest it can be.
"""

import argparse
import json
import platform
import statistics
import time
import warnings

import numpy as np
import torch
from _data import odd_tables, tables
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.solvers import AEVB

SCORE = "iwae"  # by draws of the encoder alone: the looser, and what the figures of the documentation were measured by


def timed(function):
    """Return a function's result and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def one_split(X, split, params):
    """Return scores and fit times of the three models on one split."""
    train, test = train_test_split(X, test_size=0.25, random_state=split)
    vae, vae_time = timed(lambda: VAETransformer(score_method=SCORE, random_state=split, **params).fit(train))
    scaler = StandardScaler().fit(train)
    log_jacobian = -np.log(scaler.scale_).sum()
    z_train, z_test = scaler.transform(train), scaler.transform(test)
    fits = [timed(lambda q=q: FactorAnalysis(q).fit(z_train)) for q in range(1, min(X.shape[1] - 1, 12) + 1)]
    fa_score, fa_time = max((fa.score(z_test) + log_jacobian, seconds) for fa, seconds in fits)
    shrunk = LedoitWolf().fit(z_train).score(z_test) + log_jacobian
    return {
        "vae": vae.score(test), "fa": fa_score, "gaussian": shrunk, "vae_time": vae_time, "fa_time": fa_time,
        "steps": vae.n_steps_, "active": vae.active_units_, "converged": vae.converged_,
    }  # fmt: skip


def report_table(found):
    """Print the comparison, a line a table."""
    print(f"{'table':<20}{'rows x cols':>12}{'VAE':>10}{'FA':>10}{'Gaussian':>10}{'gain':>8}{'worst':>8}"
          f"{'VAE s':>8}{'FA s':>8}{'steps':>8}{'active':>8}")  # fmt: skip
    for name, (shape, rows) in found.items():
        mean = {k: statistics.mean(r[k] for r in rows) for k in ("vae", "fa", "gaussian")}
        gains = [r["vae"] - max(r["fa"], r["gaussian"]) for r in rows]
        median = {k: statistics.median(r[k] for r in rows) for k in ("vae_time", "fa_time", "steps", "active")}
        print(
            f"{name:<20}{f'{shape[0]} x {shape[1]}':>12}{mean['vae']:>10.2f}{mean['fa']:>10.2f}{mean['gaussian']:>10.2f}"
            f"{mean['vae'] - max(mean['fa'], mean['gaussian']):>+8.2f}{min(gains):>+8.2f}{median['vae_time']:>8.2f}"
            f"{median['fa_time']:>8.3f}{median['steps']:>8.0f}{median['active']:>8.0f}"
        )


def report_seeds(name, X, n_seeds, params):
    """Print the spread of the held-out score over seeds, and whether anything was not finite."""
    train, test = train_test_split(X, test_size=0.25, random_state=0)
    scores = []
    for seed in range(n_seeds):
        vae = VAETransformer(score_method=SCORE, random_state=seed, **params).fit(train)
        scores.append(vae.score(test))
        assert np.isfinite(vae.score_samples(X)).all(), (name, seed)
        assert np.isfinite(vae.transform(X)).all(), (name, seed)
        assert np.isfinite(vae.sample(100, random_state=seed)).all(), (name, seed)
    print(f"{name:<20}{n_seeds} seeds, all finite: mean {np.mean(scores):.2f}, sd {np.std(scores):.2f}, "
          f"worst {min(scores):.2f}")  # fmt: skip
    return scores


N_ROWS, N_HELD = (500, 1_000, 2_000, 4_000, 10_000), 1_000
MOST_ROWS = 4_000  # of a table, where priors are compared

VARIANTS = {
    "no linear path": {"encoder": MLP(skip=False), "decoder": MLP(skip=False)},
    "a linear path, random start": {"init": "random"},
    "no averaging": {"solver": AEVB(averaging=0.0)},
    "layers (64, 64)": {"hidden_layer_sizes": (64, 64)},
    "layers (64, 64), no linear path": {"encoder": MLP((64, 64), skip=False), "decoder": MLP((64, 64), skip=False)},
    "three components": {"n_components": 3},
    "alpha=1": {"alpha": 1.0},
    "warm-up of 100 epochs": {"objective": ELBO(warmup=100)},
    "twice the patience": {"n_iter_no_change": 10},
    "a fifth for validation": {"validation_fraction": 0.2},
    "cosine over 200 epochs": {"learning_rate": "cosine", "max_iter": 200},
    "posterior='full_normal'": {"posterior": "full_normal"},
    "prior='mixture'": {"prior": "mixture"},
    "prior='vamp'": {"prior": "vamp"},
    "posterior='laplace', prior='laplace'": {"posterior": "laplace", "prior": "laplace"},
    "posterior='gamma', prior='gamma'": {"posterior": "gamma", "prior": "gamma"},
}


def report_variants(chosen, n_splits):
    """Print how much the held-out score changes, in nats per row, when one choice is made differently."""
    scores = {}
    for variant, params in {"default": {}, **VARIANTS}.items():
        for name, X in chosen.items():
            halves = [train_test_split(X, test_size=0.25, random_state=s) for s in range(n_splits)]
            fits = [
                VAETransformer(score_method=SCORE, random_state=s, **params).fit(train) for s, (train, _) in enumerate(halves)
            ]
            scores[variant, name] = statistics.mean(fit.score(test) for fit, (_, test) in zip(fits, halves, strict=True))
    print(f"{'changed':<38}" + "".join(f"{name:>20}" for name in chosen))
    for variant in VARIANTS:
        print(f"{variant:<38}" + "".join(f"{scores[variant, n] - scores['default', n]:>+20.2f}" for n in chosen), flush=True)


def report_layers(chosen, n_splits):
    """Print how much a second hidden layer of 128 units changes the held-out score, in nats per row, by the number of rows."""
    print(f"{'table':<20}" + "".join(f"{n:>10,}" for n in N_ROWS) + "   training rows")
    for name, X in chosen.items():
        found = []
        for n in [n for n in N_ROWS if n + N_HELD <= len(X)]:
            gains = []
            for split in range(n_splits):
                train, test = train_test_split(X, train_size=n, test_size=N_HELD, random_state=split)
                one, two = (
                    VAETransformer(hidden_layer_sizes=widths, score_method=SCORE, random_state=split).fit(train).score(test)
                    for widths in ((128,), (128, 128))
                )
                gains.append(two - one)
            found.append(statistics.mean(gains))
        print(f"{name:<20}" + "".join(f"{gain:>+10.2f}" for gain in found), flush=True)


def report_priors(chosen, n_splits):
    """Print held-out score, variance of drawn rows as a share of that of the training rows, and seconds, for two priors."""
    print(f"{'table':<20}" + "".join(f"{prior + ': score':>20}{'variance':>10}{'s':>6}" for prior in ("normal", "mixture")))
    for name, X in chosen.items():
        line = ""
        for prior in ("normal", "mixture"):
            found = []
            for split in range(n_splits):
                train, test = train_test_split(X[:MOST_ROWS], test_size=0.25, random_state=split)
                vae = VAETransformer(prior=prior, score_method=SCORE, random_state=split)
                _, seconds = timed(lambda vae=vae, train=train: vae.fit(train))
                varies = train.var(0) > 0
                share = vae.sample(MOST_ROWS, random_state=0).var(0)[varies] / train.var(0)[varies]
                found.append((vae.score(test), share.mean(), seconds))
            score, variance, seconds = np.mean(found, 0)
            line += f"{score:>20.2f}{variance:>10.2f}{seconds:>6.1f}"
        print(f"{name:<20}{line}", flush=True)


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--priors", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"# Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads; nats per row")
    chosen = {name: X for name, X in tables().items() if not args.only or name in args.only}
    if args.variants:
        report_variants({name: X for name, X in chosen.items() if len(X) < 1000}, args.splits)
        return
    if args.layers:
        report_layers({name: X for name, X in (chosen | odd_tables()).items() if len(X) > 1000}, args.splits)
        return
    if args.priors:
        report_priors(chosen | odd_tables(), args.splits)
        return
    found = {name: (X.shape, [one_split(X, s, {}) for s in range(args.splits)]) for name, X in chosen.items()}
    report_table(found)
    seeds = {name: report_seeds(name, X, args.seeds, {}) for name, X in chosen.items() if args.seeds}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"splits": found, "seeds": seeds}, file, indent=1)


if __name__ == "__main__":
    main()
