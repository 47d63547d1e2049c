"""Displays: figures of a fitted estimator, in scikit-learn's form; matplotlib is imported when one is drawn."""

from skvae.displays._drawing import draw_images
from skvae.displays._images import ManifoldDisplay, SamplesDisplay
from skvae.displays._latent_space import LatentSpaceDisplay
from skvae.displays._reconstruction import ReconstructionDisplay
from skvae.displays._table_check import TableCheckDisplay
from skvae.displays._training_curve import TrainingCurveDisplay

__all__ = [
    "LatentSpaceDisplay",
    "ManifoldDisplay",
    "ReconstructionDisplay",
    "SamplesDisplay",
    "TableCheckDisplay",
    "TrainingCurveDisplay",
    "draw_images",
]
