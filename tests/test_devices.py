"""Threads that are given back, devices that are refused with a reason."""

import threading
import time

import pytest
import torch

from skvae._devices import gradients, matmul_precision, one_thread, resolve_device, spread, threads_for


def test_small_work_runs_on_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    with threads_for(1e3):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with threads_for(1e12):
        assert torch.get_num_threads() == before


def test_large_work_in_a_scope_of_one_thread_gets_those_outside_of_it():
    before, both = torch.get_num_threads(), threading.Barrier(2, timeout=30)
    torch.set_num_threads(2)
    try:
        with one_thread(), one_thread():
            with threads_for(1e12):
                assert torch.get_num_threads() == 2
            spread(lambda item: both.wait(), range(2), 1e12)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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


def test_a_new_thread_computes_alone_though_somebody_has_set_a_number():
    before, seen = torch.get_num_threads(), []

    def work():
        with one_thread():
            torch.ones(200_000).add(1.0)
            seen.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("flops", [1.0, 1e12])
def test_every_item_is_worked_on_once_and_alone(flops):
    items, threads, before = [], set(), torch.get_num_threads()

    def work(item):
        items.append(item)
        threads.add(torch.get_num_threads())

    spread(work, range(100), flops)
    assert sorted(items) == list(range(100))
    assert threads == {1}
    assert torch.get_num_threads() == before


def test_large_work_is_spread_over_the_threads_of_the_process():
    before, both = torch.get_num_threads(), threading.Barrier(2, timeout=30)
    torch.set_num_threads(2)
    try:
        spread(lambda item: both.wait(), range(2), 1e12)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("guilty", [0, 1, 50, 99])
def test_an_error_ends_the_work_of_all_threads(guilty):
    done, before = [], torch.get_num_threads()

    def work(item):
        if item == guilty:
            raise KeyError(item)
        time.sleep(0.001)
        done.append(item)

    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError):
            spread(work, range(1000), 1e12)
    finally:
        torch.set_num_threads(before)
    assert len(done) < 900


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


def test_auto_leaves_small_work_to_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", 1e6).type == "cpu"
    assert resolve_device("auto", 1e8).type == resolve_device("auto").type == "cuda"


def test_the_precision_of_products_is_set_in_a_scope():
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        with matmul_precision("high"):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), matmul_precision("medium"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_scopes_of_several_threads_give_back_the_precision_of_the_process():
    before = torch.get_float32_matmul_precision()
    first, second = matmul_precision("medium"), matmul_precision("high")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # a thread that began earlier may end earlier
    assert torch.get_float32_matmul_precision() == "high"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == before
