"""Tests of how alike two tables are, and of checks of models by what they draw."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse, stats
from scipy.stats import ks_2samp
from scipy.stats.contingency import association
from sklearn.datasets import load_diabetes
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae._table_checks import _distance
from skvae.data import ParquetSource
from skvae.displays import TableCheckDisplay
from skvae.evaluation import compare_tables, posterior_predictive_check
from skvae.likelihoods import Bernoulli, Mixed, SelfMasking

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIABETES = load_diabetes(as_frame=True, scaled=False)


def rows(n, seed):
    """Return a frame of four columns, of which the first three go together."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    level = np.digitize(z + rng.normal(size=n), [-1, 1])
    return pd.DataFrame(
        {"x": z, "y": z + rng.normal(size=n), "level": np.array(["low", "middle", "high"])[level], "n": rng.poisson(3.0, n)}
    )


def patients():
    """Return diabetes as a mixed table."""
    X = DIABETES.data[["age", "sex", "bmi", "bp"]].astype({"age": int}).assign(progression=DIABETES.target)
    return X.assign(sex=X["sex"].map({1.0: "m", 2.0: "f"}))


def short(**parameters):
    return VAETransformer(2, max_iter=30, learning_rate="cosine", random_state=0, **parameters)


# --- two tables ----------------------------------------------------------------------------------------------------------


def test_rows_of_one_distribution_are_alike():
    found = compare_tables(rows(1500, 0), rows(1500, 1), random_state=0)
    assert (found.distances < 0.06).all()
    assert abs(found.auc - 0.5) < 0.05
    assert found.association_difference < 0.05


def test_a_table_has_no_distance_to_itself():
    found = compare_tables(rows(100, 0), rows(100, 0), random_state=0)
    np.testing.assert_array_equal(found.distances, 0)
    assert found.association_difference == 0


@pytest.mark.parametrize("is_category", [False, True])
def test_chance_is_exceeded_as_seldom_as_it_says(is_category):
    rng = np.random.default_rng(0)
    is_real = np.arange(300) < 120
    pairs = [_distance(rng.poisson(20, 300).astype(float), is_category, is_real, rng) for _ in range(300)]
    assert np.mean([distance > chance for distance, chance in pairs]) == pytest.approx(0.05, abs=0.025)  # two standard errors


@pytest.mark.parametrize("broken", ["x", "level", "n"])
def test_broken_column_is_named(broken):
    synthetic = rows(500, 1)
    synthetic[broken] = {"x": synthetic["x"] * 3, "level": "low", "n": 3}[broken]
    found = compare_tables(rows(500, 0), synthetic, random_state=0)
    assert found.columns.index[0] == broken
    assert found.columns["distance"].iloc[0] > 2 * found.columns["chance"].iloc[0]
    assert found.auc > 0.7


def test_columns_that_do_not_go_together_show_in_associations_and_rows_alone():
    synthetic = rows(1000, 1)
    synthetic["y"] = synthetic["y"].sample(frac=1, random_state=0).to_numpy()
    found = compare_tables(rows(1000, 0), synthetic, random_state=0)
    assert (found.distances < 0.07).all()
    assert abs(found.real_associations - found.synthetic_associations)[0, 1] > 0.5
    assert found.auc > 0.6


def test_distances_and_associations_are_those_of_scipy():
    real, synthetic = rows(200, 0), rows(150, 1)
    found = compare_tables(real, synthetic, random_state=0)
    shares = pd.concat([t["level"].value_counts(normalize=True) for t in (real, synthetic)], axis=1)
    assert found.distances[0] == pytest.approx(ks_2samp(real["x"], synthetic["x"]).statistic)
    assert found.distances[2] == pytest.approx(shares.diff(axis=1).iloc[:, 1].abs().sum() / 2)
    assert found.real_associations[0, 1] == pytest.approx(real[["x", "y"]].corr().iloc[0, 1])
    groups = real.groupby("level")["x"]
    between = (groups.size() * (groups.mean() - real["x"].mean()) ** 2).sum()
    assert found.real_associations[0, 2] == pytest.approx(np.sqrt(between / (200 * real["x"].var(ddof=0))))


def test_association_of_categories_is_cramers_v():
    real = rows(300, 0)
    real["other"] = np.where(real["x"] > 0, "a", "b")
    found = compare_tables(real, real, random_state=0)
    table = pd.crosstab(real["level"], real["other"]).to_numpy()
    assert found.real_associations[2, 4] == pytest.approx(association(table, method="cramer"))
    assert found.real_associations[4, 2] == found.real_associations[2, 4]


