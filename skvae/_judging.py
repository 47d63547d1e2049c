"""Measurements by which training is judged, on the rows that are watched."""

import math
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from skvae import _kernels as kernels
from skvae._course import Trainee
from skvae._inference import value_of_rows, weighted_mean
from skvae._model import Model, nested
from skvae._random import generator, normal
from skvae._settings import belongs_with
from skvae.objectives import ELBO, Objective
from skvae.solvers import SolverState

_MEASURED_CELLS = 2**20  # numbers per call
_WEIGHT_DRAWS = 4  # of uncertain weights
_COMPARED_ROWS = 1024  # on which objectives are judged that compare rows with each other, in pairs,
_COMPARED_DRAWS = 2  # of each
_FARTHEST = 20.0  # times the distance from the median to the lower quartile, that the value of a row may lie below the median,
_LEAST_DISTANCE = 1.0  # and that distance at least, in nats


def verdict(values: Tensor, weight: Tensor) -> Tensor:
    """Return by what training is judged: the mean of the values of rows, of which none counts as farther off than most are.

    The encoder knows nothing of a row that is unlike all others, and the bound of a single one, at minus thousands of nats,
    would decide when training ends. Numbers that are not finite stay what they are.

    Shapes: values and weights (m, n) in double precision -> (m,).
    """
    ordered, places = values.sort(-1)
    reached = weight.gather(-1, places).cumsum(-1)
    ends = [(reached < share * reached[:, -1:]).sum(-1, keepdim=True) for share in (0.25, 0.5)]
    quartile, median = (ordered.gather(-1, end) for end in ends)
    lowest = median - _FARTHEST * (median - quartile).clamp(min=_LEAST_DISTANCE)
    return _mean(torch.where(values.isfinite(), values.maximum(lowest), values), weight)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum(-1) / weight.sum(-1)


def judged_alone(trainee: Trainee) -> tuple[float, float]:
    """Return the verdict by the objective, and the ELBO, of one model on its watched rows."""
    problem, rows = trainee.problem, trainee.watched
    model, objective = problem.model, trainee.solver.judge(problem.objective)
    params = model.unpack(trainee.own(trainee.result()))

    def values_of_rows(function) -> Tensor:  # for every draw of the weights: (draws, n)
        drawn = model.draws(params, _WEIGHT_DRAWS, "judge")
        return torch.stack([value_of_rows(model, one, rows, function, trainee.noise).double() for one in drawn])

    bounds = values_of_rows(ELBO().bound)
    weight = (torch.ones_like(bounds[0]) if rows.weight is None else rows.weight.double()).expand_as(bounds)
    bound = fmean(_mean(bounds, weight).tolist())
    if is_elbo(objective) or objective.is_rowwise:
        values = bounds if is_elbo(objective) else values_of_rows(objective)
        return fmean(verdict(values, weight).tolist()), bound
    few = rows.head(_COMPARED_ROWS)
    weight = few.x.new_ones(len(few)) if few.weight is None else few.weight
    repeated = replace(few, weight=weight * trainee.watched_weight)
    stream = generator(model.seed, "compared", device=few.device)
    noise = normal((_COMPARED_DRAWS, len(few), model.n_noise), stream, few.dtype)  # not common to rows
    with torch.inference_mode():
        drawn = model.draws(params, _WEIGHT_DRAWS, "judge")
        return fmean(weighted_mean(objective(model, one, repeated, noise), few.weight) for one in drawn), bound


def kl_of_weights(model: Model, flat: Tensor, total_weight: float) -> float:
    """Return the KL of uncertain weights to their prior, in nats per row."""
    return float(model.kl_of_weights(model.unpack(flat))) / total_weight if model.decoder.is_uncertain else 0.0


def is_elbo(objective: Objective) -> bool:
    """Tell whether an objective at full strength is the bound itself."""
    if not isinstance(objective, ELBO) or not objective.is_bound:
        return False
    return all(belongs_with(objective, "is_bound", name) for name in ("__call__", "bound"))


class Judge:
    """Measures several models at once by the closed forms, on the watched rows of each."""

    def __init__(self, trainees: list[Trainee], state: SolverState):
        self.problems = [trainee.problem for trainee in trainees]
        wide, layout, like = state.arrangement.wide, state.arrangement.layout, state.params
        n = max(len(t.watched) for t in trainees)
        self.tile = self.rows_per_call(wide, n, len(trainees) * len(trainees[0].noise))
        n += -n % self.tile
        self.x = like.new_zeros((len(trainees), n, wide.n_columns))
        self.weight = like.new_zeros((len(trainees), n), dtype=torch.float64)
        self.noise = like.new_zeros((len(trainees), len(trainees[0].noise), 1, wide.n_components))
        for i, t in enumerate(trainees):
            self.x[i, : len(t.watched)] = t.watched.x
            self.weight[i, : len(t.watched)] = 1.0 if t.watched.weight is None else t.watched.weight
            self.noise[i, ..., : t.noise.shape[-1]] = t.noise
        self.params = torch.zeros_like(like[: len(trainees)])
        wide = kernels.in_units_of([problem.model for problem in self.problems], wide)
        self.kernel = kernels.Kernel(wide, nested(layout.views(self.params)), self.tile, len(trainees[0].noise))
        betas = [getattr(problem.objective, "beta", 1.0) for problem in self.problems]
        self.kl_weight = torch.tensor(betas, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    @staticmethod
    def rows_per_call(wide: Model, n: int, n_draws: int) -> int:
        """Return how many of n rows are measured at a time, with so many draws of each for all models together."""
        widths = (*wide.encoder.widths(), *wide.decoder.widths(), wide.n_columns)
        n_calls = math.ceil(n * n_draws * max(widths) / _MEASURED_CELLS)
        return kernels.padded_rows(math.ceil(n / n_calls))

    def measure(self, trainees: list[Trainee]) -> tuple[list[float], list[float]]:
        """Return the verdicts by the objectives, and the ELBOs."""
        objective, judged_by_bound = self.problems[0].objective, all(is_elbo(problem.objective) for problem in self.problems)
        values, bounds = [], []
        with torch.inference_mode():
            torch.stack([trainee.result() for trainee in trainees], out=self.params)
            for x in self.x.split(self.tile, 1):
                self.kernel.forward(x, self.noise)
                log_px = self.kernel.log_px(x, is_last=True)
                bounds.append(self.kernel.bound(ELBO(), log_px, self.noise, torch.ones_like(self.kl_weight)))
                if not judged_by_bound:
                    values.append(self.kernel.bound(objective, log_px, self.noise, self.kl_weight))
            of_rows = [torch.cat(parts, 1).double() for parts in ((bounds if judged_by_bound else values), bounds)]
            return verdict(of_rows[0], self.weight).tolist(), _mean(of_rows[1], self.weight).tolist()
