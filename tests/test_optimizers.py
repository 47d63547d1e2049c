"""Optimizers against those of torch, step by step."""

import pytest
import torch

from skvae.optimizers import SGD, Adagrad, Adam

PAIRS = [
    (Adam(), lambda p: torch.optim.Adam([p], lr=0.1)),
    (Adam((0.5, 0.9), epsilon=1e-3), lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.5, 0.9), eps=1e-3)),
    (SGD(), lambda p: torch.optim.SGD([p], lr=0.1)),
    (SGD(momentum=0.9), lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9)),
    (Adagrad(epsilon=0.0), lambda p: torch.optim.Adagrad([p], lr=0.1, eps=0.0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda v: repr(v) if not callable(v) else "")
def test_steps_are_those_of_torch(ours, theirs, dtype):
    g = torch.Generator().manual_seed(0)
    params = torch.randn(11, generator=g, dtype=dtype)
    reference = params.clone().requires_grad_()
    optimizer, slots = theirs(reference), ours.init(params)
    for _ in range(20):
        grad = torch.randn(11, generator=g, dtype=dtype)
        reference.grad = grad.clone()
        optimizer.step()
        ours.step(params, grad, slots, 0.1)
        torch.testing.assert_close(params, reference.detach())


def test_adagrad_moves_nothing_while_it_only_accumulates():
    params, grad = torch.zeros(3), torch.ones(3)
    optimizer = Adagrad(accumulate_first=5)
    slots = optimizer.init(params)
    for _ in range(5):
        optimizer.step(params, grad, slots, 0.1)
    assert not params.any()
    optimizer.step(params, grad, slots, 0.1)
    torch.testing.assert_close(params, torch.full((3,), -0.1 / 6**0.5))


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), ("a", 0.5)])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"must be two numbers in \[0, 1\)"):
        Adam(betas).validate()
