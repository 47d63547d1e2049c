"""Networks that encode rows and decode latents: maps from a parameter dictionary and a tensor to a tensor."""

import math
import threading
from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn import functional as F

from skvae._random import derived_seed, generator
from skvae._settings import Interval, Settings, StrOptions, register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}

_CACHE_LINE = 16  # numbers of single precision


class Network(Settings):
    """Base of the networks."""

    def shapes(self, n_in: int, n_out: int, seed: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters of a network with `n_in` inputs and `n_out` outputs."""
        raise NotImplementedError

    def init(self, n_in: int, n_out: int, seed: int) -> dict[str, Tensor]:
        """Return the parameters at the start of training, a function of `seed`."""
        raise NotImplementedError

    def forward(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Map (..., n, n_in) to (..., n, n_out)."""
        raise NotImplementedError

    def is_weight_matrix(self, name: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a parameter multiplies activations, and so falls under the prior that `alpha` sets."""
        return len(shape) >= 2

    def aligned(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters in the form in which `forward` is fastest without gradients; most have but one form."""
        return params

    def bind(self, n_in: int, n_out: int, seed: int):
        """Return the network ready for use with these sizes; most need nothing and return themselves."""
        return self


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight; at inference the result of a row does not depend, to the last bit, on the place of the row.

    BLAS rounds rows in different ways according to the address at which their results begin, so they begin on cache lines.
    """
    n_out = weight.shape[-1]
    n_missing = 0 if torch.is_grad_enabled() else -n_out % _CACHE_LINE
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
    (x, weight), *others = [(x, padded(weight, 1, _CACHE_LINE)) for x, weight in terms]
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


class MLP(Network):
    """Fully connected layers with one activation between them, beside a linear path.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128,)
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
        return self.is_weight_matrix(name, shape) * math.sqrt(2 / max(shape[0], 1)) * (0.1 if reaches_output else 1.0)

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

    def is_weight_matrix(self, name, shape):
        return not name.startswith("bias")

    def aligned(self, params):
        """Return parameters with hidden units of zeros added, so that the results of every layer fill whole cache lines."""
        last = self.n_hidden()
        aligned = dict(params)
        for i in range(last + 1):
            aligned[f"weight{i}"] = padded(params[f"weight{i}"], _CACHE_LINE if i else 1, _CACHE_LINE)
        for i in range(last):
            aligned[f"bias{i}"] = padded(params[f"bias{i}"], 1, _CACHE_LINE)
        if "skip" in params:
            aligned["skip"] = padded(params["skip"], 1, _CACHE_LINE)
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


class Module(Network):
    """A user's own `torch.nn.Module`, made by a factory so that it can be cloned and searched.

    Parameters
    ----------
    factory : callable
        Called as `factory(n_in, n_out)`; returns a `torch.nn.Module` that maps (rows, n_in) to (rows, n_out), each row by
        itself. Its trainable parameters join the model's; everything else stays as the factory made it. Layers that behave
        differently in training (dropout) or mix rows (batch normalisation) are refused. A row's results depend on that row
        alone; to the last bit where the widths of the layers are multiples of 16, and else up to rounding.
    """

    _parameter_constraints = {"factory": [callable]}

    def __init__(self, factory):
        self.factory = factory

    def bind(self, n_in, n_out, seed):
        return _BoundModule(build_module(self.factory, n_in, n_out, seed))


_FORKED_GENERATOR = threading.Lock()


def build_module(factory: Callable, n_in: int, n_out: int, seed: int) -> torch.nn.Module:
    """Call a user's factory; torch initialises modules from its global generator, so that one is lent a seed and restored."""
    with _FORKED_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derived_seed(seed, "module"))
        module = factory(n_in, n_out)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"The factory {factory!r} must return a torch.nn.Module, got {type(module).__name__}. "
            "Pass a function of (n_in, n_out) that builds the network."
        )
    refused = [
        f"{name} ({type(part).__name__})"
        for name, part in module.named_modules()
        if isinstance(part, (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd))
    ]
    if refused:
        raise ValueError(
            f"The module made by {factory!r} has layers that mix rows or draw their own noise: {', '.join(refused[:5])}. "
            "Every row must be mapped by itself and the same way each time; use LayerNorm, or leave them out."
        )
    return module.eval()


class _BoundModule(Network):
    """The functional form of a module: its trainable parameters come from outside."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._swapping = threading.Lock()  # functional_call swaps parameters in place, so threads take turns

    def shapes(self, n_in, n_out, seed):
        return {name: tuple(p.shape) for name, p in self.trainable.items()}

    def init(self, n_in, n_out, seed):
        return {name: p.detach().to(torch.float64).clone() for name, p in self.trainable.items()}

    def forward(self, params, x):
        rows = x.flatten(0, -2)
        with self._swapping:
            out = torch.func.functional_call(self.module.to(device=x.device, dtype=x.dtype), params, (rows,))
        return out.reshape(*x.shape[:-1], out.shape[-1])


register("network", mlp=MLP, module=Module)
