"""Shared numbers: what they are called after is what they are."""

import pytest
import torch
from scipy.stats import norm

from skvae._numbers import HALF_LOG_2PI, VECTOR, rounded_up


def test_the_constant_is_that_of_the_normal_density():
    assert pytest.approx(norm.logpdf(0.0), rel=1e-15) == -HALF_LOG_2PI


@pytest.mark.parametrize(("n", "unit", "expected"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5)])
def test_rounding_up_gives_the_next_multiple(n, unit, expected):
    assert rounded_up(n, unit) == expected


@pytest.mark.parametrize("function", [torch.exp, torch.log1p, torch.tanh, torch.nn.functional.silu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_vectors_do_not_depend_on_what_is_beside_them(function, dtype):
    x = torch.linspace(0.01, 3, 64 * VECTOR, dtype=dtype)
    whole = function(x)
    for n in (1, 2, 3, 7):
        assert torch.equal(function(x[: n * VECTOR].clone()), whole[: n * VECTOR])
