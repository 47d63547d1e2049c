r"""Closed forms of the bound and its gradient, for many models of one structure at once, on buffers that are reused.

The standard case is an MLP on either side of a normal posterior with diagonal covariance, and a prior that is standard normal
or gives its derivatives. It is trained without autograd: for small networks the arithmetic of a step takes microseconds, and
what remains is the number of calls. Every number is the one that :mod:`skvae.objectives` gives; a test compares values and
gradients.

A batch holds, for each of `m` models, `n` rows :math:`x`, their weights :math:`c` (which contain the division by the number of
rows; 0 marks a row that only fills up), and `s` draws of noise :math:`\epsilon` per row. Going forward,

.. math:: (\mu, \log\sigma) = f(x), \qquad z = \mu + \sigma\epsilon, \qquad \eta = g(z), \qquad \ell = \log p(x \mid \eta),

where :math:`g` reads the conditions of a conditional model beside z, and with the weight :math:`\beta` of the KL the objective
of a row is

===============  =====================================================================================================
ELBO, analytic   mean of :math:`\ell` over the draws, less :math:`\beta\,(\frac12(\mu^2 + \sigma^2 - 1) - \log\sigma)`
ELBO, sampled    mean of :math:`\ell - \beta\kappa` over the draws
IWAE             log of the mean of :math:`\exp(\ell - \kappa)`
===============  =====================================================================================================

where :math:`\kappa = \log q(z|x) - \log p(z)`, which is :math:`\frac12(z^2 - \epsilon^2) - \log\sigma` for a standard normal
prior. Only that one has an analytic KL.

Going backward, a draw counts with :math:`w = c/s`, in IWAE with :math:`w = c\,\mathrm{softmax}(\ell - \kappa)`. The likelihood
gives :math:`\delta_\eta = -w\,\partial\ell/\partial\eta`, the decoder turns it into :math:`\delta_z`, and

.. math:: \delta_\mu = \textstyle\sum_s \delta_z + \beta c\mu, \qquad
          \delta_{\log\sigma} = \textstyle\sum_s \delta_z\,\sigma\epsilon + \beta c\,(\sigma^2 - 1)

for the analytic KL (of a component within its free bits, :math:`\beta = 0`); for a sampled one :math:`\delta_z` gains
:math:`-\beta w\,\partial\log p(z)/\partial z`, which is :math:`\beta w z` for a standard normal prior, and instead of the
second terms :math:`\delta_{\log\sigma}` loses :math:`\beta c`. In the doubly reparameterised gradient of IWAE all goes through
:math:`z`: :math:`\delta_z` gains :math:`-w (\partial\log p(z)/\partial z + \epsilon / \sigma)`, then the softmax as a factor,
and there are no second terms. The encoder turns both into gradients of its weights. These are the
slopes of *minus* the objective, which an optimizer descends.

Models of other widths share a batch: missing units have weights of zero, and as every activation maps 0 to 0 they stay at
zero, to the last bit. Widths fill cache lines (half of one for components, as a mean and a log scale of each lie in one layer;
whole vectors for hidden units), and functions of single numbers run over whole vectors, because BLAS and torch round a rest in
another way: so alone or in company, a model gets the same numbers.

Shapes: `m` models, `n` rows, `s` draws, `r = s * n` rows of the decoder, `d` columns, `k` components.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skvae._devices import has_wide_vectors
from skvae._model import Layout, Model, Params
from skvae._numbers import CACHE_LINE, HALF_LOG_2PI, VECTOR, rounded_up
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE, Objective
from skvae.posteriors import LOG_SCALE_RANGE, Normal
from skvae.priors import Prior, StandardNormal

# Widths are multiples of a cache line: products with such widths do not depend on what is beside them. The number of
# components, whose means and log scales lie in one layer, and that of conditions are multiples of half of it.
_HALF_LINE = CACHE_LINE // 2
_FEWEST_ROWS = 8  # below which products take another way
_FEWEST_COMPONENTS = _HALF_LINE if has_wide_vectors() else CACHE_LINE  # as well
_FAINTEST = 1e-30  # below which slopes change nothing; products with denormal numbers take up to ten times as long
_PARAMETERS_OF_INPUT = {"skip", "weight0"}
_NETWORKS = ("encoder", "decoder")


# --- which models, and how their parameters lie ----------------------------------------------------------------------


def supports(model: Model, objective: Objective) -> bool:
    """Tell whether training this model by this objective has a closed form."""
    return (
        has_slopes_of_latents(model)
        and type(model.encoder) is MLP
        and type(model.posterior) is Normal
        and type(objective) in (ELBO, IWAE)
        and (_is_standard(model.prior) or getattr(objective, "kl", "auto") != "analytic")
        and not (getattr(objective, "free_bits", 0) and _samples_kl(model.prior, objective))
    )


def has_slopes_of_latents(model: Model) -> bool:
    """Tell whether the slope of log p(x, z) by z has a closed form."""
    return (
        type(model.decoder) is MLP
        and (_is_standard(model.prior) or _has_derivatives(model.prior))
        and model.likelihood.offers("derivative")
        and model.n_columns > 0
    )


def _is_standard(prior: Prior) -> bool:
    return type(prior) is StandardNormal


def _has_derivatives(prior: Prior) -> bool:
    """Tell whether the prior's own parameters say all about it, and it gives the derivatives."""
    return type(prior).given is Prior.given and prior.offers("derivative") and prior.offers("log_prob_rows")


