"""The training curve."""

import numpy as np

from skvae.displays._drawing import FEW_COLOURS, check_estimator, new_axes

_MAX_RATE_CHANGES = 8  # beyond which a learning rate is a smooth schedule, whose every step need not be marked


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
        check_estimator(estimator, cls.__name__)
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
        ax = new_axes(ax, type(self).__name__)
        name = self.name if name is None else name
        prefix = "" if name is None else f"{name}: "
        self.lines_ = [
            *ax.plot(
                self.epoch, self.objective,
                **{"color": FEW_COLOURS[0], "lw": 1, "alpha": 0.7, "label": prefix + "training objective", **kwargs},
            ),
            *ax.plot(
                self.epoch, self.lower_bound,
                **{"color": FEW_COLOURS[1], "lw": 2, "label": prefix + "lower bound", **kwargs},
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


def _show_the_later_part(ax, *curves):
    """Limit the vertical axis to what comes after the first tenth: an untrained model is often far below all that follows."""
    late = np.concatenate([curve[len(curve) // 10 + (len(curve) > 1) :] for curve in curves])
    margin = 0.05 * np.ptp(late)
    low, high = late.min() - margin, late.max() + margin
    if not ax.get_autoscaley_on():  # another curve is there
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    if low < high:
        ax.set_ylim(low, high)
