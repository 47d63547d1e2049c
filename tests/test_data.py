"""Data sources: what they read, what they refuse, and estimators on them."""

import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from skvae import VAETransformer, data
from skvae.data import ArraySource, ParquetSource, Source, as_source
from skvae.likelihoods import Bernoulli, SelfMasking

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(n=300, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) + 3 * rng.integers(2, size=(n, 1))).astype(dtype)


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 3, "hidden_layer_sizes": (4,), "random_state": 0, **params})


def write(path, X, names="abc", group=40, **columns):
    frame = pd.DataFrame(X, columns=list(names)).assign(**columns)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=group)


@pytest.fixture
def folder(tmp_path):
    """Three hundred rows in three files and many row groups."""
    X = rows()
    for i, name in enumerate(["a.parquet", "b/part.parquet", "c.parquet"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, X[100 * i : 100 * i + 100])
    return tmp_path


def all_of(source):
    return np.concatenate([source.read(block) for block in range(len(source.block_sizes))])


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_files(folder):
    source = ParquetSource(folder)
    assert source.feature_names == ["a", "b", "c"] and source.n_features == 3 and len(source) == 300
    assert source.block_sizes == [40, 40, 20] * 3
    np.testing.assert_array_equal(all_of(source), rows())


def test_reading_in_order_gives_the_same_rows(folder, monkeypatch):
    monkeypatch.setattr(data, "_STREAM_CELLS", 33)
    source = ParquetSource(folder)
    parts = [part for block in range(len(source.block_sizes)) for part in source.stream(block)]
    assert max(map(len, parts)) == 11
    np.testing.assert_array_equal(np.concatenate(parts), rows())


def test_chosen_rows_and_columns_are_read(folder):
    source = ParquetSource(folder / "c.parquet", columns=["c", "a"])
    np.testing.assert_array_equal(source.read(1, np.array([3, 7])), rows()[[243, 247]][:, [2, 0]])
    np.testing.assert_array_equal(next(source.stream(0)), rows()[200:240, [2, 0]])


def test_hidden_files_do_not_count(folder):
    (folder / "_tmp").mkdir()
    write(folder / "_tmp/x.parquet", rows(10), "xyz")
    write(folder / ".c.parquet", rows(10), "xyz")
    assert len(ParquetSource(folder)) == 300


def test_the_index_of_a_frame_is_no_column(tmp_path):
    pd.DataFrame(rows(), columns=list("abc")).iloc[::2].to_parquet(tmp_path / "a.parquet")
    assert ParquetSource(tmp_path).feature_names == ["a", "b", "c"]


def test_no_level_of_an_index_without_names_is_a_column(tmp_path):
    index = pd.MultiIndex.from_product([range(10), range(30)])
    pd.DataFrame(rows(), index=index, columns=list("abc")).to_parquet(tmp_path / "a.parquet")
    assert ParquetSource(tmp_path).feature_names == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["empty", "short", "half", "text", "footer"])
def test_files_that_cannot_be_read_are_named(folder, damage):
    good = (folder / "a.parquet").read_bytes()
    damaged = {"empty": b"", "short": b"PAR1", "half": good[: len(good) // 2], "text": b"a,b,c" * 9,
               "footer": good[:-200] + bytes(192) + good[-8:]}  # fmt: skip
    (folder / "d.parquet").write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"d\.parquet' cannot be read as a parquet file: .* Write it again, or take it out"):
        ParquetSource(folder)


def test_files_with_damaged_rows_are_named(folder):
    good = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(good[:4] + b"\xff" * 16 + good[20:])
    source = ParquetSource(folder)
    for read in (source.read, lambda block: list(source.stream(block))):
        with pytest.raises(ValueError, match=r"a\.parquet' cannot be read as a parquet file"):
            read(0)


