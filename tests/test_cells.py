"""Filled holes, conditional rows, scores and intervals of cells: exact answers of linear models, and tables of all kinds."""

from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import LIKELIHOODS as EVERY_LIKELIHOOD
from conftest import table_for
from scipy.stats import norm
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, Mixed
from skvae.networks import VariationalMLP
from skvae.objectives import IWAE

D = 5


def linear_rows(n=300, seed=0):
    """Return rows of a linear model in odd units."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(9).normal(size=(2, D))
    X = rng.normal(size=(n, 2)) @ loadings + 0.4 * rng.normal(size=(n, D))
    return X * [1, 10, 0.1, 1, 100] + [0, 5, 0, -3, 1000]


def with_holes(X, share=0.3, seed=1):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def quick(*args, **params):
    settings = {"max_iter": 30, "learning_rate": "cosine", "early_stopping": False, "dtype": "float64", "random_state": 0}
    return VAETransformer(*args, **{**settings, **params})


@pytest.fixture(scope="module", params=[False, True], ids=["trained on complete rows", "trained on rows with holes"])
def linear(request):
    """A linear model, of which every answer is known, whatever its parameters."""
    X = linear_rows()
    return quick(2, hidden_layer_sizes=(), posterior="full_normal").fit(with_holes(X) if request.param else X)


def moments(vae):
    """Return mean and covariance of p(x) of a linear model, in the units of the data."""
    codec = vae._fitted.codec
    decoder = vae._fitted.model.unpack(torch.tensor(vae._fitted.params))["decoder"]
    loadings = decoder["weight0"].numpy() * codec.scale[codec.order]
    mean = codec.loc[codec.order] + codec.scale[codec.order] * decoder["bias0"].numpy()[0]
    return mean, loadings.T @ loadings + np.diag(vae.noise_variance_[codec.order])


def given(vae, row, known):
    """Return mean and covariance of the other cells, given those that are known."""
    mean, covariance = moments(vae)
    slope = np.linalg.solve(covariance[np.ix_(known, known)], covariance[np.ix_(known, ~known)]).T
    return mean[~known] + slope @ (row - mean)[known], covariance[np.ix_(~known, ~known)] - slope @ covariance[
        np.ix_(known, ~known)
    ]


def each_given_the_others(vae, X):
    """Return mean and standard deviation of every cell given the others of its row."""
    mean, variance = np.empty(X.shape), np.empty(X.shape)
    for i, row in enumerate(X):
        for j in range(D):
            known = ~np.isnan(row) & (np.arange(D) != j)
            at = np.flatnonzero(np.flatnonzero(~known) == j)[0]
            centre, covariance = given(vae, row, known)
            mean[i, j], variance[i, j] = centre[at], covariance[at, at]
    return mean, np.sqrt(variance)


# --- exact answers -------------------------------------------------------------------------------------------------------


def test_score_of_a_row_with_holes_is_the_density_of_its_known_cells(linear):
    X = with_holes(linear_rows(30, seed=2))
    mean, covariance = moments(linear)
    exact = []
    for row in X:
        known = ~np.isnan(row)
        centred, part = (row - mean)[known], covariance[np.ix_(known, known)]
        exact.append(-0.5 * (centred @ np.linalg.solve(part, centred) + np.linalg.slogdet(2 * np.pi * part)[1]))
    found = linear.set_params(score_method=IWAE(20_000)).score_samples(X)
    assert found.mean() == pytest.approx(np.mean(exact), abs=0.01 if linear._fitted.codec.per_cell else 0.1)


def test_filled_holes_are_conditional_means(linear):
    X = with_holes(linear_rows(30, seed=2))
    mean, scale = each_given_the_others(linear, X)
    filled = linear.impute(X, n_draws=2000)
    holes = np.isnan(X)
    np.testing.assert_array_equal(filled[~holes], X[~holes])
    assert np.sqrt(np.mean(((filled - mean) / scale)[holes] ** 2)) < 0.02


def test_imputations_have_conditional_means_and_covariances(linear):
    row = linear_rows(1, seed=3)[0]
    known = np.array([True, False, True, False, False])
    tables = linear.multiple_impute(np.where(known, row, np.nan)[None], 5000, n_draws=1000, random_state=0)
    drawn = np.concatenate(tables)[:, ~known]
    mean, covariance = given(linear, row, known)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((drawn.mean(0) - mean) / scale, 0, atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.08)


def test_rows_drawn_on_condition_of_a_cell_have_the_conditional_moments(linear):
    value = float(np.quantile(linear_rows()[:, 1], 0.9))
    drawn, ess = linear.sample(5000, random_state=0, given={1: value}, return_ess=True)
    assert drawn.shape == (5000, D) and (drawn[:, 1] == value).all()
    known = np.arange(D) == 1
    mean, covariance = given(linear, np.where(known, value, 0), known)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((drawn[:, ~known].mean(0) - mean) / scale, 0, atol=0.06)
    np.testing.assert_allclose(
        np.cov(drawn[:, ~known].T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.08
    )
    assert ess.shape == (1,) and 300 < ess[0] <= 1000


def test_intervals_are_those_of_the_normal_conditionals(linear):
    X = with_holes(linear_rows(20, seed=4))
    mean, scale = each_given_the_others(linear, X)
    low, high = linear.predictive_interval(X, 0.8, n_draws=5000)
    for found, level in ((low, 0.1), (high, 0.9)):
        assert np.sqrt(np.mean(((found - norm.ppf(level, mean, scale)) / scale) ** 2)) < 0.08


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_intervals_hold_the_truth_as_often_as_they_say(coverage):
    X, truth = linear_rows(1000), linear_rows(600, seed=5)
    vae = quick(2, hidden_layer_sizes=(), max_iter=100).fit(X)
    holes = with_holes(truth, 0.3)
    low, high = vae.predictive_interval(holes, coverage, n_draws=500)
    inside = (low <= truth) & (truth <= high)
    missing = np.isnan(holes)
    assert inside[missing].mean() == pytest.approx(coverage, abs=0.03)
    assert inside[~missing].mean() == pytest.approx(coverage, abs=0.03)


def test_scores_of_cells_differ_as_their_conditional_densities_do(linear):
    X = with_holes(linear_rows(20, seed=6), 0.2)
    mean, scale = each_given_the_others(linear, X)
    exact = norm.logpdf(X, mean, scale)
    spread = norm.ppf(0.95) * np.sqrt(np.diag(moments(linear)[1])) * 2 / 0.9
    exact = exact + np.log(spread)
    found = linear.score_cells(X, n_draws=5000)
    centred = [values - np.nanmean(values, axis=1, keepdims=True) for values in (found, exact)]
    assert np.sqrt(np.nanmean((centred[0] - centred[1]) ** 2)) < 0.15


# --- scores of cells -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score_method", ["iwae", "elbo"])
def test_scores_of_cells_sum_to_the_score_of_the_row(linear, score_method):
    X = with_holes(linear_rows(50, seed=2), 0.2)
    linear.set_params(score_method=score_method)
    cells = linear.score_cells(X)
    assert np.array_equal(np.isnan(cells), np.isnan(X))
    np.testing.assert_allclose(np.nansum(cells, axis=1), linear.score_samples(X), atol=1e-6)


def test_the_wrong_cell_of_a_row_ranks_first(linear):
    X = linear_rows(100, seed=7)
    column = np.arange(100) % D
    mean, scale = each_given_the_others(linear, X)
    X[np.arange(100), column] = (mean + 8 * scale)[np.arange(100), column]
    assert (linear.score_cells(X).argmin(axis=1) == column).mean() > 0.9


@pytest.mark.parametrize("method", ["impute", "score_cells", "predictive_interval"])
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(linear, method):
    X = with_holes(linear_rows(60, seed=8))
    whole, part = (np.stack(np.atleast_3d(getattr(linear, method)(rows))) for rows in (X, X[41:47]))
    axis = 1 if method == "predictive_interval" else 0
    np.testing.assert_array_equal(part, whole.take(range(41, 47), axis))


# --- tables of all kinds -------------------------------------------------------------------------------------------------


def people(n=120, seed=0):
    """Return a frame with columns of many types, without holes."""
    rng = np.random.default_rng(seed)
    child = rng.random(n) < 0.4
    return pd.DataFrame(
        {
            "height": np.where(child, 120, 175) + 8 * rng.normal(size=n),
            "weight": (np.where(child, 30, 75) + 5 * rng.normal(size=n)).astype(np.float32),
            "siblings": pd.array(rng.poisson(1.5, n), dtype="Int64"),
            "group": np.where(child, "child", np.where(rng.random(n) < 0.5, "worker", "retired")).astype(object),
            "fitness": pd.Categorical.from_codes(rng.integers(3, size=n), ["low", "mid", "high"], ordered=True),
            "married": pd.array(~child & (rng.random(n) < 0.7), dtype="boolean"),
            "city": pd.Categorical(rng.choice(["Rome", "Oslo", "Lima"], n)),
            "planet": ["earth"] * n,
            "tail": np.full(n, np.nan),
        },
        index=[f"person {i}" for i in range(n)],
    )


LIKELIHOODS = Mixed({"siblings": "poisson"})


def punched(frame, share=0.25, seed=1):
    """Return a frame with holes in all columns but the one that is missing as a whole."""
    rng = np.random.default_rng(seed)
    out = frame.copy()
    for name in frame.columns.drop("tail"):
        out.loc[rng.random(len(frame)) < share, name] = (
            None if frame[name].dtype == object else pd.NA if name == "siblings" else np.nan
        )
    return out


@pytest.fixture(scope="module")
def mixed():
    return quick(2, likelihood=LIKELIHOODS, hidden_layer_sizes=(16,), max_iter=60).fit(punched(people()))


def assert_filled(out, holes, kinds=None):
    """Assert that a frame is another one with its holes filled, but for the column that cannot be."""
    pd.testing.assert_index_equal(out.index, holes.index)
    assert (out.dtypes == holes.dtypes).all()
    assert not out.drop(columns="tail").isna().any().any() and out["tail"].isna().all()
    for name in holes:
        known = holes[name].notna()
        pd.testing.assert_series_equal(out.loc[known, name], holes.loc[known, name], check_exact=True)
        if name not in ("height", "weight", "siblings", "tail"):
            assert set(out[name]) <= set(holes[name].dropna())


@pytest.mark.parametrize("method", ["mean", "draw"])
def test_frames_of_pandas_are_filled_in_their_types(mixed, method):
    holes = punched(people(seed=2))
    before = holes.copy(deep=True)
    out = mixed.impute(holes, method=method, random_state=0)
    pd.testing.assert_frame_equal(holes, before)
    assert_filled(out, holes)
    assert (out.loc[holes["planet"].isna(), "planet"] == "earth").all()


def test_frames_of_polars_are_filled_in_their_types():
    frame = punched(people()).drop(columns="tail")
    holes = pl.DataFrame(
        {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame},
        schema={
            "height": pl.Float64, "weight": pl.Float32, "siblings": pl.Int16, "group": pl.String,
            "fitness": pl.Enum(["low", "mid", "high"]), "married": pl.Boolean, "city": pl.Categorical, "planet": pl.String,
        },
    )  # fmt: skip
    out = quick(2, likelihood=LIKELIHOODS, hidden_layer_sizes=(16,)).fit(holes).impute(holes)
    assert out.schema == holes.schema and out.null_count().sum_horizontal().item() == 0
    for name in holes.columns:
        known = holes[name].is_not_null()
        assert out[name].filter(known).to_list() == holes[name].filter(known).to_list()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_are_filled_in_their_type(linear, dtype):
    X = with_holes(linear_rows(20)).astype(dtype)
    out = linear.impute(X)
    assert out.dtype == dtype and not np.isnan(out).any()
    assert np.array_equal(out[~np.isnan(X)], X[~np.isnan(X)])


def test_arrays_of_any_cells_are_filled():
    X = punched(people())[["height", "group", "city"]].astype(object).where(lambda frame: frame.notna(), None).to_numpy()
    out = quick(1, likelihood=Mixed(), hidden_layer_sizes=(8,)).fit(pd.DataFrame(X).infer_objects()).impute(X)
    holes = pd.isna(X)
    assert out.dtype == object and not pd.isna(out).any()
    assert (out[~holes] == X[~holes]).all()


def test_frames_of_other_types_than_in_training_keep_theirs(mixed):
    holes = punched(people(seed=3))
    other = holes.astype({"height": "Float32", "siblings": "float64", "group": "category", "city": object})
    other["group"] = other["group"].cat.remove_categories("worker")
    out = mixed.impute(other)
    assert (out.dtypes.drop("group") == other.dtypes.drop("group")).all()
    assert isinstance(out["group"].dtype, pd.CategoricalDtype) and not out["group"].isna().any()


def test_a_table_without_holes_comes_back_as_a_copy(mixed, linear):
    frame, X = people(seed=4), linear_rows(10)
    for out in (mixed.impute(frame), *mixed.multiple_impute(frame, 2)):
        pd.testing.assert_frame_equal(out, frame)
    out = linear.impute(X)
    assert np.array_equal(out, X) and out is not X


def test_unknown_categories_are_filled_where_they_are_read_as_missing():
    frame = people().drop(columns="tail")
    vae = quick(1, likelihood=Mixed(handle_unknown="missing"), hidden_layer_sizes=(8,)).fit(frame)
    other = frame.head(3).assign(group=["alien", "worker", "child"])
    assert vae.impute(other)["group"].tolist()[1:] == ["worker", "child"]
    assert vae.impute(other)["group"].iloc[0] in ("child", "worker", "retired")


def test_filled_categories_are_the_likely_ones(mixed):
    holes = people(seed=5)
    truth = holes["group"] == "child"
    holes["group"] = None
    assert ((mixed.impute(holes)["group"] == "child") == truth).mean() > 0.95


def test_imputations_differ_only_in_holes_and_repeat_with_their_seed(mixed):
    holes = punched(people(seed=2))
    one, two = mixed.multiple_impute(holes, 2, random_state=0), mixed.multiple_impute(holes, 2, random_state=0)
    for table in one:
        assert_filled(table, holes)
    pd.testing.assert_frame_equal(one[0], two[0])
    assert not one[0].equals(one[1])
    assert len(mixed.multiple_impute(holes, 30, n_draws=60, random_state=0)) == 30


def test_neither_output_settings_nor_pipelines_change_what_is_filled(linear):
    X = with_holes(linear_rows(100))
    plain = linear.impute(X)
    vae = quick(2, hidden_layer_sizes=()).set_output(transform="pandas")
    pipe = make_pipeline(StandardScaler(), vae).fit(X)
    assert isinstance(pipe.transform(X), pd.DataFrame)
    assert isinstance(pipe[-1].impute(pipe[0].transform(X)), np.ndarray)
    np.testing.assert_array_equal(linear.impute(X), plain)


@pytest.mark.parametrize("likelihood", EVERY_LIKELIHOOD, ids=repr)
def test_holes_under_every_likelihood_are_filled_with_what_it_accepts(likelihood):
    X = table_for(likelihood)
    vae = quick(1, likelihood=likelihood, hidden_layer_sizes=(8,), max_iter=3).fit(X)
    holes = with_holes(X)
    missing = np.isnan(holes)
    for out in (vae.impute(holes), vae.impute(holes, method="draw", random_state=0)):
        np.testing.assert_array_equal(out[~missing], X[~missing])
        assert np.isfinite(vae.score_samples(out)).all()  # which refuses what is outside of the support
    cells = vae.score_cells(holes)
    np.testing.assert_allclose(np.nansum(cells, axis=1), vae.score_samples(holes), atol=1e-6)
    low, high = vae.predictive_interval(holes, n_draws=200)
    assert np.isnan(low).all() if isinstance(likelihood, (Bernoulli, Categorical)) else (low <= high).all()


# --- given cells ---------------------------------------------------------------------------------------------------------


def test_given_cells_of_a_frame_come_back_in_its_form(mixed):
    drawn = mixed.sample(40, random_state=0, given={"group": "child", "siblings": 2, "height": 130.5})
    assert drawn.shape == (40, 9) and drawn.dtypes["siblings"] == "Int64"
    assert (drawn["group"] == "child").all() and (drawn["siblings"] == 2).all() and (drawn["height"] == 130.5).all()
    assert drawn["weight"].mean() < 45
    again = mixed.sample(40, random_state=0, given={"group": "child", "siblings": 2, "height": 130.5})
    pd.testing.assert_frame_equal(drawn, again)


def beyond(library="pandas", n=60):
    """Return a frame with numbers of which double precision holds the first digits alone."""
    rng = np.random.default_rng(0)
    id, price = 2**53 + 1 + 2 * np.arange(n), [Decimal(10**20 + i) / 100 for i in range(n)]
    columns = {"kind": rng.choice(["a", "b", "c"], size=n), "id": id, "real": rng.normal(size=n)}
    if library == "polars":
        return pl.DataFrame(columns).with_columns(price=pl.Series(price, dtype=pl.Decimal(30, 2)))
    price = pd.array(price, dtype=pd.ArrowDtype(pa.decimal128(30, 2)))
    return pd.DataFrame(columns).assign(maybe=pd.array(id.tolist(), dtype="Int64"), few=pd.arrays.SparseArray(id), price=price)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_given_numbers_come_back_however_many_digits_they_have(library):
    X = beyond(library)
    vae = quick(1, max_iter=2).fit(X)
    for name in X.columns:
        if name not in ("kind", "real"):
            drawn = vae.sample(2, given=X[["real", name]][:4], random_state=0)[name]
            assert drawn.dtype == X[name].dtype
            assert drawn.to_list() == [cell for cell in X[name].to_list()[:4] for _ in range(2)]
            assert vae.sample(3, given={name: X[name][5]}, random_state=0)[name].to_list() == [X[name][5]] * 3


def test_given_numbers_of_an_array_come_back_however_many_digits_they_have():
    X = beyond()[["kind", "id", "real"]].set_axis(range(3), axis=1)
    given = X[:3].astype(object).to_numpy()
    vae = quick(1, max_iter=2).fit(X)
    assert vae.sample(given=given, random_state=0)[1].tolist() == given[:, 1].tolist()
    whole = np.column_stack([beyond()["id"], np.arange(60) % 7])
    drawn = quick(1, max_iter=2, likelihood=Mixed({1: "poisson"})).fit(whole).sample(given=whole[:3], random_state=0)
    assert drawn.dtype == whole.dtype and np.array_equal(drawn, whole[:3])


def test_rows_that_are_completed_have_the_labels_of_those_given(mixed):
    given = people()[["height"]][:2].set_axis(["a", "b"])
    assert mixed.sample(3, given=given, random_state=0).index.tolist() == ["a"] * 3 + ["b"] * 3
    assert mixed.sample(2, given={"height": 150.0}, random_state=0).index.tolist() == [0, 1]


def test_every_row_of_a_frame_is_completed_in_turn(mixed):
    some = pd.DataFrame({"group": ["child", "worker"], "height": [125.0, None]})
    drawn = mixed.sample(3, random_state=0, given=some)
    assert drawn["group"].tolist() == ["child"] * 3 + ["worker"] * 3
    assert drawn["height"].tolist()[:3] == [125.0] * 3 and drawn["height"].iloc[3:].nunique() == 3
    drawn, ess = mixed.sample(random_state=0, given=punched(people(seed=6)).head(7), return_ess=True)
    assert len(drawn) == len(ess) == 7


def test_more_rows_than_one_pool_of_latents_gives_are_drawn_from_several(linear):
    drawn = linear.sample(25, random_state=0, given={0: 0.0}, n_draws=40)
    assert drawn.shape == (25, D) and len(np.unique(drawn[:, 1])) == 25


def test_means_on_condition_are_smoother_than_draws(linear):
    spread = [linear.sample(500, random_state=0, given={0: 0.0}, noise=noise)[:, 1:].std(axis=0) for noise in (False, True)]
    assert (spread[0] < spread[1]).all()


def test_a_row_that_is_given_as_a_whole_comes_back(linear):
    X = linear_rows(2)
    np.testing.assert_array_equal(linear.sample(2, random_state=0, given=X), np.repeat(X, 2, axis=0))


@pytest.mark.filterwarnings("default:For 1 of 1 row")
def test_few_draws_that_count_are_told():
    vae = quick(2, hidden_layer_sizes=()).fit(linear_rows())
    with pytest.warns(UserWarning, match=r"For 1 of 1 row\(s\) fewer than 10 of the 5 draws count") as told:
        vae.sample(3, random_state=0, given={0: 0.0}, n_draws=5)
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("default:For . of . row")
@pytest.mark.parametrize("method", ["impute", "multiple_impute", "predictive_interval"])
def test_few_draws_that_count_are_told_where_holes_are_filled(linear, method):
    X = with_holes(linear_rows(8, seed=3))
    with pytest.warns(UserWarning, match=r"fewer than 10 of the 5 draws count") as told:
        getattr(linear, method)(X, n_draws=5)
    assert told[0].filename == __file__


def test_holes_of_which_training_had_none_are_filled_by_the_exact_rule():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 6)) + 0.05 * rng.normal(size=(500, 6))
    vae = VAETransformer(3, hidden_layer_sizes=(), random_state=0).fit(X[:400])
    is_hole = rng.random((100, 6)) < 0.3
    is_hole[is_hole.sum(axis=1) > 3] = False
    holes = np.where(is_hole, np.nan, X[400:])
    filled, drawn = vae.impute(holes), np.array(vae.multiple_impute(holes, 20, random_state=0))
    low, high = vae.predictive_interval(holes)
    errors, ratios, covers = [], [], []
    for i in np.flatnonzero(is_hole.any(axis=1)):
        m = is_hole[i]
        mean, covariance = given(vae, X[400 + i], ~m)
        scale = np.sqrt(np.diag(covariance))
        errors.extend((filled[i, m] - mean) / scale)
        ratios.extend(drawn[:, i, m].var(axis=0, ddof=1) / scale**2)
        covers.extend(norm.cdf(high[i, m], mean, scale) - norm.cdf(low[i, m], mean, scale))
    assert np.sqrt(np.mean(np.square(errors))) < 0.05
    assert 0.85 < np.mean(ratios) < 1.1
    assert 0.88 < np.mean(covers) < 0.91


# --- intervals -----------------------------------------------------------------------------------------------------------


def test_intervals_of_a_frame_have_its_form_and_none_for_categories(mixed):
    holes = punched(people(seed=2)).head(20)
    low, high = mixed.predictive_interval(holes, n_draws=200)
    for table in (low, high):
        pd.testing.assert_index_equal(table.index, holes.index)
        assert table.columns.equals(holes.columns)
        assert table[["group", "married", "city", "tail"]].isna().all().all()
        assert table[["height", "weight", "siblings", "fitness"]].notna().all().all()
    assert (low["height"] < high["height"]).all() and (low["siblings"] <= high["siblings"]).all()
    assert (low["fitness"].cat.codes <= high["fitness"].cat.codes).all()


def test_cells_are_compared_with_intervals_whatever_their_type():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=60), "n": rng.integers(9, size=60), "flag": rng.random(60) < 0.5})
    low, high = VAETransformer(2, max_iter=2, learning_rate="cosine", random_state=0).fit(X).predictive_interval(X)
    is_outside = ((low > X) | (high < X)).fillna(False)
    assert is_outside["a"].sum() < 20 and not is_outside["flag"].any()


def test_a_seed_changes_intervals_a_little(linear):
    X = with_holes(linear_rows(10))
    one, other = (linear.predictive_interval(X, random_state=seed)[0] for seed in (0, 1))
    assert not np.array_equal(one, other)
    scale = linear_rows().std(axis=0)
    np.testing.assert_allclose(one / scale, other / scale, atol=0.3)


def test_scores_of_cells_of_a_frame_have_its_labels(mixed):
    holes = punched(people(seed=2)).head(20)
    cells = mixed.score_cells(holes)
    pd.testing.assert_index_equal(cells.index, holes.index)
    unseen = ["planet", "tail"]
    assert cells[unseen].isna().all().all()
    assert (cells.drop(columns=unseen).isna() == holes.drop(columns=unseen).isna()).all().all()
    np.testing.assert_allclose(cells.sum(axis=1), mixed.score_samples(holes), atol=1e-6)
    of_polars = mixed.score_cells(pl.from_pandas(holes.drop(columns="tail").assign(tail=np.nan)))
    np.testing.assert_array_equal(of_polars.to_numpy(), cells.to_numpy())


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"shoe": 1}, r"1 column\(s\) are not among those of the training data: \['shoe'\]"),
        ({"group": "alien"}, "'group' has 1 category that it did not have in fit"),
        ({"group": None}, "missing or unknown"),
        ({"siblings": -1}, "the poisson likelihood does not accept"),
        ({"siblings": 1.5}, "a column of whole numbers"),
        ({"height": "tall"}, "'height' cannot be read as numbers"),
        ({"height": np.inf}, "infinity"),
        ({"planet": "mars"}, "'planet' has 1 category"),
        ({"tail": 1.0}, "'tail' was missing in every row"),
        (pd.DataFrame({"shoe": [1]}), "not among those of the training data"),
        ({"group": ["a", "b"]}, r"one value for each of its columns, got \['a', 'b'\] for 'group'"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_refused(mixed, given, message):
    with pytest.raises(ValueError, match=message):
        mixed.sample(given=given)


def test_what_a_column_cannot_hold_is_not_given():
    X = pd.DataFrame({"age": [20, 30, 40] * 20, "kind": pd.Categorical(["u", "v"] * 30, ["u", "v", "never"])})
    vae = quick(1, max_iter=2).fit(X)
    for given in ({"age": 30.5}, pd.DataFrame({"age": [30, 30.5]})):
        with pytest.raises(ValueError, match="given has 30.5 for 'age', a column of whole numbers"):
            vae.sample(given=given)
    for given in ({"kind": "never"}, pd.DataFrame({"kind": pd.Categorical(["never"], ["u", "v", "never"])})):
        with pytest.raises(ValueError, match="given has 'never' for 'kind', a category that no row of the training data has"):
            vae.sample(given=given)
    assert vae.sample(given={"age": 30.0}, random_state=0)["age"].tolist() == [30]


def test_nothing_may_be_given(mixed):
    assert len(mixed.sample(3, given={}, random_state=0)) == 3


@pytest.mark.parametrize("given", [{7: 1.0}, {True: 1.0}, {"x0": 1.0}, {0: "a"}, {0: np.nan}, np.zeros((2, 3))])
def test_what_cannot_be_given_of_an_array_is_refused(linear, given):
    with pytest.raises(ValueError, match="given names columns|finite number for column|features"):
        linear.sample(given=given)


def test_a_constant_column_can_be_given_its_constant_alone():
    X = np.column_stack([linear_rows(60), np.full(60, 3.0)])
    vae = quick(1, hidden_layer_sizes=()).fit(X)
    assert vae.sample(given={5: 3.0, 0: 1.0}, random_state=0)[0, 5] == 3.0
    with pytest.raises(ValueError, match="'x5' was 3 in every row"):
        vae.sample(given={5: 4.0})


@pytest.mark.parametrize(
    "method, params, message",
    [
        ("impute", {"method": "median"}, "method must be 'mean' or 'draw', got 'median'"),
        ("impute", {"n_draws": 0}, "n_draws must be a whole number"),
        ("multiple_impute", {"n_imputations": 0}, "n_imputations must be"),
        ("score_cells", {"n_draws": 2.5}, "n_draws must be a whole number"),
        ("predictive_interval", {"coverage": 1.0}, "coverage must be a number between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(linear, method, params, message):
    with pytest.raises(ValueError, match=message):
        getattr(linear, method)(with_holes(linear_rows(5)), **params)


def test_effective_sample_sizes_need_given_cells(linear):
    with pytest.raises(ValueError, match="return_ess=True needs given cells"):
        linear.sample(return_ess=True)


def test_uncertain_weights_are_refused():
    vae = quick(1, decoder=VariationalMLP((4,)), max_iter=2).fit(linear_rows(60))
    X = with_holes(linear_rows(5))
    calls = (lambda: vae.impute(X), lambda: vae.score_cells(X), lambda: vae.sample(given={0: 1.0}))
    for call in calls:
        with pytest.raises(ValueError, match="are uncertain, and what a row's cells say"):
            call()


def test_one_gaussian_for_images_is_filled_as_well():
    rng = np.random.default_rng(0)
    X = rng.random((60, 16)) + rng.random((60, 1))
    vae = quick(2, likelihood=Gaussian("shared"), encoder="conv", decoder="conv", max_iter=2).fit(X)
    out = vae.impute(with_holes(X))
    assert np.isfinite(out).all()


def test_a_row_of_a_frame_is_given_without_its_holes(mixed):
    row = people().iloc[0].astype(object)
    row["height"] = None
    drawn = mixed.sample(20, random_state=0, given=row)
    expected = mixed.sample(20, random_state=0, given=row.dropna().to_dict())
    pd.testing.assert_frame_equal(drawn, expected)


@pytest.mark.parametrize("labels", [["height", "height"], [0, 1]])
def test_a_series_that_is_no_row_is_not_given(mixed, labels):
    with pytest.raises(ValueError, match="read as one row, so its labels must be names of columns"):
        mixed.sample(given=pd.Series([130.0, 140.0], labels))


def test_columns_of_the_same_name_are_not_given(mixed):
    given = pd.DataFrame([[130.0, 140.0]], columns=["height", "height"])
    with pytest.raises(ValueError, match=r"1 name\(s\) belong to more than one column: \['height'\]"):
        mixed.sample(given=given)
