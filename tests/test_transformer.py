"""Ways through the latent space: between rows, along an attribute, and back to rows."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import LIKELIHOODS, table_for
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

from skvae import VAETransformer
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP

IRIS = load_iris(as_frame=True)


def fitted(X, **params):
    defaults = {"n_components": 3, "hidden_layer_sizes": (8,), "max_iter": 15, "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(**{**defaults, **params}).fit(X)


@pytest.fixture(scope="module")
def vae():
    return fitted(IRIS.data)


# --- interpolate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_ways_begin_and_end_at_the_reconstructions(likelihood):
    X = table_for(likelihood)
    model = fitted(X, likelihood=likelihood)
    ways = model.interpolate(X[:5], X[5:10], 7)
    assert ways.shape == (5, 7, 4)
    np.testing.assert_allclose(ways[:, 0], model.reconstruct(X[:5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ways[:, -1], model.reconstruct(X[5:10]), rtol=1e-5, atol=1e-6)


def test_places_on_a_way_are_evenly_spaced_in_the_latent_space(vae):
    start, end = IRIS.data[:2], IRIS.data[-2:]
    ways = vae.interpolate(start, end, 5)
    z_start, z_end = vae.transform(start), vae.transform(end)
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        expected = vae.inverse_transform((1 - share) * z_start + share * z_end)
        np.testing.assert_allclose(ways.iloc[i::5], expected, rtol=1e-5)


def test_the_way_back_is_the_way_there(vae):
    start, end = IRIS.data[:3], IRIS.data[-3:]
    there, back = (np.asarray(ways).reshape(3, 10, 4) for ways in (vae.interpolate(start, end), vae.interpolate(end, start)))
    np.testing.assert_allclose(back[:, ::-1], there, rtol=1e-5)


def test_a_way_has_one_condition():
    rng = np.random.default_rng(0)
    c = rng.integers(0, 2, 80).astype(float)
    X = np.column_stack([c, rng.normal(size=80) + 3 * c, rng.normal(size=80)])
    vae = VAETransformer(1, condition_on=[0], max_iter=5, learning_rate="cosine", random_state=0).fit(X)
    without, given = X[c == 0], X[c == 1]
    ways = vae.interpolate(given[:3], given[3:6], 4)
    np.testing.assert_allclose(ways[:, -1], vae.reconstruct(given[3:6]), rtol=1e-5)
    assert vae.interpolate((0.1 * given[:3]).astype(np.float32), 0.1 * given[3:6]).shape == (3, 10, 3)  # 0.1 in two precisions
    with pytest.raises(ValueError, match=r"differ in columns of condition_on: \['x0'\]"):
        vae.interpolate(without[:3], given[:3])


def coloured(n=300, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.normal(size=n)
    colour = np.where(size > 0.5, "red", np.where(size > -0.5, "green", "blue"))
    levels = pd.Categorical(np.where(size > 0, "high", "low"), ["low", "high"], ordered=True)
    return pd.DataFrame(
        {"size": size, "count": np.rint(5 * size).astype(int), "colour": colour, "big": size > 1, "level": levels}
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_ways_between_rows_of_a_frame_are_a_frame_of_its_types(library):
    X = coloured() if library == "pandas" else pl.from_pandas(coloured())
    model = fitted(X)
    ways = model.interpolate(X[:4], X[4:8], 3)
    assert type(ways) is type(X) and list(ways.dtypes) == list(X.dtypes) and len(ways) == 12
    ends = ways.iloc[::3] if library == "pandas" else ways[::3]
    assert ends["colour"].to_list() == model.reconstruct(X[:4])["colour"].to_list()


def test_levels_of_edited_rows_stay_or_become_those_of_the_edit():
    X = coloured()
    rng = np.random.default_rng(1)
    model = fitted(X)
    for name in ("colour", "big", "level"):  # so that residuals are large
        X[name] = (
            rng.permutation(X[name].to_numpy())
            if name != "level"
            else pd.Categorical(rng.permutation(X[name].to_numpy()), ["low", "high"], ordered=True)
        )
    direction = model.attribute_direction(X, X["size"] > 0)
    before, edited = model.reconstruct(X), model.edit(X, direction)
    kept = model.edit(X, direction, keep_residual=True)
    for name in ("colour", "big", "level"):
        changes = edited[name] != before[name]
        assert changes.any() and not changes.all()
        expected = np.where(changes, edited[name], X[name])
        assert kept[name].tolist() == expected.tolist()


def test_ways_need_two_ends_and_pairs_of_rows(vae):
    with pytest.raises(ValueError, match=r"n_steps must be a whole number of at least 2.*got 1"):
        vae.interpolate(IRIS.data, IRIS.data, 1)
    with pytest.raises(ValueError, match=r"as many rows, got 3 and 2"):
        vae.interpolate(IRIS.data[:3], IRIS.data[:2])


# --- attribute_direction -------------------------------------------------------------------------------------------------


def test_direction_leads_from_the_mean_of_one_class_to_that_of_the_other(vae):
    y = IRIS.target == 0
    direction = vae.attribute_direction(IRIS.data, y)
    Z = vae.transform(IRIS.data)
    assert direction.shape == (3,)
    np.testing.assert_allclose(Z[~y].mean(0) + direction, Z[y].mean(0), atol=1e-6)
    np.testing.assert_allclose(vae.attribute_direction(IRIS.data, ~y), -direction, atol=1e-7)


def test_labels_are_taken_in_sorted_order_whatever_they_are(vae):
    y = IRIS.target == 0
    expected = vae.attribute_direction(IRIS.data, y)
    for labels in (np.where(y, "with", "none"), np.where(y, 7, -1), y.tolist(), pd.Series(np.where(y, "b", "a"))):
        np.testing.assert_array_equal(vae.attribute_direction(IRIS.data, labels), expected)


def test_direction_may_be_learnt_from_a_source(vae):
    y = IRIS.target == 0
    X = IRIS.data.to_numpy()
    model = fitted(X)
    np.testing.assert_array_equal(model.attribute_direction(ArraySource(X), y), model.attribute_direction(X, y))


def test_direction_of_linear_data_is_the_one_that_was_put_in():
    """Rows z @ W, where the attribute moves z alone along one axis: edits move rows along that axis of W."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    z = rng.normal(size=(400, 2)) + [[3.0, 0.0]] * y[:, None]
    W = np.array([[1.0, 0.5, -1.0, 0.0, 2.0], [0.0, 1.0, 1.0, -1.0, 0.5]])
    X = z @ W + 0.05 * rng.normal(size=(400, 5))
    model = fitted(X, n_components=2, hidden_layer_sizes=(), early_stopping=False)
    change = model.edit(X, model.attribute_direction(X, y)) - model.reconstruct(X)
    expected = np.subtract(*(z[y == label].mean(0) for label in (1, 0))) @ W
    np.testing.assert_allclose(change, np.broadcast_to(expected, change.shape), atol=0.05)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (np.zeros(150), r"two labels.*got 1: \[0\.0\]"),
        (IRIS.target, r"two labels.*got 3: \[0, 1, 2\].*y == label"),
        (np.r_[np.zeros(149), np.nan], "contains NaN"),
        (np.array([*["without", "with"] * 74, "with", None], dtype=object), "missing labels"),
        (np.arange(149) % 2, "inconsistent numbers of samples"),
        (np.zeros((150, 2)), "1d array"),
    ],
    ids=["one", "three", "missing", "none", "too few", "table"],
)
def test_labels_that_are_not_two_groups_of_rows_are_refused(vae, y, match):
    with pytest.raises(ValueError, match=match):
        vae.attribute_direction(IRIS.data, y)