def test_columns_in_the_names_of_folders_are_refused(tmp_path):
    pd.DataFrame(rows(), columns=list("abc")).assign(k=np.arange(300) % 2).to_parquet(tmp_path / "k", partition_cols=["k"])
    for columns in (None, ["a", "k"]):
        with pytest.raises(ValueError, match=r"has the column\(s\) \['k'\] in the names of its folders alone"):
            ParquetSource(tmp_path / "k", columns)
    assert len(ParquetSource(tmp_path / "k", columns=["a", "b"])) == 300
    assert ParquetSource(tmp_path / "k" / "k=1").feature_names == ["a", "b", "c"]
    for k in (0, 1):
        write(tmp_path / "k" / f"k={k}" / "more.parquet", rows(10), k=k)
        for file in (tmp_path / "k" / f"k={k}").glob("*-0.parquet"):
            file.unlink()
    assert ParquetSource(tmp_path / "k").feature_names == ["a", "b", "c", "k"]


def test_columns_are_a_list_of_names(folder):
    with pytest.raises(TypeError, match=r"got the text 'ab'. Pass columns=\['ab'\]"):
        ParquetSource(folder, columns="ab")
    with pytest.raises(ValueError, match="columns is empty"):
        ParquetSource(folder, columns=[])
    assert ParquetSource(folder, columns=(name for name in "ca")).feature_names == ["c", "a"]


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "bool", "float32", "decimal"])
def test_all_kinds_of_numbers_are_read(tmp_path, kind):
    cells = np.array([0, 1, 1, 0])
    column = pa.array(cells).cast(pa.decimal128(30, 2)) if kind == "decimal" else pa.array(cells.astype(kind))
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    source = ParquetSource(tmp_path)
    X = source.read(0)
    assert X.dtype == (np.float32 if kind == "float32" else np.float64) == next(source.stream(0)).dtype
    assert X[:, 0].tolist() == cells.tolist() == next(source.stream(0))[:, 0].tolist()


def test_one_column_in_double_precision_makes_all_of_it(tmp_path):
    write(tmp_path / "a.parquet", rows(10, dtype=np.float32))
    assert ParquetSource(tmp_path).read(0).dtype == np.float32
    write(tmp_path / "b.parquet", rows(10))
    assert {ParquetSource(tmp_path).read(block).dtype for block in (0, 1)} == {np.dtype(np.float64)}


def test_paths_without_parquet_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no files that end in \.parquet"):
        ParquetSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ParquetSource(tmp_path / "nothing")


def test_files_without_rows_are_refused(tmp_path):
    write(tmp_path / "a.parquet", rows()[:0])
    with pytest.raises(ValueError, match="holds no rows"):
        ParquetSource(tmp_path)


def test_files_that_differ_are_named(folder):
    write(folder / "d.parquet", rows(10), "abx")
    with pytest.raises(ValueError, match=r"d\.parquet' lacks the column\(s\) \['c'\] and has the column\(s\) \['x'\] more"):
        ParquetSource(folder)
    assert len(ParquetSource(folder, columns=["b", "a"])) == 310
    with pytest.raises(ValueError, match=r"a\.parquet' lacks the column\(s\) \['z'\]"):
        ParquetSource(folder, columns=["z"])


def test_columns_may_come_in_another_order(folder):
    write(folder / "d.parquet", rows(10)[:, ::-1], "cba")
    np.testing.assert_array_equal(all_of(ParquetSource(folder))[300:], rows(10))


def test_columns_without_numbers_are_named(tmp_path):
    write(tmp_path / "a.parquet", rows(2), city=["Bern", "Ulm"])
    with pytest.raises(ValueError, match=r"1 column\(s\) of .*a\.parquet' hold no numbers: \['city'\]"):
        ParquetSource(tmp_path)
    assert ParquetSource(tmp_path, columns=["a", "b"]).n_features == 2


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="two of one name"):
        ParquetSource(tmp_path)


