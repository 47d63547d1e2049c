"""Frames in and out: types, categories, holes, unknown values, and the messages about columns that cannot be read."""

import re
from datetime import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_selector
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skvae
from skvae import VAETransformer
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, Mixed, Ordinal, Poisson
from skvae.objectives import ELBO
from skvae.priors import MixtureOfNormals, StandardNormal

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N = 60
LEVELS = ["low", "middle", "high"]
MOMENTS = pd.Series(pd.date_range("2024-03-01", periods=N))


def frame(n=N, seed=0, holes=True):
    """Return a frame with a column of every type."""
    rng = np.random.default_rng(seed)
    size = rng.integers(3, size=n)
    columns = {
        "real": rng.normal(size=n) + size,
        "single": rng.normal(size=n).astype(np.float32),
        "whole": rng.integers(-50, 50, size=n),
        "nullable": pd.array(rng.integers(0, 99, size=n), dtype="Int64"),
        "small": rng.integers(0, 200, size=n).astype(np.uint8),
        "arrow": pd.array(rng.normal(size=n), dtype="double[pyarrow]"),
        "flag": rng.random(n) < 0.5,
        "maybe": pd.array(rng.random(n) < 0.5, dtype="boolean"),
        "two": rng.integers(2, size=n) + 1,
        "text": pd.Series(rng.choice(["a", "b", "c"], size=n), dtype="str"),
        "object": pd.Series(rng.choice(["x", "y", "z"], size=n), dtype=object),
        "unordered": pd.Categorical.from_codes(size, ["s", "m", "l"]),
        "ordered": pd.Categorical.from_codes(size, LEVELS, ordered=True),
        "numbered": pd.Categorical(size * 10),
        "binned": pd.cut(pd.Series(rng.random(n)), [0, 0.3, 0.6, 1.0]),
    }
    out = pd.DataFrame(columns).set_axis(pd.RangeIndex(100, 100 + n))
    if holes:
        for j, name in enumerate(["real", "nullable", "arrow", "maybe", "text", "object", "unordered", "ordered"]):
            out.loc[out.index[j::9], name] = pd.NA if name in ("nullable", "maybe", "arrow") else np.nan
    return out


def polars_frame(n=N, seed=0):
    """Return a frame of polars with a column of every type."""
    rng = np.random.default_rng(seed)
    text = rng.choice(LEVELS, size=n).tolist()
    columns = {
        "real": rng.normal(size=n), "whole": rng.integers(9, size=n), "flag": rng.random(n) < 0.5, "text": text,
        "category": pl.Series(text, dtype=pl.Categorical), "enum": pl.Series(text, dtype=pl.Enum(LEVELS)),
        "single": pl.Series(rng.normal(size=n), dtype=pl.Float32),
    }  # fmt: skip
    return pl.DataFrame(columns).with_columns(
        pl.when(pl.int_range(n) % 7 == 0).then(None).otherwise(pl.col(c)).alias(c) for c in ("real", "whole", "text", "enum")
    )


def of_arrow(values, kind):
    return pd.array(values, dtype=pd.ArrowDtype(kind))


