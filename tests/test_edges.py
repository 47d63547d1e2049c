"""The edges of the data: what the estimator does with the smallest, the largest and the strangest tables."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.datasets import load_iris, load_wine

from skvae import DivergenceError, VAETransformer
from skvae.likelihoods import Bernoulli, Gaussian

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = load_iris().data


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 5, "hidden_layer_sizes": (8,), "random_state": 0, **params})


def assert_usable(model, data):
    """Assert that every method gives finite numbers of the right shape."""
    n, d = data.shape
    k = model.n_components_
    for found, shape in (
        (model.transform(data), (n, k)),
        (model.reconstruct(data), (n, d)),
        (model.inverse_transform(model.transform(data)), (n, d)),
        (model.score_samples(data), (n,)),
        (model.sample(3, random_state=0), (3, d)),
        (model.posterior_moments(data).std, (n, k)),
        (model.sample_posterior(data, 2, random_state=0), (2, n, k)),
    ):
        assert found.shape == shape
        assert np.isfinite(found).all()
    assert np.isfinite(model.lower_bound_)


TABLES = {
    "one row": X[:1],
    "two rows": X[:2],
    "one column": X[:, :1],
    "one cell": X[:1, :1],
    "a constant column": np.column_stack([X, np.full(len(X), 3.0)]),
    "all constant": np.full((20, 3), 7.0),
    "all zero": np.zeros((20, 3)),
    "duplicate columns": np.column_stack([X, X]),
    "duplicate rows": np.repeat(X[:5], 10, axis=0),
    "more columns than rows": RNG.normal(size=(5, 30)),
    "huge values": X * 1e30,
    "values whose squares overflow": X * 1e160,
    "values at the end of the range": X * 1e300,
    "tiny values": X * 1e-300,
    "a large offset": X + 1e8,
    "one far outlier": np.vstack([RNG.normal(size=(99, 3)), np.full((1, 3), 1e30)]),
    "booleans": X.mean(0) < X,
    "whole numbers": np.rint(X).astype(int),
    "numbers as objects": X.astype(object),
    "big-endian numbers": X.astype(">f8"),
    "half precision": X.astype(np.float16),
    "negative strides": X[::-1, ::-1],
    "columns first": np.asfortranarray(X),
}


@pytest.mark.filterwarnings("ignore:A few numbers far off")
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("noise", ["feature", "network"])
def test_strange_tables_give_finite_models(name, noise):
    data = TABLES[name]
    assert_usable(vae(likelihood=Gaussian(noise)).fit(data), data)


@pytest.mark.parametrize("name", TABLES)
def test_strange_tables_give_finite_bernoulli_models(name):
    data = TABLES[name]
    assert_usable(vae(likelihood=Bernoulli("observed")).fit(data), data)


@pytest.mark.parametrize("name", ["one row", "all constant", "duplicate rows", "huge values", "tiny values"])
def test_strange_tables_under_true_defaults(name):
    data = TABLES[name]
    assert_usable(VAETransformer(random_state=0).fit(data), data)


def test_more_components_than_columns_are_allowed():
    model = vae(n_components=9).fit(X)
    assert_usable(model, X)
    assert model.active_units_ <= 4


def test_a_hundred_thousand_columns():
    data = RNG.normal(size=(20, 100_000)).astype(np.float32)
    start = time.perf_counter()
    model = vae(max_iter=3, hidden_layer_sizes=(16,)).fit(data)
    assert np.isfinite(model.transform(data)).all()
    assert time.perf_counter() - start < 60


def test_rows_far_outside_the_training_data_have_finite_and_very_low_scores():
    model = vae().fit(X)
    far = np.full((1, 4), 1e30)
    assert np.isfinite(model.transform(far)).all()
    assert np.isfinite(model.score_samples(far)).all()
    assert model.score_samples(far)[0] < model.score_samples(X).min() - 1e6


@pytest.mark.parametrize("weight", [1e300, 1e-300, 7.0, 1])
def test_the_scale_of_weights_does_not_matter(weight):
    expected = vae().fit(X).transform(X)
    weights = weight if weight == 1 else np.full(len(X), weight)
    np.testing.assert_allclose(vae().fit(X, sample_weight=weights).transform(X), expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1e6])
def test_tiny_weights_and_a_strong_prior_stay_finite(alpha):
    assert_usable(vae(alpha=alpha).fit(X, sample_weight=np.full(len(X), 1e-300)), X)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full(150, np.nan), "NaN"),
        (np.full(150, np.inf), "infinity"),
        (-np.ones(150), "[Nn]egative"),
        (np.zeros(150), "zero"),
        (np.full(150, 1e308), "sum of sample_weight is infinite.*Divide all by one number"),
        (np.ones(149), "inconsistent|sample_weight.shape"),
        (np.ones((150, 2)), "1D"),
    ],
)
def test_impossible_weights_are_refused(weight, message):
    for method in (vae().fit, vae().partial_fit, vae().fit(X).score):
        with pytest.raises(ValueError, match=message):
            method(X, sample_weight=weight)


def test_weights_count_repetitions_with_minibatches_and_early_stopping():
    times = RNG.integers(0, 4, size=len(X))
    params = {"batch_size": 16, "early_stopping": True, "alpha": 1.0}
    weighted = vae(**params).fit(X, sample_weight=times)
    repeated = vae(**params).fit(RNG.permutation(np.repeat(X, times, axis=0)))
    np.testing.assert_array_equal(weighted.transform(X), repeated.transform(X))
    assert weighted.score(X, sample_weight=times) == pytest.approx(repeated.score(np.repeat(X, times, axis=0)))


def test_a_step_that_explodes_is_not_committed():
    model = vae().fit(X)
    before = model.transform(X)
    with pytest.raises(DivergenceError, match="non-finite values.*Use a smaller learning_rate_init"):
        model.set_params(learning_rate_init=1e30).partial_fit(X)
    np.testing.assert_array_equal(model.transform(X), before)


def test_weights_change_the_model():
    other = vae().fit(X, sample_weight=np.linspace(0.1, 2, len(X)))
    assert not np.allclose(other.transform(X), vae().fit(X).transform(X))


@pytest.mark.parametrize("n_samples", [0, -1, 1.5, "three"])
def test_impossible_numbers_of_samples_are_refused(n_samples):
    model = vae().fit(X)
    for method in (model.sample, lambda n: model.sample_posterior(X, n)):
        with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1"):
            method(n_samples)


def test_samples_differ_by_call_without_a_seed_and_agree_with_one():
    model = vae().fit(X)
    assert not np.array_equal(model.sample(3), model.sample(3))
    np.testing.assert_array_equal(model.sample(3, random_state=1), model.sample(3, random_state=1))
    assert not np.array_equal(model.sample(3, random_state=1), model.sample(3, random_state=2))


def test_means_are_smoother_than_draws():
    model = vae(max_iter=50).fit(X)
    means, draws = model.sample(2000, 0, noise=False), model.sample(2000, 0)
    assert (means.var(0) < draws.var(0)).all()


def test_latent_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"X has 3 columns, but the latent space of this VAETransformer has 2 components"):
        vae().fit(X).inverse_transform(np.zeros((1, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_latents_far_away_are_decoded_to_finite_numbers(dtype):
    for far in (1e30, 1e38, np.finfo(dtype).max):
        assert np.isfinite(vae().fit(X).inverse_transform(np.full((1, 2), far, dtype=dtype))).all()


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (1e30, "float32", "look for extreme values in the data"),
        (1e200, "float32", "too large for float32. Rescale or standardize its columns"),
        (1e200, "float64", "look for extreme values in the data"),
    ],
)
def test_values_too_large_to_be_left_as_they_are_are_refused(scale, dtype, message):
    model = vae(likelihood=Gaussian(standardize=False), dtype=dtype)
    with pytest.raises(ValueError, match=message):
        model.fit(X * scale)
    assert not hasattr(model, "n_features_in_")


@pytest.mark.parametrize("n_rows", [1, 2, 3, 10])
def test_some_rows_are_left_to_train_on(n_rows):
    assert_usable(vae(early_stopping=True, validation_fraction=0.999).fit(X[:n_rows]), X[:n_rows])


def test_grey_levels_keep_their_units():
    images = RNG.integers(0, 256, size=(40, 6)).astype(np.uint8)
    model = vae(likelihood=Bernoulli(limits=(0, 255))).fit(images)
    assert 0 <= model.reconstruct(images).min() <= model.reconstruct(images).max() <= 255
    assert set(np.unique(model.sample(50, random_state=0))) == {0.0, 255.0}
    with pytest.raises(ValueError, match=r"outside \[0, 255\]"):
        model.transform(images + 1000.0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("mean", [100, 10_000, 100_000])
def test_counts_that_vary_by_chance_alone_are_found_to(mean, seed):
    """An encoder that reads logarithms far from zero takes such long steps that components end where nothing leads back."""
    counts = np.random.default_rng(mean + seed).poisson(mean, size=(500, 3))
    model = VAETransformer(likelihood="poisson", random_state=seed).fit(counts)
    alone = stats.poisson.logpmf(counts, counts.mean(0)).sum(1).mean()
    assert model.score(counts) > alone - 0.3
    assert model.posterior_moments(counts).std.min() > 1e-3


def test_counts_that_vary_more_than_the_model_says_are_followed():
    rates = np.random.default_rng(2).normal(12, 1, size=(500, 3))
    counts = np.random.default_rng(3).poisson(np.exp(rates))
    model = VAETransformer(likelihood="poisson", random_state=0).fit(counts)
    assert model.score(counts) > -400, "independent Poissons reach -400,000, three normal latents about -41"


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "zero_inflated_poisson", "log_normal", "gamma"])
def test_the_encoder_reads_logarithms_centred_and_scaled(likelihood):
    X = np.random.default_rng(0).poisson(np.exp(np.random.default_rng(2).normal([9, 12], [0.5, 0.02], size=(200, 2)))) + 1.0
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.1, np.nan, X)
    model = vae(likelihood=likelihood).fit(holes)
    fitted, params, rows, _ = model._encoded(holes)
    read = fitted.model.inputs(params, rows.slice(0, 200).x)[:, :2].numpy()
    is_there = ~np.isnan(holes)
    assert (read[~is_there] == 0).all()
    for j in range(2):
        assert abs(read[is_there[:, j], j].mean()) < 0.1, "of training rows it is zero"
    assert read[is_there[:, 0], 0].std() == pytest.approx(1.0, abs=0.1)
    assert read[is_there[:, 1], 1].std() == pytest.approx(0.2, abs=0.05), "what hardly varied is not enlarged at will"


@pytest.mark.parametrize("n", [12, 30, 49])
def test_few_rows_are_not_learnt_by_heart(n):
    rng = np.random.default_rng(n)
    factors = rng.normal(size=(3, 10))
    rows, new = (rng.normal(size=(m, 3)) @ factors + 0.5 * rng.normal(size=(m, 10)) for m in (n, 1000))
    alone = stats.norm(rows.mean(0), rows.std(0)).logpdf(new).sum(1).mean()
    assert VAETransformer(random_state=0).fit(rows).score(new) > alone - 1, "by heart it is a hundred nats below"


@pytest.mark.parametrize(("n_columns", "n"), [(4, 400), (8, 20_000)])
def test_combinations_that_come_again_are_all_learnt(n_columns, n):
    rng = np.random.default_rng(0)
    slopes = 2 * rng.normal(size=(2, n_columns))
    rows, new = (
        (rng.random((m, n_columns)) < 1 / (1 + np.exp(-rng.normal(size=(m, 2)) @ slopes))).astype(float) for m in (n, 20_000)
    )
    model = VAETransformer(likelihood="bernoulli", random_state=0).fit(rows)
    apart = VAETransformer(likelihood="bernoulli", random_state=0, early_stopping=True).fit(rows)
    assert model.score(new) > apart.score(new) + 0.02


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_column_that_was_constant_at_first_may_vary_later():
    rng = np.random.default_rng(0)

    def block():
        return np.exp(4 + 0.3 * rng.normal(size=(500, 1)) + 0.1 * rng.normal(size=(500, 3)))

    first, new = block(), block()
    first[:, 0] = 55.0
    model = VAETransformer(1, likelihood="log_normal", random_state=0).partial_fit(first)
    for _ in range(30):
        model.partial_fit(block())
    assert model.score(new) > VAETransformer(1, likelihood="log_normal", random_state=0).fit(block()).score(new) - 1


def test_conditions_of_counts_are_read_in_units():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(1000, 2))
    counts = rng.poisson(np.exp(9 + 0.3 * factors @ rng.normal(size=(2, 5)))).astype(float)
    model = VAETransformer(2, likelihood="poisson", condition_on=[0, 1], random_state=0).fit(counts[:800])
    fitted, params, rows, _ = model._encoded(counts[:800])
    given = fitted.model.likelihood.given(params["likelihood"], rows.slice(0, 800).x).numpy()
    np.testing.assert_allclose(given.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(given.std(0), 1, atol=0.1)
    assert model.score(counts[800:]) > -21


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "zero_inflated_poisson"])
def test_counts_that_no_mean_reaches_are_refused(likelihood):
    counts = np.random.default_rng(0).poisson(5, size=(60, 3)).astype(float)
    model = vae(likelihood=likelihood).fit(counts)
    counts[1, 2] = 1e13
    assert np.isfinite(model.score_samples(counts)).all() and (model.score_samples(counts) < 0).all()
    assert np.isfinite(model.score_cells(counts)).all()
    counts[1, 2] = 1e14
    with pytest.raises(ValueError, match=r"outside \[0, 1e\+13\].*1e\+14 in 'x2'"):
        model.score_samples(counts)


# --- numbers far off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "within"), [(1e6, "1e-06"), (1e30, "1e-30")])
def test_columns_whose_scale_a_few_numbers_make_are_told(factor, within):
    X = load_wine(as_frame=True).data
    planted = X.copy()
    planted.loc[3, "alcohol"] *= factor
    with pytest.warns(UserWarning, match=rf"scale of 1 column\(s\), \['alcohol'\]: half of the others lie within {within}"):
        vae = VAETransformer(2, max_iter=3, learning_rate="cosine", random_state=0).fit(planted)
    kept = planted.assign(alcohol=X["alcohol"].median(), flag=0.0)
    kept.loc[3, "flag"] = 1.0
    rng = np.random.default_rng(0)
    kept["group"] = rng.normal(size=len(kept)) + 1e4 * (rng.random(len(kept)) < 0.2)  # one in five is far from the others
    VAETransformer(2, max_iter=3, learning_rate="cosine", random_state=0).fit(kept)  # or most are equal: no warning
    filled = vae.impute(X.assign(alcohol=np.nan))["alcohol"]
    assert filled.between(planted["alcohol"].min(), planted["alcohol"].max()).all()


def test_columns_without_a_cell_at_first_and_those_that_begin_to_vary_are_told():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 4))
    begins = np.column_stack([rows[:, :2], np.full(60, np.nan), np.full(60, 3.0)])
    with pytest.warns(UserWarning, match=r"1 column\(s\) have no cell .* first partial_fit.*\['x2'\]"):
        part = vae().partial_fit(begins)
    with pytest.warns(UserWarning, match=r"1 column\(s\) had no cell or a single value .*\['x2'\]"):
        part.partial_fit(rows)
    whole = vae(warm_start=True).fit(begins).fit(begins)  # no warning
    with pytest.warns(UserWarning, match=r"2 column\(s\) had no cell or a single value .*\['x2', 'x3'\]"):
        whole.fit(rows)


def test_columns_of_a_frame_that_had_no_cell_are_told_when_they_have_some():
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc")).assign(text="u")
    model = vae().fit(rows.assign(b=np.nan, text=None))
    with pytest.warns(UserWarning, match=r"2 column\(s\) had no cell or a single value .*\['b', 'text'\]"):
        model.partial_fit(rows)


def test_constants_in_another_precision_do_not_vary():
    rows = np.random.default_rng(0).normal(size=(60, 3))
    rows[:, 1] = 0.1
    for first, second in ((np.float32, np.float64), (np.float64, np.float32)):
        vae(warm_start=True).fit(rows.astype(first)).fit(rows.astype(second))  # no warning


def test_far_numbers_of_sparse_matrices_are_told():
    rows = np.random.default_rng(0).normal(size=(80, 3))
    rows[7, 0] = 1e7
    with pytest.warns(UserWarning, match=r"scale of 1 column\(s\), \['x0'\]"):
        vae().fit(sparse.csr_array(rows))


def test_flags_in_a_column_of_objects_have_both_levels():
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=60), "f": np.zeros(60, bool)}).astype({"f": object})
    frame.loc[0, "f"] = None
    vae = VAETransformer(1, max_iter=3, learning_rate="cosine", random_state=0).fit(frame)
    assert vae.schema_[1].categories == (False, True)
    assert np.isfinite(vae.score_samples(frame.assign(f=True))).all()
