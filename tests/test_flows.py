"""Inside scikit-learn's machinery: pipelines, searches, column transformers, routing, frames, threads and processes."""

import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Gaussian
from skvae.objectives import ELBO

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:A worker stopped while some jobs:UserWarning"),
]

X, Y = load_wine(return_X_y=True)
SHUFFLED = X[np.random.default_rng(0).permutation(178)]
FRAME = load_wine(as_frame=True).data.iloc[:, :4].assign(kind=np.where(Y > 0, "a", "b"))
NUMBERS = list(FRAME.columns[:4])


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 3, "hidden_layer_sizes": (8,), "random_state": 0, **params})


def test_pipeline_with_memory_gives_the_cached_model(tmp_path):
    scores = [
        make_pipeline(StandardScaler(), vae(), LogisticRegression(), memory=str(tmp_path)).fit(X, Y).score(X, Y)
        for _ in range(2)
    ]
    assert scores[0] == scores[1] > 0.5


def test_feature_union_with_processes():
    union = FeatureUnion([("two", vae()), ("one", vae(n_components=1))], n_jobs=2)
    together = union.fit_transform(X)
    np.testing.assert_array_equal(together[:, :2], vae().fit_transform(X))
    assert together.shape == (178, 3)


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_column_transformer_with_processes_gives_frames(output):
    parts = make_column_transformer((vae(), NUMBERS), (OneHotEncoder(sparse_output=False), ["kind"]), n_jobs=2)
    found = parts.set_output(transform=output).fit_transform(FRAME)
    assert list(found.columns)[:2] == ["vaetransformer__vaetransformer0", "vaetransformer__vaetransformer1"]
    assert found.shape == (178, 4)


@pytest.mark.parametrize(
    "make", [pd.DataFrame, pl.DataFrame, lambda d: pd.DataFrame(d).convert_dtypes(dtype_backend="pyarrow")]
)
def test_frames_of_every_make_give_the_same_model(make):
    columns = {name: FRAME[name].to_numpy() for name in NUMBERS}
    frame = make(columns)
    model = vae().fit(frame)
    assert list(model.feature_names_in_) == NUMBERS
    np.testing.assert_array_equal(model.transform(frame), vae().fit_transform(FRAME[NUMBERS].to_numpy()))


