"""A checkpoint saved at any number of ranks is loaded at any other, bit for bit, and training goes on alike."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint import load, writer
from eupmim_dist.checkpoint import save as saving
from eupmim_dist.checkpoint.layout import TENSOR_FILE, complete_steps, resolve, step_dir
from eupmim_dist.checkpoint.load import load_model, load_training
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.config.load import parse_config
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.models.eupmim.model import EUPMiM
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.distributed.spawn import run_ranks
from tests.stores import small_store

BEFORE, AFTER = 2, 2  # steps before the checkpoint and after it
SHARDED, MIXED, REPLICATED = 0, 32, 2048  # tables.replicate_below: 31 item rows, 33 users
Place = tuple[int, int]  # number of ranks, tables.replicate_below
EVERY = {1: SHARDED, 2: SHARDED, 3: SHARDED, 4: SHARDED}.items()
"""Where every optimizer's state is saved; at more places that of some."""
SOME = ("exact", "rowwise_adagrad")  # state as wide as the rows, and a number per row
SAVED_AT: list[Place] = [*EVERY, (2, REPLICATED), (3, MIXED)]
LOADED_AT: list[Place] = [*EVERY, (2, REPLICATED), (3, REPLICATED), (4, MIXED)]
EXTRA = [TableSpec("tiny", 2, 4), TableSpec("little", 3, 8)]
"""Tables that no model has, with fewer rows than there are ranks: one alone in its width, one beside the others."""


def saved_at(optimizer: str) -> list[Place]:
    return [place for place in SAVED_AT if place in EVERY or optimizer in SOME]


def loaded_at(place: Place) -> list[str]:
    return list(TABLE_OPTIMIZERS if place[1] == SHARDED else SOME)


def start(store: Path, optimizer: str, replicate_below: int = SHARDED) -> Run:
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    values = {
        "data": {"dir": str(store)},
        "task": {"history_length": 6},
        "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1, "dropout": 0.0, "attention_dropout": 0.0},
        "tables": {"optimizer": optimizer, "replicate_below": replicate_below},
        "objective": {"num_negatives": 5},
        "train": {"global_batch_size": 7, "learning_rate": 0.01, "l2": 1e-3},
        "evaluation": {"top_n": [5]},
    }
    config = parse_config(values, source="test")
    tables_of = EUPMiM.tables
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EUPMiM, "tables", lambda model: [*tables_of(model), *EXTRA])
        run = assemble_run(config, world, open_store(config.data.dir, world))
    replicated = {name for name, shard in run.tables.shards.items() if shard.replicated}
    small = {SHARDED: set(), MIXED: {"item", "tiny", "little"}, REPLICATED: {"item", "user", "tiny", "little"}}
    assert replicated == (small[replicate_below] if world.size > 1 else set())
    run.dense.module.train()
    return run


def losses(run: Run, steps: int) -> Tensor:
    """Of the next steps, the global ones."""
    found = []
    for _ in range(steps):
        outcome = train_step(run, run.progress.step, prepare_step(run, run.progress.step))
        found.append(torch.stack(list(outcome.shares.values())).sum())
        run.progress.step += 1
    total = torch.stack(found)
    if run.world.size > 1:
        dist.all_reduce(total)
    return total


def rows_of(run: Run) -> dict[str, Tensor]:
    """This rank's rows of the tables and of their optimizer's state, in their stored order."""
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
    replicated = {name for name, shard in run.tables.shards.items() if shard.replicated}
    return {
        "rows": {name: (tensor.clone(), name.partition(".")[0] in replicated) for name, tensor in rows_of(run).items()},
        "dense": {name: tensor.clone() for name, tensor in dense_of(run).items()},
        "progress": run.progress.as_dict(),
        "num_steps": float(run.table_optimizer.num_steps),
    }


def checkpoints(place: Path, optimizer: str, size: int, replicate_below: int) -> Path:
    return place / f"{optimizer}-{size}-{replicate_below}"


def train_and_save(store: Path, place: Path, replicate_below: int) -> dict[str, Any]:
    """For each table optimizer: the state that was saved, and the losses of the steps after that."""
    found = {}
    size = init_world(cpu=True).size
    for optimizer in TABLE_OPTIMIZERS:
        if (size, replicate_below) not in saved_at(optimizer):
            continue
        run = start(store, optimizer, replicate_below)
        losses(run, BEFORE)
        first = {spec.name: run.tables.shards[spec.name].start for spec in EXTRA}
        for name, tensor in rows_of(run).items():
            if (table := name.partition(".")[0]) in first:
                for row in range(len(tensor)):
                    tensor[row] = first[table] + row + 1.0
        run.progress.best_value, run.progress.best_step, run.progress.evaluations_since_best = 0.25, 2, 1
        save_checkpoint(run, checkpoints(place, optimizer, size, replicate_below))
        found[optimizer] = {"saved": snapshot(run), "losses": losses(run, AFTER)}
    return found


