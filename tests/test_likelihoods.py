"""Likelihoods against the distributions of torch, their samplers, and their gradients."""

import math
import warnings
from itertools import combinations, product
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import LIKELIHOODS, assert_same_training, table_for
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import distributions

from skvae import VAETransformer
from skvae._random import generator, uniform
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Beta, Gaussian
from skvae.networks import MLP
from skvae.objectives import ELBO


def gaussian_case(likelihood, d=3, n=50):
    """Return parameters, decoder outputs, data, and torch's distribution for them."""
    g = torch.Generator().manual_seed(0)
    eta = torch.randn(n, likelihood.n_outputs(d), generator=g, dtype=torch.float64)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    params = {k: 0.1 * torch.randn(s, generator=g, dtype=torch.float64) for k, s in likelihood.shapes(d).items()}
    if likelihood.noise == "network":
        mean, log_scale = eta.chunk(2, -1)
    elif isinstance(likelihood.noise, str):
        mean, log_scale = eta, likelihood._RATE * params["log_scale"]
    else:
        mean, log_scale = eta, None
    if likelihood.link == "logit":
        mean = 1 / (1 + (-mean).exp())
    if log_scale is None:
        return params, eta, x, distributions.Normal(mean, torch.full_like(mean, likelihood.noise))
    scale = ((2 * log_scale).exp() + likelihood.floor**2).sqrt()
    return params, eta, x, distributions.Normal(mean, scale.expand_as(mean))


GAUSSIANS = [
    Gaussian(link=link, **params)
    for link in ("identity", "logit")
    for params in ({}, {"noise": "shared"}, {"noise": "network"}, {"noise": 0.5}, {"floor": 0.3})
]


@pytest.mark.parametrize("likelihood", GAUSSIANS, ids=repr)
def test_gaussian_density_and_mean_are_those_of_the_normal(likelihood):
    params, eta, x, oracle = gaussian_case(likelihood)
    torch.testing.assert_close(likelihood.log_prob(params, eta, x), oracle.log_prob(x))
    torch.testing.assert_close(likelihood.mean(params, eta), oracle.mean)


@pytest.mark.parametrize("likelihood", GAUSSIANS, ids=repr)
def test_gaussian_sampler_has_the_moments_of_the_normal(likelihood):
    params, eta, _, oracle = gaussian_case(likelihood, n=2)
    many = eta.expand(40_000, *eta.shape)
    sample = likelihood.sample(params, many, generator(0, "sample"))
    error = oracle.stddev / math.sqrt(40_000)
    assert ((sample.mean(0) - oracle.mean).abs() < 5 * error).all()
    torch.testing.assert_close(sample.std(0), oracle.stddev, rtol=0.03, atol=0)


@pytest.mark.parametrize("likelihood", [*GAUSSIANS, Bernoulli()], ids=repr)
def test_gradients_are_right(likelihood):
    g = torch.Generator().manual_seed(0)
    shapes = likelihood.shapes(3)
    eta = torch.randn(4, likelihood.n_outputs(3), generator=g, dtype=torch.float64, requires_grad=True)
    x = torch.rand(4, 3, generator=g, dtype=torch.float64)
    values = [(0.1 * torch.randn(s, generator=g, dtype=torch.float64)).requires_grad_() for s in shapes.values()]

    def log_prob(eta, *values):
        return likelihood.log_prob(dict(zip(shapes, values, strict=True)), eta, x)

    assert torch.autograd.gradcheck(log_prob, (eta, *values))


@pytest.mark.parametrize("likelihood", [*GAUSSIANS, Bernoulli()], ids=repr)
def test_leading_axes_broadcast(likelihood):
    """Samples (s, n, .) and models (m, s, n, .) give what a loop over them gives."""
    g = torch.Generator().manual_seed(0)
    eta = torch.randn(2, 4, 5, likelihood.n_outputs(3), generator=g, dtype=torch.float64)
    x = torch.rand(5, 3, generator=g, dtype=torch.float64)
    params = {k: torch.randn(2, 1, *s, generator=g, dtype=torch.float64) for k, s in likelihood.shapes(3).items()}
    together = likelihood.log_prob(params, eta, x)
    for m in range(2):
        alone = likelihood.log_prob({k: v[m, 0] for k, v in params.items()}, eta[m], x)
        torch.testing.assert_close(together[m], alone)


