"""Models of some columns given others: what is read, what is scored, and what must be told."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skvae
from skvae import VAETransformer
from skvae._batch import Batch
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae.evaluation import bracket, kl_per_component, mutual_information
from skvae.likelihoods import Bernoulli, Gaussian, Mixed
from skvae.likelihoods._mixed import Given, PerColumn
from skvae.networks import MLP
from skvae.objectives import InfoVAE
from skvae.posteriors import Normal
from skvae.priors import MixtureOfNormals, VampPrior
from skvae.solvers import WakeSleep

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def frame(n=178):
    X, y = load_wine(return_X_y=True, as_frame=True)
    columns = ["alcohol", "ash", "hue", "proline"]
    return X[columns].assign(cultivar=pd.Categorical.from_codes(y, ["barolo", "grignolino", "barbera"])).iloc[:n]


def quick(**params):
    return VAETransformer(
        2, **{"hidden_layer_sizes": (8,), "max_iter": 5, "random_state": 0, "condition_on": "cultivar", **params}
    )


@pytest.fixture(scope="module")
def fitted():
    return quick(max_iter=150, hidden_layer_sizes=(16,)).fit(frame())


def linear_regression(n=3000):
    """Return columns c, x with x = 2 c + noise of standard deviation 0.5."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=n)
    return np.column_stack([c, 2 * c + 0.5 * rng.normal(size=n)])


def test_a_linear_model_given_a_column_is_regression():
    X = linear_regression()
    vae = VAETransformer(1, condition_on=[0], hidden_layer_sizes=(), likelihood=Gaussian(), random_state=0).fit(X[:2000])
    slope, intercept = np.polyfit(X[:2000, 0], X[:2000, 1], 1)
    residual = X[:, 1] - slope * X[:, 0] - intercept
    variance = residual[:2000].var()
    exact = -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))
    assert abs(vae.score(X[2000:]) - exact[2000:].mean()) < 0.02
    np.testing.assert_allclose(vae.inverse_transform([[0.0]], given={0: 1.5})[0, 1], 1.5 * slope + intercept, atol=0.05)


def test_reweighted_wake_sleep_without_dreams_finds_the_same_regression():
    X = linear_regression()
    solver = WakeSleep(5, encoder_phase="wake", averaging=0.99)
    settings = {"init": "random", "learning_rate": "cosine", "learning_rate_init": 0.02, "max_iter": 60, "random_state": 0}
    vae = VAETransformer(1, condition_on=[0], hidden_layer_sizes=(), likelihood=Gaussian(), solver=solver, **settings).fit(
        X[:2000]
    )
    slope, intercept = np.polyfit(X[:2000, 0], X[:2000, 1], 1)
    variance = np.var(X[:2000, 1] - slope * X[:2000, 0] - intercept)
    residual = X[2000:, 1] - slope * X[2000:, 0] - intercept
    exact = -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))
    assert abs(vae.set_params(score_method="iwae").score(X[2000:]) - exact.mean()) < 0.02
    np.testing.assert_allclose(vae.inverse_transform([[0.0]], given={0: 1.5})[0, 1], 1.5 * slope + intercept, atol=0.05)


def test_scores_are_those_of_the_other_columns_given_the_conditions(fitted):
    X = frame()
    shifted = (X["cultivar"].cat.codes + 1) % 3
    wrong = X.assign(cultivar=pd.Categorical.from_codes(shifted, X["cultivar"].cat.categories))
    assert fitted.score(X) > fitted.score(wrong) + 0.5
    without = quick(max_iter=150, hidden_layer_sizes=(16,), condition_on=None).fit(X.drop(columns="cultivar"))
    assert fitted.score(X) > without.score(X.drop(columns="cultivar"))


def test_the_score_is_the_integral_over_the_latents(fitted):
    state = fitted._fitted
    params = state.model.unpack(torch.tensor(state.params).double())
    x = state.codec.encode(fitted._cells(frame().iloc[:5]), dtype=torch.float64).x
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]  # (s, 1, k)
    log_px = state.model.log_px(params, Batch(x), z.expand(-1, 5, -1))
    log_joint = log_px + state.model.log_prior(params, z.expand(-1, 5, -1), x).sum(-1)
    exact = torch.logsumexp(log_joint, 0) + 2 * np.log(14 / 140)
    fitted.set_params(score_method=skvae.objectives.IWAE(2000))
    np.testing.assert_allclose(fitted.score_samples(frame().iloc[:5]), exact.detach().numpy(), atol=0.05)
    fitted.set_params(score_method="iwae")