def quick(**params):
    return VAETransformer(2, **{"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, **params})


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(frame())


def assert_like(found, X):
    """Assert that a frame has the columns, types and categories of another."""
    assert list(found.columns) == list(X.columns)
    assert (found.dtypes == X.dtypes).all()


# --- frames of pandas ------------------------------------------------------------------------------------------------


def test_types_suggest_likelihoods(fitted):
    kinds = {column.name: column.kind for column in fitted.schema_}
    numbers = ["real", "single", "whole", "nullable", "small", "arrow"]
    assert {kinds[name] for name in numbers} == {"normal_mixture"}
    assert {kinds[name] for name in ("flag", "maybe", "two")} == {"bernoulli"}
    assert {kinds[name] for name in ("text", "object", "unordered", "numbered")} == {"categorical"}
    assert {kinds[name] for name in ("ordered", "binned")} == {"ordinal"}


def test_tables_come_back_in_their_types(fitted):
    X = frame()
    latents = fitted.transform(X)
    assert latents.shape == (N, 2)
    for found in (fitted.sample(20, random_state=0), fitted.inverse_transform(latents), fitted.reconstruct(X)):
        assert_like(found, X)
        assert not found.isna().to_numpy().any()
    assert fitted.reconstruct(X.iloc[5:9]).index.tolist() == [105, 106, 107, 108]


def test_holes_where_types_have_no_place_for_them_widen_the_type():
    X = frame()[["real", "whole", "two"]]
    everything_missing = X.assign(real=np.nan)
    found = quick().fit(everything_missing).reconstruct(everything_missing)
    assert found["real"].isna().all() and (found["whole"] == found["whole"].round()).all()


def test_scores_do_not_depend_on_how_a_table_is_written(fitted):
    X = frame()
    plain = X.copy()
    for name in X.columns:
        if name not in ("flag", "two"):
            plain[name] = X[name].astype(object)
    assert np.array_equal(fitted.score_samples(X), fitted.score_samples(plain))
    with pytest.warns(UserWarning, match="feature names"):
        scores = fitted.score_samples(X.to_numpy(dtype=object))
    assert np.array_equal(fitted.score_samples(X), scores)


def test_drawn_numbers_stay_in_the_range_of_their_column(fitted):
    X = frame()[["real", "single", "whole", "small"]]
    drawn = fitted.sample(500, random_state=0)[X.columns]
    assert ((drawn >= X.min()) & (drawn <= X.max())).all(axis=None)
    assert (drawn["real"] == X["real"].min()).any()  # or nothing was to be moved


def test_a_frame_of_numbers_is_read_like_its_array():
    X = frame(holes=False)[["real", "single", "whole"]].astype(float)
    one, other = quick().fit(X), quick().fit(X.to_numpy())
    assert np.array_equal(one._fitted.params, other._fitted.params)
    assert np.array_equal(one.score_samples(X), other.score_samples(X.to_numpy()))
    np.testing.assert_array_equal(one.reconstruct(X).to_numpy(), other.reconstruct(X.to_numpy()))


def test_the_order_of_rows_does_not_matter():
    X = frame()
    shuffled = X.iloc[np.random.default_rng(0).permutation(N)]
    assert np.array_equal(quick().fit(X)._fitted.params, quick().fit(shuffled)._fitted.params)


def test_rows_with_holes_can_be_repeated_or_weighted():
    X, weight = frame(), np.arange(N) % 3
    repeated = X.iloc[np.repeat(np.arange(N), weight)]
    one, other = quick().fit(X, sample_weight=weight), quick().fit(repeated)
    assert np.array_equal(one._fitted.params, other._fitted.params)


def test_what_is_stored_reads_tables_as_before(fitted, tmp_path):
    X = frame()
    vae = quick().fit(X)
    vae.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae")
    assert again.schema_ == vae.schema_
    assert np.array_equal(again.score_samples(X), vae.score_samples(X))
    assert_like(again.sample(3, random_state=0), X)


def test_searches_and_pipelines_take_tables():
    X = frame()
    search = GridSearchCV(quick(), {"n_components": [1, 2]}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    pipe = make_pipeline(FunctionTransformer(), quick()).fit(X)
    assert_like(pipe.inverse_transform(pipe.transform(X)), X)


def test_training_goes_on_with_the_same_categories():
    X = frame()
    vae = quick(warm_start=True).fit(X)
    vae.set_params(max_iter=5).fit(X)
    assert vae.n_iter_ == 5
    vae.partial_fit(X.iloc[:20])
    with pytest.raises(ValueError, match="'text' has 1 category that it did not have in fit: \\['new'\\]"):
        vae.partial_fit(X.assign(text="new"))


def rising(n=600):
    """Return rows in the order of a number, which has a fixed value where it is small."""
    x = np.sort(np.random.default_rng(0).uniform(0, 100, n))
    return pd.DataFrame({"x": x, "spent": np.where(x < 50, 0.0, x), "side": np.where(np.arange(n) % 3, "a", "b")})


@pytest.mark.filterwarnings("ignore:X does not have valid feature names", "ignore:1 column.s. had no cell or a single value")
@pytest.mark.parametrize("how", ["fit", "partial_fit", "source"])
def test_the_range_of_a_column_is_that_of_all_rows_so_far(how):
    X = rising().drop(columns="side")
    vae = quick(likelihood="laplace", warm_start=True, max_iter=20).fit(X[:150])
    for _ in range(1 if how == "fit" else 20):
        getattr(vae, how.replace("source", "partial_fit"))(ArraySource(X.to_numpy()) if how == "source" else X)
    drawn = vae.sample(2_000, random_state=0)
    assert drawn["x"].max() > X["x"][149] + 1
    assert vae._fitted.codec.form.formats[0].limits == (X["x"].min(), X["x"].max())
    vae.partial_fit(X[300:310])
    assert vae._fitted.codec.form.formats[0].limits == (X["x"].min(), X["x"].max())


def test_numbers_that_occur_again_and_again_are_those_of_all_rows_so_far():
    X = rising()
    vae = quick().partial_fit(X[400:])
    frequent = lambda: [number for number, _ in vae._fitted.codec.form.formats[1].frequent or []]  # noqa: E731
    assert frequent() == []
    vae.partial_fit(X[:400])
    assert frequent() == [0.0]
    vae.partial_fit(X[500:])
    assert frequent() == [0.0]  # which no cell denies
    vae.partial_fit(X[:100].assign(spent=np.linspace(-1, 1, 100)))
    assert frequent() == []


# --- rows of weight zero and others ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [("real", 1e6), ("text", "ZZZ"), ("two", 7), ("ordered", np.nan), ("object", None), ("maybe", pd.NA)],
    ids=lambda odd: odd[0],
)
@pytest.mark.parametrize("start", ["fit", "partial_fit"])
def test_a_row_of_weight_zero_has_no_influence(odd, start):
    X = frame(holes=False)
    more = pd.concat([X.head(1), X], ignore_index=True)
    more.loc[0, odd[0]] = odd[1]
    weight = np.r_[0.0, np.ones(N)]
    one, other = (getattr(quick(), start)(*rows) for rows in ((X,), (more, None, weight)))
    assert np.array_equal(one._fitted.params, other._fitted.params)
    assert one._fitted.model.likelihood == other._fitted.model.likelihood
    assert one._fitted.codec.form.formats[0] == other._fitted.codec.form.formats[0]
    for vae, *rows in ((one, X), (other, more, None, weight)):
        vae.partial_fit(*rows)
    assert np.array_equal(one._fitted.params, other._fitted.params)
    assert one.sample(300, random_state=0).equals(other.sample(300, random_state=0))


def test_a_row_of_weight_zero_in_polars_has_no_influence():
    X = polars_frame()
    more = pl.concat([X, X.head(1).with_columns(pl.lit("ZZZ").alias("text"), pl.lit(1e6).alias("real"))])
    one, other = quick().fit(X), quick().fit(more, sample_weight=np.r_[np.ones(N), 0.0])
    assert np.array_equal(one._fitted.params, other._fitted.params)
    assert one._fitted.codec.form == other._fitted.codec.form


def test_cells_of_rows_of_weight_zero_must_be_readable():
    X = frame()[["real", "text"]]
    weight = np.r_[0.0, np.ones(N - 1)]
    with pytest.raises(ValueError, match="'real' contains infinity"):
        quick().fit(X.assign(real=np.where(weight > 0, X["real"], np.inf)), sample_weight=weight)
    with pytest.raises(ValueError, match="contains NaN alone"):
        quick().fit(X.head(1).reindex(X.index), sample_weight=weight)


# --- frames of polars ------------------------------------------------------------------------------------------------


def test_frames_of_polars_come_back():
    X = polars_frame()
    vae = quick().fit(X)
    kinds = [column.kind for column in vae.schema_]
    assert kinds == [
        "normal_mixture", "normal_mixture", "bernoulli", "categorical", "categorical", "ordinal", "normal_mixture",
    ]  # fmt: skip
    for found in (vae.sample(5, random_state=0), vae.reconstruct(X)):
        assert isinstance(found, pl.DataFrame) and found.schema == X.schema
        assert not found.null_count().to_numpy().any()


def test_polars_and_pandas_give_one_model():
    X = polars_frame().drop("enum", "category")
    one, other = quick().fit(X), quick().fit(X.to_pandas())
    assert np.array_equal(one._fitted.params, other._fitted.params)
    assert np.array_equal(one.score_samples(X), other.score_samples(X.to_pandas()))


# --- a say in it -----------------------------------------------------------------------------------------------------


def test_columns_can_have_likelihoods_of_ones_own():
    X = frame()
    vae = quick(likelihood=Mixed({"nullable": "poisson", "whole": Categorical()})).fit(X)
    kinds = {column.name: column.kind for column in vae.schema_}
    assert (kinds["nullable"], kinds["whole"], kinds["real"]) == ("poisson", "categorical", "normal_mixture")
    found = vae.sample(50, random_state=0)
    assert_like(found, X)
    assert set(found["whole"]) <= set(X["whole"]) and (found["nullable"] >= 0).all()


def test_selectors_choose_columns_and_later_pairs_win():
    X = frame(holes=False)[["real", "whole", "small"]]
    pairs = [("poisson", make_column_selector(dtype_include=np.uint8)), (Ordinal(), ["whole", "small"])]
    assert [c.kind for c in quick(likelihood=Mixed(pairs)).fit(X).schema_] == ["normal_mixture", "ordinal", "ordinal"]
    assert [c.kind for c in quick(likelihood=Mixed(pairs[::-1])).fit(X).schema_] == ["normal_mixture", "ordinal", "poisson"]


def test_one_likelihood_can_be_for_all_columns():
    X = frame()[["text", "flag"]]
    assert [c.kind for c in quick(likelihood="categorical").fit(X).schema_] == ["categorical", "categorical"]


def test_columns_of_numbers_can_have_another_likelihood():
    X = frame()[["real", "flag", "whole"]]
    kinds = [c.kind for c in quick(likelihood=Mixed({"whole": "laplace"}, numbers="normal_mixture")).fit(X).schema_]
    assert kinds == ["normal_mixture", "bernoulli", "laplace"]
    assert [c.kind for c in quick(likelihood=Mixed(numbers="student_t")).fit(X[["real"]].to_numpy()).schema_] == ["student_t"]


def test_tables_of_numbers_alone_are_gaussian():
    X = frame()[["real", "whole", "nullable"]]
    assert {c.kind for c in quick().fit(X).schema_} == {"gaussian"}
    assert {c.kind for c in quick().fit(X.assign(flag=frame()["flag"])).schema_[:3]} == {"normal_mixture"}


def test_tables_with_categories_have_a_mixture_as_prior():
    X = frame()
    assert quick().fit(X).prior_ == MixtureOfNormals(50)
    assert quick().fit(X[["real", "whole"]]).prior_ == StandardNormal()
    assert quick(prior="normal").fit(X).prior_ == StandardNormal()


@pytest.mark.parametrize(
    "params",
    [
        {"posterior": "full_normal"}, {"solver": "wake-sleep"}, {"objective": ELBO(kl="analytic")},
        {"objective": ELBO(free_bits=0.1)}, {"objective": "info_vae"},
    ],
    ids=str,
)  # fmt: skip
def test_whoever_asks_for_something_else_has_a_normal_prior(params):
    assert quick(**params).fit(frame(holes=False)).prior_ == StandardNormal()


def test_training_goes_on_with_the_prior_of_the_first_table():
    X = frame()
    vae = quick(warm_start=True, random_state=0).fit(X)
    assert vae.fit(X).prior_ == MixtureOfNormals(50)
    assert vae.partial_fit(X).prior_ == MixtureOfNormals(50)


@pytest.mark.parametrize(
    "params", [{"objective": ELBO(free_bits=0.1)}, {"objective": ELBO(kl="monte_carlo")}, {"solver": "wake-sleep"}], ids=str
)
def test_training_goes_on_with_its_prior_in_another_way(params):
    X = frame(holes=False)
    vae = quick(warm_start=True).fit(X).set_params(**params).fit(X)
    assert vae.prior_ == MixtureOfNormals(50)


@pytest.mark.parametrize("column", ["DE", None, True], ids=str)
def test_a_column_that_never_varies_changes_nothing(column):
    X = frame()[["real", "whole"]]
    with_column = quick().fit(X.assign(constant=column))
    assert {c.kind for c in with_column.schema_[:2]} == {"gaussian"} and with_column.prior_ == StandardNormal()


def test_the_prior_of_one_likelihood_for_all_is_normal_whatever_the_type():
    flags = frame()[["real"]] > 0
    assert quick(likelihood="bernoulli").fit(flags).prior_ == quick(likelihood="bernoulli").fit(1 * flags).prior_
    assert quick(likelihood="bernoulli").fit(flags).prior_ == StandardNormal()


def test_parameters_of_a_prior_that_is_not_chosen_yet_are_refused():
    with pytest.raises(ValueError, match="prior='mixture'"):
        quick().set_params(prior__n_modes=5)
    assert quick().set_params(prior="mixture", prior__n_modes=5).prior == MixtureOfNormals(5)


def test_columns_of_arrays_go_by_their_numbers():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=N), rng.choice([2.0, 5.0, 7.0], size=N)])
    vae = quick(likelihood=Mixed({1: "categorical"})).fit(X)
    found = vae.sample(30, random_state=0)
    assert isinstance(found, np.ndarray) and set(found[:, 1]) <= {2.0, 5.0, 7.0}
    with pytest.raises(ValueError, match="Column 1 has 1 category"):
        vae.transform(np.array([[0.0, 3.0]]))


