"""The table's codec: the maps to the model's units and back, and rows that are encoded on the way."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LIKELIHOODS, assert_same_training, table_for
from sklearn.base import clone

from skvae import VAETransformer, _sparse, _training
from skvae._batch import Batch
from skvae._form import Form
from skvae._hashing import canonical_rows
from skvae._random import generator
from skvae._schema import Column, Schema, group_columns
from skvae._statistics import ColumnStatistics, column_statistics
from skvae._table import LazyRows, TableCodec, hashes_of_encoded
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Beta, Gamma, Gaussian


def codec_for(X, likelihood=None, drop_constant=True):
    rows, weight = canonical_rows(X, None)
    names = [f"x{j}" for j in range(X.shape[1])]
    statistics = column_statistics(X, rows, weight)
    return TableCodec.learn(statistics, groups_for(statistics, likelihood, drop_constant), names, Form.of_numbers(X.shape[1]))


def groups_for(statistics, likelihood=None, drop_constant=True):
    return group_columns([likelihood or Gaussian()] * len(statistics.low), statistics, not drop_constant)


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_undoes_encoding(likelihood, dtype):
    X = table_for(likelihood)
    codec = codec_for(X, likelihood)
    batch = codec.encode(X, dtype=dtype)
    assert batch.x.dtype == dtype and batch.x.shape == X.shape and batch.weight is None
    np.testing.assert_allclose(codec.decode(batch.x, X.dtype), X, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_standardized_columns_have_mean_zero_and_deviation_one():
    X = np.random.default_rng(0).normal(5, 3, size=(50, 3))
    x = codec_for(X).encode(X, dtype=torch.float64).x.numpy()
    np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-12)


def test_chosen_rows_are_encoded_in_the_order_given():
    X = np.random.default_rng(0).normal(size=(10, 2))
    codec = codec_for(X)
    rows = np.array([7, 0, 3])
    assert torch.equal(codec.encode(X, rows).x, codec.encode(X).x[rows])


def test_encoding_makes_a_copy():
    X = np.zeros((3, 2), dtype=np.float32) + np.arange(3, dtype=np.float32)[:, None]
    X.flags.writeable = False
    codec = codec_for(X, Gaussian(standardize=False))
    codec.encode(X).x.add_(1)
    assert X[0, 0] == 0


def test_a_constant_column_is_left_out_and_comes_back():
    X = np.column_stack([np.arange(4.0), np.full(4, 7.0)])
    codec = codec_for(X)
    assert codec.order.tolist() == [0] and codec.n_columns == 1
    assert [c.constant for c in codec.schema] == [False, True]
    assert codec.encode(X).x.shape == (4, 1)
    assert np.array_equal(codec.decode(codec.encode(X, dtype=torch.float64).x, X.dtype), X)
    assert codec.variance(np.array([0.25])).tolist() == [0.25 * codec.scale[0] ** 2, 0.0]


def test_a_constant_column_stays_where_later_rows_may_vary():
    codec = codec_for(np.full((3, 1), 7.0), drop_constant=False)
    assert codec.n_columns == 1
    assert codec.encode(np.array([[9.0]])).x.item() == 2.0


@pytest.mark.parametrize("source", [np.asarray, pd.DataFrame, ArraySource])
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t", "laplace"])
def test_a_constant_column_of_a_first_batch_has_the_unit_one(likelihood, source):
    first, second = np.random.default_rng(0).normal(size=(2, 40, 3))
    first[:, 2] = 0.1
    vae = VAETransformer(1, likelihood=likelihood, max_iter=2, random_state=0).partial_fit(source(first))
    assert (vae.schema_[2].loc, vae.schema_[2].scale) == (0.1, 1.0)
    assert vae.partial_fit(source(second)).score(second) > -100


def test_log_jacobian_is_minus_the_sum_of_log_scales():
    X = np.random.default_rng(0).normal(size=(50, 3)) * [0.1, 1, 1000]
    codec = codec_for(X)
    np.testing.assert_allclose(codec.log_jacobian, -np.log(X.std(axis=0)).sum())
    assert codec_for(X, Gaussian(standardize=False)).log_jacobian == 0
    assert codec_for(table_for(Bernoulli((0, 16))), Bernoulli((0, 16))).log_jacobian == 0


def test_log_jacobian_turns_a_density_of_the_model_into_one_of_the_data():
    X = np.random.default_rng(0).normal(5, 3, size=(50, 2))
    codec = codec_for(X)
    x = codec.encode(X, dtype=torch.float64).x
    in_model = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    in_data = torch.distributions.Normal(torch.tensor(codec.loc), torch.tensor(codec.scale)).log_prob(torch.tensor(X)).sum(1)
    torch.testing.assert_close(in_model + codec.log_jacobian, in_data)


def test_values_far_away_are_moved_to_the_edge_of_the_support():
    X = np.array([[-1.0], [1.0]])
    assert codec_for(X).encode(np.array([[1e30], [-1e300], [3.0]])).x.flatten().tolist() == [1e6, -1e6, 3.0]
    observed = codec_for(X, Bernoulli(limits="observed"))
    assert observed.encode(np.array([[1e30], [-7.0], [0.0]])).x.flatten().tolist() == [1.0, 0.0, 0.5]


def test_values_outside_the_limits_are_refused_with_column_and_value():
    codec = codec_for(np.array([[0.0, 0.0], [16.0, 8.0]]), Bernoulli((0, 16)))
    with pytest.raises(ValueError, match=r"1 column.* outside \[0, 16\].*\['x1'\]; for example 16.5 in 'x1'"):
        codec.encode(np.array([[3.0, 16.5]]))


@pytest.mark.parametrize(
    ("likelihood", "limits"),
    [(Beta(limits=(20, 100)), r"\(20, 100\)"), (Beta(limits=(-10, 0)), r"\(-10, 0\)"), (Gamma(), r"\(0, inf\)")],
    ids=repr,
)
def test_limits_that_are_outside_are_told_in_the_units_of_the_column(likelihood, limits):
    with pytest.raises(ValueError, match=f"values outside {limits}, "):
        VAETransformer(1, likelihood=likelihood).fit(np.linspace(-20, 120, 60).reshape(-1, 2))


def test_packing_and_unpacking_gives_the_same_codec():
    X = np.column_stack([np.random.default_rng(0).normal(size=(9, 2)), np.ones(9)])
    codec = codec_for(X)
    again = TableCodec.unpack(codec.pack())
    assert again.schema == codec.schema and again.n_columns == 2
    assert torch.equal(again.encode(X).x, codec.encode(X).x)
    assert again.log_jacobian == codec.log_jacobian
    for name in ("low", "high", "is_density", "clips"):
        assert np.array_equal(getattr(again, name), getattr(codec, name))


def test_unpacked_arrays_are_copies():
    packed = codec_for(np.arange(4.0)[:, None]).pack()
    assert not np.shares_memory(TableCodec.unpack(packed).loc, packed["loc"])


# --- order of the training rows --------------------------------------------------------------------------------------


def test_training_order_depends_neither_on_the_order_of_the_rows_nor_on_their_units():
    X = np.random.default_rng(0).normal(size=(30, 3))
    shuffled = np.random.default_rng(1).permutation(30)
    hashed = hashes_of_encoded(codec_for(X), X, np.arange(30), torch.float32)
    again = hashes_of_encoded(codec_for(4 * X), 4 * X[shuffled], np.arange(30), torch.float32)
    assert np.array_equal(np.argsort(hashed), shuffled[np.argsort(again)])


# --- the schema ------------------------------------------------------------------------------------------------------


def test_schema_prints_as_a_table_and_says_what_it_leaves_out():
    columns = [Column("width", "gaussian", 1.5, 0.25), Column("always", "gaussian", 3.0, 1.0, constant=True)]
    first, second = repr(Schema(columns)).splitlines()[1:]
    assert first.split() == ["width", "gaussian", "1.5", "0.25"]
    assert second.split() == ["always", "constant", "3", "1"]
    assert repr(Schema(columns * 20)).endswith("... and 20 more columns")


def test_units_that_would_be_zero_become_one():
    statistics = ColumnStatistics(*(np.array([v]) for v in (3.0, 0.0, 3.0, 3.0, 0.0)))
    groups = groups_for(statistics, Bernoulli(limits="observed"))
    assert TableCodec.learn(statistics, groups, ["a"], Form.of_numbers(1)).scale.tolist() == [1.0]


# --- rows that are encoded on the way --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [None, "uneven"])
@pytest.mark.parametrize("way", [{}, {"early_stopping": False}, {"likelihood": Bernoulli("observed"), "dtype": "float64"}])
def test_rows_encoded_on_the_way_train_as_those_encoded_beforehand(monkeypatch, way, weight, dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)).astype(dtype)
    X[200:] = X[:100]  # copies
    X = np.column_stack([X, np.ones(300)])  # and a constant column
    weight = None if weight is None else rng.integers(3, size=300)
    vae = VAETransformer(2, hidden_layer_sizes=(4,), max_iter=5, random_state=0, warm_start=True, **way)
    eager = clone(vae).fit(X, sample_weight=weight)
    monkeypatch.setattr(_training, "room_for_data", lambda device: 0)
    monkeypatch.setattr(_sparse, "_CHUNK_CELLS", 64)
    monkeypatch.setattr(TableCodec, "learn", lambda *args: eager._fitted.codec)  # chunks add up in another order
    lazy = vae.fit(X, sample_weight=weight)
    assert_same_training(lazy, eager)
    assert lazy._fitted.training.data_hash == eager._fitted.training.data_hash


def test_lazy_rows_give_the_windows_of_a_batch():
    X = np.random.default_rng(0).normal(size=(100, 3))
    codec, weight = codec_for(X), torch.rand(70, generator=generator(0, "weight"))
    rows = np.random.default_rng(1).permutation(100)[:70]
    lazy = LazyRows(codec, X, rows, weight, torch.float32, torch.device("cpu"))
    batch = Batch(codec.encode(X, rows).x, weight)
    assert (len(lazy), lazy.n_columns, lazy.dtype, lazy.device) == (len(batch), 3, batch.dtype, batch.device)
    for size in (16, 100):
        for mine, theirs in zip(lazy.epoch(size, generator(0), 2), batch.epoch(size, generator(0), 2), strict=True):
            assert (
                torch.equal(mine[0].x, theirs[0].x) and torch.equal(mine[0].weight, theirs[0].weight) and mine[1] == theirs[1]
            )
    assert torch.equal(lazy.head(5).x, batch.head(5).x) and torch.equal(lazy.encoded().weight, weight)
