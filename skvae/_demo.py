"""The demo: what the package does on data that scikit-learn ships, in tables, figures and a saved model."""

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import skvae
from skvae import VAETransformer
from skvae.displays import LatentSpaceDisplay, ReconstructionDisplay, TrainingCurveDisplay, draw_images
from skvae.likelihoods import Bernoulli

_GREY_LEVELS = Bernoulli(limits=(0, 16))


def run(output: str, max_iter: int | None = None) -> int:
    """Run the demo; return the exit code."""
    start = time.perf_counter()
    folder = Path(output).resolve()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports that it builds its font cache
    print(f"skvae {skvae.__version__}: variational auto-encoders for scikit-learn")
    # One thread: the matrices are small, and threads that wait for each other on busy cores are many times slower than one.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a --max-iter is meant to end early
        cancer = compare_densities(max_iter)
        classify(max_iter)
        maps, digits, images, labels = learn_digits(max_iter)
    write(folder, cancer, maps, digits, images, labels)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")
    return 0


def check_folder(output: str) -> None:
    """Make the folder if it is not there; raise an OSError if no files can be written to it."""
    Path(output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


# --- one: a density ----------------------------------------------------------------------------------------------------


def compare_densities(max_iter: int | None) -> VAETransformer:
    """Choose the size of each model by cross-validated likelihood; print the likelihood of rows set aside."""
    X, _ = load_breast_cancer(return_X_y=True, as_frame=True)
    train, test = train_test_split(X, random_state=0)
    headline(
        f"1. A density: breast cancer, {X.shape[1]} columns, {len(train)} rows to learn from, {len(test)} set aside",
        "Each model chooses its size by likelihood: GridSearchCV with 3 folds on the rows to learn from.",
    )
    candidates = {
        "VAETransformer": (VAETransformer(max_iter=max_iter, random_state=0), (5, 10, 20)),
        "FactorAnalysis": (FactorAnalysis(), (5, 10, 15, 20, 25)),
        "PCA": (PCA(), (5, 10, 15, 20, 25, 29)),
        "GaussianMixture": (GaussianMixture(random_state=0), (1, 2, 3, 5)),
    }
    rows = []
    chosen = {}
    for name, (model, sizes) in candidates.items():
        search = search_of(model, sizes).fit(train)
        say(f"{name}: tried {', '.join(map(str, sizes))} in {search_seconds(search):.1f} s")
        chosen[name] = search.best_estimator_[-1]
        score = score_in_data_units(search.best_estimator_, test)
        rows.append((name, str(chosen[name].n_components), f"{score:.2f}", f"{search.refit_time_:.3f} s"))
    table(("model", "n_components", "nats per new row", "time of one fit"), rows)
    print("  (log-likelihood of the rows set aside in the units of the data, the larger the better; a lower bound for the VAE)")
    return chosen["VAETransformer"]


def search_of(model, sizes):
    """Return a search over the number of components; models without units of their own get standardised columns."""
    pipeline = make_pipeline("passthrough" if isinstance(model, VAETransformer) else StandardScaler(), model)
    return GridSearchCV(pipeline, {f"{pipeline.steps[-1][0]}__n_components": sizes}, cv=3)


def search_seconds(search) -> float:
    """Return the time of all fits and scores of a search."""
    results = search.cv_results_
    return search.n_splits_ * float(np.sum(results["mean_fit_time"] + results["mean_score_time"])) + search.refit_time_


def score_in_data_units(pipeline, X) -> float:
    """Return the mean log-likelihood of X; a scaler in front of the model contributes its Jacobian."""
    scaler = pipeline[0]
    return pipeline.score(X) - (0.0 if scaler == "passthrough" else float(np.log(scaler.scale_).sum()))


# --- two: a step in a pipeline -------------------------------------------------------------------------------------------


def classify(max_iter: int | None, n_components: int = 10) -> None:
    """Print the accuracy of a classifier that sees only the latents, beside one that sees principal components."""
    X, y = load_breast_cancer(return_X_y=True)
    train, test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    headline("2. A step in a Pipeline: breast cancer, benign or malignant")
    steps = {
        "VAETransformer": VAETransformer(n_components, max_iter=max_iter, random_state=0),
        "PCA": PCA(n_components),
        "all columns": "passthrough",
    }
    rows = []
    for name, step in steps.items():
        pipeline = make_pipeline(StandardScaler(), step, LogisticRegression(max_iter=1000)).fit(train, y_train)
        used = X.shape[1] if step == "passthrough" else n_components
        rows.append((f"{name} + LogisticRegression", str(used), f"{pipeline.score(test, y_test):.3f}"))
    table(("pipeline", "columns seen", f"accuracy on {len(test)} new rows"), rows)


# --- three: images -------------------------------------------------------------------------------------------------------


def learn_digits(max_iter: int | None):
    """Train a map with two components and a model of full size on the digits; print what they reach on new images."""
    X, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    headline(f"3. Images: digits, {len(train)} to learn from, {len(test)} set aside, 8 x 8 pixels of 17 grey levels")
    maps = VAETransformer(2, likelihood=_GREY_LEVELS, max_iter=max_iter, random_state=0).fit(train)
    say("trained with 2 components")
    digits = VAETransformer(likelihood=_GREY_LEVELS, max_iter=max_iter, random_state=0).fit(train)
    say(f"trained with {digits.n_components_} components, the default")
    rows: list[Sequence[str]] = [("independent pixels", "0", f"{independent_score(train, test):.2f}", "-", "-")]
    for vae in (maps, digits):
        pca = PCA(vae.n_components_).fit(train)
        accuracies = [accuracy(m.transform(train), y_train, m.transform(test), y_test) for m in (vae, pca)]
        numbers = (f"{vae.score(test):.2f}", *(f"{share:.3f}" for share in accuracies))
        rows.append(("VAETransformer", str(vae.n_components_), *numbers))
    table(("model", "n_components", "nats per new image", "accuracy", "accuracy with PCA"), rows)
    print("  (accuracy on the images set aside of LogisticRegression on the latents, and on as many principal components)")
    return maps, digits, test, y_test


def independent_score(train, test) -> float:
    """Return the Bernoulli log-likelihood of images whose pixels are drawn one by one, each with its mean."""
    p = np.clip(train.mean(axis=0) / 16, 1e-4, 1 - 1e-4)
    x = test / 16
    return float((x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1).mean())


def accuracy(train, y_train, test, y_test) -> float:
    """Return the share of new rows that a linear classifier gets right."""
    return LogisticRegression(max_iter=2000).fit(train, y_train).score(test, y_test)


# --- files ---------------------------------------------------------------------------------------------------------------


def write(folder: Path, cancer, maps, digits, images, labels) -> None:
    """Write the figures and the model, and read the model back."""
    headline(f"4. Files in {folder}")
    if importlib.util.find_spec("matplotlib") is None:
        say("no figures, as matplotlib is not installed: pip install matplotlib")
    else:
        draw(folder, cancer, maps, digits, images, labels)
    path = folder / "digits.skvae"
    digits.save(path)
    same = np.array_equal(skvae.load(path).transform(images), digits.transform(images))
    say(f"{path.name:<22}the model; loaded again it gives {'the same latents, bit for bit' if same else 'OTHER LATENTS'}")


def draw(folder: Path, cancer, maps, digits, images, labels) -> None:
    """Draw the four figures."""
    from matplotlib.figure import Figure

    def axes(width, height):
        return Figure(figsize=(width, height), dpi=120, layout="constrained").subplots()

    def save(ax, title, name, what):
        ax.set_title(title, fontsize="medium", loc="left")
        ax.figure.savefig(folder / name)
        say(f"{name:<22}{what}")

    ax = TrainingCurveDisplay.from_estimator(cancer, ax=axes(6.4, 4)).ax_
    save(ax, f"Breast cancer, {cancer.n_components_} components", "training_curve.png", "the bound over the epochs")
    ax = LatentSpaceDisplay.from_estimator(maps, images, labels, ax=axes(6.4, 5)).ax_
    save(ax, "Digits not seen in training, two components", "latent_space.png", "new digits in two components")
    ax = ReconstructionDisplay.from_estimator(digits, images, image_shape=(8, 8), ax=axes(7, 2)).ax_
    title = f"Digits not seen in training, {digits.n_components_} components"
    save(ax, title, "reconstructions.png", "new digits and their reconstructions")
    ax = axes(7, 3)
    draw_images(ax, digits.sample(40, random_state=0, noise=False).reshape(4, 10, 8, 8))
    save(ax, "Drawn from the model (means of the pixels)", "samples.png", "digits that the model makes up")


# --- text ----------------------------------------------------------------------------------------------------------------


def headline(title: str, *lines: str) -> None:
    """Print the title of a part."""
    print(f"\n{title}", *lines, sep="\n", flush=True)


def say(line: str) -> None:
    """Print one line of progress at once."""
    print(f"  {line}", flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their header, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("  " + "   ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths))))
