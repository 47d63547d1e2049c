"""Batches side by side: every row once, and nothing that only fills up has any weight."""

import pytest
import torch

from skvae._batch import Batch
from skvae._windows import become, copy_of, one_after_the_other, side_by_side


def test_batches_side_by_side_hold_every_row_once_and_fill_up_with_weight_zero():
    x = torch.arange(7.0)[:, None].expand(7, 2)
    parts = [(Batch(x), [3, 2, 2], torch.ones(1, 7, 3)), (Batch(-x[:4], torch.arange(4.0)), [2, 2], torch.ones(1, 4, 1))]
    window = side_by_side(parts, 16)
    assert window.n_models == [2, 2, 1] and window.counts.tolist() == [[3, 2], [2, 2], [2, 0]]
    (first, noise, count), _, (last, _, _) = window.batches()
    assert first.x[0, :4, 0].tolist() == [0.0, 1.0, 2.0, 0.0] and first.x[1, :3, 0].tolist() == [0.0, -1.0, 0.0]
    torch.testing.assert_close(first.weight[0, :4], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))
    torch.testing.assert_close(first.weight[1, :3], torch.tensor([0.0, 0.5, 0.0]))
    assert noise.shape == (2, 1, len(first.x[0]), 16) and count.tolist() == [3, 2]
    assert noise[1, 0].sum() == 2 and noise[0, 0, :3, :3].eq(1).all() and noise[0, 0, :, 3:].eq(0).all()
    assert len(last.x) == 1


def test_batches_of_one_model_are_as_they_are():
    rows = Batch(torch.arange(5.0)[:, None], torch.arange(5.0))
    (first, noise, count), (second, _, _) = one_after_the_other(rows, [3, 2], torch.arange(10.0).view(2, 5, 1)).batches()
    assert count.tolist() == [3] and first.x.shape == (1, 3, 1) and noise.shape == (1, 2, 3, 1)
    torch.testing.assert_close(second.weight, torch.tensor([[1.5, 2.0]]))


def test_a_window_that_fits_is_not_copied():
    x = torch.arange(48.0).view(16, 3)
    window = side_by_side([(Batch(x), [8, 8], torch.ones(1, 16, 1))], 16)
    assert window.x.data_ptr() == x.data_ptr() and window.x.shape == (1, 2, 8, 3)


@pytest.mark.parametrize("put", [lambda *part: side_by_side([part], 16), one_after_the_other])
def test_a_window_becomes_another_of_the_same_shape(put):
    windows = [put(Batch(torch.full((7, 2), v)), [4, 3], torch.full((1, 7, 1), v)) for v in (1.0, 2.0)]
    own = copy_of(windows[0])
    assert own.shape() == windows[1].shape()
    become(own, windows[1])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own[:4], windows[1][:4]))
    assert windows[0].x.max() == 1.0


def test_batches_of_no_rows_are_skipped():
    x = torch.arange(1.0, 11.0)[:, None]
    parts = [(Batch(x[:8]), [3, 1, 3, 1], torch.ones(1, 8, 1)), (Batch(-x[:6]), [3, 0, 3, 0], torch.ones(1, 6, 1))]
    window = side_by_side(parts, 1)
    assert window.n_models == [2, 1, 2, 1] and window.counts.tolist() == [[3, 3], [1, 0], [3, 3], [1, 0]]
    assert window.x[0, :, 0, 0].tolist() == [1.0, 4.0, 5.0, 8.0] and window.x[1, :, 0, 0].tolist() == [-1.0, 0.0, -4.0, 0.0]


def test_a_window_is_filled_again_in_the_same_memory():
    kept = {}
    first = side_by_side([(Batch(torch.ones(7, 2), torch.ones(7)), [4, 3], torch.ones(2, 7, 1))], 16, kept)
    where, before = first.x.data_ptr(), first.x.sum().item()
    second = side_by_side([(Batch(torch.full((7, 2), 3.0), torch.full((7,), 2.0)), [4, 3], torch.ones(2, 7, 1))], 16, kept)
    assert second.x.data_ptr() == where and second.x.sum() == 3 * before
    torch.testing.assert_close(second.weight[0, 1, :3], torch.full((3,), 2 / 3))


def test_a_window_is_split_into_epochs():
    x = torch.arange(24.0).view(12, 2)
    epochs = list(side_by_side([(Batch(x), [3, 1, 2] * 2, torch.ones(1, 12, 1))], 1).split(3))
    assert [epoch.counts[:, 0].tolist() for epoch in epochs] == [[3, 1, 2], [3, 1, 2]]
    rows = [batch.x[0, : int(count)] for epoch in epochs for batch, _, count in epoch.batches()]
    assert torch.equal(torch.cat(rows), x)