@pytest.mark.parametrize("as_rows", [list, tuple])
def test_lists_with_texts_are_read_like_arrays_of_objects(as_rows):
    X = frame(holes=False)[["real", "text", "flag", "whole"]].to_numpy(dtype=object)
    X[3, 0] = np.nan
    rows = as_rows(map(as_rows, X))
    one, other = (quick(likelihood=Mixed({1: "categorical"})).fit(table) for table in (rows, X))
    assert [c.kind for c in one.schema_] == ["normal_mixture", "categorical", "bernoulli", "normal_mixture"]
    assert one.schema_ == other.schema_ and one.score(rows) == other.score(X)
    filled = one.impute(rows)
    assert filled.dtype == object and np.array_equal(filled, other.impute(X))
    assert one.partial_fit(rows).score(rows) == other.partial_fit(X).score(X)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("columns", [["real", "text", "flag"], ["real", "flag"], ["real", "whole"], ["text", "object"]])
def test_lists_are_read_like_the_frame_of_the_fit(columns):
    X = frame(holes=False)[columns]
    vae, rows = quick().fit(X), X.to_numpy(dtype=object).tolist()
    assert np.array_equal(vae.transform(rows), vae.transform(X)) and vae.score(rows) == vae.score(X)


def test_training_goes_on_with_lists_and_conditions():
    X = np.random.default_rng(0).normal(size=(N, 3))
    vaes = [quick(condition_on=0).partial_fit(table).partial_fit(table) for table in (X, X.tolist())]
    assert vaes[0].score(X) == vaes[1].score(X)


