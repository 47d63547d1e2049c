"""RowsMixin: what a fitted model says of rows: bounds on their likelihood, their latents, and their reconstructions."""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

import skvae._refined  # noqa: F401, which gives the default its name
from skvae._devices import one_thread, resolve_device
from skvae._inference import decode_rows, encode_rows, flops_of_call, value_of_rows
from skvae._marginal import MarginalLikelihood
from skvae._random import generator, normal
from skvae._reading import array_of_tensor, checked_weight
from skvae._settings import REGISTRY, check_whole, resolve
from skvae._sparse import rows_of
from skvae._stream import checked_pieces, frame
from skvae.data import as_source
from skvae.objectives import Objective

_WEIGHT_DRAWS = 32  # of uncertain weights, over which scores are averaged: densities of odd rows differ much
FARTHEST = 1e30  # as far as latents can lie for their decoding to stay finite in single precision


class PosteriorMoments(NamedTuple):
    """Mean and standard deviation of q(z|x) per component, each of shape (n_samples, n_components)."""

    mean: np.ndarray
    std: np.ndarray


class RowsMixin:
    """Methods that need rows and a fitted model alone: how probable they are, where they lie, and what comes back."""

    def _encoded(self, X, *, only_for_encoder=False):
        """Return the fitted state, its parameters on the device, the rows of X as the model sees them, and the dtype of X."""
        check_is_fitted(self)
        return self._encoded_cells(self._cells(X), only_for_encoder=only_for_encoder)

    def _encoded_cells(self, X, *, only_for_encoder=False):
        """Do what `_encoded` does for cells that were read."""
        fitted, params, device = self._ready(has_holes=self._fitted.codec.incomplete_rows(X).any())
        model = fitted.model
        present = model.presented_to_encoder if only_for_encoder else lambda rows: model.presented(rows, "score", shared=True)
        return fitted, params, EncodedRows(fitted.codec, X, fitted.dtype, device, present), X.dtype

    def _by_parts(self, X, function, *of_rows):
        """Return what `function` gives for the rows of X and arrays with a value for each, part by part where X is a source."""
        source = as_source(X)
        if source is None:
            return function(X, *of_rows)
        check_is_fitted(self)
        self._check_columns(source, reset=False)
        parts = ((part, slice(start, start + len(part))) for part, start in checked_pieces(source))
        return np.concatenate([function(frame(source, part), *(values[rows] for values in of_rows)) for part, rows in parts])

    def _ready(self, has_holes=False):
        """Return the fitted state, its parameters and the device, ready to compute on rows that may have missing cells."""
        fitted = self._fitted
        device = resolve_device(self.device, flops_of_call(fitted.model))
        fitted = fitted.tolerating_holes() if has_holes else fitted
        return fitted, fitted.model.unpack(torch.tensor(fitted.params, device=device)), device

    @one_thread()
    def score_samples(self, X):
        """Return the log-likelihood of every row, or a bound on it.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or Source
            The data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            log p(x) or a lower bound on it in nats, in the units of the data (for columns with a density), measured as
            `score_method` says with noise that other rows do not change. The lower, the odder the row.
        """
        return self._by_parts(X, self._scores)

    def _scores(self, X, counts=None):
        """Return the bound of every row of a table that counts."""
        check_is_fitted(self)
        X = self._cells(X, counts)
        if counts is not None and not counts.all():
            X = rows_of(X, counts)
            if not len(X):  # in a part of a source
                return np.empty(0)
        scores = self._by_completeness(X, self._scores_of_cells)
        scores[self._fitted.empty_rows(X)] = 0.0
        return scores

    def _by_completeness(self, X, function):
        """Return what `function` gives for the rows of X; complete rows apart, where training has seen no others.

        Such rows are computed by other operations, and what is said of a row does not depend on its neighbours.
        """
        holes = self._fitted.codec.incomplete_rows(X)
        if self._fitted.codec.per_cell or holes.all() or not holes.any():
            return function(X)
        of_complete, of_others = (function(rows_of(X, chosen)) for chosen in (~holes, holes))
        found = np.empty((len(X), *of_others.shape[1:]))
        found[~holes], found[holes] = of_complete, of_others
        return found

    def _scores_of_cells(self, X):
        """Return the bound of every row: the log of its mean density, where weights are uncertain."""
        fitted, params, rows, _ = self._encoded_cells(X)
        draws = fitted.model.draws(params, _WEIGHT_DRAWS, "score")
        values = torch.stack([self._values(fitted, drawn, rows) for drawn in draws]).double().cpu().numpy()
        # torch would round the rows that fill no vector in another way
        return np.logaddexp.reduce(values, 0) - math.log(len(draws)) + fitted.codec.log_jacobian

    def _values(self, fitted, params, rows):
        """Return the bound of every row, in the model's units.  # (n,)"""
        model, method = fitted.model, resolve_score_method(self.score_method)
        if isinstance(method, MarginalLikelihood):
            method.check(model)
            return method.score_rows(model, params, rows)
        noise = model.noise(method.n_samples, generator(model.seed, "score"), fitted.dtype, method.averages_weights)
        return value_of_rows(model, params, rows, method.bound, noise.to(rows.device))

    @one_thread()
    def score(self, X, y=None, sample_weight=None):
        """Return the mean log-likelihood bound per row, the larger the better.

        Comparable between models of the same data, whatever their scaling, beta or size, and with `PCA.score`,
        `FactorAnalysis.score` and `GaussianMixture.score`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or Source
            The data.

        y : Ignored
            Not used, present for API consistency by convention.

        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        score : float
            Nats per row.
        """
        if sample_weight is None:
            return float(np.mean(self.score_samples(X)))
        check_is_fitted(self)
        weight = checked_weight(sample_weight, X)
        values = self._by_parts(X, self._scores, weight > 0)
        return float(np.average(values, weights=weight[weight > 0] / weight.max()))

    @one_thread()
    def posterior_moments(self, X):
        """Return mean and standard deviation of q(z|x).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data.

        Returns
        -------
        moments : PosteriorMoments
            A named tuple of `mean` and `std`, each an ndarray of shape (n_samples, n_components).
        """
        fitted, params, rows, dtype = self._encoded(X, only_for_encoder=True)
        q = encode_rows(fitted.model, params, rows)
        family = fitted.model.posterior
        return PosteriorMoments(_to_array(family.mean(q), dtype), _to_array(family.scale(q), dtype))

    @one_thread()
    def sample_posterior(self, X, n_samples=1, random_state=None):
        """Draw latents from q(z|x).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data.

        n_samples : int, default=1
            Number of draws per row.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from; None gives others each time.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_rows, n_components)
            The draws.
        """
        check_is_fitted(self)
        n_samples = check_whole("n_samples", n_samples)
        fitted, params, rows, dtype = self._encoded(X, only_for_encoder=True)
        q = encode_rows(fitted.model, params, rows)
        stream = generator(seed_of(random_state), "posterior", device=q.device)
        noise = normal((n_samples, len(rows), fitted.model.n_noise), stream, fitted.dtype)
        return _to_array(fitted.model.posterior.sample(q, noise), dtype)

    @one_thread()
    def reconstruct(self, X):
        """Return the mean of p(x|z) at the posterior mean of every row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data.

        Returns
        -------
        X_reconstructed : ndarray or DataFrame of shape (n_samples, n_features)
            What the latent space keeps of each row, in the units of the data; after a fit on a frame, in its types, with the
            most probable of categories.
        """
        return self._fitted_table(self._means(*self._posterior_mean(X), self._conditions_of(X)), X)

    def _posterior_mean(self, X):
        """Return the posterior mean of every row of an array on the device, and the dtype of X."""
        fitted, params, rows, dtype = self._encoded(X, only_for_encoder=True)
        return fitted.model.posterior.mean(encode_rows(fitted.model, params, rows)), dtype

    def _means(self, z, dtype, known=None):
        """Return the mean of p(x|z) for every row of a tensor of latents as an array, under the conditions in known cells."""
        fitted, params, device = self._ready()
        if known is None:
            return fitted.codec.decode(decode_rows(fitted.model, params, z), dtype)
        x = fitted.codec.encode(known, dtype=fitted.dtype).x.to(device)
        cells = fitted.codec.decode(decode_rows(fitted.model, params, z, x), dtype)
        cells[:, fitted.conditions] = known[:, fitted.conditions]
        return cells

    def _conditions_of(self, X):
        """Return the cells of a table, if the model has conditions."""
        return self._cells(X) if len(self._fitted.conditions) else None

    def _check_conditions(self, known, method):
        """Refuse rows that do not tell all the conditions."""
        missing = [int(j) for j in self._fitted.conditions if np.isnan(known[:, j]).any()]
        if missing:
            names = [self._fitted.codec.form.names[j] for j in missing]
            raise ValueError(
                f"{method} needs the columns of condition_on, of which these are missing: {names[:5]}. Pass them by given, for "
                f"example given={{{names[0]!r}: ...}}."
            )

    def _fitted_table(self, cells, like=None):
        """Return cells in the form of the training data."""
        return self._fitted.codec.table(cells, like)

    def _latents(self, X):
        """Return the posterior mean of every row as an array."""
        return self._by_parts(X, self._latents_of_array)

    def _latents_of_array(self, X):
        return _to_array(*self._posterior_mean(X))

    def _decoded(self, Z, known=None):
        """Return the mean of p(x|z) for every row of Z, in the form of the training data, under conditions in known cells.

        A frame gets the index of Z, if that has one.
        """
        check_is_fitted(self)
        like = Z
        Z = check_array(array_of_tensor(Z) if isinstance(Z, torch.Tensor) else Z, dtype=[np.float64, np.float32])
        fitted, _, device = self._ready()
        if Z.shape[1] != fitted.model.n_components:
            raise ValueError(
                f"X has {Z.shape[1]} columns, but the latent space of this {type(self).__name__} has "
                f"{fitted.model.n_components} components. Pass what transform returns."
            )
        z = torch.tensor(Z.clip(-FARTHEST, FARTHEST), device=device, dtype=fitted.dtype)
        if known is not None and len(known) != len(Z):
            if len(known) != 1:
                raise ValueError(f"given must have one row, or one for each of the {len(Z)} rows of X, got {len(known)}.")
            known = np.broadcast_to(known, (len(Z), known.shape[1]))
        return self._fitted_table(self._means(z, Z.dtype, known), like)


