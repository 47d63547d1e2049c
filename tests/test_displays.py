"""Tests of the figures: what they show, what they are called, what they refuse; and that they leave pyplot alone."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer, priors
from skvae.displays import (
    LatentSpaceDisplay,
    ManifoldDisplay,
    ReconstructionDisplay,
    SamplesDisplay,
    TableCheckDisplay,
    TrainingCurveDisplay,
)
from skvae.likelihoods import Bernoulli

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

IRIS = load_iris(as_frame=True)
DISPLAYS = [TrainingCurveDisplay, LatentSpaceDisplay, ReconstructionDisplay, ManifoldDisplay, SamplesDisplay]


def fitted(X, **parameters):
    """Return an estimator after a short training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return VAETransformer(**{"max_iter": 12, "random_state": 0, **parameters}).fit(X)


@pytest.fixture(scope="module")
def vae():
    return fitted(IRIS.data, n_components=3)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return fitted(X[:300], n_components=2, likelihood=Bernoulli(limits=(0, 16))), X[:300], y[:300]


@pytest.fixture
def ax():
    """Axes of a figure that pyplot does not know."""
    return matplotlib.figure.Figure().subplots()


@pytest.fixture(autouse=True)
def _pyplot_as_it_was():
    """Close the figures of a test, and find pyplot's settings as they were before it."""
    plt.close("all")
    before = matplotlib.rcParams.copy()
    yield
    plt.close("all")
    assert matplotlib.rcParams == before


def draw(display, estimator, **options):
    """Draw a display of an estimator with whatever else it needs; four columns make an image of 2 x 2 pixels."""
    if display in (ManifoldDisplay, SamplesDisplay):
        options["image_shape"] = (2, 2)
    rows = (IRIS.data,) if display in (LatentSpaceDisplay, ReconstructionDisplay) else ()
    return display.from_estimator(estimator, *rows, **options)


# --- every display -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("display", DISPLAYS)
def test_from_estimator_draws_one_new_figure(vae, display):
    drawn = draw(display, vae)
    assert plt.get_fignums() == [drawn.figure_.number]
    assert drawn.ax_.figure is drawn.figure_


@pytest.mark.parametrize("display", DISPLAYS)
def test_given_axes_are_used_and_pyplot_makes_no_figure(vae, display, ax):
    drawn = draw(display, vae, ax=ax)
    assert drawn.ax_ is ax
    assert drawn.figure_ is ax.figure
    assert plt.get_fignums() == []


@pytest.mark.parametrize("display", DISPLAYS)
def test_plot_again_draws_the_same_elsewhere(vae, display, ax):
    drawn = draw(display, vae, ax=matplotlib.figure.Figure().subplots())
    first = drawn.ax_.get_xlabel()
    assert drawn.plot(ax) is drawn
    assert drawn.ax_ is ax
    assert ax.get_xlabel() == first


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimator_that_is_not_fitted_is_refused(display):
    with pytest.raises(NotFittedError):
        draw(display, VAETransformer())


@pytest.mark.parametrize("display", DISPLAYS)
def test_pipeline_is_refused_with_what_to_pass_instead(vae, display):
    with pytest.raises(TypeError, match=r"Pipeline.*pipeline\[-1\]"):
        draw(display, make_pipeline(StandardScaler(), vae))


