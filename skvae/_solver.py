"""What solvers share: the problem, the state that a step changes, and the update that follows a gradient."""

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._model import Layout, Model, Params, nested
from skvae._random import generator
from skvae._settings import Interval, Settings, belongs_with
from skvae.objectives import Objective
from skvae.optimizers import Optimizer, Slots

_MAX_PRECISION = 1e12  # of the prior per row, when rows weigh next to nothing: its square stays finite in float32
_MAX_KEPT = 8  # shapes of batches whose buffers are kept


@dataclass(frozen=True)
class Problem:
    """What is to be maximised: the objective summed over weighted rows, plus the log prior of the weight matrices."""

    model: Model
    objective: Objective
    optimizer: Optimizer
    alpha: float  # precision of the Gaussian prior on the weight matrices
    total_weight: float  # number of rows, counted with repetitions
    n_rows: int = 0  # number of distinct rows
    batch_size: int = 0  # rows per update

    @property
    def precision(self) -> float:
        """Precision of the Gaussian prior on the weight matrices, per row."""
        return min(float(self.alpha) / self.total_weight, _MAX_PRECISION)

    def repetitions(self, weight: Tensor) -> Tensor:
        """Return how often rows occur in the data, given their weights, which are relative to the mean."""
        return weight * (self.total_weight / self.n_rows)


@dataclass(frozen=True)
class Arrangement:
    """How the parameters of models lie side by side in training: each in the slots of one wide model."""

    wide: Model
    layout: Layout
    places: list[Tensor] | None = None  # of each model's parameters in the layout; None: they are the layout

    def place(self, i: int, vector: Tensor) -> Tensor:
        """Return a vector of model `i`, in its own layout, as it lies in training; what is no such vector passes."""
        if self.places is None or vector.shape != self.places[i].shape:
            return vector.clone()
        placed = vector.new_zeros(self.layout.size)
        placed[self.places[i].to(vector.device)] = vector
        return placed

    def extract(self, i: int, vector: Tensor) -> Tensor:
        """Return a vector of model `i` in its own layout; what is no such vector passes."""
        if self.places is None or vector.shape != (self.layout.size,):
            return vector
        return vector[self.places[i].to(vector.device)]

    def only(self, chosen: list[int]) -> "Arrangement":
        """Return the arrangement of some of the models."""
        return Arrangement(self.wide, self.layout, self.places and [self.places[i] for i in chosen])


