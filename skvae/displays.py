"""Displays: figures of a fitted estimator, in scikit-learn's form; matplotlib is imported when one is drawn."""

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length, check_is_fitted

__all__ = ["LatentSpaceDisplay", "ReconstructionDisplay", "TrainingCurveDisplay"]

# Paul Tol's palettes "bright" and "muted": their colours differ for every common form of colour blindness.
_FEW_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_MANY_COLOURS = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#888888",
)  # fmt: skip
_MARKERS = "os^DvP<X>p"
_MAX_CLASSES = 10  # distinct labels that get colours of their own; more numbers than that are drawn as values
_MAX_RATE_CHANGES = 8  # beyond which a learning rate is a smooth schedule, whose every step need not be marked
_MAX_BARS = 30
_MAX_IMAGES = 10


class TrainingCurveDisplay:
    """Training curve: the bound over the epochs, in nats per row, with the epochs at which the learning rate changed.

    Make one with :meth:`from_estimator`; all parameters are kept as attributes. The vertical axis shows in full what comes
    after the first tenth of training; the steep rise before it may begin below.

    Parameters
    ----------
    epoch : ndarray of shape (n_measurements,)
        Epochs after which the bound was measured.

    lower_bound : ndarray of shape (n_measurements,)
        The ELBO on the rows by which training is judged (those set aside by early stopping, else the training rows), in nats
        per row in the units of the data.

    objective : ndarray of shape (n_measurements,)
        Mean of the objective over the training rows since the measurement before, in nats per row.

    learning_rate : ndarray of shape (n_measurements,)
        The learning rate of those epochs.

    name : str, default=None
        What the curve is called in the legend, before the names of its two lines.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the curve was drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    lines_ : list of matplotlib Artist
        The line of the objective and the line of the lower bound.

    See Also
    --------
    VAETransformer : Its attribute `history_` holds the numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import TrainingCurveDisplay
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, learning_rate="cosine", max_iter=20, random_state=0).fit(X)
    >>> display = TrainingCurveDisplay.from_estimator(vae)
    >>> display.ax_.get_ylabel()
    'nats per row'
    """

    def __init__(self, *, epoch, lower_bound, objective, learning_rate, name=None):
        self.epoch = epoch
        self.lower_bound = lower_bound
        self.objective = objective
        self.learning_rate = learning_rate
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, *, name=None, ax=None, **kwargs):
        """Draw the training curve of a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator.

        name : str, default=None
            What the curve is called in the legend, before the names of its two lines.

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.plot` for both lines.

        Returns
        -------
        display : TrainingCurveDisplay
            The display, drawn.
        """
        _check_estimator(estimator, cls.__name__)
        history = {key: estimator.history_[key] for key in ("epoch", "lower_bound", "objective", "learning_rate")}
        return cls(**history, name=name).plot(ax, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        name : str, default=None
            What the curve is called in the legend; None takes the display's `name`.

        **kwargs : dict
            Passed to `ax.plot` for both lines.

        Returns
        -------
        self : TrainingCurveDisplay
            The display.
        """
        ax = _axes(ax, type(self).__name__)
        name = self.name if name is None else name
        prefix = "" if name is None else f"{name}: "
        self.lines_ = [
            *ax.plot(
                self.epoch, self.objective,
                **{"color": _FEW_COLOURS[0], "lw": 1, "alpha": 0.7, "label": prefix + "training objective", **kwargs},
            ),
            *ax.plot(
                self.epoch, self.lower_bound,
                **{"color": _FEW_COLOURS[1], "lw": 2, "label": prefix + "lower bound", **kwargs},
            ),
        ]  # fmt: skip
        for epoch, rate in self._rate_changes():
            ax.axvline(epoch, color="0.6", lw=0.8, ls=":", zorder=0)
            ax.annotate(
                f"rate {rate:.2g}", (epoch, 0.3), xycoords=("data", "axes fraction"), xytext=(2, 0),
                textcoords="offset points", rotation=90, ha="left", va="bottom", fontsize="x-small", color="0.4",
            )  # fmt: skip
        ax.set(xlabel="epoch", ylabel="nats per row")
        _show_the_later_part(ax, self.lower_bound, self.objective)
        ax.legend(loc="lower right", framealpha=1.0, edgecolor="none")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _rate_changes(self):
        """Return the last epoch before each change of the learning rate, and the rate that followed."""
        rate = np.asarray(self.learning_rate)
        before = np.flatnonzero(rate[1:] != rate[:-1])
        return [] if len(before) > _MAX_RATE_CHANGES else [(self.epoch[i], rate[i + 1]) for i in before]


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
        _check_estimator(estimator, cls.__name__)
        components = _two_components(estimator, components)
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
        ax = _axes(ax, type(self).__name__)
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
        colours = _FEW_COLOURS if len(groups) <= len(_FEW_COLOURS) else _MANY_COLOURS
        for (label, rows), colour, marker in zip(groups, colours, _MARKERS):
            drawn = {"color": colour, "marker": marker, "label": label, **style}
            self.scatters_.append(ax.scatter(*self.mean[rows].T, **drawn))
            if ellipses:
                self.ellipses_.append(_add_ellipses(ax, self.mean[rows], self.std[rows], edgecolors=colour))
            if len(groups) > len(_FEW_COLOURS):
                _write(ax, label, np.median(self.mean[rows], axis=0), colour)
        if self.y is not None:
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


class ReconstructionDisplay:
    """Reconstruction: what the latent space keeps of rows, as images or column by column.

    Make one with :meth:`from_estimator`; all parameters are kept as attributes.

    Parameters
    ----------
    original : ndarray of shape (n_samples, n_features)
        Rows.

    reconstruction : ndarray of shape (n_samples, n_features)
        Means of p(x|z) at their posterior means.

    feature_names : sequence of str
        Names of the columns.

    image_shape : tuple of two int, default=None
        Height and width, where rows are images.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the rows were drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    explained_ : ndarray of shape (n_features,)
        Share of the variance of each column that the reconstruction explains: 1 is all of it, 0 no more than the column's mean
        does; below 0 it does worse. NaN for columns that do not vary.

    See Also
    --------
    VAETransformer : Its method `reconstruct` gives the numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import ReconstructionDisplay
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(2, learning_rate="cosine", max_iter=20, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X)
    >>> display.explained_.shape
    (4,)
    """

    def __init__(self, *, original, reconstruction, feature_names, image_shape=None):
        self.original = original
        self.reconstruction = reconstruction
        self.feature_names = feature_names
        self.image_shape = image_shape

    @property
    def explained_(self):
        """Share of the variance of each column that the reconstruction explains."""
        varies = np.ptp(self.original, axis=0) > 0
        lost = np.square(self.original - self.reconstruction).mean(axis=0)
        variance = np.where(varies, self.original.var(axis=0), np.nan)
        return 1 - lost / variance

    @classmethod
    def from_estimator(cls, estimator, X, *, image_shape=None, column=None, ax=None, **kwargs):
        """Draw rows beside their reconstructions.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator.

        X : array-like of shape (n_samples, n_features)
            The rows.

        image_shape : tuple of two int, default=None
            Height and width, where rows are images: the first ten are drawn above their reconstructions. None draws a bar per
            column, the share of its variance that the reconstruction explains.

        column : str or int, default=None
            Name or number of a column: draws its values against their reconstructions.

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.imshow`, `ax.barh` or `ax.scatter`, whichever draws.

        Returns
        -------
        display : ReconstructionDisplay
            The display, drawn.
        """
        _check_estimator(estimator, cls.__name__)
        reconstruction = estimator.reconstruct(X)
        display = cls(
            original=check_array(X, dtype=np.float64),
            reconstruction=np.asarray(reconstruction, dtype=np.float64),
            feature_names=[column.name for column in estimator.schema_],
            image_shape=image_shape,
        )
        return display.plot(ax, column=column, **kwargs)

    def plot(self, ax=None, *, column=None, **kwargs):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        column : str or int, default=None
            Name or number of a column: draws its values against their reconstructions.

        **kwargs : dict
            Passed to `ax.imshow`, `ax.barh` or `ax.scatter`, whichever draws.

        Returns
        -------
        self : ReconstructionDisplay
            The display.
        """
        column = None if column is None else self._number_of(column)
        if self.image_shape is not None:
            _check_image_shape(self.image_shape, self.original.shape[1])
        if column is not None:
            ax = _axes(ax, type(self).__name__)
            self._draw_column(ax, column, kwargs)
        elif self.image_shape is not None:
            ax = _axes(ax, type(self).__name__, (7, 2))
            self._draw_images(ax, kwargs)
        else:
            ax = _axes(ax, type(self).__name__, (6.4, 1 + 0.2 * min(len(self.feature_names), _MAX_BARS)))
            self._draw_bars(ax, kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _number_of(self, column):
        """Return the number of a column that is given by name or number."""
        names = list(self.feature_names)
        if column in names:
            return names.index(column)
        if isinstance(column, (int, np.integer)) and -len(names) <= column < len(names):
            return int(column)
        raise ValueError(
            f"There is no column {column!r}. Pass a number below {len(names)}, or one of the names {names[:5]}, ..."
        )

    def _draw_images(self, ax, kwargs):
        """Draw a row of images above the row of their reconstructions."""
        n = min(len(self.original), _MAX_IMAGES)
        images = np.stack([self.original[:n], self.reconstruction[:n]]).reshape(2, n, *self.image_shape)
        draw_images(ax, images, **kwargs)
        height = self.image_shape[0]
        ax.set_yticks([height / 2 - 0.5, height * 1.5 + 0.5], ["original", "reconstruction"])
        ax.tick_params(axis="y", length=0)

    def _draw_bars(self, ax, kwargs):
        """Draw the share of explained variance of every column, the worst at the bottom."""
        shares = self.explained_
        order = np.argsort(shares)[: np.isfinite(shares).sum()]  # NaN come last
        shown = order[:_MAX_BARS]
        ax.barh(
            np.arange(len(shown)), np.clip(shares[shown], 0, 1),
            **{"color": _FEW_COLOURS[0], "height": 0.75, **kwargs},
        )  # fmt: skip
        ax.set_yticks(np.arange(len(shown)), [self.feature_names[i] for i in shown], fontsize="small")
        less = f" ({len(shown)} lowest of {len(order)} columns)" if len(shown) < len(order) else ""
        ax.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4), xlabel=f"share of variance reconstructed{less}")

    def _draw_column(self, ax, column, kwargs):
        """Draw the values of one column against their reconstructions, with the line where both agree."""
        x, y = self.original[:, column], self.reconstruction[:, column]
        ax.axline((x.mean(), x.mean()), slope=1, color="0.6", lw=0.8, zorder=0)
        ax.scatter(x, y, **{"s": 10, "alpha": 0.6, "linewidths": 0.0, "color": _FEW_COLOURS[0], **kwargs})
        name = self.feature_names[column]
        ax.set(xlabel=f"{name}, original", ylabel=f"{name}, reconstruction")


def draw_images(ax, images, **kwargs):
    """Draw images of shape (n_rows, n_columns, height, width) as one picture with a gap of one pixel between them."""
    n_rows, n_columns, height, width = images.shape
    canvas = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1), np.nan)
    for i in range(n_rows):
        for j in range(n_columns):
            canvas[i * (height + 1) :, j * (width + 1) :][:height, :width] = images[i, j]
    ax.imshow(canvas, **{"cmap": "gray_r", "interpolation": "nearest", **kwargs})
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _axes(ax, who, size=None):
    """Return the axes to draw on: those given, or those of a new figure of `size` inches."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{who} draws with matplotlib, which is not installed: pip install 'skvae[plot]'.") from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def _show_the_later_part(ax, *curves):
    """Limit the vertical axis to what comes after the first tenth: an untrained model is often far below all that follows."""
    late = np.concatenate([curve[len(curve) // 10 + (len(curve) > 1) :] for curve in curves])
    margin = 0.05 * np.ptp(late)
    low, high = late.min() - margin, late.max() + margin
    if not ax.get_autoscaley_on():  # another curve is there
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    if low < high:
        ax.set_ylim(low, high)


def _check_estimator(estimator, who):
    """Refuse what is not a fitted estimator of this package."""
    if not hasattr(estimator, "posterior_moments"):
        raise TypeError(
            f"{who} draws a fitted VAETransformer, got {type(estimator).__name__}. Of a Pipeline, pass the last step and the "
            "data that arrive there: pipeline[-1] and pipeline[:-1].transform(X)."
        )
    check_is_fitted(estimator)


def _two_components(estimator, components):
    """Return the numbers of the two components to draw."""
    n = estimator.n_components_
    if n < 2:
        raise ValueError("LatentSpaceDisplay draws two components, but this model has one. Fit with n_components=2 or more.")
    if components is None:
        return tuple(int(i) for i in np.argsort(-estimator.kl_per_component_, kind="stable")[:2])
    components = tuple(components)
    if len(components) != 2 or not all(0 <= i < n for i in components):
        raise ValueError(f"components must be two numbers from 0 to {n - 1}, got {components!r}.")
    return components


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


def _check_image_shape(image_shape, n_columns):
    """Refuse a shape that does not hold a row."""
    shape = tuple(image_shape)
    if len(shape) != 2 or shape[0] * shape[1] != n_columns:
        raise ValueError(f"image_shape must be (height, width) with height * width = {n_columns} columns, got {image_shape!r}.")