def load_and_train(store: Path, place: Path, replicate_below: int) -> dict[tuple[str, Place], Any]:
    """For each table optimizer and place it was saved at: the state loaded, and the losses after that."""
    found = {}
    size = init_world(cpu=True).size
    for optimizer in loaded_at((size, replicate_below)):
        run = start(store, optimizer, replicate_below)
        for saved in saved_at(optimizer):
            with torch.no_grad():
                for tensor in [*rows_of(run).values(), *dense_of(run).values(), run.table_optimizer.num_steps]:
                    tensor.fill_(-7.0)  # nothing of it may be left
            load_training(run, resolve(checkpoints(place, optimizer, *saved), "last"))
            found[optimizer, saved] = {"loaded": snapshot(run), "losses": losses(run, AFTER)}
    return found


def at_ranks(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    return [fn(*args)] if size == 1 else run_ranks(size, fn, *args, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=33).path


Saved = tuple[Path, dict[Place, list[Any]]]
"""Where checkpoints lie, and by where they were saved what each rank saved."""


@pytest.fixture(scope="module")
def saved(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    place = tmp_path_factory.mktemp("checkpoints")
    return place, {(size, placed): at_ranks(size, train_and_save, store, place, placed) for size, placed in SAVED_AT}


def joined(ranks: list[Any], what: str) -> dict[str, Tensor]:
    """Whole tensors in their stored order; what every rank holds whole is the same everywhere."""
    whole = {}
    for name, (rows, replicated) in ranks[0][what]["rows"].items():
        parts = [rank[what]["rows"][name][0] for rank in ranks]
        if replicated:
            assert all(torch.equal(part, rows) for part in parts), name
        whole[name] = rows if replicated else torch.cat(parts)
    return whole


@pytest.mark.parametrize(("size", "placed"), LOADED_AT)
def test_any_number_of_ranks_loads_what_any_other_saved(store: Path, saved: Saved, size: int, placed: int) -> None:
    place, by_place = saved
    loaded = at_ranks(size, load_and_train, store, place, placed)
    for optimizer in loaded_at((size, placed)):
        for where in saved_at(optimizer):
            case = f"{optimizer}, saved at {where}"
            before = [rank[optimizer] for rank in by_place[where]]
            after = [rank[optimizer, where] for rank in loaded]
            whole, found = joined(before, "saved"), joined(after, "loaded")
            assert whole.keys() == found.keys()
            assert whole["item"].shape == (31, 8)
            assert whole["tiny"].shape == (2, 4)
            assert whole["little"][:, 0].tolist() == [1.0, 2.0, 3.0]
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


def test_progress_is_saved(saved: Saved) -> None:
    place, by_place = saved
    for (size, placed), ranks in by_place.items():
        for optimizer, found in ranks[0].items():
            assert found["saved"]["progress"] == {
                "step": BEFORE,
                "num_updates": BEFORE,
                "best_value": 0.25,
                "best_step": 2,
                "evaluations_since_best": 1,
                "stopped": False,
            }
            assert found["saved"]["num_steps"] == BEFORE
            [path] = complete_steps(checkpoints(place, optimizer, size, placed))
            manifest = json.loads((path / "manifest.json").read_text())
            assert len(manifest["files"]) == size  # a file for each rank, no pickle among them
            assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def load_weights(store: Path, models: list[Path]) -> list[dict[str, Any]]:
    """By model and placement: this rank's rows with their ids, and the dense parameters."""
    found = []
    for placed in (SHARDED, MIXED):
        run = start(store, "sgd", placed)
        for model in models:
            load_model(run, resolve(model))
            tables = {name: (shard.ids(), shard.weight.clone()) for name, shard in run.tables.shards.items()}
            dense = {name: p.detach().clone() for name, p in run.model.named_parameters()}
            found.append({"tables": tables, "dense": dense, "placed": placed})
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_consolidated_model_has_its_rows_in_the_order_of_their_ids(
    store: Path, saved: Saved, tmp_path: Path, size: int
) -> None:
    place, by_place = saved
    models = []
    run = start(store, "exact")  # for the order in which rows are stored
    for where in SAVED_AT:
        models.append(tmp_path / f"{where}")
        consolidate(resolve(checkpoints(place, "exact", *where), "last"), models[-1])
        held = load_file(models[-1] / TENSOR_FILE)
        whole = joined([rank["exact"] for rank in by_place[where]], "saved")
        for name, shard in run.tables.shards.items():
            assert torch.equal(held[f"table.{name}"][shard.ids()], whole[name]), (where, name)
        assert not any("optimizer" in name for name in held)
    for rank in at_ranks(size, load_weights, store, models):
        for model, found in zip([*models, *models], rank, strict=True):
            held = load_file(model / TENSOR_FILE)
            for name, (ids, rows) in found["tables"].items():
                assert torch.equal(rows, held[f"table.{name}"][ids]), (model, name)
            for name, parameter in found["dense"].items():
                assert torch.equal(parameter, held[f"dense.{name}"]), (model, name)


def check_slowly(path: Path) -> str:
    """What checking says where ranks take longer than the collectives' time limit, and the last finds something."""
    world = init_world(cpu=True)

    def for_long(path: Path, part: int, num_parts: int, on_bytes: Callable[[int], None]) -> None:
        until = time.monotonic() + 2.5 * part
        while time.monotonic() < until:
            time.sleep(0.01)
            on_bytes(1)
        if part == num_parts - 1:
            raise Damaged(f"{path}: found by {part}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "check_files", for_long)
        try:
            load.check_hashes(path, world)
        except Damaged as found:
            return str(found)
    return "sound"


def test_checking_a_large_file_outlasts_the_time_limit_of_a_collective(tmp_path: Path) -> None:
    said = run_ranks(3, check_slowly, tmp_path, collective_timeout=3)
    assert said == [f"{tmp_path}: found by 2"] * 3


def fail_to_write(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def save_meanwhile(run: Run, place: Path) -> None:
    saving.Saving(run, place).finish()


def fails(save: Callable[[Run, Path], object], run: Run, place: Path) -> str:
    try:
        save(run, place)
    except BaseException as error:
        return f"{isinstance(error, Exception)} {error}"
    return "saved"


def save_with_failures(store: Path, place: Path, save: Callable[[Run, Path], object]) -> dict[str, Any]:
    """What saving says on this rank where the last rank cannot write its shard, and where rank 0 no manifest."""
    run = start(store, "exact")
    world = run.world
    losses(run, 1)
    save_checkpoint(run, place)
    losses(run, 1)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == world.size - 1:
            patch.setattr(writer.CheckpointWriter, "_write", fail_to_write)
        found["shard"] = fails(save, run, place)
    found["after shard"] = sorted(path.name for path in place.glob("checkpoints/step-*"))
    with pytest.MonkeyPatch.context() as patch:
        if world.is_main:
            patch.setattr(writer, "write_manifest", fail_to_write)
        found["manifest"] = fails(save, run, place)
    found["after manifest"] = sorted(path.name for path in place.glob("checkpoints/step-*"))
    if world.size > 1:
        dist.barrier()
    save(run, place)  # nothing of the failed ones is in the way
    found["in the end"] = sorted(path.name for path in (place / "checkpoints").iterdir())
    return found


@pytest.mark.parametrize("save", [save_checkpoint, save_meanwhile])
@pytest.mark.parametrize("size", [1, 2])
def test_a_failed_save_leaves_the_earlier_checkpoint_and_fails_on_all_ranks(
    store: Path, tmp_path: Path, size: int, save: Callable[[Run, Path], object]
) -> None:
    for found in at_ranks(size, save_with_failures, store, tmp_path / "run", save):
        for what in ("shard", "manifest"):
            assert found[what].startswith("True "), found[what]  # an Exception, which the command line reports
            assert "No space left on device" in found[what]
            assert found[f"after {what}"] == ["step-000000001"]
        assert found["in the end"] == ["step-000000001", "step-000000002"]
    assert resolve(tmp_path / "run").step == 2


def leave_before_saving(store: Path, place: Path) -> None:
    run = start(store, "exact")
    losses(run, 1)
    save_checkpoint(run, place)
    losses(run, 1)
    if run.world.rank == 1:
        saving.training_tensors = fail_to_write  # type: ignore[assignment]
    save_checkpoint(run, place)


def test_a_rank_that_leaves_while_saving_does_not_hang_the_others(store: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure:
        run_ranks(2, leave_before_saving, store, tmp_path / "run")
    rank_0, rank_1 = str(failure.value).split("\nrank 1: ")
    assert "RankFailed: rank 1: OSError: [Errno 28] No space left on device" in rank_0
    assert "OSError: [Errno 28] No space left on device" in rank_1
    assert complete_steps(tmp_path / "run") == [step_dir(tmp_path / "run", 1)]
    assert not step_dir(tmp_path / "run", 2).exists()
