"""The normal likelihood."""

import math
from numbers import Real

import torch

from skvae._constants import constant
from skvae._numbers import HALF_LOG_2PI
from skvae._random import normal
from skvae._settings import Interval, StrOptions
from skvae.likelihoods._standardized import Standardized


class Gaussian(Standardized):
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
        **Standardized._parameter_constraints,
        "noise": [StrOptions({"feature", "shared", "network"}), Interval(Real, 0, None, closed="neither")],
        "link": [StrOptions({"identity", "logit"})],
    }

    # The parameter is log(sigma) / 2: Adam moves every parameter at the same rate, and the noise has the longest way to go.
    _RATE = 2.0

    def __init__(self, noise="feature", *, standardize=True, floor=0.01, link="identity"):
        super().__init__(standardize=standardize, floor=floor)
        self.noise = noise
        self.link = link

    def units(self, columns):
        if self.link == "identity":
            return super().units(columns)
        if self.standardize:
            return columns.low, columns.high - columns.low
        low, high = columns.low.min(), columns.high.max()
        if low < 0 or high > 1:
            raise ValueError(
                f"The training data have values from {low:g} to {high:g}, but the mean of Gaussian(link='logit', "
                "standardize=False) lies between 0 and 1. Use standardize=True, which lets it reach from the smallest to the "
                "largest value of each column, or rescale the columns to [0, 1]."
            )
        return columns.mean * 0.0, columns.mean * 0.0 + 1.0

    @property
    def slopes_fade(self):
        """Whether slopes may become denormal numbers: those of the sigmoid alone."""
        return self.link == "logit"

    def n_outputs(self, n_columns):
        return 2 * n_columns if self.noise == "network" else n_columns

    def shapes(self, n_columns):
        widths = {"feature": n_columns, "shared": 1}
        return {"log_scale": (1, widths[self.noise])} if self.noise in widths else {}

    def set_noise(self, params, log_scale):
        """Write standard deviations, given by their logarithms of shape (1, d), into freshly initialised parameters."""
        if "log_scale" in params:
            floor = math.log(self.floor)
            raw = 0.5 * torch.log((2 * log_scale).exp() - self.floor**2).clamp(min=2 * floor)  # inverse of the smooth floor
            params["log_scale"].copy_(raw.mean(1, keepdim=True) / self._RATE if self.noise == "shared" else raw / self._RATE)

    def as_normal(self, params, eta):
        by_network = self.noise == "network"
        mean, log_scale = eta.chunk(2, -1) if by_network else (eta, self._RATE * params.get("log_scale", 0.0))
        if self.link == "logit":
            mean = mean.sigmoid()
        if not (by_network or params):
            return mean, eta.new_full((), math.log(self.noise))
        # A smooth floor on the variance, floor**2 + exp(2 * log_scale): no gradient is ever cut off.
        return mean, 0.5 * torch.logaddexp(2 * log_scale, log_scale.new_full((), 2 * math.log(self.floor)))

    def log_prob(self, params, eta, x):
        mean, log_scale = self.as_normal(params, eta)
        return -0.5 * ((x - mean) * (-log_scale).exp()).square() - log_scale - HALF_LOG_2PI

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
        if not params:
            residual = torch.sub(x, eta, out=eta)
            return residual.mul_(weight if self.noise == 1 else weight * self.noise**-2), {}
        residual = x - eta
        # In double precision, because torch rounds in ways that depend on what else a call has to do.
        log_scale = params["log_scale"]
        log_floor = constant((2 * math.log(self.floor),), log_scale, torch.float64)
        share = torch.add(log_floor, log_scale, alpha=-2 * self._RATE).sigmoid_()  # of the floor in the variance
        precision = (share * constant(self.floor**-2, share)).type_as(eta)
        by_eta = torch.mul(residual, weight, out=eta).mul_(precision)
        excess = torch.addcmul(weight, by_eta, residual, value=-1).sum(-2, keepdim=True, dtype=torch.float64)  # (..., 1, d)
        if self.noise == "shared":
            excess = excess.sum(-1, keepdim=True)
        return by_eta, {"log_scale": torch.add(constant(-self._RATE, share), share, alpha=self._RATE).mul_(excess)}

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
        mean, log_scale = self.as_normal(params, eta)
        whole, _ = torch.broadcast_tensors(mean, x)  # larger than the mean where the same outputs serve several rows
        residual = torch.sub(mean, x, out=mean) if whole.shape == mean.shape else mean - x
        distance = residual.mul_((-log_scale).exp()).square_().sum(-1)
        return -0.5 * distance - (log_scale + HALF_LOG_2PI).expand(*log_scale.shape[:-1], x.shape[-1]).sum(-1)

    def mean(self, params, eta):
        return self.as_normal(params, eta)[0]

    def sample(self, params, eta, stream):
        mean, log_scale = self.as_normal(params, eta)
        return mean + log_scale.exp() * normal(mean.shape, stream, mean.dtype)

    def noise_variance(self, params, n_columns):
        if self.noise == "network":
            return None
        if not params:
            return torch.full((1, n_columns), self.noise**2, device="cpu", dtype=torch.float64)
        _, log_scale = self.as_normal(params, params["log_scale"])
        return (2 * log_scale).exp().expand(*log_scale.shape[:-1], n_columns)
