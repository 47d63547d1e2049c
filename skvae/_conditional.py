"""What a row's known cells say about its others: importance-weighted latents, and expectations, draws and quantiles by them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._families import Support
from skvae._inference import Rows, map_draws
from skvae._model import Model, Params
from skvae._modes import climb
from skvae._proposals import Component, normal_draws, total_log_mass
from skvae._random import choices, generator, normal, paired_normal, uniform

_MOST_GROUPS = 64  # of columns that are left out in turn, each to propose latents for the cells in it
_MOST_STAGES = 10  # in which latents are drawn, each closer to where the weights of those before say
_FEWEST_PER_STAGE = 25
_COUNTED = 0.1  # share of the latents that count, at least, when the next stage is fitted to them
_WANTED = 0.25  # share of the latents that count, below which those of a row are drawn again, from modes
_CLIMBS, _STEPS = 3, 8  # to the modes of a row
_STEPS_WITHOUT = 2  # to a mode of a row without some cells, of which q(z|x) or the prior mostly shows the place


class Pool:
    """Latents of rows, with weights that make p(z|x) of them, whatever they are draws of.

    The weight of z is p(x, z) / r(z), where x are the cells that are not missing and r is the mixture of all components that
    have given draws (the balance heuristic): weighted means tend to those under p(z|x) as the draws become many.
    """

    def __init__(self, model: Model, params: Params, batch: Batch, components: Sequence[Component], judged: Sequence[int]):
        self._model, self._params, self._batch, self._judged = model, params, batch, judged
        self._components: list[Component] = []
        self.z, self.eta, self.log_px, self._log_prior, self._log_mass = (batch.x.new_empty(0) for _ in range(5))
        self.add(components)

    def add(self, components: Sequence[Component]) -> None:
        """Add the draws of more components, decoded."""
        z = torch.cat([component.z for component in components])
        eta = self._model.decode(self._params, z, self._batch.x)
        log_px = self._model.likelihood.log_prob(self._params["likelihood"], eta, self._batch.x)
        log_prior = self._model.log_pz(self._params, z, self._batch.x).double()
        log_mass = total_log_mass([*self._components, *components], z, log_prior)
        if self._components:
            before = torch.logaddexp(self._log_mass, total_log_mass(components, self.z, self._log_prior))
            log_mass, log_prior = torch.cat([before, log_mass]), torch.cat([self._log_prior, log_prior])
            z, eta, log_px = torch.cat([self.z, z]), torch.cat([self.eta, eta]), torch.cat([self.log_px, log_px])
        self.z, self.eta, self.log_px, self._log_prior, self._log_mass = z, eta, log_px, log_prior, log_mass
        self._components += components

    @property
    def log_joint(self) -> Tensor:
        """The logs of p(x, z) at all latents, in double precision.  # (s, n)"""
        return self.log_px.sum(-1).double() + self._log_prior

    @property
    def log_w(self) -> Tensor:
        """The log weights of all latents, in double precision.  # (s, n)"""
        return (self.log_joint - self._log_mass + math.log(len(self.z))).clamp(min=-1e30)

    def log_w_without(self) -> Tensor:
        """Return the log weights under which latents belong to p(z|x_-j), the cells but one, for all judged.  # (s, n, d)"""
        return self.log_w[..., None] - self._log_px_of_known()

    def log_joint_without(self) -> Tensor:
        """Return the log densities of latents with the cells of rows, and with those but a group of columns.  # (v, s, n)"""
        own = torch.stack([group.sum(-1) for group in _groups(self._log_px_of_known())])
        return torch.cat([self.log_joint[None], self.log_joint - own])

    def _log_px_of_known(self) -> Tensor:
        return torch.where(self._batch.x.isnan(), 0.0, self.log_px.double())[..., self._judged]

    @property
    def effective_sample_size(self) -> Tensor:
        """As how many draws of p(z|x) the latents count.  # (n,)"""
        return _size(self.log_w)

    def at(self, places: Tensor) -> Tensor:
        """Return the latents at some places of every row.  # (m, n) -> (m, n, k)"""
        return self.z.gather(0, places[..., None].expand(-1, -1, self.z.shape[-1]))


