"""Inference: encoder, decoder and bounds over all rows of a table, in tiles that keep every row independent of the others."""

import math
import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._devices import one_thread, spread
from skvae._model import Model, Params
from skvae._numbers import VECTOR
from skvae._random import normal
from skvae.objectives import kl_of_rows, kl_per_component

_TILE_ROWS = 128  # rows per call of a network at inference, with which products run at full speed
_SMALL_TILE_ROWS = 256  # rows per call of a small network, whose calls cost more than their work
_SMALL_TILE_FLOPS = 2e7  # work of such a call, at most
_TILE_DRAWS = 8192  # row-samples per tile where latents are drawn, if that makes whole vectors
_ROWS_OF_KL = 512  # at a time
_DRAWS_OF_KL = 2**14  # of all rows together, at least
_CHAINS = 1024  # row-chains per tile where latents move along gradients, if that makes whole vectors
_DECODED_DRAWS = 1024  # row-samples that are decoded at a time, unless they are much work,
_MUCH_FLOPS = 4e8
_LITTLE_FLOPS = 2.5e7  # or little, which is not worth a call
_MAX_DECODING_FLOPS = 3e9  # work per decoding, beyond which rows go one by one: alone, a row has no place to depend on
_MAX_TILE_CELLS = 8_000_000  # cells per call, beyond which rows go one by one as well
_ROWS_OF_CALL = 1024  # by which it is judged whether a model is worth a graphics card
_DEVICE_TILE = 16  # times as much of everything at a time on a graphics card, whose calls cost more than their work


