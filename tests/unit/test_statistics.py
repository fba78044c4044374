"""Intervals and tests over users, against closed forms and what is known of them."""

import itertools

import numpy as np
import pytest

from eupmim_dist.evaluation import statistics
from eupmim_dist.evaluation.statistics import bootstrap_interval, bootstrap_intervals, holm, paired_p_value


def test_an_interval_is_that_of_the_normal_distribution_where_there_are_many_users() -> None:
    values = np.random.default_rng(1).exponential(2.0, 2000)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - error, abs=error / 10)
    assert high == pytest.approx(values.mean() + error, abs=error / 10)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    held = sum(
        low <= 0.3 <= high
        for low, high in (
            bootstrap_interval((random.random(200) < 0.3).astype(float), draws=400, seed=n) for n in range(300)
        )
    )
    assert 0.90 <= held / 300 <= 0.985


def test_a_p_value_is_that_of_all_signs() -> None:
    random = np.random.default_rng(3)
    one, other = random.normal(0.9, 1.0, 12), random.normal(0.0, 1.0, 12)
    difference = one - other
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=12)]
    exact = np.mean([value >= abs(difference.sum()) * (1 - 1e-12) for value in sums])
    assert 0.005 < exact < 0.5
    assert paired_p_value(one, other) == pytest.approx(exact, abs=0.02)
    assert paired_p_value(other, one) == pytest.approx(exact, abs=0.02)


def test_equal_values_differ_by_chance_alone_and_very_different_ones_do_not() -> None:
    values = np.random.default_rng(4).random(100)
    assert paired_p_value(values, values) == 1.0
    assert paired_p_value(values + 1, values) == pytest.approx(1 / (statistics.DRAWS + 1))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(50)
    whole = bootstrap_interval(values), paired_p_value(values, values[::-1] + 0.05)
    monkeypatch.setattr(statistics, "BLOCK_NUMBERS", 333)
    assert (bootstrap_interval(values), paired_p_value(values, values[::-1] + 0.05)) == whole


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_intervals_of_several_columns_are_those_of_each() -> None:
    values = np.random.default_rng(6).random((60, 3))
    assert bootstrap_intervals(values) == [pytest.approx(bootstrap_interval(column)) for column in values.T]
