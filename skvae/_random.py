"""Private randomness: every random number is a function of a seed and of the place that asks for it, never of global state."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_MOVES = 16  # of Hamiltonian Monte Carlo, whose random numbers are drawn together


def generator(seed: int, *place: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the stream of random numbers that belongs to `place` (names and counters) under `seed`."""
    return restart(torch.Generator(device), seed, *place)


def restart(stream: torch.Generator, seed: int, *place: int | str) -> torch.Generator:
    """Let a stream give the random numbers that belong to `place` under `seed`."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return stream.manual_seed(int.from_bytes(digest, "little") >> 1)


class RowStreams:
    """One stream of random numbers for every row, a function of the seed, the place and what stands in the row alone.

    So a row has the same numbers whatever rows are around it, and different rows have independent ones. They are drawn on the
    processor, which many small streams suit better than any other device.
    """

    def __init__(self, rows: Tensor, seed: int, *place: int | str):
        self._dtype, self._device = rows.dtype, rows.device
        contents = (rows + 0.0).tolist()  # which makes zeros of minus zeros
        self._streams = [generator(seed, *place, repr(row)) for row in contents]

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers.  # (..., k) -> (..., n, k)"""
        return self.stack(lambda stream: normal(shape, stream, self._dtype))

    def stack(self, draw: Callable[..., Tensor], *of_rows: Sequence[Tensor]) -> Tensor:
        """Return what `draw` gives for the stream of every row, and what else there is of it, side by side.  # (..., n, k)"""
        return torch.stack([draw(*of_row) for of_row in zip(self._streams, *of_rows, strict=True)], -2).to(self._device)

    def moves(self, n_chains: int, n_components: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield what chains need for one move after the other: normal (c, n, k), and uniform (c, n) and (n,) numbers."""
        while True:  # several moves per call, which costs more than a few numbers
            momentum = self.normal(_MOVES, n_chains, n_components)
            uniform = self.stack(lambda stream: torch.rand(
                (_MOVES, n_chains + 1, 1), generator=stream, device=stream.device, dtype=self._dtype
            ))[..., 0]  # fmt: skip
            yield from zip(momentum, uniform[:, 1:], uniform[:, 0], strict=True)


def derived_seed(seed: int, *place: int | str) -> int:
    """Return an integer seed below 2**31 for a foreign generator, a function of `seed` and `place` alone."""
    return int(torch.randint(2**31 - 1, (), generator=generator(seed, *place), device="cpu"))


def normal(shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw standard normal noise of `shape` from `stream`, on its device."""
    return torch.randn(shape, generator=stream, device=stream.device, dtype=dtype)


def uniform(shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw numbers from [0, 1) of `shape` from `stream`, on its device."""
    return torch.rand(shape, generator=stream, device=stream.device, dtype=dtype)


def choices(weights: Tensor, drawn: Tensor) -> Tensor:
    """Return which of s things of weights (n, s) uniform numbers (n, m) choose, in every row by its own weights.  # (n, m)"""
    reached = weights.cumsum(-1).contiguous()
    return torch.searchsorted(reached, drawn * reached[:, -1:], right=True).clamp(max=reached.shape[-1] - 1)


def paired_normal(
    n_samples: int, n_components: int, stream: torch.Generator, dtype: torch.dtype, is_matched: bool = True
) -> Tensor:
    """Draw normal noise, shared by all rows, in antithetic pairs; a rest has no partner.  # (s, 1, k)

    Odd moments vanish. Where the others are matched to those of N(0, I), at least `2 * n_components` samples are whitened, so
    that averages of quadratic functions, the bound of a linear decoder for one, carry no Monte Carlo error at all.
    """
    half = n_samples // 2
    if half == 0:
        return normal((n_samples, 1, n_components), stream, dtype)
    eps = normal((half, n_components), stream, torch.float64)
    eps = _matched(eps) if is_matched else eps
    rest = normal((n_samples - 2 * half, n_components), stream, torch.float64)
    return torch.cat([eps, -eps, rest]).to(dtype)[:, None, :]


def _matched(eps: Tensor) -> Tensor:
    """Return draws that are whitened, or scaled to a mean square of one where they are too few for that.  # (s, k)"""
    half, n_components = eps.shape
    if half < n_components:
        return eps / eps.square().mean(0).sqrt()
    factor = torch.linalg.cholesky(eps.mT @ eps / half)
    return torch.linalg.solve_triangular(factor, eps.mT, upper=False).mT
