"""The Bernoulli likelihood."""

from numbers import Real

import torch
from torch._C._nn import softplus
from torch.nn.functional import logsigmoid

from skvae._random import uniform
from skvae._settings import Interval, StrOptions
from skvae.likelihoods._limits import Limited


class Bernoulli(Limited):
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
        **Limited._parameter_constraints,
        "binarize": [StrOptions({"dynamic"}), Interval(Real, 0, 1, closed="neither"), None],
    }
    is_density = False

    def __init__(self, limits=(0.0, 1.0), *, binarize=None):
        super().__init__(limits)
        self.binarize = binarize

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