def test_without_pyarrow_there_is_a_hint(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install pyarrow"):
        ParquetSource(folder)


def test_a_source_prints_and_pickles(folder):
    source = ParquetSource(str(folder), columns=["a"])
    assert repr(source) == f"ParquetSource({str(folder)!r}, columns=['a'])"
    np.testing.assert_array_equal(all_of(pickle.loads(pickle.dumps(source))), all_of(source))


def test_infinite_cells_are_named_with_file_and_column(folder):
    column = [0.0, np.nan] * 4 + [None, np.inf]
    pq.write_table(pa.table({"a": [1.0] * 10, "b": column, "c": [2.0] * 10}), folder / "d.parquet")
    model = vae()
    with pytest.raises(ValueError, match=r"1 column\(s\) have infinite values.*d\.parquet': \['b'\]"):
        model.fit(ParquetSource(folder))
    assert vars(model) == vars(vae())


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "bool", "float32", "float64", "decimal"])
def test_nulls_of_all_kinds_of_numbers_are_missing_cells(tmp_path, kind):
    cells = pa.array([0, None, 1, 1, None])
    column = (
        cells.cast(pa.decimal128(30, 2))
        if kind == "decimal"
        else cells.cast(getattr(pa, f"{kind}_")() if kind == "bool" else kind)
    )
    pq.write_table(pa.table({"x": column, "y": pa.nulls(5)}), tmp_path / "a.parquet")
    source = ParquetSource(tmp_path)
    for X in (source.read(0), next(source.stream(0)), source.read(0, np.arange(5))):
        assert X.dtype == (np.float32 if kind == "float32" else np.float64)
        np.testing.assert_array_equal(X, np.column_stack([[0, np.nan, 1, 1, np.nan], np.full(5, np.nan)]))


def test_a_column_may_hold_nulls_alone_in_some_files(tmp_path):
    write(tmp_path / "a.parquet", rows(10), c=None)
    write(tmp_path / "b.parquet", rows(10))
    X = rows(10)
    X[:, 2] = np.nan
    np.testing.assert_array_equal(all_of(ParquetSource(tmp_path)), np.concatenate([X, rows(10)]))


def test_files_that_vanish_or_change_stop_the_fit_and_leave_the_model(folder):
    source, model = ParquetSource(folder), vae(warm_start=True)
    X = pd.DataFrame(rows(), columns=list("abc"))
    before = model.fit(source).transform(X)
    write(folder / "c.parquet", rows(10))
    with pytest.raises(ValueError, match=r"c\.parquet' has changed since"):
        model.set_params(max_iter=5).fit(source)
    (folder / "c.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.parquet' is gone"):
        model.fit(source)
    np.testing.assert_array_equal(model.transform(X), before)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1000, 3), (70_000, 2), (3, 30_000)])
def test_blocks_of_an_array_are_its_rows(shape):
    X = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    source = ArraySource(X)
    assert len(source) == shape[0]
    np.testing.assert_array_equal(all_of(source), X)
    last = len(source.block_sizes) - 1
    np.testing.assert_array_equal(source.read(last, np.array([0])), X[-source.block_sizes[-1]][None])
    assert str(shape[0] - 1) in source.name_of(last)


def test_what_is_no_table_of_numbers_is_refused():
    with pytest.raises(ValueError, match=r"rows and columns, got an array of shape \(3,\)"):
        ArraySource(np.zeros(3))
    with pytest.raises(TypeError, match=r"takes an array, .*got a DataFrame. Fit a frame itself.*X.to_numpy\(\)"):
        ArraySource(pd.DataFrame({"a": [1.0]}))
    with pytest.raises(ValueError, match="needs numbers, got an array of <U1"):
        ArraySource(np.array([["a"]]))


def test_only_large_memory_maps_are_read_out_of_core(tmp_path, monkeypatch):
    np.save(tmp_path / "X.npy", rows())
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert as_source(X) is None
    monkeypatch.setattr(data, "MEMORY_BUDGET", X.nbytes - 1)
    assert isinstance(as_source(X), ArraySource)
    assert as_source(np.array(X)) is None and as_source(X[:100]) is None and as_source(X.ravel()) is None
    source = ArraySource(X)
    assert as_source(source) is source


# --- estimators ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A read-only memory map above the budget."""
    np.save(tmp_path / "X.npy", rows())
    monkeypatch.setattr(data, "MEMORY_BUDGET", 100)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


def test_a_memory_map_and_parquet_files_train_alike(mapped, folder):
    one, other = vae().fit(mapped), vae().fit(ParquetSource(folder))
    assert one.n_features_in_ == other.n_features_in_ == 3
    assert not hasattr(one, "feature_names_in_") and other.feature_names_in_.tolist() == ["a", "b", "c"]
    assert [c.name for c in other.schema_] == ["a", "b", "c"]
    assert one.lower_bound_ == pytest.approx(other.lower_bound_, abs=0.2)
    assert one.lower_bound_ == pytest.approx(vae().fit(rows()).lower_bound_, abs=0.3)


