"""Moments and limits of columns, of all rows at once and part by part."""

import itertools

import numpy as np
import pandas as pd
import pytest

from skvae import VAETransformer, _sparse
from skvae._hashing import canonical_rows
from skvae._statistics import RunningStatistics, column_statistics
from skvae.data import ArraySource


def test_chunks_do_not_matter(monkeypatch):
    X = np.random.default_rng(0).integers(4, size=(50, 3)).astype(float)
    whole = canonical_rows(X, None), column_statistics(X, *canonical_rows(X, None))
    monkeypatch.setattr(_sparse, "_CHUNK_CELLS", 7)
    assert len(_sparse.chunks(X)) == 25
    (rows, weight), statistics = canonical_rows(X, None), column_statistics(X, *canonical_rows(X, None))
    assert np.array_equal(rows, whole[0][0]) and np.array_equal(weight, whole[0][1])
    np.testing.assert_allclose(statistics.mean, whole[1].mean, rtol=1e-14)
    np.testing.assert_allclose(statistics.std, whole[1].std, rtol=1e-14)
    assert np.array_equal(statistics.low, whole[1].low) and np.array_equal(statistics.high, whole[1].high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_statistics_are_those_of_the_repeated_rows(dtype, scale):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(30, 3), loc=2) * scale).astype(dtype)
    weight = rng.integers(1, 5, size=30)
    found = column_statistics(X, np.arange(30), weight.astype(float))
    repeated = np.repeat(X.astype(np.float64), weight, axis=0) / scale
    np.testing.assert_allclose(found.mean / scale, repeated.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std / scale, repeated.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.low / scale, repeated.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.high / scale, repeated.max(axis=0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e160, 1e300, 1e-160, 1e-300])
def test_squares_of_extreme_values_neither_overflow_nor_vanish(scale):
    X = np.array([[-1.0], [1.0], [2.0], [2.0]]) * scale
    found = column_statistics(X, np.arange(4), np.ones(4))
    np.testing.assert_allclose([found.mean[0] / scale, found.std[0] / scale], [1.0, np.sqrt(1.5)], rtol=1e-12)


def test_a_large_offset_leaves_the_deviation_exact():
    X = np.array([[1e8 - 1], [1e8 + 1]])
    assert column_statistics(X, np.arange(2), np.ones(2)).std[0] == 1.0


@pytest.mark.parametrize("factor", [1e300, 1e-300])
def test_the_size_of_the_weights_does_not_matter(factor):
    X, weight = np.random.default_rng(0).normal(size=(10, 2)), np.arange(1.0, 11.0)
    one, other = column_statistics(X, np.arange(10), weight), column_statistics(X, np.arange(10), weight * factor)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-12)


def merged_statistics(X, weight, cuts):
    running = RunningStatistics()
    for start, stop in itertools.pairwise(cuts):
        running.add(X[start:stop], weight[start:stop])
    return running.result()


@pytest.mark.parametrize("scale", [1.0, 1e160, 1e300, 1e-160, 1e-300])
@pytest.mark.parametrize("share_missing", [0.0, 0.4])
def test_statistics_merged_by_chunk_are_those_of_all_rows(scale, share_missing):
    rng = np.random.default_rng(0)
    X, weight = (rng.normal(size=(60, 5)) + [0, 5, 0.1, 1, 1]) * scale, rng.random(60)
    X[:, 2] = scale  # constant
    if share_missing:
        X[rng.random(X.shape) < share_missing] = np.nan
        X[:20, 1] = X[45:, 3] = X[:, 4] = np.nan  # of parts and of the whole
    whole = column_statistics(X, np.arange(60), weight)
    merged = merged_statistics(X, weight, [0, 7, 17, 27, 37, 47, 57, 60])
    for name in ("mean", "std", "low", "high"):
        found, expected = getattr(merged, name) / scale, getattr(whole, name) / scale
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(merged.missing, whole.missing, rtol=1e-14, atol=0)
    assert np.array_equal(merged.missing == 0, ~np.isnan(X).any(axis=0))


def test_few_cells_among_many_holes_lose_no_digits():
    X = np.full((300_000, 2), np.nan)
    cells = np.array([0.1, 0.7, 0.3])
    X[[5, 100_000, 299_999], 0] = cells
    X[299_999, 1] = 0.3
    weight = np.full(len(X), 1 / 3)
    for found in (column_statistics(X, np.arange(len(X)), weight), merged_statistics(X, weight, [0, 70_000, 150_000, 300_000])):
        np.testing.assert_allclose(found.mean, [cells.mean(), 0.3], rtol=1e-15)
        np.testing.assert_allclose(found.std, [cells.std(), 0], rtol=1e-15, atol=1e-16)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("as_sparse", [np.asarray, ArraySource, lambda X: pd.DataFrame(X).assign(flag=X[:, 0] > 0)])
def test_numbers_that_vanish_are_no_errors(as_sparse):
    X = np.random.default_rng(0).normal(size=(60, 4))
    X[:30, 0] *= 1e-200
    X[:5, 1] = 1e200
    X[:, 2] *= 1e-300
    X[:30, 3] *= 1e-310
    X[30:, 3] = 0.0
    table = as_sparse(X)
    if isinstance(table, pd.DataFrame):
        table.columns = table.columns.astype(str)
    with np.errstate(under="raise"):
        vae = VAETransformer(1, max_iter=2, random_state=0).fit(table)
        assert np.isfinite(vae.score(table))
        vae.sample(5, random_state=0)
        vae.partial_fit(table).partial_fit(table)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -7.3, 1e300, 1e-310, -0.0])
def test_columns_that_do_not_vary_have_exact_moments(value, dtype):
    X = np.full((40, 3), min(value, 1e38), dtype=dtype)
    X[::3, 1] = np.nan
    X[:20, 2] = np.nan  # all of the first parts
    weight = np.random.default_rng(0).random(40)
    for found in (column_statistics(X, np.arange(40), weight), merged_statistics(X, weight, [0, 7, 20, 33, 40])):
        assert (found.mean == X[0, 0]).all() and (found.std == 0).all()
        assert not (np.signbit(found.mean) & (found.mean == 0)).any()