@dataclass
class SolverState:
    """What a step reads and changes in place, for `m` models: parameters, gradients, and the memory of all that came before."""

    problems: list[Problem]
    arrangement: Arrangement
    params: Tensor  # (m, size)
    slots: Slots  # named vectors (m, size) and numbers (m,) of the optimizer and the solver
    rates: list[float] = field(init=False, default_factory=list)  # learning rates of the present epoch
    annealing: list[float] = field(init=False, default_factory=list)  # share of the KL that counts in it
    grad: Tensor = field(init=False)  # (m, size)
    rate: Tensor = field(init=False)  # (m,) `rates` on the device
    kl_weight: Tensor = field(init=False)  # (m, 1, 1) weight of the KL in the present epoch
    stream: torch.Generator = field(init=False)  # of the random numbers of steps, on the device; begins anew with every window
    one: Tensor = field(init=False)  # a number costs more than a tensor to an operation
    has_penalty: bool = field(init=False)
    stays_on_device: bool = field(init=False)  # whether a step must not look at a number on the device
    n_parts: int = field(init=False, default=1)  # in which a batch is taken, for want of memory
    kept: dict = field(init=False, default_factory=dict)  # what steps use again: views and buffers

    def __post_init__(self):
        m = len(self.params)
        self.grad = torch.zeros_like(self.params)
        self.rate, self.kl_weight = self.params.new_zeros(m), self.params.new_zeros((m, 1, 1))
        self.stream = generator(self.problems[0].model.seed, "steps", device=self.params.device)
        self.one = torch.ones((), dtype=self.params.dtype, device=self.params.device)
        self.has_penalty = any(problem.alpha for problem in self.problems)
        self.stays_on_device = self.params.is_cuda

    def member(self, i: int) -> tuple[Tensor, Tensor, Slots]:
        """Return views of the parameters, the gradient and the memory of model `i`."""
        return self.params[i], self.grad[i], {name: slot[i] for name, slot in self.slots.items()}

    def only(self, chosen: list[int]) -> "SolverState":
        """Return a copy with some of the models."""
        slots = {name: slot[chosen] for name, slot in self.slots.items()}
        problems = [self.problems[i] for i in chosen]
        return SolverState(problems, self.arrangement.only(chosen), self.params[chosen], slots)

    def begin_epoch(self, rates: list[float], annealing: list[float]) -> None:
        """Set what is the same in all steps of an epoch."""
        if self.rates != rates:
            self.rates = rates
            self.rate.copy_(torch.tensor(rates, dtype=torch.float64, device="cpu"))
            self.forget("updates")
        if self.annealing != annealing:
            self.annealing = annealing
            weights = [getattr(p.objective, "beta", 1.0) * share for p, share in zip(self.problems, annealing)]
            self.kl_weight[:, 0, 0] = torch.tensor(weights, dtype=self.params.dtype, device="cpu")

    def reuse(self, kind: str, key, make):
        """Return what `make` gave when it was last called for this kind and key."""
        kept = self.kept.setdefault(kind, {})
        if key not in kept:
            if len(kept) >= _MAX_KEPT:
                kept.clear()
            kept[key] = make()
        return kept[key]

    def forget(self, kind: str) -> None:
        """Drop what was kept of this kind."""
        self.kept.pop(kind, None)


class Solver(Settings):
    """Base of the solvers."""

    #: whether a step takes all rows, always in the same order, instead of a batch of them
    takes_all_rows: bool = False
    #: number of updates of the parameters in a step
    n_updates: int = 1
    #: names of the memory that stays when training goes on from other parameters
    lasting: tuple[str, ...] = ()

    def check(self, objective: Objective) -> None:
        """Refuse an objective that this solver cannot heed."""

    def judge(self, objective: Objective) -> Objective:
        """Return what training is judged by."""
        return objective

    def n_draws(self, objective: Objective) -> int:
        """Return how many draws of noise a step takes per row."""
        return objective.n_samples

    def structure(self, problem: Problem) -> tuple | None:
        """Return what problems must have in common to be solved in one state; None for a problem that is solved alone."""
        return None

    def arrange(self, problems: list[Problem]) -> Arrangement:
        """Decide how the parameters of the models lie in training."""
        return Arrangement(problems[0].model, problems[0].model.layout)

    def fresh_slots(self, problem: Problem, params: Tensor) -> Slots:
        """Return the memory of one model at the start of training from a vector of parameters, as it lies in training."""
        raise NotImplementedError

    def init(self, problems: list[Problem], arrangement: Arrangement, params: list[Tensor], slots: list[Slots | None]):
        """Return the state in which training starts, or goes on where `slots` are given; vectors lie as in training."""
        fresh = [self.fresh_slots(problem, vector) for problem, vector in zip(problems, params)]
        # The memory of another optimizer says nothing to this one.
        memories = [old if old is not None and shapes(old) == shapes(new) else new for old, new in zip(slots, fresh)]
        stacked = {name: torch.stack([one[name] for one in memories]) for name in fresh[0]}
        return SolverState(problems, arrangement, torch.stack(params), stacked)

    def start_over(self, state: SolverState, i: int, params: Tensor) -> None:
        """Let model `i` go on from other parameters with an empty memory, but for what lasts."""
        state.params[i].copy_(params)
        for name, fresh in self.fresh_slots(state.problems[i], params).items():
            if name not in self.lasting:
                state.slots[name][i].copy_(fresh)

    def result(self, state: SolverState, i: int) -> Tensor:
        """Return the parameters that training would give model `i` if it ended here.  # (size,)"""
        return state.params[i]

    def step(self, state: SolverState, batch: Batch, noise: Tensor, measured: bool = True) -> Tensor | None:
        """Change the first models of the state by one batch each; return their weighted objective if `measured`.  # (m,)

        The batch has rows x (m, n, d) and weights (m, n), which contain the division by the number of rows; noise is
        (m, s, n, k).
        """
        raise NotImplementedError

    def penalty(self, state: SolverState, i: int, params: Tensor) -> float:
        """Return what the prior on the weight matrices takes from the mean objective of model `i`, in nats per row."""
        return 0.0

    def can_be_recorded(self, state: SolverState) -> bool:
        """Tell whether a step is a fixed sequence of work on the device, which can be recorded and replayed."""
        return False

    def tidy(self, state: SolverState) -> None:
        """Do what has to be done now and then; called a few times in a thousand steps."""


