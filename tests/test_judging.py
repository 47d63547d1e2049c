"""Measurements by which training is judged: one by one, side by side, and against the definition."""

from dataclasses import replace

import pytest
import torch
from test_engine import make_trainee

from skvae._engine import assemble
from skvae._judging import Judge, is_elbo, judged_alone, verdict
from skvae.objectives import ELBO, IWAE, BetaTCVAE, InfoVAE


class Shifted(ELBO):
    """An objective of a user's own, which is not the bound."""

    def __call__(self, model, params, batch, noise):
        return super().__call__(model, params, batch, noise) - 1.0


def with_objective(objective, **settings):
    trainee = make_trainee(**settings)
    trainee.problem = replace(trainee.problem, objective=objective)
    return trainee


@pytest.mark.parametrize("objective", [ELBO(), ELBO(beta=3.0), ELBO(kl="monte_carlo"), IWAE(4)], ids=repr)
def test_models_side_by_side_are_judged_as_they_are_alone(objective):
    """Of other widths, and of other numbers of rows, some of them of no weight."""
    first, second = with_objective(objective, n=700), with_objective(objective, n=50, seed=3)
    weight = torch.ones(50, dtype=torch.float64)
    weight[::3] = 0.0
    second.watched = replace(second.watched, weight=weight)
    trainees = assemble([first, second])
    values, bounds = Judge(trainees, first.state).measure(trainees)
    for trainee, value, bound in zip(trainees, values, bounds, strict=True):
        torch.testing.assert_close((value, bound), judged_alone(trainee), rtol=1e-5, atol=1e-5)


def test_a_model_is_judged_by_the_mean_of_the_bound_over_its_rows():
    trainee = make_trainee()
    assemble([trainee])
    model = trainee.problem.model
    rows = ELBO().bound(model, model.unpack(trainee.own(trainee.result())), trainee.watched, trainee.noise)
    assert judged_alone(trainee) == pytest.approx((float(rows.mean()),) * 2, rel=1e-5)


def test_no_row_counts_as_farther_off_than_most_are():
    values = -torch.arange(1.0, 9.0, dtype=torch.float64)[None].repeat(2, 1)
    values[1, 3] = -1e6
    plain, limited = verdict(values, torch.ones_like(values)).tolist()
    assert plain == values[0].mean()
    median, quartile = -6.0, -8.0  # the smallest values up to which half and a quarter of the rows lie
    expected = values[1].clone()
    expected[3] = median - 20 * (median - quartile)
    assert limited == expected.mean()


def test_verdicts_count_repetitions_and_leave_rows_without_weight_out():
    values = torch.tensor([[-1.0, -2.0, -5e3, -3.0, -9e9]], dtype=torch.float64)
    weight = torch.tensor([[3.0, 2.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    repeated = values[0, :4].repeat_interleave(weight[0, :4].long())[None]
    torch.testing.assert_close(verdict(values, weight), verdict(repeated, torch.ones_like(repeated)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_verdicts_do_not_hide_what_is_not_finite(value):
    values = torch.zeros((1, 9), dtype=torch.float64)
    values[0, 4] = value
    assert not verdict(values, torch.ones_like(values)).isfinite().any()


def test_rows_that_are_all_alike_but_for_some_are_judged_by_all():
    values = torch.tensor([[-1.0] * 9 + [-8.0]], dtype=torch.float64)
    assert verdict(values, torch.ones_like(values)).item() == pytest.approx(-1.7)


@pytest.mark.parametrize(("objective", "expected"), [
    (ELBO(), True), (ELBO(n_samples=7), True), (ELBO(warmup=5), True), (ELBO(beta=2.0), False), (ELBO(free_bits=0.1), False),
    (IWAE(3), False), (InfoVAE(), False), (BetaTCVAE(), False), (Shifted(), False),
])  # fmt: skip
def test_what_counts_as_the_bound_itself(objective, expected):
    assert is_elbo(objective) is expected
