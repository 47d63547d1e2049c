"""Pieces of users' own that are wrong: fit says which method of which class, and what it must return."""

import numpy as np
import pytest
import torch

from skvae import VAETransformer
from skvae.likelihoods import Likelihood, Mixed
from skvae.objectives import ELBO
from skvae.optimizers import Optimizer
from skvae.posteriors import Normal
from skvae.priors import Prior

X = np.random.default_rng(0).normal(size=(40, 4))


class Unit(Likelihood):
    """N(eta, 1) of every cell."""

    support = -np.inf, np.inf

    def units(self, columns):
        return columns.mean, columns.std

    def sample(self, params, eta, stream):
        return eta + torch.randn(eta.shape, generator=stream, dtype=eta.dtype)

    def mean(self, params, eta):
        return eta


class Rowwise(Unit):
    def log_prob(self, params, eta, x):
        return -0.5 * (x - eta).square().sum(-1)


class Wide(Prior):
    def log_prob(self, params, z):
        return -0.125 * z.square() - 0.5 * np.log(8 * np.pi)

    def sample(self, params, shape, stream, dtype):
        return 2 * torch.randn(shape, generator=stream, dtype=dtype)


class Joint(Wide):
    def log_prob(self, params, z):
        return super().log_prob(params, z).sum(-1, keepdim=True)


class Short(Normal):
    def n_outputs(self, n_components):
        return n_components


class Failing(Normal):
    def sample(self, q, noise):
        return noise / 0 if noise.sum() > 1e9 else [][0]


class Total(ELBO):
    def __call__(self, *args):
        return super().__call__(*args).sum()


class Loose(ELBO):
    def bound(self, *args):
        return super().bound(*args).mean()


class Forgetful(Optimizer):
    def init(self, params):
        return None

    def step(self, params, grad, slots, learning_rate):
        params -= learning_rate * grad


WRONG = {
    "a value per row": ({"likelihood": Rowwise()}, r"Rowwise.log_prob .* shape \(2, 2, 4\) here, .* shape \(2, 2\)"),
    "no density": ({"likelihood": Unit()}, "Unit has no method 'log_prob'"),
    "a joint prior": ({"prior": Joint()}, r"Joint.log_prob .* shape \(2, 2, 2\) here, .* shape \(2, 2, 1\)"),
    "too few outputs": ({"posterior": Short()}, r"Short.mean .* shape \(2, 2\) here, .* shape \(2, 1\)"),
    "a sum": ({"objective": Total()}, r"Total.__call__ .* shape \(2,\) here, .* shape \(\)"),
    "a loose bound": ({"objective": Loose()}, r"Loose.bound .* shape \(2,\)"),
    "no memory": ({"optimizer": Forgetful()}, "Forgetful.init must return"),
}


@pytest.mark.parametrize("settings, match", WRONG.values(), ids=WRONG)
def test_what_a_piece_must_return_is_told(settings, match):
    vae = VAETransformer(2, random_state=0, max_iter=2, **settings)
    with pytest.raises(TypeError, match=match):
        vae.fit(X)
    assert not hasattr(vae, "n_iter_")


@pytest.mark.parametrize("settings", [{"condition_on": [0]}, {"likelihood": Mixed(numbers=Rowwise())}], ids=repr)
def test_a_likelihood_beside_others_is_tried_too(settings):
    vae = VAETransformer(2, random_state=0, max_iter=2, **{"likelihood": Rowwise(), **settings})
    with pytest.raises(TypeError, match=r"Rowwise.log_prob .* shape \(2, 2, [34]\) here, .* shape \(2, 2\)"):
        vae.fit(X)


def test_holes_do_not_hide_a_wrong_likelihood():
    with pytest.raises(TypeError, match=r"Rowwise.log_prob .* shape \(2, 2, 4\)"):
        VAETransformer(2, random_state=0, likelihood=Rowwise()).fit(np.where(X > 1, np.nan, X))


def test_an_error_of_a_piece_says_where_it_happened():
    with pytest.raises(IndexError) as told:
        VAETransformer(2, random_state=0, posterior=Failing()).fit(X)
    assert "when Failing.sample was tried before training" in told.value.__notes__[0]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_right_piece_passes():
    assert np.isfinite(VAETransformer(2, random_state=0, max_iter=2, prior=Wide()).fit(X).score(X))
