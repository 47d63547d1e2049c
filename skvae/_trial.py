"""Pieces of users' own, tried on two rows before training: what they return must have the shapes that others rely on."""

from collections.abc import Callable

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._model import Model, Params
from skvae._random import generator, normal
from skvae._settings import Settings
from skvae.objectives import Objective
from skvae.optimizers import Optimizer

_ROWS, _DRAWS = 2, 3


def try_own_pieces(model: Model, params: Params, rows: Batch, objective: Objective, optimizer: Optimizer) -> None:
    """Raise an error that names class, method and shapes where a piece of the user's own does not do what others expect."""
    if not any(_is_own(piece) for piece in (model.posterior, model.prior, model.likelihood, objective, optimizer)):
        return
    with torch.no_grad():
        batch = model.presented(rows.head(_ROWS), "trial")
        n, d, k = len(batch), model.n_columns, model.n_components
        stream = generator(model.seed, "trial")
        noise = normal((_DRAWS, n, model.n_noise), stream, batch.dtype).to(batch.device)
        q, of_prior, of_likelihood = model.encode(params, batch), model.of_prior(params, batch.x), params["likelihood"]
        z = _tried(model.posterior, "sample", (_DRAWS, n, k), lambda: model.posterior.sample(q, noise))
        _tried(model.posterior, "log_prob", (_DRAWS, n, k), lambda: model.posterior.log_prob(q, z))
        _tried(model.posterior, "mean", (n, k), lambda: model.posterior.mean(q))
        _tried(model.prior, "log_prob", (_DRAWS, n, k), lambda: model.prior.log_prob(of_prior, z))
        eta = model.decode(params, z, batch.x)
        _tried(model.likelihood, "log_prob", (_DRAWS, n, d), lambda: model.likelihood.log_prob(of_likelihood, eta, batch.x))
        if objective.is_rowwise:
            _tried(objective, "__call__", (n,), lambda: objective(model, params, batch, noise))
        _tried(objective, "bound", (n,), lambda: objective.bound(model, params, batch, noise))
        vector = torch.zeros(1, device=batch.device, dtype=batch.dtype)
        if _is_own(optimizer) and not isinstance(_called(optimizer, "init", lambda: optimizer.init(vector)), dict):
            raise TypeError(
                f"{_name(optimizer)}.init must return the memory of the optimizer: a dict of tensors, which may be empty."
            )


def _is_own(piece: Settings) -> bool:
    return not type(piece).__module__.startswith("skvae.")


def _name(piece: Settings) -> str:
    return type(piece).__name__


def _called(piece: Settings, method: str, call: Callable):
    """Return what a method returns; tell which one it was that failed."""
    try:
        return call()
    except NotImplementedError:
        raise TypeError(f"{_name(piece)} has no method {method!r}, which training needs.") from None
    except Exception as error:
        if _is_own(piece):
            error.add_note(f"This happened when {_name(piece)}.{method} was tried on {_ROWS} rows before training.")
        raise


def _tried(piece: Settings, method: str, shape: tuple[int, ...], call: Callable[[], Tensor]) -> Tensor:
    """Return what a method returns, whose shape must be this one if the piece is not ours."""
    found = _called(piece, method, call)
    if _is_own(piece) and (not isinstance(found, Tensor) or tuple(found.shape) != shape):
        got = f"one of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise TypeError(f"{_name(piece)}.{method} must return a tensor of shape {shape} for {_ROWS} rows, but returned {got}.")
    return found
