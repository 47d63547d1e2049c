"""TableReader: arrays, frames and sparse matrices as scikit-learn checks them, to cells that are numbers."""

import re

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skvae._form import Form
from skvae._frames import array_of_list, column_of, is_frame, refuse_equal_names, rows_where
from skvae._selection import conditions_of, likelihoods_of, with_conditions
from skvae._settings import REGISTRY, resolve
from skvae._sklearn import _check_sample_weight
from skvae._sparse import SparseRows
from skvae._stream import row_of_zeros
from skvae._table import warn_of_columns_left_out
from skvae.data import Source
from skvae.likelihoods import Bernoulli, Gaussian, Likelihood, Mixed

_OTHER_TABLES = {  # and what to pass instead
    "polars.LazyFrame": "X.collect()",
    "pyarrow.Table": "X.to_pandas(), or polars.from_arrow(X)",
    "pyarrow.RecordBatch": "X.to_pandas(), or polars.from_arrow(X)",
}


class TableReader:
    """How an estimator reads its tables: those of the training data, and later ones in the same way."""

    def _cells(self, X, counts=None):
        """Return the cells of new rows as an array of numbers, read as those of the training data were.

        Categories that are unknown are missing in rows that do not count, if `counts` tells of every row whether it does.
        Columns that had no cell in training may hold anything now.
        """
        X, form = array_or_frame(X), self._fitted.codec.form
        if form.is_of_numbers or (not is_frame(X) and not form.has_categories):
            return self._numbers(X, reset=False)
        _refuse_sparse(X, "a model of columns with categories")
        return form.cells(self._checked_table(X, reset=False), counts, without_cells(self._fitted.codec))

    def _cells_for_more(self, X, weight):
        """Return the cells of rows to go on training with, after a check that conditions are what they were."""
        cells, X = self._cells(X, None if weight is None else weight > 0), array_or_frame(X)
        self._check_same_conditions(X if hasattr(X, "shape") else cells)
        form = self._fitted.codec.form
        if not form.is_of_numbers and hasattr(X, "shape"):  # columns of any cells that stay unread
            unread = without_cells(self._fitted.codec)
            warn_of_columns_left_out([str(form.names[j]) for j in unread if column_of(X, j)[0].notna().any()])
        return cells

    def _check_same_conditions(self, X):
        """Refuse to go on training where conditions are not what they were."""
        now = np.intersect1d(conditions_of(X, self.condition_on), self._fitted.codec.order)
        if not np.array_equal(now, self._fitted.conditions):
            raise ValueError(
                f"The fitted model cannot go on training: it was fitted with other columns for conditions than condition_on="
                f"{self.condition_on!r} now says. Set it back, or train anew with warm_start=False."
            )

    def _likelihoods_of_source(self, source):
        """Return the likelihoods of the columns of a source, which holds numbers."""
        likelihood = resolve("likelihood", self.likelihood)
        if _reads_any_cells(likelihood):
            raise ValueError(
                f"likelihood={likelihood!r} needs to see the whole table, and a data source is read in blocks. Use one "
                "likelihood of numbers for all columns, or fit a frame or an array."
            )
        likelihoods = [Gaussian() if isinstance(likelihood, Mixed) else likelihood] * source.n_features
        return with_conditions(likelihoods, conditions_of(row_of_zeros(source), self.condition_on))

    def _check_source_for_more(self, source):
        """Refuse a source on which the fitted model cannot go on training."""
        if self._fitted.codec.form.has_categories:
            raise TypeError(
                f"The fitted model has columns with categories, and a {type(source).__name__} is read as numbers. Pass its "
                "rows as frames or arrays, like those of the first fit."
            )
        self._check_same_conditions(row_of_zeros(source))

    def _check_columns(self, source, *, reset):
        """Check the number and the names of a source's columns, as of an array."""
        self._numbers(row_of_zeros(source), reset=reset)

    def _numbers(self, X, *, reset):
        """Return a table of numbers, in which cells may be missing."""
        accepted = {"dtype": [np.float64, np.float32], "accept_sparse": "csr", "ensure_all_finite": "allow-nan"}
        try:
            X = validate_data(self, X, reset=reset, **accepted)
            return SparseRows(X) if sparse.issparse(X) else X
        except (TypeError, ValueError) as error:
            explain_columns(X, error)
            raise

    def _reads_any_cells(self):
        """Tell whether the columns of an array may be of several kinds, as far as the parameter is understood."""
        likelihood = self.likelihood
        piece = REGISTRY["likelihood"].get(likelihood, Likelihood)() if isinstance(likelihood, str) else likelihood
        return isinstance(piece, Likelihood) and _reads_any_cells(piece)

    def _checked_table(self, X, *, reset):
        """Return a frame, or an array of whatever cells, after a check of its shape and its names."""
        if not is_frame(X):
            return validate_data(self, array_of_list(X), reset=reset, dtype=None, ensure_all_finite=False)
        refuse_equal_names(X)
        validate_data(self, X, reset=reset, skip_check_array=True)
        check_array(np.zeros(X.shape), estimator=self, input_name="X")
        return X

    def _learnt_cells(self, X, weight):
        """Return the cells of the training data, their form, and the likelihoods of the columns.

        The form is that of the rows whose weight is not zero.
        """
        X, likelihood = array_or_frame(X), resolve("likelihood", self.likelihood)
        if not (is_frame(X) or _reads_any_cells(likelihood)):
            of_numbers = Bernoulli() if getattr(X, "dtype", None) == np.bool_ else Gaussian()
            X = self._numbers(X, reset=True)
            likelihoods = [of_numbers if isinstance(likelihood, Mixed) else likelihood] * X.shape[1]
            return X, Form.of_numbers(X.shape[1]), with_conditions(likelihoods, conditions_of(X, self.condition_on))
        _refuse_sparse(X, f"likelihood={likelihood!r}")
        X = self._checked_table(X, reset=True)
        types = likelihood if isinstance(likelihood, Mixed) else Mixed()
        counts = None if weight is None else weight > 0
        rows, weight = (X, None) if counts is None else (rows_where(X, counts), weight[counts])
        chosen, conditions = likelihoods_of(rows, likelihood), conditions_of(rows, self.condition_on)
        form, likelihoods = Form.learn(rows, chosen, types.chosen_for_numbers(), types.handle_unknown, conditions, weight)
        return form.cells(X, counts), form, with_conditions(likelihoods, conditions)


