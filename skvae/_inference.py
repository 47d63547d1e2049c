"""Inference: encoder, decoder and bounds over all rows of a table, in tiles that keep every row independent of the others."""

from collections.abc import Callable

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._devices import threads_for
from skvae._model import Model, Params
from skvae.objectives import ELBO, kl_per_component

_TILE_ROWS = 128  # rows per call of a network at inference
_TILE_DRAWS = 1024  # row-samples per call when latents are drawn, where that makes whole vectors
_VECTOR_ROWS = 64  # rows, of which every tile has a multiple: torch rounds the rest that fills no vector in another way
_MAX_TILE_CELLS = 8_000_000  # cells per call, beyond which rows go one by one: alone, a row has no place to depend on


def map_rows(function: Callable[[Batch], Tensor], data: Batch, tile: int) -> Tensor:
    """Apply `function`, which gives one result per row, to tiles of `tile` rows, the last one padded.

    Every call has the same shape, so a row's result does not depend, to the last bit, on the rows around it.
    """
    results = []
    with torch.inference_mode():
        for start in range(0, len(data), tile):
            part = data.slice(start, start + tile)
            n = len(part)
            results.append(function(part if n == tile else part.pad(tile - n))[:n])
        return torch.cat(results)


RowValues = Callable[[Model, Params, Batch, Tensor], Tensor]


def value_of_rows(model: Model, params: Params, data: Batch, function: RowValues, noise: Tensor) -> Tensor:
    """Return an objective or its bound for every row, with noise (s, 1, k) common to all rows.  # (n,)"""
    tile = _VECTOR_ROWS * max(1, _TILE_DRAWS // (len(noise) * _VECTOR_ROWS))
    if tile * len(noise) * model.n_columns > _MAX_TILE_CELLS:
        tile = 1
    with threads_for(2.0 * model.layout.size * tile * len(noise)):
        return map_rows(lambda batch: function(model, params, batch, noise), data, tile)


def true_elbo(model: Model) -> ELBO:
    """Return the bound by which training is judged: beta = 1, with the closed-form KL where there is one."""
    return ELBO(kl="analytic" if model.has_closed_kl else "monte_carlo")


def kl_of_rows(model: Model, params: Params, data: Batch, noise: Tensor) -> Tensor:
    """Return KL(q(z|x) || p(z)) of every row, per component, in nats.  # (n, k)"""
    how = true_elbo(model).kl

    def kl(batch: Batch) -> Tensor:
        q = model.encode(params, batch)
        return kl_per_component(model, params, q, model.posterior.sample(q, noise), how)

    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(kl, data, _TILE_ROWS)


def encode_rows(model: Model, params: Params, data: Batch) -> Tensor:
    """Return the encoder's output for every row.  # (n, n_outputs)"""
    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(lambda batch: model.encode(params, batch), data, _TILE_ROWS)


def decode_rows(model: Model, params: Params, z: Tensor) -> Tensor:
    """Return the mean of p(x|z) for every row of z.  # (n, d)"""

    def mean(batch: Batch) -> Tensor:
        return model.likelihood.mean(params["likelihood"], model.decode(params, batch.x))

    with threads_for(2.0 * model.layout.size * _TILE_ROWS):
        return map_rows(mean, Batch(z), _TILE_ROWS)


def weighted_mean(values: Tensor, weight: Tensor | None) -> float:
    """Return the mean over rows, in float64."""
    values = values.double()
    return float(values.mean() if weight is None else (values * weight).sum() / weight.double().sum())
