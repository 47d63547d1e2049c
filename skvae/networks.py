"""Networks that encode rows and decode latents: maps from a parameter dictionary and a tensor to a tensor."""

import math
import threading
from collections.abc import Callable
from itertools import pairwise
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from skvae._random import derived_seed, generator, normal
from skvae._settings import Interval, Settings, StrOptions, register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}

_CACHE_LINE = 16  # numbers of single precision
_STRIDE = 2  # of convolutions
_LOG_STD = "_log_std"  # ends the names of the spreads of uncertain weights
_FIRST_LOG_STD = -5.0


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


def enlarged(values: Tensor, *dims_and_sizes: int) -> Tensor:
    """Return values with zeros added behind them, up to a size along each of some dimensions."""
    missing = [0] * (2 * values.ndim)
    for dim, size in zip(dims_and_sizes[::2], dims_and_sizes[1::2], strict=True):
        missing[2 * (values.ndim - dim) - 1] = size - values.shape[dim]
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


class VariationalMLP(MLP):
    r"""An MLP whose weights and biases are uncertain: the decoder of full variational Bayes.

    Every weight has a normal prior and a normal posterior of its own, :math:`q(\theta) = N(\mu, \sigma^2)`, and training raises
    the bound on the evidence, :math:`\sum_i E_{q(\theta)}[\mathcal{L}_i(\theta)] - \mathrm{KL}(q(\theta) \,\|\, p(\theta))`.
    Draws of the weights are not common to a batch: every row gets its own through the sums that they enter (local
    reparameterisation), which makes gradients less noisy. Where the data do not say what a weight should be, it goes back to
    its prior, so that few rows cannot be overfitted.

    `score` and `sample` average over the weights; `inverse_transform` and `reconstruct` take their means. The encoder, the
    noise of the likelihood and the parameters of the prior stay single numbers, and `alpha` does not apply to the decoder.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128,)
        As in :class:`MLP`.

    activation : {"silu", "relu", "gelu", "tanh", "identity"}, default="silu"
        As in :class:`MLP`.

    skip : bool, default=True
        As in :class:`MLP`.

    init_std : "auto" or float, default="auto"
        As in :class:`MLP`, for the means.

    prior_std : float, default=1.0
        Standard deviation of the prior of every weight and bias, around zero.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, appendix F. Kingma, Salimans & Welling, *Variational Dropout and
    the Local Reparameterization Trick*, 2015.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.networks import VariationalMLP
    >>> VAETransformer(2, decoder=VariationalMLP((32,)))
    VAETransformer(decoder=VariationalMLP(hidden_layer_sizes=(32,)), n_components=2)
    """

    _parameter_constraints = {**MLP._parameter_constraints, "prior_std": [Interval(Real, 0, None, closed="neither")]}
    is_uncertain = True

    def __init__(self, hidden_layer_sizes=(128,), *, activation="silu", skip=True, init_std="auto", prior_std=1.0):
        super().__init__(hidden_layer_sizes, activation=activation, skip=skip, init_std=init_std)
        self.prior_std = prior_std

    def shapes(self, n_in, n_out, seed):
        means = super().shapes(n_in, n_out, seed)
        return {**means, **{name + _LOG_STD: shape for name, shape in means.items()}}

    def init(self, n_in, n_out, seed):
        """Return means as those of :class:`MLP`, with small spreads."""
        params = super().init(n_in, n_out, seed)
        for name, value in params.items():
            if name.endswith(_LOG_STD):
                value.fill_(_FIRST_LOG_STD)
        return params

    def is_weight_matrix(self, name, shape):
        return False

    def means(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means of the weights, the parameters of an MLP."""
        return {name: value for name, value in params.items() if name + _LOG_STD in params}

    def draw(self, params: dict[str, Tensor], stream: torch.Generator) -> dict[str, Tensor]:
        """Draw weights, the parameters of an MLP."""
        return {
            name: mean + params[name + _LOG_STD].exp() * normal(tuple(mean.shape), stream, mean.dtype)
            for name, mean in self.means(params).items()
        }

    def kl(self, params: dict[str, Tensor]) -> Tensor:
        """Return KL(q || p) of all weights together, in nats."""
        parts = []
        for name, mean in self.means(params).items():
            log_ratio = params[name + _LOG_STD] - math.log(self.prior_std)
            parts.append((0.5 * ((mean / self.prior_std).square() + (2 * log_ratio).exp() - 1) - log_ratio).sum())
        return torch.stack(parts).sum()

    def aligned(self, params):
        return super().aligned(self.means(params) or params)  # drawn weights have no spread

    def forward(self, params, x):
        """Return outputs under the means of the weights, or, given a "stream" of noise, under weights drawn for each row."""
        if "stream" not in params:
            return super().forward(params, x)
        activation, last = ACTIVATIONS[self.activation], self.n_hidden()
        out = x
        for i in range(last):
            out = activation(self._noisy_sum(params, {f"weight{i}": out}, f"bias{i}"))
        terms = {f"weight{last}": out, **({"skip": x} if "skip" in params else {})}
        return self._noisy_sum(params, terms, f"bias{last}")

    @staticmethod
    def _noisy_sum(params, terms, bias):
        """Return draws of the sum of x @ weight over terms, plus bias: normal, with a mean and a variance for every row."""
        mean = params[bias] + sum(x @ params[name] for name, x in terms.items())
        variance = (2 * params[bias + _LOG_STD]).exp() + sum(
            x.square() @ (2 * params[name + _LOG_STD]).exp() for name, x in terms.items()
        )
        return mean + variance.sqrt() * normal(tuple(mean.shape), params["stream"], mean.dtype)


class Grid(NamedTuple):
    """Height, width and channels of an image that lies in a row, pixel by pixel, the channels of a pixel side by side."""

    height: int
    width: int
    n_channels: int

    @property
    def size(self) -> int:
        """Number of columns."""
        return math.prod(self)

    @property
    def n_places(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def halved(self, n_channels: int) -> "Grid":
        """Return the grid of every second pixel in every second line."""
        return Grid(-(-self.height // _STRIDE), -(-self.width // _STRIDE), n_channels)


class _Images(Network):
    """What networks that read or make images have in common."""

    _parameter_constraints = {
        "input_shape": [tuple, list, None],
        "channels": [tuple, list],
        "kernel_size": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
    }
    reads_places = True

    def validate(self):
        super().validate()
        shape, name = self.input_shape, type(self).__name__
        if shape is not None and not (len(shape) in (2, 3) and _are_sizes(shape)):
            raise ValueError(
                f"The input_shape of {name} must be (height, width) or (height, width, channels) in whole numbers, or None for "
                f"square images, got {shape!r}."
            )
        if not (len(self.channels) and _are_sizes(self.channels)):
            raise ValueError(f"The channels of {name} must be one or more positive whole numbers, got {self.channels!r}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"The kernel_size of {name} must be odd, so that kernels have a middle, got {self.kernel_size!r}.")
        return self

    def image(self, n_columns: int, n_images: int = 1) -> Grid:
        """Return the image of which `n_images` fill a row of `n_columns`."""
        if self.input_shape is None:
            side = math.isqrt(n_columns // n_images)
            return Grid(side, side, 1)
        return Grid(*map(int, (*self.input_shape, 1)[:3]))

    def refusal(self, n_columns: int) -> ValueError:
        """Return the error that a row does not hold images."""
        shape = "a square" if self.input_shape is None else f"an image of shape {tuple(self.input_shape)}"
        return ValueError(
            f"{type(self).__name__} cannot arrange {n_columns} columns as {shape}. Set input_shape=(height, width), or "
            "(height, width, channels), so that their product is the number of columns of X."
        )


def _are_sizes(values) -> bool:
    return all(isinstance(value, Integral) and int(value) >= 1 for value in values)


class Conv(_Images):
    """Encoder of images: convolutions, each of which halves height and width, and a fully connected layer.

    A kernel looks at a few pixels that lie together, and does so everywhere, so that a stroke is the same stroke wherever it
    is. Rows stay rows, as everywhere in scikit-learn: `input_shape` says how a row lies in the image.

    Parameters
    ----------
    input_shape : tuple of int, default=None
        Height and width of an image, or height, width and number of channels. Pixels follow each other line by line, the
        channels of a pixel side by side, as `image.reshape(-1)` puts them. None stands for square images with one channel.

    channels : tuple of int, default=(32, 64)
        Channels of each convolution, from the image on.

    kernel_size : int, default=3
        Height and width of the kernels, an odd number.

    activation : {"silu", "relu", "gelu", "tanh", "identity"}, default="silu"
        Applied after every convolution.

    See Also
    --------
    ConvTranspose : The decoder that goes the other way.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Bernoulli
    >>> from skvae.networks import Conv
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAETransformer(
    ...     2, likelihood=Bernoulli(limits=(0, 16)), encoder=Conv((8, 8), channels=(8, 16)), decoder="conv",
    ...     learning_rate="cosine", max_iter=2, random_state=0,
    ... )
    >>> vae.fit(X).transform(X).shape
    (1797, 2)
    """

    def __init__(self, input_shape=None, *, channels=(32, 64), kernel_size=3, activation="silu"):
        self.input_shape = input_shape
        self.channels = channels
        self.kernel_size = kernel_size
        self.activation = activation

    def bind(self, n_in, n_out, seed):
        """Return the network for images of this many pixels; refuse a number that makes no image."""
        image = self.image(n_in)
        if image.size != n_in:
            raise self.refusal(n_in)
        return _BoundConv(self, _halvings(image, self.channels))


class ConvTranspose(_Images):
    """Decoder of images: a fully connected layer, and transposed convolutions, each of which doubles height and width.

    The way of :class:`Conv` backwards. Where a likelihood reads several numbers per pixel, such as a mean and a noise, each is
    an image of its own.

    Parameters
    ----------
    input_shape : tuple of int, default=None
        Height and width of an image, or height, width and number of channels, as of the model's input; see :class:`Conv`.

    channels : tuple of int, default=(64, 32)
        Channels of what each transposed convolution reads, from the latents on.

    kernel_size : int, default=3
        Height and width of the kernels, an odd number.

    activation : {"silu", "relu", "gelu", "tanh", "identity"}, default="silu"
        Applied after every layer but the last.

    See Also
    --------
    Conv : The encoder that goes the other way.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.networks import Conv, ConvTranspose
    >>> VAETransformer(20, encoder=Conv((20, 28)), decoder=ConvTranspose((20, 28)))
    VAETransformer(decoder=ConvTranspose(input_shape=(20, 28)),
                   encoder=Conv(input_shape=(20, 28)), n_components=20)
    """

    def __init__(self, input_shape=None, *, channels=(64, 32), kernel_size=3, activation="silu"):
        self.input_shape = input_shape
        self.channels = channels
        self.kernel_size = kernel_size
        self.activation = activation

    def bind(self, n_in, n_out, seed):
        """Return the network for images of this many outputs; refuse a number that makes no images."""
        counts = (1, 2) if self.input_shape is None else (n_out // self.image(n_out).size,)
        for n_images in counts:
            image = self.image(n_out, n_images)
            if n_images and image.size * n_images == n_out:
                stacked = image._replace(n_channels=n_images * image.n_channels)
                return _BoundConvTranspose(self, _halvings(stacked, self.channels[::-1])[::-1], n_images)
        raise self.refusal(n_out)


def channels_last(images: Tensor) -> Tensor:
    """Return images (rows, c, h, w) whose channels lie side by side in memory, with which convolutions are twice as fast."""
    return images.contiguous(memory_format=torch.channels_last)


def _halvings(image: Grid, channels) -> list[Grid]:
    """Return an image and what convolutions with these channels make of it, one after the other."""
    grids = [image]
    for n_channels in channels:
        grids.append(grids[-1].halved(int(n_channels)))
    return grids


class _BoundImages(Network):
    """The functional form of a network for images of known size."""

    def __init__(self, settings: _Images, grids: list[Grid]):
        self.grids = grids  # before and after each convolution
        self.activation = ACTIVATIONS[settings.activation]
        self.kernel = (int(settings.kernel_size),) * 2
        self.padding = int(settings.kernel_size) // 2

    def is_weight_matrix(self, name, shape):
        return name.startswith("weight")

    def fan_in(self, shape: tuple[int, ...]) -> float:
        """Return how many numbers meet in one that a layer with weights of this shape makes."""
        raise NotImplementedError

    def init(self, n_in, n_out, seed):
        """Return normal weights of variance 2 / fan_in, a tenth of that scale in the last layer, and zero biases."""
        stream, params = generator(seed, "weights"), {}
        last = f"weight{len(self.grids) - 1}"
        for name, shape in self.shapes(n_in, n_out, seed).items():
            params[name] = torch.zeros(shape, device="cpu", dtype=torch.float64)
            if self.is_weight_matrix(name, shape):
                scale = math.sqrt(2 / self.fan_in(shape)) * (0.1 if name == last else 1.0)
                params[name].normal_(generator=stream).mul_(scale)
        return params

    def aligned_channels(self, grid: Grid) -> int:
        """Return the number of channels, some of them unused, with which images of this size fill whole cache lines."""
        return grid.n_channels + -grid.n_channels % (_CACHE_LINE // math.gcd(_CACHE_LINE, grid.n_places))

    def n_products(self, n_in, n_out, seed):
        shapes = self.shapes(n_in, n_out, seed)
        n_places = [min(one.n_places, other.n_places) for one, other in pairwise(self.grids)]
        kernels = [math.prod(shape) for shape in shapes.values() if len(shape) == 4]
        matrix = next(math.prod(shape) for name, shape in shapes.items() if name.startswith("weight") and len(shape) == 2)
        return matrix + sum(map(math.prod, zip(kernels, n_places, strict=True)))


class _BoundConv(_BoundImages):
    def shapes(self, n_in, n_out, seed):
        shapes = {}
        for i, (below, above) in enumerate(pairwise(self.grids)):
            shapes[f"weight{i}"] = (above.n_channels, below.n_channels, *self.kernel)
            shapes[f"bias{i}"] = (above.n_channels,)
        last, size = len(self.grids) - 1, self.grids[-1].size
        return {**shapes, f"weight{last}": (size, n_out), f"bias{last}": (1, n_out)}

    def aligned(self, params):
        """Return parameters with channels of zeros added, so that each image of every layer fills whole cache lines."""
        aligned, last = dict(params), len(self.grids) - 1
        widths = [self.grids[0].n_channels, *map(self.aligned_channels, self.grids[1:])]
        for i, (below, above) in enumerate(pairwise(widths)):
            aligned[f"weight{i}"] = enlarged(params[f"weight{i}"], 0, above, 1, below)
            aligned[f"bias{i}"] = enlarged(params[f"bias{i}"], 0, above)
        by_place = params[f"weight{last}"].unflatten(0, (self.grids[-1].n_places, -1))
        aligned[f"weight{last}"] = enlarged(by_place, 1, widths[-1]).flatten(0, 1)
        return aligned

    def fan_in(self, shape):
        return shape[0] if len(shape) == 2 else math.prod(shape[1:])

    def forward(self, params, x):
        last = len(self.grids) - 1
        out = channels_last(x.reshape(-1, *self.grids[0]).movedim(-1, 1))  # (rows, c, h, w)
        for i in range(last):
            out = self.activation(F.conv2d(out, params[f"weight{i}"], params[f"bias{i}"], _STRIDE, self.padding))
        out = affine(out.movedim(1, -1).flatten(1), params[f"weight{last}"], params[f"bias{last}"])
        return out.unflatten(0, x.shape[:-1])


class _BoundConvTranspose(_BoundImages):
    def __init__(self, settings, grids, n_images):
        super().__init__(settings, grids)
        self.n_images = n_images
        sizes = [grid[:2] for grid in grids]
        # A transposed convolution makes 2n - 1 lines of n; every second number of lines takes one more.
        self.missing = [tuple(n - _STRIDE * half + 1 for n, half in zip(above, below)) for below, above in pairwise(sizes)]

    def shapes(self, n_in, n_out, seed):
        size = self.grids[0].size
        shapes = {"weight0": (n_in, size), "bias0": (1, size)}
        for i, (below, above) in enumerate(pairwise(self.grids), 1):
            shapes[f"weight{i}"] = (below.n_channels, above.n_channels, *self.kernel)
            shapes[f"bias{i}"] = (above.n_channels,)
        return shapes

    def aligned(self, params):
        """Return parameters with channels of zeros added, so that each image of every layer fills whole cache lines."""
        aligned, widths = dict(params), [*map(self.aligned_channels, self.grids)]
        for name in ("weight0", "bias0"):
            by_place = params[name].unflatten(1, (self.grids[0].n_places, -1))
            aligned[name] = enlarged(by_place, 2, widths[0]).flatten(1)
        for i, (below, above) in enumerate(pairwise(widths), 1):
            aligned[f"weight{i}"] = enlarged(params[f"weight{i}"], 0, below, 1, above)
            aligned[f"bias{i}"] = enlarged(params[f"bias{i}"], 0, above)
        return aligned

    def fan_in(self, shape):  # of a kernel's places, one in four reaches a given pixel
        return shape[0] if len(shape) == 2 else shape[0] * math.prod(self.kernel) / _STRIDE**2

    def forward(self, params, x):
        first, image = self.grids[0], self.grids[-1]
        out = affine(x.flatten(0, -2), params["weight0"], params["bias0"])
        out = channels_last(out.unflatten(-1, (first.height, first.width, -1)).movedim(-1, 1))  # (rows, c, h, w)
        for i, missing in enumerate(self.missing, 1):
            kernel, bias = params[f"weight{i}"], params[f"bias{i}"]
            out = F.conv_transpose2d(self.activation(out), kernel, bias, _STRIDE, self.padding, missing)
        out = out[:, : image.n_channels].unflatten(1, (self.n_images, -1)).movedim(2, -1)  # (rows, images, h, w, c)
        return out.flatten(1).unflatten(0, x.shape[:-1])


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


register("network", mlp=MLP, variational_mlp=VariationalMLP, module=Module)
register("encoder", conv=Conv)
register("decoder", conv=ConvTranspose)