def test_settings_are_searchable_and_cloneable():
    vae = quick(likelihood=Mixed({"a": Poisson()}, handle_unknown="missing"))
    again = clone(vae)
    assert again.likelihood == vae.likelihood and again.likelihood is not vae.likelihood
    assert again.set_params(likelihood__handle_unknown="error").likelihood.handle_unknown == "error"


# --- values that come out --------------------------------------------------------------------------------------------


def declared_frame(n=N):
    """Return a frame with categories that no row has."""
    rng = np.random.default_rng(0)
    columns = {
        "real": rng.normal(size=n),
        "unordered": pd.Categorical(rng.choice(["b", "c", "e"], size=n), categories=list("abcdef")),
        "ordered": pd.Categorical(rng.choice(["2", "5"], size=n), categories=list("123456"), ordered=True),
        "flag": pd.Categorical(["no"] * n, categories=["no", "yes"]),
    }
    return pd.DataFrame(columns)


def outputs(vae, X):
    """Return the frames that come out where cells are free."""
    holes = X.mask(np.random.default_rng(1).random(X.shape) < 0.5)
    Z = np.random.default_rng(2).normal(size=(300, vae.n_components_)) * 10
    return {
        "sample": vae.sample(3_000, random_state=0),
        "given": vae.sample(300, random_state=0, given={"real": 0.0}),
        "impute": vae.impute(holes),
        "draw": vae.impute(holes, method="draw", random_state=0),
        "reconstruct": vae.reconstruct(X),
        "inverse": vae.inverse_transform(Z),
    }


@pytest.mark.parametrize("max_iter", [1, 20])
def test_no_category_comes_out_that_no_training_row_has(max_iter):
    X = declared_frame()
    vae = VAETransformer(2, max_iter=max_iter, random_state=0).fit(X)
    for way, found in outputs(vae, X).items():
        for name in X.columns[1:]:
            assert found[name].dtype == X[name].dtype
            assert set(found[name]) <= set(X[name]), (way, name)
    assert np.isfinite(vae.score(X.head(2).assign(unordered=pd.Categorical(["a", "f"], categories=list("abcdef")))))


def test_categories_that_no_training_row_has_are_not_given():
    vae = quick().fit(declared_frame())
    with pytest.raises(ValueError, match="given has 'a' for 'unordered', a category that no row of the training data has"):
        vae.sample(20, random_state=0, given={"unordered": "a"})


def test_unseen_ordered_categories_give_way_to_the_nearest():
    form = quick().fit(declared_frame())._fitted.codec.form
    cells = np.array([[0.0, 1.0, code, 0.0] for code in range(6)])
    assert form.among_seen(cells)[:, 2].tolist() == [1, 1, 1, 4, 4, 4]


def test_categories_of_later_rows_may_come_out():
    X = declared_frame()
    later = X.assign(unordered=pd.Categorical(["a"] * N, categories=list("abcdef")))
    vae = quick(learning_rate_init=0.1)
    for part in (X, *[later] * 20):
        vae.partial_fit(part)
    assert "a" in set(vae.sample(200, random_state=0)["unordered"])
    again = skvae.VAETransformer.__new__(VAETransformer)
    again.__setstate__(vae.__getstate__())
    assert vae.sample(200, random_state=0).equals(again.sample(200, random_state=0))


