"""The table's codec: canonical rows, statistics, the maps to the model's units and back, and messages about bad cells."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LIKELIHOODS, assert_same_training, table_for
from sklearn.base import clone

from skvae import VAETransformer, _table, _training
from skvae._batch import Batch
from skvae._random import generator
from skvae._schema import ColumnStatistics, Schema, group_columns
from skvae._table import (
    Column,
    LazyRows,
    RunningStatistics,
    TableCodec,
    canonical_rows,
    column_statistics,
    fingerprint,
    hash_sum,
    hashes_of_encoded,
)
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Beta, Gamma, Gaussian


def merged(X, weight=None):
    """Return the distinct rows and their weights as a dictionary."""
    rows, weight = canonical_rows(X, weight)
    return dict(zip(map(tuple, X[rows].tolist()), weight.tolist(), strict=True))


def codec_for(X, likelihood=None, drop_constant=True):
    rows, weight = canonical_rows(X, None)
    names = [f"x{j}" for j in range(X.shape[1])]
    statistics = column_statistics(X, rows, weight)
    return TableCodec.learn(statistics, groups_for(statistics, likelihood, drop_constant), names)


def groups_for(statistics, likelihood=None, drop_constant=True):
    return group_columns([likelihood or Gaussian()] * len(statistics.low), statistics, not drop_constant)


# --- canonical rows --------------------------------------------------------------------------------------------------


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


def test_chunks_do_not_matter(monkeypatch):
    X = np.random.default_rng(0).integers(4, size=(50, 3)).astype(float)
    whole = canonical_rows(X, None), column_statistics(X, *canonical_rows(X, None))
    monkeypatch.setattr(_table, "_CHUNK_CELLS", 7)
    assert len(_table._chunks(X)) == 25
    (rows, weight), statistics = canonical_rows(X, None), column_statistics(X, *canonical_rows(X, None))
    assert np.array_equal(rows, whole[0][0]) and np.array_equal(weight, whole[0][1])
    np.testing.assert_allclose(statistics.mean, whole[1].mean, rtol=1e-14)
    np.testing.assert_allclose(statistics.std, whole[1].std, rtol=1e-14)
    assert np.array_equal(statistics.low, whole[1].low) and np.array_equal(statistics.high, whole[1].high)


def test_sorting_by_value_finds_the_distinct_rows():
    X = np.array([[1.0, 2.0], [0.0, 5.0], [1.0, 2.0], [-0.0, 5.0], [0.0, 4.0], [9.0, 9.0]])
    rows, first = _table._sort_by_value(X, np.arange(5))
    assert X[rows].tolist() == [[0.0, 4.0], [0.0, 5.0], [0.0, 5.0], [1.0, 2.0], [1.0, 2.0]]
    assert first.tolist() == [True, True, False, True, False]


def test_rows_whose_hashes_collide_stay_apart(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.integers(3, size=(40, 2)).astype(float)
    weight = rng.integers(3, size=40).astype(float)
    expected = merged(X, weight)
    monkeypatch.setattr(_table, "row_hashes", lambda X: (X[:, 0] > 0).astype(np.uint64))
    assert merged(X, weight) == expected
    shuffled = rng.permutation(40)
    rows, again = canonical_rows(X, weight)[0], canonical_rows(X[shuffled], weight[shuffled])[0]
    assert np.array_equal(X[rows], X[shuffled][again])


def test_different_rows_have_different_hashes():
    grid = np.stack(np.meshgrid(*[np.arange(40.0)] * 3), axis=-1).reshape(-1, 3)
    assert len(np.unique(_table.row_hashes(grid))) == len(grid)


# --- statistics ------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("as_table", [np.asarray, ArraySource, lambda X: pd.DataFrame(X).assign(flag=X[:, 0] > 0)])
def test_numbers_that_vanish_are_no_errors(as_table):
    X = np.random.default_rng(0).normal(size=(60, 4))
    X[:30, 0] *= 1e-200
    X[:5, 1] = 1e200
    X[:, 2] *= 1e-300
    X[:30, 3] *= 1e-310
    X[30:, 3] = 0.0
    table = as_table(X)
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


# --- order and fingerprint of the training rows ----------------------------------------------------------------------


def test_training_order_depends_neither_on_the_order_of_the_rows_nor_on_their_units():
    X = np.random.default_rng(0).normal(size=(30, 3))
    shuffled = np.random.default_rng(1).permutation(30)
    hashed = hashes_of_encoded(codec_for(X), X, np.arange(30), torch.float32)
    again = hashes_of_encoded(codec_for(4 * X), 4 * X[shuffled], np.arange(30), torch.float32)
    assert np.array_equal(np.argsort(hashed), shuffled[np.argsort(again)])


def test_fingerprint_changes_with_every_cell_and_weight():
    def of(x, weight=None):
        return fingerprint(hash_sum(_table.row_hashes(x.numpy()), weight, x.shape[1]))

    x, weight = torch.arange(6.0).reshape(3, 2), torch.tensor([1.0, 2.0, 3.0])
    moved = x.clone()
    moved[2, 1] += 1
    found = [of(x), of(x, weight), of(x, weight.flip(0)), of(moved), of(x[:2]), of(moved, weight)]
    assert len(set(found)) == len(found)
    assert all(0 <= value < 2**63 for value in found)
    assert of(x.clone()) == found[0]
    assert of(x, weight) == of(torch.cat([x, weight[:, None]], 1)), "a weight counts as one more column"
    assert of(x.flip(0), weight.flip(0)) == found[1]


# --- the schema, and messages ----------------------------------------------------------------------------------------


def test_schema_prints_as_a_table_and_says_what_it_leaves_out():
    columns = [Column("width", "gaussian", 1.5, 0.25), Column("always", "gaussian", 3.0, 1.0, constant=True)]
    first, second = repr(Schema(columns)).splitlines()[1:]
    assert first.split() == ["width", "gaussian", "1.5", "0.25"]
    assert second.split() == ["always", "constant", "3", "1"]
    assert repr(Schema(columns * 20)).endswith("... and 20 more columns")


def test_units_that_would_be_zero_become_one():
    statistics = ColumnStatistics(*(np.array([v]) for v in (3.0, 0.0, 3.0, 3.0, 0.0)))
    groups = groups_for(statistics, Bernoulli(limits="observed"))
    assert TableCodec.learn(statistics, groups, ["a"]).scale.tolist() == [1.0]


def test_tensors_elsewhere_are_refused_and_those_here_are_read_without_a_copy():
    with pytest.raises(TypeError, match=r"on meta; arrays on the CPU.*Pass X\.cpu\(\)"):
        _table.array_of_tensor(torch.zeros(2, 2, device="meta"))
    X = torch.zeros(2, 2, requires_grad=True)
    assert np.shares_memory(_table.array_of_tensor(X), X.detach().numpy())


def test_columns_without_numbers_are_named():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "when": pd.to_datetime(["2020-01-01", "2020-01-02"])})
    with pytest.raises(ValueError, match=r"2 column\(s\) cannot be read as numbers: \['b', 'when'\]"):
        _table.explain_columns(frame, ValueError("could not convert"))


@pytest.mark.parametrize("as_table", [np.asarray, lambda X: X.tolist()])
def test_texts_in_arrays_of_numbers_are_named_with_what_to_pass(as_table):
    X = as_table(np.array([[True, "NaN?"], [False, "y"]], dtype=object))
    with pytest.raises(ValueError, match=r"\['x1'\] \(could not convert string to float: 'NaN\?'\)\. A model.*set_output"):
        VAETransformer(1).fit(X)


@pytest.mark.parametrize("X", [pd.Series(["a", "b"]), np.array(["a", "b"], dtype=object), ["a", "b"], "abc"], ids=repr)
def test_what_is_no_table_of_texts_is_refused_as_scikit_learn_does(X):
    with pytest.raises(ValueError, match="could not convert string|Expected 2D array"):
        VAETransformer(1).fit(X)


def test_columns_with_missing_cells_are_named():
    X = np.array([[1.0, np.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"Input X contains NaN in 1 column\(s\): \['x1'\]"):
        _table.explain_columns(X, ValueError("Input X contains NaN."))


def test_other_errors_are_left_to_their_sender():
    _table.explain_columns(pd.DataFrame({"a": [1.0]}), ValueError("something else"))
    _table.explain_columns(np.ones((2, 2)), TypeError("something else"))


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
    monkeypatch.setattr(_table, "_CHUNK_CELLS", 64)
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


def test_weights_of_rows_without_copies_take_no_memory():
    _, weight = canonical_rows(np.arange(10.0)[:, None], None)
    assert weight.tolist() == [1.0] * 10 and weight.strides == (0,)


def test_row_numbers_take_four_bytes():
    assert canonical_rows(np.arange(10.0)[:, None], np.ones(10))[0].dtype == np.int32
    assert _table._small_integers(np.arange(3), 2**31).dtype == np.int64


def test_masked_cells_are_missing_cells():
    X = np.random.default_rng(0).normal(size=(60, 4))
    masked = np.ma.array(X.copy(), mask=False)
    masked[3, 2] = 1e9
    masked[3, 2] = np.ma.masked
    holes = X.copy()
    holes[3, 2] = np.nan
    whole = np.ma.array([[1, 2], [3, 4], [5, 6]] * 10, mask=[[0, 1], [0, 0], [0, 0]] * 10)  # of whole numbers
    model, other = (VAETransformer(2, max_iter=5, learning_rate="cosine", random_state=0).fit(rows) for rows in (masked, holes))
    np.testing.assert_array_equal(model.score_samples(masked), other.score_samples(holes))
    model.fit(whole)
    assert np.isfinite(model.impute(whole)).all() and np.isfinite(model.score(whole))