def _samples_kl(prior: Prior, objective: ELBO) -> bool:
    """Tell whether an objective averages the KL over draws."""
    return objective.kl == "monte_carlo" or not _is_standard(prior)


def structure(model: Model, objective: Objective) -> tuple:
    """Return what models and objectives must have in common to share a batch; widths and the weight of the KL may differ."""
    networks = [(len(network.widths()), network.activation, network.skip) for network in (model.encoder, model.decoder)]
    settings = [getattr(objective, name, None) for name in ("kl", "free_bits", "gradient")]
    estimator = (type(objective), objective.n_samples, *settings)
    return (*networks, model.prior, model.likelihood.structure(), model.n_columns, estimator)


def widened(models: list[Model]) -> Model:
    """Return a model of the same structure in which each of `models` has room."""
    encoder, decoder = (_widened([getattr(model, name) for model in models]) for name in _NETWORKS)
    pieces = replace(models[0].pieces, encoder=encoder, decoder=decoder)
    n_components = max(_FEWEST_COMPONENTS, rounded_up(max(model.n_components for model in models), _HALF_LINE))
    return Model(pieces, models[0].n_columns, n_components, models[0].seed)


def in_units_of(models: Sequence[Model], wide: Model) -> Model:
    """Return the wide model with the units in which each of `models` sees its columns."""
    likelihoods = [model.likelihood for model in models]
    pieces = replace(wide.pieces, likelihood=likelihoods[0].of_all(likelihoods))
    return Model(pieces, wide.n_columns, wide.n_components, wide.seed)


def _widened(networks: list[MLP]) -> MLP:
    widest = [max(same_layer) for same_layer in zip(*(network.widths() for network in networks), strict=True)]
    widths = [rounded_up(width, VECTOR) for width in widest]
    return MLP(tuple(widths), activation=networks[0].activation, skip=networks[0].skip)


def aligned_layout(wide: Model) -> Layout:
    """Return the layout of a widened model: columns fill lines, conditions half lines, and parameters begin on vectors.

    Biases follow their weights at once.
    """
    to_columns = _parameters_of_output(wide.decoder)
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for (piece, name), (n_rows, n_columns) in wide.layout.shapes.items():
        if piece == "decoder":
            n_rows = wide.n_components + rounded_up(wide.n_given, _HALF_LINE) if name in _PARAMETERS_OF_INPUT else n_rows
            n_columns = rounded_up(n_columns, CACHE_LINE) if name in to_columns else n_columns
        if piece == "conditions":
            n_rows, n_columns = rounded_up(n_rows, _HALF_LINE), rounded_up(n_columns, CACHE_LINE)
        shapes[piece, name] = n_rows, n_columns
    return Layout(shapes, VECTOR, attached={(piece, name) for piece, name in shapes if name.startswith("bias")})