def test_displays_import_without_matplotlib_and_say_how_to_get_it():
    program = (
        "import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "from skvae.displays import TrainingCurveDisplay as Display\n"
        "try: Display(epoch=[], lower_bound=[], objective=[], learning_rate=[]).plot()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "TrainingCurveDisplay" in done.stdout
    assert "pip install 'skvae[plot]'" in done.stdout


# --- training curve ------------------------------------------------------------------------------------------------------


def test_training_curve_shows_the_history_in_nats(vae, ax):
    display = TrainingCurveDisplay.from_estimator(vae, ax=ax)
    objective, bound = display.lines_
    np.testing.assert_array_equal(bound.get_xydata().T, [vae.history_["epoch"], vae.history_["lower_bound"]])
    np.testing.assert_array_equal(objective.get_ydata(), vae.history_["objective"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per row")


def curve(**parts):
    """Return a display of a made-up training of eleven measurements."""
    rising = -100 * 0.5 ** np.arange(11.0)
    values = {"epoch": np.arange(11), "lower_bound": rising, "objective": rising, "learning_rate": np.full(11, 0.01)}
    return TrainingCurveDisplay(**{**values, **parts})


def test_training_curve_marks_where_the_learning_rate_changes(ax):
    rate = np.array([8.0] * 4 + [4.0] * 4 + [2.0] * 3)
    curve(learning_rate=rate).plot(ax)
    assert [text.get_text() for text in ax.texts] == ["rate 4", "rate 2"]
    assert [line.get_xdata()[0] for line in ax.lines[2:]] == [3, 7]


def test_training_curve_leaves_a_smooth_schedule_unmarked(ax):
    curve(learning_rate=np.linspace(1, 0, 11)).plot(ax)
    assert len(ax.texts) == 0


def test_training_curve_keeps_the_steep_start_from_hiding_the_rest(ax):
    curve().plot(ax)
    low, high = ax.get_ylim()
    assert -30 < low < -25
    assert high > -100 * 0.5**10


def test_second_training_curve_on_the_same_axes_does_not_cut_off_the_first(ax):
    curve(name="low", lower_bound=np.full(11, -50.0)).plot(ax)
    curve(name="high", lower_bound=np.full(11, -1.0)).plot(ax)
    low, high = ax.get_ylim()
    assert low < -50 < -1 < high
    assert [t.get_text() for t in ax.get_legend().get_texts()][1::2] == ["low: lower bound", "high: lower bound"]


def test_training_curve_of_one_measurement_can_be_drawn(ax):
    one = {name: np.array([1.0]) for name in ("epoch", "lower_bound", "objective", "learning_rate")}
    assert TrainingCurveDisplay(**one).plot(ax).ax_ is ax


# --- latent space --------------------------------------------------------------------------------------------------------


def test_latent_space_takes_the_two_components_with_the_largest_kl(vae, ax):
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, ax=ax)
    first, second = np.argsort(-vae.kl_per_component_)[:2]
    assert display.components == (first, second)
    np.testing.assert_array_equal(display.mean, vae.transform(IRIS.data)[:, [first, second]])
    assert ax.get_xlabel() == f"component {first}  ({vae.kl_per_component_[first]:.2f} nats)"


def test_latent_space_draws_chosen_components(vae, ax):
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, components=[2, 0], ax=ax)
    np.testing.assert_array_equal(display.scatters_[0].get_offsets(), vae.transform(IRIS.data)[:, [2, 0]])


@pytest.mark.parametrize("components", [(0,), (0, 3), (-1, 0), (0, 1, 2), (0, 0), (0, 1.5)])
def test_latent_space_refuses_components_that_are_not_there(vae, components, ax):
    with pytest.raises(ValueError, match="two different numbers from 0 to 2"):
        LatentSpaceDisplay.from_estimator(vae, IRIS.data, components=components, ax=ax)


def test_latent_space_of_one_component_is_refused(ax):
    with pytest.raises(ValueError, match="n_components=2 or more"):
        LatentSpaceDisplay.from_estimator(fitted(IRIS.data, n_components=1, max_iter=1), IRIS.data, ax=ax)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("y", [IRIS.target, IRIS.target_names[IRIS.target]])
def test_labels_get_a_colour_and_a_marker_each(vae, y, ax):
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, y, ax=ax)
    assert legend(ax) == [str(label) for label in np.unique(y)]
    assert len({tuple(s.get_facecolor()[0]) for s in display.scatters_}) == 3
    assert len({len(s.get_paths()[0].vertices) for s in display.scatters_}) == 3


def test_rows_without_labels_need_no_legend(vae, ax):
    LatentSpaceDisplay.from_estimator(vae, IRIS.data, ax=ax)
    assert ax.get_legend() is None


def test_rarest_of_many_text_labels_share_a_group(vae, ax):
    y = np.array([f"kind {min(i, 11):02}" for i in range(150)])
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, y, ax=ax)
    assert len(display.scatters_) == 10
    assert ax.texts[-1].get_text() == "3 others"
    assert sum(len(s.get_offsets()) for s in display.scatters_) == 150


def test_many_numbers_are_values_with_a_colour_bar(vae, ax):
    values = IRIS.data["petal length (cm)"]
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, values, ax=ax)
    np.testing.assert_array_equal(display.scatters_[0].get_array(), values)
    assert ax.figure.axes[1].get_ylabel() == "petal length (cm)"


