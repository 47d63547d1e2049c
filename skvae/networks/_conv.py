"""Networks for images: convolutions on the way in, transposed convolutions on the way out."""

import math
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from skvae._numbers import CACHE_LINE, rounded_up
from skvae._random import generator
from skvae._settings import Interval, StrOptions
from skvae.networks._base import ACTIVATIONS, Network, affine, enlarged

_STRIDE = 2  # of convolutions


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

    def refusal(self, n_columns: int, reason: str = "") -> ValueError:
        """Return the error that a row does not hold images, with what may be the reason."""
        shape = "a square" if self.input_shape is None else f"an image of shape {tuple(self.input_shape)}"
        return ValueError(
            f"{type(self).__name__} cannot arrange {n_columns} columns as {shape}. Set input_shape=(height, width), or "
            f"(height, width, channels), so that their product is the number of columns of X.{reason}"
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
            raise self.refusal(n_in, " Missing cells, categories and conditions of X give the encoder more columns.")
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
        return rounded_up(grid.n_channels, CACHE_LINE // math.gcd(CACHE_LINE, grid.n_places))

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