def test_scores_and_latents_of_a_source_are_those_of_its_rows(mapped, folder):
    source, X = ParquetSource(folder), rows()
    for model, large in ((vae().fit(X), mapped), (vae().fit(pd.DataFrame(X, columns=list("abc"))), source)):
        small = X if large is mapped else pd.DataFrame(X, columns=list("abc"))
        np.testing.assert_array_equal(model.transform(large), model.transform(small))
        np.testing.assert_array_equal(model.score_samples(large), model.score_samples(small))
        assert model.score(large, sample_weight=np.arange(300)) == model.score(small, sample_weight=np.arange(300))
    assert vae().fit_transform(source).shape == (300, 2)
    assert list(model.set_output(transform="pandas").transform(source).columns) == ["vaetransformer0", "vaetransformer1"]


def test_columns_of_a_source_must_be_those_of_the_fit(folder):
    model = vae().fit(ParquetSource(folder))
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(ParquetSource(folder, columns=["a", "c", "b"]))
    with pytest.raises(ValueError, match="(?s)feature names should match.*missing"):
        model.score(ParquetSource(folder, columns=["a"]))


def test_results_as_large_as_the_data_are_refused(folder):
    source = ParquetSource(folder)
    model = vae().fit(source)
    for method in (model.reconstruct, model.posterior_moments, model.sample_posterior):
        with pytest.raises(TypeError, match=r"takes an array, not a ParquetSource.*stream\(block\)"):
            method(source)


def test_a_fit_on_a_source_is_a_function_of_the_seed(mapped):
    before = mapped.tobytes()
    one, other, third = vae().fit(mapped), vae().fit(mapped), vae(random_state=1).fit(mapped)
    np.testing.assert_array_equal(one.transform(mapped), other.transform(mapped))
    assert not np.array_equal(one.transform(mapped), third.transform(mapped))
    assert mapped.tobytes() == before
    assert clone(one).get_params() == vae().get_params()


def test_warm_start_on_a_source_goes_on_to_the_last_bit(mapped):
    twice = vae(warm_start=True, learning_rate="constant").fit(mapped).set_params(max_iter=6).fit(mapped)
    once = vae(learning_rate="constant", max_iter=6).fit(mapped)
    assert twice.n_iter_ == 6
    np.testing.assert_array_equal(twice.transform(mapped), once.transform(mapped))


def test_partial_fit_takes_one_epoch_over_a_source(mapped):
    model = vae()
    bounds = [model.partial_fit(mapped).lower_bound_ for _ in range(20)]
    assert model.n_iter_ == 20 and bounds[-1] > bounds[0]


def test_weights_count_on_a_source(mapped):
    weight = np.zeros(300)
    weight[:200] = 2
    weighted, plain = vae().fit(mapped, sample_weight=weight), vae().fit(mapped[:200])
    np.testing.assert_allclose(weighted.schema_[0].loc, plain.schema_[0].loc, rtol=1e-12)
    assert weighted.lower_bound_ == pytest.approx(plain.lower_bound_, abs=0.2)
    with pytest.raises(ValueError, match="sample_weight"):
        vae().fit(mapped, sample_weight=weight[:10])


def test_cells_outside_the_support_are_refused_before_training(mapped):
    with pytest.raises(ValueError, match=r"outside \[0, 1\], which the bernoulli likelihood"):
        vae(likelihood=Bernoulli()).fit(mapped)


def test_few_distinct_rows_in_many_copies(mapped, tmp_path):
    X = np.repeat(np.eye(3), [500, 300, 200], axis=0)
    np.save(tmp_path / "few.npy", X)
    model = vae(likelihood="bernoulli", early_stopping=True).fit(np.load(tmp_path / "few.npy", mmap_mode="r"))
    assert np.isfinite(model.score(X))
    one = vae(early_stopping=True).fit(ArraySource(np.ones((400, 3))))
    assert np.isfinite(one.score(np.ones((2, 3))))