@pytest.mark.parametrize(("output", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_set_output_names_the_components(output, kind):
    found = vae().set_output(transform=output).fit(X).transform(X)
    assert isinstance(found, kind)
    assert list(found.columns) == ["vaetransformer0", "vaetransformer1"]


def test_halving_spends_epochs():
    search = HalvingGridSearchCV(
        vae(), {"n_components": [1, 2, 3]}, cv=2, resource="max_iter", max_resources=9, min_resources=1, random_state=0
    ).fit(X)
    assert search.best_estimator_.n_iter_ == search.best_estimator_.max_iter > 1


@pytest.mark.parametrize("piece", ["elbo", ELBO()])
def test_grids_reach_into_pieces_also_by_name(piece):
    pipeline = make_pipeline(StandardScaler(), vae(objective=piece, likelihood="gaussian"))
    grid = {"vaetransformer__objective__beta": [1.0, 50.0], "vaetransformer__likelihood__noise": ["feature", 3.0]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(SHUFFLED)
    assert search.best_params_["vaetransformer__likelihood__noise"] == "feature"
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert pipeline[-1].objective is piece


def test_search_by_likelihood_prefers_the_larger_latent_space():
    search = GridSearchCV(vae(max_iter=60), {"n_components": [1, 6]}, cv=3).fit(SHUFFLED)
    assert search.best_params_ == {"n_components": 6}
    assert search.score(X) == search.best_estimator_.score(X)


def test_randomized_search_over_settings_objects():
    options = {"likelihood": [Gaussian("shared"), Gaussian("feature")], "alpha": [0.0, 1.0]}
    search = RandomizedSearchCV(vae(), options, n_iter=3, cv=2, random_state=0, error_score="raise").fit(X)
    assert search.best_params_["likelihood"] in options["likelihood"]


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_fails_fails_alone():
    search = GridSearchCV(vae(), {"learning_rate_init": [0.01, 1e30]}, cv=2).fit(X)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_processes_and_threads_give_the_serial_scores():
    serial = cross_val_score(vae(), X, cv=3)
    np.testing.assert_array_equal(cross_val_score(vae(), X, cv=3, n_jobs=2), serial)
    with joblib.parallel_config(backend="threading"):
        np.testing.assert_array_equal(cross_val_score(vae(), X, cv=3, n_jobs=2), serial)


def test_cross_validate_returns_fitted_estimators():
    found = cross_validate(vae(), X, cv=2, return_estimator=True)
    assert all(np.isfinite(e.score(X)) for e in found["estimator"])


def test_weights_are_routed():
    weight = np.random.default_rng(0).integers(1, 4, size=len(X)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            vae().set_fit_request(sample_weight=True),
            LogisticRegression().set_fit_request(sample_weight=False),
        ).fit(X, Y, sample_weight=weight)
        Z = StandardScaler().fit_transform(X)
        np.testing.assert_array_equal(pipeline[1].transform(Z), vae().fit(Z, sample_weight=weight).transform(Z))
        search = GridSearchCV(
            vae().set_fit_request(sample_weight=True).set_score_request(sample_weight=True), {"n_components": [1, 2]}, cv=2
        ).fit(X, sample_weight=weight)
    assert np.isfinite(search.best_score_)


def test_frozen_estimator_stays_as_it_is():
    model = vae().fit(X)
    before = model.transform(X)
    np.testing.assert_array_equal(FrozenEstimator(model).fit(X[:50], None).transform(X), before)


def test_clone_keeps_parameters_and_nothing_fitted():
    model = vae(objective=ELBO(beta=2.0)).fit(X)
    copy = clone(model)
    assert copy.objective == model.objective
    assert copy.objective is not model.objective
    assert not hasattr(copy, "n_iter_")


def test_pipelines_can_be_run_backwards():
    pipeline = make_pipeline(StandardScaler(), vae()).fit(X)
    latents = pipeline.transform(X)
    back = pipeline.inverse_transform(latents)
    assert back.shape == X.shape
    assert np.corrcoef(back[:, 12], X[:, 12])[0, 1] > 0.5


def test_names_and_outputs_belong_to_the_fitted_model():
    model = vae().fit(X)
    model.set_params(n_components=5, likelihood=Gaussian(noise=1.0), hidden_layer_sizes=(3,))
    assert list(model.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]
    assert model.transform(X).shape == (178, 2)


def test_the_notebook_representation_shows_the_fit():
    html = vae().fit(X)._repr_html_()
    assert "lower_bound_" in html


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_of_torch_are_accepted(dtype):
    tensor = torch.tensor(X, dtype=dtype, requires_grad=True)
    array = tensor.detach().numpy()
    model = vae().fit(tensor)
    found = model.transform(tensor)
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, vae().fit(array).transform(array))
    assert model.score(tensor) == model.score(array)
    assert model.inverse_transform(torch.tensor(found)).dtype == array.dtype


def test_tensors_elsewhere_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"X is a torch tensor on meta; .* Pass X\.cpu\(\)"):
        vae().fit(torch.empty((5, 2), device="meta"))


def test_dates_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Column 'when' has type datetime64\[.*\], which no likelihood reads"):
        vae().fit(FRAME.assign(when=pd.Timestamp("2020-01-01")))


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "double[pyarrow]"])
def test_cells_may_be_missing_in_nullable_columns(dtype):
    frame = pd.DataFrame({"a": pd.array([1, 2, None], dtype=dtype), "b": [1.0, 2.0, 3.0]})
    plain = pd.DataFrame({"a": [1, 2, np.nan], "b": [1.0, 2.0, 3.0]})
    assert vae().fit(frame).score(frame) == vae().fit(plain).score(plain)


def test_infinite_cells_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Input X contains infinity or a value too large in 1 column\(s\): \['x1'\]"):
        vae().fit(np.array([[1.0, np.inf], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="Column 'ash' contains infinity"):
        vae().fit(FRAME[NUMBERS].assign(ash=np.inf))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fits_in_any_gradient_mode(mode):
    with mode():
        inside = vae().fit(X)
    np.testing.assert_array_equal(inside.transform(X), vae().fit(X).transform(X))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_of_the_user_does_not_matter(device):
    with torch.device(device):
        inside = vae().fit(X)
        latents = inside.transform(X)
        score = inside.score(X)
    outside = vae().fit(X)
    np.testing.assert_array_equal(latents, outside.transform(X))
    assert score == outside.score(X)


def test_the_default_dtype_of_the_user_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        inside = vae().fit(X).transform(X)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(inside, vae().fit(X).transform(X))


def test_nothing_is_written_to_the_input():
    data = X.copy()
    data.flags.writeable = False
    model = vae().fit(data)
    for method in (model.transform, model.score_samples, model.posterior_moments, model.reconstruct, model.partial_fit):
        method(data)
    np.testing.assert_array_equal(data, X)


def test_memory_maps_are_read_where_they_lie(tmp_path):
    joblib.dump(X, tmp_path / "X.joblib")
    mapped = joblib.load(tmp_path / "X.joblib", mmap_mode="r")
    np.testing.assert_array_equal(vae().fit(mapped).transform(mapped), vae().fit(X).transform(X))


def test_no_warning_is_given_for_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VAETransformer(n_components=2, random_state=0).fit(X).sample(3)
