"""Learning-rate schedules: warm-up, the way down, and their ends."""

import math
from itertools import pairwise

import pytest

from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import TrainConfig
from eupmim_dist.errors import UserError
from eupmim_dist.optim.schedule import rate_factor


def factors(schedule: str, warmup_steps: int, max_steps: int) -> list[float]:
    config = TrainConfig(schedule=schedule, warmup_steps=warmup_steps, max_steps=max_steps)
    return [rate_factor(config, step) for step in range(max_steps)]


def test_constant_without_warm_up_is_one() -> None:
    assert factors("constant", 0, 5) == [1.0] * 5
    assert rate_factor(TrainConfig(), 10**9) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_linearly_to_the_whole_rate(schedule: str) -> None:
    found = factors(schedule, 4, 10)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]  # the first step moves already
    assert found[4] == 1.0  # and the way down starts at the whole rate


def test_constant_stays_after_the_warm_up() -> None:
    assert factors("constant", 4, 10)[3:] == [1.0] * 7


def test_linear_falls_evenly_and_reaches_zero_after_the_last_step() -> None:
    assert factors("linear", 0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert factors("linear", 2, 7) == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_a_wave() -> None:
    expected = [0.5 * (1.0 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert factors("cosine", 0, 8) == pytest.approx(expected)
    assert factors("cosine", 3, 11)[3:] == pytest.approx(expected)
    assert factors("cosine", 3, 11)[7] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_end(schedule: str, warmup_steps: int) -> None:
    config = TrainConfig(schedule=schedule, warmup_steps=warmup_steps, max_steps=50)
    found = factors(schedule, warmup_steps, 50)
    falling = found[max(warmup_steps, 1) - 1 :]
    assert all(later <= earlier for earlier, later in pairwise(falling))
    assert 0.0 < found[-1] < 0.05  # the last step still moves
    assert rate_factor(config, 50) == pytest.approx(0.0, abs=1e-12)
    assert rate_factor(config, 60) == pytest.approx(0.0, abs=1e-12)  # never negative, nor rising again


def test_a_single_step() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert factors(schedule, 0, 1) == [1.0]


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_a_warm_up_without_an_end_is_refused(warmup_steps: int) -> None:
    with pytest.raises(UserError, match=r"warmup_steps .* must be fewer than max_steps 10"):
        parse_config({"train": {"warmup_steps": warmup_steps, "max_steps": 10}}, "test")
