"""The MLP: fully connected layers beside a linear path."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._numbers import CACHE_LINE
from skvae._random import generator
from skvae._settings import Interval, StrOptions
from skvae.networks._base import ACTIVATIONS, Network, affine, matmul, padded, sum_of_products


class MLP(Network):
    """Fully connected layers with one activation between them, beside a linear path.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(128,)
        Units of each hidden layer, from the input on; `()` makes the map linear.

    activation : {"silu", "relu", "gelu", "tanh", "identity"}, default="silu"
        Applied after every hidden layer.

    skip : bool, default=True
        Whether a linear map of the input is added to the output. The hidden layers then only have to learn what a linear model
        misses, and training can start from the exact linear solution. False gives the networks of the paper.

    init_std : "auto" or float, default="auto"
        Standard deviation of the normal numbers with which training starts. A float holds for all weights and biases, 0.01 in
        the paper. "auto" gives weights the variance 2 / n_in, a tenth of that scale where they reach the output, and biases of
        zero, so that training starts faster.

    Examples
    --------
    >>> from skvae.networks import MLP
    >>> MLP((500,), activation="tanh", skip=False).shapes(784, 40, seed=0)
    {'weight0': (784, 500), 'bias0': (1, 500), 'weight1': (500, 40), 'bias1': (1, 40)}
    """

    _parameter_constraints = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "skip": ["boolean"],
        "init_std": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, hidden_layer_sizes=(128,), *, activation="silu", skip=True, init_std="auto"):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.skip = skip
        self.init_std = init_std

    def widths(self) -> tuple[int, ...]:
        """Return the number of units of each hidden layer."""
        sizes = self.hidden_layer_sizes
        return (int(sizes),) if isinstance(sizes, Integral) else tuple(sizes)

    def validate(self):
        super().validate()
        if not all(isinstance(size, Integral) and size >= 1 for size in self.widths()):
            raise ValueError(f"hidden_layer_sizes must be positive whole numbers, got {self.hidden_layer_sizes!r}.")
        return self

    def _compared(self):
        params = super()._compared()
        sizes = params["hidden_layer_sizes"]
        return {**params, "hidden_layer_sizes": (sizes,) if isinstance(sizes, Integral) else sizes}

    def shapes(self, n_in, n_out, seed):
        widths = [n_in, *map(int, self.widths()), n_out]
        shapes = {}
        for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            shapes[f"weight{i}"] = (fan_in, fan_out)
            shapes[f"bias{i}"] = (1, fan_out)
        if self.skip and len(widths) > 2:
            shapes["skip"] = (n_in, n_out)
        return shapes

    def init(self, n_in, n_out, seed):
        """Return normal weights and biases of the scale that `init_std` says."""
        stream = generator(seed, "weights")
        params = {}
        for name, shape in self.shapes(n_in, n_out, seed).items():
            params[name] = torch.zeros(shape, device="cpu", dtype=torch.float64)
            scale = self._init_scale(name, shape)
            if scale:
                params[name].normal_(generator=stream).mul_(scale)
        return params

    def _init_scale(self, name, shape):
        if self.init_std != "auto":
            return self.init_std
        reaches_output = name in (f"weight{self.n_hidden()}", "skip")
        return (not name.startswith("bias")) * math.sqrt(2 / max(shape[0], 1)) * (0.1 if reaches_output else 1.0)

    def n_hidden(self) -> int:
        """Return the number of hidden layers."""
        return len(self.widths())

    def has_linear_path(self) -> bool:
        """Tell whether the network can be any linear map."""
        return self.skip or self.n_hidden() == 0

    def set_linear(self, params: dict[str, Tensor], weight: Tensor, bias: Tensor) -> None:
        """Write the map x @ weight + bias into freshly initialised parameters, beside what the hidden layers add."""
        params.get("skip", params["weight0"]).copy_(weight)
        params[f"bias{self.n_hidden()}"].copy_(bias)

    def set_bias(self, params, bias):
        params[f"bias{self.n_hidden()}"].copy_(bias)

    def is_weight_matrix(self, name, shape):
        return not name.startswith("bias")

    def aligned(self, params):
        """Return parameters with hidden units of zeros added, so that the results of every layer fill whole cache lines."""
        last = self.n_hidden()
        aligned = dict(params)
        for i in range(last + 1):
            aligned[f"weight{i}"] = padded(params[f"weight{i}"], CACHE_LINE if i else 1, CACHE_LINE)
        for i in range(last):
            aligned[f"bias{i}"] = padded(params[f"bias{i}"], 1, CACHE_LINE)
        if "skip" in params:
            aligned["skip"] = padded(params["skip"], 1, CACHE_LINE)
        return aligned

    def forward(self, params, x):
        if not torch.is_grad_enabled() and params["weight0"].ndim == 2:
            rows = x.flatten(0, -2)  # products of two matrices are fastest
            return self._forward_rows(params, rows).unflatten(0, x.shape[:-1])
        activation = ACTIVATIONS[self.activation]
        last = self.n_hidden()
        out = x
        for i in range(last):
            out = activation(affine(out, params[f"weight{i}"], params[f"bias{i}"]))
        out = affine(out, params[f"weight{last}"], params[f"bias{last}"])
        return out + matmul(x, params["skip"]) if "skip" in params else out

    def _forward_rows(self, params, x):
        """Do what `forward` does, without gradients, for a matrix and parameters that `aligned` may have given."""
        activation = ACTIVATIONS[self.activation]
        last = self.n_hidden()
        out = x
        for i in range(last):
            out = activation(sum_of_products([(out, params[f"weight{i}"])], params[f"bias{i}"]))
        terms = [(out, params[f"weight{last}"])]
        if "skip" in params:
            terms.append((x, params["skip"]))
        return sum_of_products(terms, params[f"bias{last}"])
