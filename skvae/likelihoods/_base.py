"""Base of the likelihoods p(x|z): what the decoder's outputs mean, the density of each cell, its mean and its sampler."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skvae._constants import zeros
from skvae._settings import Settings, belongs_with

_SMALLEST_INPUT_SCALE = 0.1  # in which an encoder reads logarithms


class Likelihood(Settings):
    """Base of the likelihoods; `eta` stands for the decoder's outputs, of shape (..., n, n_outputs).

    A likelihood sees the columns in units of its own, `(x - loc) / scale`; the table's codec applies the map, refuses cells
    outside `support`, and gives densities their Jacobian back. It never sees a missing cell, but in `inputs` and
    `start`, unless it `reads_missing`.
    """

    #: True for a density, whose value depends on the units of a column; False for a probability mass
    is_density: bool = True

    #: True for a likelihood of whole numbers
    is_whole: bool = False

    #: an admissible value, in the likelihood's units, that stands where a cell is missing and counts nothing
    filler: float = 0.0

    @property
    def reads_codes(self) -> bool:
        """Whether cells are categories of any kind, which the table codes as whole numbers from 0."""
        return False

    #: whether slopes by outputs may fade away, to denormal numbers in the end
    slopes_fade: bool = True

    #: whether its functions run along the rows, and so at full speed where these fill whole vectors
    runs_along_rows: bool = False

    #: whether `log_prob`, `derivative` and `start` are to see missing cells, which are NaN, and say what they count
    reads_missing: bool = False

    @property
    def support(self) -> tuple:
        """Closed interval of admissible values, in the likelihood's units; an end is a number, or a tuple of one per column."""
        return (-math.inf, math.inf)

    @property
    def clips(self) -> bool:
        """Whether cells outside the support are moved to its edge instead of refused."""
        return False

    @property
    def drops_constant(self) -> bool:
        """Whether a column that never varied is left out of the model."""
        return False

    def bind(self, columns) -> "Likelihood":
        """Return the likelihood with what it must know about the columns: their `mean`, `std`, `low` and `high` in training.

        Most know enough. Columns of categories come as whole numbers from 0, and `high` is the last category there can be.
        """
        return self

    def units(self, columns):
        """Return `loc` and `scale` of every column, given its `mean`, `std`, `low` and `high` in the training data."""
        raise NotImplementedError

    def presented(self, x: Tensor, uniform: Callable[[], Tensor] | None = None) -> Tensor:
        """Return rows as the model sees them, encoder and density alike; most likelihoods show them as they are.

        A likelihood that draws them calls `uniform` for numbers in [0, 1), of the shape of x or of one row for all. Where there
        is none, because only the encoder will see the rows, it shows what it would draw on average.
        """
        return x

    def structure(self) -> "Likelihood":
        """Return what the likelihoods of models must have in common to be trained side by side."""
        return self

    def of_all(self, likelihoods: Sequence["Likelihood"]) -> "Likelihood":
        """Return one for models side by side, (m, ..., n, d), each of which has one of these of this structure."""
        return self

    def n_inputs(self, n_columns: int) -> int:
        """Return how many numbers per row the encoder reads."""
        return n_columns

    def inputs(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return rows as the encoder reads them, where missing cells, which are NaN, tell nothing.  # (..., n, n_inputs)"""
        return torch.where(x.isnan(), self.filler, x)

    def input_shapes(self, n_columns: int) -> dict[str, tuple[int, ...]]:
        """Return those of `shapes` that `inputs` reads, of which a column that is a condition has no others."""
        return {}

    def start_inputs(self, params: dict[str, Tensor], x: Tensor) -> None:
        """Write them into the fresh parameters `params`, given rows of training data."""

    def n_given(self, n_columns: int) -> int:
        """Return how many numbers per row the decoder reads beside the latents: those of columns that are only conditions."""
        return 0

    def given(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return what the decoder reads of rows.  # (..., n, n_given)"""
        return x[..., :0]

    def n_outputs(self, n_columns: int) -> int:
        """Return how many numbers per row the decoder must give."""
        return n_columns

    def shapes(self, n_columns: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the parameters that belong to the likelihood itself."""
        return {}

    def init(self, n_columns: int) -> dict[str, Tensor]:
        """Return those parameters at the start of training, zeros unless a likelihood knows better."""
        return zeros(self.shapes(n_columns))

    def start(self, params: dict[str, Tensor], x: Tensor) -> Tensor | None:
        """Return the outputs of a decoder that knows nothing of a row, given rows of training data; None leaves them at zero.

        Optional, for likelihoods whose outputs at zero are far from any data. It may also write into the fresh parameters
        `params`. Missing cells of x are NaN.  # (n_outputs,)
        """
        return None

    def log_prob(self, params: dict[str, Tensor], eta: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z) in nats, one value per column."""
        raise NotImplementedError

    def derivative(self, params: dict[str, Tensor], eta: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the derivatives of `sum(weight * log_prob)` by `eta` and by the likelihood's own parameters.

        Optional: a likelihood that has it trains without autograd, about three times as fast on small tables. `weight` has the
        shape (..., n, 1), or (..., n, d) where it is zero for missing cells; `eta` may be overwritten and returned; derivatives
        by parameters have the shapes of the parameters, and those that `log_prob` does not read have none.
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

    def n_expected(self, n_columns: int) -> int:
        """Return how many numbers per row `expectation` gives."""
        return n_columns

    def expectation(self, params: dict[str, Tensor], eta: Tensor) -> Tensor:
        """Return what of p(x|z) may be averaged over z before `point` makes cells of it: the mean, unless that has no meaning.

        A likelihood of categories gives their probabilities.  # (..., n, n_expected)
        """
        return self.mean(params, eta)

    def point(self, expectation: Tensor) -> Tensor:
        """Return the cells that an expectation stands for: the mean, or the most probable category.  # (..., n, d)"""
        return expectation

    def sample(self, params: dict[str, Tensor], eta: Tensor, stream: torch.Generator) -> Tensor:
        """Draw x given z, of shape (..., n, d)."""
        raise NotImplementedError

    def with_holes(self, params: dict[str, Tensor], x: Tensor, like: Tensor, stream: torch.Generator) -> Tensor:
        """Return drawn rows x with the holes of the rows `like`.  # (n, d)

        A likelihood that `reads_missing`, because it says which cells are missing, gives them its own.
        """
        return torch.where(like.isnan(), like, x)

    def expectation_of_missing(self, params: dict[str, Tensor], eta: Tensor) -> Tensor:
        """Return the `expectation` of cells of which z is known, and that they are missing.  # (..., n, n_expected)"""
        return self.expectation(params, eta)

    def sample_missing(self, params: dict[str, Tensor], eta: Tensor, stream: torch.Generator) -> Tensor:
        """Draw x given z and that it is missing, of shape (..., n, d)."""
        return self.sample(params, eta, stream)

    def passing_over_holes(self) -> "Likelihood":
        """Return the likelihood, with the same parameters, for rows whose empty cells are unknown, not missing."""
        return self

    def as_normal(self, params: dict[str, Tensor], eta: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (..., n, d) and logarithm of the standard deviation of p(x|z), where it is normal.

        Optional, and for no other likelihood. The logarithm broadcasts.
        """
        raise NotImplementedError

    def noise_variance(self, params: dict[str, Tensor], n_columns: int) -> Tensor | None:
        """Return Var[x|z] per column where it does not depend on z, of shape (..., 1, d); None elsewhere."""
        return None


class ReadInUnits(Likelihood):
    """Base of the likelihoods whose cells the encoder reads in another form, centred and scaled as training rows say.

    Steps of training move what an encoder makes of numbers far from zero, such as logarithms of large counts, by far too much.
    Location and scale lie among the parameters, where they stay as they started.
    """

    def read(self, x: Tensor) -> Tensor:
        """Return the form in which cells are read."""
        raise NotImplementedError

    def smallest_scale(self, loc: Tensor) -> Tensor:
        """Return the smallest scale, given the location: columns that hardly varied may do so later."""
        return torch.full_like(loc, _SMALLEST_INPUT_SCALE)

    def input_shapes(self, n_columns):
        return {"input_loc": (1, n_columns), "input_log_scale": (1, n_columns)}

    def start_inputs(self, params, x):
        read = self.read(x)
        loc = read.nanmean(0)
        scale = (read - loc).square().nanmean(0).sqrt()
        params["input_loc"].copy_(loc)
        params["input_log_scale"].copy_(scale.maximum(self.smallest_scale(loc)).log())

    def shapes(self, n_columns):
        return self.input_shapes(n_columns)

    def start(self, params, x):
        self.start_inputs(params, x)

    def inputs(self, params, x):
        read = (self.read(x) - params["input_loc"].detach()) * (-params["input_log_scale"].detach()).exp()
        return torch.where(x.isnan(), 0.0, read)