def without_cells(codec):
    """Return the numbers of the columns that the model leaves out because they were missing in all of the training data."""
    return np.setdiff1d(np.flatnonzero(np.isnan(codec.loc)), codec.order)


def array_or_frame(X):
    """Return a table as a frame or an array of whatever cells, NaN where they are masked; refuse sources and other tables."""
    if isinstance(X, torch.Tensor):
        X = array_of_tensor(X)
    if isinstance(X, np.ma.MaskedArray):
        X = X.filled(np.nan) if X.dtype.kind in "fO" else X.astype(np.float64).filled(np.nan)
    if isinstance(X, Source):
        raise TypeError(
            f"This method takes an array, not a {type(X).__name__}: its result would be as large as the data. Call it on "
            "parts, the arrays that the source's stream(block) yields."
        )
    kind = f"{type(X).__module__.partition('.')[0]}.{type(X).__name__}"
    if kind in _OTHER_TABLES:
        raise TypeError(f"X is a {kind}; frames of pandas or polars and arrays are accepted. Pass {_OTHER_TABLES[kind]}.")
    return X


def checked_weight(sample_weight, X):
    """Return the weights of the rows of X, which must not be negative and must have a positive, finite sum."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weight.any():
        raise ValueError("All values of sample_weight are zero: give at least one row a positive weight.")
    with np.errstate(over="ignore"):
        total = weight.sum()
    if total == np.inf:
        raise ValueError(f"The sum of sample_weight is infinite, its largest value {weight.max():g}. Divide all by one number.")
    return weight


def _reads_any_cells(likelihood):
    """Tell whether a likelihood makes of the columns of an array whatever they are, and not numbers of all of them."""
    return likelihood.reads_codes or (isinstance(likelihood, Mixed) and likelihood != Mixed())


def _refuse_sparse(X, reader):
    """Refuse a sparse matrix where columns of several kinds are read."""
    if sparse.issparse(X):
        raise TypeError(
            f"X is a sparse matrix, and {reader} takes frames and arrays. Pass X.toarray(), or use one likelihood of numbers, "
            "such as 'poisson', for all columns."
        )


# --- what cannot be read


def array_of_tensor(X):
    """Return a torch tensor on the CPU as an array; refuse others."""
    if X.device.type != "cpu":
        raise TypeError(
            f"X is a torch tensor on {X.device}; arrays on the CPU are accepted. Pass X.cpu(): the estimator moves its work to "
            "the device that its `device` parameter names."
        )
    return X.detach().resolve_conj().resolve_neg().numpy()


def explain_columns(X, error):
    """Raise an error that names the columns, where `error` came from cells that are no finite numbers."""
    has_texts = "could not convert string" in str(error)
    if isinstance(error, ValueError) and not has_texts and re.search("NaN|infinity", str(error)):
        names = [name for name, column in _columns(X) if not _is_finite(column)]
        what = "NaN" if "NaN" in str(error) else "infinity or a value too large"
        raise ValueError(
            f"Input X contains {what} in {len(names)} column(s): {names[:5]}. Fill or drop such cells first, for example with "
            "SimpleImputer."
        ) from error
    if hasattr(X, "columns") or (has_texts and np.ndim(array_of_list(X)) == 2):
        bad = [name for name, column in _columns(X) if not _reads_as_numbers(column)]
        if bad:
            raise ValueError(
                f"{len(bad)} column(s) cannot be read as numbers: {bad[:5]} ({str(error)[:100]}). A model that is fitted to a "
                "frame reads columns of other kinds (set_output(transform='pandas') makes a ColumnTransformer give one). Else "
                "encode them first, for example with a OneHotEncoder, or leave them out."
            ) from error


def _columns(X):
    if hasattr(X, "columns"):
        return [(name, np.asarray(X[name])) for name in X.columns]
    if sparse.issparse(X):
        X = X.tocsc()
        return [(f"x{j}", X.data[X.indptr[j] : X.indptr[j + 1]]) for j in range(X.shape[1])]
    return [(f"x{j}", column) for j, column in enumerate(np.asarray(array_of_list(X)).T)]


def _is_finite(cells):
    numbers = pd.to_numeric(pd.Series(cells), errors="coerce")  # makes NaN of None and NA
    return bool(np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan)).all())


def _reads_as_numbers(cells):
    try:
        cells.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return cells.dtype.kind not in "mM"
