"""The fitted state: all that a fitted estimator remembers, which packs into plain values and numpy arrays and back."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from skvae._model import Model, Pieces
from skvae._settings import from_spec, to_spec
from skvae._sparse import Cells, SparseRows
from skvae._stream import StreamedTable
from skvae._table import Table, TableCodec
from skvae.likelihoods import Likelihood
from skvae.likelihoods._mixed import Given, PerColumn

ROLES = ("encoder", "decoder", "posterior", "prior", "likelihood")


@dataclass(frozen=True)
class Training:
    """What training needs to go on as if it had never stopped."""

    params: np.ndarray  # where training stands, not always the best it has seen
    slots: dict[str, np.ndarray]
    best: np.ndarray
    progress: dict[str, Any]
    data_hash: int  # of the training rows and weights; 0 after partial_fit, which has no one set of rows


@dataclass(frozen=True)
class Fitted:
    """A trained model with its table codec; never changed, only replaced."""

    model: Model
    codec: TableCodec
    params: np.ndarray  # (size,)
    asked: Likelihood  # of which `fit` has made the model's
    training: Training | None = None
    is_new: bool = False  # True until it has been trained

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the model computes."""
        return torch.float64 if self.params.dtype == np.float64 else torch.float32

    @property
    def likelihoods(self) -> list[Likelihood]:
        """The likelihood of each column that the model sees, in its order."""
        likelihood = self.model.likelihood
        return likelihood.of_columns() if isinstance(likelihood, PerColumn) else [likelihood] * self.codec.n_columns

    @property
    def conditions(self) -> np.ndarray:
        """The columns of the table that are conditions."""
        is_given = np.array([isinstance(likelihood, Given) for likelihood in self.likelihoods], dtype=bool)
        return np.sort(self.codec.order[is_given])

    def having_seen(self, table: Table | StreamedTable) -> "Fitted":
        """Return the state that knows which values the rows of a table have, besides those of its own training rows."""
        likelihoods = dict(zip(self.codec.order.tolist(), self.likelihoods, strict=True))
        return replace(self, codec=replace(self.codec, form=self.codec.form.having_seen(table.columns(), likelihoods)))

    def tolerating_holes(self) -> "Fitted":
        """Return the state for rows with missing cells; one that has seen none in training gets the same parameters."""
        codec, likelihood = self.codec.tolerating_holes(self.model.likelihood)
        if codec is self.codec:
            return self
        return replace(self, model=self.model.with_likelihood(likelihood), codec=codec)

    def empty_rows(self, X: Cells) -> np.ndarray:
        """Tell of the rows of which the model describes no cell: nothing has the probability 1.  # (n,)"""
        described = np.setdiff1d(self.codec.order, self.conditions)
        if self.model.likelihood.reads_missing or isinstance(X, SparseRows) or not len(described):
            return np.zeros(len(X), dtype=bool)
        empty = np.ones(len(X), dtype=bool)
        for j in described:
            empty[empty] = np.isnan(X[empty, j])
        return empty

    def passing_over_holes(self) -> "Fitted":
        """Return the state for rows whose empty cells tell nothing, not even that they are missing."""
        likelihood = self.model.likelihood
        if not likelihood.reads_missing:
            return self
        return replace(self, model=self.model.with_likelihood(likelihood.passing_over_holes()))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes by which an estimator shows this state; they are not stored beside it."""
        k = self.model.n_components
        return {
            "_fitted": self,
            "_n_features_out": k,
            "n_components_": k,
            "schema_": self.codec.schema,
            "prior_": self.model.prior,
        }

    def pack(self) -> dict[str, Any]:
        """Return everything as plain values and numpy arrays; classes and callables of the user's stay what they are."""
        return {
            "pieces": {role: to_spec(getattr(self.model.pieces, role)) for role in ROLES},
            "n_columns": self.model.n_columns,
            "n_components": self.model.n_components,
            "seed": self.model.seed,
            "params": self.params,
            "asked": to_spec(self.asked),
            "codec": self.codec.pack(),
            "training": None if self.training is None else asdict(self.training),
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> "Fitted":
        """Rebuild the state from what `pack` returned; arrays are copied, so memory-mapped ones are fine."""
        pieces = Pieces(**{role: from_spec(packed["pieces"][role]) for role in ROLES})
        model = Model(pieces, packed["n_columns"], packed["n_components"], packed["seed"])
        if np.shape(packed["params"]) != (model.layout.size,):
            raise ValueError(f"expected {model.layout.size} parameters, found an array of shape {np.shape(packed['params'])}")
        training = packed["training"]
        if training is not None:
            slots = {k: np.array(v) for k, v in training["slots"].items()}
            arrays = {name: np.array(training[name]) for name in ("params", "best")}
            training = Training(**{**training, **arrays, "slots": slots})
        asked = from_spec(packed["asked"])
        return cls(model, TableCodec.unpack(packed["codec"]), np.array(packed["params"]), asked, training)
