"""Callbacks: what happens between epochs. To the engine a callback is a function `(progress, state) -> stop`."""

import os
from numbers import Integral

from skvae import persistence
from skvae._course import Callback, Progress
from skvae._warnings import warn


def tell_tasks(task, told: dict, outcome) -> Callback:
    """Return a callback that reports epochs to scikit-learn's callbacks, as subtasks of `task`, and to checkpoints."""
    estimator = told["estimator"]
    registered = getattr(estimator, "_skl_callbacks", [])
    if not registered:  # nobody listens, and telling costs as much as a few small steps
        return lambda progress, state: False
    checkpoints = [c for c in registered if isinstance(c, Checkpoint)]

    def end_of_epoch(progress: Progress, state) -> bool:
        for checkpoint in checkpoints:
            checkpoint.end_of_epoch(estimator, progress.epoch, outcome)
        epoch = task.subcontext(task_name="epoch")
        epoch.call_on_fit_task_begin(**told)
        return epoch.call_on_fit_task_end(**told, reconstruction_attributes=outcome)

    return end_of_epoch


class Printer:
    """Prints a line for every measurement of the bound, in nats per row in the units of the data."""

    def __init__(self, log_jacobian: float):
        self.log_jacobian = log_jacobian
        self.n_printed = 0

    def __call__(self, progress: Progress, state) -> bool:
        if len(progress.history["epoch"]) > self.n_printed:
            self.n_printed = len(progress.history["epoch"])
            last = {name: values[-1] for name, values in progress.history.items()}
            bound = last["lower_bound"] + self.log_jacobian
            print(f"epoch {last['epoch']:>5}  lower bound {bound:>12.4f} nats/row  learning rate {last['learning_rate']:.1e}")
        return False


class Checkpoint:
    """Saves the training every few epochs, so that an interrupted one can be finished (scikit-learn 1.9 or later).

    Load the file, set `warm_start=True` and fit the same data again: training ends with the model, to the last bit, that it
    would have ended with undisturbed. The file is at all times a whole one, and holds a fitted estimator that is ready for use.
    When it cannot be written, because the disk is full, there is a warning and training goes on.

    Give every estimator that trains a file of its own. A search clones its estimator with its callbacks, and all candidates
    would write the same file: set a checkpoint on single fits.

    Parameters
    ----------
    path : str or path-like
        The file, replaced as a whole each time.

    every : int, default=10
        Number of epochs between two saves, counted from the start of the training, also where it goes on after an interruption.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.callbacks import Checkpoint
    >>> vae = VAETransformer(n_components=2)
    >>> vae = vae.set_callbacks(Checkpoint("training.skvae", every=50))  # doctest: +SKIP
    """

    def __init__(self, path, every=10):
        if not isinstance(every, Integral) or every < 1:
            raise ValueError(f"every must be a whole number of epochs of at least 1, got {every!r}.")
        self.path = os.fsdecode(os.fspath(path))
        self.every = every

    def setup(self, estimator, context):
        """Refuse an estimator that cannot be saved before it trains rather than after."""
        if not hasattr(estimator, "save"):
            raise TypeError(
                f"A Checkpoint belongs to an estimator of skvae, not to {type(estimator).__name__}. In a pipeline, call "
                "set_callbacks of the step."
            )
        persistence.check_can_be_saved(estimator)

    def teardown(self, estimator, context):
        """Do nothing: there is nothing to clean up."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing when an epoch begins."""

    def on_fit_task_end(self, estimator, context):
        """Do nothing: skvae calls `end_of_epoch`, because scikit-learn would evaluate the model after every epoch."""

    def end_of_epoch(self, estimator, epoch, outcome):
        """Save the fitted attributes that `outcome()` gives, if the number of the epoch says so."""
        if epoch % self.every:
            return
        try:
            persistence.write(self.path, estimator, outcome())
        except OSError as error:
            warn(f"The checkpoint {self.path!r} could not be written ({error}); training goes on.")
