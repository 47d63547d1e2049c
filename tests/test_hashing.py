"""Rows by their hashes: distinct ones, their order, and their fingerprint."""

import numpy as np
import pytest
import torch

from skvae import _hashing
from skvae._hashing import canonical_rows, fingerprint, hash_sum, row_hashes


def merged(X, weight=None):
    """Return the distinct rows and their weights as a dictionary."""
    rows, weight = canonical_rows(X, weight)
    return dict(zip(map(tuple, X[rows].tolist()), weight.tolist(), strict=True))


def test_equal_rows_are_merged_and_their_weights_added():
    X = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.0]])
    assert merged(X) == {(1.0, 2.0): 3.0, (3.0, 4.0): 1.0}
    assert merged(X, np.array([0.5, 2.0, 0.25, 0.0])) == {(1.0, 2.0): 0.75, (3.0, 4.0): 2.0}


def test_rows_of_weight_zero_are_dropped():
    assert merged(np.array([[1.0], [2.0], [3.0]]), np.array([0.0, 1.0, 0.0])) == {(2.0,): 1.0}


def test_negative_zero_is_zero():
    rows, weight = canonical_rows(np.array([[0.0, 1.0], [-0.0, 1.0]]), None)
    assert rows.tolist() == [0] and weight.tolist() == [2.0]


def test_columns_that_swap_their_values_make_another_row():
    assert len(merged(np.array([[1.0, 2.0], [2.0, 1.0]]))) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_does_not_depend_on_the_order_of_the_rows(dtype):
    rng = np.random.default_rng(0)
    X = rng.integers(3, size=(50, 3)).astype(dtype)
    weight = rng.integers(4, size=50).astype(float)
    rows, total = canonical_rows(X, weight)
    shuffled = rng.permutation(50)
    rows_again, total_again = canonical_rows(X[shuffled], weight[shuffled])
    assert np.array_equal(X[rows], X[shuffled][rows_again]) and np.array_equal(total, total_again)


def test_rows_of_single_precision_are_those_of_double_precision():
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    assert np.array_equal(canonical_rows(X, None)[0], canonical_rows(X.astype(np.float64), None)[0])


def test_repetition_is_weight():
    X = np.random.default_rng(0).normal(size=(20, 3))
    weight = np.arange(20) % 4
    assert merged(X, weight.astype(float)) == merged(np.repeat(X, weight, axis=0))


def test_sorting_by_value_finds_the_distinct_rows():
    X = np.array([[1.0, 2.0], [0.0, 5.0], [1.0, 2.0], [-0.0, 5.0], [0.0, 4.0], [9.0, 9.0]])
    rows, first = _hashing._sort_by_value(X, np.arange(5))
    assert X[rows].tolist() == [[0.0, 4.0], [0.0, 5.0], [0.0, 5.0], [1.0, 2.0], [1.0, 2.0]]
    assert first.tolist() == [True, True, False, True, False]


def test_rows_whose_hashes_collide_stay_apart(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.integers(3, size=(40, 2)).astype(float)
    weight = rng.integers(3, size=40).astype(float)
    expected = merged(X, weight)
    monkeypatch.setattr(_hashing, "row_hashes", lambda X: (X[:, 0] > 0).astype(np.uint64))
    assert merged(X, weight) == expected
    shuffled = rng.permutation(40)
    rows, again = canonical_rows(X, weight)[0], canonical_rows(X[shuffled], weight[shuffled])[0]
    assert np.array_equal(X[rows], X[shuffled][again])


def test_different_rows_have_different_hashes():
    grid = np.stack(np.meshgrid(*[np.arange(40.0)] * 3), axis=-1).reshape(-1, 3)
    assert len(np.unique(row_hashes(grid))) == len(grid)


def test_fingerprint_changes_with_every_cell_and_weight():
    def of(x, weight=None):
        return fingerprint(hash_sum(row_hashes(x.numpy()), weight, x.shape[1]))

    x, weight = torch.arange(6.0).reshape(3, 2), torch.tensor([1.0, 2.0, 3.0])
    moved = x.clone()
    moved[2, 1] += 1
    found = [of(x), of(x, weight), of(x, weight.flip(0)), of(moved), of(x[:2]), of(moved, weight)]
    assert len(set(found)) == len(found)
    assert all(0 <= value < 2**63 for value in found)
    assert of(x.clone()) == found[0]
    assert of(x, weight) == of(torch.cat([x, weight[:, None]], 1)), "a weight counts as one more column"
    assert of(x.flip(0), weight.flip(0)) == found[1]


def test_weights_of_rows_without_copies_take_no_memory():
    _, weight = canonical_rows(np.arange(10.0)[:, None], None)
    assert weight.tolist() == [1.0] * 10 and weight.strides == (0,)


def test_row_numbers_take_four_bytes():
    assert canonical_rows(np.arange(10.0)[:, None], np.ones(10))[0].dtype == np.int32
    assert _hashing._small_integers(np.arange(3), 2**31).dtype == np.int64