def test_means_of_the_logit_link_stay_within_the_range_of_the_columns():
    X = table_for(Gaussian(link="logit")) * [1.0, 100.0, 1e-3, 7.0]
    vae = VAETransformer(2, likelihood=Gaussian(link="logit"), max_iter=20, learning_rate="cosine", random_state=0).fit(X)
    far = vae.inverse_transform(1e3 * np.random.default_rng(0).normal(size=(50, 2)))
    assert (far >= X.min(0) - 1e-6 * np.ptp(X, axis=0)).all()
    assert (far <= X.max(0) + 1e-6 * np.ptp(X, axis=0)).all()
    assert np.ptp(far, axis=0).max() > 0


def test_score_of_the_logit_link_is_in_the_units_of_the_data():
    X = table_for(Gaussian(link="logit"))
    one, other = (
        VAETransformer(2, likelihood=Gaussian(link="logit"), max_iter=5, learning_rate="cosine", random_state=0).fit(table)
        for table in (X, 8 * X)
    )
    np.testing.assert_allclose(other.score(8 * X), one.score(X) - 4 * math.log(8), rtol=1e-5)


def test_columns_beyond_a_fixed_sigmoid_are_refused():
    with pytest.raises(ValueError, match=r"values from 0 to 255.*Use standardize=True"):
        VAETransformer(likelihood=Gaussian(link="logit", standardize=False)).fit(np.array([[0.0], [255.0]]))


def test_linear_start_is_refused_where_the_mean_bends(X):
    with pytest.raises(ValueError, match="link='identity'"):
        VAETransformer(likelihood=Gaussian(link="logit"), init="linear").fit(X)


def test_noise_cannot_fall_below_the_floor():
    likelihood = Gaussian(floor=0.05)
    params = {"log_scale": torch.full((1, 2), -50.0)}
    torch.testing.assert_close(likelihood.noise_variance(params, 2), torch.full((1, 2), 0.05**2))


def test_noise_that_is_set_is_the_noise_that_is_read():
    wanted = torch.tensor([[0.2, 0.7, 1.5]])
    likelihood = Gaussian()
    params = likelihood.init(3)
    likelihood.set_noise(params, wanted.log())
    torch.testing.assert_close(likelihood.noise_variance(params, 3), wanted.square(), rtol=1e-4, atol=0)


def test_noise_variance_is_none_where_it_depends_on_z():
    assert Gaussian("network").noise_variance({}, 3) is None
    assert Bernoulli().noise_variance({}, 3) is None


def test_fixed_noise_is_reported():
    assert Gaussian(0.5).noise_variance({}, 2).tolist() == [[0.25, 0.25]]


def test_bernoulli_is_the_distribution_of_torch_on_zeros_and_ones():
    eta = torch.linspace(-40, 40, 81, dtype=torch.float64)[:, None]
    for x in (torch.zeros_like(eta), torch.ones_like(eta)):
        torch.testing.assert_close(
            Bernoulli().log_prob({}, eta, x), distributions.Bernoulli(logits=eta).log_prob(x), atol=1e-12, rtol=1e-10
        )


def test_grey_level_is_the_expected_log_likelihood_of_its_binarisations():
    eta, x = torch.tensor([[0.7]]), torch.tensor([[0.3]])
    ones, zeros = (Bernoulli().log_prob({}, eta, torch.full_like(x, v)) for v in (1.0, 0.0))
    torch.testing.assert_close(Bernoulli().log_prob({}, eta, x), 0.3 * ones + 0.7 * zeros)