def test_numbers_that_occur_again_and_again_come_out_as_they_are():
    rng = np.random.default_rng(0)
    amount = np.where(rng.random(600) < 0.8, 0, rng.lognormal(7, 1, size=600).round()).astype(int)
    X = pd.DataFrame({"amount": amount, "real": rng.normal(size=600), "kind": rng.choice(["a", "b"], size=600)})
    vae = VAETransformer(2, likelihood=Mixed(numbers="normal_mixture"), random_state=0).fit(X)
    found = vae.sample(2_000, random_state=0)
    assert abs((found["amount"] == 0).mean() - 0.8) < 0.05
    assert not found["amount"].between(1, 0.02 * amount.std()).any()
    assert found["real"].nunique() > 1_900  # which are left alone


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_new_categories_are_refused_or_missing(fitted):
    X = frame()
    X["text"] = X["text"].astype(object)
    X.loc[X.index[:2], "text"] = ["e", "f"]
    with pytest.raises(ValueError, match=r"Column 'text' has 2 categories that it did not have in fit: \['e', 'f'\]"):
        fitted.transform(X)
    tolerant = quick(likelihood=Mixed(handle_unknown="missing")).fit(frame())
    missing = X.assign(text=X["text"].where(~X["text"].isin(["e", "f"])))
    assert np.array_equal(tolerant.transform(X), tolerant.transform(missing))


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (pd.date_range("2020", periods=N), r"'bad' has type datetime64\[.*\], which no likelihood reads"),
        (np.arange(N).astype("timedelta64[s]"), r"'bad' has type timedelta64\[.*\], which no likelihood reads"),
        (np.where(np.arange(N) == 3, np.inf, 1.0), "'bad' contains infinity"),
        (pd.Series(MOMENTS.dt.date, dtype=object), "'bad' has type object, with cells of type date, .*days since a date"),
        (MOMENTS.dt.tz_localize("UTC").astype(object), "with cells of type Timestamp, .*days since a date"),
        (pd.Series(list(MOMENTS.dt.to_pydatetime()), dtype=object), "with cells of type .*days since a date"),
        (MOMENTS.dt.to_period("D"), r"'bad' has type period\[D\], which no likelihood reads.*days since a date"),
        (MOMENTS.astype("category"), "'bad' has type category, with cells of type Timestamp, .*days since a date"),
        (MOMENTS.dt.to_period("M").astype("category"), "with cells of type Period, .*days since a date"),
        (of_arrow(MOMENTS.dt.date, pa.date32()), r"'bad' has type date32\[day\]\[pyarrow\], .*days since a date"),
        (of_arrow([time(i % 24) for i in range(N)], pa.time64("us")), "'bad' has type time64.*days since a date"),
        (np.arange(N) * 1j, "'bad' has type complex128, .* its real and its imaginary part"),
        (pd.Series([1j, 2j] * (N // 2), dtype=object), "with cells of type complex, .* its real and its imaginary part"),
        (pd.Series([[i] for i in range(N)]), "'bad' has type object, with cells of type list, .* columns of numbers or texts"),
        (of_arrow([[i] for i in range(N)], pa.list_(pa.int64())), "'bad' has type list.* columns of numbers or texts"),
    ],
)
def test_columns_that_nothing_reads_are_named(column, match):
    with pytest.raises(ValueError, match=match):
        quick().fit(pd.DataFrame({"real": frame()["real"].to_numpy(), "bad": column}))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "ordinal"])
def test_a_category_that_training_rows_lack_does_not_end_the_training(kind):
    rng = np.random.default_rng(0)
    u = rng.normal(size=300)
    X = pd.DataFrame({"u": u, "w": 2 * u + 0.3 * rng.normal(size=300), "c": rng.choice(list("abc"), size=300)})
    name = [f"{i:03d}" for i in range(300)]
    odd = {
        "categorical": name, "bernoulli": np.where(np.arange(300) < 299, "a", "b"),
        "ordinal": pd.Categorical(name, categories=name, ordered=True),
    }  # fmt: skip
    vae = VAETransformer(random_state=0, max_iter=300).fit(X.assign(id=odd[kind]))
    assert vae.schema_[-1].kind == kind and vae.active_units_ > 0
    assert vae.sample(3_000, random_state=0)[["u", "w"]].corr().iloc[0, 1] > 0.95


def test_categories_alone_are_judged_by_those_of_training_rows():
    rng = np.random.default_rng(0)
    a = rng.integers(3, size=600)
    X = pd.DataFrame({"a": a, "b": a, "id": np.arange(600)}).astype(str)
    vae = quick(max_iter=60).fit(X)
    assert vae.active_units_ > 0
    drawn = vae.sample(1_000, random_state=0)
    assert (drawn["a"] == drawn["b"]).mean() > 0.9


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (pl.DataFrame({"real": np.arange(60.0), "bad": [1.0] * 59 + [np.inf]}), "'bad'"),
        (np.column_stack([np.arange(60.0), np.full(60, np.inf)]), "1"),
    ],
)
def test_columns_with_infinity_are_named_whatever_the_table(table, name):
    with pytest.raises(ValueError, match=f"^Column {name} contains infinity"):
        quick(likelihood=Mixed({0: "student_t"} if name == "1" else {"real": "student_t"})).fit(table)


