"""How far the estimators of log p(x) err, where it is known exactly, and what they cost.

    python benchmarks/evaluation.py              # three tables
    python benchmarks/evaluation.py --only odd   # one of them

The first table takes the linear-Gaussian model of wine with exact draws of its posterior: the bias per row of appendix D and,
in brackets, how far one row's estimate lies from it. The second takes a model of breast cancer with hidden layers and two
components, where quadrature knows log p(x), and one with ten, where the narrowest bracket stands in for it: mean error of the
score over 50 held-out rows, mean standard error of a row, median effective sample size, and seconds of one core. The third
takes tables with odd rows, and digits: scores of held-out rows by draws of the encoder alone and by refined ones.
"""

import argparse
import math
import time
import warnings

import numpy as np
import torch
from _data import data_folder
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.evaluation import AnnealedImportance, PosteriorDensity, RefinedImportance, bracket, log_likelihood
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO, IWAE

DIMENSIONS = (1, 2, 3, 5, 8)
N_SEEDS = 30
FITS = [(50, "kde"), (50, "gaussian"), (200, "kde"), (1000, "kde"), (1000, "gaussian")]
METHODS = [
    IWAE(100), IWAE(1000), IWAE(10_000), RefinedImportance(), RefinedImportance(max_gap=0),
    PosteriorDensity(), PosteriorDensity(200), PosteriorDensity(200, density="kde"),
    AnnealedImportance(), AnnealedImportance(500), AnnealedImportance(500, start="prior"),
]  # fmt: skip


