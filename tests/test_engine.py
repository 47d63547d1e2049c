"""The loop: what it remembers so that it can go back."""

import torch

from skvae._engine import Progress, Restart, divergence
from skvae.solvers import SolverState


def test_a_restart_point_is_a_copy():
    params = torch.ones(3)
    state = SolverState(params, {"mean": params * 2}, params * 0, {}, params)
    progress = Progress(epoch=4, history={"epoch": [0.0]})
    restart = Restart(state, params * 5, progress)
    state.params.fill_(9.0)
    state.slots["mean"].fill_(9.0)
    progress.history["epoch"].append(1.0)
    restart.restore(state)
    assert state.params.tolist() == [1.0] * 3 and state.slots["mean"].tolist() == [2.0] * 3
    assert restart.kept[3].history["epoch"] == [0.0]


def test_the_error_of_a_divergence_says_what_was_tried():
    assert "learning rate had been divided by 8" in str(divergence(Progress(epoch=3, n_rollbacks=3)))