@pytest.mark.parametrize(("bad", "match"), [(np.inf, "contains infinity"), ("q", "cannot be read as numbers: it has 'q'")])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_flags_of_two_numbers_that_get_no_numbers_are_named(bad, match, library):
    X = polars_frame().with_columns(two=pl.int_range(N) % 2)
    X = X if library == "polars" else X.to_pandas()
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=f"^Column 'two' {match}"):
        vae.transform(X.with_columns(two=pl.lit(bad)) if library == "polars" else X.assign(two=bad))


@pytest.mark.parametrize("bad", [np.arange(N) * 1j, MOMENTS.to_numpy(), pd.Series([1j] * N, dtype=object).to_numpy()])
def test_columns_of_numbers_stay_so(bad, fitted):
    with pytest.raises(ValueError, match="Column 'real' cannot be read as numbers"):
        fitted.transform(frame().assign(real=bad))
    with pytest.raises(ValueError, match="Column 'real' cannot be read as numbers"):
        quick(likelihood="gaussian").fit(pd.DataFrame({"real": bad, "x": np.arange(N)}))


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (polars_frame().lazy(), r"X is a polars.LazyFrame; .* Pass X.collect\(\)"),
        (polars_frame().to_arrow(), r"X is a pyarrow.Table; .* Pass X.to_pandas\(\), or polars.from_arrow\(X\)"),
    ],
)
def test_tables_of_other_libraries_are_refused_with_what_to_pass(table, match, fitted):
    for method in (quick().fit, quick().partial_fit, fitted.transform, fitted.score_samples, fitted.impute):
        with pytest.raises(TypeError, match=match):
            method(table)


def test_a_column_with_two_numbers_in_a_part_of_the_data_can_be_named():
    X = pd.DataFrame({"real": np.arange(120.0), "q": [0.0] * 70 + [1.0] * 46 + [2.0] * 4})
    message = r"'q' had no numbers but 0 and 1 in fit, .*taken for a flag, .*others: \[2.0\].*Mixed\({'q': 'normal_mixture'}\)"
    with pytest.raises(ValueError, match=message):
        quick().fit(X[:100]).score(X)
    for column in (X, X.astype({"q": pd.CategoricalDtype([0.0, 1.0, 2.0])})):
        likelihood = Mixed({"q": "normal_mixture"}) if column is X else "auto"
        assert np.isfinite(quick(likelihood=likelihood).fit(column[:100]).score(column))


def identified(n_levels, n_more=3000):
    """Return rows with a column of many categories, each once and ten of them again and again, of which another depends."""
    rng = np.random.default_rng(0)
    often = np.linspace(0, n_levels - 1, 10).astype(int)
    code = np.r_[np.arange(n_levels), rng.choice(often, size=n_more)]
    return pd.DataFrame({"id": [f"{i:05d}" for i in code], "x": code / n_levels + 0.05 * rng.normal(size=len(code))})


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("categorical", identified(1500)["id"]),
        ("categorical", identified(1500)["id"].astype("category")),
        ("ordinal", pd.Categorical(identified(1500)["id"], ordered=True)),
    ],
)
def test_identifiers_are_refused_unless_asked_for(kind, column):
    X = identified(1500).assign(id=column)
    with pytest.raises(ValueError, match=rf"'id' has 1500 categories.*likelihood=Mixed\({{'id': '{kind}'}}\)"):
        quick().fit(X)
    model = quick(likelihood=Mixed({"id": kind}), max_iter=1).fit(X)
    assert model.schema_[0].kind == kind and len(model.schema_[0].categories) == 1500


def test_a_column_of_many_categories_is_modelled_where_that_is_asked_for():
    X = identified(3000)
    vae = quick(likelihood=Mixed({"id": Categorical()}), max_iter=5).fit(X)
    drawn = vae.sample(500, random_state=0)
    assert drawn.dtypes.equals(X.dtypes) and drawn["id"].isin(X["id"]).all() and drawn["id"].nunique() > 100
    often = X["id"].value_counts().index[:10]
    assert abs(drawn["id"].isin(often).mean() - 0.5) < 0.15
    filled = vae.impute(pd.DataFrame({"id": [None, "00007"], "x": [1.0, np.nan]}), n_draws=20)
    assert filled["id"][0] in set(often) and filled["id"][1] == "00007" and np.isfinite(filled["x"][1])


def test_a_condition_may_have_many_categories():
    X = identified(3000)
    vae = quick(condition_on="id", max_iter=10).fit(X)
    assert vae.schema_[0].kind == "given categorical" and len(vae.schema_[0].categories) == 3000
    assert vae.transform(X).shape == (6000, 2)
    often = sorted(X["id"].value_counts().index[:10])
    given = vae.inverse_transform(np.zeros((10, 2)), given=pd.DataFrame({"id": often}))
    assert given["id"].tolist() == often and np.corrcoef(given["x"], np.arange(10))[0, 1] > 0.9
    drawn = vae.sample(20, given={"id": often[-1]}, random_state=0)
    assert (drawn["id"] == often[-1]).all() and drawn["x"].mean() > 0.6
    with pytest.raises(ValueError, match="did not have in fit"):
        vae.transform(X[:2].assign(id="new"))


def test_ordered_categories_that_were_declared_alone_give_way_to_near_ones():
    levels = [f"{i:05d}" for i in range(2000)]
    X = pd.DataFrame({"id": pd.Categorical(levels[500:1500:10] * 20, categories=levels, ordered=True), "x": np.arange(2000.0)})
    vae = quick(likelihood=Mixed({"id": "ordinal"}), max_iter=1).fit(X)
    drawn = vae.sample(200, random_state=0)["id"]
    assert set(drawn) <= set(X["id"])