class Rows(Protocol):
    """What a table, encoded or not, is for inference."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where the rows are wanted."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rows."""

    def slice(self, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop`, or to the end."""

    def take(self, rows: Tensor) -> "Rows":
        """Return the chosen rows."""


def flops_of_call(model: Model) -> float:
    """Return about how many floating point operations it takes to encode and decode a thousand rows."""
    return 2.0 * model.n_products * _ROWS_OF_CALL


def map_rows(function: Callable[[Batch], Tensor], data: Rows, tile: int, flops: float = 0.0) -> Tensor:
    """Apply `function`, which gives one result per row, to tiles of `tile` rows, the last one padded.

    Every call has the same shape and runs on one thread, so a row's result does not depend, to the last bit, on the rows around
    it. Where a call is large work, of `flops`, several threads take tiles in turn.
    """
    return _map_tiles(lambda batch, n, start: function(batch), data, tile, flops)


def map_draws(
    function: Callable[[Params, Batch, int], Tensor], model: Model, params: Params, data: Rows, n_draws: int
) -> Tensor:
    """Do what `map_rows` does for a function that decodes `n_draws` latents per row, and is told where its tile starts."""
    params = _aligned(model, params, "encoder", "decoder")
    tile = _tile_of_draws(n_draws, model.likelihood.n_outputs(model.n_columns), _size_of_calls(data.device))
    return _map_tiles(
        lambda batch, n, start: function(params, batch, start), data, tile, 2.0 * model.n_products * n_draws * tile
    )


def _size_of_calls(device: torch.device) -> int:
    """Return how many times as much is computed at a time as on a processor."""
    return 1 if device.type == "cpu" else _DEVICE_TILE


def _tile_of_draws(n_draws: int, n_columns: int, size: int) -> int:
    """Return the rows per tile where latents are drawn."""
    tile = VECTOR * max(1, size * _TILE_DRAWS // (n_draws * VECTOR))
    return 1 if tile * n_draws * n_columns > size * _MAX_TILE_CELLS else tile


def _map_tiles(function: Callable[[Batch, int, int], Tensor], data: Rows, tile: int, flops: float) -> Tensor:
    """Do what `map_rows` does for a function that is told how many rows of its tile count, and where it starts."""
    n = len(data)
    results: list[Tensor] = []
    first = threading.Lock()

    def fill(start: int) -> None:
        part = data.slice(start, start + tile)
        missing = tile - len(part)
        values = function(part.pad(missing) if missing else part, len(part), start)[: len(part)]
        with first:
            if not results:
                results.append(values.new_empty((n, *values.shape[1:])))
        results[0][start : start + tile] = values

    spread(fill, range(0, n, tile), flops if data.device.type == "cpu" else 0.0)
    return results[0]


RowValues = Callable[[Model, Params, Batch, Tensor], Tensor]


def value_of_rows(model: Model, params: Params, data: Rows, function: RowValues, noise: Tensor) -> Tensor:
    """Return what `function` gives for every row, as an objective does, with noise (s, 1, k) common to all.  # (n, ...)"""
    n_draws, size = len(noise), _size_of_calls(data.device)
    flops = 2.0 * model.n_products * n_draws
    tile = _tile_of_draws(n_draws, model.n_columns, size)
    fewest = VECTOR // (1 if model.likelihood.runs_along_rows else math.gcd(VECTOR, n_draws))  # makes whole vectors
    rows = _rows_per_decoding(fewest, tile, n_draws, flops, size)
    tile -= tile % rows  # all calls are of one shape
    params = _aligned(model, params, "encoder", "decoder")  # once, not per tile

    def values(batch: Batch, n: int, start: int) -> Tensor:
        return function(_InParts(model, rows, n), params, batch, noise)

    return _map_tiles(values, data, tile, rows * flops)


def map_rows_with_slopes(function: Callable[[Batch], Tensor], data: Rows, model: Model, n_chains: int, n_slopes: int) -> Tensor:
    """Apply `function`, which takes `n_slopes` gradients at `n_chains` latents per row, to tiles of rows in double precision.

    Chains accept or refuse: in double precision, rounding, which depends on a row's neighbours, practically never decides.
    """
    size = _size_of_calls(data.device)
    tile = VECTOR * max(1, size * _CHAINS // (n_chains * VECTOR))
    if tile * n_chains * max(model.n_columns, model.likelihood.n_outputs(model.n_columns)) > size * _MAX_TILE_CELLS:
        tile = 1

    def values(batch: Batch, n: int, start: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode have no gradients, copies have
            return function(batch.head(n).clone().to(batch.device, torch.float64))

    return _map_tiles(values, data, tile, 6.0 * model.n_products * tile * n_chains * n_slopes)


def _rows_per_decoding(fewest: int, tile: int, n_draws: int, flops_per_row: float, size: int) -> int:
    """Return how many rows are decoded at a time: enough to be worth a call, few enough to leave the results in the cache."""
    rows = min(fewest, tile)
    draws, much, little = size * _DECODED_DRAWS, size * _MUCH_FLOPS, size * _LITTLE_FLOPS
    while 2 * rows <= tile and (rows * flops_per_row < little or (rows * n_draws < draws and rows * flops_per_row < much)):
        rows *= 2
    return 1 if rows * flops_per_row > size * _MAX_DECODING_FLOPS else rows


class _InParts(Model):
    """A model in front of a tile, of which it decodes the first `n` rows, the others being padding, `rows` at a time."""

    def __init__(self, model: Model, rows: int, n: int):
        vars(self).update(vars(model))
        self._rows, self._n = rows, n

    def log_px(self, params: Params, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) of every row, zero for padding.  # (s, n)"""
        if self._rows == len(batch):
            return super().log_px(params, batch, z)
        out = z.new_zeros(z.shape[:-1])
        for start in range(0, self._n, self._rows):
            stop = start + self._rows
            out[:, start:stop] = super().log_px(params, batch.slice(start, stop), z[:, start:stop])
        return out


def bound_and_mean(model: Model, params: Params, batch: Batch, noise: Tensor) -> Tensor:
    """Return the bound of every row, and the mean of q(z|x).  # (n, 1 + k)"""
    q = model.encode(params, batch)
    z = model.posterior.sample(q, noise)
    bound = model.log_px(params, batch, z).mean(0) - kl_of_rows(model, params, batch, q, z, "auto")
    return torch.cat([bound[:, None], model.posterior.mean(q)], -1)


def kl_of_components(model: Model, params: Params, data: Rows, stream: torch.Generator) -> Tensor:
    """Return KL(q(z|x) || p(z)) of every row per component, where it has no closed form by a few draws.  # (n, k)

    Every row has draws of its own, in pairs, whose errors a mean over rows takes away.
    """
    half = max(2, math.ceil(_DRAWS_OF_KL / (2 * len(data))))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data), _ROWS_OF_KL):
            batch = data.slice(start, start + _ROWS_OF_KL)
            q = model.encode(params, batch)
            kl = model.posterior.kl(q, model.prior)
            if kl is None:
                eps = normal((half, len(batch), model.n_noise), stream, q.dtype)
                z = model.posterior.sample(q, torch.cat([eps, -eps]))
                kl = kl_per_component(model, params, batch, q, z, "monte_carlo")
            parts.append(kl)
    return torch.cat(parts)


def encode_rows(model: Model, params: Params, data: Rows) -> Tensor:
    """Return the encoder's output for every row.  # (n, n_outputs)"""
    params = _aligned(model, params, "encoder")
    tile = _tile_rows(model, data.device)
    return map_rows(lambda batch: model.encode(params, batch), data, tile, tile * model.n_products)


def decode_rows(model: Model, params: Params, z: Tensor, x: Tensor | None = None) -> Tensor:
    """Return the mean of p(x|z) for every row of z, under the conditions in the rows x.  # (n, d)"""
    params = _aligned(model, params, "decoder")
    k = model.n_components

    def mean(batch: Batch) -> Tensor:
        z, x = batch.x[:, :k], batch.x[:, k:]
        return model.likelihood.mean(params["likelihood"], model.decode(params, z, x))

    tile = _tile_rows(model, z.device)
    return map_rows(mean, Batch(z if x is None else torch.cat([z, x], -1)), tile, tile * model.n_products)


def _tile_rows(model: Model, device: torch.device) -> int:
    """Return the rows per call of a network: more of a small one, whose calls cost more than its work."""
    is_small = model.n_products * _SMALL_TILE_ROWS < _SMALL_TILE_FLOPS
    return _size_of_calls(device) * (_SMALL_TILE_ROWS if is_small else _TILE_ROWS)


def _aligned(model: Model, params: Params, *pieces: str) -> Params:
    """Return the parameters, those of the networks that are named in the form that suits inference."""
    with one_thread(), torch.inference_mode():
        return {**params, **{piece: getattr(model, piece).aligned(params[piece]) for piece in pieces}}


def weighted_mean(values: Tensor, weight: Tensor | None) -> float:
    """Return the mean over rows, in float64."""
    values = values.double()
    return float(values.mean() if weight is None else (values * weight).sum() / weight.double().sum())
