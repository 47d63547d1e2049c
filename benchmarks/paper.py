"""Figures 2 to 5 of Kingma & Welling, *Auto-Encoding Variational Bayes* (2013), made anew, beside the paper's own curves.

    python benchmarks/paper.py                                           # everything, to the paper's 1e8 samples: days
    python benchmarks/paper.py --only fig2-frey --samples 3e6            # minutes
    python benchmarks/paper.py --only fig2-mnist --components 3 10 20 --samples 1e7
    python benchmarks/paper.py --only fig3 --samples 2e7
    python benchmarks/paper.py --only fig3 --samples 1.78e7 --algorithms aevb wake-sleep --estimators
    python benchmarks/paper.py --only fig4 fig5 --samples 3e6
    python benchmarks/paper.py --only fig2-mnist --components 20 200 --algorithms aevb --samples 1e7 --seed 1
    python benchmarks/paper.py --only fig2-frey fig3 --out benchmarks/paper_results --redraw
    python benchmarks/paper.py --quick                                   # seconds: does everything run?

Every curve is one model that is trained on and on; it is measured, saved and written to a CSV file at sample counts that grow
by a factor of 10 ** 0.25. What is in the folder already (`--out`) is not trained again: an interrupted run goes on where it
was, and a larger budget continues the curves. Figures are drawn from what is there. The table has the last measurement of every
curve; in figure 3, whose estimator errs where the encoder overfits, also log p(x) itself, which three latents allow to compute.

The recipe is the paper's: one hidden layer of tanh units on either side (500 for MNIST, 200 for Frey faces, 100 in figure 3),
weights that start as normal numbers of standard deviation 0.01, Adagrad with step size 0.02 (0.01 for wake-sleep, whose encoder
runs away at 20 components with 0.02; in figure 3, 0.1 for AEVB and 0.02 for the others), batches of 100, one draw per row, a
standard normal prior on the weight matrices (MAP). As in the author's code, pixels are divided by 256, grey levels of MNIST are
taken as probabilities, and Adagrad only accumulates in its first ten steps. Frey faces are split at random.

`paper_results` holds what was measured for two figures of the documentation, to draw them again without a model.
`paper_curves.csv` holds the curves of figures 2 and 3, read off the vector graphics of the PDF (within 0.2 nats for MNIST, 3
for Frey faces).
"""

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _data import data_folder
from scipy.special import logit, logsumexp
from scipy.stats import norm, qmc

import skvae
from skvae import VAETransformer
from skvae.evaluation import AnnealedImportance, PosteriorDensity, log_likelihood
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import Adagrad
from skvae.solvers import AEVB, MonteCarloEM, WakeSleep

PAPER = Path(__file__).with_name("paper_curves.csv")
SOLVERS = {
    "aevb": AEVB(averaging=0),
    "wake-sleep": WakeSleep(averaging=0),
    "mcem": MonteCarloEM(averaging=0),
}
NAMES = {"aevb": "AEVB", "wake-sleep": "wake-sleep", "mcem": "Monte Carlo EM"}
TITLES = {"Frey": "Frey faces", "MNIST": "MNIST"}
COLOURS = {"aevb": "tab:blue", "wake-sleep": "tab:orange", "mcem": "tab:green"}
PARTS = ("fig2-mnist", "fig2-frey", "fig3", "fig4", "fig5")
MEASURED_ROWS = 10_000
STEP_SIZES = {  # of the 0.01, 0.02 and 0.1 of the paper; in figure 3 those that are best on training images after 3e5 samples
    "fig2": {"aevb": 0.02, "wake-sleep": 0.01}, "fig3": {"aevb": 0.1, "wake-sleep": 0.02, "mcem": 0.02}
}  # fmt: skip
EXACT_ROWS, EXACT_POINTS = 1_000, 2**18  # of training and of test images, and of latents, for the marginal likelihood itself
FIG3_LOW = -200  # nats, where figure 3 ends below
FIG3_ROWS = 200  # on which the marginal likelihood is estimated; in the paper 1,000
APPENDIX_D = PosteriorDensity(n_samples=50, n_leapfrog=4, n_moves=10)
ESTIMATORS = (IWAE(1000), APPENDIX_D, PosteriorDensity(), AnnealedImportance(), AnnealedImportance(start="prior"))


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    figure: str
    dataset: str
    n_components: int
    algorithm: str
    n_train: int
    n_hidden: int
    seed: int = 0

    @property
    def recipe(self) -> str:
        """The figure by whose recipe it is trained: figures 4 and 5 show models as those of figure 2."""
        return "fig3" if self.figure == "fig3" else "fig2"

    @property
    def name(self) -> str:
        """Name of its files, which figures of one recipe share."""
        seed = f"_seed{self.seed}" if self.seed else ""
        return f"{self.recipe}_{self.dataset}_{self.n_components}_{self.algorithm}_{self.n_train}_{self.n_hidden}{seed}".lower()

    def model(self) -> VAETransformer:
        """Return the estimator before training."""
        net = MLP((self.n_hidden,), activation="tanh", skip=False, init_std=0.01)
        frey = Gaussian(noise="network", link="logit", standardize=False)
        return VAETransformer(
            self.n_components, likelihood=frey if self.dataset == "Frey" else Bernoulli(limits=(0, 256)),
            encoder=net, decoder=net, init="random", solver=SOLVERS[self.algorithm], optimizer=Adagrad(accumulate_first=10),
            learning_rate="constant", learning_rate_init=STEP_SIZES[self.recipe][self.algorithm], alpha=1.0, batch_size=100,
            early_stopping=False, tol=0, n_iter_no_change=10**9, warm_start=True, random_state=self.seed,
        )  # fmt: skip