@pytest.mark.parametrize("y", [None, IRIS.target, IRIS.data["petal length (cm)"]])
def test_ellipses_have_the_size_of_one_standard_deviation(vae, y, ax):
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, y, ellipses=True, ax=ax)
    widths = np.concatenate([e.get_widths() for e in display.ellipses_])
    np.testing.assert_allclose(np.sort(widths), np.sort(2 * display.std[:, 0]), rtol=1e-6)
    ax.figure.canvas.draw()


def test_ten_labels_are_written_into_the_figure_in_place_of_a_legend(digits, ax):
    vae, X, y = digits
    LatentSpaceDisplay.from_estimator(vae, X, y, ax=ax)
    assert [t.get_text() for t in ax.texts] == [str(i) for i in range(10)]
    assert ax.get_legend() is None


def test_as_many_labels_as_rows_are_needed(vae, ax):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LatentSpaceDisplay.from_estimator(vae, IRIS.data, IRIS.target[:9], ax=ax)


def test_latent_space_passes_options_on(vae, ax):
    display = LatentSpaceDisplay.from_estimator(vae, IRIS.data, IRIS.target, ax=ax, alpha=0.25)
    assert {s.get_alpha() for s in display.scatters_} == {0.25}


# --- reconstruction ------------------------------------------------------------------------------------------------------


def test_images_stand_above_their_reconstructions(digits, ax):
    vae, X, _ = digits
    display = ReconstructionDisplay.from_estimator(vae, X, image_shape=(8, 8), ax=ax)
    picture = ax.images[0].get_array()
    assert picture.shape == (17, 89)
    np.testing.assert_array_equal(picture[:8, 9:17], X[1].reshape(8, 8))
    np.testing.assert_array_equal(picture[9:, 9:17], display.reconstruction[1].reshape(8, 8))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["original", "reconstruction"]


@pytest.mark.parametrize("shape", [(8, 9), (64,), (4, 4, 4)])
def test_shape_that_does_not_hold_a_row_is_refused(digits, shape, ax):
    vae, X, _ = digits
    with pytest.raises(ValueError, match="64 columns"):
        ReconstructionDisplay.from_estimator(vae, X, image_shape=shape, ax=ax)


def test_bars_show_the_share_of_variance_of_each_column_lowest_at_the_bottom(vae, ax):
    display = ReconstructionDisplay.from_estimator(vae, IRIS.data, ax=ax)
    residual = IRIS.data.to_numpy() - vae.reconstruct(IRIS.data).to_numpy()
    expected = 1 - (residual**2).mean(0) / IRIS.data.to_numpy().var(0)
    np.testing.assert_allclose(display.explained_, expected, rtol=1e-9)
    order = np.argsort(expected)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(IRIS.data.columns[order])
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], expected[order])


def test_column_that_never_varied_has_no_bar(ax):
    X = IRIS.data.assign(same=1.0)
    display = ReconstructionDisplay.from_estimator(fitted(X, n_components=2), X, ax=ax)
    assert np.isnan(display.explained_[-1])
    assert len(ax.patches) == 4


def test_cells_that_are_missing_explain_nothing_and_hide_nothing(ax):
    X = IRIS.data.to_numpy(copy=True)
    X[::3, 0], X[:, 1] = np.nan, np.nan
    model = fitted(IRIS.data.to_numpy(), n_components=2)
    display = ReconstructionDisplay.from_estimator(model, X, ax=ax)
    x, y = X[:, 0], model.reconstruct(X)[:, 0]
    known = ~np.isnan(x)
    expected = 1 - np.square(x - y)[known].mean() / x[known].var()
    np.testing.assert_allclose(display.explained_[:2], [expected, np.nan], rtol=1e-9)
    assert len(ax.patches) == 3


def test_line_of_agreement_goes_through_the_cells_that_are_there(ax):
    X = IRIS.data.to_numpy(copy=True)
    X[::3, 0], X[:, 1] = np.nan, np.nan
    display = ReconstructionDisplay.from_estimator(fitted(IRIS.data.to_numpy(), n_components=2), X, column=0, ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_xy1(), [np.nanmean(X[:, 0])] * 2)
    nothing = display.plot(matplotlib.figure.Figure().subplots(), column=1).ax_
    assert not nothing.lines and not len(nothing.collections[0].get_offsets())


