"""Glasses on and off: latent arithmetic on the Olivetti faces, judged by a classifier that has seen unedited faces alone.

    python benchmarks/faces.py [figure.png]

Thirty people train the model, give the direction and train the classifier; the faces of ten others are edited. With a path,
some of them are drawn. The folder that SKVAE_DATA names must hold `olivetti_faces.npz` with labels for glasses.
"""

import argparse
import sys

import numpy as np
from _data import data_folder
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skvae import VAETransformer
from skvae.displays import draw_images
from skvae.likelihoods import Gaussian

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SET_ASIDE = (0, 3, 6, 7, 10, 18, 25, 30, 33, 39)  # people, with and without glasses


def faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 400 images of 64 x 64 pixels between 0 and 1, who wears glasses, and the number of each person."""
    folder = data_folder()
    if folder is None or not (folder / "olivetti_faces.npz").is_file():
        sys.exit("faces.py needs olivetti_faces.npz (X, subject, glasses) in the folder that SKVAE_DATA names.")
    with np.load(folder / "olivetti_faces.npz") as file:
        return file["X"] / 255, file["glasses"].astype(bool), file["subject"]


def draw(path: str, rows: np.ndarray) -> None:
    """Save faces of shape (n_strengths, n_faces, n_pixels) as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    draw_images(ax, rows.reshape(*rows.shape[:2], 64, 64), cmap="gray")
    ax.set_yticks(np.arange(len(rows)) * 65 + 31.5, [f"{strength:g}" for strength in STRENGTHS])
    ax.set_ylabel("strength of “glasses”")
    figure.savefig(path)


def main(path: str | None):
    """Print how sure the classifier is of glasses, by the strength of the edit."""
    X, wears_glasses, person = faces()
    new = np.isin(person, SET_ASIDE)
    classifier = make_pipeline(PCA(60, whiten=True, random_state=0), LogisticRegression(C=0.1, max_iter=1000))
    classifier.fit(X[~new], wears_glasses[~new])
    vae = VAETransformer(
        50, likelihood=Gaussian("shared", link="logit"), hidden_layer_sizes=(256,), learning_rate="cosine",
        learning_rate_init=1e-3, max_iter=150, random_state=0, device="cpu",
    ).fit(X[~new])  # fmt: skip
    glasses = vae.attribute_direction(X[~new], wears_glasses[~new])
    without, has = X[new & ~wears_glasses], X[new & wears_glasses]
    print(f"# classifier: {classifier.score(X[new], wears_glasses[new]):.0%} of the new faces are recognised unedited")
    print(f"{'strength':<10}{f'on, {len(without)} faces':>16}{f'off, {len(has)} faces':>16}   mean probability of glasses")
    put_on = [vae.edit(without, glasses, strength, keep_residual=True) for strength in STRENGTHS]
    taken_off = [vae.edit(has, -glasses, strength, keep_residual=True) for strength in STRENGTHS]
    for strength, on, off in zip(STRENGTHS, put_on, taken_off):
        print(f"{strength:<10g}" + "".join(f"{classifier.predict_proba(rows)[:, 1].mean():>16.2f}" for rows in (on, off)))
    if path is not None:
        draw(path, np.stack(put_on)[:, ::7])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", help="where to draw some of the edited faces")
    main(parser.parse_args().figure)
