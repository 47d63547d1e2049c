"""Likelihoods p(x|z): what the decoder's outputs mean, the density of each cell, its mean and its sampler."""

from skvae._settings import register
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._bernoulli import Bernoulli
from skvae.likelihoods._gaussian import Gaussian

__all__ = ["Bernoulli", "Gaussian", "Likelihood"]

register("likelihood", gaussian=Gaussian, bernoulli=Bernoulli)