def test_frames_of_polars_and_pandas_compare_the_same():
    pairs = [(rows(200, 0), rows(200, 1)), (pl.DataFrame(rows(200, 0)), pl.DataFrame(rows(200, 1)))]
    first, second = (compare_tables(*pair, random_state=0) for pair in pairs)
    assert first.names == second.names
    np.testing.assert_array_equal(first.distances, second.distances)
    np.testing.assert_allclose(first.real_associations, second.real_associations, atol=1e-12)
    assert first.auc == pytest.approx(second.auc, abs=0.02)


def test_holes_count_neither_in_columns_nor_for_the_classifier():
    rng = np.random.default_rng(0)
    real, synthetic = rows(1000, 0)[["x", "y"]].to_numpy(), rows(1000, 1)[["x", "y"]].to_numpy()
    whole = compare_tables(real, synthetic, random_state=0)
    found = compare_tables(np.where(rng.random(real.shape) < 0.3, np.nan, real), synthetic, random_state=0)
    np.testing.assert_allclose(found.distances, whole.distances, atol=0.03)
    assert abs(found.auc - 0.5) < 0.06


def test_column_without_cells_has_no_distance():
    real = rows(50, 0).assign(n=np.nan)
    found = compare_tables(real, rows(50, 1), random_state=0)
    assert np.isnan(found.distances[3])
    assert found.columns.index[-1] == "n"


def test_numbers_that_stand_for_categories_are_compared_as_such():
    real, synthetic = np.repeat([0.0, 1.0, 2.0], 10)[:, None], np.repeat([0.0, 2.0, 1.0], (10, 15, 5))[:, None]
    kinds = [compare_tables(real, synthetic, categorical=columns, random_state=0) for columns in ((), [0])]
    assert [found.is_category.tolist() for found in kinds] == [[False], [True]]
    assert [found.distances[0] for found in kinds] == pytest.approx([1 / 6, 1 / 6])
    shuffled = np.repeat([2.0, 0.0, 1.0], 10)[:, None]
    assert compare_tables(real, shuffled, categorical=[0], random_state=0).distances[0] == 0


def test_many_categories_reach_the_classifier():
    rng = np.random.default_rng(0)
    real, synthetic = (pd.DataFrame({"name": rng.integers(0, 400, 600).astype(str), "x": rng.normal(size=600)}) for _ in "ab")
    assert abs(compare_tables(real, synthetic, random_state=0).auc - 0.5) < 0.08


