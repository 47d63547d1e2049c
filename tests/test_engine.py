"""Tiles that make rows independent, threads that are given back, devices that are refused with a reason."""

import threading

import pytest
import torch

from skvae._batch import Batch
from skvae._engine import gradients, map_rows, resolve_device, threads_for, weighted_mean
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


def test_small_work_runs_on_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    with threads_for(1e3):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with threads_for(1e12):
        assert torch.get_num_threads() == before


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_for(1e3):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_work_in_a_worker_thread_stays_on_one():
    seen = []

    def work():
        with threads_for(1e12):
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]


def test_gradients_are_allowed_whatever_mode_the_caller_is_in():
    with torch.inference_mode(), gradients():
        x = torch.ones(2, requires_grad=True)
        x.sum().backward()
        assert x.grad is not None
    with torch.no_grad(), gradients():
        assert torch.is_grad_enabled()


def test_auto_takes_what_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device(torch.device("cpu")).type == "cpu"


@pytest.mark.parametrize("device", ["meta", "cuda:99", "graphics", "xla"])
def test_a_device_that_is_not_there_is_refused_with_the_reason(device):
    with pytest.raises(ValueError, match=r"cannot be used here \(.+\)\. Use 'auto' or 'cpu'"):
        resolve_device(device)