def test_of_many_columns_the_thirty_lowest_are_shown(digits, ax):
    vae, X, _ = digits
    ReconstructionDisplay.from_estimator(vae, X, ax=ax)
    assert len(ax.patches) == 30
    assert "30 lowest of" in ax.get_xlabel()


@pytest.fixture(scope="module")
def mixed():
    """Return an estimator and its table, of two columns of numbers beside two of categories."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {"text": list("xyz") * 30, "a": rng.normal(size=90), "level": list("uvwuu") * 18, "b": rng.normal(size=90)}
    )
    return fitted(X, n_components=2), X


@pytest.mark.parametrize("column", ["petal width (cm)", 3, -1])
def test_one_column_against_its_reconstruction(vae, column, ax):
    ReconstructionDisplay.from_estimator(vae, IRIS.data, column=column, ax=ax)
    expected = np.column_stack([IRIS.data.iloc[:, 3], vae.reconstruct(IRIS.data).iloc[:, 3]])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), expected)
    assert ax.get_ylabel() == "petal width (cm), reconstruction"


@pytest.mark.parametrize("column", ["petal", 4])
def test_unknown_column_is_refused_with_those_there_are(vae, column, ax):
    with pytest.raises(ValueError, match=r"no column .* below 4.*sepal length"):
        ReconstructionDisplay.from_estimator(vae, IRIS.data, column=column, ax=ax)


@pytest.mark.parametrize("column, name", [(1, "a"), (-1, "b"), (3, "b"), ("a", "a")])
def test_number_of_a_column_is_its_place_in_the_table(mixed, column, name, ax):
    vae, X = mixed
    display = ReconstructionDisplay.from_estimator(vae, X, column=column, ax=ax)
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 0], X[name])
    assert ax.get_xlabel() == f"{name}, original"
    assert display.plot(column=column).ax_.get_xlabel() == f"{name}, original"


@pytest.mark.parametrize("column", ["text", 0])
def test_column_of_categories_is_refused_as_such(mixed, column, ax):
    with pytest.raises(ValueError, match=r"'text' has categories.* Use one of \['a', 'b'\]"):
        ReconstructionDisplay.from_estimator(*mixed, column=column, ax=ax)


def test_array_without_names_is_drawn_with_numbered_columns(ax):
    X = IRIS.data.to_numpy()
    ReconstructionDisplay.from_estimator(fitted(X, n_components=2), X, ax=ax)
    assert {t.get_text() for t in ax.get_yticklabels()} == {"x0", "x1", "x2", "x3"}


# --- images --------------------------------------------------------------------------------------------------------------


def cell(picture, i, j, shape=(8, 8)):
    """Return the image in row i and column j of a picture."""
    height, width = shape
    return picture[i * (height + 1) :, j * (width + 1) :][:height, :width]


def test_manifold_shows_the_decoded_quantiles_of_the_prior(digits, ax):
    vae, _, _ = digits
    display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), n_steps=5, components=(0, 1), ax=ax)
    np.testing.assert_allclose(display.places, stats.norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
    picture = ax.images[0].get_array()
    assert picture.shape == (44, 44)
    for row, column in ((0, 0), (0, 4), (3, 1)):  # the second component grows upwards, and rows are counted from above
        z = [display.places[column], display.places[4 - row]]
        np.testing.assert_allclose(cell(picture, row, column).ravel(), vae.inverse_transform([z])[0], rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("component 0", "component 1")


def test_ticks_of_the_manifold_stand_in_the_middle_of_images_with_their_latents(digits, ax):
    display = ManifoldDisplay.from_estimator(digits[0], image_shape=(8, 8), n_steps=20, ax=ax)
    ax.figure.canvas.draw()
    for axis, n_before in ((ax.xaxis, lambda at: at // 9), (ax.yaxis, lambda at: 19 - at // 9)):
        for tick in axis.get_major_ticks():
            at = tick.get_loc()
            assert at % 9 == 3.5
            assert tick.label1.get_text() == f"{display.places[int(n_before(at))]:.1f}"


PRIORS = [
    ("gamma", priors.Gamma(2.0, 1.5), stats.gamma(2.0, scale=1 / 1.5)),
    ("beta", priors.Beta(0.7, 2.0), stats.beta(0.7, 2.0)),
    ("student_t", priors.StudentT(4.0, 0.5, 2.0), stats.t(4.0, 0.5, 2.0)),
    ("pareto", priors.Pareto(2.5), stats.pareto(2.5)),
    ("laplace", priors.Laplace(1.0, 2.0), stats.laplace(1.0, 2.0)),
    ("gumbel", priors.Gumbel(1.0, 2.0), stats.gumbel_r(1.0, 2.0)),
    ("beta", priors.Triangular(), stats.triang(0.5)),
    ("log_normal", priors.LogNormal(0.2, 0.9), stats.lognorm(0.9, scale=np.exp(0.2))),
]


@pytest.mark.parametrize("posterior, prior, oracle", PRIORS, ids=lambda value: repr(value)[:12])
def test_manifold_takes_quantiles_of_other_priors_and_their_median(posterior, prior, oracle, ax):
    model = fitted(IRIS.data, n_components=3, max_iter=2, posterior=posterior, prior=prior)
    display = ManifoldDisplay.from_estimator(model, image_shape=(2, 2), n_steps=5, components=(2, 0), ax=ax)
    np.testing.assert_allclose(display.places, oracle.ppf([0.1, 0.3, 0.5, 0.7, 0.9]), rtol=1e-9)
    z = [[display.places[1], oracle.median(), display.places[4]]]
    np.testing.assert_allclose(display.mean[1, 4], model.inverse_transform(z).iloc[0], rtol=1e-5)


class OwnNormal(priors.StandardNormal):
    """Another density than its parent's."""

    def log_prob(self, params, z):
        return super().log_prob(params, z - 3)

    def sample(self, params, shape, stream, dtype):
        return 3 + super().sample(params, shape, stream, dtype)


