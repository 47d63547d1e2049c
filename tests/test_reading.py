"""Tables as they are read: what is accepted, and messages that name what is not."""

import numpy as np
import pandas as pd
import pytest
import torch

from skvae import VAETransformer
from skvae._reading import array_of_tensor, explain_columns


def test_tensors_elsewhere_are_refused_and_those_here_are_read_without_a_copy():
    with pytest.raises(TypeError, match=r"on meta; arrays on the CPU.*Pass X\.cpu\(\)"):
        array_of_tensor(torch.zeros(2, 2, device="meta"))
    X = torch.zeros(2, 2, requires_grad=True)
    assert np.shares_memory(array_of_tensor(X), X.detach().numpy())


def test_columns_without_numbers_are_named():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "when": pd.to_datetime(["2020-01-01", "2020-01-02"])})
    with pytest.raises(ValueError, match=r"2 column\(s\) cannot be read as numbers: \['b', 'when'\]"):
        explain_columns(frame, ValueError("could not convert"))


@pytest.mark.parametrize("as_table", [np.asarray, lambda X: X.tolist()])
def test_texts_in_arrays_of_numbers_are_named_with_what_to_pass(as_table):
    X = as_table(np.array([[True, "NaN?"], [False, "y"]], dtype=object))
    with pytest.raises(ValueError, match=r"\['x1'\] \(could not convert string to float: 'NaN\?'\)\. A model.*set_output"):
        VAETransformer(1).fit(X)


@pytest.mark.parametrize("X", [pd.Series(["a", "b"]), np.array(["a", "b"], dtype=object), ["a", "b"], "abc"], ids=repr)
def test_what_is_no_table_of_texts_is_refused_as_scikit_learn_does(X):
    with pytest.raises(ValueError, match="could not convert string|Expected 2D array"):
        VAETransformer(1).fit(X)


def test_columns_with_missing_cells_are_named():
    X = np.array([[1.0, np.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"Input X contains NaN in 1 column\(s\): \['x1'\]"):
        explain_columns(X, ValueError("Input X contains NaN."))


def test_other_errors_are_left_to_their_sender():
    explain_columns(pd.DataFrame({"a": [1.0]}), ValueError("something else"))
    explain_columns(np.ones((2, 2)), TypeError("something else"))


def test_masked_cells_are_missing_cells():
    X = np.random.default_rng(0).normal(size=(60, 4))
    masked = np.ma.array(X.copy(), mask=False)
    masked[3, 2] = 1e9
    masked[3, 2] = np.ma.masked
    holes = X.copy()
    holes[3, 2] = np.nan
    whole = np.ma.array([[1, 2], [3, 4], [5, 6]] * 10, mask=[[0, 1], [0, 0], [0, 0]] * 10)  # of whole numbers
    model, other = (VAETransformer(2, max_iter=5, learning_rate="cosine", random_state=0).fit(rows) for rows in (masked, holes))
    np.testing.assert_array_equal(model.score_samples(masked), other.score_samples(holes))
    model.fit(whole)
    assert np.isfinite(model.impute(whole)).all() and np.isfinite(model.score(whole))
