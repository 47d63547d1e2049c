"""A user's own `torch.nn.Module` as a network."""

import threading
from collections.abc import Callable

import torch

from skvae._random import derived_seed
from skvae._settings import clone
from skvae.networks._base import Network


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

    def __sklearn_clone__(self):
        params = self.get_params(deep=False)  # a copy of a callable object would be another factory
        return type(self)(**{name: v if name == "factory" else clone(v, safe=False) for name, v in params.items()})

    def bind(self, n_in, n_out, seed):
        return _BoundModule(build_module(self.factory, n_in, n_out, seed))


_FORKED_GENERATOR = threading.Lock()


def build_module(factory: Callable, n_in: int, n_out: int, seed: int) -> torch.nn.Module:
    """Call a user's factory; torch initialises modules from its global generator, so that one is lent a seed and restored."""
    _check_factory(factory)
    with _FORKED_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derived_seed(seed, "module"))
        module = factory(n_in, n_out)
        _check_module(module, factory)
        _check_sizes(module.eval(), factory, n_in, n_out)
    return module


def _check_factory(factory: object) -> None:
    """Refuse classes of our own and finished modules, which can be called but make no module."""
    if isinstance(factory, torch.nn.Module) or (isinstance(factory, type) and issubclass(factory, Network)):
        raise TypeError(
            "A network must be an object such as MLP((64,)), or a function of (n_in, n_out) that builds a torch.nn.Module, "
            f"got {'the class' if isinstance(factory, type) else 'the module'} {factory!r}."
        )


def _check_module(module, factory: Callable) -> None:
    """Refuse what is no module, or has layers that mix rows."""
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


def _check_sizes(module: torch.nn.Module, factory: Callable, n_in: int, n_out: int) -> None:
    """Refuse a module that does not map rows of n_in numbers to rows of n_out, by the map of two rows."""
    none = torch.zeros((), dtype=torch.get_default_dtype(), device="cpu")
    like = next((p for p in module.parameters() if p.is_floating_point()), none)
    expected = (
        f"must map rows of n_in={n_in} numbers to rows of n_out={n_out}, as torch.nn.Linear(n_in, n_out) does; these sizes are "
        "the arguments that the factory is called with."
    )
    try:
        with torch.no_grad():
            out = module(torch.zeros((2, n_in), dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(f"The module made by {factory!r} cannot read a row: {error}. It {expected}") from error
    if not isinstance(out, torch.Tensor) or out.shape != (2, n_out):
        given = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise ValueError(f"The module made by {factory!r} gives {given} for an input of shape {(2, n_in)}. It {expected}")


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
