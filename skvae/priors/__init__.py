"""Priors p(z) over the latent space."""

from skvae._settings import register
from skvae.priors._base import Prior, StandardNormal
from skvae.priors._dirichlet import Dirichlet
from skvae.priors._independent import (
    Beta,
    Cauchy,
    ChiSquared,
    Exponential,
    FamilyPrior,
    Gamma,
    Gumbel,
    Laplace,
    LocationScalePrior,
    Logistic,
    LogNormal,
    Pareto,
    Rayleigh,
    StudentT,
    Triangular,
    Uniform,
    Weibull,
)
from skvae.priors._mixture import MixtureOfNormals, VampPrior

__all__ = [
    "Beta",
    "Cauchy",
    "ChiSquared",
    "Dirichlet",
    "Exponential",
    "FamilyPrior",
    "Gamma",
    "Gumbel",
    "Laplace",
    "LocationScalePrior",
    "LogNormal",
    "Logistic",
    "MixtureOfNormals",
    "Pareto",
    "Prior",
    "Rayleigh",
    "StandardNormal",
    "StudentT",
    "Triangular",
    "Uniform",
    "VampPrior",
    "Weibull",
]

register(
    "prior", normal=StandardNormal, laplace=Laplace, logistic=Logistic, student_t=StudentT, uniform=Uniform,
    triangular=Triangular, cauchy=Cauchy, gumbel=Gumbel, exponential=Exponential, rayleigh=Rayleigh, weibull=Weibull,
    pareto=Pareto, log_normal=LogNormal, gamma=Gamma, chi_squared=ChiSquared, beta=Beta, dirichlet=Dirichlet,
    mixture=MixtureOfNormals, vamp=VampPrior,
)  # fmt: skip
