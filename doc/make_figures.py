"""Draw the figure of the README and of the front page: python doc/make_figures.py writes doc/images/overview.png."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.displays import LatentSpaceDisplay

COLOURS = {"benign": "#4477AA", "malignant": "#EE6677"}
FILLED = "mean concavity"
PAIR = "mean area", "mean concave points"


def table():
    """Return ten measurements of 569 biopsies and the diagnosis."""
    data = load_breast_cancer(as_frame=True)
    return data.data.iloc[:, :10].assign(diagnosis=data.target_names[data.target])


def draw_map(ax, vae, X):
    """Draw rows in two latent components, by diagnosis."""
    LatentSpaceDisplay.from_estimator(vae, X, X["diagnosis"], ax=ax, s=9)
    ax.margins(y=0.15)  # room for the legend
    ax.legend(frameon=False, loc="lower center", ncols=2, handletextpad=0.1, columnspacing=1.0)
    ax.set_title("Rows in the latent space")


def draw_filled(ax, vae, X):
    """Draw the cells of a column that were hidden among others, filled, with their intervals, against the truth."""
    rng = np.random.default_rng(0)
    holes = X.mask(rng.random(X.shape) < 1 / 3)
    rows = holes.index[holes[FILLED].isna()][:60]
    filled = vae.impute(holes.loc[rows])[FILLED]
    low, high = vae.predictive_interval(holes.loc[rows], coverage=0.9)
    truth = X.loc[rows, FILLED]
    ax.axline((0, 0), slope=1, color="0.6", lw=0.8)
    ax.vlines(truth, low[FILLED], high[FILLED], color="0.8", lw=2, label="90 % interval")
    ax.plot(truth, filled, "o", ms=3, color="#228833", label="filled cell")
    ax.set(xlabel=f"{FILLED}, hidden truth", ylabel="filled", title="Missing cells, filled")
    ax.legend(frameon=False, loc="upper left", handletextpad=0.4)


def draw_new(ax, vae, X):
    """Draw real rows and as many from the model, in two columns."""
    new = vae.sample(len(X), random_state=0)
    ax.scatter(*X[list(PAIR)].to_numpy().T, s=18, facecolors="none", edgecolors="0.5", linewidths=0.8, label="real")
    for name, colour in COLOURS.items():
        rows = new.loc[new["diagnosis"] == name, list(PAIR)]
        ax.scatter(*rows.to_numpy().T, s=6, color=colour, label=f"drawn, {name}")
    ax.set(xlabel=PAIR[0], ylabel=PAIR[1], title="Real rows and drawn ones")
    ax.legend(frameon=False, loc="lower right", handletextpad=0.1, fontsize="small")


def main(path):
    """Train on half of a table with numbers and a category, and draw what the model makes of the other half."""
    train, test = train_test_split(table(), test_size=0.5, random_state=0)
    vae = VAETransformer(n_components=4, random_state=0).fit(train)
    figure = Figure(figsize=(9, 3.3), dpi=140, layout="constrained")
    axes = figure.subplots(1, 3)
    for draw, ax in zip((draw_map, draw_filled, draw_new), axes):
        draw(ax, vae, test)
        ax.title.set_fontsize("medium")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(__file__).parent / "images" / "overview.png")
