"""The linear model's solution in closed form, from which training starts where the networks have a linear path."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skvae._batch import Batch, TrainingRows
from skvae._model import Model
from skvae.likelihoods import Gaussian, Likelihood, SelfMasking
from skvae.likelihoods._mixed import PerColumn
from skvae.networks import MLP, VariationalMLP
from skvae.posteriors import Normal
from skvae.priors import StandardNormal

_MAX_COLUMNS = 1000  # beyond which the covariance matrix costs more than the head start is worth
_MAX_ROWS = 20_000
_N_ITER = 5  # of factor analysis, with hidden layers: more rounds only cost time, as training goes on anyway
_N_ITER_WITH_HOLES = 20  # of EM,
_EM_CELLS = 2**20  # over so many products of factors at a time
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
    x, share = data.x.double(), _shares(data)
    mean = (share * x).sum(0, keepdim=True)
    centred = (x - mean) * share.sqrt()
    return mean, centred.mT @ centred


def covariance_with_holes(data: Batch, n_components: int, floor: float) -> tuple[Tensor, Tensor]:
    """Return mean (1, d) and covariance (d, d) of factor analysis, fitted to the cells that are there by EM.

    Every cell is explained by the factors of its row, of which the cells that are missing tell nothing (Rubin & Thayer, 1982).
    A column without a cell in these rows has mean zero and variance one, as if it were standardized.
    """
    known = ~data.x.isnan().all(0)
    if not known.all():
        mean, S = data.x.new_zeros((1, len(known))).double(), torch.ones_like(data.x[0]).double().diag()
        if known.any():
            mean[:, known], found = covariance_with_holes(Batch(data.x[:, known], data.weight), n_components, floor)
            S[known.outer(known)] = found.flatten()
        return mean, S
    x, share = data.x.double(), _shares(data)
    seen = ~x.isnan()
    total = (share * seen).sum(0)
    mean = (share * torch.where(seen, x, 0.0)).sum(0, keepdim=True) / total
    x = torch.where(seen, x - mean, 0.0)
    weighted = share * x
    square = (weighted * x).sum(0)
    start = factor_analysis(weighted.mT @ x, n_components, "feature", floor, _N_ITER)
    loadings = torch.cat([start.loadings, torch.zeros_like(mean)])  # (k + 1, d), the last row moves the mean
    psi = start.noise_variance[0]
    n_rows = max(1, _EM_CELLS // len(loadings) ** 2)
    for _ in range(_N_ITER_WITH_HOLES):
        gram, cross = x.new_zeros(()), x.new_zeros(())
        for cells, present, of_rows in zip(x.split(n_rows), seen.split(n_rows), share.split(n_rows)):
            more_gram, more_cross = _expected_products(cells, present, of_rows, loadings, psi)
            gram, cross = gram + more_gram, cross + more_cross
        loadings = torch.linalg.solve(gram, cross).mT
        psi = ((square - (loadings.mT * cross).sum(1)) / total).clamp(min=floor**2)
    return mean + loadings[-1:], loadings[:-1].mT @ loadings[:-1] + psi.diag()


def _expected_products(x: Tensor, seen: Tensor, share: Tensor, loadings: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Return what rows add to the products of factors (d, k + 1, k + 1), and of factors with cells (d, k + 1), of columns."""
    k = len(loadings) - 1
    products = torch.einsum("jd,ld->djl", loadings[:k], loadings[:k]).flatten(1)  # (d, k * k)
    precision = torch.eye(k, device=x.device, dtype=x.dtype) + ((seen / psi) @ products).unflatten(1, (k, k))
    variance = torch.linalg.inv(precision)  # (n, k, k) of the factors of each row
    residual = torch.where(seen, x - loadings[k], 0.0) / psi
    factors = (variance @ (residual @ loadings[:k].mT)[..., None])[..., 0]  # (n, k) their means
    factors = torch.cat([factors, torch.ones_like(share)], 1)
    second = factors[:, :, None] * factors[:, None, :]
    second[:, :k, :k] += variance
    gram = ((share * seen).mT @ second.flatten(1)).unflatten(1, (k + 1, k + 1))
    return gram, (share * x).mT @ factors


def _shares(data: Batch) -> Tensor:
    """Return the share of each row in the total weight.  # (n, 1)"""
    share = data.x.new_ones(len(data)) if data.weight is None else data.weight
    return (share.double() / share.double().sum())[:, None]


def shrunk(S: Tensor, mean: Tensor, data: Batch) -> Tensor:
    """Return the covariance S pulled towards a multiple of the identity as far as Ledoit & Wolf (2004) advise.

    With few rows the maximum-likelihood covariance promises directions without noise that new rows do not respect.
    """
    data = data.slice(0, _MAX_ROWS)
    centred = data.x.double() - mean
    fourth = (_shares(data)[:, 0] * torch.where(centred.isnan(), 0.0, centred).square().sum(1).square()).sum()
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


def _only_likelihood(model: Model) -> Likelihood:
    """Return the likelihood of all values, also where cells may be missing."""
    likelihood = model.likelihood
    likelihood = likelihood.likelihoods[0] if isinstance(likelihood, PerColumn) and len(likelihood.widths) == 1 else likelihood
    return likelihood.of_values if isinstance(likelihood, SelfMasking) else likelihood


def can_start_linearly(model: Model) -> bool:
    """Tell whether the model contains the linear-Gaussian one and its solution is cheap."""
    pieces = model.pieces
    networks = (pieces.encoder, pieces.decoder)
    likelihood = _only_likelihood(model)
    return (
        all(type(n) in (MLP, VariationalMLP) and n.has_linear_path() for n in networks)
        and type(likelihood) is Gaussian
        and likelihood.link == "identity"
        and type(pieces.posterior) is Normal
        and type(pieces.prior) is StandardNormal
        and 0 < model.n_columns <= _MAX_COLUMNS
    )


def start_linearly(model: Model, flat: Tensor, rows: TrainingRows) -> None:
    """Write the linear solution for (at most 20,000 of) the rows into a fresh parameter vector."""
    likelihood, data = _only_likelihood(model), rows.head(_MAX_ROWS)
    has_holes = likelihood is not model.likelihood
    if has_holes:
        mean, S = covariance_with_holes(data.slice(0, _MAX_ROWS), model.n_components, likelihood.floor)
    else:
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
    weight = torch.cat([solution.projection, torch.zeros_like(solution.projection)], 1)
    of_marks = weight.new_zeros(
        (model.inputs(params, data.x[:1]).shape[1] - len(weight), weight.shape[1])
    )  # which cells are missing
    model.encoder.set_linear(
        params["encoder"],
        torch.cat([weight, of_marks]),
        torch.cat([-mean @ solution.projection, solution.log_scale], 1),
    )
    log_noise = 0.5 * solution.noise_variance.log()
    weight, bias = solution.loadings, mean
    if likelihood.noise == "network":
        weight, bias = torch.cat([weight, torch.zeros_like(weight)], 1), torch.cat([bias, log_noise], 1)
    model.decoder.set_linear(params["decoder"], weight, bias)
    own = (
        {name.removeprefix("0_"): value for name, value in params["likelihood"].items()} if has_holes else params["likelihood"]
    )
    likelihood.set_noise(own, log_noise)