# --- missing cells ---------------------------------------------------------------------------------------------------


def with_holes(n=300, seed=1):
    """Return rows with holes, of which some have no cell, with a column of whole numbers and one without a cell."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rows(n), rng.integers(5, size=n), np.full(n, np.nan)])
    X[rng.random(X.shape) < 0.2] = np.nan
    X[:3] = X[n // 2] = np.nan
    return X


@pytest.fixture
def holey(tmp_path, monkeypatch):
    """Rows with holes as an array, as parquet files whose nulls they are, and as a memory map above the budget."""
    X = with_holes()
    frame = pd.DataFrame(X, columns=list("abcde")).astype({"d": "Int64"}).astype({"e": object})
    (tmp_path / "files").mkdir()
    for i in range(3):
        part = pa.Table.from_pandas(frame[100 * i : 100 * i + 100], preserve_index=False)
        assert str(part.schema.field("d").type) == "int64" and str(part.schema.field("e").type) == "null"
        pq.write_table(part, tmp_path / f"files/{i}.parquet", row_group_size=40)
    np.save(tmp_path / "X.npy", X)
    monkeypatch.setattr(data, "MEMORY_BUDGET", 100)
    return X, ParquetSource(tmp_path / "files"), np.load(tmp_path / "X.npy", mmap_mode="r")


def test_sources_with_holes_train_like_the_array(holey):
    X, parquet, mapped = holey
    frame = pd.DataFrame(X, columns=list("abcde"))
    inside = vae(max_iter=20).fit(X)
    for source, table in ((parquet, frame), (mapped, X)):
        model = vae(max_iter=20).fit(source)
        assert model.lower_bound_ == pytest.approx(inside.lower_bound_, abs=0.1)
        assert [c.constant for c in model.schema_] == [False] * 4 + [True]
        for name in ("loc", "scale"):
            found, expected = ([getattr(c, name) for c in m.schema_] for m in (model, inside))
            np.testing.assert_allclose(found, expected, rtol=1e-13)
        np.testing.assert_array_equal(model.transform(source), model.transform(table))
        np.testing.assert_array_equal(model.score_samples(source), model.score_samples(table))
        assert np.abs(model.score_samples(source)[:3]).max() < 0.1  # rows without a cell
        assert np.isnan(model.impute(table)).any(axis=0).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("method", ["elbo", "iwae", "hmc", "ais"])
def test_scores_in_blocks_are_those_of_the_array_where_holes_come_later(holey, monkeypatch, method):
    X, _, _ = holey
    X = X[:60, :3]
    monkeypatch.setattr("skvae._stream._PIECE_CELLS", 30)
    model = vae(score_method=method).fit(rows())
    np.testing.assert_array_equal(model.score_samples(ArraySource(X)), model.score_samples(X))
    np.testing.assert_array_equal(model.transform(ArraySource(X)), model.transform(X))


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["array", "parquet", "memory map"])
def test_warm_start_with_holes_goes_on_to_the_last_bit(holey, kind):
    X = holey[kind]
    fixed = {"learning_rate": "constant"}
    twice = vae(warm_start=True, **fixed).fit(X).set_params(max_iter=6).fit(X)
    once = vae(warm_start=True, max_iter=6, **fixed).fit(X)
    np.testing.assert_array_equal(twice._fitted.training.params, once._fitted.training.params)


def test_sources_whose_holes_come_later_go_on_training(holey):
    _, _, mapped = holey
    for again in ("fit", "partial_fit"):
        model = vae(warm_start=True).fit(rows())
        getattr(model, again)(ArraySource(mapped[:, :3]))
        assert np.isfinite(model.score(ArraySource(mapped[:, :3])))
        assert np.isfinite(model._fitted.params).all()


def test_partial_fit_learns_no_column_that_its_first_rows_lack(holey):
    X, _, _ = holey
    for chunk in (X, ArraySource(X)):
        with pytest.warns(UserWarning, match=r"1 column\(s\) have no cell in the rows of the first partial_fit.*\['x4'\]"):
            model = vae().partial_fit(chunk).partial_fit(ArraySource(np.nan_to_num(X)))
        assert [c.constant for c in model.schema_] == [False] * 4 + [True]
        assert np.isfinite(model.score(X)) and np.isnan(model.reconstruct(X)[:, 4]).all()


def test_a_source_without_a_cell_is_refused():
    model = vae()
    for fit in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=r"All cells of .*ArraySource.* are missing"):
            fit(ArraySource(np.full((20, 2), np.nan)))
    assert vars(model) == vars(vae())


def test_weights_count_on_a_source_with_holes(holey):
    X, _, _ = holey
    weight = np.arange(300) % 3.0
    weighted, repeated = (vae(early_stopping=False).fit(source, sample_weight=w) for source, w in (
        (ArraySource(X), weight), (ArraySource(np.repeat(X, weight.astype(int), axis=0)), None)
    ))  # fmt: skip
    for one, other in zip(weighted.schema_, repeated.schema_, strict=True):
        np.testing.assert_allclose((one.loc, one.scale), (other.loc, other.scale), rtol=1e-12)
    assert weighted.lower_bound_ == pytest.approx(repeated.lower_bound_, abs=0.1)


def test_self_masking_reads_the_holes_of_a_source(holey):
    X = holey[0][:, :4]
    inside, outside = (vae(likelihood=SelfMasking(), max_iter=20).fit(table) for table in (X, ArraySource(X)))
    assert outside.lower_bound_ == pytest.approx(inside.lower_bound_, abs=0.2)
    assert (outside.score_samples(ArraySource(X))[:3] < -1).all()  # where cells are missing is a part of the data


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_missing", [0.0, 0.2])
def test_columns_of_a_source_may_be_conditions(share_missing):
    X = rows()
    X[np.random.default_rng(0).random(X.shape) < share_missing] = np.nan
    names, source = list("abc"), ArraySource(X)
    source.feature_names = names
    inside = vae(condition_on=["b"], max_iter=20).fit(pd.DataFrame(X, columns=names))
    model = vae(condition_on=["b"], max_iter=20).fit(source)
    assert model.schema_[1].kind == "given gaussian"
    assert model.lower_bound_ == pytest.approx(inside.lower_bound_, abs=0.2)
    np.testing.assert_array_equal(model.transform(source), model.transform(pd.DataFrame(X, columns=names)))
    given = model.inverse_transform(np.zeros((1, 2)), given={1: 1.5})
    assert given[0, 1] == 1.5
    model.set_params(condition_on=["a"])
    with pytest.raises(ValueError, match="other columns for conditions"):
        model.partial_fit(source)


def test_a_model_of_categories_does_not_go_on_training_on_a_source():
    frame = pd.DataFrame(rows(), columns=list("abc")).assign(c=np.arange(300) % 2 + 1)
    model, source = vae().fit(frame), ArraySource(frame.to_numpy())
    source.feature_names = list("abc")
    np.testing.assert_array_equal(model.transform(source), model.transform(frame))
    with pytest.raises(TypeError, match="columns with categories, and a ArraySource is read as numbers"):
        model.partial_fit(source)


# --- sources that do not keep their word -----------------------------------------------------------------------------


class Wrong(Source):
    n_features = 2
    block_sizes = (4, 4)

    def __init__(self, gives):
        self.gives = gives

    def read(self, block, rows=None):
        return self.gives if rows is None else self.gives[rows]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (np.arange(6.0).reshape(3, 2), "gave 3 rows, and 4 were announced"),
        (np.zeros((4, 3)), r"shape \(4, 3\); expected 2 columns"),
        (np.zeros(4), r"shape \(4,\); expected 2 columns"),
    ],
)
def test_a_source_that_does_not_give_what_it_says_is_refused(gives, message):
    with pytest.raises(ValueError, match=message):
        vae().fit(Wrong(gives))


def test_a_source_that_changes_while_training_is_noticed():
    class Shrinking(Wrong):
        calls = 0

        def read(self, block, rows=None):
            self.calls += 1
            return rows_of if self.calls < 4 else rows_of[:3]

    rows_of = np.arange(8.0).reshape(4, 2)
    with pytest.raises(ValueError, match="changed while it was read"):
        vae().fit(Shrinking(rows_of))