@pytest.mark.parametrize(
    "posterior, prior", [("normal", "mixture"), ("normal", "vamp"), ("dirichlet", "dirichlet"), ("normal", OwnNormal())]
)
def test_manifold_refuses_priors_without_known_quantiles(posterior, prior, ax):
    model = fitted(IRIS.data, n_components=2, max_iter=2, posterior=posterior, prior=prior)
    with pytest.raises(ValueError, match="knows no quantiles of the components of .*inverse_transform"):
        ManifoldDisplay.from_estimator(model, image_shape=(2, 2), ax=ax)


@pytest.mark.parametrize("n_steps", [0, -1, 2.5])
def test_manifold_of_no_images_is_refused(vae, n_steps, ax):
    with pytest.raises(ValueError, match="n_steps.*must be 1 or more"):
        ManifoldDisplay.from_estimator(vae, image_shape=(2, 2), n_steps=n_steps, ax=ax)


@pytest.fixture(scope="module")
def coloured():
    """A model of images of 2 x 2 pixels in three colours."""
    X = np.random.default_rng(0).random((60, 12))
    return fitted(X, n_components=2, max_iter=2), X


@pytest.mark.parametrize("display", [ManifoldDisplay, SamplesDisplay, ReconstructionDisplay])
def test_colours_are_drawn_side_by_side_from_the_lowest_number_to_the_highest(coloured, display, ax):
    model, X = coloured
    if display is ReconstructionDisplay:
        drawn = display.from_estimator(model, X, image_shape=(2, 2, 3), ax=ax)
        first, numbers = drawn.original[0], np.stack([drawn.original[:10], drawn.reconstruction[:10]])
    else:
        size = {"n_steps": 4} if display is ManifoldDisplay else {"n_samples": 7}
        drawn = display.from_estimator(model, image_shape=(2, 2, 3), ax=ax, **size)
        numbers = drawn.mean if display is ManifoldDisplay else drawn.samples
        first = drawn.mean[-1, 0] if display is ManifoldDisplay else drawn.samples[0]
    picture = np.asarray(ax.images[0].get_array())
    assert picture.ndim == 3 and picture.shape[2] == 3
    expected = (first - numbers.min()) / (numbers.max() - numbers.min())
    np.testing.assert_allclose(picture[:2, :2].ravel(), expected, atol=1e-6)
    assert (picture[:2, 2] == 1).all()  # the gap