class GradientSolver(Solver):
    """Base of the solvers that fill the gradient of a batch and move the parameters by it, once or several times a step.

    A subclass has a parameter `averaging`, the decay of the running average of the parameters per update; 0 keeps the last.
    """

    _parameter_constraints = {"averaging": [Interval(Real, 0, 1, closed="left")]}
    averaging: float
    #: whether a step is a fixed sequence of work on the device, with no random numbers but those of `state.stream`
    is_capturable: bool = False

    def fresh_slots(self, problem, params):
        slots = problem.optimizer.init(params)
        if self.averaging:
            slots["average"] = params.clone()
            slots["n_averaged"] = torch.zeros((), device=params.device, dtype=torch.float32)
        return slots

    def result(self, state, i):
        return (state.slots["average"] if self.averaging else state.params)[i]

    def penalty(self, state, i, params):
        problem = state.problems[i]
        if not problem.alpha:
            return 0.0
        return 0.5 * problem.precision * float((_matrices(state) * params.square()).sum(dtype=torch.float64))

    def tidy(self, state):
        with torch.no_grad():
            state.problems[0].optimizer.tidy(state.slots)

    def can_be_recorded(self, state):
        says_so = self.is_capturable and all(belongs_with(self, "is_capturable", name) for name in ("step", "update"))
        return says_so and all(p.objective.can_be_recorded() and p.optimizer.can_be_recorded() for p in state.problems)

    def update(self, state: SolverState, m: int) -> None:
        """Move the parameters of the first models by their gradients."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._update(state, m)
        else:
            self._update(state, m)

    def _update(self, state, m):
        if state.has_penalty:
            self._add_penalty(state, m)
        for step, rate, members in state.reuse("updates", m, lambda: _update_groups(state, m)):
            step(*members, rate)
        if self.averaging:
            self._average(state, m)

    def _add_penalty(self, state, m):
        for i, problem in enumerate(state.problems[:m]):
            if problem.alpha:
                state.grad[i].addcmul_(_matrices(state), state.params[i], value=problem.precision)

    def _average(self, state, m):
        """Move the averages towards the parameters; young averages forget faster."""
        average, params, age = state.reuse("averages", m, lambda: _averages(state, m))
        age.add_(state.one)
        if state.stays_on_device:
            share = 1 - (age / (age + 9)).clamp(max=self.averaging)
            average.lerp_(params, share.to(params.dtype)[:, None])
            return
        shares = [1 - min(self.averaging, t / (t + 9)) for t in age.tolist()]
        if len(set(shares)) == 1:
            average.lerp_(params, shares[0])
        else:
            for i, share in enumerate(shares):
                average[i].lerp_(params[i], share)


def _averages(state: SolverState, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the averages, parameters and ages of the first models."""
    return state.slots["average"][:m], state.params[:m], state.slots["n_averaged"][:m]