def test_draws_have_the_means_of_the_integral_over_the_latents(fitted):
    state = fitted._fitted
    params = state.model.unpack(torch.tensor(state.params).double())
    cells = fitted._cells(frame().iloc[:1])
    x = state.codec.encode(cells, dtype=torch.float64).x
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]  # (s, 1, k)
    with torch.no_grad():
        weight = state.model.log_prior(params, z, x).sum(-1).exp() * (14 / 140) ** 2  # (s, 1)
        means = state.model.likelihood.mean(params["likelihood"], state.model.decode(params, z, x))
    np.testing.assert_allclose(weight.sum(), 1, atol=0.002)
    exact = state.codec.decode((weight[..., None] * means).sum(0), np.float64)[0]
    drawn = fitted.sample(20_000, random_state=0, given={"cultivar": frame()["cultivar"].iloc[0]}).drop(columns="cultivar")
    error = drawn.std() / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean() - exact[:4]) < 5 * error + 0.002 * exact[:4]).all()


@pytest.mark.parametrize("prior", ["normal", MixtureOfNormals(10), VampPrior(10)], ids=repr)
def test_groups_of_rows_are_as_frequent_as_the_conditions_say(prior):
    rng = np.random.default_rng(0)
    condition = rng.integers(2, size=3000)
    level = np.array([rng.choice(12, size=3000, p=p) for p in rng.dirichlet(np.ones(12), size=2)])[condition, range(3000)]
    X = pd.DataFrame(rng.normal(size=(3000, 6))).rename(columns=str)
    X["condition"] = pd.Categorical.from_codes(condition, ["a", "b"])
    X["level"], X["again"] = pd.Categorical(level.astype(str)), pd.Categorical((5 * level % 12).astype(str))
    vae = VAETransformer(3, prior=prior, condition_on="condition", random_state=0, max_iter=30).fit(X)
    for code, name in enumerate("ab"):
        drawn = vae.sample(4000, given={"condition": name}, random_state=0)["level"].astype(int)
        shares, real = (np.bincount(of, minlength=12) / len(of) for of in (drawn, level[condition == code]))
        assert np.abs(shares - real).sum() / 2 < 0.08  # the conditions are 0.5 apart


def test_what_latents_tell_and_the_distance_from_the_priors_of_rows_are_the_kl(fitted):
    split = mutual_information(fitted, frame(), 200, random_state=0)
    error = np.hypot(split.information.standard_error, split.marginal_kl.standard_error)
    kl = kl_per_component(fitted, frame()).sum()
    assert abs(split.information.value + split.marginal_kl.value - kl) < 5 * error + 0.02


def test_as_many_samples_as_rows_are_given_is_a_misunderstanding(fitted):
    given = pd.concat([frame()[["cultivar"]]] * 100)
    with pytest.raises(
        ValueError, match=r"n_samples=17800 is for every row of given, .* makes 316,840,000 rows.* n_samples=1\."
    ):
        fitted.sample(len(given), given=given)
    assert len(fitted.sample(1, given=given, random_state=0)) == len(given)


@pytest.mark.parametrize("name", ["cultivar", 4, ("of", "wine")], ids=str)
def test_conditions_that_are_missing_are_called_as_they_can_be_given(name):
    X = frame()
    others = [(other, "") for other in X.columns] if isinstance(name, tuple) else X.columns if name == "cultivar" else range(4)
    X.columns = pd.Index([*others[:4], name])
    vae = quick(condition_on=[name]).fit(X)
    with pytest.raises(ValueError, match=re.escape(f"missing: [{name!r}]. Pass them by given, for example given={{{name!r}: ")):
        vae.sample()
    assert len(vae.sample(given={name: "barolo"}, random_state=0)) == 1


def test_conditions_of_an_array_are_called_by_their_numbers():
    vae = quick(condition_on=[1]).fit(linear_regression(60))
    with pytest.raises(ValueError, match=r"missing: \[1\]. Pass them by given, for example given=\{1: "):
        vae.sample()
    assert vae.sample(given={1: 0.5}, random_state=0)[0, 1] == 0.5


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("handle_unknown", ["error", "missing"])
@pytest.mark.parametrize("cell", ["merlot", "grenache"])
def test_a_condition_that_no_training_row_has_is_refused_with_those_that_some_have(cell, handle_unknown):
    X = frame().assign(cultivar=lambda X: X["cultivar"].cat.add_categories("grenache"))
    vae = quick(likelihood=Mixed(handle_unknown=handle_unknown)).fit(X)
    row = X[:1].astype({"cultivar": object}).assign(cultivar=cell)
    for given in ({"cultivar": cell}, row, row[["cultivar"]], row.to_numpy()):
        known = r"Known are \['barolo', 'grignolino', 'barbera'\]: choose one"
        with pytest.raises(ValueError, match=f"given has '{cell}' for 'cultivar', a column of condition_on.* {known}"):
            vae.sample(2, given=given)
    with pytest.raises(ValueError, match=f"given has '{cell}'"):
        vae.inverse_transform(np.zeros((3, 2)), given={"cultivar": cell})
    with pytest.raises(ValueError, match=r"sample needs the columns of condition_on, .* \['cultivar'\]. Pass them by given"):
        vae.sample(given={"cultivar": None})


