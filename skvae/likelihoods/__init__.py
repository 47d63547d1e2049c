"""Likelihoods p(x|z): what the decoder's outputs mean, the density of each cell, its mean and its sampler."""

from skvae._settings import register
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._bernoulli import Bernoulli
from skvae.likelihoods._counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from skvae.likelihoods._gaussian import Gaussian
from skvae.likelihoods._heavy import Laplace, StudentT
from skvae.likelihoods._levels import Categorical, Ordinal
from skvae.likelihoods._mixed import Given, Mixed, PerColumn
from skvae.likelihoods._mixture import NormalMixture
from skvae.likelihoods._positive import Gamma, LogNormal
from skvae.likelihoods._self_masking import SelfMasking
from skvae.likelihoods._truncated import TruncatedNormal
from skvae.likelihoods._unit_interval import Beta, ContinuousBernoulli

__all__ = [
    "Beta",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Gamma",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "Mixed",
    "NegativeBinomial",
    "NormalMixture",
    "Ordinal",
    "Poisson",
    "SelfMasking",
    "StudentT",
    "TruncatedNormal",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]

register(
    "likelihood", auto=Mixed, gaussian=Gaussian, bernoulli=Bernoulli, categorical=Categorical, ordinal=Ordinal, poisson=Poisson,
    negative_binomial=NegativeBinomial, zero_inflated_poisson=ZeroInflatedPoisson,
    zero_inflated_negative_binomial=ZeroInflatedNegativeBinomial, student_t=StudentT, laplace=Laplace,
    normal_mixture=NormalMixture, log_normal=LogNormal, gamma=Gamma, beta=Beta,
    continuous_bernoulli=ContinuousBernoulli, truncated_normal=TruncatedNormal, self_masking=SelfMasking,
)  # fmt: skip
register("columns", per_column=PerColumn, given=Given)
