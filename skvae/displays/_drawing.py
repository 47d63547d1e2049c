"""What displays have in common: axes, colours, images in a grid, and checks."""

import math
from numbers import Integral, Real

import numpy as np
from sklearn.utils.validation import check_is_fitted

# Paul Tol's palettes "bright" and "muted": their colours differ for every common form of colour blindness.
FEW_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
MANY_COLOURS = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#888888",
)  # fmt: skip


def draw_images(ax, images, **kwargs):
    """Draw images as one picture, with a gap of one pixel between them.

    Parameters
    ----------
    ax : matplotlib Axes
        Where to draw; ticks and frame are taken away.

    images : ndarray of shape (n_rows, n_columns, height, width) or (n_rows, n_columns, height, width, 3)
        The images, in the rows and columns in which they will stand; with 3 channels in colours.

    **kwargs : dict
        Passed to `ax.imshow`; of colours, `vmin` and `vmax` are the numbers shown as dark and as bright, the lowest and the
        highest of all by default.
    """
    n_rows, n_columns, height, width, *channels = images.shape
    canvas = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1, *channels), np.nan)
    for i in range(n_rows):
        for j in range(n_columns):
            canvas[i * (height + 1) :, j * (width + 1) :][:height, :width] = images[i, j]
    if channels == [3]:
        canvas = _as_colours(canvas, kwargs.pop("vmin", None), kwargs.pop("vmax", None))
    ax.imshow(canvas, **{"cmap": "gray_r", "interpolation": "nearest", **kwargs})
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _as_colours(canvas, low, high):
    """Return colours from 0 to 1, by the lowest and the highest number of all as shades of grey are; the gaps are white."""
    low, high = np.nanmin(canvas) if low is None else low, np.nanmax(canvas) if high is None else high
    return np.nan_to_num(np.clip((canvas - low) / (high - low if high > low else 1), 0, 1), nan=1.0)


def new_axes(ax, who, size=None):
    """Return the axes to draw on: those given, or those of a new figure of `size` inches."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{who} draws with matplotlib, which is not installed: pip install 'skvae[plot]'.") from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def check_estimator(estimator, who):
    """Refuse what is not a fitted estimator of this package."""
    if not hasattr(estimator, "posterior_moments"):
        raise TypeError(
            f"{who} draws a fitted VAETransformer, got {type(estimator).__name__}. Of a search, pass best_estimator_; of a "
            "pipeline, the last step and the data that arrive there: pipeline[-1] and pipeline[:-1].transform(X)."
        )
    check_is_fitted(estimator)


def two_components(estimator, components, who):
    """Return the numbers of the two components to draw."""
    n = estimator.n_components_
    if n < 2:
        raise ValueError(f"{who} draws two components, but this model has one. Fit with n_components=2 or more.")
    if components is None:
        return tuple(int(i) for i in np.argsort(-estimator.kl_per_component_, kind="stable")[:2])
    components = tuple(components)
    if len(set(components)) != 2 or len(components) != 2 or not all(isinstance(i, Integral) and 0 <= i < n for i in components):
        raise ValueError(f"components must be two different numbers from 0 to {n - 1}, got {components!r}.")
    return components


def check_images(estimator, image_shape, who):
    """Refuse an estimator of columns that are no numbers, and a shape that does not hold its rows."""
    texts = [column.name for column in estimator.schema_ if not all(isinstance(level, Real) for level in column.categories)]
    if texts:
        raise ValueError(f"{who} draws images, whose pixels are numbers, and {len(texts)} column(s) are none: {texts[:5]}.")
    check_image_shape(image_shape, estimator.n_features_in_)


def check_image_shape(image_shape, n_columns):
    """Refuse a shape that does not hold a row, or of which there is no picture."""
    shape = tuple(image_shape)
    is_whole = all(isinstance(size, Integral) for size in shape)
    if not (is_whole and (len(shape) == 2 or len(shape) == 3 and shape[2] in (1, 3)) and math.prod(shape) == n_columns):
        raise ValueError(
            "image_shape must be (height, width), or (height, width, channels) with 1 channel or 3 for red, green and blue, "
            f"of which the product is {n_columns} columns, got {image_shape!r}."
        )


def as_images(rows, image_shape):
    """Return rows (..., n_columns) as images of shape (..., height, width), or (..., height, width, 3) in colours."""
    grey = len(image_shape) == 2 or image_shape[2] == 1
    return rows.reshape(*rows.shape[:-1], *(image_shape[:2] if grey else image_shape))
