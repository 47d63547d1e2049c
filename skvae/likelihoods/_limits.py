"""Base of the likelihoods of columns that lie between two limits."""

import math
from numbers import Real

from skvae._settings import StrOptions
from skvae.likelihoods._base import Likelihood


class Limited(Likelihood):
    """A likelihood that sees the lower limit of a column as 0 and the upper one as 1."""

    _parameter_constraints: dict[str, list] = {"limits": [tuple, StrOptions({"observed"})]}
    _may_be_infinite = False

    def __init__(self, limits=(0.0, 1.0)):
        self.limits = limits

    @property
    def support(self):
        return (0.0, 1.0)

    @property
    def clips(self):
        return self.limits == "observed"

    def validate(self):
        super().validate()
        if self.limits != "observed":
            numbers = all(isinstance(v, Real) and (self._may_be_infinite or math.isfinite(v)) for v in self.limits)
            if not (numbers and len(self.limits) == 2 and self.limits[0] < self.limits[1]):
                or_observed = ", or 'observed'" * (len(self._parameter_constraints["limits"]) > 1)
                raise ValueError(
                    f"The 'limits' of {type(self).__name__} must be two {'' if self._may_be_infinite else 'finite '}numbers, "
                    f"the lower one first{or_observed}. Got {self.limits!r}."
                )
        return self

    def units(self, columns):
        if self.limits == "observed":
            return columns.low, columns.high - columns.low
        low, high = self.limits
        return columns.mean * 0.0 + low, columns.mean * 0.0 + (high - low)
