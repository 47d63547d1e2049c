"""From distinct rows to a trained state: the defaults that depend on the data, the split, the run, and what it reports."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skvae._batch import Batch, TrainingRows
from skvae._course import Callback, Plan, Progress, Trainee, divergence
from skvae._devices import room_for_data, threads_for
from skvae._hashing import fingerprint, hash_sum
from skvae._inference import bound_and_mean, kl_of_components, value_of_rows, weighted_mean
from skvae._judging import kl_of_weights
from skvae._linear import can_start_linearly, start_linearly
from skvae._model import Model, Params
from skvae._population import train_in_company
from skvae._random import generator
from skvae._settings import to_spec
from skvae._state import Fitted, Training
from skvae._stream import StreamedTable, split_source
from skvae._table import LazyRows, Table, TableCodec, hashes_of_encoded, warn_of_columns_left_out
from skvae._trial import try_own_pieces
from skvae._warnings import warn
from skvae.likelihoods._standardized import Standardized
from skvae.objectives import Objective
from skvae.optimizers import Optimizer, Slots
from skvae.solvers import Problem, Solver

_ROWS_FOR_TWO_LAYERS = 2_000
_FEW_ROWS = 1_000  # distinct rows that are taken for all there are, if they are discrete
_OFTEN = 3  # and come so many times on average
_WATCHED_ROWS = 10_000  # rows on which the bound is measured, at most,
_WATCHED_CELLS = 2**24  # and their cells, if that leaves
_FEWEST_WATCHED_ROWS = 1_000
_WATCHED_DRAWS = 16_384  # row-samples of one measurement during training, at most,
_FEWEST_WATCHED_DRAWS = 8  # per row, if they do not exceed that
_REPORTED_DRAWS = 16  # per row, for the bound that is reported in the end, at least,
_REPORTED_FLOPS = 1e11  # and as many as make moments exact, if that is not more work
_MEASURED_CELLS = 500_000  # columns times draws of one measurement
_MEASURED_SHARE = 0.1  # of the work of training, that a measurement on training rows may take
_FEWEST_MEASUREMENTS = 40  # during the default budget, whatever they cost: step sizes are lowered by them
_UPDATES_PER_EVALUATION = 50
_WARNED_ROWS, _FEWEST_WARNED = 1_000, 50  # cells of a column from which it is judged whether others are far off:
_NARROW = 0.01  # standard deviations within which half of them lie then; within ten times as many nearly all
_TURNS = 0.5, 0.75, 0.875  # of the default budget, by which the adaptive schedule has shortened the steps
_WEIGHT_DRAWS = 8  # of uncertain weights, over which the bound is averaged
_ACTIVE_VARIANCE = 0.01  # of the posterior mean over the data, above which a component is in use (Burda et al., 2016)


@dataclass(frozen=True)
class Recipe:
    """How to train: the estimator's parameters, resolved."""

    objective: Objective
    solver: Solver
    optimizer: Optimizer
    learning_rate: str
    learning_rate_init: float
    alpha: float
    batch_size: int | str
    max_iter: int | None
    max_time: float | None
    tol: float
    n_iter_no_change: int
    early_stopping: bool | str
    validation_fraction: float
    init: str
    matmul_precision: str


def default_n_components(n_columns: int) -> int:
    """Return the number of components for a table of `n_columns`; those that are not needed switch themselves off."""
    return min(n_columns, 2 * math.ceil(math.sqrt(n_columns)))


def default_hidden_layer_sizes(n_rows: int) -> tuple[int, ...]:
    """Return the units of the hidden layers: a second layer learns more from many rows, and too much from few."""
    return (128,) if n_rows < _ROWS_FOR_TWO_LAYERS else (128, 128)


def default_batch_size(n_rows: int) -> int:
    """Return the number of rows per step: about a twentieth of the data, a power of two between 32 and 512."""
    batch_size = max(32, min(512, 2 ** int(math.log2(max(n_rows / 20, 1)))))
    return n_rows if n_rows < 1.5 * batch_size else batch_size


