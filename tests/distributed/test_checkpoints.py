"""A checkpoint saved at any number of ranks is loaded at any other, bit for bit, and training goes on alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint import save as saving
from eupmim_dist.checkpoint.layout import complete_steps, resolve, step_dir
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.blocks import block_range
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.tables import create_shard
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import train_step
from tests.distributed.spawn import run_ranks
from tests.stores import small_store

BEFORE, AFTER = 3, 3  # steps before the checkpoint and after it
SAVED_AT, LOADED_AT = (1, 2, 3), (1, 2, 3, 4)
TINY = TableSpec("tiny", 2, 4)
"""A table that no model has, with fewer rows than there are ranks."""


def start(store: Path, optimizer: str) -> Run:
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    values = {
        "data": {"dir": str(store), "history_length": 6},
        "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1, "dropout": 0.0, "attention_dropout": 0.0},
        "tables": {"optimizer": optimizer},
        "train": {"global_batch_size": 7, "num_negatives": 5, "learning_rate": 0.01, "l2": 1e-3},
        "evaluation": {"top_n": [5]},
    }
    config = parse_config(values, source="test")
    run = assemble_run(config, world, open_store(config.data.dir, world))
    rows = block_range(TINY.rows, world.rank, world.size)
    run.tables.shards["tiny"] = create_shard(TINY, *rows, config.seed, world.device)
    run.table_optimizer = TABLE_OPTIMIZERS[optimizer](run.tables.shards, config.train.learning_rate, config.train.l2)
    run.dense.module.train()
    return run


def losses(run: Run, steps: int) -> Tensor:
    """Of the next steps, the global ones."""
    found = []
    for _ in range(steps):
        found.append(torch.stack(list(train_step(run, run.progress.step).values())).sum())
        run.progress.step += 1
    total = torch.stack(found)
    if run.world.size > 1:
        dist.all_reduce(total)
    return total


def rows_of(run: Run) -> dict[str, Tensor]:
    """This rank's rows of the tables and of their optimizer's state."""
    return {
        **{name: shard.weight for name, shard in run.tables.shards.items()},
        **{
            f"{name}.{key}": value
            for name, states in run.table_optimizer.row_state.items()
            for key, value in states.items()
        },
    }


def dense_of(run: Run) -> dict[str, Tensor]:
    return {**{name: p.detach() for name, p in run.model.named_parameters()}, **run.dense.optimizer_state()}


def snapshot(run: Run) -> dict[str, Any]:
    return {
        "rows": {name: tensor.clone() for name, tensor in rows_of(run).items()},
        "dense": {name: tensor.clone() for name, tensor in dense_of(run).items()},
        "progress": run.progress.as_dict(),
        "num_steps": run.table_optimizer.num_steps,
    }


def train_and_save(store: Path, place: Path) -> dict[str, Any]:
    """For each table optimizer: the state that was saved, and the losses of the steps after that."""
    found = {}
    for optimizer in TABLE_OPTIMIZERS:
        run = start(store, optimizer)
        losses(run, BEFORE)
        first = run.tables.shards["tiny"].start
        for name, tensor in rows_of(run).items():
            if name.startswith("tiny"):
                for row in range(len(tensor)):
                    tensor[row] = first + row + 1.0
        run.progress.best_value, run.progress.best_step, run.progress.evaluations_since_best = 0.25, 2, 1
        save_checkpoint(run, place / f"{optimizer}-{run.world.size}")
        found[optimizer] = {"saved": snapshot(run), "losses": losses(run, AFTER)}
    return found


def load_and_train(store: Path, place: Path) -> dict[tuple[str, int], Any]:
    """For each table optimizer and number of ranks it was saved at: the state loaded, and the losses after that."""
    found = {}
    for optimizer in TABLE_OPTIMIZERS:
        for size in SAVED_AT:
            run = start(store, optimizer)
            with torch.no_grad():
                for tensor in [*rows_of(run).values(), *dense_of(run).values()]:
                    tensor.fill_(-7.0)  # nothing of it may be left
            load_training(run, resolve(place / f"{optimizer}-{size}", "last"))
            found[optimizer, size] = {"loaded": snapshot(run), "losses": losses(run, AFTER)}
    return found


def at_ranks(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    return [fn(*args)] if size == 1 else run_ranks(size, fn, *args, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=33).path


@pytest.fixture(scope="module")
def saved(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[Any]]]:
    """Where checkpoints lie, and by number of ranks what each rank saved."""
    place = tmp_path_factory.mktemp("checkpoints")
    return place, {size: at_ranks(size, train_and_save, store, place) for size in SAVED_AT}


def joined(ranks: list[Any], what: str) -> dict[str, Tensor]:
    return {name: torch.cat([rank[what]["rows"][name] for rank in ranks]) for name in ranks[0][what]["rows"]}


@pytest.mark.parametrize("size", LOADED_AT)
def test_any_number_of_ranks_loads_what_any_other_saved(
    store: Path, saved: tuple[Path, dict[int, list[Any]]], size: int
) -> None:
    place, by_size = saved
    loaded = at_ranks(size, load_and_train, store, place)
    for optimizer in TABLE_OPTIMIZERS:
        for saved_at in SAVED_AT:
            case = f"{optimizer}, saved at {saved_at}"
            before = [rank[optimizer] for rank in by_size[saved_at]]
            after = [rank[optimizer, saved_at] for rank in loaded]
            whole, found = joined(before, "saved"), joined(after, "loaded")
            assert whole.keys() == found.keys()
            assert whole["item"].shape == (31, 8)
            assert whole["tiny"].shape == (2, 4)
            for name, tensor in whole.items():
                assert torch.equal(found[name], tensor), f"{case}: {name}"
            for rank in after:
                for name, tensor in before[0]["saved"]["dense"].items():
                    assert torch.equal(rank["loaded"]["dense"][name], tensor), f"{case}: {name}"
                for key in ("progress", "num_steps"):
                    assert rank["loaded"][key] == before[0]["saved"][key], case
                torch.testing.assert_close(
                    rank["losses"], before[0]["losses"], rtol=1e-5, atol=0.0, msg=lambda m, c=case: f"{c}: {m}"
                )


def test_progress_is_saved(saved: tuple[Path, dict[int, list[Any]]]) -> None:
    place, by_size = saved
    for size, ranks in by_size.items():
        for optimizer, found in ranks[0].items():
            assert found["saved"]["progress"] == {
                "step": BEFORE,
                "best_value": 0.25,
                "best_step": 2,
                "evaluations_since_best": 1,
                "stopped": False,
            }
            assert found["saved"]["num_steps"] == BEFORE
            [path] = complete_steps(place / f"{optimizer}-{size}")
            manifest = json.loads((path / "manifest.json").read_text())
            assert len(manifest["files"]) == size  # a file for each rank, no pickle among them
            assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def fail_to_write(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def fails(run: Run, place: Path) -> str:
    try:
        save_checkpoint(run, place)
    except BaseException as error:
        return f"{isinstance(error, Exception)} {error}"
    return "saved"


def save_with_failures(store: Path, place: Path) -> dict[str, Any]:
    """What saving says on this rank where the last rank cannot write its shard, and where rank 0 no manifest."""
    run = start(store, "exact")
    world = run.world
    losses(run, 1)
    save_checkpoint(run, place)
    losses(run, 1)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == world.size - 1:
            patch.setattr(saving.HuggingFaceStorageWriter, "write_data", fail_to_write)
        found["shard"] = fails(run, place)
    found["after shard"] = sorted(path.name for path in place.glob("checkpoints/step-*"))
    with pytest.MonkeyPatch.context() as patch:
        if world.is_main:
            patch.setattr(saving, "write_manifest", fail_to_write)
        found["manifest"] = fails(run, place)
    found["after manifest"] = sorted(path.name for path in place.glob("checkpoints/step-*"))
    if world.size > 1:
        dist.barrier()
    save_checkpoint(run, place)  # nothing of the failed ones is in the way
    found["in the end"] = sorted(path.name for path in (place / "checkpoints").iterdir())
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_a_failed_save_leaves_the_earlier_checkpoint_and_fails_on_all_ranks(
    store: Path, tmp_path: Path, size: int
) -> None:
    for found in at_ranks(size, save_with_failures, store, tmp_path / "run"):
        for what in ("shard", "manifest"):
            assert found[what].startswith("True "), found[what]  # an Exception, which the command line reports
            assert "No space left on device" in found[what]
            assert found[f"after {what}"] == ["step-000000001"]
        assert found["in the end"] == ["step-000000002"]
    assert resolve(tmp_path / "run").step == 2


def leave_before_saving(store: Path, place: Path) -> None:
    run = start(store, "exact")
    losses(run, 1)
    save_checkpoint(run, place)
    losses(run, 1)
    if run.world.rank == 1:
        saving.write_tensors = fail_to_write  # type: ignore[assignment]
    save_checkpoint(run, place)


def test_a_rank_that_leaves_while_saving_does_not_hang_the_others(store: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure:
        run_ranks(2, leave_before_saving, store, tmp_path / "run")
    rank_0, rank_1 = str(failure.value).split("\nrank 1: ")
    assert "RankFailed: rank 1: OSError: [Errno 28] No space left on device" in rank_0
    assert "OSError: [Errno 28] No space left on device" in rank_1
    assert complete_steps(tmp_path / "run") == [step_dir(tmp_path / "run", 1)]
    assert not step_dir(tmp_path / "run", 2).exists()
