"""What a fitted model says of rows, where that is no topic of another file: rows of no weight, and of no cells."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from skvae import VAETransformer, _rows, _stream, data
from skvae._batch import Batch
from skvae._random import generator
from skvae.evaluation import log_likelihood
from skvae.likelihoods import Poisson, SelfMasking
from skvae.objectives import ELBO, IWAE, InfoVAE

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
TABLES = {
    "array": np.asarray,
    "list": np.ndarray.tolist,
    "sparse": sparse.coo_array,
    "frame": lambda X: pd.DataFrame(X, columns=list("abc")),
    "source": data.ArraySource,
}


def counts():
    return np.random.default_rng(0).poisson(3, (100, 3)).astype(float)


def fit(X, **options):
    return VAETransformer(1, likelihood="poisson", max_iter=5, random_state=0).fit(X, **options)


every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


@every_table
def test_score_leaves_out_rows_of_no_weight_even_impossible_ones(table):
    X, weight = counts(), np.ones(100)
    X[5], weight[5] = [-1.0, 0.5, np.nan], 0.0
    vae = fit(table(X), sample_weight=weight)
    expected = pytest.approx(vae.score(table(X[weight > 0])), rel=1e-12)
    assert vae.score(table(X), sample_weight=weight) == expected
    assert vae.score(table(X), sample_weight=2 * weight) == expected


class Strict(Poisson):
    """Counts above 100 are impossible."""

    def log_prob(self, params, eta, x):
        return torch.where(x > 100, -torch.inf, super().log_prob(params, eta, x))


@every_table
def test_rows_of_infinite_score_count_only_where_they_have_weight(table):
    X, weight = counts(), np.ones(100)
    vae = VAETransformer(1, likelihood=Strict(), max_iter=5, learning_rate="cosine", random_state=0).fit(table(X))
    X[5] = [1000.0, 0.0, 0.0]
    assert vae.score(table(X), sample_weight=weight) == -np.inf
    weight[5] = 0.0
    assert np.isfinite(vae.score(table(X), sample_weight=weight))


def test_parts_of_a_source_in_which_no_row_has_weight_are_left_out(monkeypatch):
    X, weight = counts(), np.repeat([0.0, 1.0, 0.0, 2.0], 25)
    vae = fit(X)
    monkeypatch.setattr(data, "_BLOCK_BYTES", 240)
    monkeypatch.setattr(_stream, "_PIECE_CELLS", 30)
    assert vae.score(data.ArraySource(X), sample_weight=weight) == vae.score(X, sample_weight=weight)


@pytest.mark.parametrize("score_method", ["iwae", "elbo", "hmc"])
@pytest.mark.parametrize("has_holes", [False, True])
def test_nothing_is_no_surprise(has_holes, score_method):
    X = np.random.default_rng(0).normal(size=(100, 3))
    X[0, 0] = np.nan if has_holes else 0.0
    vae = VAETransformer(1, max_iter=3, random_state=0, score_method=score_method).fit(X)
    nothing = np.full((1, 3), np.nan)
    scores = vae.score_samples(np.vstack([X[:5], nothing, X[5:9]]))
    assert scores[5] == 0 == vae.score(nothing) and (np.delete(scores, 5) != 0).all()
    assert np.nansum(vae.score_cells(nothing)) == 0
    if score_method != "elbo":
        found = log_likelihood(vae, np.vstack([X[:5], nothing]), score_method)
        assert found.value[5] == found.standard_error[5] == 0 and (found.standard_error[:5] > 0).all()


def test_conditions_alone_are_no_surprise_but_missing_cells_may_be():
    X = np.random.default_rng(0).normal(size=(100, 3))
    alone = np.array([[1.0, np.nan, np.nan]])
    conditional = VAETransformer(1, condition_on=[0], max_iter=3, random_state=0).fit(X)
    assert conditional.score(alone) == 0 == conditional.score(alone * np.nan)
    assert VAETransformer(1, max_iter=3, random_state=0).fit(X).score(alone) != 0
    X[X > 1] = np.nan
    assert VAETransformer(1, likelihood=SelfMasking(), max_iter=3, random_state=0).fit(X).score(alone * np.nan) != 0


# --- noise of scores -----------------------------------------------------------------------------------------------------


def scores_by_seed(monkeypatch, vae, X, n_seeds):
    """Return the score of a model by the noise of many seeds."""
    found = []
    for seed in range(n_seeds):
        monkeypatch.setattr(_rows, "generator", lambda _, *place, seed=seed: generator(seed, *place))
        found.append(vae.score(X))
    return np.array(found)


def score_by_quadrature(vae, X):
    """Return the mean log p(x) of a model of one component, from a fine grid of latents."""
    fitted = vae._fitted
    params = fitted.model.unpack(torch.tensor(fitted.params))
    rows = fitted.codec.encode(X, dtype=fitted.dtype)
    z = torch.linspace(-8, 8, 4001)[:, None, None].expand(-1, len(rows), 1)
    log_joint = [
        (fitted.model.log_px(params, part, at) + fitted.model.log_pz(params, at, part.x)).double()
        for part, at in ((Batch(rows.x[i : i + 20]), z[:, i : i + 20]) for i in range(0, len(rows), 20))
    ]
    return float((torch.cat(log_joint, -1).logsumexp(0) + math.log(16 / 4000)).mean()) + fitted.codec.log_jacobian


@pytest.mark.parametrize("n_samples", [2, 4, 16])
def test_importance_weighted_scores_are_lower_bounds_on_average_over_their_noise(monkeypatch, n_samples):
    rng = np.random.default_rng(0)
    t = rng.normal(size=300)
    X = np.c_[t**2, np.abs(t)] + 0.1 * rng.normal(size=(300, 2))
    vae = VAETransformer(1, max_iter=100, random_state=0, score_method=IWAE(n_samples)).fit(X)
    scores = scores_by_seed(monkeypatch, vae, X, 200)
    assert scores.std() > 1e-4
    assert scores.mean() <= score_by_quadrature(vae, X) + 2 * scores.std() / 200**0.5


@pytest.mark.parametrize("method", [ELBO(n_samples=2), InfoVAE(n_samples=2)], ids=repr)
def test_scores_by_averages_of_logs_have_no_noise_where_the_decoder_is_linear(monkeypatch, method):
    X = np.random.default_rng(0).normal(size=(50, 1)) * [1.0, 2.0, -1.0] + 0.1
    vae = VAETransformer(1, hidden_layer_sizes=(), max_iter=3, learning_rate="cosine", random_state=0, score_method=method)
    assert np.ptp(scores_by_seed(monkeypatch, vae.fit(X), X, 5)) < 1e-5
