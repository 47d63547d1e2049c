"""Batches side by side: every row once, and nothing that only fills up has any weight."""

import pytest
import torch

from skvae._batch import Batch
from skvae._windows import become, copy_of, one_after_the_other, runs_of, side_by_side


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
    x = torch.arange(24.0).view(8, 3)
    window = side_by_side([(Batch(x), [4, 4], torch.ones(1, 8, 1))], 16)
    assert window.x.data_ptr() == x.data_ptr() and window.x.shape == (1, 2, 4, 3)


@pytest.mark.parametrize("put", [lambda *part: side_by_side([part], 16), one_after_the_other])
def test_a_window_becomes_another_of_the_same_shape(put):
    windows = [put(Batch(torch.full((7, 2), v)), [4, 3], torch.full((1, 7, 1), v)) for v in (1.0, 2.0)]
    own = copy_of(windows[0])
    assert own.shape() == windows[1].shape()
    become(own, windows[1])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own[:4], windows[1][:4]))
    assert windows[0].x.max() == 1.0


@pytest.mark.parametrize("sizes", [[3], [3, 3, 2], [5, 4, 5]])
def test_runs_cover_all_batches_and_rows(sizes):
    found = [(size, batches.stop - batches.start, here.stop - here.start) for size, batches, here in runs_of(sizes)]
    assert [size for size, count, _ in found for _ in range(count)] == sizes
    assert sum(n for _, _, n in found) == sum(sizes)
