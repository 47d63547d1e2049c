"""Rows beside their reconstructions."""

import numpy as np

from skvae.displays._drawing import FEW_COLOURS, as_images, check_estimator, check_image_shape, draw_images, new_axes

_MAX_BARS = 30
_MAX_IMAGES = 10


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

    image_shape : tuple of int, default=None
        Height and width, and the number of channels, 1 or 3, if there are any, where rows are images.

    table_columns : sequence of str, default=None
        Names of all columns of the table, in its order, if those of `feature_names` are but some of them.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where the rows were drawn.

    figure_ : matplotlib Figure
        The figure that holds `ax_`.

    explained_ : ndarray of shape (n_features,)
        Share of the variance of each column that the reconstruction explains: 1 is all of it, 0 no more than the column's mean
        does; below 0 it does worse. NaN for columns that do not vary, or have no cells.

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

    def __init__(self, *, original, reconstruction, feature_names, image_shape=None, table_columns=None):
        self.original = original
        self.reconstruction = reconstruction
        self.feature_names = feature_names
        self.image_shape = image_shape
        self.table_columns = table_columns

    @property
    def explained_(self):
        """Share of the variance of the observed cells of each column that the reconstruction explains."""
        return np.array([_explained(*columns) for columns in zip(self.original.T, self.reconstruction.T, strict=True)])

    @classmethod
    def from_estimator(cls, estimator, X, *, image_shape=None, column=None, ax=None, **kwargs):
        """Draw rows beside their reconstructions.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator.

        X : array-like of shape (n_samples, n_features)
            The rows.

        image_shape : tuple of int, default=None
            Height and width, or height, width and 3 for colours, where rows are images: the first ten are drawn above their
            reconstructions. None draws a bar per column, the share of its variance that the reconstruction explains.

        column : str or int, default=None
            Name of a column of numbers, or its place in the table: draws its values against their reconstructions.

        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.imshow`, `ax.barh` or `ax.scatter`, whichever draws.

        Returns
        -------
        display : ReconstructionDisplay
            The display, drawn.
        """
        check_estimator(estimator, cls.__name__)
        numbers = [j for j, column in enumerate(estimator.schema_) if not column.categories]
        if not numbers:
            raise ValueError("X has no column of numbers, which are what this figure shows.")
        original, reconstruction = (estimator._cells(table)[:, numbers] for table in (X, estimator.reconstruct(X)))
        display = cls(
            original=original.astype(np.float64),
            reconstruction=reconstruction.astype(np.float64),
            feature_names=[estimator.schema_[j].name for j in numbers],
            image_shape=image_shape,
            table_columns=[column.name for column in estimator.schema_],
        )
        return display.plot(ax, column=column, **kwargs)

    def plot(self, ax=None, *, column=None, **kwargs):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        column : str or int, default=None
            Name of a column of numbers, or its place in the table: draws its values against their reconstructions.

        **kwargs : dict
            Passed to `ax.imshow`, `ax.barh` or `ax.scatter`, whichever draws.

        Returns
        -------
        self : ReconstructionDisplay
            The display.
        """
        column = None if column is None else self._number_of(column)
        if self.image_shape is not None:
            check_image_shape(self.image_shape, self.original.shape[1])
        if column is not None:
            ax = new_axes(ax, type(self).__name__)
            self._draw_column(ax, column, kwargs)
        elif self.image_shape is not None:
            ax = new_axes(ax, type(self).__name__, (7, 2))
            self._draw_images(ax, kwargs)
        else:
            ax = new_axes(ax, type(self).__name__, (6.4, 1 + 0.2 * min(len(self.feature_names), _MAX_BARS)))
            self._draw_bars(ax, kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _number_of(self, column):
        """Return which of the columns of numbers is given by its name or its place in the table."""
        shown = list(self.feature_names)
        names = shown if self.table_columns is None else list(self.table_columns)
        if column not in names:
            if not isinstance(column, (int, np.integer)) or not -len(names) <= column < len(names):
                raise ValueError(
                    f"There is no column {column!r}. Pass a number below {len(names)}, or one of the names {shown[:5]}, ..."
                )
            column = names[column]
        if column not in shown:
            raise ValueError(
                f"Column {column!r} has categories, and this figure shows columns of numbers. Use one of {shown[:5]}, ..."
            )
        return shown.index(column)

    def _draw_images(self, ax, kwargs):
        """Draw a row of images above the row of their reconstructions."""
        n = min(len(self.original), _MAX_IMAGES)
        images = as_images(np.stack([self.original[:n], self.reconstruction[:n]]), self.image_shape)
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
            **{"color": FEW_COLOURS[0], "height": 0.75, **kwargs},
        )  # fmt: skip
        ax.set_yticks(np.arange(len(shown)), [self.feature_names[i] for i in shown], fontsize="small")
        less = f" ({len(shown)} lowest of {len(order)} columns)" if len(shown) < len(order) else ""
        ax.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4), xlabel=f"share of variance reconstructed{less}")

    def _draw_column(self, ax, column, kwargs):
        """Draw the values of one column against their reconstructions, with the line where both agree."""
        x, y = _observed(self.original[:, column], self.reconstruction[:, column])
        if len(x):
            ax.axline((x.mean(), x.mean()), slope=1, color="0.6", lw=0.8, zorder=0)
        ax.scatter(x, y, **{"s": 10, "alpha": 0.6, "linewidths": 0.0, "color": FEW_COLOURS[0], **kwargs})
        name = self.feature_names[column]
        ax.set(xlabel=f"{name}, original", ylabel=f"{name}, reconstruction")


def _observed(x, y):
    """Return the observed cells of a column and their reconstructions."""
    return x[~np.isnan(x)], y[~np.isnan(x)]


def _explained(x, y):
    """Return the share of the variance of the observed cells of a column that its reconstruction explains; NaN without any."""
    x, y = _observed(x, y)
    varies = len(x) and x.max() > x.min()
    return 1 - np.square(x - y).mean() / x.var() if varies else np.nan
