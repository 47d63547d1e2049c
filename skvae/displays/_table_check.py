"""How alike a table and rows drawn from a model are."""

import numpy as np

from skvae.displays._drawing import FEW_COLOURS, check_estimator, new_axes
from skvae.evaluation import posterior_predictive_check

_MAX_COLUMNS = 30
_FEW_COLUMNS = 20  # of which the names fit side by side


class TableCheckDisplay:
    """Table check: distances of every column between real and drawn rows, and the associations of columns in both.

    Make one with :meth:`from_estimator` or :meth:`from_comparison`; all parameters are kept as attributes.

    Parameters
    ----------
    comparison : TableComparison
        What :func:`skvae.evaluation.compare_tables` or :func:`skvae.evaluation.posterior_predictive_check` has found.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (3,)
        Where the bars, the real associations and the others were drawn.

    figure_ : matplotlib Figure
        The figure that holds them.

    See Also
    --------
    skvae.evaluation.posterior_predictive_check : The numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.displays import TableCheckDisplay
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(2, random_state=0).fit(X.iloc[::2])
    >>> display = TableCheckDisplay.from_estimator(vae, X.iloc[1::2])
    >>> display.comparison.distances.shape
    (4,)
    """

    def __init__(self, *, comparison):
        self.comparison = comparison

    @classmethod
    def from_estimator(cls, estimator, X, *, random_state=None, axes=None, **kwargs):
        """Draw as many rows from a model as X has, and the figure of how alike both are.

        Parameters
        ----------
        estimator : VAETransformer
            A fitted estimator.

        X : array-like of shape (n_samples, n_features)
            Rows that the estimator has not been trained on.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from; None gives the same ones for every call, a function of the model's seed.

        axes : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.barh`.

        Returns
        -------
        display : TableCheckDisplay
            The display, drawn.
        """
        check_estimator(estimator, cls.__name__)
        return cls.from_comparison(posterior_predictive_check(estimator, X, random_state), axes=axes, **kwargs)

    @classmethod
    def from_comparison(cls, comparison, *, axes=None, **kwargs):
        """Draw the figure of a comparison.

        Parameters
        ----------
        comparison : TableComparison
            What :func:`skvae.evaluation.compare_tables` has found.

        axes : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.barh`.

        Returns
        -------
        display : TableCheckDisplay
            The display, drawn.
        """
        return cls(comparison=comparison).plot(axes, **kwargs)

    def plot(self, axes=None, **kwargs):
        """Draw the distances of the columns, the largest on top, and beside each its associations with the same columns.

        Parameters
        ----------
        axes : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        **kwargs : dict
            Passed to `ax.barh`.

        Returns
        -------
        self : TableCheckDisplay
            The display.
        """
        shown = np.argsort(-self.comparison.distances, kind="stable")[:_MAX_COLUMNS]
        is_new = axes is None
        if is_new:
            axes = _three_axes(type(self).__name__, len(shown))
        axes = np.asarray(axes, dtype=object).ravel()
        if len(axes) != 3:
            raise ValueError(f"axes must be three Axes, for the distances and two tables of associations, got {len(axes)}.")
        self._draw_distances(axes[0], shown, kwargs)
        self._draw_associations(axes[1:], shown)
        auc = f"classifier AUC {self.comparison.auc:.2f} (0.5: cannot tell real from drawn rows)"
        if is_new:
            axes[0].figure.suptitle(auc)
        else:  # the title of a figure is its owner's
            axes[1].set_title(f"{auc}\n\n{axes[1].get_title()}", fontsize="medium")
        self.axes_, self.figure_ = axes, axes[0].figure
        return self

    def _draw_distances(self, ax, shown, kwargs):
        """Draw a bar for every column, and a mark at what chance makes of it."""
        found, places = self.comparison, np.arange(len(shown))
        ax.barh(places, found.distances[shown], **{"color": FEW_COLOURS[0], "height": 0.75, **kwargs})
        ax.plot(found.chance[shown], places, "|", color="black", ms=8, label="95 % of chance")
        ax.set_yticks(places, self._names(shown), fontsize="small")
        n_columns = len(found.names)
        less = f"\n{len(shown)} largest of {n_columns} columns" if len(shown) < n_columns else ""
        ax.set(xlim=(0, None), ylim=(len(shown) - 0.5, -0.5), xlabel=f"distance between distributions (0 to 1){less}")
        ax.xaxis.set_major_locator(_few_ticks())
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")

    def _names(self, shown):
        return [str(self.comparison.names[j]) for j in shown]

    def _draw_associations(self, axes, shown):
        """Draw the associations of both tables in one scale, with columns in the order of the bars and rows beside them."""
        both = (self.comparison.real_associations, self.comparison.synthetic_associations)
        names = self._names(shown)
        for ax, title, associations in zip(axes, ("real rows", "drawn rows"), both):
            image = ax.imshow(associations[np.ix_(shown, shown)], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
            ax.set_title(f"associations, {title}", fontsize="medium")
            size = "small" if len(shown) <= _FEW_COLUMNS else "x-small"
            ax.set_xticks(np.arange(len(shown)), names, fontsize=size, rotation=90)
            ax.set_yticks([])
        axes[-1].figure.colorbar(image, ax=list(axes), shrink=0.7, label="association")


def _few_ticks():
    """Return what sets no more ticks than numbers have room for."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _three_axes(who, n_columns):
    """Return three axes of a new figure beside each other."""
    figure = new_axes(None, who, (11, max(4.0, 2.2 + 0.2 * n_columns))).figure
    figure.clear()
    return figure.subplots(1, 3, width_ratios=(1, 1, 1))