def data(dataset: str, n_train: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test rows."""
    folder = data_folder()
    file = {"MNIST": "mnist.npz", "Frey": "frey_faces.npz"}[dataset]
    if folder is None or not (folder / file).is_file():
        raise SystemExit(f"{file} is needed: name a folder that holds it in SKVAE_DATA.")
    with np.load(folder / file) as arrays:
        if dataset == "MNIST":
            return arrays["X_train"][:n_train].astype(np.float32), arrays["X_test"].astype(np.float32)
        X = arrays["X"].astype(np.float32) / 256
    order = np.random.default_rng(0).permutation(len(X))
    return X[order[:n_train]], X[order[1565:]]


def curves(parts: list[str], components: list[int] | None, algorithms: list[str] | None, quick: bool) -> list[Curve]:
    """Return the lines of the chosen figures."""
    found = []
    if "fig2-mnist" in parts:
        found += [Curve("fig2", "MNIST", k, a, 50_000, 500) for k in (3, 5, 10, 20, 200) for a in ("aevb", "wake-sleep")]
    if "fig2-frey" in parts:
        found += [Curve("fig2", "Frey", k, a, 1565, 200) for k in (2, 5, 10, 20) for a in ("aevb", "wake-sleep")]
    if "fig3" in parts:
        found += [Curve("fig3", "MNIST", 3, a, n, 100) for n in (1_000, 50_000) for a in SOLVERS]
    if "fig4" in parts:
        found += [Curve("fig4", "MNIST", 2, "aevb", 50_000, 500), Curve("fig4", "Frey", 2, "aevb", 1565, 200)]
    if "fig5" in parts:
        found += [Curve("fig5", "MNIST", k, "aevb", 50_000, 500) for k in (2, 5, 10, 20)]
    if quick:
        found = [Curve(c.figure, c.dataset, c.n_components, c.algorithm, min(c.n_train, 100), 16) for c in found]
    return [
        curve
        for curve in dict.fromkeys(found)
        if (not components or curve.n_components in components) and (not algorithms or curve.algorithm in algorithms)
    ]


def stages(curve: Curve, samples: float) -> list[int]:
    """Return the numbers of epochs after which the model is measured."""
    counts = 10 ** np.arange(5, np.log10(samples) + 1e-9, 0.25)
    counts = np.append(counts[counts < samples * 0.99], samples)
    return sorted({max(1, round(count / curve.n_train)) for count in counts})


def measured(curve: Curve, vae: VAETransformer, X: np.ndarray, X_test: np.ndarray) -> dict[str, float]:
    """Return the bound on training and test rows, or in figure 3 the marginal likelihood."""
    if curve.figure == "fig3":
        method, n = APPENDIX_D, min(FIG3_ROWS, curve.n_train // 5)
    else:
        method, n = ELBO(n_samples=16), MEASURED_ROWS
    vae.set_params(score_method=method)
    return {"train": vae.score(X[:n]), "test": vae.score(X_test[:n])}


def exact(vae: VAETransformer, X: np.ndarray, n_points: int) -> float:
    """Return the mean log p(x) of rows of MNIST in nats, by quasi-Monte Carlo over the few latents of figure 3."""
    points = norm.ppf(qmc.Sobol(vae.n_components_, seed=0).random(n_points)).astype(np.float32)
    shares = X.astype(np.float64) / 256
    total = np.full(len(X), -np.inf)
    for z in np.array_split(points, max(1, n_points // 2**13)):
        p = np.clip(vae.inverse_transform(z).astype(np.float64) / 256, 1e-12, 1 - 1e-12)
        log_px = shares @ logit(p).T + np.log1p(-p).sum(1)
        total = np.logaddexp(total, logsumexp(log_px, 1))
    return float(np.mean(total - np.log(n_points)))


def train(curve: Curve, samples: float, out: Path) -> None:
    """Train a model to its budget, from where its files say that it is; measurements without a model stay as they are."""
    log, saved = out / f"{curve.name}.csv", out / f"{curve.name}.skvae"
    if log.is_file() and not saved.is_file():
        print(f"{curve.name}: {log} is kept, as there is no model to go on with; remove it to begin anew", file=sys.stderr)
        return
    rows = pd.read_csv(log).to_dict("records") if log.is_file() else []
    X, X_test = data(curve.dataset, curve.n_train)
    todo = [epochs for epochs in stages(curve, samples) if not rows or epochs > rows[-1]["epochs"]]
    vae = skvae.load(saved) if rows else curve.model()
    began, done = time.perf_counter(), rows[-1]["epochs"] if rows else 0
    first = done
    for epochs in todo:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a bound that still rises
            vae.set_params(max_iter=epochs).fit(X)
        seconds = time.perf_counter() - start
        values = measured(curve, vae, X, X_test)
        rows.append(
            {"epochs": epochs, "samples": epochs * len(X), "seconds": round(seconds, 2), "active": vae.active_units_, **values}
        )
        vae.save(saved)
        pd.DataFrame(rows).to_csv(log, index=False)
        left = (time.perf_counter() - began) / (epochs - first) * (todo[-1] - epochs)
        bar = "#" * round(30 * epochs / todo[-1])
        print(
            f"{curve.name} [{bar:30}] {epochs * len(X):.2e} samples, "
            f"train {values['train']:.1f}, test {values['test']:.1f}, {left:.0f} s to go",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def results(out: Path, wanted: list[Curve]) -> list[tuple[Curve, pd.DataFrame]]:
    """Return the measurements of the lines that have some."""
    files = [(curve, out / f"{curve.name}.csv") for curve in wanted]
    return [(curve, pd.read_csv(file)) for curve, file in files if file.is_file()]


def draw_curves(figure: str, dataset: str, found: list[tuple[Curve, pd.DataFrame]], out: Path) -> None:
    """Draw a panel per number of components, or of training rows: ours as lines, the paper's as dots."""
    found = [(curve, frame) for curve, frame in found if (curve.figure, curve.dataset) == (figure, dataset)]
    if not found:
        return
    paper = pd.read_csv(PAPER)
    paper = paper[(paper.figure == figure) & (paper.dataset == dataset)]
    keys = sorted({(curve.n_components, curve.n_train) for curve, _ in found})
    n_rows = 1 if len(keys) < 4 else 2
    n_columns = -(-len(keys) // n_rows)
    size = 1 + 3.1 * n_columns, 1.2 + 3 * n_rows
    fig, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    for ax, (k, n_train) in zip(axes.flat, keys):
        here = [(curve, frame) for curve, frame in found if (curve.n_components, curve.n_train) == (k, n_train)]
        label = f"{k}(N_train={n_train})" if figure == "fig3" else str(k)
        draw_panel(ax, here, paper[paper.Nz == label])
        ax.set(xscale="log", title=f"N = {n_train:,}" if figure == "fig3" else f"$N_z$ = {k}", xlabel="training samples")
        ax.set_ylim(*limits(figure, found, paper))
        ax.grid(alpha=0.3)
    for ax in axes[:, 0]:
        ax.set_ylabel("log p(x), estimated (nats)" if figure == "fig3" else "lower bound (nats per row)")
    lines = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels())}
    dots = {"the paper, training": "0.4", "the paper, test": "none"}
    lines |= {label: plt.Line2D([], [], marker="o", ms=4, ls="", mec="0.4", mfc=fill) for label, fill in dots.items()}
    fig.legend(lines.values(), lines, fontsize="small", loc="outside lower center", ncols=-(-len(lines) // 2), frameon=False)
    fig.suptitle(TITLES[dataset])
    fig.savefig(out / f"{figure}_{dataset.lower()}.png", dpi=120)
    plt.close(fig)


def draw_panel(ax, found: list[tuple[Curve, pd.DataFrame]], paper: pd.DataFrame) -> None:
    """Draw what was measured as lines, dashed for test rows, and the paper's values as dots, open for test rows."""
    for curve, frame in found:
        colour = COLOURS[curve.algorithm]
        for split, style, name in (("train", "-", "training"), ("test", "--", "test")):
            ax.plot(frame.samples, frame[split], style, color=colour, label=f"{NAMES[curve.algorithm]}, {name}")
            theirs = paper[(paper.algorithm == curve.algorithm) & (paper.split == split)]
            filled = colour if split == "train" else "none"
            ax.plot(theirs.training_samples_evaluated, theirs.nats_per_datapoint, "o", ms=3, mec=colour, mfc=filled, mew=0.7)


def limits(figure: str, found: list[tuple[Curve, pd.DataFrame]], paper: pd.DataFrame) -> tuple[float, float]:
    """Return the limits of the vertical axis, which leave out where untrained models are."""
    ours = np.concatenate([frame[split] for _, frame in found for split in ("train", "test")])
    low = FIG3_LOW if figure == "fig3" else np.quantile(ours, 0.1)
    high = max(ours.max(), paper.nats_per_datapoint.max())
    return low, high + 0.05 * (high - low)


def montage(rows: np.ndarray, n: int, dataset: str) -> np.ndarray:
    """Return the rows as one picture of n by n images."""
    height, width = (28, 20) if dataset == "Frey" else (28, 28)
    return np.reshape(rows, (n, n, height, width)).swapaxes(1, 2).reshape(n * height, n * width)


def draw_manifolds(found: list[Curve], out: Path) -> None:
    """Draw figure 4: what the models that are there make of evenly probable places in two components."""
    n = 20
    places = norm.ppf((np.arange(n) + 0.5) / n)
    for curve in found:
        saved = out / f"{curve.name}.skvae"
        if curve.figure == "fig4" and saved.is_file():
            Z = np.stack(np.meshgrid(places, places[::-1]), -1).reshape(-1, 2)
            picture = montage(skvae.load(saved).inverse_transform(Z), n, curve.dataset)
            draw_manifold(picture, places, out / f"fig4_{curve.dataset.lower()}.png")


def draw_manifold(picture: np.ndarray, places: np.ndarray, path: Path) -> None:
    """Save a picture of images at places in two components, the second upwards."""
    height, width = np.array(picture.shape) / len(places)
    size = np.array([picture.shape[1], picture.shape[0]]) / 100
    fig, ax = plt.subplots(figsize=size + 0.8, layout="constrained")
    ax.imshow(picture, cmap="gray")
    shown = np.arange(1, len(places), 3)
    labels = [f"{place:.1f}" for place in places[shown]]
    ax.set_xticks((shown + 0.5) * width - 0.5, labels)
    ax.set_yticks((len(places) - shown - 0.5) * height - 0.5, labels)
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    fig.savefig(path, dpi=120)
    plt.close(fig)


def draw_samples(found: list[Curve], out: Path) -> None:
    """Draw figure 5: the means of images drawn from the models that are there."""
    n, panels = 10, {}
    for curve in found:
        saved = out / f"{curve.name}.skvae"
        if curve.figure == "fig5" and saved.is_file():
            rows = skvae.load(saved).sample(n * n, random_state=0, noise=False)
            panels[curve.n_components] = montage(rows, n, curve.dataset)
    if panels:
        draw_panels(panels, out / "fig5_mnist.png")


def draw_panels(panels: dict[int, np.ndarray], path: Path) -> None:
    """Save pictures beside each other, each under its number of components."""
    fig, axes = plt.subplots(1, len(panels), figsize=(2.9 * len(panels), 3.2), squeeze=False, layout="constrained")
    for ax, (k, picture) in zip(axes.flat, panels.items()):
        ax.imshow(picture, cmap="gray")
        ax.set_title(f"{k} components")
        ax.set_axis_off()
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def table(found: list[tuple[Curve, pd.DataFrame]], out: Path, quick: bool) -> pd.DataFrame:
    """Return the last measurement of every line beside the paper's value at as many samples, in figure 3 also the exact one."""
    paper, rows = pd.read_csv(PAPER), []
    for curve, frame in found:
        last = frame.iloc[-1]
        row = {
            "figure": curve.figure, "data": curve.dataset, "Nz": curve.n_components, "algorithm": curve.algorithm,
            "N": curve.n_train, "seed": curve.seed, "samples": f"{last.samples:.3g}",
            "minutes": round(frame.seconds.sum() / 60, 1), "active": int(last.active),
        }  # fmt: skip
        label = f"{curve.n_components}(N_train={curve.n_train})" if curve.figure == "fig3" else str(curve.n_components)
        for split in ("train", "test"):
            theirs = paper[
                (paper.figure == curve.figure) & (paper.dataset == curve.dataset) & (paper.Nz == label)
                & (paper.algorithm == curve.algorithm) & (paper.split == split)
            ].sort_values("training_samples_evaluated")  # fmt: skip
            row[split] = round(last[split], 1)
            x = theirs.training_samples_evaluated
            inside = len(x) and x.iloc[0] <= last.samples <= x.iloc[-1]
            value = np.interp(np.log(last.samples), np.log(x), theirs.nats_per_datapoint) if inside else np.nan
            row[f"paper's {split}"] = round(float(value), 1)
        saved = out / f"{curve.name}.skvae"
        if curve.figure == "fig3" and saved.is_file():
            vae, n_points = skvae.load(saved), 2**10 if quick else EXACT_POINTS
            for split, X in zip(("train", "test"), data(curve.dataset, curve.n_train)):
                row[f"exact {split}"] = round(exact(vae, X[:EXACT_ROWS], n_points), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def estimates(wanted: list[Curve], out: Path, quick: bool) -> pd.DataFrame:
    """Return what every estimator says of test images under the models of figure 3, beside the exact value, in nats."""
    rows = []
    for curve in wanted:
        saved = out / f"{curve.name}.skvae"
        if curve.figure != "fig3" or not saved.is_file():
            continue
        vae, X = skvae.load(saved), data(curve.dataset, curve.n_train)[1][: 20 if quick else FIG3_ROWS]
        whose = {"algorithm": curve.algorithm, "N": curve.n_train, "samples": f"{vae.n_iter_ * curve.n_train:.3g}"}
        rows.append({**whose, "method": "exact", "value": exact(vae, X, 2**10 if quick else EXACT_POINTS)})
        for method in ESTIMATORS:
            said = log_likelihood(vae, X, method)
            low, median = np.quantile(said.effective_sample_size, (0.05, 0.5))
            rows.append({**whose, "method": repr(method), "value": said.value.mean(), "ESS": median, "lowest twentieth": low})
    return pd.DataFrame(rows)


def main() -> None:
    """Train what is missing, draw the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="figures to make")
    parser.add_argument("--samples", type=float, default=1e8, help="training samples per curve (default: 1e8)")
    parser.add_argument("--components", nargs="+", type=int, help="numbers of latent dimensions, of those in the figures")
    parser.add_argument("--algorithms", nargs="+", choices=SOLVERS, help="algorithms, of those in the figures")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of models, CSV files and figures")
    parser.add_argument("--seed", type=int, default=0, help="random_state of the models; data are split as ever (default: 0)")
    parser.add_argument("--quick", action="store_true", help="tiny models and budgets")
    parser.add_argument("--redraw", action="store_true", help="draw what the folder holds, and train nothing")
    parser.add_argument("--estimators", action="store_true", help="compare estimators of the marginal likelihood (figure 3)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [replace(curve, seed=args.seed) for curve in curves(args.only, args.components, args.algorithms, args.quick)]
    for curve in [] if args.redraw else wanted:
        train(curve, min(args.samples, 2e3) if args.quick else args.samples, args.out)
    found = results(args.out, wanted)
    for figure, dataset in (("fig2", "MNIST"), ("fig2", "Frey"), ("fig3", "MNIST")):
        draw_curves(figure, dataset, found, args.out)
    draw_manifolds(wanted, args.out)
    draw_samples(wanted, args.out)
    report = table(found, args.out, args.quick)
    report.to_csv(args.out / "table.csv", index=False)
    print(report.to_string(index=False))
    if args.estimators:
        print(estimates(wanted, args.out, args.quick).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