def test_texts_are_no_numbers():
    with pytest.raises(ValueError, match="'text' cannot be read as numbers: it has '.', for example"):
        quick(likelihood="gaussian").fit(frame()[["real", "text"]])


def test_columns_that_are_not_there_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"Mixed names column\(s\) that X does not have: \['age'\]"):
        quick(likelihood=Mixed({"age": "poisson"})).fit(frame())
    with pytest.raises(ValueError, match="is no likelihood of a column"):
        quick(likelihood=Mixed({"real": 3})).fit(frame())


def test_failed_fits_leave_nothing():
    vae = quick()
    with pytest.raises(ValueError, match="no likelihood reads"):
        vae.fit(frame().assign(bad=pd.Timestamp("2020")))
    assert not hasattr(vae, "n_features_in_")


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        pd.Index(["a", "b", "c", "d"], name="gene"),
        pd.Index(range(4), name=("no", 1)),
        pd.MultiIndex.from_product([["a", "b"], ["x", "y"]], names=["outer", "inner"]),
        pd.MultiIndex.from_product([["a", "b"], ["x", "y"]], names=[None, "inner"]),
        pd.MultiIndex.from_product([["a", "b"], ["x", "y"]]),
    ],
)
def test_names_of_the_levels_of_columns_come_back(columns, tmp_path):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)), columns=columns)
    vae = quick().fit(X)
    vae.save(tmp_path / "m.skvae")
    loaded = skvae.load(tmp_path / "m.skvae")
    holes = X.mask(X > 1)
    tables = (vae.reconstruct(X), vae.inverse_transform(vae.transform(X)), vae.sample(3), vae.impute(holes), loaded.sample(3))
    for table in tables:
        pd.testing.assert_index_equal(table.columns, columns, exact="equiv")


def test_decoded_latents_keep_their_index():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"), index=range(1000, 1060))
    vae = quick().set_output(transform="pandas").fit(X)
    latents = vae.transform(X)[::-2]
    found = vae.inverse_transform(latents)
    pd.testing.assert_frame_equal(found, vae.reconstruct(X)[::-2], rtol=1e-5)
    assert (X[::-2] - found).notna().all(axis=None)
    assert vae.inverse_transform(latents.to_numpy()).index.tolist() == list(range(30))
    assert isinstance(quick().fit(X.to_numpy()).inverse_transform(latents), np.ndarray)


@pytest.mark.parametrize("rows", [slice(None), slice(1)], ids=["a row each", "one row for all"])
def test_decoded_latents_keep_their_index_whatever_that_of_the_conditions(rows):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"), index=range(1000, 1060))
    vae = quick(condition_on=["a"]).set_output(transform="pandas").fit(X)
    given = X[["a"]].iloc[rows]
    found = vae.inverse_transform(vae.transform(X), given=given.reset_index(drop=True))
    assert found.index.equals(X.index)
    np.testing.assert_array_equal(found["a"], np.broadcast_to(given["a"], 60))


@pytest.mark.parametrize("names", [[("a", "x"), ("a", "y"), ("b", "")], [2, 0, 1], [2.5, 4, True]], ids=str)
def test_columns_are_called_what_the_frame_calls_them(names, tmp_path):
    X = frame(holes=False)[["real", "small", "text"]].set_axis(pd.Index(names), axis=1)
    vae = quick(likelihood=Mixed({names[1]: "poisson"})).fit(X)
    assert [column.name for column in vae.schema_] == [str(name) for name in names]
    vae.save(tmp_path / "model.skvae")
    assert skvae.load(tmp_path / "model.skvae").schema_ == vae.schema_
    bad = X.copy()
    bad.isetitem(1, -1)
    with pytest.raises(ValueError, match=re.escape(f"for example -1 in {str(names[1])!r}")):
        vae.transform(bad)


def test_tuples_that_are_no_levels_have_no_names_of_levels():
    columns = pd.Index([("a", 1), ("b", 2)], tupleize_cols=False, name="pair")
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=columns)
    assert list(quick().fit(X).reconstruct(X).columns) == list(columns)


def test_two_numbers_are_a_flag_if_there_are_enough_of_them():
    X = pd.DataFrame({"a": [0.0, 1.0] * 4, "b": np.arange(8.0)})
    assert [c.kind for c in quick().fit(X).schema_] == ["gaussian", "gaussian"]
    assert [c.kind for c in quick().fit(pd.concat([X, X])).schema_] == ["bernoulli", "normal_mixture"]


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli(limits=(1, 2))])
def test_named_likelihoods_read_numbers_as_they_are(likelihood):
    X = frame()[["two"]].assign(other=np.tile([1.0, 2.0], N // 2))
    assert quick(likelihood=likelihood).fit(X).schema_[0].categories == ()


def test_warnings_of_convergence_still_come():
    with pytest.warns(ConvergenceWarning):
        quick(max_iter=2).fit(frame())


@pytest.mark.parametrize("kind", ["datetime64[ns]", "datetime64[s]", "timedelta64[ns]", "timedelta64[s]"])
def test_moments_that_are_chosen_to_be_categories_come_back_and_are_saved(kind, tmp_path):
    days = pd.Series(np.arange(60) % 3 + 1).astype("int64").to_numpy().astype(f"{kind[: -len(kind.split('64')[1])]}[D]")
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "when": days.astype(kind)})
    vae = VAETransformer(1, likelihood=Mixed({"when": "categorical"}), max_iter=3, learning_rate="cosine", random_state=0).fit(
        X
    )
    assert vae.sample(5, random_state=0)["when"].dtype == X["when"].dtype
    vae.save(tmp_path / "m.skvae")
    assert skvae.load(tmp_path / "m.skvae").sample(5, random_state=0).equals(vae.sample(5, random_state=0))