def _parameters_of_output(network: MLP) -> set[str]:
    return {"skip", f"weight{network.n_hidden()}", f"bias{network.n_hidden()}"}


def positions(model: Model, wide: Model) -> Tensor:
    """Return where each parameter of `model` lies in the aligned vector of a widened model.  # (model.layout.size,)"""
    layout = aligned_layout(wide)
    places = layout.views(torch.arange(layout.size, device="cpu"))
    to_posterior = _parameters_of_output(model.encoder)
    chosen = []
    for (piece, name), (n_rows, n_columns) in model.layout.shapes.items():
        place = places[piece, name]
        if piece == "decoder" and name in _PARAMETERS_OF_INPUT:  # latents, then conditions
            place = torch.cat([place[: model.n_components], place[wide.n_components :]])
        place = place[:n_rows]
        if piece == "encoder" and name in to_posterior:  # means in the first half, log scales in the second
            place = place.unflatten(-1, (2, wide.n_components))[..., : model.n_components].flatten(-2)
        chosen.append(place[:, :n_columns].reshape(-1))
    return torch.cat(chosen)


def padded_rows(n_rows: int) -> int:
    """Return the number of rows of a batch in which the numbers of every layer fill whole vectors."""
    return max(rounded_up(n_rows, VECTOR // _HALF_LINE), _FEWEST_ROWS)


# --- layers ----------------------------------------------------------------------------------------------------------


Call = Callable[[], object]


def run(calls: list[Call]) -> None:
    """Do what calls do, one after the other."""
    for call in calls:
        call()


def affine(x: Tensor, layer: Tensor, out: Tensor) -> Call:
    """Return what writes x @ weight + bias: x ends in a column of ones, and the layer in the row of its bias.

    One product instead of a product and a sum, and its slope is that of weight and bias.
    """
    return partial(torch.bmm, x, layer, out=out)


def affine_slope(x: Tensor, delta: Tensor, out: Tensor) -> Call:
    """Return what writes the slope of a layer: every row adds the outer product of its input and its `delta`."""
    return partial(torch.bmm, x.mT, delta, out=out)


def affine_delta(delta: Tensor, layer: Tensor, out: Tensor) -> Call:
    """Return what writes the slope by the input of a layer, without its column of ones."""
    return partial(torch.bmm, delta, layer[:, : out.shape[-1]].mT, out=out)


def with_ones(m: int, n: int, width: int, like: Tensor) -> Tensor:
    """Return zeros for n rows of m models, which end in a column of ones and begin on half lines.  # (m, n, width + 1)"""
    rows = like.new_zeros((m, n, rounded_up(width + 1, _HALF_LINE)))[..., : width + 1]
    rows[..., width] = 1.0
    return rows


class Activation(NamedTuple):
    """The calls of a function of single numbers that maps 0 to 0, and those that take slopes back to its input, in place."""

    forward: Callable[[Tensor, Tensor], list[Call]]  # (x, out), of which x may be overwritten
    backward: Callable[[Tensor, Tensor], list[Call]]  # (delta, x as `forward` left it)


_aten = torch.ops.aten
_hardshrink = _aten.hardshrink.out
_relu_backward = _aten.threshold_backward.grad_input
_tanh_backward, _silu_backward, _gelu_backward = (
    getattr(_aten, f"{name}_backward").grad_input for name in ("tanh", "silu", "gelu")
)
_silu, _gelu = (getattr(torch._C._nn, name) for name in ("silu", "gelu"))  # of torch.nn.functional, with an argument `out`


def _gelu_by_copy(x: Tensor, out: Tensor) -> list[Call]:
    """Return calls whose function fills whole vectors: `out` has gaps, at which it would be another one and slower."""
    whole = torch.empty_like(x)
    return [partial(_gelu, x, out=whole), partial(out.copy_, whole)]


ACTIVATIONS = {
    "relu": Activation(
        lambda x, out: [partial(torch.clamp_min, x, 0.0, out=out)],
        lambda delta, x: [partial(_relu_backward, delta, x, 0, grad_input=delta)],
    ),
    "tanh": Activation(
        lambda x, out: [x.tanh_, partial(out.copy_, x)],
        lambda delta, y: [partial(_tanh_backward, delta, y, grad_input=delta)],
    ),
    "silu": Activation(
        lambda x, out: [partial(_silu, x, out=out)],
        lambda delta, x: [partial(_silu_backward, delta, x, grad_input=delta)],
    ),
    "gelu": Activation(_gelu_by_copy, lambda delta, x: [partial(_gelu_backward, delta, x, grad_input=delta)]),
    "identity": Activation(lambda x, out: [partial(out.copy_, x)], lambda delta, x: []),
}


class Network:
    """An MLP bound to its layers, to the rows that it reads, which end in a column of ones, and to buffers for what follows.

    All it does is a list of calls that is put together once: finding their arguments anew takes a small step as long as a third
    of its products.
    """

    def __init__(self, network: MLP, params: dict[str, Tensor], x: Tensor):
        self.layers = [params[f"layer{i}"] for i in range(network.n_hidden() + 1)]
        self.skip, self.activation = params.get("skip"), ACTIVATIONS[network.activation]
        m, n, _ = x.shape
        self.sums = [x.new_zeros((m, n, layer.shape[-1])) for layer in self.layers]
        self.inputs = [x, *(with_ones(m, n, total.shape[-1], x) for total in self.sums[:-1])]  # of the layers
        *_, self.out = self.sums
        self.upwards: list[Call] = []
        self.downwards: list[Call] = []
        for i, (layer, total) in enumerate(zip(self.layers, self.sums)):
            if i:
                self.upwards += self.activation.forward(self.sums[i - 1], self.inputs[i][..., :-1])
            self.upwards.append(affine(self.inputs[i], layer, total))
        if self.skip is not None:
            self.upwards.append(partial(self.out.baddbmm_, x[..., :-1], self.skip))

    def learn(self, slopes: dict[str, Tensor], delta: Tensor, x_delta: Tensor | None = None) -> None:
        """Let `backward` write the slopes of all layers, and those by x, from the slopes `delta` by the output.

        Without slopes, those by x alone.
        """
        calls, above = self.downwards, delta
        for i in reversed(range(len(self.layers))):
            if slopes:
                calls.append(affine_slope(self.inputs[i], above, slopes[f"layer{i}"]))
            if i:
                below = torch.zeros_like(self.sums[i - 1])
                calls.append(affine_delta(above, self.layers[i], below))
                calls += self.activation.backward(below, self.sums[i - 1])
                above = below
        if x_delta is not None:
            calls.append(affine_delta(above, self.layers[0], x_delta))
            if self.skip is not None:
                calls.append(partial(x_delta.baddbmm_, delta, self.skip.mT))
        if "skip" in slopes:
            calls.append(partial(torch.bmm, self.inputs[0][..., :-1].mT, delta, out=slopes["skip"]))

    def forward(self) -> None:
        """Map the rows to `out` (m, n, n_out)."""
        run(self.upwards)

    def backward(self) -> None:
        """Write the slopes, after `forward`; see `learn`."""
        run(self.downwards)


# --- the bound -------------------------------------------------------------------------------------------------------


class Kernel:
    """The bound of `m` models, bound to their parameters and to the shape of a batch; after `learn`, its gradient as well."""

    objective: Objective
    kl_weight: Tensor
    slopes: Params
    mean_delta: Tensor
    log_scale_delta: Tensor

    def __init__(self, wide: Model, params: Params, n_rows: int, n_samples: int):
        self.model, self.likelihood, self.params = wide, wide.likelihood, params["likelihood"]
        self.read = partial(wide.inputs, params)
        self.prior, self.prior_params = wide.prior, params.get("prior", {})
        s, n, k = n_samples, n_rows, wide.n_components
        layers = _by_layers(params)
        like = layers["encoder"]["layer0"]
        m, new_zeros = len(like), like.new_zeros
        encoded = with_ones(m, n, like.shape[1] - 1, like)
        decoded = with_ones(m, s * n, k + rounded_up(wide.n_given, _HALF_LINE), like)
        self.encoder = Network(wide.encoder, layers["encoder"], encoded)
        self.decoder = Network(wide.decoder, layers["decoder"], decoded)
        self.inputs, self.decoded_delta = encoded[..., :-1], torch.zeros_like(decoded[..., :-1])
        self.mean, log_scale = self.encoder.out.chunk(2, -1)  # (m, n, k)
        self.log_scale, self.scale, self.spread = new_zeros((m, n, k)), new_zeros((m, n, k)), new_zeros((m, s, n, k))
        self.scale_per_draw = self.scale[:, None]
        self.eta = self.decoder.out[..., : self.likelihood.n_outputs(wide.n_columns)]  # (m, r, n_outputs)
        self.codes, self.codes_delta = decoded[..., :k], self.decoded_delta[..., :k]  # (m, r, k)
        self.z, self.z_delta = (codes.unflatten(1, (s, n)) for codes in (self.codes, self.codes_delta))
        if wide.n_given:
            self.given = new_zeros((m, n, rounded_up(wide.n_given, _HALF_LINE)))
            self.decoded_given = decoded[..., k:-1].unflatten(1, (s, n))
        if wide.moves_weights:
            self.by_given = params["conditions"]["log_odds"]
            self.log_odds, self.log_odds_delta = (new_zeros((m, n, self.by_given.shape[-1])) for _ in range(2))
            self.prior_params = {**self.prior_params, "log_odds": new_zeros((m, s * n, wide.prior.n_weights))}
        self.encoder.upwards.append(partial(torch.clamp, log_scale, *LOG_SCALE_RANGE, out=self.log_scale))
        self.encoder.upwards.append(partial(torch.exp, self.log_scale, out=self.scale))
        self.decoder.upwards.insert(0, partial(torch.add, self.mean[:, None], self.spread, out=self.z))

    def forward(self, x: Tensor, noise: Tensor) -> None:
        """Encode rows x (m, n, d), draw z with noise (m, s, n or 1, k) and decode."""
        self.inputs.copy_(self.read(x))
        self.encoder.forward()
        torch.mul(self.scale_per_draw, noise, out=self.spread)
        if self.model.n_given:
            self._read_conditions(x)
        self.decoder.forward()

    def _read_conditions(self, x: Tensor) -> None:
        """Let decoder and prior read the conditions of rows."""
        self.given[..., : self.model.n_given].copy_(self.likelihood.given(self.params, x))
        self.decoded_given.copy_(self.given[:, None])
        if self.model.moves_weights:
            torch.bmm(self.given, self.by_given, out=self.log_odds)
            per_draw = self.prior_params["log_odds"].unflatten(1, self.z.shape[1:3])
            per_draw.copy_(self.log_odds[:, None, :, : per_draw.shape[-1]])

    def log_px(self, x: Tensor, is_last: bool = False) -> Tensor:
        """Return log p(x|z) of every draw, after `forward`; faster where nobody needs its results afterwards.  # (m, s, n)"""
        if is_last and self.likelihood.offers("log_prob_rows"):
            eta = self.eta.unflatten(1, self.z.shape[1:3])  # (m, s, n, n_outputs)
            params = {name: value[:, None] for name, value in self.params.items()}
            return self.likelihood.log_prob_rows(params, eta, x[:, None])
        rows = self.likelihood.log_prob(self.params, self.eta, _per_draw(x, self.z.shape[1])).sum(-1)
        return rows.view(self.z.shape[:3])

    def kl_per_component(self) -> Tensor:
        """Return KL(q(z|x) || p(z)) per component in closed form, after `forward`.  # (m, n, k)"""
        return 0.5 * (self.mean.square() + self.scale.square() - 1) - self.log_scale

    def log_ratio(self, noise: Tensor) -> Tensor:
        """Return log q(z|x) - log p(z) of every draw, whose mean estimates the KL, after `forward`.  # (m, s, n)"""
        if _is_standard(self.prior):
            return (0.5 * (self.z.square() - noise.square()) - self.log_scale[:, None]).sum(-1)
        log_q = -0.5 * noise.square() - self.log_scale[:, None] - HALF_LOG_2PI
        return log_q.sum(-1) - self.prior.log_prob_rows(self.prior_params, self.codes).view(self.z.shape[:3])

    def bound(self, objective: Objective, log_px: Tensor, noise: Tensor, kl_weight: Tensor) -> Tensor:
        """Return an objective of every row, after `forward`; `kl_weight` (m, 1, 1) belongs to the models.  # (m, n)"""
        if not isinstance(objective, ELBO):
            return torch.logsumexp(log_px - self.log_ratio(noise), 1) - math.log(log_px.shape[1])
        if _samples_kl(self.prior, objective):
            return (log_px - kl_weight * self.log_ratio(noise)).mean(1)
        kl = self.kl_per_component()
        if objective.free_bits:
            kl = torch.where((noise != 0).any(1), kl.clamp(min=objective.free_bits), kl)  # a component that fills up has none
        return log_px.mean(1) - kl_weight[..., 0] * kl.sum(-1)

    def learn(self, objective: Objective, slopes: Params, kl_weight: Tensor) -> None:
        """Let `gradient` write the slopes of minus an objective, once; `kl_weight` (m, 1, 1) belongs to the models."""
        self.objective, self.kl_weight = objective, kl_weight
        self.is_importance_weighted = not isinstance(objective, ELBO)
        self.free_bits = getattr(objective, "free_bits", 0)
        self.has_closed_kl = not self.is_importance_weighted and not _samples_kl(self.prior, objective)
        self.slopes, sources, targets = _drafts(_by_layers(slopes))
        delta = torch.zeros_like(self.encoder.out)
        self.mean_delta, self.log_scale_delta = delta.chunk(2, -1)  # beyond its limits, too: the slope leads back
        self.decoder.learn(self.slopes["decoder"], self.decoder.out, self.decoded_delta)
        self._bind_deltas()
        self.encoder.learn(self.slopes["encoder"], delta)
        if targets:
            self.encoder.downwards.append(partial(torch._foreach_copy_, targets, sources))

    def _bind_deltas(self) -> None:
        """Put the calls together that sum over draws, and those that add the slopes of a KL in closed form."""
        is_only = self.z.shape[1] == 1
        self.by_z, self.by_log_scale = (  # (m, n, k) each
            per_draw[:, 0] if is_only else torch.zeros_like(self.scale) for per_draw in (self.z_delta, self.spread)
        )
        self.sums: list[Call] = [partial(self.spread.mul_, self.z_delta)]
        if not is_only:
            self.sums.append(partial(torch.sum, self.z_delta, 1, out=self.by_z))
            self.sums.append(partial(torch.sum, self.spread, 1, out=self.by_log_scale))
        one = self.scale.new_ones(())  # a number costs more than a tensor to an operation
        self.weight_of_kl = torch.zeros_like(self.scale if self.free_bits else self.scale[..., :1])
        self.of_closed_kl: list[Call] = [
            *self.sums,
            partial(torch.addcmul, self.by_z, self.mean, self.weight_of_kl, out=self.mean_delta),
            self.scale.square_,
            partial(self.scale.sub_, one),
            partial(torch.addcmul, self.by_log_scale, self.scale, self.weight_of_kl, out=self.log_scale_delta),
        ]

    def gradient(self, x: Tensor, noise: Tensor, weight: Tensor, measured: bool) -> Tensor | None:
        """Write the slopes of minus the weighted objective; return the weighted objective of each model if `measured`.  # (m,)

        `weight` (m, n, 1) is of the rows. A component that only fills up has no noise.
        """
        self.forward(x, noise)
        log_px = self.log_px(x) if measured or self.is_importance_weighted else None
        value = importance = None
        if log_px is not None and measured:
            value = (self.bound(self.objective, log_px, noise, self.kl_weight) * weight[..., 0]).sum(-1)
        if log_px is not None and self.is_importance_weighted:
            importance = log_px - self.log_ratio(noise)
        w = self._weight_of_draws(weight, importance)  # (m, r, 1)
        by_eta, by_params = self.likelihood.derivative(self.params, self.eta, _per_draw(x, noise.shape[1]), -w)
        if by_eta is not self.eta:
            self.eta.copy_(by_eta)
        if self.likelihood.slopes_fade:
            _hardshrink(self.eta, _FAINTEST, out=self.eta)
        for name, slope in by_params.items():
            self.slopes["likelihood"][name].copy_(slope)
        self.decoder.backward()
        if self.has_closed_kl:
            self._deltas_by_closed_kl(weight)
        elif importance is None or self.objective.gradient == "standard":
            self._deltas_by_sampled_kl(w * self.kl_weight, weight * self.kl_weight, noise)
        else:
            self._deltas_by_draws(w, torch.softmax(importance, 1), noise)
        self.encoder.backward()
        return value

    def _weight_of_draws(self, weight: Tensor, importance: Tensor | None) -> Tensor:
        """Return how much every draw of a row counts: all the same, or by its log importance (m, s, n).  # (m, r, 1)"""
        s = self.z.shape[1]
        if importance is not None:
            return (weight[:, None, :, 0] * torch.softmax(importance, 1)).flatten(1)[..., None]
        return weight if s == 1 else (weight / s).repeat(1, s, 1)

    def _deltas_by_closed_kl(self, weight: Tensor) -> None:
        """Write the slopes by mean and log scale; the KL of components within their free bits does not count."""
        if self.free_bits:
            torch.mul(weight * self.kl_weight, self.kl_per_component() > self.free_bits, out=self.weight_of_kl)
        else:
            torch.mul(weight, self.kl_weight, out=self.weight_of_kl)
        run(self.of_closed_kl)

    def _deltas_by_draws(self, w: Tensor, share: Tensor, noise: Tensor) -> None:
        """Write the slopes by mean and log scale through z alone; draws count with w (m, r, 1) times their share (m, s, n)."""
        self._add_deltas_of_prior(w, noise)
        self.codes_delta.mul_(share.flatten(1)[..., None])
        by_log_q = noise / self.scale_per_draw  # (m, s, n, k)
        self.z_delta.sub_(by_log_q.mul_(w.view(*share.shape, 1)).mul_(share[..., None]))
        run(self.sums)
        self.mean_delta.copy_(self.by_z)
        self.log_scale_delta.copy_(self.by_log_scale)

    def _deltas_by_sampled_kl(self, w_draws: Tensor, w: Tensor, noise: Tensor) -> None:
        """Write the slopes by mean and log scale; log q - log p of the draws counts with w_draws (m, r, 1)."""
        self._add_deltas_of_prior(w_draws, noise)
        run(self.sums)
        self.mean_delta.copy_(self.by_z)
        torch.sub(self.by_log_scale, w * (noise != 0).any(1), out=self.log_scale_delta)

    def _add_deltas_of_prior(self, w: Tensor, noise: Tensor) -> None:
        """Add the slopes of -log p(z) by z, and write those by the prior's parameters; draws count with w (m, r, 1)."""
        if _is_standard(self.prior):
            self.codes_delta.addcmul_(self.codes, w)
            return
        by_z, by_params = self.prior.derivative(self.prior_params, self.codes, -w)
        self.codes_delta.add_(by_z)
        if self.model.moves_weights:
            by_log_odds = by_params.pop("log_odds").unflatten(1, self.z.shape[1:3]).sum(1)
            self.log_odds_delta[..., : by_log_odds.shape[-1]].copy_(by_log_odds)
            torch.bmm(self.given.mT, self.log_odds_delta, out=self.slopes["conditions"]["log_odds"])
        is_used = (noise != 0).flatten(1, 2).any(1, keepdim=True)  # (m, 1, k); nothing pulls on a component that fills up
        for name, slope in by_params.items():
            of_components = slope.shape[-1] == is_used.shape[-1]
            self.slopes["prior"][name].copy_(slope * is_used if of_components else slope)


class JointKernel:
    """The slope of log p(x, z) by z for n rows of one model, with some latents for each, beside its conditions."""

    def __init__(self, model: Model, params: Params, x: Tensor, n_draws: int):
        of_one = {piece: {name: value[None] for name, value in named.items()} for piece, named in params.items()}
        self.likelihood, self.likelihood_params = model.likelihood, of_one["likelihood"]
        self.x, k = _per_draw(x[None], n_draws), model.n_components
        r = self.x.shape[1]
        self.prior, self.prior_params = model.prior, model.of_prior(of_one, self.x)
        self.weight = x.new_ones((1, r, 1))
        decoded, decoded_delta = with_ones(1, r, k + model.n_given, x), x.new_zeros((1, r, k + model.n_given))
        self.codes, self.codes_delta = decoded[..., :k], decoded_delta[..., :k]
        if model.n_given:
            decoded[..., k:-1] = model.likelihood.given(self.likelihood_params, self.x)
        self.decoder = Network(model.decoder, _layers(of_one["decoder"], lambda *of_layer: torch.cat(of_layer, 1)), decoded)
        self.decoder.learn({}, self.decoder.out, decoded_delta)

    def slope(self, z: Tensor) -> Tensor:
        """Return the slope at latents z, draw by draw.  # both (1, r, k)"""
        self.codes.copy_(z)
        self.decoder.forward()
        by_eta, _ = self.likelihood.derivative(self.likelihood_params, self.decoder.out, self.x, self.weight)
        if by_eta is not self.decoder.out:
            self.decoder.out.copy_(by_eta)
        self.decoder.backward()
        by_prior = -z if _is_standard(self.prior) else self.prior.derivative(self.prior_params, z, self.weight)[0]
        return self.codes_delta + by_prior


def _by_layers(params: Params) -> Params:
    """Return the parameters, or their slopes, with weight and bias of each layer as one matrix of the networks."""
    return {piece: _layers(named, _end_to_end) if piece in _NETWORKS else named for piece, named in params.items()}


def _layers(named: dict[str, Tensor], joined: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a network with each layer as one matrix, of which the bias is the last row."""
    layers = {name: value for name, value in named.items() if name == "skip"}
    for i in range((len(named) - len(layers)) // 2):
        layers[f"layer{i}"] = joined(named[f"weight{i}"], named[f"bias{i}"])
    return layers


def _end_to_end(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the view of a weight (m, n_in, n_out) and the bias that follows it in memory.  # (m, n_in + 1, n_out)"""
    m, n_in, n_out = weight.shape
    assert bias.storage_offset() == weight.storage_offset() + n_in * n_out
    return weight.as_strided((m, n_in + 1, n_out), weight.stride())


def _drafts(slopes: Params) -> tuple[Params, list[Tensor], list[Tensor]]:
    """Return where slopes are written, and from which tensors to which they are copied afterwards.

    On the CPU torch hands the products of several models to BLAS together only where their results lie side by side.
    """
    drafts = {piece: dict(named) for piece, named in slopes.items()}
    sources, targets = [], []
    for named in drafts.values():
        for name, slope in named.items():
            if not (slope.is_cuda or slope.is_contiguous()):
                named[name] = torch.zeros_like(slope, memory_format=torch.contiguous_format)
                sources.append(named[name])
                targets.append(slope)
    return drafts, sources, targets


def _per_draw(x: Tensor, n_samples: int) -> Tensor:
    """Return the rows once for every draw.  # (m, r, d)"""
    return x if n_samples == 1 else x.repeat(1, n_samples, 1)
