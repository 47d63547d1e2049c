"""
Editing images in the latent space
==================================

Can one lean a digit over, or write it in bolder strokes, without ever having told the model what that means? In the
latent space an attribute is a direction: from the mean of the images without it to the mean of those that have it.
To edit an image is to take a step that way and decode. With photographs of faces the same steps put on glasses, or a
smile.
"""

# %%
# Data and model
# --------------
# 8 x 8 images of digits, with a third set aside. Only those are edited.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.displays import draw_images
from skvae.likelihoods import Bernoulli

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=1 / 3, random_state=0, stratify=y
)

images = Bernoulli(limits=(0, 16), binarize="dynamic")
vae = VAETransformer(n_components=12, likelihood=images, random_state=0).fit(X_train)

# %%
# Attributes
# ----------
# How far an image leans to the right is the slope of its ink: the covariance of column and height, over the variance
# of height. How bold it is, is the amount of its ink. An attribute says whether an image has more of it than is usual
# for its digit, so that the direction does not lead from one digit to another.


def lean(X):
    """Return how many columns to the right the ink moves per line upwards."""
    ink = X.reshape(-1, 8, 8) / X.sum(axis=1)[:, None, None]
    height, column = -np.arange(8.0), np.arange(8.0)
    mean_height, mean_column = ink.sum(axis=2) @ height, ink.sum(axis=1) @ column
    covariance = np.einsum("nij,i,j->n", ink, height, column) - mean_height * mean_column
    return covariance / (ink.sum(axis=2) @ height**2 - mean_height**2)


def ink(X):
    """Return the mean grey level."""
    return X.mean(axis=1)


def more_than_usual(values, digits):
    """Tell which values are above the median of their digit."""
    return values > np.array([np.median(values[digits == digit]) for digit in range(10)])[digits]


measures = {"lean": lean, "ink": ink}
directions = {
    name: vae.attribute_direction(X_train, more_than_usual(measure(X_train), y_train))
    for name, measure in measures.items()
}

# %%
# Steps
# -----
# Ten new images, one of each digit, in the middle row; above it steps in the direction of the attribute, below it
# steps away from it.

examples = X_test[[np.flatnonzero(y_test == digit)[0] for digit in range(10)]]
strengths = np.array([3.0, 1.5, 0.0, -1.5, -3.0])

fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for ax, (name, direction) in zip(axes, directions.items()):
    rows = np.stack([vae.edit(examples, direction, strength) for strength in strengths])
    draw_images(ax, rows.reshape(len(strengths), 10, 8, 8))
    ax.set_yticks(np.arange(len(strengths)) * 9 + 3.5, [f"{strength:+g}" for strength in strengths])
    ax.set_title(f"strength of “{name}”", fontsize="medium")
plt.show()

# %%
# Is it true?
# -----------
# The attribute can be measured again on the edited images, over all that were set aside: it should follow the step,
# and the other one should not.

steps = np.linspace(-3, 3, 13)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, (name, measure) in zip(axes, measures.items()):
    for direction_name, direction in directions.items():
        means = [measure(vae.edit(X_test, direction, strength)).mean() for strength in steps]
        ax.plot(steps, means, marker="o", ms=3, label=f"steps of “{direction_name}”")
    ax.set(xlabel="strength", ylabel=f"mean {name} of the edited images")
    ax.legend(frameon=False)
plt.show()

# %%
# Ways between images
# -------------------
# `interpolate` goes straight from one image to another in the latent space.

start, end = examples[[3, 4, 1, 0]], examples[[8, 9, 7, 6]]
ways = vae.interpolate(start, end, n_steps=10)

fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
draw_images(ax, ways.reshape(4, 10, 8, 8))
plt.show()

# %%
# What we see
# -----------
# The strokes lean over and grow bolder, and most digits stay what they are; three lengths of the direction are a long
# way, on which some become hard to read. The measured attribute follows its own step nearly in a straight line. The lean
# does not notice steps of ink; leaning over takes a little ink, since nobody has asked the directions to be independent.
# On the ways from one image to another, strokes move and close, and the images in between are mostly digits as well.
