"""Starting from a trained model on one rank: what is matched, what is refused, what stays on record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from eupmim_dist.api import fit
from eupmim_dist.assemble import assemble_run, load_trained, open_store
from eupmim_dist.checkpoint.layout import complete_steps, resolve
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.config.load import dump_config, load_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.export.init_from import take_weights
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.train.state import Run
from tests.catalogues import catalogue, expected_rows, rows_held, same
from tests.e2e.test_cli import eupmim
from tests.runs import WORLD, config_of, train_in

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS = [f"u{n}" for n in range(30)], [f"i{n}" for n in range(25)]
LATER_USERS, LATER_ITEMS = USERS[:4:-1], [*ITEMS[5:], "x", "y"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the store `old`, a run trained on it and the model made of its best checkpoint."""
    place = tmp_path_factory.mktemp("trained")
    catalogue(place / "old", USERS, ITEMS, ["Bath", "Oslo"])
    train_in(config_of(place, data__dir=str(place / "old"), train__max_steps=4), place / "run")
    consolidate(resolve(place / "run"), place / "model")
    return place


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def settings(store: Path, **changes: Any) -> Config:
    return config_of(store.parent, data__dir=str(store), **changes)


def begun(config: Config, source: Path) -> tuple[Run, list[str]]:
    told: list[str] = []
    checkpoint = resolve(source)
    store = open_store(config.data.dir, WORLD)
    return assemble_run(config, WORLD, store, lambda run: told.extend(take_weights(run, checkpoint))), told


def edit(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((model / "config.json").read_text())
    change(content)
    (model / "config.json").write_text(json.dumps(content))


def test_on_the_same_data_the_start_is_the_trained_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(trained / "old", tmp_path / "elsewhere"))
    for source in (trained / "run", trained / "model"):
        before = load_trained(source, WORLD)
        run, told = begun(settings(moved), source)
        for split in ("valid", "test"):
            assert evaluate_model(run, split, "strict", [5, 10]) == evaluate_model(before, split, "strict", [5, 10])
        assert all(", 0 new, 0 of its " in line for line in told[1:]), told
    assert "warning" not in capsys.readouterr().err  # what has no labels is the same all the same


def test_attributes_without_labels_are_taken_by_code_if_as_many(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = load_trained(trained / "run", WORLD).model.get_parameter("profile.attributes.1.weight")
    catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, 2)
    run, _ = begun(settings(tmp_path / "new"), trained / "model")
    assert torch.equal(run.model.get_parameter("profile.attributes.1.weight"), old)
    assert capsys.readouterr().err == (
        f"warning: level, city: no labels on both sides, so value n is taken for value n of {trained / 'model'}\n"
    )
    catalogue(tmp_path / "more", LATER_USERS, LATER_ITEMS, 3)
    with pytest.raises(UserError, match=r"attribute city has 2 values there and 3 in .*more, .* without labels"):
        begun(settings(tmp_path / "more"), trained / "model")


def test_attributes_are_matched_by_name(trained: Path, tmp_path: Path) -> None:
    store = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Oslo", "Bath"]).path
    manifest = json.loads((store / "dataset.json").read_text())
    manifest["attributes"][0] = {"name": "size", "cardinality": 3}
    (store / "dataset.json").write_text(json.dumps(manifest))
    config = settings(store)
    fresh = assemble_run(config, WORLD, InteractionStore.open(store)).model.get_parameter("profile.attributes.0.weight")
    old = load_trained(trained / "run", WORLD).model.get_parameter("profile.attributes.1.weight")
    run, told = begun(config, trained / "model")
    assert torch.equal(run.model.get_parameter("profile.attributes.0.weight"), fresh)
    assert torch.equal(run.model.get_parameter("profile.attributes.1.weight"), old.flip(0))
    source = trained / "model"
    assert told[3:] == [
        f"attribute size: 0 of 3 values taken from {source}, 3 new, 0 of its 0 dropped",
        f"attribute city: 2 of 2 values taken from {source}, 0 new, 0 of its 2 dropped",
        f"attribute level of {source} dropped",
    ]


