"""Rubin's rules: their formulas, and how often intervals hold the mean."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from skvae.evaluation import rubin


def test_pooled_estimates_follow_the_formulas():
    pooled = rubin([1.0, 1.2, 1.1], [0.04, 0.05, 0.03])
    assert pooled.estimate == pytest.approx(1.1) and pooled.within == pytest.approx(0.04)
    assert pooled.between == pytest.approx(0.01) and pooled.total == pytest.approx(0.04 + 4 / 3 * 0.01)
    assert pooled.degrees_of_freedom == pytest.approx(2 / 0.25**2)
    r = 4 / 3 * 0.01 / 0.04
    assert pooled.fraction_missing == pytest.approx((r + 2 / 35) / (r + 1))  # Rubin, 1987, equation 3.1.10
    few = rubin([1.0, 1.2, 1.1], [0.04, 0.05, 0.03], complete_degrees_of_freedom=20)
    assert few.degrees_of_freedom == pytest.approx(1 / (1 / 32 + 1 / (21 / 23 * 20 * 0.75)))


def test_equal_estimates_lose_nothing():
    pooled = rubin([2.0, 2.0], [0.5, 0.5], complete_degrees_of_freedom=9)
    assert pooled.total == 0.5 and pooled.between == 0 and pooled.fraction_missing == 0
    assert pooled.degrees_of_freedom == pytest.approx(10 / 12 * 9)
    assert rubin([2.0, 2.0], [0.5, 0.5]).degrees_of_freedom == np.inf


def test_pooled_arrays_are_pooled_one_by_one():
    rng = np.random.default_rng(0)
    estimates, variances = rng.normal(size=(4, 2, 3)), rng.random((4, 2, 3))
    pooled, one = rubin(estimates, variances), rubin(estimates[:, 1, 2], variances[:, 1, 2])
    for values, value in zip(pooled, one):
        assert values.shape == (2, 3) and values[1, 2] == pytest.approx(value)


@pytest.mark.slow
def test_pooled_intervals_hold_the_mean_as_often_as_they_say():
    """The mean of a column of which half the values are missing, imputed by the regression on another, redrawn each time."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(2000):
        x = rng.normal(size=60)
        y = x + rng.normal(size=60)
        gone = rng.random(60) < 0.5
        design = np.column_stack([np.ones(60), x])
        known = design[~gone]
        inverse = np.linalg.inv(known.T @ known)
        best = inverse @ known.T @ y[~gone]
        residual = ((y[~gone] - known @ best) ** 2).sum()
        tables = []
        for _ in range(10):  # the regression's parameters are drawn too, so the imputations are proper
            variance = residual / rng.chisquare(len(known) - 2)
            drawn = design @ rng.multivariate_normal(best, variance * inverse) + np.sqrt(variance) * rng.normal(size=60)
            tables.append(np.where(gone, drawn, y))
        pooled = rubin([t.mean() for t in tables], [t.var(ddof=1) / 60 for t in tables], complete_degrees_of_freedom=59)
        half = student_t.ppf(0.975, pooled.degrees_of_freedom) * np.sqrt(pooled.total)
        inside.append(abs(pooled.estimate) < half)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0], [1.0]), "two or more"),
        (([1.0, 2.0], [1.0]), "same shape"),
        (([1.0, np.nan], [1.0, 1.0]), "finite"),
        (([1.0, 2.0], [1.0, -1.0]), "not negative"),
    ],
)
def test_imputations_that_cannot_be_pooled_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rubin(*arguments)
    with pytest.raises(ValueError, match="complete_degrees_of_freedom"):
        rubin([1.0, 2.0], [1.0, 1.0], complete_degrees_of_freedom=0)
