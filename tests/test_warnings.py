"""Warnings point at the line of the user."""

import warnings

import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae._warnings import warn


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_a_fit_that_has_not_converged_says_so_where_it_was_called(method):
    with pytest.warns(ConvergenceWarning, match="still rising") as told:
        getattr(VAETransformer(2, max_iter=1, random_state=0), method)(load_iris().data)
    assert [one.filename for one in told] == [__file__]


def test_outside_of_the_package_it_is_the_line_itself():
    with pytest.warns(UserWarning, match="look here") as told:
        warn("look here")
    assert told[0].filename == __file__


def test_without_a_caller_outside_it_warns_all_the_same():
    space = {"__name__": "nobody", "warn": warn}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(compile("warn('nobody asked')", "nowhere", "exec"), space)  # noqa: S102
    assert told[0].filename == "nowhere"