def default_max_iter(n_rows: int, batch_size: int, n_updates: int = 1) -> int:
    """Return a number of epochs that leaves room to converge: 20,000 steps, if these are no more than 1,000 epochs.

    Where an epoch has fewer than five updates, of which a step makes `n_updates`, there are as many as make 5,000 updates.
    """
    n_steps = math.ceil(n_rows / batch_size)
    return min(max(1_000, math.ceil(5_000 / (n_steps * n_updates))), math.ceil(20_000 / n_steps))


def batch_size_for(recipe: Recipe, n_rows: int) -> int:
    """Return the number of rows per step."""
    return default_batch_size(n_rows) if isinstance(recipe.batch_size, str) else min(recipe.batch_size, n_rows)


def watched_rows(n_columns: int) -> int:
    """Return on how many rows to measure at most; fewer of very wide tables, which are held in memory for it."""
    return max(_FEWEST_WATCHED_ROWS, min(_WATCHED_ROWS, _WATCHED_CELLS // max(n_columns, 1)))


@dataclass(frozen=True)
class Split:
    """The rows that train and the rows on which training is judged, on the device."""

    train: TrainingRows
    watched: Batch
    total_weight: float
    data_hash: int
    watched_weight: float  # how often a watched row occurs whose weight is one
    watches_training: bool  # whether the watched rows are training rows


def split_table(fitted: Fitted, table: Table | StreamedTable, recipe: Recipe, device: torch.device, one_epoch: bool) -> Split:
    """Set the validation rows aside."""
    _check_solver(recipe, table, one_epoch)
    recipe.objective.check(fitted.model)
    split = split_rows if isinstance(table, Table) else split_streamed_rows
    return split(fitted, table, recipe, device, one_epoch)  # type: ignore[arg-type]


def _check_solver(recipe: Recipe, table: Table | StreamedTable, one_epoch: bool) -> None:
    """Refuse what the solver cannot heed."""
    recipe.solver.check(recipe.objective)
    if recipe.solver.takes_all_rows and (one_epoch or not isinstance(table, Table)):
        refused = "partial_fit, which sees some of them once" if one_epoch else "a data source, whose rows stay on disk"
        raise ValueError(
            f"solver={recipe.solver!r} takes all rows in every step and remembers something of each, so it cannot train by "
            f"{refused}. Use solver='aevb' or 'wake-sleep', or fit an array."
        )


def split_streamed_rows(fitted: Fitted, table: StreamedTable, recipe: Recipe, device: torch.device, one_epoch: bool) -> Split:
    """Set validation rows aside from those of a source that are held; the others are read while training."""
    survey = table.survey
    n_validation = 0 if one_epoch else _n_validation(recipe, fitted.codec, table.n_rows, survey.total_weight)
    n_validation = min(n_validation, len(survey.held.hashed) // 2)
    train, watched, total = split_source(table, fitted.codec, fitted.model.seed, n_validation, fitted.dtype, device)
    watched = watched if n_validation else train.head(watched_rows(fitted.codec.n_columns))
    return Split(train, watched, total, survey.data_hash, float(survey.held.weight.mean()), not n_validation)


def _n_validation(recipe: Recipe, codec: TableCodec, n: int, total_weight: float) -> int:
    """Return how many of n distinct rows to set aside; none where training is judged on the training rows.

    Of a few combinations of categories that come again and again, new rows are made as well: one set aside is one that
    training would miss, and to learn the others by heart is no fault.
    """
    comes_again = n < _FEW_ROWS and total_weight >= _OFTEN * n and not codec.is_density.any()
    stops_early = not comes_again if recipe.early_stopping == "auto" else recipe.early_stopping
    if not stops_early or n < 2:
        return 0
    return min(max(round(recipe.validation_fraction * n), min(10, n // 5), 1), watched_rows(codec.n_columns), n - 1)


def split_rows(fitted: Fitted, table: Table, recipe: Recipe, device: torch.device, one_epoch: bool) -> Split:
    """Put the distinct rows in their canonical order, which no change of units changes, and set the validation rows aside."""
    codec, dtype, rows, weight = fitted.codec, fitted.dtype, table.rows, table.weight
    even = bool((weight == weight[0]).all())
    relative = None if even else torch.from_numpy(weight / weight.max()).to(dtype)
    hashed = hashes_of_encoded(codec, table.X, rows, dtype)
    data_hash = fingerprint(hash_sum(hashed, relative, codec.n_columns))
    order = np.argsort(hashed, kind="stable")
    rows, weight = rows[order], weight if even else weight[order]
    data = LazyRows(codec, table.X, rows, None if relative is None else relative[torch.from_numpy(order)], dtype, device)
    del hashed, order, relative
    n = len(data)
    n_validation = 0 if one_epoch else _n_validation(recipe, codec, n, float(weight.sum()))
    validation = torch.randperm(n, generator=generator(fitted.model.seed, "split"), device="cpu")[:n_validation].clone()
    trains = np.ones(n, dtype=bool)
    trains[validation.numpy()] = False
    train = replace(data, rows=rows[trains], weight=_mean_one(data.weight, torch.from_numpy(trains)))
    watched = data.take(validation) if n_validation else data.head(watched_rows(codec.n_columns))
    if n_validation and codec.per_cell:
        new = codec.has_new_category(table.X, rows[validation.numpy()], rows[trains])
        # Training makes it less and less probable, without a limit, whatever else it learns about the row.
        watched.x.masked_fill_(torch.from_numpy(new).to(device), torch.nan)
    return Split(
        train.encoded() if len(train) * train.n_columns * dtype.itemsize <= room_for_data(device) else train,
        watched,
        float(weight[trains].sum()),
        data_hash,
        float(weight.max()),
        not n_validation,
    )


def look_before_training(fitted: Fitted, table: Table | StreamedTable, split: Split, recipe: Recipe, one_epoch: bool) -> None:
    """Warn of what will not train well or at all, and refuse pieces of the user's own that cannot."""
    if not fitted.is_new:
        _warn_of_left_out(fitted.codec, table)
        return
    if one_epoch:
        _warn_of_empty(fitted.codec)
    _warn_of_outliers(fitted, table)
    flat = torch.tensor(fitted.params, device=split.watched.device)
    try_own_pieces(fitted.model, flat, split.watched, recipe.objective, recipe.optimizer)


def _warn_of_empty(codec: TableCodec) -> None:
    """Warn of columns without a cell in the rows with which training part by part begins."""
    empty = [codec.schema[j].name for j in np.flatnonzero(np.isnan(codec.loc))]
    if empty:
        warn(
            f"{len(empty)} column(s) have no cell in the rows of the first partial_fit, so the model leaves them out, whatever "
            f"later rows have there: {empty[:5]}. Begin with rows in which every column has some."
        )


def _warn_of_left_out(codec: TableCodec, table: Table | StreamedTable) -> None:
    """Warn of columns that the model left out, because they did not vary, and that do now; in either precision."""
    left_out = np.setdiff1d(np.arange(len(codec.schema)), codec.order)
    if len(left_out):
        with np.errstate(over="ignore", under="ignore"):
            low, high, before = (ends.astype(np.float32) for ends in (*table.limits(left_out), codec.loc[left_out]))
        warn_of_columns_left_out([codec.schema[j].name for j in left_out[np.fmin(low, before) < np.fmax(high, before)]])


@np.errstate(under="ignore")
def _warn_of_outliers(fitted: Fitted, table: Table | StreamedTable) -> None:
    """Warn of columns whose scale is made by a few numbers, so that the model cannot tell the others apart.

    The cells are those of the table: in the model's units the others may be one number.
    """
    X = table.head(max(_FEWEST_WARNED, min(_WARNED_ROWS, _WATCHED_CELLS // table.n_features)))
    told = {}
    for j, likelihood in zip(fitted.codec.order, fitted.likelihoods, strict=True):
        if isinstance(likelihood, Standardized) and likelihood.standardize:
            cells = X[~np.isnan(X[:, j]), j].astype(np.float64)
            if len(cells) < _FEWEST_WARNED:
                continue
            column = fitted.codec.schema[j]
            lowest, low, high, highest = np.quantile(cells, [0.05, 0.25, 0.75, 0.95]) / column.scale
            if low < high < low + _NARROW and highest < lowest + 10 * _NARROW:
                told[column.name] = high - low
    if told:
        warn(
            f"A few numbers far off make the scale of {len(told)} column(s), {list(told)[:5]}: half of the others lie within "
            f"{min(told.values()):.1g} standard deviations of each other, which the model can hardly tell apart. Correct such "
            "numbers, mark them as missing (NaN), or take logarithms or ranks of the column."
        )


def _mean_one(weight: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the weights of the chosen rows, relative to their mean."""
    return None if weight is None else weight[rows] / weight[rows].mean()


def make_plan(recipe: Recipe, fitted: Fitted, split: Split, progress: Progress, one_epoch: bool) -> Plan:
    """Decide how long and in which portions to train."""
    n = len(split.train)
    batch_size = n if recipe.solver.takes_all_rows else batch_size_for(recipe, n)
    budget = recipe.max_iter or default_max_iter(n, batch_size, recipe.solver.n_updates)
    has_turns = recipe.max_iter is None and recipe.learning_rate == "adaptive" and not one_epoch
    return Plan(
        seed=fitted.model.seed,
        batch_size=batch_size,
        max_iter=progress.first + (1 if one_epoch else budget),
        turns=tuple(progress.first + math.ceil(share * budget) for share in _TURNS) if has_turns else (),
        learning_rate_init=recipe.learning_rate_init,
        learning_rate="constant" if one_epoch else recipe.learning_rate,
        tol=recipe.tol,
        n_iter_no_change=recipe.n_iter_no_change,
        evaluate_every=_epochs_between_measurements(recipe, fitted.model, split, batch_size),
        max_time=recipe.max_time,
        matmul_precision=recipe.matmul_precision,
    )


def _epochs_between_measurements(recipe: Recipe, model: Model, split: Split, batch_size: int) -> int:
    """Return after how many epochs training is measured: about fifty updates, or until it is little work on training rows."""
    n_rows, n_updates = len(split.train), recipe.solver.n_updates
    epochs = round(_UPDATES_PER_EVALUATION / n_updates * batch_size / n_rows)
    if split.watches_training:
        trained = 6 * n_updates * n_rows  # rows through half a model
        measured = len(split.watched) * (1 + _n_watched_draws(model, split))
        most = default_max_iter(n_rows, batch_size, n_updates) // _FEWEST_MEASUREMENTS
        epochs = max(epochs, min(round(measured / (_MEASURED_SHARE * trained)), most))
    return max(1, epochs)


def earlier_training(fitted: Fitted, split: Split) -> Training | None:
    """Return the training on the same data that this one goes on with, if there was one."""
    training = fitted.training
    return training if training is not None and training.data_hash == split.data_hash else None


def criterion_of(recipe: Recipe) -> str:
    """Tell by what training is judged, beside the rows, in words that no option of another library changes."""
    spec = to_spec(recipe.solver.judge(recipe.objective))
    return json.dumps([spec, float(recipe.alpha)], default=_in_words, skipkeys=True)


def _in_words(value: Any) -> Any:
    """Return numbers of numpy as Python's, as a file gives them back, and anything else as a text."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def start_progress(fitted: Fitted, split: Split, recipe: Recipe, so_far: Progress, one_epoch: bool) -> Progress:
    """Return where training stands: where it ended on the same data, or after the epochs that lie behind."""
    earlier = earlier_training(fitted, split)
    if earlier is None or one_epoch:
        return replace(so_far, first=so_far.epoch, criterion=criterion_of(recipe))
    history = {name: list(values) for name, values in earlier.progress["history"].items()}
    progress = Progress(**{**earlier.progress, "history": history, "stopped": False})
    criterion = criterion_of(recipe)
    if progress.criterion == criterion:
        return progress
    # What was best may be no longer.
    return Progress(progress.epoch, progress.first, progress.n_steps, criterion=criterion, history=history)


def progress_of(attributes: dict[str, Any], codec: TableCodec) -> Progress:
    """Return the progress that the fitted attributes of an estimator tell of, those that `report` gave."""
    history = _shifted(attributes["history_"], -codec.log_jacobian)
    plain = {name: values.tolist() for name, values in history.items()}
    return Progress(attributes["n_iter_"], n_steps=attributes["n_steps_"], history=plain)


def _history_in_units_of_data(progress: Progress, codec: TableCodec) -> dict[str, np.ndarray]:
    """Return the history that an estimator shows, from which `progress_of` finds the way back."""
    return _shifted(progress.history, codec.log_jacobian)


def _shifted(history: dict[str, Any], by: float) -> dict[str, np.ndarray]:
    """Return a history whose values in nats are larger by a number."""
    arrays = {name: np.array(values) for name, values in history.items()}
    return {**arrays, **{name: arrays[name] + by for name in ("objective", "lower_bound")}}


def start_state(fitted: Fitted, split: Split, recipe: Recipe, one_epoch: bool) -> tuple[Tensor, Tensor, Slots | None]:
    """Return the parameters from which training starts, the best so far, and the optimizer's memory if there is one."""
    device = split.train.device
    earlier = fitted.training if one_epoch else earlier_training(fitted, split)
    params = torch.tensor(fitted.params if earlier is None else earlier.params, device=device)
    if fitted.is_new and _is_linear_start(recipe.init, fitted.model):
        n, d = len(split.train), split.train.n_columns
        with threads_for(2.0 * n * d**2 + 100.0 * d**3):  # a covariance matrix and a few decompositions
            start_linearly(fitted.model, params, split.train)
    if fitted.is_new:
        start_pieces(fitted.model, params, split.train.head(watched_rows(split.train.n_columns)))
    best = params.clone() if earlier is None else torch.tensor(earlier.best, device=device)
    slots = None if earlier is None else {k: torch.tensor(v, device=device) for k, v in earlier.slots.items()}
    return params, best, slots


def start_pieces(model: Model, flat: Tensor, rows: Batch) -> None:
    """Let likelihood and prior begin where the rows of training data say."""
    params = model.unpack(flat)
    if model.n_columns:
        n_rows = watched_rows(rows.n_columns)
        _start_likelihood(model, params, rows.x if rows.weight is None else rows.repeated(n_rows))
    model.prior.start_from(params["prior"], model.inputs(params, rows.x), model.seed)


def _start_likelihood(model: Model, params: Params, x: Tensor) -> None:
    """Let the likelihood begin where the rows x say; of columns that have no cell in them, everything stays as it was."""
    own = params["likelihood"]
    before = {name: value.clone() for name, value in own.items()}
    outputs = model.likelihood.start(own, x)
    for name, value in own.items():
        value.copy_(torch.where(value.isnan(), before[name], value))
    if outputs is not None:
        model.decoder.set_bias(params["decoder"], torch.where(outputs.isnan(), 0.0, outputs))


def _is_linear_start(init: str, model: Model) -> bool:
    """Decide whether training starts from the linear solution; refuse where it was asked for and there is none."""
    possible = can_start_linearly(model)
    if init == "linear" and not possible:
        raise ValueError(
            "init='linear' needs the linear solution of the model, which exists for MLP networks with skip=True (or without "
            "hidden layers), a Gaussian likelihood with link='identity', a normal posterior and prior, and at most 1,000 "
            "columns. Use init='auto'."
        )
    return possible and init != "random"


def _n_draws(model: Model, fewest: int, limit: float = math.inf) -> int:
    """Return an even number of draws per row for a measurement: enough for exact moments, unless there is no room for them."""
    room = _MEASURED_CELLS / max(model.n_columns, 1)
    return max(2, int(min(max(fewest, 2 * model.n_noise), limit, room)) // 2 * 2)


def _n_watched_draws(model: Model, split: Split) -> int:
    """Return the number of draws per row by which training is judged."""
    return _n_draws(model, _FEWEST_WATCHED_DRAWS, _WATCHED_DRAWS // len(split.watched))


class Run:
    """One training of one state: runs to its end, and can tell at any epoch what it would end with."""

    def __init__(self, fitted: Fitted, split: Split, recipe: Recipe, so_far: Progress, one_epoch: bool):
        self.fitted, self.split, self.one_epoch = fitted, split, one_epoch
        model, device = fitted.model, split.train.device
        progress = start_progress(fitted, split, recipe, so_far, one_epoch)
        params, best, slots = start_state(fitted, split, recipe, one_epoch)
        draws = _n_watched_draws(model, split)
        self.trainee = Trainee(
            Problem(
                model,
                recipe.objective,
                recipe.optimizer,
                recipe.alpha,
                split.total_weight,
                n_rows=len(split.train),
                batch_size=batch_size_for(recipe, len(split.train)),
            ),  # fmt: skip
            recipe.solver,
            make_plan(recipe, fitted, split, progress, one_epoch),
            progress,
            split.train,
            model.presented(split.watched, "watched"),
            model.noise(draws, generator(model.seed, "watched"), fitted.dtype).to(device),
            params,
            best,
            slots,
            is_judged=not one_epoch,
            watched_weight=split.watched_weight,
        )
        self.plan = self.trainee.plan

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        return self.trainee.progress

    @property
    def has_begun(self) -> bool:
        """Whether there is something to go back to."""
        return hasattr(self.trainee, "restart")

    def go(self, callbacks: Iterable[Callback] = ()) -> None:
        """Train to the end."""
        self.trainee.callbacks = callbacks
        train_in_company(self.trainee)

    def rewind(self) -> None:
        """Take back what has happened since the last measurement, of which an interruption leaves a part."""
        trainee = self.trainee
        trainee.restart.restore(trainee)
        _, _, trainee.best, trainee.progress = trainee.restart.kept

    def fitted_state(self, keep_training: bool) -> Fitted:
        """Return the state that an estimator keeps if training ends here."""
        trainee = self.trainee
        reached = self.progress.best_value > -math.inf and not self.one_epoch
        training = None
        if keep_training:  # as of the last measurement: whoever goes on from there repeats the steps since, and nothing differs
            params, slots, best, progress = trainee.restart.kept
            training = Training(
                slots={k: self._array(v) for k, v in slots.items()},
                params=self._array(params),
                best=self._array(best),
                progress=asdict(progress),
                data_hash=0 if self.one_epoch else self.split.data_hash,
            )
        chosen = self._array(trainee.best if reached else trainee.result())
        return replace(self.fitted, params=chosen, training=training, is_new=False)

    def _array(self, vector: Tensor) -> np.ndarray:
        """Return a vector of the training in the layout of the model."""
        return self.trainee.own(vector).cpu().numpy().copy()


def report(fitted: Fitted, progress: Progress, split: Split) -> dict[str, object]:
    """Return the fitted attributes that describe a training, measured on (at most 10,000 of) its rows."""
    model, train = fitted.model, split.train
    rows = model.presented(train.head(watched_rows(train.n_columns)), "report")
    flat = torch.tensor(fitted.params, device=rows.x.device)
    params = model.unpack(flat)
    draws = model.draws(params, _WEIGHT_DRAWS, "report")
    n_draws = _n_draws(model, _REPORTED_DRAWS)
    if 2 * model.n_products * len(rows) * len(draws) * n_draws > _REPORTED_FLOPS:
        n_draws = min(n_draws, _REPORTED_DRAWS)
    noise = model.noise(n_draws, generator(model.seed, "report"), fitted.dtype).to(rows.device)
    values = torch.stack([value_of_rows(model, drawn, rows, bound_and_mean, noise) for drawn in draws]).mean(0)
    kl = kl_of_components(model, params, rows, generator(model.seed, "report", device=rows.device))
    mean = values[:, 1:]
    bound = weighted_mean(values[:, 0], rows.weight) - kl_of_weights(model, flat, split.total_weight)
    if not math.isfinite(bound):
        raise divergence(progress)
    share = torch.ones(len(rows), device=rows.x.device, dtype=torch.float64) if rows.weight is None else rows.weight
    share = (share / share.sum()).double()[:, None]
    variance = (share * (mean - (share * mean).sum(0)).square()).sum(0)
    noise_variance = model.likelihood.noise_variance(params["likelihood"], model.n_columns)
    attributes: dict[str, object] = {
        "lower_bound_": bound + fitted.codec.log_jacobian,
        "kl_per_component_": (share * kl).sum(0).cpu().numpy(),
        "active_units_": int((variance > _ACTIVE_VARIANCE).sum()),
        "n_iter_": progress.epoch,
        "n_steps_": progress.n_steps,
        "converged_": progress.converged,
        "history_": _history_in_units_of_data(progress, fitted.codec),
    }
    if noise_variance is not None:
        attributes["noise_variance_"] = fitted.codec.variance(noise_variance.cpu().numpy()[0])
    return attributes
