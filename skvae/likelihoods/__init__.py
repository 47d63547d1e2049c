"""Likelihoods p(x|z): what the decoder's outputs mean, the density of each cell, its mean and its sampler."""

from skvae._settings import register
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._bernoulli import Bernoulli
from skvae.likelihoods._gaussian import Gaussian
from skvae.likelihoods._levels import Categorical, Ordinal
from skvae.likelihoods._mixed import Mixed, PerColumn

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "Mixed", "Ordinal"]

register("likelihood", auto=Mixed, gaussian=Gaussian, bernoulli=Bernoulli, categorical=Categorical, ordinal=Ordinal)
register("columns", per_column=PerColumn)