def test_bernoulli_sampler_draws_zeros_and_ones_with_the_right_frequency():
    eta = torch.tensor([-1.0, 0.0, 2.0]).expand(50_000, 3)
    sample = Bernoulli().sample({}, eta, generator(0, "sample"))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(sample.mean(0), torch.sigmoid(eta[0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("limits", [(1.0, 0.0), (0.0,), (0.0, math.inf), ("a", "b")])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match="two finite numbers, the lower one first, or 'observed'"):
        Bernoulli(limits=limits).validate()
    with pytest.raises(ValueError, match=r"two finite numbers, the lower one first\. Got"):
        Beta(limits=limits).validate()


@pytest.mark.parametrize("bad", [{"noise": "columns"}, {"noise": -1.0}, {"floor": 0.0}, {"standardize": 2}])
def test_impossible_gaussian_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter of Gaussian"):
        Gaussian(**bad).validate()


@pytest.mark.parametrize("likelihood", [piece for piece in LIKELIHOODS if piece.offers("log_prob_rows")], ids=repr)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 60)), dtype=st.sampled_from(["float32", "float64"]))
def test_the_sum_over_columns_is_that_of_the_values_per_column(likelihood, shape, dtype):
    s, n, d = shape
    stream, dtype = generator(s * n * d, "sum"), getattr(torch, dtype)
    eta = 3 * torch.randn((s, n, likelihood.n_outputs(d)), generator=stream, dtype=dtype)
    x = torch.rand((n, d), generator=stream, dtype=dtype)
    params = {k: 0.3 * torch.randn(v, generator=stream, dtype=dtype) for k, v in likelihood.shapes(d).items()}
    per_column = likelihood.log_prob(params, eta, x)
    tolerance = (1e-6 if dtype == torch.float32 else 1e-12) * per_column.abs().sum(-1).max()
    found = likelihood.log_prob_rows(params, eta.clone(), x)
    torch.testing.assert_close(found, per_column.sum(-1), rtol=0, atol=float(tolerance))
    for_several_rows = likelihood.log_prob_rows(params, eta[0].clone(), x.expand(2, n, d))
    expected = likelihood.log_prob(params, eta[0], x).sum(-1).expand(2, n)
    torch.testing.assert_close(for_several_rows, expected, rtol=0, atol=float(tolerance))


# --- grey levels ---------------------------------------------------------------------------------------------------------


class Witness(Bernoulli):
    """Bernoulli likelihood that notes the rows of which training asks it the density."""

    steps: ClassVar[list] = []

    def log_prob(self, params, eta, x):
        if torch.is_grad_enabled():
            self.steps.append(("likelihood", x.clone()))
        return super().log_prob(params, eta, x)


class WitnessEncoder(MLP):
    """MLP that notes the rows which it reads in training."""

    def forward(self, params, x):
        if torch.is_grad_enabled():
            Witness.steps.append(("encoder", x.clone()))
        return super().forward(params, x)


def grey_images(n_rows=60, seed=0):
    return table_for(Bernoulli(binarize="dynamic"), n_rows=n_rows, seed=seed)


def bernoulli_vae(**params):
    defaults = {"max_iter": 6, "hidden_layer_sizes": (8,), "learning_rate": "cosine", "batch_size": 16, "random_state": 0}
    return VAETransformer(2, **{**defaults, **params})


@pytest.mark.parametrize("binarize", ["dynamic", 0.3, None])
def test_encoder_and_likelihood_see_the_same_pixels(binarize):
    Witness.steps.clear()
    X = grey_images()
    likelihood, encoder = Witness(binarize=binarize), WitnessEncoder((8,))
    bernoulli_vae(likelihood=likelihood, encoder=encoder, early_stopping=False).fit(X)
    steps = [rows for who, rows in Witness.steps]
    assert [who for who, _ in Witness.steps] == ["encoder", "likelihood"] * (6 * 4)
    assert all(torch.equal(read, rated) for read, rated in zip(steps[::2], steps[1::2], strict=True))
    values = set(torch.cat(steps).unique().tolist())
    assert values == {0.0, 1.0} if binarize is not None else len(values) > 100


def test_pixels_are_drawn_anew_in_every_epoch():
    Witness.steps.clear()
    bernoulli_vae(
        likelihood=Bernoulli(binarize="dynamic"), encoder=WitnessEncoder((8,)), early_stopping=False, batch_size=60
    ).fit(grey_images())
    epochs = torch.stack([rows for _, rows in Witness.steps])  # (6, n, d)
    assert epochs.shape == (6, 60, 4)
    assert all(not torch.equal(one, other) for one, other in combinations(epochs, 2))


def test_pixels_are_drawn_with_the_probability_of_their_grey_levels():
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    shown = Bernoulli(binarize="dynamic").presented(x.expand(40_000, 5), lambda: uniform((40_000, 5), generator(0), x.dtype))
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(shown.mean(0), x, atol=0.01, rtol=0)
    assert shown[:, 0].max() == 0 and shown[:, -1].min() == 1


