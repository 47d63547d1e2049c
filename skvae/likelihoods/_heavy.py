"""Likelihoods of real numbers some of which lie far from the others: Student's t and the Laplace distribution."""

import math
from numbers import Real

import torch
from torch import Tensor

from skvae._random import normal, uniform
from skvae._settings import Interval, StrOptions
from skvae.likelihoods._numerics import RATE, SMALLEST, log_floored, raw_of, slope_of_log_floored, sum_over_rows
from skvae.likelihoods._standardized import Standardized

_SMALLEST_TAIL = 1e-6  # of 1 / (df - 1), below which nobody can tell a t distribution from a normal one
_FIRST_DF = 5.0


class Scaled(Standardized):
    """Base of those whose scale is one number per column that is learnt."""

    def shapes(self, n_columns):
        return {"scale": (1, n_columns)}

    def log_scale(self, params: dict[str, Tensor]) -> Tensor:
        """Return the logarithms of the scales, which never fall below the floor, in float64.  # (..., 1, d)

        In double precision, because torch rounds in ways that depend on what else a call has to do.
        """
        return log_floored(params["scale"].double(), self.floor)

    def _by_raw_scale(self, params: dict[str, Tensor], by_log_scale: Tensor) -> Tensor:
        """Return slopes by the raw parameter, given those of every cell by the logarithm of its scale."""
        return slope_of_log_floored(params["scale"].double(), self.floor) * sum_over_rows(by_log_scale)


