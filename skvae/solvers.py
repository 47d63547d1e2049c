"""Solvers: how one batch changes the parameters. Gradients and updates live here and in the optimizers, nowhere else."""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._model import Model, Params, nested
from skvae._settings import Interval, Settings, register
from skvae.objectives import Objective
from skvae.optimizers import Optimizer, Slots

_MAX_PRECISION = 1e12  # of the prior per row, when rows weigh next to nothing: its square stays finite in float32


@dataclass
class SolverState:
    """What a step reads and changes in place: the parameter vector, its gradient, and the memory of all that came before."""

    params: Tensor  # (size,)
    slots: Slots  # named vectors of the optimizer and the solver
    grad: Tensor  # (size,)
    leaves: Params  # leaf views that share the vector's storage, whose gradients are views of `grad`
    weight_matrices: Tensor  # (size,) ones where the Gaussian prior holds


@dataclass(frozen=True)
class Problem:
    """What is to be maximised: the objective summed over weighted rows, plus the log prior of the weight matrices."""

    model: Model
    objective: Objective
    optimizer: Optimizer
    alpha: float  # precision of the Gaussian prior on the weight matrices
    total_weight: float  # number of rows, counted with repetitions


class Solver(Settings):
    """Base of the solvers."""

    def init(self, problem: Problem, params: Tensor, slots: Slots | None = None) -> SolverState:
        """Return the state in which training starts, or goes on where `slots` are given."""
        raise NotImplementedError

    def start_over(self, problem: Problem, state: SolverState, params: Tensor) -> None:
        """Go on from other parameters with an empty memory."""
        state.params.copy_(params)
        for name, fresh in self.init(problem, params).slots.items():
            state.slots[name].copy_(fresh)

    def result(self, state: SolverState) -> Tensor:
        """Return the parameters that training would give if it ended here.  # (size,)"""
        return state.params

    def step(self, problem: Problem, state: SolverState, batch: Batch, noise: Tensor, learning_rate: float, annealing: float):
        """Change the state by one batch; return the sum over its rows of weight times objective, as a tensor."""
        raise NotImplementedError


class AEVB(Solver):
    """Auto-encoding variational Bayes: stochastic gradient ascent on the objective through reparameterised samples.

    Parameters
    ----------
    averaging : float, default=0.99
        Decay of the running average of the parameters, per step. The average, not the last iterate, is judged and kept: it
        allows steps as long as they can be, and lets their noise cancel. 0 keeps the last iterate, as the paper does.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, algorithm 1 and equation 8. Polyak & Juditsky, *Acceleration of
    Stochastic Approximation by Averaging*, 1992.
    """

    _parameter_constraints = {"averaging": [Interval(Real, 0, 1, closed="left")]}

    def __init__(self, *, averaging=0.99):
        self.averaging = averaging

    def init(self, problem, params, slots=None):
        grad = torch.zeros_like(params)
        fresh = problem.optimizer.init(params)
        if self.averaging:
            fresh["average"] = params.clone()
            fresh["n_averaged"] = torch.zeros((), device="cpu", dtype=torch.float32)
        if slots is None or slots.keys() != fresh.keys():  # the memory of another optimizer says nothing to this one
            slots = fresh
        # Leaves that share the vector's storage and accumulate into one gradient vector: slicing the vector inside the graph
        # would make a gradient of full length per parameter (2.4 times slower at 784-500-20).
        leaves = {k: v.detach().requires_grad_() for k, v in problem.model.layout.views(params).items()}
        for k, view in problem.model.layout.views(grad).items():
            leaves[k].grad = view
        weight_matrices = problem.model.weight_matrices(params.dtype).to(params.device)
        return SolverState(params, slots, grad, nested(leaves), weight_matrices)

    def step(self, problem, state, batch, noise, learning_rate, annealing):
        state.grad.zero_()
        value = problem.objective(problem.model, state.leaves, batch, noise, annealing)  # (n,)
        total = (value if batch.weight is None else value * batch.weight).sum()
        (-total / len(batch)).backward()
        if problem.alpha:
            precision = min(problem.alpha / problem.total_weight, _MAX_PRECISION)
            state.grad.addcmul_(state.weight_matrices, state.params, value=precision)
        problem.optimizer.step(state.params, state.grad, state.slots, learning_rate)
        if self.averaging:
            t = float(state.slots["n_averaged"].add_(1))
            state.slots["average"].lerp_(state.params, 1 - min(self.averaging, t / (t + 9)))  # young averages forget faster
        return total.detach()

    def result(self, state):
        return state.slots["average"] if self.averaging else state.params


register("solver", aevb=AEVB)
