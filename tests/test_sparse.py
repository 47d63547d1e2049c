"""Sparse matrices: the same numbers as for dense ones, to the last bit, a few dense rows at a time."""

import numpy as np
import pandas as pd
import pytest
from conftest import assert_same_training
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from skvae import VAETransformer, _sparse
from skvae._hashing import canonical_rows, row_hashes
from skvae._sparse import SparseRows
from skvae._statistics import column_statistics
from skvae.likelihoods import Categorical, Mixed

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FORMATS = [sparse.csr_matrix, sparse.csr_array, sparse.csc_array, sparse.coo_matrix]


def counts(n=120, d=12, seed=0):
    """Return counts, most of them zero; some rows have no others, and some are equal."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(0.6 * rng.random((n, 1)) * rng.random((1, d)), size=(n, d)).astype(float)
    X[3] = 0.0
    return X


def fit(X, likelihood="poisson", **params):
    defaults = {"max_iter": 4, "hidden_layer_sizes": (8,), "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(2, likelihood=likelihood, **{**defaults, **params}).fit(X)


def holed(X):
    X = X.copy()
    X[::7, 1] = np.nan
    X[5, :3] = np.nan
    return X


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("likelihood", ["auto", "poisson", "negative_binomial"])
@pytest.mark.parametrize("make", [counts, lambda: holed(counts())], ids=["complete", "holed"])
def test_sparse_matrix_gives_what_the_dense_one_gives_to_the_last_bit(make, likelihood, form):
    X = make()
    dense, other = fit(X, likelihood), fit(form(X), likelihood)
    assert_same_training(dense, other)
    for rows in (counts(), holed(counts())):
        for name in ("transform", "score_samples", "reconstruct"):
            np.testing.assert_array_equal(getattr(other, name)(form(rows)), getattr(dense, name)(rows))
        np.testing.assert_array_equal(other.posterior_moments(form(rows)).std, dense.posterior_moments(rows).std)


def test_weights_and_single_batches_are_taken_as_of_an_array():
    X, weight = counts(), np.arange(120) % 3
    settings = {"likelihood": "poisson", "hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 3}
    one, other = VAETransformer(2, **settings), VAETransformer(2, **settings)
    one.fit(X, sample_weight=weight), other.fit(sparse.csr_array(X), sample_weight=weight)
    assert_same_training(one, other)
    one.partial_fit(X[:50]), other.partial_fit(sparse.csr_array(X[:50]))
    np.testing.assert_array_equal(one._fitted.params, other._fitted.params)
    assert one.score(X, sample_weight=weight) == other.score(sparse.csr_array(X), sample_weight=weight)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_models_of_arrays_and_of_frames_of_numbers_read_sparse_rows():
    X = counts()
    expected = fit(X).score_samples(X)
    for table in (X, pd.DataFrame(X, columns=[f"gene {j}" for j in range(12)])):
        np.testing.assert_array_equal(fit(table).score_samples(sparse.csr_array(X)), expected)


def test_sparse_columns_of_a_frame_keep_their_type():
    X = counts()
    frame = pd.DataFrame({name: pd.arrays.SparseArray(X[:, j], fill_value=0.0) for j, name in enumerate("abcdefghijkl")})
    vae = fit(frame)
    np.testing.assert_array_equal(vae.score_samples(frame), fit(X).score_samples(X))
    assert vae.reconstruct(frame).dtypes.equals(frame.dtypes)
    assert vae.sample(5, random_state=0).dtypes.equals(frame.dtypes)


cells = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e300, np.nan])


@given(X=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=cells))
def test_sparse_rows_have_the_hashes_of_dense_ones(X):
    np.testing.assert_array_equal(row_hashes(SparseRows(sparse.csr_array(X))), row_hashes(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_rows_and_statistics_are_those_of_the_dense_table(dtype, index, monkeypatch):
    monkeypatch.setattr(_sparse, "_CHUNK_CELLS", 100)
    X = holed(counts()).astype(dtype)
    matrix = sparse.csr_array(X)
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    rows, weight = canonical_rows(X, None)
    found, found_weight = canonical_rows(SparseRows(matrix), None)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_array_equal(found_weight, weight)
    one, other = column_statistics(X, rows, weight), column_statistics(SparseRows(matrix), rows, weight)
    for name in ("mean", "std", "low", "high", "missing"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))


def test_matrix_of_the_user_stays_as_it_is_and_duplicates_add_up():
    rows, columns, values = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 2, 0]), np.array([1.0, 2.0, 4.0, 0.0, 5.0])
    indptr = np.array([0, 2, 3, 5])
    matrix = sparse.csr_array((values, columns, indptr), shape=(3, 3))
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    wrapped = SparseRows(matrix)
    dense = np.zeros((3, 3))
    np.add.at(dense, (rows, columns), values)
    np.testing.assert_array_equal(wrapped[:], dense)
    np.testing.assert_array_equal(np.asarray(wrapped), dense)
    np.testing.assert_array_equal(row_hashes(wrapped), row_hashes(dense))
    np.testing.assert_array_equal(matrix.data, values)
    np.testing.assert_array_equal(matrix.indices, columns)


def test_no_more_than_a_few_rows_are_dense_at_a_time(monkeypatch):
    largest = 0

    class Watched(SparseRows):
        def __getitem__(self, rows):
            nonlocal largest
            found = super().__getitem__(rows)
            largest = max(largest, found.size)
            return found

        def __array__(self, *args, **kwargs):
            raise AssertionError("the whole matrix was made dense")

    monkeypatch.setattr("skvae._reading.SparseRows", Watched)
    monkeypatch.setattr(_sparse, "_CHUNK_CELLS", 2**12)
    X = sparse.csr_array(counts(3000, 40))
    vae = fit(X, max_iter=1)
    assert 0 < largest <= 2**12
    vae.transform(X), vae.set_params(score_method="elbo").score_samples(X)
    assert largest <= 256 * 40 < X.shape[0] * 40 / 10


def test_cells_that_are_kept_beside_the_change_come_back_dense():
    X = counts()
    vae = fit(X)
    one, other = (vae.edit(table, [1.0, 0.0], keep_residual=True) for table in (X, sparse.csr_array(X)))
    np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("likelihood", [Categorical(), Mixed({0: "poisson"})], ids=repr)
def test_columns_of_several_kinds_are_refused_with_advice(likelihood):
    with pytest.raises(TypeError, match=r"sparse matrix.*takes frames and arrays.*toarray"):
        fit(sparse.csr_array(counts()), likelihood)


def test_model_of_categories_refuses_sparse_rows():
    frame = pd.DataFrame({"kind": ["a", "b", "c"] * 10, "x": np.arange(30.0)})
    vae = fit(frame, "auto")
    with pytest.raises(TypeError, match="a model of columns with categories takes frames and arrays"):
        vae.transform(sparse.csr_array(np.zeros((2, 2))))


def test_infinite_and_inadmissible_cells_are_named():
    X = counts()
    X[3, 7] = np.inf
    with pytest.raises(ValueError, match=r"infinity.*1 column\(s\): \['x7'\]"):
        fit(sparse.csr_array(X))
    X[3, 7] = 0.5
    with pytest.raises(ValueError, match=r"no whole numbers.*\['x7'\].*0.5"):
        fit(sparse.csr_array(X))


def test_conditions_are_read_from_sparse_rows():
    X = counts()
    dense, other = (fit(table, condition_on=[0, 3]) for table in (X, sparse.csr_array(X)))
    np.testing.assert_array_equal(other._fitted.params, dense._fitted.params)
    np.testing.assert_array_equal(other.reconstruct(sparse.csr_array(X)), dense.reconstruct(X))
    np.testing.assert_array_equal(other.score_samples(sparse.csr_array(X)), dense.score_samples(X))


def test_holes_of_sparse_rows_are_filled_in_a_dense_table():
    X = holed(counts())
    vae = fit(X)
    np.testing.assert_array_equal(vae.impute(sparse.csr_array(X)), vae.impute(X))
    np.testing.assert_array_equal(vae.score_cells(sparse.csr_array(X[:5])), vae.score_cells(X[:5]))
