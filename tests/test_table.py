"""The codec: distinct rows, statistics, units there and back."""

import numpy as np
import pytest
import torch

from skvae._table import (
    Column,
    Schema,
    TableCodec,
    _equal_within_groups,
    _sort_by_value,
    canonical_rows,
    column_statistics,
    data_hash,
    training_order,
)
from skvae.likelihoods import Bernoulli, Gaussian

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)) * [1.0, 10.0, 0.1] + [0.0, 100.0, -3.0]


def learn(X, likelihood=None, drop_constant=True):
    rows, weight = canonical_rows(X, None)
    names = [f"c{j}" for j in range(X.shape[1])]
    return TableCodec.learn(column_statistics(X, rows, weight), likelihood or Gaussian(), names, drop_constant)


def test_equal_rows_are_merged_and_rows_of_weight_zero_dropped():
    data = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [-0.0, 0.0], [0.0, -0.0]])
    rows, weight = canonical_rows(data, np.array([1.0, 0.0, 2.0, 1.0, 0.5]))
    found = {tuple(data[r] + 0.0): w for r, w in zip(rows, weight, strict=True)}
    assert found == {(1.0, 2.0): 3.0, (0.0, 0.0): 1.5}


def test_weights_and_repetitions_give_the_same_rows_in_the_same_order():
    times = RNG.integers(0, 4, size=len(X))
    repeated = RNG.permutation(np.repeat(X, times, axis=0))
    rows, weight = canonical_rows(X, times.astype(float))
    other_rows, other_weight = canonical_rows(repeated, None)
    np.testing.assert_array_equal(X[rows], repeated[other_rows])
    np.testing.assert_array_equal(weight, other_weight)


def test_a_collision_of_hashes_is_noticed_and_sorted_out():
    data = np.array([[1.0], [2.0], [1.0]])
    rows = np.array([0, 1, 2])
    assert not _equal_within_groups(data, rows, np.array([True, False, False]))
    rows, first = _sort_by_value(data, rows)
    np.testing.assert_array_equal(data[rows][:, 0], [1.0, 1.0, 2.0])
    np.testing.assert_array_equal(first, [True, False, True])


def test_statistics_are_those_of_numpy():
    weight = RNG.integers(1, 5, size=len(X)).astype(float)
    found = column_statistics(X, np.arange(len(X)), weight)
    repeated = np.repeat(X, weight.astype(int), axis=0)
    np.testing.assert_allclose(found.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, repeated.std(0), rtol=1e-12)
    np.testing.assert_array_equal(found.low, X.min(0))
    np.testing.assert_array_equal(found.high, X.max(0))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e160, 1e300])
def test_statistics_survive_values_whose_squares_do_not(scale):
    found = column_statistics(X * scale, np.arange(len(X)), np.ones(len(X)))
    np.testing.assert_allclose(found.std, X.std(0) * scale, rtol=1e-6)


def test_statistics_do_not_depend_on_the_scale_of_weights():
    one, huge = (column_statistics(X, np.arange(len(X)), np.full(len(X), w)) for w in (1.0, 1e300))
    np.testing.assert_allclose(one.mean, huge.mean, rtol=1e-14)


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian(standardize=False), Bernoulli("observed")], ids=repr)
def test_decode_inverts_encode(likelihood):
    codec = learn(X, likelihood)
    np.testing.assert_allclose(codec.decode(codec.encode(X, dtype=torch.float64).x, np.float64), X, rtol=1e-12)


def test_encoded_columns_are_standardised():
    encoded = learn(X).encode(X, dtype=torch.float64).x
    torch.testing.assert_close(encoded.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_the_jacobian_belongs_to_densities_alone():
    assert learn(X).log_jacobian == pytest.approx(-np.log(X.std(0)).sum())
    assert learn(X, Gaussian(standardize=False)).log_jacobian == 0.0
    assert learn(X, Bernoulli("observed")).log_jacobian == 0.0


def test_constant_columns_are_left_out_and_come_back():
    data = np.column_stack([X, np.full(30, 7.0)])
    codec = learn(data)
    assert codec.n_columns == 3
    assert codec.schema[3] == Column("c3", "gaussian", 7.0, 1.0, constant=True)
    np.testing.assert_allclose(codec.decode(codec.encode(data).x, np.float64), data, rtol=1e-5)
    assert learn(data, drop_constant=False).n_columns == 4


def test_far_away_cells_count_as_a_million_standard_deviations():
    assert learn(X).encode(np.full((1, 3), 1e300)).x.tolist() == [[1e6] * 3]


def test_cells_outside_the_support_are_refused_by_name():
    codec = learn(np.clip(X, 0, 1), Bernoulli())
    with pytest.raises(ValueError, match=r"2 column\(s\) have values outside \[0, 1\].*\['c0', 'c1'\]; for example 2 in 'c0'"):
        codec.encode(np.array([[2.0, -1.0, 0.5]]))


def test_pack_and_unpack_are_inverse():
    codec = learn(np.column_stack([X, np.zeros(30)]))
    again = TableCodec.unpack(codec.pack())
    assert again.schema == codec.schema
    assert again.log_jacobian == codec.log_jacobian
    assert torch.equal(again.encode(np.column_stack([X, np.zeros(30)])).x, codec.encode(np.column_stack([X, np.zeros(30)])).x)


def test_orders_and_fingerprints_follow_the_rows_not_their_order():
    codec = learn(X)
    shuffled = RNG.permutation(X)
    one, other = codec.encode(X), codec.encode(shuffled)
    assert torch.equal(one.x[training_order(one)], other.x[training_order(other)])
    assert data_hash(one) == data_hash(other)
    assert data_hash(one) != data_hash(codec.encode(X[1:]))


def test_schema_prints_as_a_table():
    text = repr(Schema(Column(f"column {j}", "gaussian", 0.5, 2.0, j == 1) for j in range(25)))
    assert text.splitlines()[0].split() == ["column", "kind", "loc", "scale"]
    assert "constant" in text.splitlines()[2]
    assert text.endswith("... and 5 more columns")
