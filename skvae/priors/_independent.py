"""Priors under which the components are independent members of one family."""

from numbers import Real

from torch import Tensor

from skvae import _families as families
from skvae._families import Family, Support
from skvae._random import normal
from skvae._settings import Interval
from skvae.priors._base import Prior

_POSITIVE = [Interval(Real, 0, None, closed="neither")]
_REAL = [Interval(Real, None, None, closed="neither")]


class FamilyPrior(Prior):
    """Base of the priors under which the components are independent members of one family, with given parameters."""

    family: Family

    def member(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of the family, in its order."""
        return tuple(like.new_full((), getattr(self, name)) for name in self.family.parameters)

    @property
    def support(self):
        return self.family.support

    @property
    def growth(self):
        return self.family.growth

    def log_prob(self, params, z):
        return self.family.log_prob(z, *self.member(z))

    def sample(self, params, shape, stream, dtype):
        noise = normal((*shape[:-1], shape[-1] * self.family.n_noise), stream, dtype)
        return self.family.draw(noise, *self.member(noise))

    def quantile(self, u):
        return self.family.quantile(u, *self.member(u))


class LocationScalePrior(FamilyPrior):
    """Base of the priors with a location and a scale.

    Parameters
    ----------
    loc : float, default=0.0
        Where the distribution lies.

    scale : float, default=1.0
        How wide it is.
    """

    _parameter_constraints = {"loc": _REAL, "scale": _POSITIVE}

    def __init__(self, loc=0.0, scale=1.0):
        self.loc = loc
        self.scale = scale


class Laplace(LocationScalePrior):
    r"""Laplace distribution: most components near `loc`, a few far from it.

    :math:`p(z) = e^{-|z - m| / b} / (2 b)` with the location m and the scale b.

    Parameters
    ----------
    loc : float, default=0.0
        Mean.

    scale : float, default=1.0
        Mean distance from `loc`.
    """

    family = families.Laplace()


class Logistic(LocationScalePrior):
    r"""Logistic distribution.

    :math:`p(z) = e^{-t} / (b (1 + e^{-t})^2)` with :math:`t = (z - m) / b`, the location m and the scale b.

    Parameters
    ----------
    loc : float, default=0.0
        Mean.

    scale : float, default=1.0
        Scale; the standard deviation is 1.81 times as large.
    """

    family = families.Logistic()


class StudentT(LocationScalePrior):
    r"""Student's t distribution, with heavy tails.

    :math:`p(z) \propto (1 + t^2 / \nu)^{-(\nu + 1) / 2}` with :math:`t = (z - m) / s`, the location m, the scale s
    and :math:`\nu` degrees of freedom.

    Parameters
    ----------
    df : float, default=5.0
        Degrees of freedom.

    loc : float, default=0.0
        Centre.

    scale : float, default=1.0
        Scale.
    """

    _parameter_constraints = {"df": _POSITIVE, **LocationScalePrior._parameter_constraints}

    def __init__(self, df=5.0, loc=0.0, scale=1.0):
        super().__init__(loc, scale)
        self.df = df

    @property
    def family(self):
        return families.StudentT(self.df)


class _Bounded(LocationScalePrior):
    """A prior on an interval."""

    @property
    def support(self):
        return Support(self.loc - self.scale, self.loc + self.scale)


class Uniform(_Bounded):
    """Uniform distribution on `loc - scale` to `loc + scale`.

    Parameters
    ----------
    loc : float, default=0.5
        Middle of the interval.

    scale : float, default=0.5
        Half of its width.
    """

    family = families.Uniform()

    def __init__(self, loc=0.5, scale=0.5):
        super().__init__(loc, scale)


class Triangular(_Bounded):
    """Symmetric triangular distribution on `loc - scale` to `loc + scale`.

    Parameters
    ----------
    loc : float, default=0.5
        Middle of the interval.

    scale : float, default=0.5
        Half of its width.
    """

    family = families.Triangular()

    def __init__(self, loc=0.5, scale=0.5):
        super().__init__(loc, scale)


class Cauchy(LocationScalePrior):
    r"""Cauchy distribution, whose tails are so heavy that it has no mean.

    :math:`p(z) = 1 / (\pi s (1 + t^2))` with :math:`t = (z - m) / s`, the location m and the scale s.

    Parameters
    ----------
    loc : float, default=0.0
        Median.

    scale : float, default=1.0
        Half of the width of the middle half of the distribution.
    """

    family = families.Cauchy()


class Gumbel(LocationScalePrior):
    r"""Gumbel distribution, of maxima.

    :math:`p(z) = e^{-t - e^{-t}} / b` with :math:`t = (z - m) / b`, the location m and the scale b.

    Parameters
    ----------
    loc : float, default=0.0
        Mode.

    scale : float, default=1.0
        Scale.
    """

    family = families.Gumbel()


class Exponential(FamilyPrior):
    r"""Exponential distribution of positive numbers, :math:`p(z) = e^{-z / s} / s` with the scale s.

    Parameters
    ----------
    scale : float, default=1.0
        Mean.
    """

    family = families.Exponential()
    _parameter_constraints = {"scale": _POSITIVE}

    def __init__(self, scale=1.0):
        self.scale = scale


class Rayleigh(FamilyPrior):
    r"""Rayleigh distribution of positive numbers, :math:`p(z) = z e^{-z^2 / (2 s^2)} / s^2` with the scale s.

    Parameters
    ----------
    scale : float, default=1.0
        Mode.
    """

    family = families.Rayleigh()
    _parameter_constraints = {"scale": _POSITIVE}

    def __init__(self, scale=1.0):
        self.scale = scale


class Weibull(FamilyPrior):
    r"""Weibull distribution of positive numbers.

    :math:`p(z) = a z^{a - 1} e^{-(z / s)^a} / s^a` with the scale s and the concentration a.

    Parameters
    ----------
    scale : float, default=1.0
        Scale.

    concentration : float, default=1.0
        Shape: 1 is the exponential distribution, larger ones have a mode away from zero.
    """

    family = families.Weibull()
    _parameter_constraints = {"scale": _POSITIVE, "concentration": _POSITIVE}

    def __init__(self, scale=1.0, concentration=1.0):
        self.scale = scale
        self.concentration = concentration

    @property
    def growth(self):
        return self.concentration


class Pareto(FamilyPrior):
    r"""Pareto distribution of numbers above 1, :math:`p(z) = a z^{-(a + 1)}` with the concentration a.

    Parameters
    ----------
    concentration : float, default=3.0
        Shape, a: up to 1 there is no mean, up to 2 no variance.
    """

    family = families.Pareto()
    _parameter_constraints = {"concentration": _POSITIVE}

    def __init__(self, concentration=3.0):
        self.concentration = concentration


class LogNormal(LocationScalePrior):
    r"""Log-normal distribution of positive numbers, :math:`p(z) = N(\log z; m, s^2) / z`.

    Parameters
    ----------
    loc : float, default=0.0
        Mean of the logarithm.

    scale : float, default=1.0
        Standard deviation of the logarithm.
    """

    family = families.LogNormal()


class Gamma(FamilyPrior):
    r"""Gamma distribution of positive numbers.

    :math:`p(z) = b^a z^{a - 1} e^{-b z} / \Gamma(a)` with the concentration a and the rate b.

    Parameters
    ----------
    concentration : float, default=1.0
        Shape: the mean is `concentration / rate`. Below 0.1, part of the mass is at numbers that float32 does not have: 1.3 %
        of it at 0.05, 42 % at 0.01. Draws that belong there become the smallest number there is; `dtype="float64"` has more.

    rate : float, default=1.0
        Inverse of the scale.
    """

    family = families.Gamma()
    _parameter_constraints = {"concentration": _POSITIVE, "rate": _POSITIVE}

    def __init__(self, concentration=1.0, rate=1.0):
        self.concentration = concentration
        self.rate = rate


class ChiSquared(FamilyPrior):
    r"""Chi-squared distribution of positive numbers.

    :math:`p(z) = z^{\nu / 2 - 1} e^{-z / 2} / (2^{\nu / 2} \Gamma(\nu / 2))` with :math:`\nu` degrees of freedom.

    Parameters
    ----------
    df : float, default=3.0
        Degrees of freedom, the mean.
    """

    family = families.ChiSquared()
    _parameter_constraints = {"df": _POSITIVE}

    def __init__(self, df=3.0):
        self.df = df


class Beta(FamilyPrior):
    r"""Beta distribution of numbers between 0 and 1.

    :math:`p(z) = z^{a - 1} (1 - z)^{b - 1} / B(a, b)` with the concentrations a, of 1, and b, of 0.

    Parameters
    ----------
    concentration1 : float, default=1.0
        Pulls towards 1; the mean is `concentration1 / (concentration1 + concentration0)`. Numbers close to 1 have few digits:
        for sparse shares, well below 0.5, prefer :class:`Dirichlet` latents, which keep the small share beside the large one.

    concentration0 : float, default=1.0
        Pulls towards 0.
    """

    family = families.Beta()
    _parameter_constraints = {"concentration1": _POSITIVE, "concentration0": _POSITIVE}

    def __init__(self, concentration1=1.0, concentration0=1.0):
        self.concentration1 = concentration1
        self.concentration0 = concentration0
