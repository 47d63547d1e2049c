"""Streams of random numbers: functions of a seed and a place, with the moments that are promised."""

import numpy as np
import pytest
import torch

from skvae import VAETransformer
from skvae._random import RowStreams, derived_seed, generator, normal, paired_normal


def test_a_stream_is_a_function_of_seed_and_place():
    first, again = (normal((5,), generator(3, "noise", 1, 2), torch.float32) for _ in range(2))
    assert torch.equal(first, again)
    for other in ((4, "noise", 1, 2), (3, "order", 1, 2), (3, "noise", 2, 1), (3, "noise", 12)):
        assert not torch.equal(first, normal((5,), generator(*other), torch.float32))


@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
def test_the_default_type_of_torch_changes_nothing(prior):
    X = np.random.default_rng(0).normal(size=(60, 3))
    vae = VAETransformer(2, prior=prior, max_iter=4, learning_rate="cosine", random_state=0)
    expected = vae.fit(X).score_samples(X)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(vae.fit(X).score_samples(X), expected)
    finally:
        torch.set_default_dtype(before)


def test_derived_seeds_differ_by_place_and_are_seeds():
    seeds = {derived_seed(0, "encoder"), derived_seed(0, "decoder"), derived_seed(1, "encoder")}
    assert len(seeds) == 3
    assert all(0 <= s < 2**31 for s in seeds)


def test_streams_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    normal((3,), generator(0, "x"), torch.float32)
    paired_normal(8, 2, generator(0, "x"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n_samples", "k"), [(4, 2), (16, 3), (17, 3), (20, 10)])
def test_matched_noise_has_exact_moments(n_samples, k):
    eps = paired_normal(n_samples, k, generator(0, "x"), torch.float64)[: n_samples // 2 * 2, 0]
    torch.testing.assert_close(eps.mean(0), torch.zeros(k, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(eps.mT @ eps / len(eps), torch.eye(k, dtype=torch.float64), atol=1e-10, rtol=0)


def test_matched_noise_with_few_samples_still_has_unit_variances():
    eps = paired_normal(6, 10, generator(0, "x"), torch.float64)[:, 0]
    torch.testing.assert_close(eps.square().mean(0), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("n_samples", [1, 2, 3])
def test_matched_noise_has_the_shape_that_was_asked_for(n_samples):
    assert paired_normal(n_samples, 4, generator(0, "x"), torch.float32).shape == (n_samples, 1, 4)


def test_a_row_has_numbers_of_its_own_wherever_it_stands():
    rows = torch.tensor([[1.0, 2.0], [3.0, -0.0], [1.0, 2.0 + 1e-6]])
    drawn = RowStreams(rows, 0, "here").normal(500, 2)  # (c, n, k)
    assert torch.equal(RowStreams(rows.flip(0), 0, "here").normal(500, 2), drawn.flip(1))
    assert torch.equal(RowStreams(rows[1:2].abs(), 0, "here").normal(500, 2), drawn[:, 1:2])
    assert not torch.equal(RowStreams(rows, 0, "there").normal(500, 2), drawn)
    assert torch.corrcoef(drawn[..., 0].mT).fill_diagonal_(0).abs().max() < 0.2


def test_moves_go_on_with_new_numbers():
    moves = RowStreams(torch.zeros(3, 1), 0).moves(5, 2)
    drawn = [next(moves) for _ in range(40)]
    momentum, uniform, jitter = (torch.stack(part) for part in zip(*drawn, strict=True))
    assert momentum.shape == (40, 5, 3, 2)
    assert uniform.shape == (40, 5, 3)
    assert jitter.shape == (40, 3)
    assert len(momentum[:, 0, 0, 0].unique()) == len(jitter[:, 0].unique()) == 40
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