def test_density_of_drawn_pixels_is_that_of_grey_levels_on_average():
    eta, x = torch.tensor([0.7, -2.0, 1.0]), torch.tensor([0.3, 0.8, 1.0])
    dynamic = Bernoulli(binarize="dynamic")
    shown = dynamic.presented(x.expand(100_000, 3), lambda: uniform((100_000, 3), generator(0), x.dtype))
    expected = Bernoulli().log_prob({}, eta, x)
    torch.testing.assert_close(dynamic.log_prob({}, eta, shown).mean(0), expected, atol=0.02, rtol=0)


def test_threshold_is_a_share_of_the_way_between_the_limits():
    X = np.array([[0.0, 4.0], [3.0, 16.0], [5.0, 0.0], [16.0, 2.0]] * 10)
    binary = np.where(X > 0.25 * 16, 16.0, 0.0)
    vae = bernoulli_vae(likelihood=Bernoulli((0, 16), binarize=0.25)).fit(X)
    assert (binary != X).any()
    for method in (vae.transform, vae.score_samples, vae.reconstruct):
        np.testing.assert_array_equal(method(X), method(binary))


def test_zeros_and_ones_stay_what_they_are_to_the_last_bit():
    X = (grey_images() > 0.5).astype(float)
    plain, *others = (bernoulli_vae(likelihood=Bernoulli(binarize=how)).fit(X) for how in (None, "dynamic", 0.5))
    for other in others:
        assert_same_training(other, plain)
        np.testing.assert_array_equal(other.score_samples(X), plain.score_samples(X))


def test_scores_of_drawn_pixels_are_those_of_zeros_and_ones_and_of_each_row_alone():
    X = grey_images()
    vae = bernoulli_vae(likelihood=Bernoulli(binarize="dynamic")).fit(X)
    scores = vae.score_samples(X)
    np.testing.assert_array_equal(vae.score_samples(X), scores)
    np.testing.assert_array_equal(vae.score_samples(X[::-1]), scores[::-1])
    np.testing.assert_array_equal(vae.score_samples(X[5:6]), scores[5:6])
    every_image = np.array(list(product([0.0, 1.0], repeat=4)))
    possible = vae.score_samples(every_image)
    assert all(np.isclose(possible, score, rtol=1e-5).any() for score in scores)
    possible = vae.set_params(score_method=ELBO(n_samples=1000)).score_samples(every_image)
    assert np.exp(possible).sum() < 1.0, "bounds on the probabilities of all images"


def test_latents_of_drawn_pixels_are_those_of_the_grey_levels():
    X = grey_images()
    vae = bernoulli_vae(likelihood=Bernoulli(binarize="dynamic")).fit(X)
    assert len(np.unique(vae.transform(X), axis=0)) == 60 > 2**4


def test_training_on_drawn_pixels_goes_on_to_the_last_bit():
    X = grey_images()
    dynamic = {"likelihood": Bernoulli(binarize="dynamic"), "learning_rate": "constant"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        twice = bernoulli_vae(**dynamic, warm_start=True, max_iter=16).fit(X).set_params(max_iter=32).fit(X)
        assert_same_training(twice, bernoulli_vae(**dynamic, max_iter=32).fit(X))


def test_training_on_drawn_pixels_is_the_same_by_hand_and_by_autograd():
    X = grey_images()
    by_hand, by_autograd = (
        bernoulli_vae(likelihood=Bernoulli(binarize="dynamic"), encoder=encoder, dtype="float64").fit(X)
        for encoder in (MLP((8,)), WitnessEncoder((8,)))
    )
    np.testing.assert_allclose(by_autograd._fitted.params, by_hand._fitted.params, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, "static", True])
def test_impossible_ways_to_binarize_are_refused(bad):
    with pytest.raises(ValueError, match="The 'binarize' parameter of Bernoulli"):
        Bernoulli(binarize=bad).validate()


def test_rows_of_a_source_are_drawn_and_scored_like_those_of_an_array():
    X = grey_images(200)
    drawn, plain = (
        bernoulli_vae(likelihood=Bernoulli(binarize=how), learning_rate="constant").partial_fit(ArraySource(X))
        for how in ("dynamic", None)
    )
    np.testing.assert_array_equal(drawn.score_samples(ArraySource(X)), drawn.score_samples(X))
    assert not np.allclose(drawn.transform(X), plain.transform(X))
