"""Optimizers on one flat vector, without torch.optim and the second that its import takes."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._constants import constant
from skvae._settings import Interval, Settings, belongs_with, register

Slots = dict[str, Tensor]

_SMALLEST = 1e-300  # stands for a decay of zero, which has no logarithm
_FUSED_PIECES, _FUSED_NUMBERS = 36, 65536  # vectors that torch's kernel takes at a time, and numbers it gives to one processor


class Optimizer(Settings):
    """Base of the optimizers: update rules that ascend or descend in place and keep their memory in named vectors."""

    #: whether `step` never looks at a number on the device, so that it can be recorded, and takes several models as rows
    is_capturable: bool = False

    def init(self, params: Tensor) -> Slots:
        """Return the memory at the start of training."""
        raise NotImplementedError

    def step(self, params: Tensor, grad: Tensor, slots: Slots, learning_rate: float | Tensor) -> None:
        """Move `params` against `grad` in place and update the memory in place.

        On a device, a capturable optimizer is given several models as rows (m, size), and their numbers, among them the
        learning rates, as columns (m, 1).
        """
        raise NotImplementedError

    def step_many(self, params: list[Tensor], grads: list[Tensor], slots: dict[str, list[Tensor]], learning_rate) -> None:
        """Take a step for several models, with one rate for all."""
        for i, (vector, grad) in enumerate(zip(params, grads, strict=True)):
            self.step(vector, grad, {name: memories[i] for name, memories in slots.items()}, learning_rate)

    def together(self) -> Callable:
        """Return what takes a step for several models: `step_many`, unless a subclass changed `step` alone."""
        return self.step_many if belongs_with(self, "step_many", "step") else partial(Optimizer.step_many, self)

    def can_be_recorded(self) -> bool:
        """Tell whether `step` is what a device can record; a subclass that changed it has to say so again."""
        return self.is_capturable and all(belongs_with(self, "is_capturable", name) for name in ("step", "step_many"))

    def tidy(self, slots: Slots) -> None:
        """Do what keeps the memory in good order; called now and then, between steps."""


class Adam(Optimizer):
    """Adam: steps in units of the learning rate, scaled by running moments of the gradient.

    Parameters
    ----------
    betas : tuple of two floats, default=(0.9, 0.999)
        Decay rates of the running mean and of the running mean square.

    epsilon : float, default=1e-8
        Added to the root of the second moment.

    References
    ----------
    Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2015.
    """

    is_capturable = True
    _parameter_constraints = {"betas": [tuple], "epsilon": [Interval(Real, 0, None, closed="left")]}

    def __init__(self, betas=(0.9, 0.999), *, epsilon=1e-8):
        self.betas = betas
        self.epsilon = epsilon

    def validate(self):
        super().validate()
        if len(self.betas) != 2 or not all(isinstance(b, Real) and 0 <= b < 1 for b in self.betas):
            raise ValueError(f"The 'betas' of Adam must be two numbers in [0, 1). Got {self.betas!r}.")
        return self

    def init(self, params):
        step = torch.zeros((), device=params.device, dtype=torch.float32)
        return {"mean": torch.zeros_like(params), "square": torch.zeros_like(params), "step": step}

    def step(self, params, grad, slots, learning_rate):
        if isinstance(learning_rate, Tensor):
            of_one = len(params) == 1 and params.dtype == learning_rate.dtype == torch.float32
            (self._step_of_row if of_one else self._step_of_rows)(params, grad, slots, learning_rate)
        else:
            self.step_many([params], [grad], {name: [memory] for name, memory in slots.items()}, learning_rate)

    def _step_of_row(self, params, grad, slots, learning_rate):
        """Give torch's kernel the vector in pieces, so that all processors of a device have some of it."""
        slots["step"].add_(1)
        few = params.numel() <= _FUSED_PIECES * _FUSED_NUMBERS
        size = -(-params.numel() // _FUSED_PIECES) if few else params.numel()
        pieces = [vector[0].split(size) for vector in (params, grad, slots["mean"], slots["square"])]
        self._fused(*pieces, [slots["step"].view(())] * len(pieces[0]), learning_rate.view(()))

    def _step_of_rows(self, params, grad, slots, learning_rate):
        """Do what torch's kernel does, which takes one rate for all models."""
        mean, square, number = slots["mean"], slots["square"], slots["step"].add_(1)
        mean.lerp_(grad, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        # 1 - beta ** number, with a minus sign in front
        of_mean, of_square = (torch.expm1(number * math.log(max(beta, _SMALLEST))).to(params.dtype) for beta in self.betas)
        params.addcdiv_(mean * (learning_rate / of_mean), (square / -of_square).sqrt_().add_(self.epsilon))

    def step_many(self, params, grads, slots, learning_rate):
        numbers = slots["step"]
        torch._foreach_add_(numbers, [constant(1.0, numbers[0])] * len(numbers))  # a number costs four times as much
        self._fused(params, grads, slots["mean"], slots["square"], numbers, learning_rate)

    def _fused(self, params, grads, means, squares, numbers, learning_rate):
        torch._fused_adam_(
            params, grads, means, squares, [], numbers, lr=learning_rate, beta1=self.betas[0], beta2=self.betas[1],
            weight_decay=0.0, eps=self.epsilon, amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
        )  # fmt: skip

    def tidy(self, slots):
        """Clear moments that have faded away, before they become denormal numbers, on which processors are ten times slower."""
        for name, smallest in (("mean", 1e-30), ("square", 1e-35)):
            slots[name].copy_(torch.nn.functional.hardshrink(slots[name], smallest))


class Adagrad(Optimizer):
    """Adagrad: the step of each parameter shrinks with the root of the sum of its squared gradients.

    Parameters
    ----------
    accumulate_first : int, default=0
        Number of steps at the start that only add up squared gradients and move nothing. Without them the very first step
        moves every parameter by the whole learning rate, which drowns the small initial weights of the paper's recipe.

    epsilon : float, default=1e-8
        Added to the sum of squares, inside the root.

    References
    ----------
    Duchi, Hazan & Singer, *Adaptive Subgradient Methods*, 2011; Kingma & Welling, 2013, section 5.
    """

    is_capturable = True
    _parameter_constraints = {
        "accumulate_first": [Interval(Integral, 0, None, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, accumulate_first=0, epsilon=1e-8):
        self.accumulate_first = accumulate_first
        self.epsilon = epsilon

    def init(self, params):
        step = torch.zeros((), device=params.device, dtype=torch.float32)
        return {"square": torch.zeros_like(params), "step": step}

    def step(self, params, grad, slots, learning_rate):
        slots["square"].addcmul_(grad, grad)
        slots["step"].add_(1)
        moves = slots["step"] > self.accumulate_first
        if isinstance(learning_rate, Tensor):  # nobody looks at it
            params.addcdiv_(grad * (learning_rate * moves), (slots["square"] + self.epsilon).sqrt_(), value=-1)
        elif moves:
            params.addcdiv_(grad, (slots["square"] + self.epsilon).sqrt_(), value=-learning_rate)


class SGD(Optimizer):
    """Stochastic gradient descent.

    Its steps are as long as the gradients, which grow with the number of columns. The default `learning_rate_init=0.01` was
    chosen for Adam; where training diverges with it, take a tenth or a hundredth.

    Parameters
    ----------
    momentum : float, default=0.0
        Share of the previous update that is added to the next one.
    """

    is_capturable = True
    _parameter_constraints = {"momentum": [Interval(Real, 0, 1, closed="left")]}

    def __init__(self, *, momentum=0.0):
        self.momentum = momentum

    def init(self, params):
        return {"velocity": torch.zeros_like(params)}

    def step(self, params, grad, slots, learning_rate):
        slots["velocity"].mul_(self.momentum).add_(grad)
        if isinstance(learning_rate, Tensor):
            params.addcmul_(slots["velocity"], learning_rate, value=-1)
        else:
            params.add_(slots["velocity"], alpha=-learning_rate)


register("optimizer", adam=Adam, adagrad=Adagrad, sgd=SGD)
