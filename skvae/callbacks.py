"""Callbacks: what happens between epochs. To the engine a callback is a function `(progress, state) -> stop`."""

import os
import warnings

from skvae._engine import Callback, Progress


def tell_tasks(task, told: dict, outcome) -> Callback:
    """Return a callback that reports epochs to scikit-learn's callbacks, as subtasks of `task`."""

    def end_of_epoch(progress: Progress, state) -> bool:
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
    would have ended with undisturbed.

    Parameters
    ----------
    path : str or path-like
        The file, replaced as a whole each time.

    every : int, default=10
        Number of epochs between two saves.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.callbacks import Checkpoint
    >>> vae = VAETransformer(n_components=2).set_callbacks(Checkpoint("training.skvae", every=50))
    """

    def __init__(self, path, every=10):
        self.path = os.fspath(path)
        self.every = every

    def setup(self, estimator, context):
        """Do nothing: there is nothing to prepare."""

    def teardown(self, estimator, context):
        """Do nothing: there is nothing to clean up."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing when an epoch begins."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Save at the end of every `every`-th epoch; a full disk is a warning, not the end of training."""
        if context.task_name != "epoch" or (context.task_id + 1) % self.every or fitted_estimator is None:
            return False
        try:
            fitted_estimator.save(self.path)
        except OSError as error:
            warnings.warn(f"The checkpoint {self.path!r} could not be written ({error}); training goes on.", stacklevel=2)
        return False