def exact_draws(q, n_draws, seed):
    """Return log p(x, z) of the linear model of wine as a function of z, exact draws of its posterior, and log p(x)."""
    X = StandardScaler().fit_transform(load_wine().data)
    linear = {"likelihood": Gaussian("shared"), "hidden_layer_sizes": (), "early_stopping": False, "dtype": "float64"}
    vae = VAETransformer(q, random_state=0, **linear).fit(X)
    model, params = vae._fitted.model, vae._fitted.model.unpack(torch.tensor(vae._fitted.params))
    batch = vae._fitted.codec.encode(X, dtype=torch.float64)
    encoded = model.encode(params, batch)
    noise = torch.randn((n_draws, len(X), q), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = model.posterior.sample(encoded, noise)

    def log_joint(z):
        return model.log_px(params, batch, z) + model.log_prior(params, z).sum(-1)

    return log_joint, z, log_joint(z[0]) - model.posterior.log_prob(encoded, z[0]).sum(-1)


def print_biases():
    """Print the table of biases, a line per number of components."""
    print(f"{'components':<12}" + "".join(f"{f'{n} {density}':>18}" for n, density in FITS))
    for q in DIMENSIONS:
        cells = []
        for n_draws, density in FITS:
            errors = []
            for seed in range(5 if n_draws < 1000 else 1):
                log_joint, z, exact = exact_draws(q, n_draws, seed)
                errors.append(PosteriorDensity(n_draws, density=density).estimate_from_draws(log_joint, z)[:, 0] - exact)
            errors = torch.cat(errors)
            cells.append(f"{float(errors.mean()):+.3f} ({float(errors.std()):.2f})")
        print(f"{q:<12}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def by_quadrature(vae, X, n_nodes=900, limit=8.0):
    """Return log p(x) of every row by the trapezoid rule over two components."""
    fitted = vae._fitted
    params = {
        p: {n: v.double() for n, v in named.items()} for p, named in fitted.model.unpack(torch.tensor(fitted.params)).items()
    }
    axis = torch.linspace(-limit, limit, n_nodes, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    log_prior = fitted.model.log_prior(params, z).sum(-1)
    with torch.no_grad():
        rows = [fitted.codec.encode(X[i : i + 1], dtype=torch.float64) for i in range(len(X))]
        values = [torch.logsumexp(fitted.model.log_px(params, row, z) + log_prior, 0) for row in rows]
    return torch.cat(values).numpy() + 2 * math.log(float(axis[1] - axis[0])) + fitted.codec.log_jacobian


def print_methods(n_components):
    """Print what every method says about a model of breast cancer, a line per method."""
    train, test = train_test_split(load_breast_cancer().data, test_size=50, random_state=0)
    vae = VAETransformer(n_components, random_state=0).fit(train)
    if n_components == 2:
        exact, source = by_quadrature(vae, test), "quadrature"
    else:
        exact, source = (
            log_likelihood(vae, test, AnnealedImportance(2000, n_chains=32)).value,
            "annealing, 2000 levels, 32 chains",
        )
    print(f"\n{n_components} components: log p(x) {exact.mean():.3f} by {source}; "
          f"ELBO {vae.set_params(score_method=ELBO(n_samples=1000)).score(test) - exact.mean():+.3f}")  # fmt: skip
    print(f"{'method':<60}{'error':>9}{'row SE':>9}{'ESS':>9}{'seconds':>9}")
    for method in METHODS:
        start = time.process_time()
        found = log_likelihood(vae, test, method)
        seconds = time.process_time() - start
        print(f"{' '.join(repr(method).split()):<60}{(found.value - exact).mean():>+9.3f}{found.standard_error.mean():>9.3f}"
              f"{np.median(found.effective_sample_size):>9.1f}{seconds:>9.2f}", flush=True)  # fmt: skip
    for method in (IWAE(100), RefinedImportance(), RefinedImportance(max_gap=0)):
        values = [log_likelihood(vae, test, method, random_state=seed).value for seed in range(N_SEEDS)]
        print(f"mean over {N_SEEDS} seeds, {method!r}: {np.mean(values - exact):+.3f}", flush=True)
    for method in (AnnealedImportance(), AnnealedImportance(500)):
        gap = bracket(vae, 50, method).gap
        print(f"gap of the bracket, 50 simulated rows, {method!r}: {gap.value:+.3f} +- {gap.standard_error:.3f}", flush=True)


SCORES = {
    "encoder, 100 draws": IWAE(100), "2,000 draws": IWAE(2000), "refined": RefinedImportance(),
    "refined, all rows": RefinedImportance(max_gap=0),
}  # fmt: skip
N_LOWEST = 40


def odd_models():
    """Yield the names of tables with models of them and held-out rows."""
    folder = data_folder()
    if folder is None:
        return
    for name in ("6_cardio", "38_thyroid", "32_shuttle", "28_pendigits", "30_satellite"):
        X = np.load(folder / "adbench" / f"{name}.npz")["X"].astype(float)
        X = X[np.random.default_rng(0).permutation(len(X))[:4_000]]
        train, test = train_test_split(X, random_state=0)
        yield name.partition("_")[2], VAETransformer(random_state=0).fit(train), test
    with np.load(folder / "mnist.npz") as file:
        X = file["X_train"][:12_000].reshape(12_000, -1) / 255.0
    for k in (10, 20, 50):
        vae = VAETransformer(k, likelihood="bernoulli", max_iter=15, early_stopping=False, random_state=0).fit(X[:10_000])
        yield f"digits, {k} components", vae, X[10_000:10_500]


def print_odd():
    """Print the scores of held-out rows by each way, and of those with the lowest by annealing, with seconds of one core."""
    print(f"\nmean score of held-out rows, of the {N_LOWEST} lowest in brackets (seconds)")
    for name, vae, test in odd_models():
        found = {way: scored(vae, test, method) for way, method in SCORES.items()}
        lowest = np.argsort(found["encoder, 100 draws"][0])[:N_LOWEST]
        cells = [f"{way} {v.mean():.2f} [{v[lowest].mean():.2f}] ({seconds:.2f} s)" for way, (v, seconds) in found.items()]
        values, seconds = scored(vae, test[lowest], AnnealedImportance())
        again = np.mean(abs(found["refined"][0] - found["encoder, 100 draws"][0]) > 1e-4)
        print(f"{name}, {len(test)} rows, {again:.0%} refined: {'; '.join(cells)}; "
              f"annealing [{values.mean():.2f}] ({seconds:.1f} s)", flush=True)  # fmt: skip


def scored(vae, X, method):
    """Return the scores of rows and the seconds that they take."""
    vae.set_params(score_method=method)
    start = time.process_time()
    return vae.score_samples(X), time.process_time() - start


def print_known():
    """Print what methods say of breast cancer with two and ten components."""
    for n_components in (2, 10):
        print_methods(n_components)


PARTS = {"biases": print_biases, "known": print_known, "odd": print_odd}


def main():
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    print(f"# torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    for part in args.only:
        PARTS[part]()


if __name__ == "__main__":
    main()
