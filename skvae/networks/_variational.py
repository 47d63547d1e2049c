"""The MLP whose weights are uncertain."""

import math
from numbers import Real

import torch
from torch import Tensor

from skvae._random import normal
from skvae._settings import Interval
from skvae.networks._base import ACTIVATIONS
from skvae.networks._mlp import MLP

_LOG_STD = "_log_std"  # ends the names of the spreads of uncertain weights
_FIRST_LOG_STD = -5.0


class VariationalMLP(MLP):
    r"""An MLP whose weights and biases are uncertain: the decoder of full variational Bayes.

    Every weight has a normal prior and a normal posterior of its own, :math:`q(\theta) = N(\mu, \sigma^2)`, and training raises
    the bound on the evidence, :math:`\sum_i E_{q(\theta)}[\mathcal{L}_i(\theta)] - \mathrm{KL}(q(\theta) \,\|\, p(\theta))`.
    Draws of the weights are not common to a batch: every row gets its own through the sums that they enter (local
    reparameterisation), which makes gradients less noisy. Where the data do not say what a weight should be, it goes back to
    its prior, so that few rows cannot be overfitted.

    `score` averages densities over 32 draws of the weights, whatever the `score_method`, and falls short of the average over
    all of them where a row is odd; `sample` draws weights for every row; `inverse_transform` and `reconstruct` take the means
    of weights. The encoder, the noise of the likelihood and the parameters of the prior stay single numbers, and `alpha` does
    not apply to the decoder. `partial_fit` takes the rows of every call for the whole data, so that the KL of the weights
    counts once per call: weights stay less certain than after one `fit`.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(128,)
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
            name: mean + params[name + _LOG_STD].exp() * normal(tuple(mean.shape), stream, mean.dtype).to(mean.device)
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
