"""The number of threads on several ranks: rank 0's times decide, ranks may communicate meanwhile, nothing changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eupmim_dist.train import threads
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.distributed import test_invariance as invariance
from tests.distributed.spawn import run_ranks
from tests.stores import small_store


def settled(run: Run) -> tuple[str | None, int]:
    """Has a run choose of two threads, of which rank 0 finds one faster, the others two; it measures for real."""

    def seconds(work: Callable[[], None]) -> float:
        work()
        return 0.01 * (torch.get_num_threads() if run.world.is_main else 3 - torch.get_num_threads())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(threads.CHOOSE_VARIABLE, "1")
        patch.setattr(threads, "of_each_rank", lambda local_size: 2)
        patch.setattr(threads, "MOST_ROUNDS", 2)
        patch.setattr(threads, "_seconds", seconds)
        torch.set_num_threads(2)
        told = threads.settle_threads(run)
    return told, torch.get_num_threads()


def train(values: dict[str, Any], measure: bool) -> dict[str, Any]:
    run = invariance.start(values)
    told = settled(run) if measure else None
    outcomes = [train_step(run, step, prepare_step(run, step)) for step in range(5)]
    losses = [float(torch.stack(list(outcome.shares.values())).sum()) for outcome in outcomes]
    return {"told": told, "losses": losses, **invariance.weights(run)}


def measured_and_not(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [train(values, measure) for measure in (True, False)]


@pytest.mark.parametrize("objective", ["sampled_softmax", "full_softmax"])
@pytest.mark.parametrize("size", [1, 3])
def test_ranks_have_the_number_of_rank_0_and_train_as_if_they_had_not_measured(
    tmp_path: Path, size: int, objective: str
) -> None:
    small_store(tmp_path / "store", num_users=33)
    values = invariance.settings(tmp_path / "store", "exact", {**invariance.COMIREC, "dim": 8}, 20)
    values["objective"] = {"name": objective}
    for found, plain in run_ranks(size, measured_and_not, values):
        line, number = found.pop("told")
        plain.pop("told")
        assert number == 1
        assert line.startswith("threads 1 of 2: 10.0 ms forward and backward")
        assert found.keys() == plain.keys()
        assert found["losses"] == plain["losses"]
        for name, value in plain.items():
            if name != "losses":
                of_table = isinstance(value, tuple)
                assert torch.equal(found[name][1], value[1]) if of_table else torch.equal(found[name], value), name
