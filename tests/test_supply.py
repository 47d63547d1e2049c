"""What a model sees in its epochs: every row once, in an order and with noise that depend on the seed and the epoch alone."""

import pytest
import torch

from skvae._batch import Batch, joined
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae._supply import Supply
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

F32 = torch.float32


def make_supply(n=50, batch_size=16, seed=0, likelihood=None, data=None, n_draws=2):
    network = MLP((4,))
    model = Model(Pieces(network, network, Normal(), StandardNormal(), likelihood or Gaussian()), 3, 2, seed)
    data = Batch(torch.arange(3.0 * n).view(n, 3), torch.arange(1.0, n + 1)) if data is None else data
    return Supply(model, data, seed, batch_size, n_draws)


def epoch_of(supply, epoch):
    parts = list(supply.parts(epoch))
    rows = joined([part.rows for part in parts])
    return rows, [size for part in parts for size in part.sizes], torch.cat([part.noise for part in parts], 1)


@pytest.mark.parametrize(("n", "together"), [(10, 64), (50, 16), (300, 2), (600, 1), (2000, 1)])
def test_short_epochs_are_drawn_together(n, together):
    supply = make_supply(n)
    assert supply.n_together == together
    assert supply.n_ahead(0) == together and supply.n_ahead(together + 1) == (together - 1 or 1)


@pytest.mark.parametrize("n", [10, 50, 600, 2000])
def test_an_epoch_has_every_row_once_with_its_weight(n):
    for epoch in (0, 3):
        rows, sizes, noise = epoch_of(make_supply(n), epoch)
        order = rows.x[:, 0].argsort()
        assert torch.equal(rows.x[order], torch.arange(3.0 * n).view(n, 3))
        assert torch.equal(rows.weight[order], torch.arange(1.0, n + 1))
        assert sum(sizes) == n and noise.shape == (2, n, 2)


@pytest.mark.parametrize("n", [50, 600])
def test_epochs_differ_and_come_again(n):
    supply, again = make_supply(n), make_supply(n)
    (first, _, noise), (second, _, other_noise) = epoch_of(supply, 0), epoch_of(supply, 1)
    assert not torch.equal(first.x, second.x) and not torch.equal(noise, other_noise)
    rows, _, same_noise = epoch_of(again, 1)  # although the first was never asked for
    assert torch.equal(rows.x, second.x) and torch.equal(same_noise, other_noise)


def test_epochs_ahead_are_those_that_come_one_by_one():
    supply, single = make_supply(), make_supply()
    rows, sizes, noise = supply.ahead(3, 5)
    one_by_one = [epoch_of(single, epoch) for epoch in range(3, 8)]
    assert torch.equal(rows.x, torch.cat([one.x for one, _, _ in one_by_one]))
    assert torch.equal(rows.weight, torch.cat([one.weight for one, _, _ in one_by_one]))
    assert torch.equal(noise, torch.cat([one for _, _, one in one_by_one], 1))
    assert sizes == sum((one for _, one, _ in one_by_one), [])


def test_pixels_are_drawn_anew_in_every_epoch():
    grey = Batch(torch.full((50, 3), 0.5))
    supply = make_supply(likelihood=Bernoulli(binarize="dynamic"), data=grey)
    rows, _, _ = supply.ahead(0, 2)
    assert set(rows.x.unique().tolist()) == {0.0, 1.0} and not torch.equal(rows.x[:50], rows.x[50:])


def test_rows_that_are_read_on_the_way_come_in_the_same_order():
    class Read:
        """Rows of another kind, as long as the engine is concerned."""

        def __init__(self, batch):
            self.batch = batch

        def __len__(self):
            return len(self.batch)

        def __getattr__(self, name):
            return getattr(self.batch, name)

    data = Batch(normal((50, 3), generator(0, "rows"), F32))
    one, other = make_supply(data=data).ahead(0, 4), make_supply(data=Read(data)).ahead(0, 4)
    assert torch.equal(one.rows.x, other.rows.x) and torch.equal(one.noise, other.noise)


def test_rows_that_come_once_have_noise_that_no_others_had():
    seen = []
    for epoch, n in enumerate([50, 25, 10]):
        supply = make_supply(n)
        supply = Supply(supply.model, supply.data, supply.seed, supply.batch_size, supply.n_draws, once=True)
        assert supply.n_together == 1
        seen.append(epoch_of(supply, epoch)[2].flatten())
    assert len(torch.cat(seen).unique()) == sum(map(len, seen))
