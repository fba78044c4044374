"""A fine-tuning starts from the same weights at any number of ranks, whatever its source was written at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint.layout import TENSOR_FILE, resolve
from eupmim_dist.checkpoint.load import open_sound
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.manifest import ItemAttribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.export import init_from
from eupmim_dist.export.init_from import take_weights
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.step import prepare_step, train_step
from tests.catalogues import Table, catalogue, expected_rows, rows_held, same
from tests.distributed.spawn import Ranks, run_ranks
from tests.stores import small_store

SHARDED, OLD_MIXED, NEW_MIXED = 0, 36, 44  # tables.replicate_below: 38, now 46 item rows, 33, now 42 users
OLD_CITIES, NEW_CITIES = ["Bath", "Oslo", "Rome"], ["Bern", "Oslo", "Bath", "Zug"]
WRITTEN_AT = [(2, SHARDED), (3, OLD_MIXED)]
TAKEN_AT = [(1, SHARDED), (2, SHARDED), (3, SHARDED), (2, NEW_MIXED)]


def config_of(store: Path, placed: int) -> Config:
    values = {
        "data": {"dir": str(store)},
        "task": {"history_length": 6},
        "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1},
        "tables": {"replicate_below": placed},
        "objective": {"num_negatives": 5},
        "train": {"global_batch_size": 7, "learning_rate": 0.05},
        "evaluation": {"top_n": [5], "metric": "recall@5"},
    }
    return parse_config(values, source="test")


def train_and_save(store: Path, run_dir: Path, placed: int) -> None:
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    run = assemble_run(config_of(store, placed), world, open_store(store, world))
    assert [name for name, shard in run.tables.shards.items() if shard.replicated] == ["user"] * (placed > 0)
    run.dense.module.train()
    for step in range(3):
        train_step(run, step, prepare_step(run, step))
    run.progress.step = 3
    save_checkpoint(run, run_dir)


def begin(store: Path, sources: list[Path], placed: int) -> list[dict[str, Any]]:
    """By source: what this rank begins a training with, and what it was told."""
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    found = []
    for path in sources:
        source = open_sound(lambda path=path: resolve(path), world)
        told: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(init_from, "BLOCK_BYTES", 100)  # three rows
            run = assemble_run(
                config_of(store, placed),
                world,
                open_store(store, world),
                lambda initial, source=source, told=told: told.extend(take_weights(initial, source)),
            )
        dense = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        assert [name for name, shard in run.tables.shards.items() if shard.replicated] == ["user"] * (placed > 0)
        assert run.progress.step == 0
        assert not any(m.any() for m in run.dense.optimizer_state().values())
        found.append({name: rows_held(run, name) for name in ("item", "user")} | {"dense": dense, "told": told})
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[InteractionStore, InteractionStore]:
    """Old and new: shuffled, grown and shrunk; some raw ids are not known."""
    place = tmp_path_factory.mktemp("stores")
    shuffled = np.random.default_rng(5).permutation
    old_items = [None, *(f"i{n}" for n in shuffled(36))]
    new_items = [*(f"i{n}" for n in 12 + shuffled(44)), None]
    old_users = [f"u{n}" for n in shuffled(33)]
    new_users = [f"u{n}" for n in 10 + shuffled(42)]
    return (
        catalogue(place / "old", old_users, old_items, OLD_CITIES),
        catalogue(place / "new", new_users, new_items, NEW_CITIES, seed=1),
    )


@pytest.fixture(scope="module")
def sources(stores: tuple[InteractionStore, InteractionStore], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A checkpoint and its consolidated form, one after another, for each place that wrote one."""
    place = tmp_path_factory.mktemp("sources")
    found = []
    for size, placed in WRITTEN_AT:
        run_ranks(size, train_and_save, stores[0].path, place / f"run-{size}", placed, timeout=120)
        consolidate(resolve(place / f"run-{size}"), place / f"model-{size}")
        found += [place / f"run-{size}", place / f"model-{size}"]
    return found


