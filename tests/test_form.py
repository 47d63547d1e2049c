"""Forms of tables: what they learn of columns, and how they are stored."""

import numpy as np
import pandas as pd
import pytest
from test_frames import N, frame, quick, rising

from skvae._form import Form
from skvae.likelihoods import Gaussian

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_numbers_alone_stay_as_they_are():
    form = Form.of_numbers(2)
    cells = np.array([[1.0, -np.inf], [np.nan, 3.0]], dtype=np.float32)
    assert all(kept is cells for kept in (form.table(cells), form.settled(cells), form.within_limits(cells)))
    assert form.names == [0, 1] and not form.has_categories
    assert Form.unpack(form.pack(), 2) == form and form.having_seen([], {}) is form


def test_forms_survive_packing():
    X = frame()
    form, likelihoods = Form.learn(X, [None] * X.shape[1], Gaussian(), "error")
    again = Form.unpack(form.pack(), X.shape[1])
    assert again == form and len(likelihoods) == X.shape[1]
    pd.testing.assert_frame_equal(again.table(form.cells(X), X), X)


def test_packed_forms_without_names_of_levels_can_be_read():
    X = frame().rename_axis(columns="kind")
    form, _ = Form.learn(X, [None] * X.shape[1], Gaussian(), "error")
    assert Form.unpack(form.pack(), X.shape[1]) == form
    old = {name: value for name, value in form.pack().items() if name in ("container", "formats", "handle_unknown")}
    pd.testing.assert_frame_equal(Form.unpack(old, X.shape[1]).table(form.cells(X), X), X.rename_axis(columns=None))


def test_forms_count_weights_as_repetitions():
    rng = np.random.default_rng(0)
    X = rising(90).assign(few=rng.integers(3, size=90), kind=rng.choice(list("abc"), size=90))
    X["kind"] = pd.Categorical(X["kind"], categories=list("dcba"))
    weight = rng.integers(4, size=90)
    repeated = X.iloc[np.repeat(np.arange(90), weight)]
    one, other = quick().fit(X, sample_weight=weight), quick().fit(repeated)
    assert one._fitted.codec.form == other._fitted.codec.form
    assert one._fitted.codec.form.formats[1].frequent


def test_shares_of_rows_are_still_rows():
    X = frame()[["two", "real"]]
    assert quick().fit(X, sample_weight=np.full(N, 1 / N)).schema_[0].kind == "bernoulli"
    few = X.head(4).assign(two=[0, 1, 0, 1])
    assert [quick().fit(few, sample_weight=np.full(4, w)).schema_[0].kind for w in (0.5, 3)] == ["gaussian", "bernoulli"]
