"""Variational auto-encoders for scikit-learn, after *Auto-Encoding Variational Bayes* (Kingma & Welling, 2013)."""

from skvae._transformer import VAETransformer

__version__ = "0.1.0.dev0"

__all__ = ["VAETransformer", "__version__"]
