"""Tiles that make rows independent."""

import numpy as np
import pytest
import torch

from skvae import VAETransformer
from skvae._batch import Batch
from skvae._inference import kl_of_components, map_rows, value_of_rows, weighted_mean
from skvae._model import Model, Pieces
from skvae._random import generator, normal, paired_normal
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, NormalMixture
from skvae.likelihoods._mixed import PerColumn
from skvae.networks import MLP, Module
from skvae.objectives import ELBO, IWAE, kl_per_component
from skvae.posteriors import Laplace, Normal
from skvae.priors import MixtureOfNormals, StandardNormal


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("sizes", [(16,), (300, 64)])
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(n, sizes):
    network = MLP(sizes)
    params = {k: v.float() for k, v in network.init(10, 3, 0).items()}
    x = normal((400, 10), generator(0, "rows"), torch.float32)

    def forward(batch):
        return network.forward(params, batch.x)

    whole = map_rows(forward, Batch(x), 128)
    part = map_rows(forward, Batch(x[400 - n :]), 128)
    assert part.shape == (n, 3)
    assert torch.equal(part, whole[400 - n :])


def test_weights_travel_with_their_rows():
    data = Batch(torch.arange(6.0)[:, None], torch.arange(6.0))
    assert torch.equal(map_rows(lambda b: b.weight * b.x[:, 0], data, 4), torch.arange(6.0).square())
    assert data.take(torch.tensor([3, 1])).weight.tolist() == [3.0, 1.0]
    assert len(data.pad(3)) == 9
    assert data.pad(3).weight[6:].tolist() == [0.0] * 3


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()], ids=repr)
@pytest.mark.parametrize("objective", [IWAE(), ELBO()], ids=repr)
@pytest.mark.parametrize(
    "n_draws, sizes, d", [(1, (8,), 5), (7, (16,), 3), (100, (9,), 30), (100, (700,), 33), (401, (300,), 200)]
)
def test_tiles_give_what_the_objective_gives(likelihood, objective, n_draws, sizes, d):
    pieces = Pieces(MLP(sizes), MLP(sizes), Normal(), StandardNormal(), likelihood)
    model = Model(pieces, d, 3, seed=0)
    params = model.unpack(model.init(torch.float64))
    noise = normal((n_draws, 1, 3), generator(0, "noise"), torch.float64)
    rows = Batch(torch.rand((37, d), generator=generator(0, "rows"), dtype=torch.float64))
    found = value_of_rows(model, params, rows, objective.bound, noise)
    torch.testing.assert_close(found, objective.bound(model, params, rows, noise), rtol=1e-12, atol=1e-12)
    alone = torch.cat([value_of_rows(model, params, rows.slice(i, i + 1), objective.bound, noise) for i in (0, 17, 36)])
    assert torch.equal(alone, found[[0, 17, 36]])


@pytest.mark.parametrize("n_draws", [1, 5, 50, 85, 100, 401])
@pytest.mark.parametrize("sizes", [(), (8,), (300, 300)])
def test_all_calls_decode_as_many_rows(n_draws, sizes):
    model = Model(Pieces(MLP(sizes), MLP(sizes), Normal(), StandardNormal(), Gaussian()), 4, 3, seed=0)
    shapes = set()

    def log_px(decoder, params, batch, noise):
        shapes.add(len(batch) % decoder._rows)
        return decoder.log_px(params, batch, noise + torch.zeros_like(batch.x[:, :3])).mean(0)

    value_of_rows(
        model, model.unpack(model.init(torch.float32)), Batch(torch.zeros(3000, 4)), log_px, torch.zeros(n_draws, 1, 3)
    )
    assert shapes == {0}


def test_networks_without_parameters_are_decoded():
    X = np.random.default_rng(0).normal(size=(60, 2))

    class Twice(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, 0 * x], -1)

    networks = {"encoder": Module(lambda n_in, n_out: Twice()), "decoder": Module(lambda n_in, n_out: torch.nn.Identity())}
    vae = VAETransformer(2, **networks, max_iter=2, learning_rate="cosine")
    assert np.isfinite(vae.set_params(random_state=0).fit(X).score_samples(X)).all()


