"""What a fitted model says of rows, where that is no topic of another file: rows of no weight, and of no cells."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from skvae import VAETransformer, _stream, data
from skvae.evaluation import log_likelihood
from skvae.likelihoods import SelfMasking

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


@every_table
def test_rows_of_infinite_score_count_only_where_they_have_weight(table):
    X, weight = counts(), np.ones(100)
    vae = fit(table(X))
    X[5] = [3e37, 0.0, 0.0]
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
