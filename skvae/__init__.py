"""Variational auto-encoders for scikit-learn, after *Auto-Encoding Variational Bayes* (Kingma & Welling, 2013)."""

from skvae._course import DivergenceError
from skvae._population import fused_fits
from skvae._transformer import VAETransformer
from skvae.persistence import SkvaeFileError, load

__version__ = "0.1.0.dev0"

__all__ = ["DivergenceError", "SkvaeFileError", "VAETransformer", "__version__", "fused_fits", "load"]
