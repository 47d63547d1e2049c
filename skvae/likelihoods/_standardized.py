"""Base of the likelihoods of real numbers."""

import math
from numbers import Real

from skvae._settings import Interval
from skvae.likelihoods._base import Likelihood


class Standardized(Likelihood):
    """A likelihood of real numbers, which sees columns with mean 0 and standard deviation 1 unless told otherwise."""

    _parameter_constraints: dict[str, list] = {
        "standardize": ["boolean"],
        "floor": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, standardize=True, floor=0.01):
        self.standardize = standardize
        self.floor = floor

    @property
    def support(self):
        # A cell a million standard deviations away counts as just that: its square stays finite in float32.
        return (-1e6, 1e6) if self.standardize else (-math.inf, math.inf)

    @property
    def clips(self):
        return self.standardize

    @property
    def drops_constant(self):
        return self.standardize

    def units(self, columns):
        return (columns.mean, columns.std) if self.standardize else (columns.mean * 0.0, columns.mean * 0.0 + 1.0)
