"""Tiles that make rows independent."""

import pytest
import torch

from skvae._batch import Batch
from skvae._inference import map_rows, weighted_mean
from skvae._random import generator, normal
from skvae.networks import MLP


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


def test_weighted_mean_counts_repetitions():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert weighted_mean(values, torch.tensor([2.0, 0.0, 1.0])) == pytest.approx(2.0)
    assert weighted_mean(values, None) == pytest.approx(7 / 3)
