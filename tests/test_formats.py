"""Types of columns: texts that stand for them, columns made of numbers, holes filled, and files."""

from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from test_frames import MOMENTS, N, assert_like, frame, of_arrow, polars_frame, quick

import skvae
from skvae import _formats
from skvae._frames import columns_of
from skvae.likelihoods import Mixed

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rarer_columns(n=N):
    """Return columns of types that are read in ways of their own."""
    rng = np.random.default_rng(0)
    whole, text = rng.integers(9, size=n), rng.choice(list("abc"), size=n).tolist()
    return {
        "decimal": of_arrow([Decimal(int(v)) / 4 for v in whole], pa.decimal128(10, 2)),
        "encoded": of_arrow(text, pa.dictionary(pa.int32(), pa.string())), "half": of_arrow(whole.astype("f2"), pa.float16()),
        "arrow_text": of_arrow(text, pa.string()), "python_text": pd.array(text, dtype="string[python]"),
        "category_of_arrow": pd.Series(of_arrow(text, pa.string())).astype("category"),
        "sparse": pd.arrays.SparseArray(whole), "sparse_real": pd.arrays.SparseArray(np.where(whole > 4, whole / 3, np.nan)),
        "sparse_flag": pd.arrays.SparseArray(whole > 4), "interval": pd.Series(pd.cut(whole, 3)).astype("interval"),
        "pairs": pd.Series([(v, 1) for v in text], dtype=object),
        "tuples": pd.Series([(v,) * (1 + (v == "a")) for v in text], dtype=object),
        "mixture": pd.Series([1, "a", 2.5] * (n // 3), dtype=object),
    }  # fmt: skip


def widened(dtype):
    """Return the type of a column of such a type whose cells may be missing."""
    return {"odd": object if isinstance(dtype, pd.SparseDtype) and dtype.subtype.kind != "f" else dtype}


@pytest.mark.parametrize("name", rarer_columns())
def test_types_come_back_exactly(name, tmp_path):
    X = pd.DataFrame({"real": frame()["real"].to_numpy(), "odd": rarer_columns()[name]})
    vae = quick().fit(X)
    vae.save(tmp_path / "model.skvae")
    for model in (vae, skvae.load(tmp_path / "model.skvae")):
        for found in (model.sample(20, random_state=0), model.reconstruct(X), model.impute(X.assign(odd=np.nan))):
            assert_like(found, X)
            assert not found["odd"].isna().any()
    found = vae.impute(
        X.assign(real=np.nan, odd=X["odd"].astype(object).where(np.arange(N) > 5)).astype(widened(X["odd"].dtype))
    )
    assert not found.isna().any(axis=None)
    there = X["odd"].notna().to_numpy() & (np.arange(N) > 5)
    assert found["odd"].astype(object)[there].tolist() == X["odd"].astype(object)[there].tolist()


@pytest.mark.parametrize("dtype", [pl.Decimal(10, 2), pl.Decimal(None, 1), pl.Int128, pl.UInt8])
def test_types_of_polars_come_back_exactly(dtype):
    X = pl.DataFrame({"real": frame(holes=False)["real"].to_list(), "odd": pl.Series(np.arange(N) % 7).cast(dtype)})
    vae = quick().fit(X)
    holes = X.with_columns(pl.when(pl.int_range(N) < 5).then(None).otherwise(pl.col("odd")).alias("odd"))
    for found in (vae.sample(20, random_state=0), vae.reconstruct(X), vae.impute(holes)):
        assert found.schema == X.schema and not found["odd"].is_null().any()
    assert vae.impute(holes)["odd"][5:].equals(X["odd"][5:])


def test_decimal_numbers_stay_within_their_digits():
    X = pd.DataFrame({"price": of_arrow([Decimal(v) / 100 for v in range(9900, 10000)], pa.decimal128(4, 2))})
    vae = quick().fit(X)
    assert_like(vae.inverse_transform([[1e6, 1e6], [-1e6, 0.0]]), X)


def test_empty_columns_are_filled_in_the_type_of_the_training_data():
    X = frame()
    fitted = quick().fit(X)
    for empty in (X.assign(**dict.fromkeys(X.columns, np.nan)), X.assign(text=None, flag=np.nan, whole=pd.NA, ordered=np.nan)):
        assert_like(fitted.impute(empty), X)
        assert_like(next(iter(fitted.multiple_impute(empty, 2, random_state=0))), X)
        assert fitted.impute(empty).index.equals(X.index)


@pytest.mark.parametrize("dtype", [pl.Null, pl.Float64])
def test_empty_columns_of_polars_are_filled_in_the_type_of_the_training_data(dtype):
    X = polars_frame()
    found = quick().fit(X).impute(X.with_columns(pl.lit(None, dtype=dtype).alias(name) for name in X.columns[:-1]))
    assert found.schema == X.schema and not found.null_count().to_numpy().any()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_types_of_whole_numbers_are_known_by_their_names(library):
    X = frame(holes=False).assign(**rarer_columns()) if library == "pandas" else polars_frame()
    X = X.assign(of_arrow=of_arrow(range(N), pa.int8())) if library == "pandas" else X
    for name, _, dtype in columns_of(X):
        kind = X[name].dtype
        is_whole = kind.is_integer() if library == "polars" else pd.api.types.is_integer_dtype(kind)
        assert _formats.Format(name, dtype).is_whole == is_whole


def test_types_that_cannot_hold_what_is_filled_in_give_way():
    X = pd.DataFrame({"a": np.arange(N) * 50.0, "b": pd.array(np.arange(N) * 50, dtype="Int64")})
    holes = pd.DataFrame({"a": [2500.0, 0.0], "b": pd.array([None, 50], dtype="Int8")})
    vae = quick(max_iter=100).fit(X)
    found = vae.impute(holes)
    assert found.dtypes.equals(X.dtypes) and found["b"][0] > 1000 and found["b"][1] == 50
    found = vae.impute(pl.DataFrame({"a": [2500.0, 0.0], "b": pl.Series([None, None], dtype=pl.Null)}))
    assert found["b"].dtype == pl.Float64 and found["b"][0] > 1000


def grades(levels, n=N, library="pandas"):
    """Return a frame with a column of ordered levels, nearly all of them the one in the middle."""
    cells = [levels[1] if i % 10 else levels[i // 10 % 2 * 2] for i in range(n)]
    real = np.random.default_rng(0).normal(size=n)
    if library == "polars":
        return pl.DataFrame({"grade": pl.Series(cells, dtype=pl.Enum(levels)), "real": real})
    return pd.DataFrame({"grade": pd.Categorical(cells, levels, ordered=True), "real": real})


@pytest.mark.parametrize("trained_on", ["pandas", "polars"])
@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    ("has", "becomes"),
    [
        (["low", "high"], ["low", "middle", "high"]),
        (["low", "top"], ["low", "middle", "top"]),
        (["none", "high"], ["none", "middle", "high"]),
        (["none", "low", "odd"], ["none", "low", "middle", "odd"]),
        (["high", "low"], ["high", "low", "middle"]),
    ],
)
def test_levels_that_are_filled_in_keep_the_order_of_training(has, becomes, library, trained_on):
    vae = quick(likelihood=Mixed(handle_unknown="missing")).fit(grades(["low", "middle", "high"], library=trained_on))
    cells, real = [next(level for level in has if level in ("low", "high")), None], [0.0, 0.0]
    if library == "pandas":
        holes = pd.DataFrame({"grade": pd.Categorical(cells, has, ordered=True), "real": real})
    else:
        holes = pl.DataFrame({"grade": pl.Series(cells, dtype=pl.Enum(has)), "real": real})
    for found in (vae.impute(holes)["grade"], vae.multiple_impute(holes, 1, random_state=0)[0]["grade"]):
        assert found.to_list()[-1] == "middle"
        levels = found.cat.categories if library == "pandas" else found.dtype.categories
        assert levels.to_list() == becomes
        assert library == "polars" or found.cat.ordered


def test_bins_that_are_filled_in_keep_their_order():
    bins = pd.IntervalIndex.from_breaks([0, 1, 2, 3])
    vae = quick().fit(grades(bins.tolist()))
    found = vae.impute(
        pd.DataFrame({"grade": pd.Categorical([bins[0], bins[2], None], bins[[0, 2]], ordered=True), "real": 0.0})
    )
    assert found["grade"].cat.categories.equals(bins) and found["grade"].iloc[-1] == bins[1]


@pytest.mark.parametrize(
    "moments",
    [MOMENTS, MOMENTS.dt.tz_localize("Europe/Berlin"), MOMENTS - MOMENTS[0]],
    ids=["dates", "dates of a zone", "durations"],
)
def test_bins_of_time_are_levels_and_can_be_stored(moments, tmp_path):
    at = pd.Categorical(moments.dt.floor("30D"))
    X = pd.DataFrame({"real": frame()["real"].to_numpy(), "when": pd.cut(moments, 3), "at": at})
    vae = quick(likelihood=Mixed({"at": "categorical"})).fit(X)
    vae.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae")
    assert [column.kind for column in again.schema_[1:]] == ["ordinal", "categorical"] and again.schema_ == vae.schema_
    assert np.array_equal(again.score_samples(X), vae.score_samples(X))
    assert_like(again.sample(30, random_state=0), X)
    assert again.sample(30, random_state=0).equals(vae.sample(30, random_state=0))


def test_columns_with_categories_that_cannot_be_stored_are_named(tmp_path):
    vae = quick().fit(frame()[["real"]].assign(blob=[b"a", b"b", b"c"] * (N // 3)))
    with pytest.raises(TypeError, match="Column 'blob' has categories of type bytes.*astype"):
        vae.save(tmp_path / "model.skvae")


def test_types_that_cannot_be_written_are_refused(monkeypatch):
    kind = pa.dictionary(pa.int32(), pa.struct([("a", pa.int64())]))
    monkeypatch.setattr(_formats, "type_of_name", lambda name: kind.no_such_thing)
    with pytest.raises(ValueError, match="Column 'real' has type float64, of which skvae cannot make a column.*'float'"):
        quick().fit(frame()[["real"]])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "UInt8", "uint8[pyarrow]", "int64"])
def test_whole_numbers_reach_the_ends_of_their_type(dtype):
    limits = np.iinfo(dtype.lower().removesuffix("[pyarrow]"))
    ends = pd.array([limits.min, limits.max], dtype=dtype)
    format = _formats.Format("a", dtype)
    for precision in (np.float32, np.float64):
        low, high = _formats.written(np.array([-1e30, 1e30], dtype=precision), format, "pandas")
        assert low == ends[0] and 0 <= int(ends[1]) - int(high) <= (2**10 if dtype == "int64" else 0)
    top = limits.max if dtype != "int64" else 2**52  # beyond which double precision leaves numbers out
    constant = pd.DataFrame({"real": frame()["real"].to_numpy(), "top": pd.array([top] * N, dtype=dtype)})
    assert (quick().fit(constant).sample(5, random_state=0)["top"] == constant["top"].iloc[0]).all()


@pytest.mark.parametrize("dtype", ["bool", "boolean", "bool[pyarrow]", "Sparse[bool, False]", "polars"])
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", Mixed({"flag": "gaussian"})], ids=repr)
def test_flags_that_are_modelled_as_numbers_come_back_as_the_nearer_flag(dtype, likelihood):
    flag = np.random.default_rng(0).random(400) < 0.3
    X = pd.DataFrame({"count": np.arange(400) % 7 + flag, "flag": pd.Series(flag)})
    X = pl.from_pandas(X) if dtype == "polars" else X.astype({"flag": _formats.type_of_name(dtype)})
    vae = quick(likelihood=likelihood, max_iter=30).fit(X)
    drawn = vae.sample(2000, random_state=0)
    assert drawn["flag"].dtype == X["flag"].dtype
    assert 0.1 < np.mean(np.asarray(drawn["flag"], dtype=float)) < 0.5
    assert set(vae.inverse_transform(np.zeros((3, 2)))["flag"]) <= {False, True}
    missing = pd.DataFrame({"count": [1, 2], "flag": pd.Series([True, None], dtype=object)})
    assert all(type(value) is bool for value in vae.impute(missing)["flag"])
