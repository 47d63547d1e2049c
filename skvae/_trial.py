"""Pieces of users' own, tried on two rows before training: what they return must have the shapes that others rely on."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._model import Model, Params
from skvae._random import generator, normal
from skvae._settings import Settings
from skvae.likelihoods import Likelihood
from skvae.likelihoods._mixed import PerColumn
from skvae.objectives import Objective
from skvae.optimizers import Optimizer

_ROWS = 2


def try_own_pieces(model: Model, flat: Tensor, rows: Batch, objective: Objective, optimizer: Optimizer) -> None:
    """Raise an error that names class, method and shapes where a piece of the user's own does not do what others expect.

    `flat` is the vector of the parameters.
    """
    if not any(_is_own(piece) for piece in (model.posterior, model.prior, *_likelihoods(model), objective, optimizer)):
        return
    with torch.no_grad():
        params, batch = model.unpack(flat), model.presented(rows.head(_ROWS), "trial")
        s, n, k = max(2, objective.n_samples), len(batch), model.n_components
        noise = normal((s, n, model.n_noise), generator(model.seed, "trial"), batch.dtype).to(batch.device)
        q, of_prior = model.encode(params, batch), model.of_prior(params, batch.x)
        z = _tried(model.posterior, "sample", (s, n, k), lambda: model.posterior.sample(q, noise))
        _tried(model.posterior, "log_prob", (s, n, k), lambda: model.posterior.log_prob(q, z))
        _tried(model.posterior, "mean", (n, k), lambda: model.posterior.mean(q))
        _tried(model.prior, "log_prob", (s, n, k), lambda: model.prior.log_prob(of_prior, z))
        for likelihood, *of_part in _densities(model, params, model.decode(params, z, batch.x), batch.x):
            shape = (s, n, of_part[-1].shape[-1])
            _tried(likelihood, "log_prob", shape, partial(likelihood.log_prob, *of_part))
        if objective.is_rowwise:
            _tried(objective, "__call__", (n,), lambda: objective(model, params, batch, noise))
        _tried(objective, "bound", (n,), lambda: objective.bound(model, params, batch, noise))
        if _is_own(optimizer) and not isinstance(_called(optimizer, "init", lambda: optimizer.init(flat.clone())), dict):
            raise TypeError(
                f"{_name(optimizer)}.init must return the memory of the optimizer: a dict of tensors, which may be empty."
            )


def _likelihoods(model: Model) -> list[Likelihood]:
    """Return the likelihoods of a model, side by side or alone."""
    return model.likelihood.likelihoods if isinstance(model.likelihood, PerColumn) else [model.likelihood]


def _densities(model: Model, params: Params, eta: Tensor, x: Tensor) -> Iterator[tuple]:
    """Yield each likelihood with what its `log_prob` gets."""
    if isinstance(model.likelihood, PerColumn):
        yield from model.likelihood.cells_of_parts(params["likelihood"], eta, x)
    else:
        yield model.likelihood, params["likelihood"], eta, x


def _is_own(piece: Settings) -> bool:
    return not type(piece).__module__.startswith("skvae.")


def _name(piece: Settings) -> str:
    return type(piece).__name__


def _called(piece: Settings, method: str, call: Callable):
    """Return what a method returns; tell which one it was that failed."""
    try:
        return call()
    except NotImplementedError:
        raise TypeError(f"{_name(piece)} has no method {method!r}, which training or scores need.") from None
    except Exception as error:
        if _is_own(piece):
            error.add_note(f"This happened when {_name(piece)}.{method} was tried before training, on at most {_ROWS} rows.")
        raise


def _tried(piece: Settings, method: str, shape: tuple[int, ...], call: Callable[[], Tensor]) -> Tensor:
    """Return what a method returns, whose shape must be this one if the piece is not ours."""
    found = _called(piece, method, call)
    if _is_own(piece) and (not isinstance(found, Tensor) or tuple(found.shape) != shape):
        got = f"one of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise TypeError(f"{_name(piece)}.{method} must return a tensor of shape {shape} here, but returned {got}.")
    return found
