"""A comparison on two ranks against one rank: trained there, judged there, and refused alike."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from eupmim_dist import UserError, compare
from tests.distributed.spawn import run_ranks
from tests.stores import small_store

SETTINGS: dict[str, Any] = {
    "task": {"history_length": 6},
    "model": {"name": "comirec_dr", "dim": 8},
    "objective": {"num_negatives": 5},
    "tables": {"replicate_below": 0},
    "train": {"global_batch_size": 8, "learning_rate": 0.01, "max_steps": 4, "threads": 1},
    "evaluation": {"every": 2, "metric": "recall@5", "top_n": [5]},
}
TIMED = ["train_seconds", "users_per_second"]


def compared(root: Path, out: str) -> pl.DataFrame:
    """Trains, then again with what is there, as the same command does."""
    for _ in range(2):
        found = compare({"mine": SETTINGS}, data=root / "store", baselines="ease", seeds=1, top_n=5, out=root / out)
    with pytest.raises(UserError, match=r"mine seed 1: model\.dim: 16"):
        compare({"mine": SETTINGS}, data=root / "store", seeds=1, overrides=["model.dim=16"], out=root / out)
    return found.frame().drop(TIMED)


def test_a_comparison_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    alone = compared(tmp_path, "alone")
    for rank in run_ranks(2, compared, tmp_path, "together"):
        assert_frame_equal(rank, alone, rel_tol=1e-4)
