"""Numbers that several rooms share: a constant of densities, and sizes by which a result depends on nothing beside it."""

import math

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

#: numbers that torch's elementwise functions take at a time; they round those of a rest, which fill no vector, in another way
VECTOR = 32

#: numbers of single precision in a cache line; BLAS rounds a product by the address at which its results begin
CACHE_LINE = 16


def rounded_up(n: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is no smaller than n."""
    return n + -n % unit