@pytest.mark.parametrize(
    ("synthetic", "match"),
    [
        (rows(100, 1)[["y", "x", "level", "n"]], "same columns"),
        (rows(100, 1).iloc[:, :3], "same columns"),
        (rows(5, 1), "at least 10 rows, got 5"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(synthetic, match):
    with pytest.raises(ValueError, match=match):
        compare_tables(rows(100, 0), synthetic)


def test_unknown_categorical_column_is_refused():
    with pytest.raises(ValueError, match="'colour'"):
        compare_tables(rows(100, 0), rows(100, 1), categorical=["colour"])


# --- models --------------------------------------------------------------------------------------------------------------


def test_model_of_mixed_columns_is_checked_and_repeats_itself():
    X = patients()
    vae = VAETransformer(3, random_state=0).fit(X.iloc[::2])
    found = posterior_predictive_check(vae, X.iloc[1::2])
    assert found.is_category.tolist() == [False, True, False, False, False]
    assert found.auc == posterior_predictive_check(vae, X.iloc[1::2]).auc
    draws = [posterior_predictive_check(vae, X.iloc[1::2], random_state=seed) for seed in range(4)]
    assert np.mean([draw.distances for draw in draws]) < 0.12
    assert 0.4 < np.mean([draw.auc for draw in draws]) < 0.7


@pytest.mark.parametrize("kind", ["pandas", "polars", "array"])
def test_tables_with_holes_are_checked(kind):
    X = patients() if kind != "array" else patients().drop(columns="sex").astype(float)
    X = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
    X = {"pandas": X, "polars": pl.from_pandas(X), "array": X.to_numpy()}[kind]
    found = posterior_predictive_check(short().fit(X), X, random_state=0)
    assert (found.distances < 0.25).all()
    assert found.auc < 0.85


def test_codes_in_an_array_are_categories():
    X = rows(200, 0)["n"].clip(upper=3).to_numpy(float)[:, None].repeat(2, 1)
    found = posterior_predictive_check(short(likelihood="categorical").fit(X), X, random_state=0)
    assert found.is_category.all()


def self_masked(n=1500):
    """Return a table in which high values of x hide, more often than not, and the conditions c."""
    rng = np.random.default_rng(0)
    c, z = rng.integers(0, 2, n).astype(float), rng.normal(size=n)
    x = z + 0.7 * rng.normal(size=n)
    x[rng.random(n) < stats.norm.cdf(2 * x - 1)] = np.nan
    return pd.DataFrame({"c": c, "a": z + 0.5 * rng.normal(size=n) + c, "x": x})


@pytest.mark.parametrize("condition_on", [None, "c"])
def test_a_model_that_knows_why_cells_are_missing_is_checked_with_its_own_holes(condition_on):
    X = self_masked()
    likelihood = Mixed({"x": SelfMasking(missing="high"), "c": Bernoulli(), "a": "gaussian"})
    settings = {"hidden_layer_sizes": (), "max_iter": 200, "learning_rate": "cosine", "random_state": 0}
    vae = VAETransformer(1, likelihood=likelihood, condition_on=condition_on, **settings).fit(X)
    found = posterior_predictive_check(vae, X, random_state=0)
    assert (found.columns.distance < 1.5 * found.columns.chance).all()
    assert 0.4 < found.auc < 0.6


def test_only_the_holes_of_the_rows_are_read_not_their_cells():
    X = self_masked(300).assign(share=np.random.default_rng(1).beta(2, 2, 300))
    likelihood = Mixed({"x": SelfMasking(missing="high"), "share": "beta", "c": "gaussian", "a": "gaussian"})
    vae = short(likelihood=likelihood).fit(X)
    assert posterior_predictive_check(vae, X.assign(share=1.0), random_state=0).distances[3] > 0.9


def test_model_with_conditions_draws_under_those_of_the_rows():
    X = patients()
    vae = short(condition_on=["sex", "bmi"]).fit(X)
    found = posterior_predictive_check(vae, X, random_state=0)
    assert found.distances[[1, 2]].tolist() == [0, 0]
    assert (found.distances[[0, 3, 4]] > 0).all()


def test_model_of_a_source_is_checked_on_a_frame(tmp_path):
    X = DIABETES.data[["age", "bmi", "bp"]]
    X.to_parquet(tmp_path / "rows.parquet")
    vae = short().fit(ParquetSource(tmp_path / "rows.parquet"))
    assert len(posterior_predictive_check(vae, X, random_state=0).distances) == 3  # without a warning


def test_pipeline_is_refused():
    with pytest.raises(TypeError, match="Pipeline"):
        posterior_predictive_check(make_pipeline(StandardScaler(), short()), DIABETES.data)


# --- figure --------------------------------------------------------------------------------------------------------------

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
Figure = pytest.importorskip("matplotlib.figure").Figure


@pytest.fixture(scope="module")
def comparison():
    return compare_tables(rows(200, 0), rows(200, 1).assign(n=3), random_state=0)


def test_figure_shows_the_worst_column_first_and_both_associations(comparison):
    figure = Figure()
    display = TableCheckDisplay.from_comparison(comparison, axes=figure.subplots(1, 3))
    bars, *images = display.axes_
    assert [label.get_text() for label in bars.get_yticklabels()] == list(comparison.columns.index)
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == sorted(comparison.distances, reverse=True)
    order = np.argsort(-comparison.distances)
    expected = (comparison.real_associations, comparison.synthetic_associations)
    for ax, associations in zip(images, expected):
        np.testing.assert_array_equal(ax.images[0].get_array(), associations[np.ix_(order, order)])
    assert display.figure_ is figure


def test_figure_from_estimator_is_one_new_figure():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.close("all")
    X = patients()
    display = TableCheckDisplay.from_estimator(short().fit(X), X, random_state=0)
    assert plt.get_fignums() == [display.figure_.number]
    assert len(display.axes_) == 3
    plt.close("all")


def test_figure_needs_three_axes(comparison):
    with pytest.raises(ValueError, match="three Axes"):
        TableCheckDisplay.from_comparison(comparison, axes=[Figure().subplots()])


def test_a_model_of_sparse_rows_is_checked_as_of_whole_ones():
    X = np.random.default_rng(0).poisson(0.5, size=(200, 4)).astype(float)
    vae = VAETransformer(2, likelihood="poisson", max_iter=20, random_state=0).fit(X)
    checks = [posterior_predictive_check(vae, rows, random_state=0) for rows in (X, sparse.csr_array(X))]
    np.testing.assert_array_equal(checks[0].distances, checks[1].distances)