# --- edit ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_a_step_of_no_length_gives_the_reconstruction_or_the_rows(likelihood):
    X = table_for(likelihood)
    model = fitted(X, likelihood=likelihood)
    direction = model.attribute_direction(X, np.arange(40) % 2)
    np.testing.assert_array_equal(model.edit(X, direction, 0), model.reconstruct(X))
    np.testing.assert_array_equal(model.edit(X, direction, 0, keep_residual=True), X)


def test_numbers_of_many_digits_come_back_from_a_step_of_no_length():
    X = pd.DataFrame({2: 2**53 + 1 + 2 * np.arange(60), 0: np.tile(["a", "b", "c"], 20), 1: 2**53 - np.arange(60) ** 2})
    model = fitted(X)
    for rows in (X, X.set_axis([0, 1, 2], axis=1)):  # names that are no texts do not count
        edited = model.edit(rows, [0, 0, 0], keep_residual=True)
        assert np.array_equal(edited, X) and edited.dtypes.equals(X.dtypes)


def test_edit_is_the_decoded_step(vae):
    direction = vae.attribute_direction(IRIS.data, IRIS.target == 2)
    expected = vae.inverse_transform(vae.transform(IRIS.data) + 0.7 * direction)
    np.testing.assert_allclose(vae.edit(IRIS.data, direction, 0.7), expected, rtol=1e-5)


def test_edit_with_the_residual_changes_rows_as_their_reconstructions_change(vae):
    direction = vae.attribute_direction(IRIS.data, IRIS.target == 2)
    change = vae.edit(IRIS.data, direction, 0.5) - vae.reconstruct(IRIS.data)
    kept = vae.edit(IRIS.data, direction, 0.5, keep_residual=True)
    np.testing.assert_allclose(kept - IRIS.data, change, atol=1e-6)


def test_each_row_may_have_a_strength_of_its_own(vae):
    direction = vae.attribute_direction(IRIS.data, IRIS.target == 2)
    strength = np.linspace(-1, 1, 150)
    edited = vae.edit(IRIS.data, direction, strength)
    for i in (0, 70, 149):
        np.testing.assert_array_equal(edited[i : i + 1], vae.edit(IRIS.data[i : i + 1], direction, strength[i]))


