"""Draw the figure of the README and of the front page: python doc/make_figures.py writes doc/images/overview.png."""

from pathlib import Path

from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.displays import LatentSpaceDisplay, ReconstructionDisplay, draw_images
from skvae.likelihoods import Bernoulli


def main(path):
    """Train on digits with two components and with the default number, and draw what both make of new images."""
    X, y = load_digits(return_X_y=True)
    train, test, _, labels = train_test_split(X, y, random_state=0, stratify=y)
    grey_levels = Bernoulli(limits=(0, 16))
    two = VAETransformer(2, likelihood=grey_levels, random_state=0).fit(train)
    full = VAETransformer(likelihood=grey_levels, random_state=0).fit(train)

    figure = Figure(figsize=(11, 4.2), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 6))
    ax = left.subplots()
    LatentSpaceDisplay.from_estimator(two, test, labels, ax=ax)
    ax.set_title("New images in two components", fontsize="medium")
    top, bottom = right.subplots(2, 1, height_ratios=(2, 4.4))
    ReconstructionDisplay.from_estimator(full, test, image_shape=(8, 8), ax=top)
    top.set_title(f"New images and their reconstructions from {full.n_components_} components", fontsize="medium")
    draw_images(bottom, full.sample(40, random_state=0, noise=False).reshape(4, 10, 8, 8))
    bottom.set_title("Images drawn from the model", fontsize="medium")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(__file__).parent / "images" / "overview.png")
