"""Optimizers against those of torch, step by step."""

import pytest
import torch

from skvae import optimizers
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


def test_adam_clears_moments_that_have_faded_and_no_others():
    slots = {"mean": torch.tensor([1e-31, -1e-31, 1e-29, 0.5]), "square": torch.tensor([1e-36, 1e-34, 0.0, 2.0])}
    Adam().tidy(slots)
    torch.testing.assert_close(slots["mean"], torch.tensor([0.0, 0.0, 1e-29, 0.5]), rtol=0, atol=0)
    torch.testing.assert_close(slots["square"], torch.tensor([0.0, 1e-34, 0.0, 2.0]), rtol=0, atol=0)


class Reversed(Adam):
    """A subclass that changes the step alone."""

    def step(self, params, grad, slots, learning_rate):
        super().step(params, -grad, slots, learning_rate)


def test_a_subclass_that_changes_the_step_is_heeded_in_company_too():
    params, grads = [torch.zeros(3) for _ in range(2)], [torch.ones(3), torch.ones(3)]
    memories = [Reversed().init(vector) for vector in params]
    slots = {name: [memory[name] for memory in memories] for name in memories[0]}
    Reversed().together()(params, grads, slots, 0.1)
    assert all((vector > 0).all() for vector in params), "it must ascend"
    assert [float(step) for step in slots["step"]] == [1.0, 1.0]
    Adam().together()(params, grads, slots, 0.1)
    assert [float(step) for step in slots["step"]] == [2.0, 2.0]


@pytest.mark.parametrize(
    "optimizer", [Adam(), Adam((0.0, 0.9)), Adagrad(), Adagrad(accumulate_first=3), SGD(), SGD(momentum=0.9)], ids=repr
)
def test_steps_of_rows_are_those_of_each_model(optimizer):
    """As a device takes them: rates and numbers of steps as columns, at which nobody looks."""
    g = torch.Generator().manual_seed(0)
    alone = torch.randn(3, 11, generator=g, dtype=torch.float64)
    rows, rates = alone.clone(), [0.1, 0.02, 0.3]
    memories = [optimizer.init(vector) for vector in alone]
    stacked = {name: torch.stack([memory[name] for memory in memories]) for name in memories[0]}
    columns = {name: slot[:, None] if slot.ndim == 1 else slot for name, slot in stacked.items()}
    for _ in range(6):
        grads = torch.randn(3, 11, generator=g, dtype=torch.float64)
        for vector, grad, memory, rate in zip(alone, grads, memories, rates):
            optimizer.step(vector, grad, memory, rate)
        optimizer.step(rows, grads, columns, torch.tensor(rates, dtype=torch.float64)[:, None])
        torch.testing.assert_close(rows, alone, rtol=1e-6, atol=1e-7)
    for name, slot in stacked.items():
        torch.testing.assert_close(slot, torch.stack([memory[name] for memory in memories]))


@pytest.mark.parametrize("size", [1, 11, 1000])
@pytest.mark.parametrize("optimizer", [Adam(), Adam((0.0, 0.9))], ids=repr)
def test_a_step_of_one_row_is_the_same_in_pieces(optimizer, size, monkeypatch):
    g = torch.Generator().manual_seed(0)
    alone = torch.randn(size, generator=g)
    rows, memory = alone.clone()[None], optimizer.init(alone)
    columns = {name: slot.clone()[None, None] if slot.ndim == 0 else slot.clone()[None] for name, slot in memory.items()}
    for limit in (65536, 65536, 2):
        monkeypatch.setattr(optimizers, "_FUSED_NUMBERS", limit)
        grad = torch.randn(size, generator=g)
        optimizer.step(alone, grad, memory, 0.1)
        optimizer.step(rows, grad[None], columns, torch.tensor([[0.1]]))
        torch.testing.assert_close(rows[0], alone, rtol=1e-6, atol=1e-7)
    for name, slot in columns.items():
        torch.testing.assert_close(slot.view_as(memory[name]), memory[name])


def test_a_subclass_that_changes_the_step_is_not_recorded():
    assert Adam().can_be_recorded() and Adagrad().can_be_recorded() and SGD().can_be_recorded()
    assert not Reversed().can_be_recorded()