def test_a_column_of_the_type_category_without_any_is_a_column_of_holes():
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "c": pd.Series([None] * 60).astype("category")})
    vae = VAETransformer(1, max_iter=3, learning_rate="cosine", random_state=0).fit(X)
    assert vae.transform(X).shape == (60, 1)
    assert vae.sample(4, random_state=0)["c"].isna().all()


@pytest.mark.parametrize("now", ["a", 3.0, np.inf, MOMENTS[0]], ids=str)
@pytest.mark.parametrize("empty", ["str", "float", "object", "category", "declared", "boolean"])
def test_a_column_without_a_cell_in_training_may_hold_anything_later(empty, now):
    holes = [None] * N
    column = pd.Categorical(holes, ["u", "v"]) if empty == "declared" else pd.Series(holes, dtype=empty).array
    X = frame()[["real", "text"]].assign(k=column)
    vae, later = quick().fit(X), X.assign(k=now)
    assert np.array_equal(vae.transform(later), vae.transform(X))
    assert np.array_equal(vae.score_samples(later), vae.score_samples(X))
    assert np.array_equal(vae.score_cells(later), vae.score_cells(X), equal_nan=True)
    for found in (vae.impute(later), *vae.multiple_impute(later, 2)):
        assert not found.isna().to_numpy().any()
        pd.testing.assert_series_equal(found["k"], later["k"])
    for found in (vae.sample(5), vae.inverse_transform([[0.0, 0.0]]), vae.reconstruct(later), vae.edit(later, [0, 1])):
        assert found["k"].isna().all() and not found[["real", "text"]].isna().to_numpy().any()
    for given in ({"k": now}, later[:2], later[["k"]]):
        with pytest.raises(ValueError, match="'k' was missing in every row of the training data, .* Leave it out of given"):
            vae.sample(given=given)
    with pytest.warns(UserWarning, match=r"1 column\(s\) had no cell or a single value .*\['k'\]"):
        vae.partial_fit(later)


@pytest.mark.parametrize("empty", [pl.String, pl.Float64, pl.Null, pl.Enum(LEVELS)], ids=str)
def test_a_column_of_polars_without_a_cell_in_training_may_hold_anything_later(empty):
    X = polars_frame().select("real", "text", k=pl.lit(None, dtype=empty))
    vae = quick().fit(X)
    for now in ("a", 3.0, time(12)):
        later = X.with_columns(k=pl.lit(now))
        assert np.array_equal(vae.transform(later), vae.transform(X))
        assert vae.impute(later)["k"].equals(later["k"])
        assert vae.reconstruct(later)["k"].is_null().all()


def test_a_column_of_an_array_without_a_cell_in_training_may_hold_anything_later():
    X = frame()[["real", "text"]].assign(k=None).to_numpy(dtype=object)
    vae, later = quick(likelihood=Mixed()).fit(pd.DataFrame(X).infer_objects()), X.copy()
    later[:, 2] = "a"
    assert np.array_equal(vae.transform(later), vae.transform(X))
    assert (vae.impute(later)[:, 2] == "a").all()
    with pytest.raises(ValueError, match="2 was missing in every row"):
        vae.sample(given=later[:2])


def test_advice_about_likelihoods_is_for_those_who_chose_one(fitted):
    bad = frame().assign(real="forty")
    for call in (lambda: fitted.transform(bad), lambda: fitted.sample(given={"real": "forty"})):
        with pytest.raises(ValueError, match="'forty', for example. Correct such cells, or mark them as missing"):
            call()
    with pytest.raises(ValueError, match="'forty', for example. Leave its likelihood to likelihood='auto'"):
        quick(likelihood=Mixed({"real": "gaussian"})).fit(bad)


@pytest.mark.parametrize("dtype", ["Int64", "string"])
def test_imputation_keeps_the_type_of_categories(dtype):
    c = pd.Categorical(
        pd.array([1, 2, 3] * 20, dtype="Int64") if dtype == "Int64" else pd.array(["u", "v", "w"] * 20, dtype="string")
    )
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "c": c})
    holes = X.mask(np.arange(120).reshape(60, 2) % 7 == 1)
    assert (
        VAETransformer(1, max_iter=3, learning_rate="cosine", random_state=0).fit(holes).impute(holes)["c"].dtype
        == holes["c"].dtype
    )


def test_scores_leave_rows_without_weight_unread():
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "c": ["u", "v", "w"] * 20})
    vae = VAETransformer(1, max_iter=3, learning_rate="cosine", random_state=0).fit(X)
    more = pd.concat([X, pd.DataFrame({"a": [0.0], "c": ["new"]})])
    assert vae.score(more, sample_weight=[1.0] * 60 + [0.0]) == pytest.approx(vae.score(X))


@pytest.mark.parametrize("names", [["a", "a", "b"], [0, 1, 0]])
def test_columns_of_the_same_name_are_refused(names):
    again = names[0]
    with pytest.raises(ValueError, match=rf"1 name\(s\) belong to more than one column: \[{again!r}\]. Rename"):
        quick().fit(pd.DataFrame(np.eye(20, 3), columns=names))


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_arrays_of_flags_are_flags(container):
    X = np.random.default_rng(0).random((60, 3)) < [0.2, 0.5, 0.9]
    vae = quick().fit(container(X))
    assert {column.kind for column in vae.schema_} == {"bernoulli"}
    assert set(np.unique(vae.sample(50, random_state=0))) == {0.0, 1.0}
    np.testing.assert_array_equal(vae.score_samples(container(X)), vae.score_samples(X.astype(float)))
