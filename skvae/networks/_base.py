"""Base of the networks, maps from a parameter dictionary and a tensor to a tensor, and the products that they are made of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from skvae._numbers import CACHE_LINE
from skvae._settings import Settings

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


class Network(Settings):
    """Base of the networks."""

    #: True for a network to which the place of a column matters, so that none may be left out
    reads_places: bool = False

    #: True for a network whose parameters are the means and spreads of a distribution of weights
    is_uncertain: bool = False

    def shapes(self, n_in: int, n_out: int, seed: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters of a network with `n_in` inputs and `n_out` outputs."""
        raise NotImplementedError

    def init(self, n_in: int, n_out: int, seed: int) -> dict[str, Tensor]:
        """Return the parameters at the start of training, a function of `seed`."""
        raise NotImplementedError

    def forward(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Map (..., n, n_in) to (..., n, n_out)."""
        raise NotImplementedError

    def n_products(self, n_in: int, n_out: int, seed: int) -> int:
        """Return about how many products one row takes: one per parameter, unless parameters are used more than once."""
        return sum(math.prod(shape) for shape in self.shapes(n_in, n_out, seed).values())

    def set_bias(self, params: dict[str, Tensor], bias: Tensor) -> None:
        """Let freshly initialised parameters give the outputs `bias`, whatever the input, beside what the weights add.

        Optional: a network without such a parameter starts where its weights say, and learns to.  # (n_out,)
        """

    def is_weight_matrix(self, name: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a parameter multiplies activations, and so falls under the prior that `alpha` sets."""
        return len(shape) >= 2

    def aligned(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters in the form in which `forward` is fastest without gradients; most have but one form."""
        return params

    def bind(self, n_in: int, n_out: int, seed: int) -> "Network":
        """Return the network ready for use with these sizes; most need nothing and return themselves."""
        return self


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight; at inference the result of a row does not depend, to the last bit, on the place of the row.

    BLAS rounds rows in different ways according to the address at which their results begin, so they begin on cache lines.
    """
    n_out = weight.shape[-1]
    n_missing = 0 if torch.is_grad_enabled() else -n_out % CACHE_LINE
    return (x @ F.pad(weight, (0, n_missing)))[..., :n_out] if n_missing else x @ weight


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias, in one call where training allows."""
    if torch.is_grad_enabled() and x.ndim == weight.ndim == 2:
        return torch.addmm(bias, x, weight)
    return matmul(x, weight) + bias


def sum_of_products(terms: list[tuple[Tensor, Tensor]], bias: Tensor) -> Tensor:
    """Return the sum of x @ weight over pairs of matrices, plus bias, without gradients; rows keep their bits as in `matmul`.

    The weights may have columns of padding beyond those of the bias.
    """
    n_out = bias.shape[-1]
    (x, weight), *others = [(x, padded(weight, 1, CACHE_LINE)) for x, weight in terms]
    is_whole = weight.shape[-1] == n_out
    total = torch.addmm(bias, x, weight) if is_whole else x @ weight
    for x, weight in others:
        total.addmm_(x, weight)
    return total if is_whole else total[:, :n_out] + bias


def padded(values: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with zeros added below and to the right, up to a multiple of `rows` and of `columns`."""
    n_rows, n_columns = values.shape[-2:]
    missing = (0, -n_columns % columns, 0, -n_rows % rows)
    return F.pad(values, missing) if any(missing) else values


def enlarged(values: Tensor, *dims_and_sizes: int) -> Tensor:
    """Return values with zeros added behind them, up to a size along each of some dimensions."""
    missing = [0] * (2 * values.ndim)
    for dim, size in zip(dims_and_sizes[::2], dims_and_sizes[1::2], strict=True):
        missing[2 * (values.ndim - dim) - 1] = size - values.shape[dim]
    return F.pad(values, missing) if any(missing) else values
