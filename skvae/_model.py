"""The model: the chosen pieces, and the layout of all their parameters in one vector."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._constants import zeros
from skvae._families import Support
from skvae._numbers import rounded_up
from skvae._random import derived_seed, generator, paired_normal, uniform
from skvae.likelihoods import Likelihood
from skvae.networks import Network
from skvae.posteriors import Posterior, check_pair
from skvae.priors import Prior

Params = dict[str, dict[str, Tensor]]


class Layout:
    """Names and shapes of parameters, each a slice of one flat vector; leading axes of the vector are models.

    Slices begin at multiples of `alignment`, of which the size of the vector is one; those `attached` follow without a gap.
    """

    def __init__(
        self, shapes: dict[tuple[str, str], tuple[int, ...]], alignment: int = 1, attached: Collection[tuple[str, str]] = ()
    ):
        self.shapes = shapes
        self.slices: dict[tuple[str, str], slice] = {}
        stop = 0
        for name, shape in shapes.items():
            start = stop if name in attached else rounded_up(stop, alignment)
            stop = start + math.prod(shape)
            self.slices[name] = slice(start, stop)
        self.size = rounded_up(stop, alignment)

    def views(self, flat: Tensor) -> dict[tuple[str, str], Tensor]:
        """Return every parameter as a view of `flat`: (..., size) -> {(piece, name): (..., *shape)}."""
        return {k: flat[..., s].view(*flat.shape[:-1], *self.shapes[k]) for k, s in self.slices.items()}

    def flatten(self, values: dict[tuple[str, str], Tensor], dtype: torch.dtype) -> Tensor:
        """Return one vector that holds `values`."""
        parts = [values[k].reshape(-1).to(dtype) for k in self.shapes]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device="cpu")


def nested(views: dict[tuple[str, str], Tensor], pieces=("encoder", "decoder", "conditions", "prior", "likelihood")) -> Params:
    """Arrange views by piece, the form in which the pieces receive them."""
    params: Params = {piece: {} for piece in pieces}
    for (piece, name), view in views.items():
        params[piece][name] = view
    return params


@dataclass(frozen=True)
class Pieces:
    """The settings objects that make up a model."""

    encoder: Network
    decoder: Network
    posterior: Posterior
    prior: Prior
    likelihood: Likelihood


class Model:
    """q(z|x), p(z) and p(x|z) as functions of one parameter vector.

    Both networks read the conditions of a row, and the weights of a prior that is a mixture depend on them: groups of rows that
    are frequent under some conditions would else be drawn as often under others.

    Parameters are passed to every method, never held: `params` is what `unpack` makes of the vector.
    """

    def __init__(
        self, pieces: Pieces, n_columns: int, n_components: int, seed: int, bound: tuple[Network, Network] | None = None
    ):
        self.pieces = pieces
        self.n_columns = n_columns
        self.n_components = n_components
        self.seed = seed
        self.posterior, self.prior, self.likelihood = pieces.posterior, pieces.prior, pieces.likelihood
        if pieces.encoder.is_uncertain:
            raise ValueError(
                f"The encoder cannot be {pieces.encoder!r}: its weights belong to an approximation, not to the model, and have "
                "no posterior. Use MLP for the encoder."
            )
        check_pair(self.posterior, self.prior, n_components)
        n_inputs = self.likelihood.n_inputs(n_columns)
        self._reads_cells = type(self.likelihood).inputs is Likelihood.inputs  # as they are
        self._encoder_sizes = (n_inputs, self.posterior.n_outputs(n_components), derived_seed(seed, "encoder"))
        self.n_given = self.likelihood.n_given(n_columns)
        self.moves_weights = self.n_given > 0 and self.prior.n_weights > 0
        self._of_conditions = {"log_odds": (self.n_given, self.prior.n_weights)} if self.moves_weights else {}
        self._decoder_sizes = (n_components + self.n_given, self.likelihood.n_outputs(n_columns), derived_seed(seed, "decoder"))
        self.encoder, self.decoder = bound or (
            pieces.encoder.bind(*self._encoder_sizes),
            pieces.decoder.bind(*self._decoder_sizes),
        )
        self.layout = Layout(
            {
                (piece, name): shape
                for piece, shapes in (
                    ("encoder", self.encoder.shapes(*self._encoder_sizes)),
                    ("decoder", self.decoder.shapes(*self._decoder_sizes)),
                    ("conditions", self._of_conditions),
                    ("prior", self.prior.shapes(n_components, n_inputs)),
                    ("likelihood", self.likelihood.shapes(n_columns)),
                )
                for name, shape in shapes.items()
            }
        )

    def with_likelihood(self, likelihood: Likelihood) -> "Model":
        """Return the model with another likelihood, of which everything has the same sizes; its networks are these."""
        pieces = replace(self.pieces, likelihood=likelihood)
        return Model(pieces, self.n_columns, self.n_components, self.seed, (self.encoder, self.decoder))

    @cached_property
    def n_products(self) -> int:
        """About how many products it takes to encode and decode a row."""
        return self.encoder.n_products(*self._encoder_sizes) + self.decoder.n_products(*self._decoder_sizes)

    def init(self, dtype: torch.dtype) -> Tensor:
        """Return the parameter vector at the start of training, a function of the model's seed.  # (size,)"""
        values = {
            "encoder": self.encoder.init(*self._encoder_sizes),
            "decoder": self.decoder.init(*self._decoder_sizes),
            "conditions": zeros(self._of_conditions),
            "prior": self.prior.init(self.n_components, self._encoder_sizes[0], generator(self.seed, "prior")),
            "likelihood": self.likelihood.init(self.n_columns),
        }
        return self.layout.flatten({(p, n): v for p, named in values.items() for n, v in named.items()}, dtype)

    def unpack(self, flat: Tensor) -> Params:
        """Return the parameters by piece and name, as views of the vector."""
        return nested(self.layout.views(flat))

    def is_weight_matrix(self, piece: str, name: str) -> bool:
        """Tell whether a parameter multiplies activations of a network."""
        networks = {"encoder": self.encoder, "decoder": self.decoder}
        return piece in networks and networks[piece].is_weight_matrix(name, self.layout.shapes[piece, name])

    def presented(self, batch: Batch, *place: int | str, shared: bool = False) -> Batch:
        """Return rows as encoder and likelihood see them, which some likelihoods draw anew at every `place` that asks.

        Random numbers belong to the place, one per cell, or one per column where all rows share them.
        """
        shape = (1, batch.n_columns) if shared else tuple(batch.x.shape)

        def draw() -> Tensor:
            device = torch.device("cpu") if shared else batch.device
            return uniform(shape, generator(self.seed, "presented", *place, device=device), batch.dtype).to(batch.device)

        return batch.with_x(self.likelihood.presented(batch.x, draw))

    def presented_to_encoder(self, batch: Batch) -> Batch:
        """Return rows as the encoder sees them where no likelihood is asked: nothing is drawn."""
        return batch.with_x(self.likelihood.presented(batch.x))

    def with_noise(self, params: Params, stream: torch.Generator) -> Params:
        """Return parameters under which every row is decoded with weights of its own, if weights are uncertain."""
        if not self.decoder.is_uncertain:
            return params
        return {**params, "decoder": {**params["decoder"], "stream": stream}}  # type: ignore[dict-item]

    def draws(self, params: Params, n: int, place: str) -> list[Params]:
        """Return parameters with n draws of the uncertain weights, a function of the seed; as they are if there are none."""
        if not self.decoder.is_uncertain:
            return [params]
        stream = generator(self.seed, place, "weights")
        return [{**params, "decoder": self.decoder.draw(params["decoder"], stream)} for _ in range(n)]

    def kl_of_weights(self, params: Params) -> Tensor | float:
        """Return the KL of uncertain weights to their prior, in nats."""
        return self.decoder.kl(params["decoder"]) if self.decoder.is_uncertain else 0.0

    def inputs(self, params: Params, x: Tensor) -> Tensor:
        """Return rows in the form that the encoder reads.  # (..., n, n_inputs)"""
        return x if self._reads_cells else self.likelihood.inputs(params["likelihood"], x)

    @property
    def input_limits(self) -> tuple:
        """Between which numbers the encoder reads; an end is a number, or a tuple of one per column."""
        return self.likelihood.support if self._reads_cells else (-math.inf, math.inf)

    def encode(self, params: Params, batch: Batch) -> Tensor:
        """Return the parameters of q(z|x), in the form that the posterior family reads.  # (..., n, n_outputs)"""
        return self.encoder.forward(params["encoder"], self.inputs(params, batch.x))

    def encode_inputs(self, params: Params, inputs: Tensor) -> Tensor:
        """Return what `encode` gives for rows in the form that `inputs` makes.  # (..., n, n_outputs)"""
        return self.encoder.forward(params["encoder"], inputs)

    def decode(self, params: Params, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the parameters of p(x|z), in the form that the likelihood reads.  # (..., n, n_outputs)

        A model with conditions reads them from rows x (n, d).
        """
        if self.n_given:
            assert x is not None
            given = self.likelihood.given(params["likelihood"], x)
            z = torch.cat([z, given.expand(*z.shape[:-1], self.n_given)], -1)
        return self.decoder.forward(params["decoder"], z)

    def log_likelihood(self, params: Params, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z), one value per column.  # (..., n, d)"""
        return self.likelihood.log_prob(params["likelihood"], self.decode(params, z, batch.x), batch.x)

    def log_px(self, params: Params, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) of every row, for those who ask for no column; faster without gradients.  # (..., n)"""
        if torch.is_grad_enabled() or not self.likelihood.offers("log_prob_rows"):
            return self.log_likelihood(params, batch, z).sum(-1)
        eta = self.decode(params, z, batch.x)
        if _is_of_others(eta, [z, *params["decoder"].values()]):  # from a network that returns what it was given
            eta = eta.clone(memory_format=torch.contiguous_format)
        return self.likelihood.log_prob_rows(params["likelihood"], eta, batch.x)

    def log_prior(self, params: Params, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return log p(z), one value per component; a model with conditions reads them from rows x (n, d).  # (..., n, k)"""
        return self.prior.log_prob(self.of_prior(params, x), z)

    def log_pz(self, params: Params, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return log p(z) of every row, for those who ask for no component.  # (..., n)"""
        if not self.prior.offers("log_prob_rows"):
            return self.log_prior(params, z, x).sum(-1)
        return self.prior.log_prob_rows(self.of_prior(params, x), z)

    def of_prior(self, params: Params, x: Tensor | None) -> dict:
        """Return what the prior of rows x (n, d) reads."""
        own = self.prior.given(self, params)
        if not self.moves_weights:
            return own
        if x is None:
            raise ValueError("The prior of this model depends on conditions: pass the rows x that have them, such as batch.x.")
        return {**own, "log_odds": self.likelihood.given(params["likelihood"], x) @ params["conditions"]["log_odds"]}

    @property
    def support(self) -> Support:
        """Where latents have a density under the prior."""
        return self.prior.support or self.posterior.support

    def sample_prior(
        self, params: Params, shape: tuple[int, ...], stream: torch.Generator, dtype: torch.dtype, x: Tensor | None = None
    ) -> Tensor:
        """Draw latents of `shape` (..., k) from the prior.

        Of a model with conditions they belong to rows x (n, d): shape (..., 1 or n, k), where 1 gives all rows the same random
        numbers, but latents (..., n, k) if the prior depends on conditions.
        """
        return self.prior.sample(self.of_prior(params, x), shape, stream, dtype)

    def noise(self, n_samples: int, stream: torch.Generator, dtype: torch.dtype, averages_weights: bool = False) -> Tensor:
        """Draw noise for means over draws of the posterior, common to all rows, in antithetic pairs.  # (s, 1, n_noise)

        Its moments are matched to those of N(0, I), which takes most of the error. Such noise has light tails: the mean of its
        fourth powers lacks 2 in half of `n_samples` + 2, and with one pair it is 1 and -1 whatever the stream. Where weights
        are averaged, whose logs are bounds only where each draw is normal, no more pairs than components stay as they are
        drawn; of more, the bias is small beside the error.
        """
        is_matched = not averages_weights or n_samples // 2 > self.n_noise
        return paired_normal(n_samples, self.n_noise, stream, dtype, is_matched)

    @property
    def n_noise(self) -> int:
        """Number of standard normal numbers that a draw from the posterior of a row takes."""
        return self.posterior.n_noise(self.n_components)

    def sample(
        self, params: Params, n_samples: int, stream: torch.Generator, noise: bool, dtype: torch.dtype, x: Tensor | None = None
    ) -> Tensor:
        """Draw rows from the model, or their means where `noise` is False.  # (n_samples, d)

        A model with conditions takes them from x (n_samples, d), or for missing.
        """
        if self.n_given and x is None:
            x = next(iter(params["decoder"].values())).new_full((n_samples, self.n_columns), torch.nan)
        z = self.sample_prior(params, (n_samples, self.n_components), stream, dtype, x)
        eta = self.decode(self.with_noise(params, stream), z, x)
        if noise:
            return self.likelihood.sample(params["likelihood"], eta, stream)
        return self.likelihood.mean(params["likelihood"], eta)


def _is_of_others(values: Tensor, others: Iterable[object]) -> bool:
    """Tell whether to overwrite values would change others, or more than one of their own at a time."""
    memory = values.untyped_storage().data_ptr()
    is_repeated = any(stride == 0 and size > 1 for stride, size in zip(values.stride(), values.shape))
    return is_repeated or any(isinstance(one, Tensor) and one.untyped_storage().data_ptr() == memory for one in others)
