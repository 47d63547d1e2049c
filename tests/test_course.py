"""The course of one model: what it asks for, when its steps shorten, when it ends, and how it goes back."""

import math
from dataclasses import replace

import pytest
import torch
from test_engine import make_trainee

from skvae._course import EPOCH, MEASURE, MEASURED_EPOCH, DivergenceError, Progress, course, divergence, learning_rate
from skvae._engine import assemble, train


def follow(trainee, values):
    """Answer every measurement by the next of `values`; return what the course asked for."""
    assemble([trainee])
    steps, values, wishes, answer = course(trainee), list(values), [], None
    while True:
        try:
            wishes.append(steps.send(answer))
        except StopIteration:
            return wishes
        answer = (values.pop(0) if wishes[-1] == MEASURE else 0.0,) * 2


def test_a_course_asks_for_epochs_and_measurements_as_planned():
    wishes = follow(make_trainee(max_iter=5), [1.0, 2.0, 3.0, 4.0])
    two_epochs = [EPOCH, MEASURED_EPOCH, MEASURE]
    assert wishes == [MEASURE, *two_epochs, *two_epochs, MEASURED_EPOCH, MEASURE]


def test_steps_shorten_from_the_best_parameters_where_nothing_rises_and_at_last_the_course_ends():
    trainee = make_trainee(max_iter=10**6, learning_rate="adaptive")
    trainee.plan = replace(trainee.plan, n_iter_no_change=2)
    rates = []
    trainee.callbacks = [lambda progress, state: rates.append(trainee.learning_rate())]
    follow(trainee, [0.0, 1.0, *[0.5] * 100])
    progress = trainee.progress
    assert progress.converged and progress.best_value == 1.0
    assert progress.epoch == 2 + 4 * 2 * 2  # one rise, then four times two stale measurements, every two epochs
    assert [rate for i, rate in enumerate(rates) if i == 0 or rate != rates[i - 1]] == [0.01 / 4**i for i in range(4)]


def test_steps_shorten_in_time_where_everything_rises_to_the_end():
    trainee = make_trainee(max_iter=16, learning_rate="adaptive")
    trainee.plan = replace(trainee.plan, turns=(8, 12, 14))
    rates = []
    trainee.callbacks = [lambda progress, state: rates.append(trainee.learning_rate())]
    follow(trainee, range(100))
    assert not trainee.progress.converged and trainee.progress.best_value == 8
    assert [rates.count(0.01 / 4**i) for i in range(4)] == [7, 4, 2, 3]  # after each epoch, of the next one


def test_a_rise_below_the_tolerance_is_kept_but_counts_as_none():
    trainee = make_trainee(max_iter=10**6, tol=0.5)
    trainee.plan = replace(trainee.plan, n_iter_no_change=3)
    follow(trainee, [0.0, 1.0, 1.2, 1.4, 1.45, *[0.0] * 10])
    assert trainee.progress.best_value == 1.45 and trainee.progress.epoch == 2 * 4


def test_a_course_that_leaves_the_finite_numbers_goes_back_with_half_the_steps_and_gives_up_after_three_times():
    trainee = make_trainee(max_iter=100)
    with pytest.raises(DivergenceError, match="divided by 8"):
        follow(trainee, [0.0, 1.0, *[math.nan] * 10])
    assert trainee.progress.n_rollbacks == 3 and trainee.progress.learning_rate_factor == 1 / 8


def test_a_course_that_has_ended_after_it_went_back_can_be_asked_again():
    trainee = make_trainee(max_iter=100, tol=0.5)
    trainee.plan = replace(trainee.plan, n_iter_no_change=2)
    follow(trainee, [0.0, math.nan, *[1.0] * 50])
    assert trainee.progress.converged and trainee.progress.n_rollbacks == 1
    assert follow(trainee, []) == []


def test_a_restart_point_is_a_copy():
    trainee = make_trainee()
    train([trainee])
    restart, (params, _, slots) = trainee.restart, trainee.state.member(trainee.row)
    before = params.clone(), slots["mean"].clone(), list(trainee.progress.history["epoch"])
    params.fill_(9.0)
    slots["mean"].fill_(9.0)
    trainee.progress.history["epoch"].append(1.0)
    restart.restore(trainee)
    assert torch.equal(params, before[0]) and torch.equal(slots["mean"], before[1])
    assert restart.kept[3].history["epoch"] == before[2]


def test_the_error_of_a_divergence_says_what_was_tried():
    assert "learning rate had been divided by 8" in str(divergence(Progress(epoch=3, n_rollbacks=3)))


def test_a_first_measurement_that_is_no_number_is_passed_over():
    trainee = make_trainee(max_iter=6)
    trainee.plan = replace(trainee.plan, n_iter_no_change=1)
    follow(trainee, [math.nan, 1.0, 2.0, 3.0])
    progress = trainee.progress
    assert progress.best_value == progress.reference_value == 3.0 and progress.n_reductions == 0 and not progress.converged
    assert progress.history["epoch"] == [2, 4, 6]


def test_a_schedule_runs_from_the_epoch_at_which_training_on_the_data_began():
    plan = make_trainee(max_iter=30, learning_rate="cosine").plan
    fresh = [learning_rate(replace(plan, max_iter=20), Progress(), epoch) for epoch in range(20)]
    later = [learning_rate(plan, Progress(first=10), epoch) for epoch in range(10, 30)]
    assert later == fresh and later[0] == 0.01