def test_limits_of_colours_can_be_given_and_one_channel_is_grey(coloured, ax):
    model, _ = coloured
    display = SamplesDisplay.from_estimator(model, image_shape=(2, 2, 3), random_state=0, ax=ax, vmin=-1.0, vmax=3.0)
    np.testing.assert_allclose(ax.images[0].get_array()[:2, :2].ravel(), (display.samples[0] + 1) / 4, atol=1e-6)
    SamplesDisplay.from_estimator(model, image_shape=(3, 4, 1), random_state=0, ax=ax)
    assert ax.images[1].get_array().ndim == 2


def test_manifold_of_many_components_follows_two_and_leaves_the_others_at_zero(vae, ax):
    display = ManifoldDisplay.from_estimator(vae, image_shape=(2, 2), n_steps=3, ax=ax)
    assert display.components == tuple(np.argsort(-vae.kl_per_component_)[:2])
    z = np.zeros((1, 3))
    z[0, display.components[0]] = display.places[2]
    np.testing.assert_allclose(display.mean[1, 2], vae.inverse_transform(z).iloc[0], rtol=1e-6)
    np.testing.assert_allclose(display.mean[1, 1], vae.inverse_transform(np.zeros((1, 3))).iloc[0], rtol=1e-6)


def test_manifold_of_one_component_is_refused(ax):
    with pytest.raises(ValueError, match=r"ManifoldDisplay draws two components.*n_components=2 or more"):
        ManifoldDisplay.from_estimator(fitted(IRIS.data, n_components=1, max_iter=1), image_shape=(2, 2), ax=ax)


@pytest.mark.parametrize("noise", [False, True])
def test_samples_are_those_of_the_estimator(digits, noise, ax):
    vae, _, _ = digits
    display = SamplesDisplay.from_estimator(vae, image_shape=(8, 8), n_samples=23, noise=noise, random_state=3, ax=ax)
    expected = vae.sample(23, random_state=3, noise=noise)
    np.testing.assert_array_equal(display.samples, expected)
    picture = ax.images[0].get_array()
    assert picture.shape == (26, 89)
    np.testing.assert_array_equal(cell(picture, 1, 3).ravel(), expected[13])
    assert np.ma.getmaskarray(picture)[18:, 27:].all()


def test_samples_stand_in_as_many_columns_as_are_asked_for(digits, ax):
    display = SamplesDisplay.from_estimator(digits[0], image_shape=(8, 8), n_samples=6, random_state=0, ax=ax)
    assert ax.images[-1].get_array().shape == (8, 53)
    display.plot(ax, n_columns=2)
    assert ax.images[-1].get_array().shape == (26, 17)


@pytest.mark.parametrize("display", [ManifoldDisplay, SamplesDisplay])
def test_images_need_a_shape_that_holds_a_row_and_pass_options_on(digits, display, ax):
    with pytest.raises(ValueError, match="64 columns"):
        display.from_estimator(digits[0], image_shape=(8, 9), ax=ax)
    display.from_estimator(digits[0], image_shape=(8, 8), ax=ax, cmap="viridis")
    assert ax.images[0].get_cmap().name == "viridis"


@pytest.mark.parametrize("display", [ManifoldDisplay, SamplesDisplay])
def test_columns_of_texts_are_no_pixels(display, ax):
    X = pd.DataFrame({"number": np.arange(40.0), "text": list("abcd") * 10})
    vae = VAETransformer(2, max_iter=3, learning_rate="cosine", random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"1 column\(s\) are none: \['text'\]"):
        display.from_estimator(vae, image_shape=(1, 2), ax=ax)


# --- table check ---------------------------------------------------------------------------------------------------------


def test_table_check_says_what_its_marks_maps_and_title_are(vae):
    display = TableCheckDisplay.from_estimator(vae, IRIS.data)
    bars, real, drawn = display.axes_
    assert legend(bars) == ["95 % of chance"]
    assert "classifier AUC" in display.figure_.get_suptitle()
    assert [real.get_title(), drawn.get_title()] == ["associations, real rows", "associations, drawn rows"]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert [label.get_text() for label in real.get_xticklabels()] == names
    assert display.figure_.axes[-1].get_ylabel() == "association"


def test_table_check_leaves_the_title_of_a_figure_to_its_owner(vae):
    figure = matplotlib.figure.Figure()
    display = TableCheckDisplay.from_estimator(vae, IRIS.data, axes=figure.subplots(1, 3))
    assert figure.get_suptitle() == ""
    assert "classifier AUC" in display.axes_[1].get_title()