def test_penalties_compare_latents_with_the_prior_of_as_many_rows_as_count():
    likelihood = PerColumn((Given(Bernoulli(), 1), Gaussian()), (1, 2), (0.0,) * 3, ())
    network = MLP((4,))
    pieces = Pieces(network, network, Normal(), MixtureOfNormals(3), likelihood)
    x = normal((100, 3), generator(0, "rows"), torch.float64)
    x[:, 0] = torch.arange(100) % 2
    weight = torch.where(x[:, 0] == 1, 9.0, 1.0).double()
    seen = []

    class Watched(Model):
        def sample_prior(self, params, shape, stream, dtype, x=None):
            seen.append(float(x[:, 0].mean()))
            return super().sample_prior(params, shape, stream, dtype, x)

    model = Watched(pieces, 3, 2, 0)
    params = model.unpack(normal((model.layout.size,), generator(0, "params"), torch.float64))
    for batch in (Batch(x, weight), Batch(x.repeat_interleave(weight.long(), 0))):
        InfoVAE()(model, params, batch, normal((1, len(batch), 2), generator(0, "e"), torch.float64))
    np.testing.assert_allclose(seen, [0.9, 0.9], atol=0.005)


def test_a_missing_flag_is_neither_of_its_levels():
    rng = np.random.default_rng(0)
    flag = rng.integers(2, size=400)
    X = pd.DataFrame({"flag": flag == 1, "x": 4.0 * flag + rng.normal(size=400), "y": rng.normal(size=400)})
    vae = quick(condition_on="flag", max_iter=100).fit(X)
    row = pd.DataFrame({"flag": [False, True, None], "x": 0.0, "y": 0.0})
    no, yes, unknown = vae.score_samples(row)
    assert no - 0.1 > unknown > yes + 0.1