class Proposal(NamedTuple):
    """How latents are drawn.

    Those of the first stage come from the prior, which bounds the weights, and from q(z|x), which alone can be far from p(z|x):
    in rows with holes, where training has seen few of them, and in rows with a wrong cell, so that where cells are to be judged
    q(z|x) without each of them in turn has its part. Those of each later stage come from normal distributions that are fitted,
    row by row, to the weighted latents of the stages before (adaptive multiple importance sampling: Cornuet, Marin, Mira &
    Robert, 2012). Where that takes too long to find p(z|x), the second stage comes from its modes, to which the best latents of
    the first are led.
    """

    n_draws: int
    seed: int
    judged: Sequence[int] = ()  # columns whose cells are judged, each given the others; the second stage then comes from modes
    adapts: bool = True  # whether there are later stages
    is_common: bool = True  # whether all rows have the same random numbers, so that a row does not depend on its neighbours
    from_prior: float = 0.25  # share of the first stage
    climbs: bool = False  # whether the second stage comes from modes

    def pool(self, model: Model, params: Params, batch: Batch, start: int) -> Pool:
        """Return the weighted latents of the rows of a tile that starts at row `start`."""
        stream = self.stream(start, device=batch.device)
        first, *later = self._stages() if self.may_adapt(model) else [self.n_draws]
        pool = Pool(model, params, batch, list(self._first(model, params, batch, first, stream)), self.judged)
        if later and (self.climbs or self.judged):
            pool.add(self._at_modes(model, params, batch, later.pop(0), pool, stream))
        for n in later:
            log_w = _mean_of_cells(pool.log_w_without()) if self.judged else pool.log_w
            pool.add([_fitted(pool.z, log_w, self._noise(n, len(batch), model.n_components, stream, torch.float64))])
        return pool

    def may_adapt(self, model: Model) -> bool:
        """Tell whether there are later stages: not where latents have limits, as normals have none."""
        return self.adapts and model.support == Support()

    def _stages(self) -> list[int]:
        """Return how many latents there are in each stage; where cells are judged, half of them come from modes."""
        if self.judged:
            first, at_modes = max(1, self.n_draws // 4), self.n_draws // 2
            return [n for n in (first, at_modes, self.n_draws - first - at_modes) if n]
        return _parts(self.n_draws, min(_MOST_STAGES, max(1 + self.climbs, self.n_draws // _FEWEST_PER_STAGE)))

    def stream(self, start: int, *place: str, device: torch.device) -> torch.Generator:
        """Return random numbers of all rows, or of the tile that starts at row `start`."""
        own = () if self.is_common else (start,)
        return generator(self.seed, "cells", *own, *place, *(("climbing",) if self.climbs else ()), device=device)

    def sizes(self, pool: Pool) -> Tensor:
        """Return as how many draws the latents count for a row, or for each cell that is judged.  # (n, 1 or d)"""
        return _size(pool.log_w_without()) if self.judged else pool.effective_sample_size[:, None]

    def _first(self, model: Model, params: Params, batch: Batch, n: int, stream: torch.Generator) -> Iterator[Component]:
        """Yield the components of the first stage."""
        n_prior = round(self.from_prior * n)
        if n_prior:
            shape = (n_prior, 1 if self.is_common else len(batch), model.n_components)
            z = model.sample_prior(params, shape, stream, batch.dtype, batch.x).expand(-1, len(batch), -1)
            yield Component(z, None)
        variants = _without_each(batch, self.judged) if self.judged else batch
        q = model.encode(params, variants).unflatten(0, (-1, len(batch)))  # (v, n, n_outputs)
        for of, part in zip(q, _parts(n - n_prior, len(q))):
            if part:
                noise = self._noise(part, len(batch), model.n_noise, stream, q.dtype)
                z = model.posterior.sample(of, noise)
                yield Component(z, lambda z, of=of: model.posterior.log_prob(of, z).sum(-1))  # type: ignore[misc]

    def _at_modes(
        self, model: Model, params: Params, batch: Batch, n: int, pool: Pool, stream: torch.Generator
    ) -> list[Component]:
        """Return draws of normal approximations at the modes to which the best latents of a pool lead."""
        if self.judged:
            places = pool.log_joint_without().argmax(1)  # (v, n)
            modes = climb(model, params, _without_each(batch, self.judged), pool.at(places).flatten(0, 1)[None], _STEPS_WITHOUT)
        else:
            places = pool.log_joint.topk(min(_CLIMBS, len(pool.z)), 0).indices
            modes = climb(model, params, batch, pool.at(places), _STEPS)
        mean, covariance = (of.flatten(0, 1).unflatten(0, places.shape) for of in (modes.z + modes.step, modes.covariance))
        parts = _parts(n, len(mean))
        noise = [self._noise(part, len(batch), model.n_components, stream, torch.float64) for part in parts if part]
        return [normal_draws(*of, batch.dtype) for of in zip(mean, covariance, noise)]

    def _noise(self, n: int, n_rows: int, n_noise: int, stream: torch.Generator, dtype: torch.dtype) -> Tensor:
        if self.is_common:
            return paired_normal(n, n_noise, stream, dtype)
        return normal((n, n_rows, n_noise), stream, dtype)


def _parts(total: int, n: int) -> list[int]:
    """Cut a number into n nearly equal whole ones."""
    return [total // n + (i < total % n) for i in range(n)]


def _without_each(batch: Batch, judged: Sequence[int]) -> Batch:
    """Return the rows, and after them the rows without the cells of each group of columns that are judged."""
    groups = _groups(torch.tensor(judged, device=batch.device))
    return Batch(torch.cat([batch.x, *(batch.x.index_fill(-1, group, torch.nan) for group in groups)]))


def _groups(cells: Tensor) -> tuple[Tensor, ...]:
    """Cut the columns of cells (..., d) into groups, of one column each unless there are many."""
    return cells.tensor_split(min(cells.shape[-1], _MOST_GROUPS), -1)


def _size(log_w: Tensor) -> Tensor:
    """Return the effective sample size of weights: as how many draws they count.  # (s, ...) -> (...)"""
    return 1 / log_w.softmax(0).square().sum(0)


def _mean_of_cells(log_w: Tensor) -> Tensor:
    """Return log weights of the mixture of what every cell's weights, (s, n, d), make of the latents.  # (s, n)"""
    return log_w.log_softmax(0).logsumexp(-1)


def _fitted(z: Tensor, log_w: Tensor, noise: Tensor) -> Component:
    """Return draws of the normal distributions with the weighted moments of the latents of every row."""
    share = (log_w * _exponent(log_w, _COUNTED * len(z))).softmax(0)  # (s, n)
    at = z.double()
    mean = (share[..., None] * at).sum(0)
    centred = (at - mean).movedim(0, -1)  # (n, k, s)
    covariance = (centred * share.mT[:, None]) @ centred.mT
    k = z.shape[-1]
    # in correlations, the less the fewer latents count per component
    trust = 1 / (1 + k * share.square().sum(0))[:, None, None]
    own = torch.eye(k, dtype=torch.bool, device=z.device)
    return normal_draws(mean, torch.where(own, covariance, trust * covariance), noise, z.dtype)


def _exponent(log_w: Tensor, size: float) -> Tensor:
    """Return the largest exponents up to one that leave weights of this effective sample size.  # (s, n) -> (n,)"""

    def has_size(log_exponent: Tensor) -> Tensor:
        return _size(log_w * log_exponent.exp()) >= size

    low, high = torch.full_like(log_w[0], -20.0), torch.zeros_like(log_w[0])
    whole = has_size(high)
    for _ in range(16):
        middle = (low + high) / 2
        enough = has_size(middle)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(whole, 1.0, low.exp())


PoolValues = Callable[[Pool, Params, Batch, torch.Generator], Tensor]


def _by_pools(function: PoolValues, model: Model, params: Params, rows: Rows, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Return what `function` makes of the pool of every row, (n, m), and what `proposal.sizes` tells, in double precision.

    Rows of which few latents count have another pool, from modes, if the first one was not.
    """
    n_sizes = max(1, len(proposal.judged))

    def mapped(proposal: Proposal, rows: Rows) -> Tensor:
        def values(params: Params, batch: Batch, start: int) -> Tensor:
            pool = proposal.pool(model, params, batch, start)
            found = function(pool, params, batch, proposal.stream(start, "values", device=batch.device))
            return torch.cat([found.double(), proposal.sizes(pool)], -1)

        return map_draws(values, model, params, rows, proposal.n_draws)

    found = mapped(proposal, rows)
    if not proposal.judged and proposal.may_adapt(model):
        few = (found[:, -1] < _WANTED * proposal.n_draws).nonzero()[:, 0]
        if len(few):
            found = found.index_copy(0, few, mapped(proposal._replace(climbs=True), rows.take(few)))
    return found[:, :-n_sizes], found[:, -n_sizes:]


def expectations(model: Model, params: Params, rows: Rows, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Return what `likelihood.expectation_of_missing` gives, averaged over p(z|x), and effective sample sizes.

    Shapes (n, n_expected), (n,), in double precision.
    """

    def mean(pool: Pool, params: Params, batch: Batch, stream: torch.Generator) -> Tensor:
        expected = model.likelihood.expectation_of_missing(params["likelihood"], pool.eta)
        return (pool.log_w.softmax(0)[..., None] * expected.double()).sum(0)

    expected, sizes = _by_pools(mean, model, params, rows, proposal)
    return expected, sizes[:, 0]


def draws(model: Model, params: Params, rows: Rows, proposal: Proposal, n_samples: int, noise: bool) -> tuple[Tensor, Tensor]:
    """Return rows drawn from p(x'|x), or means of p(x'|z) without noise, and the effective sample sizes.  # (n, m, d), (n,)"""

    def drawn(pool: Pool, params: Params, batch: Batch, stream: torch.Generator) -> Tensor:
        return _rows_of(model, params, batch, _resampled(pool, n_samples, stream), noise, stream)

    x, sizes = _by_pools(drawn, model, params, rows, proposal)
    return x.unflatten(-1, (n_samples, -1)), sizes[:, 0]


def draws_without_cells(model: Model, params: Params, rows: Rows, seed: int, n_samples: int, noise: bool) -> Tensor:
    """Return what `draws` tends to for rows that have conditions and no cells: latents come from the prior.  # (n, m, d)"""

    def drawn(params: Params, batch: Batch, start: int) -> Tensor:
        stream = generator(seed, "rows", start, device=batch.device)
        shape = n_samples, len(batch), model.n_components
        z = model.sample_prior(params, shape, stream, batch.dtype, batch.x)
        return _rows_of(model, params, batch, model.decode(params, z, batch.x), noise, stream).double()

    return map_draws(drawn, model, params, rows, n_samples).unflatten(-1, (n_samples, -1))


def _rows_of(model: Model, params: Params, batch: Batch, eta: Tensor, noise: bool, stream: torch.Generator) -> Tensor:
    """Return drawn rows or means of some decoded latents for every row, side by side.  # (m, n, n_outputs) -> (n, m * d)"""
    x = _drawn(model, params, batch, eta, stream) if noise else model.likelihood.mean(params["likelihood"], eta)
    return x.movedim(0, 1).flatten(1)


def _drawn(model: Model, params: Params, batch: Batch, eta: Tensor, stream: torch.Generator) -> Tensor:
    """Draw cells of rows given latents, those that are missing given that they are.  # (..., n, d)"""
    likelihood, own = model.likelihood, params["likelihood"]
    x = likelihood.sample(own, eta, stream)
    if not likelihood.reads_missing:
        return x
    return torch.where(batch.x.isnan(), likelihood.sample_missing(own, eta, stream), x)


def _resampled(pool: Pool, n_samples: int, stream: torch.Generator) -> Tensor:
    """Return the outputs of latents that are drawn by their weights.  # (m, n, n_outputs)"""
    weights = pool.log_w.softmax(0).mT  # (n, s)
    chosen = choices(weights, uniform((len(weights), n_samples), stream, weights.dtype)).mT  # (m, n)
    return pool.eta.gather(0, chosen[..., None].expand(-1, -1, pool.eta.shape[-1]))


def leave_one_out(model: Model, params: Params, rows: Rows, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """Return log p(x_j | x_-j), cells that are judged given the others, NaN if missing, and effective sample sizes.

    By p(x_-j) = E_r[p(x, z) / (p(x_j|z) r(z))], from the same latents for all cells. Shapes (n, d), in double precision.
    """

    def log_p(pool: Pool, params: Params, batch: Batch, stream: torch.Generator) -> Tensor:
        found = pool.log_w.logsumexp(0)[:, None] - pool.log_w_without().logsumexp(0)
        return torch.where(batch.x[..., proposal.judged].isnan(), torch.nan, found)

    return _by_pools(log_p, model, params, rows, proposal)


def quantiles(model: Model, params: Params, rows: Rows, proposal: Proposal, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return quantiles of p(x_j | x_-j), cells that are judged, missing or not, given the others, and effective sample sizes.

    Shapes (n, len(levels), d), (n, d).
    """

    def ends(pool: Pool, params: Params, batch: Batch, stream: torch.Generator) -> Tensor:
        rows = zip(pool.eta.split(1, 1), batch.x.split(1), strict=True)
        x = torch.cat([_sampled_row(model, params, Batch(row), eta, proposal) for eta, row in rows], 1)
        return weighted_quantiles(x[..., proposal.judged], pool.log_w_without(), levels).movedim(0, 1).flatten(1)

    found, sizes = _by_pools(ends, model, params, rows, proposal)
    return found.unflatten(-1, (len(levels), -1)), sizes


def _sampled_row(model: Model, params: Params, row: Batch, eta: Tensor, proposal: Proposal) -> Tensor:
    """Draw the cells of a row given each of its latents, with random numbers that all rows share.  # (s, 1, d)"""
    stream = generator(proposal.seed, "cells", "of a row", device=eta.device)
    return _drawn(model, params, row, eta, stream)


def weighted_quantiles(values: Tensor, log_w: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the smallest values up to which the share of the weights reaches the levels.  # (s, ...) -> (len(levels), ...)"""
    ordered, places = values.sort(0)
    reached = log_w.softmax(0).gather(0, places).cumsum(0)
    below = torch.stack([(reached < level).sum(0) for level in levels])
    return ordered.gather(0, below.clamp(max=len(values) - 1))