def _update_groups(state: SolverState, m: int):
    """Return the calls that update the models, as (function, learning rate, (parameters, gradients, slots))."""
    optimizers = [problem.optimizer for problem in state.problems[:m]]
    if state.stays_on_device and all(optimizer.can_be_recorded() for optimizer in optimizers):
        are_equal = all(optimizer == optimizers[0] for optimizer in optimizers)
        parts = [slice(0, m)] if are_equal else [slice(i, i + 1) for i in range(m)]
        # The rates are numbers on the device, which can change under a recorded step.
        return [(optimizers[part.start].step, state.rate[part, None], _rows(state, part)) for part in parts]
    groups: list[tuple[Optimizer, float, list[int]]] = []
    for i, (optimizer, rate) in enumerate(zip(optimizers, state.rates)):
        same = next((members for other, r, members in groups if r == rate and other == optimizer), None)
        if same is None:
            groups.append((optimizer, rate, same := []))
        same.append(i)
    return [(optimizer.together(), rate, _members(state, chosen)) for optimizer, rate, chosen in groups]


def _rows(state: SolverState, part: slice) -> tuple[Tensor, Tensor, Slots]:
    """Return the parameters, gradients and memory of neighbouring models as rows, their numbers as columns."""
    slots = {name: slot[part, None] if slot.ndim == 1 else slot[part] for name, slot in state.slots.items()}
    return state.params[part], state.grad[part], slots


def _members(state: SolverState, chosen: list[int]) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
    slots = {name: [slot[i] for i in chosen] for name, slot in state.slots.items()}
    return [state.params[i] for i in chosen], [state.grad[i] for i in chosen], slots


def leaves_of(state: SolverState) -> Params:
    """Return leaf views of the only model's parameters, whose gradients are views of the gradient.

    They share the storage of the vectors: slicing a vector inside the graph would make a gradient of full length per parameter
    (2.4 times slower at 784-500-20).
    """
    return state.reuse("leaves", 1, lambda: _leaves(state))


def _leaves(state: SolverState) -> Params:
    leaves = {k: v.detach().requires_grad_() for k, v in state.arrangement.layout.views(state.params[0]).items()}
    for k, view in state.arrangement.layout.views(state.grad[0]).items():
        leaves[k].grad = view
    return nested(leaves)


def within_memory(state: SolverState, n_rows: int, fill: Callable[[slice | None], Tensor | None]) -> Tensor | None:
    """Call `fill` for all rows (None), which fills the gradient and returns a value to be summed over rows, or None.

    Where the memory does not suffice, it is called for parts of the rows, twice as many as before, and the gradients are added.
    """
    while True:
        try:
            return fill(None) if state.n_parts == 1 else _sum_of_parts(state, n_rows, fill)
        except torch.OutOfMemoryError:
            if state.n_parts >= n_rows:
                raise
            state.n_parts *= 2
            state.kept.clear()


def _sum_of_parts(state: SolverState, n_rows: int, fill: Callable) -> Tensor | None:
    size = -(-n_rows // state.n_parts)
    values, total = [], torch.zeros_like(state.grad)
    for start in range(0, n_rows, size):
        values.append(fill(slice(start, start + size)))
        total += state.grad
    state.grad.copy_(total)
    return None if values[0] is None else sum(values)


def part_of(batch: Batch, noise: Tensor, rows: slice | None) -> tuple[Batch, Tensor]:
    """Return a batch (m, n, ...) and its noise (m, s, n, k), or some rows of both."""
    if rows is None:
        return batch, noise
    assert batch.weight is not None
    return Batch(batch.x[:, rows], batch.weight[:, rows]), noise[:, :, rows]


def shapes(slots: Slots) -> dict[str, torch.Size]:
    """Return the names and shapes of a memory."""
    return {name: slot.shape for name, slot in slots.items()}


def _matrices(state: SolverState) -> Tensor:
    """Return `_weight_matrices`, made once."""
    return state.reuse("matrices", 1, lambda: _weight_matrices(state))


def _weight_matrices(state: SolverState) -> Tensor:
    """Return ones where the Gaussian prior holds, zeros elsewhere.  # (size,)"""
    wide, layout = state.arrangement.wide, state.arrangement.layout
    marked = torch.zeros(layout.size, dtype=state.params.dtype, device="cpu")
    for name, view in layout.views(marked).items():
        view.fill_(float(wide.is_weight_matrix(*name)))
    return marked.to(state.params.device)
