"""Warnings that point at the line of the user, however many of our own calls lie between."""

import contextlib
import os
import sys
import warnings

from skvae._sklearn import WRAPPERS

_OURS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, contextlib.__file__, *WRAPPERS)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of the package, and of what wraps its methods, from which it was called."""
    level, frame = 2, sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OURS) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