@pytest.mark.parametrize("n_draws", [7, 100])
@pytest.mark.parametrize(
    "likelihood", [Categorical(3), NormalMixture(4), PerColumn((Gaussian(), Categorical(3)), (1, 1), (0.0, 0.0))], ids=repr
)
def test_functions_along_the_rows_are_given_whole_vectors(likelihood, n_draws):
    pieces = Pieces(MLP((8,)), MLP((8,)), Normal(), StandardNormal(), likelihood)
    model = Model(pieces, 2, 3, seed=0)
    decoded = []

    def log_px(model, params, batch, noise):
        decoded.append(model._rows)
        return model.log_px(params, batch, noise).mean(0)

    rows, noise = Batch(torch.zeros(40, 2)), torch.zeros(n_draws, 1, 3)
    value_of_rows(model, model.unpack(model.init(torch.float32)), rows, log_px, noise)
    assert decoded and all(n % 32 == 0 for n in decoded)


def test_a_refused_table_is_refused_as_a_whole_whatever_the_tile():
    X = np.random.default_rng(0).integers(2, size=(2000, 3)).astype(float)
    vae = VAETransformer(1, likelihood="bernoulli", max_iter=1, batch_size=2000, learning_rate="cosine").fit(X)
    X[0, 0] = X[1500, 2] = 7.0
    for method in (vae.transform, vae.score_samples):
        with pytest.raises(ValueError, match=r"2 column\(s\) have values outside.*'x0', 'x2'"):
            method(X)


def test_weighted_mean_counts_repetitions():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert weighted_mean(values, torch.tensor([2.0, 0.0, 1.0])) == pytest.approx(2.0)
    assert weighted_mean(values, None) == pytest.approx(7 / 3)


# --- noise -----------------------------------------------------------------------------------------------------------


def model_of(posterior, k, prior=None):
    network = MLP((4,))
    return Model(Pieces(network, network, posterior, prior or StandardNormal(), Gaussian()), 3, k, seed=0)


@pytest.mark.parametrize(("n_samples", "k"), [(2, 1), (3, 1), (2, 10), (6, 3), (20, 10)])
def test_few_draws_of_importance_weights_are_normal(n_samples, k):
    model = model_of(Normal(), k)
    drawn = torch.cat(
        [model.noise(n_samples, generator(i, "x"), torch.float64, averages_weights=True)[:1] for i in range(4000)]
    )
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.6 / k**0.5)
    assert float(drawn.square().sum(-1).std()) == pytest.approx((2 * k) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("n_samples", "k", "is_matched"), [(3, 1, False), (4, 1, True), (21, 10, False), (22, 10, True)])
def test_many_draws_of_importance_weights_have_matched_moments(n_samples, k, is_matched):
    noise = model_of(Normal(), k).noise(n_samples, generator(0, "x"), torch.float32, averages_weights=True)
    assert torch.equal(noise, paired_normal(n_samples, k, generator(0, "x"), torch.float32)) == is_matched


def test_kl_of_components_without_a_closed_form_is_that_of_many_draws():
    model = model_of(Laplace(), 2, MixtureOfNormals(4))
    params = model.unpack(model.init(torch.float64))
    rows = Batch(normal((700, 3), generator(0, "rows"), torch.float64))  # more than are taken at a time
    q = model.encode(params, rows)
    z = model.posterior.sample(q, normal((2000, 700, 2), generator(0, "exact"), torch.float64))
    exact = kl_per_component(model, params, rows, q, z, "monte_carlo").mean(0)
    found = torch.stack([kl_of_components(model, params, rows, generator(i, "x")).mean(0) for i in range(50)])
    torch.testing.assert_close(found.mean(0), exact, atol=0.01, rtol=0)  # four standard errors of the exact value and more
    assert found.std(0).max() < 0.02


def test_kl_of_components_with_a_closed_form_takes_no_draws():
    model = model_of(Normal(), 2)
    params, rows = model.unpack(model.init(torch.float64)), Batch(normal((700, 3), generator(0, "rows"), torch.float64))
    one, other = (kl_of_components(model, params, rows, generator(i, "x")) for i in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, model.posterior.kl(model.encode(params, rows), model.prior))