@pytest.mark.parametrize("strength", [-1e40, -3, 3, 1e300])
@pytest.mark.parametrize("keep_residual", [False, True])
def test_edited_pixels_stay_within_the_limits(strength, keep_residual):
    X = table_for(Bernoulli((0, 16), binarize="dynamic"))
    model = fitted(X, likelihood=Bernoulli((0, 16)))
    edited = model.edit(X, model.attribute_direction(X, X[:, 0] > 8), strength, keep_residual=keep_residual)
    assert edited.min() >= 0 and edited.max() <= 16
    assert not np.allclose(edited, X)


def test_a_column_that_never_varied_stays_what_it_is():
    X = np.column_stack([IRIS.data, np.full(150, 7.0)])
    model = fitted(X)
    direction = model.attribute_direction(X, IRIS.target == 0)
    for keep_residual in (False, True):
        assert (model.edit(X, direction, keep_residual=keep_residual)[:, -1] == 7.0).all()
    assert (model.interpolate(X[:2], X[2:4])[..., -1] == 7.0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_dtype_of_the_rows(dtype):
    X = IRIS.data.to_numpy().astype(dtype)
    model = fitted(X)
    direction = model.attribute_direction(X, IRIS.target == 0)
    assert direction.dtype == dtype
    assert model.interpolate(X[:2], X[2:4]).dtype == dtype
    for keep_residual in (False, True):
        assert model.edit(X, direction, keep_residual=keep_residual).dtype == dtype


def test_an_edited_row_depends_on_that_row_alone(vae):
    direction = vae.attribute_direction(IRIS.data, IRIS.target == 0)
    whole = vae.edit(IRIS.data, direction, 0.3)
    np.testing.assert_array_equal(vae.edit(IRIS.data[::-1], direction, 0.3), whole[::-1])


def test_frames_are_read_by_name_and_others_refused(vae):
    direction = vae.attribute_direction(IRIS.data, IRIS.target == 0)
    renamed = IRIS.data.rename(columns=str.upper)
    calls = [
        (lambda X: vae.edit(X, direction), pd.DataFrame),
        (lambda X: vae.interpolate(X, X), pd.DataFrame),
        (lambda X: vae.attribute_direction(X, IRIS.target == 0), np.ndarray),
    ]
    for call, kind in calls:
        assert isinstance(call(IRIS.data), kind)
        with pytest.raises(ValueError, match="feature names"):
            call(renamed)


@pytest.mark.parametrize(
    ("direction", "strength", "match"),
    [
        (np.ones(2), 1.0, r"each of the 3 components, got an array of shape \(2,\)"),
        (np.ones((1, 3)), 1.0, r"got an array of shape \(1, 3\)"),
        ([1.0, np.nan, 0.0], 1.0, "direction contains NaN"),
        (np.ones(3), np.ones(2), r"strength must be a finite number, or one for each of the 150 rows"),
        (np.ones(3), np.inf, "strength must be a finite number"),
    ],
)
def test_steps_that_lead_nowhere_are_refused(vae, direction, strength, match):
    with pytest.raises(ValueError, match=match):
        vae.edit(IRIS.data, direction, strength)


def test_nothing_is_done_before_fit():
    model = VAETransformer()
    calls = [
        lambda X: model.edit(X, [1.0]),
        lambda X: model.interpolate(X, X),
        lambda X: model.attribute_direction(X, IRIS.target == 0),
        lambda X: model.interpolate(X, X, n_steps=0),
        lambda X: model.attribute_direction(X, [1]),
        lambda X: model.score(X, sample_weight=[-1]),
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call(IRIS.data)


def test_steps_there_and_back_change_as_much_where_the_decoder_is_linear():
    X = table_for(Gaussian())
    model = fitted(X, decoder=MLP(()), hidden_layer_sizes=())
    direction = model.attribute_direction(X, X[:, 0] > X[:, 0].mean())
    there, back = (model.edit(X, direction, s) - model.reconstruct(X) for s in (1, -1))
    np.testing.assert_allclose(there, -back, atol=1e-5)


def test_conditions_of_another_number_of_rows_are_refused():
    X = pd.DataFrame(IRIS.data).assign(species=IRIS.target_names[IRIS.target]).rename(columns=str)
    vae = VAETransformer(2, condition_on=["species"], max_iter=2, learning_rate="cosine", random_state=0).fit(X)
    with pytest.raises(ValueError, match="given must have one row, or one for each of the 2 rows of X, got 3"):
        vae.inverse_transform(np.zeros((2, 2)), given=X[["species"]][:3])


def test_modules_are_found_by_their_names():
    import skvae

    assert skvae.evaluation.log_likelihood and skvae.displays.LatentSpaceDisplay
    with pytest.raises(AttributeError, match="module 'skvae' has no attribute 'nothing'"):
        skvae.nothing  # noqa: B018