class EncodedRows:
    """The rows of an array, each encoded when it is asked for: what fits the cache is encoded several times faster."""

    def __init__(self, codec, X, dtype, device, present):
        self.codec, self.X, self.dtype, self.device, self.present = codec, X, dtype, device, present

    def __len__(self):
        return len(self.X)

    def slice(self, start, stop):
        """Return rows `start` to `stop` as the model sees them, on the device."""
        try:
            return self.present(self.codec.encode(self.X[start:stop], dtype=self.dtype).to(self.device))
        except ValueError:
            self.codec.encode(self.X, dtype=self.dtype)  # complains of as many columns as it can
            raise

    def take(self, rows):
        """Return the chosen rows."""
        return EncodedRows(self.codec, rows_of(self.X, rows.cpu().numpy()), self.dtype, self.device, self.present)


def resolve_score_method(method):
    """Return the validated settings object of a `score_method`; a name stands for one with its usual number of draws."""
    names = sorted(REGISTRY["score_method"])
    if not (method in names if isinstance(method, str) else isinstance(method, (Objective, MarginalLikelihood))):
        raise ValueError(
            f"{method!r} is no way to measure log p(x). Use one of {names} or an object, such as "
            "RefinedImportance(n_samples=1000)."
        )
    return resolve("score_method", method)


def seed_of(random_state):
    """Return one integer seed; None takes it from the operating system, so numpy's global state is left alone."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _to_array(values, dtype):
    return values.cpu().numpy().astype(dtype, copy=False)
