"""Variational auto-encoders for scikit-learn, after *Auto-Encoding Variational Bayes* (Kingma & Welling, 2013)."""

import importlib

from skvae._course import DivergenceError
from skvae._population import fused_fits
from skvae._transformer import VAETransformer
from skvae.persistence import SkvaeFileError, load

__version__ = "0.1.0.dev0"

__all__ = ["DivergenceError", "SkvaeFileError", "VAETransformer", "__version__", "fused_fits", "load"]

_MODULES = ("displays", "evaluation")  # those that nothing else needs, read once they are asked for


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
