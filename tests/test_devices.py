"""Threads that are given back, devices that are refused with a reason."""

import threading

import pytest
import torch

from skvae._devices import gradients, matmul_precision, resolve_device, threads_for


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


def test_the_precision_of_products_is_set_in_a_scope():
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        with matmul_precision("high"):
            assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), matmul_precision("medium"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
