"""Private randomness: every random number is a function of a seed and of the place that asks for it, never of global state."""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *place: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the stream of random numbers that belongs to `place` (names and counters) under `seed`."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def derived_seed(seed: int, *place: int | str) -> int:
    """Return an integer seed below 2**31 for a foreign generator, a function of `seed` and `place` alone."""
    return int(torch.randint(2**31 - 1, (), generator=generator(seed, *place), device="cpu"))


def normal(shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw standard normal noise of `shape` from `stream`, on its device."""
    return torch.randn(shape, generator=stream, device=stream.device, dtype=dtype)


def uniform(shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw numbers from [0, 1) of `shape` from `stream`, on its device."""
    return torch.rand(shape, generator=stream, device=stream.device, dtype=dtype)


def matched_normal(n_samples: int, n_components: int, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw normal noise, shared by all rows, whose sample moments are those of N(0, I).  # (s, 1, k)

    The draws come in antithetic pairs, so odd moments vanish; with at least `2 * n_components` samples they are whitened,
    so that averages of quadratic functions, the bound of a linear decoder for one, carry no Monte Carlo error at all.
    """
    half = n_samples // 2
    if half == 0:
        return normal((n_samples, 1, n_components), stream, dtype)
    eps = normal((half, n_components), stream, torch.float64)
    if half >= n_components:
        factor = torch.linalg.cholesky(eps.mT @ eps / half)
        eps = torch.linalg.solve_triangular(factor, eps.mT, upper=False).mT
    else:
        eps = eps / eps.square().mean(0).sqrt()
    rest = normal((n_samples - 2 * half, n_components), stream, torch.float64)
    return torch.cat([eps, -eps, rest]).to(dtype)[:, None, :]
