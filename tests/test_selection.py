"""Which columns are meant: names of any type, masks, functions."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone

import skvae
from skvae import VAETransformer
from skvae.likelihoods import Mixed

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N = 60


def quick(**params):
    return VAETransformer(2, **{"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, **params})


MASK = np.array([False, False, True, False])


@pytest.mark.parametrize("mask", [MASK, MASK.tolist(), tuple(MASK), pd.Series(MASK), pl.Series(MASK), lambda X: MASK])
@pytest.mark.parametrize("as_table", [np.asarray, lambda X: pd.DataFrame(X, columns=list("abcd"))])
def test_a_mask_selects_the_columns_of_its_flags(mask, as_table):
    X = as_table(np.random.default_rng(0).normal(size=(N, 4)))
    kinds = [c.kind for c in quick(likelihood=Mixed([("student_t", mask)])).fit(X).schema_]
    assert kinds == ["gaussian", "gaussian", "student_t", "gaussian"]
    kinds = [c.kind for c in quick(condition_on=mask).fit(X).schema_]
    assert kinds == ["gaussian", "gaussian", "given gaussian", "gaussian"]


def test_a_callable_may_return_flags_by_column():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"real": rng.normal(size=N), "whole": rng.integers(-50, 50, size=N)})
    X["small"] = rng.integers(0, 200, size=N).astype(np.uint8)
    vae = quick(likelihood=Mixed([("poisson", lambda X: X.dtypes == np.uint8)], numbers="gaussian")).fit(X)
    assert [c.kind for c in vae.schema_] == ["gaussian", "gaussian", "poisson"]


def test_a_mask_without_flags_selects_nothing():
    X = np.random.default_rng(0).normal(size=(N, 2))
    assert [c.kind for c in quick(condition_on=np.zeros(2, dtype=bool)).fit(X).schema_] == ["gaussian", "gaussian"]


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ([True, False], r"has a mask of 2 flag\(s\), and X has 3 feature\(s\)"),
        (np.ones(4, dtype=bool), r"has a mask of 4 flag\(s\)"),
        (True, r"is the single flag True, and X has 3 feature\(s\)"),
        ([True, 0], r"names column\(s\) that X does not have: \[True\]"),
        (np.eye(3, dtype=bool), r"names column\(s\) that X does not have"),
    ],
)
def test_other_flags_are_refused(mask, match):
    X = np.random.default_rng(0).normal(size=(N, 3))
    with pytest.raises(ValueError, match="Mixed " + match):
        quick(likelihood=Mixed([("student_t", mask)])).fit(X)
    with pytest.raises(ValueError, match="condition_on " + match):
        quick(condition_on=mask).fit(X)


@pytest.mark.parametrize("kind", [np.array, pd.Series, list])
def test_settings_are_equal_where_their_masks_are(kind):
    def of(*flags, name="laplace", **more):
        return Mixed([(name, kind(flags))], **more)

    assert of(True, False, True) == of(True, False, True) == clone(of(True, False, True))
    others = [of(True, True, True), of(True, False), of(True, False, True, name="beta"), of(True, False, True, numbers="beta")]
    assert all(
        of(True, False, True) != other for other in [*others, Mixed([("laplace", "x")]), Mixed({"x": "laplace"}), Mixed()]
    )


def test_a_mask_is_saved_and_training_goes_on_with_it(tmp_path):
    X = np.random.default_rng(0).normal(size=(N, 4))
    vae = quick(condition_on=MASK, likelihood=Mixed([("student_t", MASK)]), warm_start=True).fit(X)
    vae.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae")
    assert again.schema_ == vae.schema_ and clone(again).fit(X).score(X) == vae.score(X)
    assert again.fit(X).score(X) == vae.fit(X).score(X)


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (range(3), np.int64(1)),
        ([10, 11, 12], np.int32(11)),
        (pd.MultiIndex.from_tuples([("a", 0), ("a", 1), ("b", 0)]), ("a", 1)),
        ([0.5, 1.5, 2.5], 1.5),
        ([pd.Timestamp(2024, 1, day) for day in (1, 2, 3)], pd.Timestamp(2024, 1, 2)),
    ],
)
def test_names_of_columns_are_of_any_type(names, one):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(N, 3)), columns=names)
    for columns in ({one: "student_t"}, [("student_t", one)], [("student_t", [one])], [("student_t", lambda X: one)]):
        assert [c.kind for c in quick(likelihood=Mixed(columns)).fit(X).schema_] == ["gaussian", "student_t", "gaussian"]
    for condition_on in [one] * (not isinstance(one, (float, pd.Timestamp))) + [[one]]:
        kinds = [c.kind for c in quick(condition_on=condition_on).fit(X).schema_]
        assert kinds == ["gaussian", "given gaussian", "gaussian"]


def test_columns_may_be_named_by_flags():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(N, 2)), columns=[False, True])
    assert [c.kind for c in quick(likelihood=Mixed({True: "student_t"})).fit(X).schema_] == ["gaussian", "student_t"]


def test_a_tuple_that_is_no_column_is_a_list_of_columns():
    X = np.random.default_rng(0).normal(size=(N, 3))
    assert [c.kind for c in quick(likelihood=Mixed({(0, 2): "laplace"})).fit(X).schema_] == ["laplace", "gaussian", "laplace"]
    with pytest.raises(ValueError, match=r"does not have: \[2\.5\]"):
        quick(likelihood=Mixed({2.5: "laplace"})).fit(X)
    with pytest.raises(ValueError, match=r"does not have: \[\[0\]\]"):
        quick(likelihood=Mixed([("laplace", [[0]])])).fit(X)
