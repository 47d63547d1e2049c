"""Several likelihoods side by side, and what missing cells mean: they count nothing, to the last digit."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from test_kernels import by_autograd, by_hand, flat_params

from skvae import VAETransformer, _linear
from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._linear import covariance, covariance_with_holes, factor_analysis
from skvae._model import Model, Pieces
from skvae._random import generator, normal
from skvae._schema import ColumnStatistics, group_columns
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, Mixed, NegativeBinomial, Ordinal, Poisson
from skvae.likelihoods._mixed import PerColumn
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE
from skvae.posteriors import Normal
from skvae.priors import StandardNormal, VampPrior

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
F64 = torch.float64
UNITS = (0.5, -1.0, 0.0, 0.0, 0.0, 0.0)
TABLE = PerColumn(
    (Gaussian(), Bernoulli(), Categorical((3,)), Ordinal((4,)), NegativeBinomial()), (2, 1, 1, 1, 1), UNITS, missing=(0, 3)
)
LIKELIHOODS = [
    TABLE,
    PerColumn((Gaussian("shared"), Categorical((2, 4, 3))), (3, 3), (1.0, 2.0, 3.0, 0.0, 0.0, 0.0), missing=(1, 5)),
    PerColumn((Gaussian("network"), Poisson()), (4, 2), UNITS),
    PerColumn((Gaussian(),), (6,), UNITS, missing=(2,)),
]


def rows(likelihood, shape, seed=0, share=0.3):
    """Return rows with holes that a likelihood of six columns accepts."""
    rng = np.random.default_rng(seed)
    x = np.empty((*shape, 6))
    for j, one in enumerate(likelihood.of_columns()):
        within = j - [i for i, other in enumerate(likelihood.of_columns()) if other is one][0]
        levels = one.levels(len(one.n_levels))[within] if hasattr(one, "n_levels") else 2 if isinstance(one, Bernoulli) else 9
        x[..., j] = rng.normal(size=shape) if isinstance(one, Gaussian) else rng.integers(levels, size=shape)
    x[rng.random(x.shape) < share] = np.nan
    return torch.from_numpy(x)


def make_model(likelihood, k=2, hidden=(7,), prior=None):
    pieces = Pieces(MLP(hidden), MLP(hidden), Normal(), prior or StandardNormal(), likelihood)
    return Model(pieces, 6, k, seed=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_cells_have_the_density_of_their_likelihood_and_missing_ones_none(likelihood):
    model = make_model(likelihood)
    params = model.unpack(flat_params(model))
    x = rows(likelihood, (20,))
    eta = model.decode(params, normal((20, 2), generator(0, "z"), F64))
    found = likelihood.log_prob(params["likelihood"], eta, x)
    assert (found[x.isnan()] == 0).all() and x.isnan().any()
    start = 0
    for i, (one, d) in enumerate(zip(likelihood.likelihoods, likelihood.widths)):
        cells = slice(sum(likelihood.widths[:i]), sum(likelihood.widths[: i + 1]))
        own = {name.split("_", 1)[1]: value for name, value in params["likelihood"].items() if name.startswith(f"{i}_")}
        outputs = eta[:, start : start + one.n_outputs(d)]
        expected = one.log_prob(own, outputs, torch.nan_to_num(x[:, cells], one.filler)) - torch.tensor(
            likelihood.log_units[cells]
        )
        seen = ~x[:, cells].isnan()
        torch.testing.assert_close(found[:, cells][seen], expected[seen])
        start += one.n_outputs(d)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(beta=2.0, n_samples=3), IWAE(4)], ids=repr)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_closed_forms_give_the_gradient_of_rows_with_holes(likelihood, objective):
    models = [make_model(likelihood, k=k) for k in (2, 3)]
    assert kernels.supports(models[0], objective)
    x = torch.stack([rows(likelihood, (6,), seed=i) for i in range(2)])
    weight = torch.tensor([[0.0, 1, 2, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=F64) / 6
    flats = [flat_params(model, seed=i) for i, model in enumerate(models)]
    noise = [normal((objective.n_samples, 6, model.n_components), generator(i, "e"), F64) for i, model in enumerate(models)]
    beta = getattr(objective, "beta", 1.0)
    values, slopes = by_hand(models, objective, flats, x, noise, weight, torch.full((2, 1, 1), beta, dtype=F64))
    for i, model in enumerate(models):
        value, slope = by_autograd(model, objective, flats[i], x[i], noise[i], weight[i], 1.0)
        torch.testing.assert_close(values[i], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes[i], slope, rtol=1e-10, atol=1e-12 * max(1.0, float(slope.abs().max())))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_encoder_sees_values_and_holes(likelihood):
    x = rows(likelihood, (9,))
    params = likelihood.init(6)
    inputs = likelihood.inputs(params, x)
    assert inputs.shape == (9, likelihood.n_inputs(6)) and not inputs.isnan().any()
    if likelihood.missing:
        assert torch.equal(inputs[:, -len(likelihood.missing) :].bool(), x[:, list(likelihood.missing)].isnan())
    complete = rows(likelihood, (9,), share=0.0)
    hidden = torch.where(x.isnan(), torch.nan, complete)
    others = torch.where(x.isnan(), torch.nan, complete + 0.0)
    assert torch.equal(likelihood.inputs(params, hidden), likelihood.inputs(params, others))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_and_points_are_cells(likelihood):
    model = make_model(likelihood)
    params = model.unpack(flat_params(model))
    drawn = model.sample(params, 200, generator(0, "s"), True, F64)
    means = model.sample(params, 200, generator(0, "s"), False, F64)
    assert drawn.shape == means.shape == (200, 6)
    for j, one in enumerate(likelihood.of_columns()):
        if isinstance(one, (Categorical, Ordinal)):
            assert torch.equal(drawn[:, j], drawn[:, j].round()) and torch.equal(means[:, j], means[:, j].round())
    eta = model.decode(params, normal((50, 2), generator(0, "z"), F64))
    expectation = likelihood.expectation(params["likelihood"], eta)
    assert expectation.shape == (50, likelihood.n_expected(6))
    torch.testing.assert_close(likelihood.point(expectation), likelihood.mean(params["likelihood"], eta))


def test_pseudo_inputs_lie_where_the_encoder_reads():
    model = make_model(TABLE, prior=VampPrior(3))
    params = model.unpack(flat_params(model))
    assert params["prior"]["pseudo_inputs"].shape == (3, TABLE.n_inputs(6))
    assert model.log_prior(params, torch.zeros(4, 2, dtype=F64)).isfinite().all()


# --- which columns go together ---------------------------------------------------------------------------------------


def statistics_of(X):
    missing = np.isnan(X).mean(0)
    columns = [np.nanmean(X, 0), np.nanstd(X, 0), np.nanmin(X, 0), np.nanmax(X, 0)]
    return ColumnStatistics(*columns, missing)


def test_columns_of_equal_likelihoods_are_one_group():
    X = np.random.default_rng(0).integers(3, size=(30, 5)).astype(float)
    chosen = [Gaussian(), Poisson(), Gaussian(), Categorical(), Poisson()]
    groups = group_columns(chosen, statistics_of(X), keeps_constant=False)
    assert [g.columns.tolist() for g in groups] == [[0, 2], [1, 4], [3]]
    assert groups[2].likelihood == Categorical((3,))


def test_columns_that_never_vary_are_left_out_unless_they_may_yet():
    X = np.random.default_rng(0).normal(size=(30, 3))
    X[:, 1] = 2.0
    for keeps, columns in ((False, [0, 2]), (True, [0, 1, 2])):
        (group,) = group_columns([Gaussian()] * 3, statistics_of(X), keeps)
        assert group.columns.tolist() == columns


# --- holes -----------------------------------------------------------------------------------------------------------


def holes(X, share=0.2, seed=0):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def quick(**params):
    return VAETransformer(2, **{"hidden_layer_sizes": (8,), "max_iter": 5, "random_state": 0, **params})


def test_a_column_without_a_cell_is_as_if_it_were_not_there():
    X = load_wine().data[:80, :5]
    empty = np.column_stack([X[:, :2], np.full(80, np.nan), X[:, 2:]])
    one, other = quick().fit(X), quick().fit(empty)
    assert np.array_equal(one._fitted.params, other._fitted.params)
    np.testing.assert_allclose(one.score_samples(X), other.score_samples(empty), rtol=1e-12)
    one, other = (vae.set_params(score_method="iwae") for vae in (one, other))
    assert np.array_equal(one.score_samples(X), other.score_samples(empty))
    assert np.isnan(other.reconstruct(empty)[:, 2]).all()


def test_a_row_without_a_cell_has_the_score_zero_and_the_prior_for_a_posterior():
    X = holes(load_wine().data[:, :4])
    vae = VAETransformer(2, random_state=0, hidden_layer_sizes=(16,), max_iter=200).fit(X)
    nothing = np.full((1, 4), np.nan)
    assert abs(vae.score_samples(nothing)[0]) < 0.5  # the bound is tight where q(z|x) is the prior
    vae.set_params(score_method=IWAE(20_000))
    assert abs(vae.score_samples(nothing)[0]) < 0.02
    assert np.isfinite(vae.transform(nothing)).all()


def test_a_missing_cell_is_a_dropped_column():
    model = make_model(TABLE)
    params, x = model.unpack(flat_params(model)), rows(TABLE, (10,), share=0.0)
    z = normal((5, 10, 2), generator(0, "z"), F64)
    per_cell = model.log_likelihood(params, Batch(x), z)
    for j in range(6):
        hidden = x.clone()
        hidden[:, j] = torch.nan
        without = [i for i in range(6) if i != j]
        torch.testing.assert_close(model.log_px(params, Batch(hidden), z), per_cell[..., without].sum(-1))


def test_scores_of_complete_rows_do_not_depend_on_holes_in_others():
    X = load_wine().data[:60, :5]
    vae = quick().fit(X)
    with_holes = holes(X)
    together = vae.score_samples(np.vstack([X, with_holes]))
    assert np.array_equal(together[:60], vae.score_samples(X))
    assert np.array_equal(together[60:], vae.score_samples(with_holes))
    assert np.array_equal(vae.transform(np.vstack([X, with_holes]))[:60], vae.transform(X))


def test_units_count_for_observed_cells_alone():
    X = load_wine().data[:, :3]
    vae = quick(max_iter=30).fit(X)
    scaled = quick(max_iter=30).fit(X * [1.0, 10.0, 1.0])
    hidden = X.copy()
    hidden[::2, 1] = np.nan
    difference = vae.score_samples(hidden) - scaled.score_samples(hidden * [1.0, 10.0, 1.0])
    np.testing.assert_allclose(difference[1::2], np.log(10), atol=1e-4)
    np.testing.assert_allclose(difference[::2], 0, atol=1e-4)


def test_holes_may_come_after_training():
    X = load_wine().data[:, :4]
    vae = quick(warm_start=True).fit(X)
    vae.partial_fit(holes(X))
    assert np.isfinite(vae.score(X)) and vae._fitted.codec.per_cell


def test_infinite_cells_are_refused():
    X = load_wine().data[:, :4].copy()
    X[3, 2] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        quick().fit(X)


# --- the linear start ------------------------------------------------------------------------------------------------


def observed_log_likelihood(X, mean, S):
    """Return the mean log-density of the observed cells of every row under a normal distribution."""
    total = 0.0
    for row in X:
        seen = ~row.isnan()
        normal_of_seen = torch.distributions.MultivariateNormal(mean[0, seen], S[seen][:, seen])
        total += float(normal_of_seen.log_prob(row[seen]))
    return total / len(X)


def test_factor_analysis_with_holes_is_factor_analysis_without_any():
    X = load_wine().data
    batch = Batch(torch.from_numpy((X - X.mean(0)) / X.std(0)))
    mean, S = covariance_with_holes(batch, 3, 0.01)
    exact = factor_analysis(covariance(batch)[1], 3, "feature", 0.01)
    expected = exact.loadings.mT @ exact.loadings + exact.noise_variance[0].diag()
    found, best = (observed_log_likelihood(batch.x, mean, C) for C in (S, expected))
    assert abs(found - best) < 0.02
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-8, rtol=0)


def test_factor_analysis_explains_observed_cells_better_than_filling_holes_does():
    X = load_wine().data
    X = torch.from_numpy(holes((X - X.mean(0)) / X.std(0), 0.4))
    mean, S = covariance_with_holes(Batch(X), 3, 0.01)
    filled = Batch(torch.nan_to_num(X))
    naive = factor_analysis(covariance(filled)[1], 3, "feature", 0.01)
    S_naive = naive.loadings.mT @ naive.loadings + naive.noise_variance[0].diag()
    assert observed_log_likelihood(X, mean, S) > observed_log_likelihood(X, covariance(filled)[0], S_naive) + 0.1


def test_factor_analysis_in_parts_of_the_rows_is_that_of_all(monkeypatch):
    X = load_wine().data
    batch = Batch(torch.from_numpy(holes((X - X.mean(0)) / X.std(0), 0.3)), torch.arange(1.0, 179.0))
    whole = covariance_with_holes(batch, 3, 0.01)
    monkeypatch.setattr(_linear, "_EM_CELLS", 16 * 50)
    torch.testing.assert_close(covariance_with_holes(batch, 3, 0.01), whole, rtol=1e-12, atol=1e-12)


def test_a_column_without_a_cell_leaves_factor_analysis_of_the_others_as_it_is():
    X = load_wine().data
    X = torch.from_numpy(holes((X - X.mean(0)) / X.std(0), 0.3))
    mean, S = covariance_with_holes(Batch(X), 3, 0.01)
    more = torch.cat([X[:, :4], X.new_full((len(X), 1), torch.nan), X[:, 4:]], 1)
    others = torch.arange(14) != 4
    found_mean, found = covariance_with_holes(Batch(more), 3, 0.01)
    torch.testing.assert_close((found_mean[:, others], found[others][:, others]), (mean, S), rtol=0, atol=0)
    assert found_mean[0, 4] == 0 and torch.equal(found[4], torch.eye(14, dtype=X.dtype)[4])
    mean, S = covariance_with_holes(Batch(more[:1] * torch.nan), 3, 0.01)
    assert torch.equal(mean, torch.zeros_like(mean)) and torch.equal(S, torch.eye(14, dtype=X.dtype))


def test_training_with_holes_is_near_training_without():
    X = np.random.default_rng(0).permutation(load_wine().data)  # which come cultivar by cultivar
    complete = VAETransformer(2, random_state=0).fit(X[:120]).score(X[120:])
    with_holes = VAETransformer(2, random_state=0).fit(holes(X[:120], 0.1)).score(X[120:])
    assert with_holes > complete - 1


def test_a_name_that_is_none_of_a_likelihood_is_refused_with_those_that_are():
    X = pd.DataFrame({"visits": np.arange(20) % 4, "age": np.arange(20.0)})
    with pytest.raises(ValueError, match=r"'possion' is no likelihood by name. Use one of \[.*'poisson'"):
        VAETransformer(likelihood=Mixed({"visits": "possion"})).fit(X)