class StudentT(Scaled):
    r"""Student's t likelihood for real-valued columns with far outliers, :math:`x_j \mid z \sim t_\nu(\mu_j(z), \sigma_j)`.

    A normal distribution whose variance is drawn anew for every cell. A cell far from its mean is not impossible, only odd, so
    it does not pull on the latent space as hard as under :class:`Gaussian`: its slope falls with its distance. The scale of
    every column is learnt, and how heavy its tails are.

    Parameters
    ----------
    df : "learned" or float, default="learned"
        Degrees of freedom: up to 1 tails are so heavy that there is no mean, large numbers make it normal. Learnt for every
        column, then above 1, or one positive number for all.

    standardize : bool, default=True
        Whether the model sees columns with mean 0 and standard deviation 1. Scores are in the units of the data either way.

    floor : float, default=0.01
        Smallest scale that learning can reach, in the model's units.

    Notes
    -----
    `reconstruct` gives the location :math:`\mu(z)`, also where the tails are too heavy for a mean.

    References
    ----------
    Lange, Little & Taylor, *Robust Statistical Modeling Using the t Distribution*, 1989. Mattei & Frellsen, *MIWAE*, 2019.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import StudentT
    >>> VAETransformer(2, likelihood=StudentT(df=4.0))
    VAETransformer(likelihood=StudentT(df=4.0), n_components=2)
    """

    _parameter_constraints = {
        **Scaled._parameter_constraints,
        "df": [StrOptions({"learned"}), Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, df="learned", *, standardize=True, floor=0.01):
        super().__init__(standardize=standardize, floor=floor)
        self.df = df

    def shapes(self, n_columns):
        shapes = super().shapes(n_columns)
        return {**shapes, "tail": (1, n_columns)} if self.df == "learned" else shapes

    def init(self, n_columns):
        params = super().init(n_columns)
        if self.df == "learned":
            params["tail"].fill_(-math.log(_FIRST_DF - 1) / RATE)
        return params

    def start(self, params, x):
        median = x.nanmedian(0).values
        spread = 1.5 * (x - median).abs().nanmedian(0).values  # about the standard deviation of normal numbers
        least = 0.1 * (x - median).square().nanmean(0).sqrt()  # where more than half of the cells are the same
        params["scale"].copy_(raw_of(spread.maximum(least), self.floor))
        return median

    def degrees_of_freedom(self, params: dict[str, Tensor]) -> Tensor:
        """Return the degrees of freedom, in float64.  # (..., 1, d) or ()"""
        if self.df == "learned":
            return 1 + (-log_floored(params["tail"].double(), _SMALLEST_TAIL)).exp()
        return params["scale"].new_full((), self.df, dtype=torch.float64)

    def log_prob(self, params, eta, x):
        df, log_scale = self.degrees_of_freedom(params), self.log_scale(params)
        at_best, precision = (_log_t_at_best(df) - log_scale).to(eta.dtype), (-log_scale).exp().to(eta.dtype)
        df = df.to(eta.dtype)
        return at_best - (df + 1) / 2 * (((x - eta) * precision).square() / df).log1p()

    def derivative(self, params, eta, x, weight):
        df = self.degrees_of_freedom(params)
        df_of_cells = df.to(eta.dtype)
        precision = (-self.log_scale(params)).exp().to(eta.dtype)
        distance = torch.sub(x, eta, out=eta).mul_(precision)
        squares = distance.square()
        share = (df_of_cells + 1) / (df_of_cells + squares)
        by_params = {"scale": self._by_raw_scale(params, (share * squares - 1) * weight)}
        if self.df == "learned":
            by_df = self._by_df(df, squares.double(), share.double()) * weight
            slope = (1 - df) * slope_of_log_floored(params["tail"].double(), _SMALLEST_TAIL)
            by_params["tail"] = slope * sum_over_rows(by_df)
        return distance.mul_(share).mul_(precision).mul_(weight), by_params

    def _by_df(self, df, squares, share):
        of_column = torch.digamma((df + 1) / 2) - torch.digamma(df / 2) - 1 / df
        return 0.5 * (of_column - (squares / df).log1p() + share * squares / df)

    def mean(self, params, eta):
        return eta

    def sample(self, params, eta, stream):
        df = self.degrees_of_freedom(params).to(eta.dtype).expand(eta.shape)
        variance = (df / 2) / torch._standard_gamma((df / 2).contiguous(), generator=stream).clamp(min=SMALLEST)
        return eta + self.log_scale(params).exp().to(eta.dtype) * variance.sqrt() * normal(eta.shape, stream, eta.dtype)

    def noise_variance(self, params, n_columns):
        df = self.degrees_of_freedom(params)
        variance = (2 * self.log_scale(params)).exp()
        return torch.where(df > 2, variance * df / (df - 2).clamp(min=SMALLEST), torch.inf)


def _log_t_at_best(df: Tensor) -> Tensor:
    """Return the log density of Student's t at its centre, in float64."""
    return torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()


class Laplace(Scaled):
    r"""Laplace likelihood for real-valued columns, :math:`p(x_j \mid z) = e^{-|x_j - \mu_j(z)| / b_j} / 2 b_j`.

    The mean *absolute* error, with a scale that is learnt for every column. A cell pulls equally hard wherever it lies, so that
    :math:`\mu` is a median, and outliers matter less than under :class:`Gaussian`, but more than under :class:`StudentT`.

    Parameters
    ----------
    standardize : bool, default=True
        Whether the model sees columns with mean 0 and standard deviation 1. Scores are in the units of the data either way.

    floor : float, default=0.01
        Smallest scale that learning can reach, in the model's units.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> VAETransformer(2, likelihood="laplace")
    VAETransformer(likelihood='laplace', n_components=2)
    """

    def start(self, params, x):
        median = x.nanmedian(0).values
        params["scale"].copy_(raw_of((x - median).abs().nanmean(0), self.floor))
        return median

    def log_prob(self, params, eta, x):
        log_scale = self.log_scale(params)
        return -(x - eta).abs() * (-log_scale).exp().to(eta.dtype) - (log_scale + math.log(2)).to(eta.dtype)

    def derivative(self, params, eta, x, weight):
        precision = (-self.log_scale(params)).exp().to(eta.dtype)
        distance = torch.sub(x, eta, out=eta).mul_(precision)
        by_params = {"scale": self._by_raw_scale(params, (distance.abs() - 1) * weight)}
        return distance.sign_().mul_(precision).mul_(weight), by_params

    def mean(self, params, eta):
        return eta

    def sample(self, params, eta, stream):
        one, other = ((-uniform(eta.shape, stream, eta.dtype)).log1p() for _ in range(2))  # minus exponential numbers
        return eta + self.log_scale(params).exp().to(eta.dtype) * (one - other)

    def noise_variance(self, params, n_columns):
        return 2 * (2 * self.log_scale(params)).exp()
