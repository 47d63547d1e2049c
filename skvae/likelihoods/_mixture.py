"""The mixture of normal distributions as a likelihood, for columns of several modes."""

from numbers import Integral

import torch
from torch import Tensor

from skvae._numbers import HALF_LOG_2PI
from skvae._random import normal, uniform
from skvae._settings import Interval
from skvae.likelihoods._heavy import Scaled
from skvae.likelihoods._numerics import along_rows, raw_of, sum_over_rows

_ROUNDS = 50  # of expectation maximisation, from which training starts
_FEWEST_ROWS, _MOST_ROWS = 2_000, 10_000  # it takes,
_CELLS = 2**21  # and how many cells, if that leaves the former
_OFTEN = 0.005  # share of the cells by which a value that stands out occurs more often than its neighbours
_WIDE_MODES = 3  # at the start, beside those of values that stand out
_SMALLEST_SHARE = 1e-3  # of a mode at the start
_FARTHEST = 60.0  # nats below the most probable mode of a cell, which leave a mode no share of it
_ONE_AND_A_BIT = 1 + 2.0**-23  # the number after one in single precision


class NormalMixture(Scaled):
    r"""A mixture of normal distributions for real-valued columns of any shape.

    .. math:: p(x_j \mid z) = \sum_k \pi_{jk}(z)\, N(x_j; \mu_{jk}(z), \sigma_{jk}^2)

    For columns of several modes, with values that occur very often beside a continuum (a column of incomes, most of which are
    zero), or skewed ones. The decoder gives weights and shifts of the modes, :math:`\mu_{jk}(z) = c_{jk} + r_{jk} a_{jk}(z)`;
    centres :math:`c`, reaches :math:`r` and standard deviations are learnt for every column and mode. Training starts from the
    mixture that fits each column by itself, whose narrow modes reach less far than its wide ones; a value that occurs far more
    often than its neighbours has a mode of its own, as long as three are left for the others.

    Parameters
    ----------
    n_components : int, default=5
        Number of modes per column.

    standardize : bool, default=True
        Whether the model sees columns with mean 0 and standard deviation 1. Scores are in the units of the data either way.

    floor : float, default=0.01
        Smallest standard deviation that learning can reach, in the model's units. A value that occurs again and again draws a
        mode towards the floor, and the score rises without bound as the floor falls: compare scores of equal floors only.

    References
    ----------
    Bishop, *Mixture Density Networks*, 1994.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import NormalMixture
    >>> VAETransformer(2, likelihood=NormalMixture(n_components=8))
    VAETransformer(likelihood=NormalMixture(n_components=8), n_components=2)
    """

    _parameter_constraints = {
        **Scaled._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
    }

    runs_along_rows = True

    def __init__(self, n_components=5, *, standardize=True, floor=0.01):
        super().__init__(standardize=standardize, floor=floor)
        self.n_components = n_components

    def n_outputs(self, n_columns):
        return 2 * self.n_components * n_columns

    def shapes(self, n_columns):
        return dict.fromkeys(("scale", "centre", "log_reach"), (1, self.n_components * n_columns))

    def start(self, params, x):
        """Fit a mixture to every column."""
        n_rows = max(_FEWEST_ROWS, min(_MOST_ROWS, _CELLS // (x.shape[-1] * self.n_components)))
        rows = x[:: -(-len(x) // n_rows)].double()
        weight, mean, scale = fit_mixtures(rows, self.n_components, self.floor)  # (d, k)
        params["scale"].copy_(raw_of(scale, self.floor).flatten())
        params["centre"].copy_(mean.flatten())
        params["log_reach"].copy_(scale.log().flatten())
        return torch.cat([weight.clamp(min=_SMALLEST_SHARE).log().flatten(), torch.zeros_like(mean).flatten()]).to(x.dtype)

    def _modes(self, values: Tensor) -> Tensor:
        """Arrange numbers by column and mode.  # (..., d * k, n) -> (..., d, k, n)"""
        return values.unflatten(-2, (-1, self.n_components))

    def _parts(self, params, eta):
        """Return log weights, means and log standard deviations of the modes.  # each (..., d, k, n or 1)

        The rows are filled up to whole vectors. Functions of modes run along the rows, which is faster than along a few modes.
        """
        logit, shift = (self._modes(part) for part in along_rows(eta).chunk(2, -2))
        reach = params["log_reach"].double().exp().to(eta.dtype)
        mean = torch.addcmul(self._modes(params["centre"].mT), self._modes(reach.mT), shift)
        return logit.log_softmax(-2), mean, self._modes(self.log_scale(params).to(eta.dtype).mT)

    def log_prob(self, params, eta, x):
        joint = _log_joint(*self._parts(params, eta), along_rows(x)[..., None, :])
        return _near_top(joint).logsumexp(-2)[..., : max(x.shape[-2], eta.shape[-2])].mT

    def derivative(self, params, eta, x, weight):
        log_weight, mean, log_scale = self._parts(params, eta)
        cells, weight = along_rows(x)[..., None, :], along_rows(weight)[..., None, :]
        share = _near_top(_log_joint(log_weight, mean, log_scale, cells)).softmax(-2)  # of each mode in each cell
        precision = _precision(log_scale)
        distance = (cells - mean).mul_(precision)
        weighted = share * weight
        by_logit = share.sub_(log_weight.exp_()).mul_(weight)
        by_log_scale = weighted * distance.square().sub_(1)
        by_mean = weighted.mul_(distance).mul_(precision)
        by_logit, by_log_scale, by_mean = (
            slopes.flatten(-3, -2)[..., : x.shape[-2]].mT for slopes in (by_logit, by_log_scale, by_mean)
        )  # (..., n, d * k)
        logit, shift = eta.chunk(2, -1)
        reach = params["log_reach"].double().exp()
        by_params = {
            "scale": self._by_raw_scale(params, by_log_scale),
            "centre": sum_over_rows(by_mean),
            "log_reach": reach * sum_over_rows(by_mean * shift),
        }
        logit.copy_(by_logit)
        torch.mul(by_mean, reach.to(eta.dtype), out=shift)
        return eta, by_params

    def mean(self, params, eta):
        log_weight, mean, _ = self._parts(params, eta)
        return (log_weight.exp() * mean).sum(-2)[..., : eta.shape[-2]].mT

    def sample(self, params, eta, stream):
        n = eta.shape[-2]
        log_weight, mean, log_scale = self._parts(params, eta)
        log_weight, mean, log_scale = (
            values.expand(mean.shape)[..., :n].movedim(-1, -3) for values in (log_weight, mean, log_scale)
        )  # (..., n, d, k)
        drawn = uniform(mean.shape[:-1], stream, eta.dtype)[..., None]
        mode = (drawn >= log_weight.exp().cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
        mean, log_scale = (values.gather(-1, mode)[..., 0] for values in (mean, log_scale))
        return mean + log_scale.exp() * normal(mean.shape, stream, eta.dtype)


def _log_joint(log_weight: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Return log density of x (..., d, 1, n) and mode, for each mode.  # (..., d, k, n)"""
    return log_weight - 0.5 * ((x - mean) * _precision(log_scale)).square() - log_scale - HALF_LOG_2PI


def _near_top(joint: Tensor) -> Tensor:
    """Return log densities (..., k, n) of which none is much below the largest: such modes count nothing.

    Their shares would be denormal numbers, with which processors compute many times slower. From a billion nats on, single
    precision cannot take off 60, and every mode would have an equal share, but for the factor.
    """
    top = joint.detach().amax(-2, keepdim=True)
    return joint.clamp(min=torch.add(-_FARTHEST, top, alpha=_ONE_AND_A_BIT))


def _precision(log_scale: Tensor) -> Tensor:
    """Return exp(-log_scale), rounded in the same way whatever else a call has to do."""
    return (-log_scale.double()).exp().to(log_scale.dtype)


def fit_mixtures(x: Tensor, n_modes: int, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normals to every column by expectation maximisation; missing cells do not count.

    Returns weights, means and standard deviations.  # (n, d) -> each (d, k)
    """
    mean, width = torch.stack([_first_modes(column[column.isfinite()], n_modes) for column in x.T], 1)
    scale, weight = width.clamp(min=floor), torch.full_like(mean, 1 / n_modes)
    observed = x.isfinite()[..., None]
    cells = torch.where(observed[..., 0], x, 0.0)[..., None]
    for _ in range(_ROUNDS):
        joint = _log_joint(weight.log()[..., None], mean[..., None], scale.log()[..., None], cells.movedim(0, -1))  # (d, k, n)
        share = joint.softmax(-2).movedim(-1, 0) * observed  # (n, d, k)
        count = share.sum(0) + 1e-9
        mean = (share * cells).sum(0) / count
        scale = ((share * (cells - mean).square()).sum(0) / count).sqrt().clamp(min=floor)
        weight = count / count.sum(-1, keepdim=True)
    return weight, mean, scale


def _first_modes(column: Tensor, n_modes: int) -> Tensor:
    """Return means and widths of modes: values that stand out, then half spread over other cells, half over distinct values.

    So a value that occurs very often gets a mode, and one far from the others as well.  # (2, k)
    """
    column = column if len(column) else column.new_zeros(1)
    often = _standing_out(column)[: max(0, n_modes - _WIDE_MODES)]
    others = column[~torch.isin(column, often)]
    others = others if len(others) else column
    n_wide = n_modes - len(often)
    n_distinct = -(-n_wide // 2)
    modes = [torch.stack([often, torch.zeros_like(often)])]
    for values, n in ((others.unique(), n_distinct), (others, n_wide - n_distinct)):
        levels = (torch.arange(n, device=column.device, dtype=column.dtype) + 0.5) / max(n, 1)
        low, middle, high = (torch.quantile(values, levels + step / (4 * n_wide)) for step in (-1, 0, 1))
        modes.append(torch.stack([middle, high - low]))
    return torch.cat(modes, -1)


def _standing_out(column: Tensor) -> Tensor:
    """Return the values that occur far more often than the two next ones on either side, those by the most first."""
    values, counts = column.unique(return_counts=True)
    excess = counts - _sum_around(counts.double()) / _sum_around(torch.ones_like(counts)).clamp(min=1)
    stands_out = (excess >= _OFTEN * len(column)) & (excess > 5 * counts.sqrt())  # five of its standard deviations
    return values[stands_out][excess[stands_out].argsort(descending=True, stable=True)]


def _sum_around(values: Tensor) -> Tensor:
    """Return the sum of the two numbers before each and the two after it, as many as there are."""
    padded = torch.nn.functional.pad(values, (2, 2))
    return padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]
