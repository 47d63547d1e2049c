"""Likelihoods p(x|z): what the decoder's outputs mean, the density of each cell, its mean and its sampler."""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor
from torch._C._nn import softplus
from torch.nn.functional import logsigmoid

from skvae._random import normal, uniform
from skvae._settings import Interval, Settings, StrOptions, belongs_with, register

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Likelihood(Settings):
    """Base of the likelihoods; `eta` stands for the decoder's outputs, of shape (..., n, n_outputs).

    A likelihood sees the columns in units of its own, `(x - loc) / scale`; the table's codec applies the map, refuses cells
    outside `support`, and gives densities their Jacobian back.
    """

    #: True for a density, whose value depends on the units of a column; False for a probability mass
    is_density: bool = True

    @property
    def support(self) -> tuple[float, float]:
        """Closed interval of admissible values, in the likelihood's units."""
        return (-math.inf, math.inf)

    @property
    def clips(self) -> bool:
        """Whether cells outside the support are moved to its edge instead of refused."""
        return False

    @property
    def drops_constant(self) -> bool:
        """Whether a column that never varied is left out of the model."""
        return False

    def units(self, columns):
        """Return `loc` and `scale` of every column, given its `mean`, `std`, `low` and `high` in the training data."""
        raise NotImplementedError

    def presented(self, x: Tensor, uniform: Callable[[], Tensor] | None = None) -> Tensor:
        """Return rows as the model sees them, encoder and density alike; most likelihoods show them as they are.

        A likelihood that draws them calls `uniform` for numbers in [0, 1), of the shape of x or of one row for all. Where there
        is none, because only the encoder will see the rows, it shows what it would draw on average.
        """
        return x

    def n_outputs(self, n_columns: int) -> int:
        """Return how many numbers per row the decoder must give."""
        return n_columns

    def shapes(self, n_columns: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters that belong to the likelihood itself."""
        return {}

    def init(self, n_columns: int) -> dict[str, Tensor]:
        """Return those parameters at the start of training."""
        return {}

    def log_prob(self, params: dict[str, Tensor], eta: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z) in nats, one value per column."""
        raise NotImplementedError

    def derivative(self, params: dict[str, Tensor], eta: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the derivatives of `sum(weight * log_prob)` by `eta` and by the likelihood's own parameters.

        Optional: a likelihood that has it trains without autograd, about three times as fast on small tables. `weight` has the
        shape (..., n, 1); `eta` may be overwritten and returned; derivatives by parameters have the shapes of the parameters.
        """
        raise NotImplementedError

    def offers(self, name: str) -> bool:
        """Tell whether an optional method is there and belongs to `log_prob`: a subclass that overrides one means that one."""
        return getattr(type(self), name) is not getattr(Likelihood, name) and belongs_with(self, name, "log_prob")

    def log_prob_rows(self, params: dict[str, Tensor], eta: Tensor, x: Tensor) -> Tensor:
        """Return the sum of `log_prob` over the columns, of shape (..., n).

        Optional: a likelihood that has it is scored faster. It may overwrite `eta`, and takes no gradients.
        """
        raise NotImplementedError

    def mean(self, params: dict[str, Tensor], eta: Tensor) -> Tensor:
        """Return E[x|z], of shape (..., n, d)."""
        raise NotImplementedError

    def sample(self, params: dict[str, Tensor], eta: Tensor, stream: torch.Generator) -> Tensor:
        """Draw x given z, of shape (..., n, d)."""
        raise NotImplementedError

    def noise_variance(self, params: dict[str, Tensor], n_columns: int) -> Tensor | None:
        """Return Var[x|z] per column where it does not depend on z, of shape (..., 1, d); None elsewhere."""
        return None


class Gaussian(Likelihood):
    r"""Normal likelihood for real-valued columns, :math:`x_j \mid z \sim N(\mu_j(z), \sigma_j^2)`.

    The noise :math:`\sigma` decides how much of the data the latent space must explain, so it is learnt: fixing it at one (the
    mean squared error of most implementations) makes the latent space collapse on standardised tables.

    Parameters
    ----------
    noise : {"feature", "shared", "network"} or float, default="feature"
        The standard deviation of the noise: one per column (as in factor analysis), one for all columns (as in probabilistic
        PCA), an output of the decoder (the Gaussian MLP of the paper; best with many rows per column), or a fixed number, in
        units of the standardised columns.

    standardize : bool, default=True
        Whether the model sees columns with mean 0 and standard deviation 1; with `link="logit"`, from 0 to 1. Scores are in
        the units of the data either way.

    floor : float, default=0.01
        Smallest standard deviation of the noise that learning can reach, in the model's units. The likelihood is unbounded
        without one: a column that is reproduced exactly has infinite density.

    link : {"identity", "logit"}, default="identity"
        How the decoder's output becomes the mean: as it is, or through a sigmoid, for columns that end on either side, such as
        grey levels (the paper's decoder of the Frey faces). The sigmoid reaches from the smallest to the largest value that the
        column had in training, which then are the model's 0 and 1; with `standardize=False` from 0 to 1, and columns that go
        beyond are refused in training.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.2.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Gaussian
    >>> VAETransformer(2, likelihood=Gaussian(noise="shared"))
    VAETransformer(likelihood=Gaussian(noise='shared'), n_components=2)
    """

    _parameter_constraints = {
        "noise": [StrOptions({"feature", "shared", "network"}), Interval(Real, 0, None, closed="neither")],
        "standardize": ["boolean"],
        "floor": [Interval(Real, 0, None, closed="neither")],
        "link": [StrOptions({"identity", "logit"})],
    }

    # The parameter is log(sigma) / 2: Adam moves every parameter at the same rate, and the noise has the longest way to go.
    _RATE = 2.0

    def __init__(self, noise="feature", *, standardize=True, floor=0.01, link="identity"):
        self.noise = noise
        self.standardize = standardize
        self.floor = floor
        self.link = link

    @property
    def support(self):
        # A cell a million standard deviations away counts as just that: its square stays finite in float32.
        return (-1e6, 1e6) if self.standardize else (-math.inf, math.inf)

    @property
    def clips(self):
        return self.standardize

    @property
    def drops_constant(self):
        return self.standardize

    def units(self, columns):
        if self.standardize:
            return (columns.mean, columns.std) if self.link == "identity" else (columns.low, columns.high - columns.low)
        low, high = columns.low.min(), columns.high.max()
        if self.link == "logit" and (low < 0 or high > 1):
            raise ValueError(
                f"The training data have values from {low:g} to {high:g}, but the mean of Gaussian(link='logit', "
                "standardize=False) lies between 0 and 1. Use standardize=True, which lets it reach from the smallest to the "
                "largest value of each column, or rescale the columns to [0, 1]."
            )
        return columns.mean * 0.0, columns.mean * 0.0 + 1.0

    def n_outputs(self, n_columns):
        return 2 * n_columns if self.noise == "network" else n_columns

    def shapes(self, n_columns):
        widths = {"feature": n_columns, "shared": 1}
        return {"log_scale": (1, widths[self.noise])} if self.noise in widths else {}

    def init(self, n_columns):
        return {name: torch.zeros(shape, device="cpu") for name, shape in self.shapes(n_columns).items()}

    def set_noise(self, params, log_scale):
        """Write standard deviations, given by their logarithms of shape (1, d), into freshly initialised parameters."""
        if params:
            floor = math.log(self.floor)
            raw = 0.5 * torch.log((2 * log_scale).exp() - self.floor**2).clamp(min=2 * floor)  # inverse of the smooth floor
            params["log_scale"].copy_(raw.mean(1, keepdim=True) / self._RATE if self.noise == "shared" else raw / self._RATE)

    def _mean_and_log_scale(self, params, eta):
        by_network = self.noise == "network"
        mean, log_scale = eta.chunk(2, -1) if by_network else (eta, self._RATE * params.get("log_scale", 0.0))
        if self.link == "logit":
            mean = mean.sigmoid()
        if not (by_network or params):
            return mean, eta.new_tensor(math.log(self.noise))
        # A smooth floor on the variance, floor**2 + exp(2 * log_scale): no gradient is ever cut off.
        return mean, 0.5 * torch.logaddexp(2 * log_scale, log_scale.new_tensor(2 * math.log(self.floor)))

    def log_prob(self, params, eta, x):
        mean, log_scale = self._mean_and_log_scale(params, eta)
        return -0.5 * ((x - mean) * (-log_scale).exp()).square() - log_scale - _HALF_LOG_2PI

    def derivative(self, params, eta, x, weight):
        if self.link == "identity":
            return self._derivative_by_mean(params, eta, x, weight)
        mean = (eta.chunk(2, -1)[0] if self.noise == "network" else eta).sigmoid_()
        slope = mean * (1 - mean)  # of the sigmoid
        by_eta, by_params = self._derivative_by_mean(params, eta, x, weight)
        by_eta[..., : slope.shape[-1]].mul_(slope)
        return by_eta, by_params

    def _derivative_by_mean(self, params, eta, x, weight):
        """Return what `derivative` does for outputs that hold the mean itself."""
        if self.noise == "network":
            return self._derivative_with_network(eta, x, weight), {}
        residual = torch.sub(x, eta, out=eta)
        if not params:
            return residual.mul_(weight if self.noise == 1 else weight * self.noise**-2), {}
        # In double precision, because torch rounds in ways that depend on what else a call has to do.
        above_floor = 2 * self._RATE * params["log_scale"].double() - 2 * math.log(self.floor)
        share, precision = above_floor.sigmoid(), (-above_floor).sigmoid() / self.floor**2
        squares = (residual.square() * weight).sum(-2, keepdim=True, dtype=torch.float64)  # (..., 1, d)
        by_log_scale = precision * squares - weight.sum(-2, keepdim=True, dtype=torch.float64)
        if self.noise == "shared":
            by_log_scale = by_log_scale.sum(-1, keepdim=True)
        return residual.mul_(precision.to(eta.dtype)).mul_(weight), {"log_scale": self._RATE * share * by_log_scale}

    def _derivative_with_network(self, eta, x, weight):
        mean, log_scale = eta.chunk(2, -1)
        above_floor = log_scale.mul_(2).sub_(2 * math.log(self.floor))
        share = above_floor.sigmoid()  # of the variance, floor**2 + exp(2 * log_scale), that is learnt
        precision = above_floor.neg_().sigmoid() / self.floor**2
        residual = x - mean
        torch.mul(residual * precision, weight, out=mean)
        torch.mul(share * (residual.square() * precision - 1), weight, out=log_scale)
        return eta

    def log_prob_rows(self, params, eta, x):
        if self.noise == "network":
            return self.log_prob(params, eta, x).sum(-1)
        mean, log_scale = self._mean_and_log_scale(params, eta)
        distance = (mean - x).mul_((-log_scale).exp()).square_().sum(-1)
        return -0.5 * distance - (log_scale + _HALF_LOG_2PI).expand(*log_scale.shape[:-1], x.shape[-1]).sum(-1)

    def mean(self, params, eta):
        return self._mean_and_log_scale(params, eta)[0]

    def sample(self, params, eta, stream):
        mean, log_scale = self._mean_and_log_scale(params, eta)
        return mean + log_scale.exp() * normal(mean.shape, stream, mean.dtype)

    def noise_variance(self, params, n_columns):
        if self.noise == "network":
            return None
        if not params:
            return torch.full((1, n_columns), self.noise**2, device="cpu", dtype=torch.float64)
        _, log_scale = self._mean_and_log_scale(params, params["log_scale"])
        return (2 * log_scale).exp().expand(*log_scale.shape[:-1], n_columns)


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood for columns of zeros and ones, :math:`x_j \mid z \sim \mathrm{Bernoulli}(p_j(z))`.

    The decoder gives logits. Values between 0 and 1, such as grey levels, are accepted as in the paper: they count as the
    *probability* of a one, :math:`x \log p + (1 - x) \log(1 - p)`. That is the expected log-likelihood of an image whose pixels
    were drawn with these probabilities, not a density of the grey levels: compare such scores only with each other.

    Parameters
    ----------
    limits : tuple of two floats or "observed", default=(0.0, 1.0)
        The values that stand for 0 and 1, for example `(0, 255)` for images of 8 bits. Cells outside are refused. "observed"
        takes the smallest and the largest value of each column of the training data, and moves later cells to that range.

    binarize : {"dynamic"}, float or None, default=None
        How grey levels become zeros and ones before encoder and likelihood see them, so that scores are probabilities of
        images. "dynamic" draws every pixel anew each time a row is shown in training, a one with the probability that its grey
        level says, which also keeps the model from learning pixels by heart. A number between 0 and 1 is a threshold: what lies
        above this share of the way between the limits is a one. None leaves grey levels as they are.

    Notes
    -----
    Once a model with `binarize="dynamic"` is fitted, nothing is left to chance: scores are those of one drawing, by random
    numbers that are the same for every row and each time, while `transform`, `reconstruct` and whatever else only encodes
    reads the grey levels, of which nothing is lost. Zeros and ones stay what they are, in any case. Models that differ in
    `binarize` are scored on different pixels: their scores compare on zeros and ones alone.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.1.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Bernoulli
    >>> VAETransformer(20, likelihood=Bernoulli(limits=(0, 16)))
    VAETransformer(likelihood=Bernoulli(limits=(0, 16)), n_components=20)
    """

    _parameter_constraints = {
        "limits": [tuple, StrOptions({"observed"})],
        "binarize": [StrOptions({"dynamic"}), Interval(Real, 0, 1, closed="neither"), None],
    }
    is_density = False

    def __init__(self, limits=(0.0, 1.0), *, binarize=None):
        self.limits = limits
        self.binarize = binarize

    @property
    def support(self):
        return (0.0, 1.0)

    @property
    def clips(self):
        return self.limits == "observed"

    def validate(self):
        super().validate()
        if self.limits != "observed":
            numbers = all(isinstance(v, Real) and math.isfinite(v) for v in self.limits)
            if not (numbers and len(self.limits) == 2 and self.limits[0] < self.limits[1]):
                raise ValueError(
                    "The 'limits' of Bernoulli must be two finite numbers, the lower one first, or 'observed'. "
                    f"Got {self.limits!r}."
                )
        return self

    def units(self, columns):
        if self.limits == "observed":
            return columns.low, columns.high - columns.low
        low, high = self.limits
        return columns.mean * 0.0 + low, columns.mean * 0.0 + (high - low)

    def presented(self, x, uniform=None):
        if self.binarize == "dynamic":
            return x if uniform is None else (uniform() < x).to(x.dtype)
        return x if self.binarize is None else (x > self.binarize).to(x.dtype)

    def log_prob(self, params, eta, x):
        return x * eta + logsigmoid(-eta)

    def derivative(self, params, eta, x, weight):
        return torch.sub(x, eta.sigmoid_(), out=eta).mul_(weight), {}

    def log_prob_rows(self, params, eta, x):
        of_ones = eta @ x[0] if x.ndim == 2 and len(x) == 1 else (x * eta).sum(-1)  # sum of x * eta, for one row as a product
        return of_ones - softplus(eta, out=eta).sum(-1)

    def mean(self, params, eta):
        return eta.sigmoid()

    def sample(self, params, eta, stream):
        return (uniform(eta.shape, stream, eta.dtype) < eta.sigmoid()).to(eta.dtype)


register("likelihood", gaussian=Gaussian, bernoulli=Bernoulli)
