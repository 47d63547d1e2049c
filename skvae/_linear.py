"""The linear model's solution in closed form, from which training starts where the networks have a linear path."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skvae._batch import Batch, Rows
from skvae._model import Model
from skvae.likelihoods import Gaussian
from skvae.networks import MLP, VariationalMLP
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

_MAX_COLUMNS = 1000  # beyond which the covariance matrix costs more than the head start is worth
_MAX_ROWS = 20_000
_N_ITER = 5  # of factor analysis, with hidden layers: more rounds only cost time, as training goes on anyway
_N_ITER_LINEAR = 2000  # where there are none, and the solution is the answer


@dataclass(frozen=True)
class LinearSolution:
    """p(x|z) = N(z @ loadings, noise) and its exact posterior N(x @ projection, diag(scale)**2), for centred x."""

    loadings: Tensor  # (k, d)
    noise_variance: Tensor  # (1, d)
    projection: Tensor  # (d, k)
    log_scale: Tensor  # (1, k)


def covariance(data: Batch) -> tuple[Tensor, Tensor]:
    """Return mean (1, d) and covariance (d, d), over N, of (at most 20,000 of) the rows, in float64."""
    data = data.slice(0, _MAX_ROWS)
    x = data.x.double()
    share = x.new_ones((len(x), 1)) if data.weight is None else data.weight[:, None]
    share = share.double() / share.double().sum()
    mean = (share * x).sum(0, keepdim=True)
    centred = (x - mean) * share.sqrt()
    return mean, centred.mT @ centred


def shrunk(S: Tensor, mean: Tensor, data: Batch) -> Tensor:
    """Return the covariance S pulled towards a multiple of the identity as far as Ledoit & Wolf (2004) advise.

    With few rows the maximum-likelihood covariance promises directions without noise that new rows do not respect.
    """
    data = data.slice(0, _MAX_ROWS)
    share = S.new_ones(len(data)) if data.weight is None else data.weight
    share = share.double() / share.double().sum()
    fourth = (share * (data.x.double() - mean).square().sum(1).square()).sum()
    target = S.diagonal().mean() * torch.eye(len(S), device=S.device, dtype=S.dtype)
    spread = (S - target).square().sum()
    error = (fourth - S.square().sum()) / len(data)
    share_of_target = (error / spread).clamp(0, 1) if spread > 0 else 0.0
    return S + share_of_target * (target - S)


def factor_analysis(
    S: Tensor, n_components: int, noise: str | float, floor: float, n_iter: int = _N_ITER_LINEAR
) -> LinearSolution:
    """Maximise the likelihood of the linear model for a covariance matrix S.

    `noise` is "shared" for probabilistic PCA, a number for a fixed standard deviation, or "feature" for factor analysis, where
    at most `n_iter` rounds of the fixed-point iteration are taken. Components come in the basis in which the posterior
    covariance is diagonal, so that a mean-field encoder is exact (Tipping & Bishop, 1999; Lucas et al., 2019).
    """
    d, k = len(S), min(n_components, len(S))
    if isinstance(noise, float):
        psi = S.new_full((d,), max(noise, floor) ** 2)
    elif noise == "shared":
        eigenvalues = torch.linalg.eigvalsh(S)
        left_over = eigenvalues[: d - k].mean() if k < d else eigenvalues[0] * 0.5
        psi = left_over.clamp(min=floor**2).expand(d).clone()
    else:
        psi = (0.5 * S.diagonal()).clamp(min=floor**2)
        for _ in range(n_iter):
            loadings, _, _ = _components(S, psi, k)
            before, psi = psi, (S.diagonal() - loadings.square().sum(0)).clamp(min=floor**2)
            if torch.allclose(psi, before, rtol=1e-7, atol=0):
                break
    loadings, directions, ratio = _components(S, psi, k)
    projection = directions * ((ratio - 1).sqrt() / ratio) / psi.sqrt()[:, None]
    rest = n_components - k
    return LinearSolution(
        torch.cat([loadings, S.new_zeros((rest, d))]),
        psi[None],
        torch.cat([projection, S.new_zeros((d, rest))], 1),
        torch.cat([-0.5 * ratio.log(), S.new_zeros(rest)])[None],
    )


def _components(S: Tensor, psi: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return loadings (k, d), unit directions (d, k) and signal-to-noise eigenvalues (k,) given the noise variances."""
    scale = psi.sqrt()
    eigenvalues, vectors = torch.linalg.eigh(S / torch.outer(scale, scale))
    ratio = eigenvalues.flip(0)[:k].clamp(min=1.0)
    directions = vectors.flip(1)[:, :k]
    directions = directions * torch.where(directions.sum(0) < 0, -1.0, 1.0)
    return (directions * (ratio - 1).sqrt()).mT * scale, directions, ratio


def can_start_linearly(model: Model) -> bool:
    """Tell whether the model contains the linear-Gaussian one and its solution is cheap."""
    pieces = model.pieces
    networks = (pieces.encoder, pieces.decoder)
    return (
        all(type(n) in (MLP, VariationalMLP) and n.has_linear_path() for n in networks)
        and type(pieces.likelihood) is Gaussian
        and pieces.likelihood.link == "identity"
        and type(pieces.posterior) is Normal
        and type(pieces.prior) is StandardNormal
        and 0 < model.n_columns <= _MAX_COLUMNS
    )


def start_linearly(model: Model, flat: Tensor, rows: Rows) -> None:
    """Write the linear solution for (at most 20,000 of) the rows into a fresh parameter vector."""
    likelihood, data = model.likelihood, rows.head(_MAX_ROWS)
    mean, S = covariance(data)
    if not S.isfinite().all():  # cells whose squares overflow: training will say so
        return
    noise = "feature" if likelihood.noise == "network" else likelihood.noise
    if model.encoder.n_hidden() or model.decoder.n_hidden():
        S = shrunk(S, mean, data)
        solution = factor_analysis(S, model.n_components, noise, likelihood.floor, _N_ITER)
    else:
        solution = factor_analysis(S, model.n_components, noise, likelihood.floor)
    params = model.unpack(flat)
    zero = torch.zeros_like(solution.projection)
    model.encoder.set_linear(
        params["encoder"],
        torch.cat([solution.projection, zero], 1),
        torch.cat([-mean @ solution.projection, solution.log_scale], 1),
    )
    log_noise = 0.5 * solution.noise_variance.log()
    weight, bias = solution.loadings, mean
    if likelihood.noise == "network":
        weight, bias = torch.cat([weight, torch.zeros_like(weight)], 1), torch.cat([bias, log_noise], 1)
    model.decoder.set_linear(params["decoder"], weight, bias)
    likelihood.set_noise(params["likelihood"], log_noise)
