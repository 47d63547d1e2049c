"""Every private or recent scikit-learn name in one place, so that one file breaks when it moves."""

import sys
from types import FrameType

from sklearn import base
from sklearn.base import _fit_context
from sklearn.utils import _set_output
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class _NoTask:
        """A task of a fit that nobody watches."""

        def subcontext(self, **kwargs):
            return self

        def call_on_fit_task_begin(self, **kwargs):
            return False

        call_on_fit_task_end = call_on_fit_task_begin

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's mixin where there is none."""

        def set_callbacks(self, *callbacks):
            """Refuse: callbacks came with scikit-learn 1.9."""
            raise NotImplementedError("Callbacks need scikit-learn 1.9 or later: pip install -U scikit-learn.")

        def _init_callback_context(self, **kwargs):
            return _NoTask()


WRAPPERS = (base.__file__, _set_output.__file__)  # files of what wraps `fit` and `transform`


def runs_inside_another_fit(estimator) -> bool:
    """Tell whether a pipeline, a search, a cross-validation or the like has called the fit of an estimator that runs now."""
    if hasattr(estimator, "_parent_callback_ctx"):  # of whoever passes callbacks on
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("sklearn", "joblib") and frame.f_code.co_filename not in WRAPPERS:
            return True
        frame = frame.f_back
    return False


__all__ = [
    "WRAPPERS", "CallbackSupportMixin", "Interval", "StrOptions", "_check_sample_weight", "_fit_context",
    "runs_inside_another_fit",
]  # fmt: skip