@pytest.mark.parametrize(("size", "placed"), TAKEN_AT)
def test_every_number_of_ranks_begins_alike(
    stores: tuple[InteractionStore, InteractionStore], sources: list[Path], size: int, placed: int
) -> None:
    old_store, new_store = stores
    world = init_world(cpu=True)
    fresh = assemble_run(config_of(new_store.path, SHARDED), world, new_store)
    initial = dict(fresh.model.named_parameters())
    ranks = (
        [begin(new_store.path, sources, placed)]
        if size == 1
        else run_ranks(size, begin, new_store.path, sources, placed, timeout=120)
    )
    for number, path in enumerate(sources):
        model = path.with_name(path.name.replace("run", "model"))
        old = load_file(model / TENSOR_FILE)
        of_ranks = [rank[number] for rank in ranks]
        for table in ("item", "user"):
            old_rows = dict(enumerate(old[f"table.{table}"]))
            expected = expected_rows(table, old_store, old_rows, new_store, rows_held(fresh, table))
            joined: Table = {}
            for rank in of_ranks:
                assert same(rank[table], {i: expected[i] for i in rank[table]}), (path, table)
                joined |= rank[table]
            assert joined.keys() == expected.keys()
        for rank in of_ranks:
            assert rank["dense"].keys() == initial.keys()
            for name, parameter in rank["dense"].items():
                if name == "profile.attributes.1.weight":
                    was = dict(zip(OLD_CITIES, old[f"dense.{name}"], strict=True))
                    rows = [was.get(city, initial[name].detach()[i]) for i, city in enumerate(NEW_CITIES)]
                    assert torch.equal(parameter, torch.stack(rows)), (path, name)
                else:
                    assert torch.equal(parameter, old[f"dense.{name}"]), (path, name)
            step = path / "checkpoints" / "step-000000003" if path.name.startswith("run") else path
            assert rank["told"] == [
                f"starting from {step}, step 3",
                f"items: 24 of 45 rows taken from {step}, 21 new, 13 of its 37 dropped",
                f"users: 23 of 42 rows taken from {step}, 19 new, 10 of its 33 dropped",
                f"attribute level: 3 of 3 values taken from {step}, 0 new, 0 of its 3 dropped",
                f"attribute city: 2 of 4 values taken from {step}, 2 new, 1 of its 3 dropped",
            ]


def config_with_features(store: Path) -> Config:
    found = config_of(store, SHARDED)
    model = found.model.model_copy(
        update={"item_attributes": ["all"], "item_vectors": "projected", "dropout": 0.0, "attention_dropout": 0.0}
    )
    return found.model_copy(update={"model": model})


def steps_made(config: Config, source: Path | None, run_dir: Path | None = None) -> dict[str, Any]:
    """What a rank has after three steps, fine-tuning `source` if there is one; saved where that is asked for."""
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    weights = None if source is None else open_sound(lambda: resolve(source), world)
    told: list[str] = []
    run = assemble_run(
        config,
        world,
        open_store(config.data.dir, world),
        lambda initial: told.extend(take_weights(initial, weights)) if weights else None,
    )
    run.dense.module.train()
    norms = [train_step(run, step, prepare_step(run, step)).verdict.norm.item() for step in range(3)]
    run.progress.step = 3
    if run_dir is not None:
        save_checkpoint(run, run_dir)
    return {"norms": norms, "told": told, "rows": {name: rows_held(run, name) for name in run.tables.shards}}


def test_features_in_a_resharded_checkpoint_that_is_fine_tuned(tmp_path: Path) -> None:
    """Trained at 2 ranks, resharded for 3, fine-tuned at 2 on a store that knows other things: as in one process."""
    random = np.random.default_rng(0)
    for place, labels, names in (("old", ("red", "blue"), ["price", "age"]), ("new", ("blue", "pink", "red"), ["age"])):
        small_store(
            tmp_path / place,
            num_items=30,
            item_attributes=[ItemAttribute("colour", labels, 1)],
            item_values=random.integers(0, len(labels) + 1, (30, 1)).astype(np.int32),
            number_names=names,
            item_numbers=random.normal(size=(30, len(names))).astype(np.float32),
            item_vectors=random.normal(size=(30, 4)).astype(np.float32),
        )
    old, new = config_with_features(tmp_path / "old"), config_with_features(tmp_path / "new")
    alone = steps_made(old, None, tmp_path / "alone")
    with Ranks(2) as ranks:
        trained = ranks.run(steps_made, old, None, tmp_path / "run")
        reshard(resolve(tmp_path / "run"), 3, tmp_path / "for-3")
        found = [trained, ranks.run(steps_made, new, tmp_path / "for-3")]
    expected = [alone, steps_made(new, tmp_path / "alone")]
    assert sum("colour" in line and "2 of 3" in line for line in expected[1]["told"]) == 1
    for of_ranks, plain in zip(found, expected, strict=True):
        for rank in of_ranks:
            np.testing.assert_allclose(rank["norms"], plain["norms"], rtol=1e-5)
            assert len(rank["told"]) == len(plain["told"])
        for name, rows in plain["rows"].items():
            joined: Table = {}
            for rank in of_ranks:
                joined |= rank["rows"][name]
            assert joined.keys() == rows.keys()
            for row, values in rows.items():
                torch.testing.assert_close(joined[row], values, rtol=1e-4, atol=1e-5)