def test_a_model_without_profile_has_no_users_to_match(tmp_path: Path) -> None:
    changes = {"model": {"name": "comirec_dr", "dim": 8}, "train__max_steps": 2}
    old = catalogue(tmp_path / "old", USERS, ITEMS, 2)
    before = train_in(settings(old.path, **changes), tmp_path / "run")
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, 4)
    fresh = assemble_run(settings(new.path, **changes), WORLD, new)
    run, told = begun(settings(new.path, **changes), complete_steps(tmp_path / "run")[-1])
    expected = expected_rows("item", old, rows_held(before, "item"), new, rows_held(fresh, "item"))
    assert same(rows_held(run, "item"), expected)
    assert [line.partition(" taken")[0] for line in told[1:]] == ["items: 20 of 22 rows"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__dim": 16},
            r"dense.attention.mix1.bias is of shape \(4,\) there and of shape \(8,\) here; .*model.dim=8 ",
        ),
        ({"model__num_encoder_layers": 2}, r"layers.1.* is none there and .*: model.num_encoder_layers=1 \(here 2\)$"),
        ({"model__num_interests": 2}, r"next_query.1.* and none here; .*: model.num_interests=3 \(here 2\)$"),
        ({"model": {"name": "comirec_dr"}}, r"model.name=eupmim \(here comirec_dr\)$"),
        ({"model__profile_attention": "none", "model__graph": False}, r"dense.attention.* none here"),
        (
            {"model__extractor": "capsule", "task__history_length": 7},
            r": task.history_length=6 \(here 7\), model.extractor=transformer \(here capsule\)$",
        ),
    ],
)
def test_another_network_is_refused(trained: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Bath"])
    with pytest.raises(UserError, match=message):
        begun(settings(tmp_path / "new", **changes), trained / "model")


def test_rows_alone_may_be_another_models(trained: Path, tmp_path: Path) -> None:
    """Matched by raw id, as all are; the network and everything else begin as they would without."""
    old, new = InteractionStore.open(trained / "old"), catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, 4)
    source = trained / "model"
    changes: dict[str, Any] = {"model": {"name": "comirec_dr", "dim": 8}, "train__init_from": str(source)}
    fresh = assemble_run(settings(new.path, model=changes["model"]), WORLD, new)
    run, told = begun(settings(new.path, **changes, train__init_only_rows=True), source)
    before = load_trained(source, WORLD)
    expected = expected_rows("item", old, rows_held(before, "item"), new, rows_held(fresh, "item"))
    assert same(rows_held(run, "item"), expected)
    for (name, found), wanted in zip(run.model.named_parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(found, wanted), name
    assert [line.partition(" taken")[0] for line in told[1:]] == ["items: 20 of 22 rows"]
    said = {
        "model": changes["model"],
        "task": {"history_length": 3},
        "evaluation": {"top_n": [5], "metric": "recall@5"},
    }
    wanted: dict[str, Any] = {"train.init_only_rows": True, "train.max_steps": 1, "checkpoint.every": 1}
    fit(said, tmp_path / "run", data=new.path, overrides=wanted, init_from=source, cpu=True)
    assert load_config(tmp_path / "run" / "config.yaml").task.history_length == 3, "not the other model's"
    assert "rows of users and items alone" in (tmp_path / "run" / "init_from.txt").read_text()
    for again in ({}, {"train.init_from": str(source), "train.init_only_rows": True}):
        more = {"train.max_steps": 2, **again}
        fit(said, tmp_path / "run", data=new.path, overrides=more, cpu=True)
        assert load_config(tmp_path / "run" / "config.yaml").train.init_only_rows, "it stays on record"
    wider = settings(new.path, **changes | {"model": {"name": "comirec_dr", "dim": 16}}, train__init_only_rows=True)
    with pytest.raises(UserError, match=r"init_only_rows: rows of .* are 8 wide and here 16; set model.dim=8, or "):
        begun(wider, source)
    with pytest.raises(UserError, match=r"init_only_rows says what of init_from is taken; set init_from too"):
        settings(new.path, train__init_only_rows=True)


def test_what_rows_stand_for_must_be_known(trained: Path, model: Path, tmp_path: Path) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Bath"]).path
    place = tmp_path / "copy"
    shutil.copytree(trained, place)

    def at(store: Path) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["config"]["data"].update(dir=str(store))

    (model / "users.parquet").unlink()
    edit(model, lambda content: content["files"].pop("users.parquet"))
    wanted = r"model: has no id maps, and .* does not hold the store it was trained on \(old\); run `eupmim-dist consol"
    for wrong in (tmp_path / "none", new):
        edit(model, at(wrong))
        with pytest.raises(UserError, match=wanted):
            begun(settings(new), model)
    edit(model, at(place / "old"))
    _, told = begun(settings(new), model)
    assert [line.partition(",")[0] for line in told[1:3]] == [
        f"items: 20 of 22 rows taken from {model}",
        f"users: 25 of 25 rows taken from {model}",
    ]
    content = bytearray((place / "old" / "users.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "old" / "users.parquet").write_bytes(content)
    with pytest.raises(UserError, match=wanted):
        begun(settings(new), model)


def test_a_model_that_does_not_tell_its_attributes_needs_its_store(trained: Path, model: Path, tmp_path: Path) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Oslo", "Bath"]).path
    old = load_trained(trained / "run", WORLD).model.get_parameter("profile.attributes.1.weight")
    edit(model, lambda content: content["data"].pop("attributes"))  # as earlier versions wrote it
    run, _ = begun(settings(new), model)
    assert torch.equal(run.model.get_parameter("profile.attributes.1.weight"), old.flip(0))
    edit(model, lambda content: content["config"]["data"].update(dir="gone"))
    with pytest.raises(UserError, match="gone does not hold the store"):
        begun(settings(new), model)


@pytest.mark.parametrize(
    "entry",
    [{"name": "city"}, {"name": "city", "cardinality": 2, "labels": ["a", "a"]}, 7, {"name": "city", "cardinality": 9}],
)
def test_attributes_that_cannot_be_are_refused(model: Path, tmp_path: Path, entry: Any) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Bath"]).path
    edit(model, lambda content: content["data"].update(attributes=[entry] * 3))
    with pytest.raises(UserError, match="attribute"):
        begun(settings(new), model)


@pytest.mark.parametrize("rows", [{"id": [1, 2], "raw_id": ["i7", "i7"]}, {"id": [26], "raw_id": ["i7"]}, {"id": [1]}])
def test_an_id_map_that_cannot_be_is_refused(model: Path, tmp_path: Path, rows: dict[str, Any]) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Bath"]).path
    pl.DataFrame(rows).write_parquet(model / "items.parquet")
    size = (model / "items.parquet").stat().st_size
    edit(model, lambda content: content["files"]["items.parquet"].update(size=size))
    with pytest.raises(UserError, match=r"items\.parquet: .*; (consolidate|copy or make it) again$"):
        begun(settings(new), model)


def test_a_resumed_run_needs_not_say_what_it_was_started_from(trained: Path, tmp_path: Path) -> None:
    source = trained / "model"
    config = settings(trained / "old", train__init_from=str(source), train__max_steps=2)
    train_in(config, tmp_path / "run")
    for again in (config, settings(trained / "old", train__max_steps=4)):
        start = find_start(tmp_path / "run", "auto", again, WORLD)
        assert start.checkpoint is not None
        assert start.checkpoint.config.train.init_from == source
    other = settings(trained / "old", train__init_from="other")
    with pytest.raises(
        UserError, match=r"train\.init_from: 'other', but .* was trained with '.*model'; set it as it was"
    ):
        find_start(tmp_path / "run", "auto", other, WORLD)


def test_the_command_begins_then_resumes(trained: Path, tmp_path: Path) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Oslo", "Zug"]).path
    (tmp_path / "c.yaml").write_text(dump_config(settings(new, train__max_steps=3, evaluation__every=3)))
    command = f"train --config c.yaml --cpu --init-from {trained / 'model'} --run-dir run"
    first = eupmim(tmp_path, command)
    assert first.code == 0, first.err
    told = (tmp_path / "run" / "init_from.txt").read_text()
    assert told in first.out
    assert f"items: 20 of 22 rows taken from {trained / 'model'}, 2 new, 5 of its 25 dropped\n" in told
    (tmp_path / "c.yaml").write_text(dump_config(settings(new, train__max_steps=5, evaluation__every=3)))
    for line in (command, command.replace(f"--init-from {trained / 'model'} ", "")):
        again = eupmim(tmp_path, line)
        assert again.code == 0, again.err
        assert "going on from run/checkpoints/step-00000000" in again.out
        assert "rows taken" not in again.out
        assert (tmp_path / "run" / "init_from.txt").read_text() == told
        assert f"init_from: {trained / 'model'}" in (tmp_path / "run" / "config.yaml").read_text()
        assert resolve(tmp_path / "run", "last").step == 5
    both = eupmim(tmp_path, f"{command} --resume run")
    assert both.code == 2
    assert both.err.startswith(f"error: --init-from {trained / 'model'}: begins a new training, --resume run does not")
    other = eupmim(tmp_path, command.replace("/model", "/run"))
    assert other.code == 2
    assert other.err.startswith("error: train.init_from: ")


def test_a_damaged_source_is_refused(trained: Path, model: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "items.parquet"):
        sound = (model / name).read_bytes()
        (model / name).write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:])
        ended = eupmim(tmp_path, f"train --set data.dir={trained / 'old'} --cpu --init-from model --run-dir run")
        assert ended.code == 2
        assert ended.err.startswith(f"error: model/{name}: damaged")
        assert not (tmp_path / "run").exists()
        (model / name).write_bytes(sound)


def test_the_model_is_as_in_the_source_unless_said_otherwise(
    trained: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = catalogue(tmp_path / "new", LATER_USERS, LATER_ITEMS, ["Oslo", "Zug"]).path
    shared = [
        "objective.num_negatives=5",
        "train.global_batch_size=8",
        "train.max_steps=2",
        "evaluation.metric=recall@5",
        "evaluation.top_n=[5]",
    ]
    overrides = [*shared, "model.dropout=0.25"]
    fit(None, tmp_path / "run", data=new, overrides=overrides, init_from=model, cpu=True)
    found, there = load_config(tmp_path / "run" / "config.yaml"), resolve(trained / "model").config
    assert found.model.model_dump() == there.model.model_dump() | {"dropout": 0.25}
    assert found.task.history_length == there.task.history_length == 6
    assert found.train.learning_rate == 1e-3  # which is of the training
    told = capsys.readouterr().out
    [line] = [line for line in told.splitlines() if line.startswith(f"settings as of {model}: ")]
    assert {"model.dim=8", "model.num_heads=2", "task.history_length=6"} <= set(line.partition(": ")[2].split(", "))
    assert "not as there: model.dropout=0.25 (there " in told
    shutil.rmtree(model)  # and still the same command goes on
    again = fit(
        None, tmp_path / "run", data=new, overrides=[*overrides, "train.max_steps=4"], init_from=model, cpu=True
    )
    assert again.step == 4
    with pytest.raises(UserError, match=r"is of another network: .*model.name=eupmim \(here comirec_dr\)"):
        fit({"model": {"name": "comirec_dr"}}, tmp_path / "b", data=new, overrides=shared, init_from=trained / "model")