def test_every_row_of_conditions_alone_is_drawn_from_the_prior(fitted):
    given = frame()[["cultivar", "alcohol"]].iloc[:3]
    given.loc[given.index[1], "alcohol"] = np.nan
    drawn, ess = fitted.sample(5, given=given, random_state=0, n_draws=1000, return_ess=True)
    assert ess[1] == 1000 and (ess[[0, 2]] < 1000).all()
    alone = fitted.sample(5, given=given.iloc[[1]], random_state=0)
    pd.testing.assert_frame_equal(drawn.iloc[5:10].reset_index(drop=True), alone.reset_index(drop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.sample(3, given={"cultivar": "barolo"}, n_draws=5)  # no draw is weighed, so none can count too little
    with pytest.raises(ValueError, match="given has no rows"):
        fitted.sample(given=given.iloc[:0])


def test_rows_of_conditions_alone_are_drawn_at_once(fitted):
    given = frame()[["cultivar"]]
    drawn, ess = fitted.sample(3, given=given, random_state=0, return_ess=True)
    assert (ess == 1000).all() and (drawn["cultivar"].array == given["cultivar"].repeat(3).array).all()
    pd.testing.assert_frame_equal(drawn, fitted.sample(3, given=given, random_state=0))
    assert not drawn.equals(fitted.sample(3, given=given, random_state=1))
    means = fitted.sample(1, given=given, random_state=0, noise=False)
    assert means["proline"].nunique() == len(given)


def test_conditions_are_read_and_not_drawn(fitted):
    schema = {column.name: column.kind for column in fitted.schema_}
    assert schema["cultivar"] == "given categorical"
    drawn = fitted.sample(200, random_state=0, given={"cultivar": "barbera"})
    assert (drawn["cultivar"] == "barbera").all() and drawn.dtypes.equals(frame().dtypes)
    means = frame().groupby("cultivar", observed=True).mean()
    assert abs(drawn["proline"].mean() - means.loc["barbera", "proline"]) < 100
    other = fitted.sample(200, random_state=0, given={"cultivar": "barolo"})
    assert abs(other["proline"].mean() - means.loc["barolo", "proline"]) < 150


def test_conditions_and_other_columns_can_be_given_together(fitted):
    drawn = fitted.sample(50, random_state=0, given={"cultivar": "barolo", "alcohol": 13.5})
    assert (drawn["alcohol"] == 13.5).all() and (drawn["cultivar"] == "barolo").all()


def test_rows_keep_their_conditions(fitted):
    X = frame()
    assert fitted.reconstruct(X)["cultivar"].equals(X["cultivar"])
    Z = fitted.transform(X)
    back = fitted.inverse_transform(Z, given=X[["cultivar"]])
    pd.testing.assert_frame_equal(back, fitted.reconstruct(X).reset_index(drop=True))
    same = fitted.inverse_transform(Z[:3], given={"cultivar": "barolo"})
    assert (same["cultivar"] == "barolo").all() and len(same) == 3
    assert fitted.edit(X, np.ones(2))["cultivar"].equals(X["cultivar"])
    holes = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
    holes["cultivar"] = X["cultivar"]
    assert not fitted.impute(holes).isna().any(axis=None)


def test_cells_of_conditions_have_no_score(fitted):
    cells = fitted.score_cells(frame().iloc[:20])
    assert cells["cultivar"].isna().all()
    np.testing.assert_allclose(np.nansum(cells, axis=1), fitted.score_samples(frame().iloc[:20]), atol=1e-5)


def test_conditions_must_be_told(fitted):
    with pytest.raises(ValueError, match=r"sample needs the columns of condition_on, .*missing: \['cultivar'\]"):
        fitted.sample(3)
    with pytest.raises(ValueError, match="inverse_transform needs the columns of condition_on"):
        fitted.inverse_transform(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="condition_on names all columns"):
        quick(condition_on=list(frame().columns)).fit(frame())
    with pytest.raises(ValueError, match=r"condition_on names column\(s\) that X does not have: \['age'\]"):
        quick(condition_on=["age"]).fit(frame())
    with pytest.raises(ValueError, match="given is for the conditions of a model"):
        quick(condition_on=None).fit(frame()).inverse_transform(np.zeros((1, 2)), given={"hue": 1.0})
    with pytest.raises(ValueError, match="without conditions"):
        quick(solver="wake-sleep").fit(frame())
    with pytest.raises(ValueError, match="draws none by itself"):
        bracket(fitted)


def test_searches_pipelines_and_files_know_conditions(tmp_path):
    X = frame()
    pipe = make_pipeline(FunctionTransformer(), quick())
    search = GridSearchCV(pipe, {"vaetransformer__condition_on": [None, "cultivar", ["cultivar", "hue"]]}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    vae = quick(condition_on=["cultivar", "hue"]).fit(X)
    vae.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae")
    assert np.array_equal(again.score_samples(X), vae.score_samples(X))


def test_training_goes_on_with_the_same_conditions():
    vae = quick(warm_start=True).fit(frame())
    vae.set_params(max_iter=7).fit(frame())
    assert vae.n_iter_ == 7
    with pytest.raises(ValueError, match="fitted with other columns for conditions"):
        vae.set_params(condition_on="hue").fit(frame())


def test_conditions_may_have_holes_in_training():
    X = frame()
    X.loc[X.index[::5], "cultivar"] = np.nan
    vae = quick().fit(X)
    assert np.isfinite(vae.score(X)) and vae._fitted.model.n_given == 4  # three categories, and whether it is missing


def test_missing_conditions_tell_nothing_and_stay(fitted):
    X = frame().head(10)
    X.loc[X.index[:3], "cultivar"] = np.nan
    assert np.isfinite(fitted.score(X))
    for method in ("impute", "multiple_impute"):
        with pytest.warns(UserWarning, match=r"The holes of \['cultivar'\] stay: they are columns of condition_on") as told:
            filled = getattr(fitted, method)(X)
        assert told[0].filename == __file__
        assert (filled if method == "impute" else filled[0])["cultivar"].isna().sum() == 3


def test_arrays_have_conditions_by_number():
    X = linear_regression(200)
    vae = quick(condition_on=0, likelihood=Mixed({0: "student_t"})).fit(X)
    assert np.array_equal(vae.reconstruct(X)[:, 0], X[:, 0])
    assert vae.schema_[0].kind == "given student_t"


def test_objectives_and_decoders_read_conditions():
    X = frame()
    for params in ({"objective": "iwae"}, {"prior": "vamp"}, {"solver": "mcem", "early_stopping": False}):
        assert np.isfinite(quick(**params).fit(X).score(X))


def test_conditions_are_known_where_no_other_column_varies():
    X = np.c_[linear_regression(50)[:, 0], np.ones(50)]
    vae = quick(condition_on=0).fit(X)
    assert list(vae._fitted.conditions) == [0]
    assert np.array_equal(vae.reconstruct(X), X)
