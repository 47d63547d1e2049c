"""Rows in the latent space."""

import numpy as np
from sklearn.utils.validation import check_consistent_length

from skvae.displays._drawing import FEW_COLOURS, MANY_COLOURS, check_estimator, new_axes, two_components

_MARKERS = "os^DvP<X>p"
_MAX_CLASSES = 10  # distinct labels that get colours of their own; more numbers than that are drawn as values


class LatentSpaceDisplay:
    """Latent space: the posterior means of every row in two components, coloured by label or by value.

    Make one with :meth:`from_estimator`; all parameters are kept as attributes.

    Parameters
    ----------
    mean : ndarray of shape (n_samples, 2)
        Posterior means in the two components.

    std : ndarray of shape (n_samples, 2)
        Posterior standard deviations in them.

    components : tuple of two int
        Numbers of the components.

    kl : ndarray of shape (2,)
        How many nats the two components carry about a row, on average.

    y : array-like of shape (n_samples,), default=None
        Labels or values.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the rows were drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    scatters_ : list of matplotlib Artist
        The points, one artist per label.

    ellipses_ : list of matplotlib Artist
        The ellipses, one artist per label; empty without them.

    See Also
    --------
    VAETransformer : Its method `posterior_moments` gives the numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import LatentSpaceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, learning_rate="cosine", max_iter=20, random_state=0).fit(X)
    >>> display = LatentSpaceDisplay.from_estimator(vae, X, y, ellipses=True)
    >>> display.mean.shape
    (150, 2)
    """

    def __init__(self, *, mean, std, components, kl, y=None):
        self.mean = mean
        self.std = std
        self.components = components
        self.kl = kl
        self.y = y

    @classmethod
    def from_estimator(cls, estimator, X, y=None, *, components=None, ellipses=False, ax=None, **kwargs):
        """Draw rows in the latent space of a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator with at least two components.

        X : array-like of shape (n_samples, n_features)
            The rows.

        y : array-like of shape (n_samples,), default=None
            Labels or values that colour the rows. Text and up to ten different numbers are labels; more numbers are values.

        components : tuple of two int, default=None
            Which components to draw; None takes the two that carry most nats (`kl_per_component_`).

        ellipses : bool, default=False
            Whether to draw the posterior of each row as an ellipse of one standard deviation.

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.scatter`.

        Returns
        -------
        display : LatentSpaceDisplay
            The display, drawn.
        """
        check_estimator(estimator, cls.__name__)
        components = two_components(estimator, components, cls.__name__)
        if y is not None:
            check_consistent_length(X, y)
        moments = estimator.posterior_moments(X)
        pick = list(components)
        kl = np.asarray(estimator.kl_per_component_)[pick]
        display = cls(mean=moments.mean[:, pick], std=moments.std[:, pick], components=components, kl=kl, y=y)
        return display.plot(ax, ellipses=ellipses, **kwargs)

    def plot(self, ax=None, *, ellipses=False, **kwargs):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        ellipses : bool, default=False
            Whether to draw the posterior of each row as an ellipse of one standard deviation.

        **kwargs : dict
            Passed to `ax.scatter`.

        Returns
        -------
        self : LatentSpaceDisplay
            The display.
        """
        ax = new_axes(ax, type(self).__name__)
        self.scatters_, self.ellipses_ = [], []
        style = {"s": 14, "linewidths": 0.0, "alpha": 0.8, **kwargs}
        if self.y is None or _are_labels(self.y):
            self._draw_labels(ax, ellipses, style)
        else:
            self._draw_values(ax, ellipses, style)
        for axis, component, kl in zip((ax.xaxis, ax.yaxis), self.components, self.kl):
            axis.set_label_text(f"component {component}  ({kl:.2f} nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_labels(self, ax, ellipses, style):
        """Draw one group of rows per label."""
        groups = _groups(self.y, len(self.mean))
        are_written = len(groups) > len(FEW_COLOURS)
        colours = MANY_COLOURS if are_written else FEW_COLOURS
        for (label, rows), colour, marker in zip(groups, colours, _MARKERS):
            drawn = {"color": colour, "marker": marker, "label": label, **style}
            self.scatters_.append(ax.scatter(*self.mean[rows].T, **drawn))
            if ellipses:
                self.ellipses_.append(_add_ellipses(ax, self.mean[rows], self.std[rows], edgecolors=colour))
            if are_written:
                _write(ax, label, np.median(self.mean[rows], axis=0), colour)
        if self.y is not None and not are_written:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handletextpad=0.2)

    def _draw_values(self, ax, ellipses, style):
        """Draw all rows, coloured by value, with a colour bar."""
        values = np.asarray(self.y, dtype=np.float64)
        drawn = {"c": values, "cmap": "viridis", **style}
        self.scatters_.append(ax.scatter(*self.mean.T, **drawn))
        if ellipses:
            self.ellipses_.append(_add_ellipses(ax, self.mean, self.std, edgecolors=self.scatters_[0].to_rgba(values)))
        bar = ax.figure.colorbar(self.scatters_[0], ax=ax)
        bar.set_label(getattr(self.y, "name", None) or "y")
        bar.solids.set_alpha(1.0)


def _are_labels(y):
    """Tell whether y names groups: text, or few different numbers."""
    y = np.asarray(y)
    return y.dtype.kind not in "fiu" or len(np.unique(y)) <= _MAX_CLASSES


def _groups(y, n_rows):
    """Return pairs of label and row numbers; the rarest labels beyond ten share the last group."""
    if y is None:
        return [(None, np.arange(n_rows))]
    y = np.asarray(y).astype(str) if np.asarray(y).dtype.kind not in "fiub" else np.asarray(y)
    labels, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(labels) <= _MAX_CLASSES:
        return [(label, np.flatnonzero(inverse == i)) for i, label in enumerate(labels)]
    kept = np.sort(np.argsort(-counts, kind="stable")[: _MAX_CLASSES - 1])
    others = f"{len(labels) - len(kept)} others"
    groups = [(labels[i], np.flatnonzero(inverse == i)) for i in kept]
    return [*groups, (others, np.flatnonzero(~np.isin(inverse, kept)))]


def _write(ax, label, place, colour):
    """Write a label into the middle of its group: more than a few colours are hard to tell apart."""
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
    ax.text(*place, str(label), ha="center", va="center", bbox=box, zorder=3)


def _add_ellipses(ax, mean, std, **kwargs):
    """Add an ellipse of one standard deviation around every mean."""
    from matplotlib.collections import EllipseCollection

    ellipses = EllipseCollection(
        *(2 * std).T, np.zeros(len(std)), units="xy", offsets=mean, offset_transform=ax.transData,
        facecolors="none", linewidths=0.5, alpha=0.5, **kwargs,
    )  # fmt: skip
    return ax.add_collection(ellipses)
