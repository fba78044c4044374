"""A model, an objective, a task and a scorer of other packages; the model is the code printed in docs/plugins.md."""

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eupmim_dist.config import registry
from tests.e2e.test_cli import ROOT, eupmim, losses_of, shell
from tests.e2e.test_mistakes import check_line
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (ROOT / "docs" / "plugins.md").read_text()
SETTINGS: dict[str, Any] = {
    "data": {"dir": "store"},
    "task": {"name": "toy.LastItem", "history_length": 6},
    "model": {"name": "toy", "dim": 8, "sharpness": 2.0},
    "objective": {"name": "toy-bpr", "margin": 0.1},
    "tables": {"replicate_below": 0},
    "train": {"global_batch_size": 16, "learning_rate": 0.02, "max_steps": 20, "log_every": 5},
    "evaluation": {"every": 10, "metric": "recall@5", "patience": 0, "top_n": [5]},
}
PARTS = {"objectives": "toy-bpr = toy_parts:OBJECTIVE", "tasks": "toy.LastItem = toy_parts:TASK"}
PARTS["scorers"] = "toy_alphabet = toy_parts:SCORER"
BROKEN = {kind: f"broken_{kind} = no_such_module:ANY" for kind in ("models", "objectives", "tasks", "scorers")}
TRAIN = "train --config toy.yaml --cpu --run-dir"


def blocks(language: str) -> list[str]:
    """The code of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def install(packages: Path, name: str, version: str, points: dict[str, str]) -> None:
    """As pip would, the modules aside."""
    metadata = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [f"[eupmim_dist.{group}]\n{lines}\n" for group, lines in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three packages are installed: that of the page, one with other parts, and one that cannot be imported."""
    directory = tmp_path_factory.mktemp("packages")
    (directory / "toy_model.py").write_text(blocks("python")[0])
    shutil.copy(Path(__file__).with_name("toy_parts.py"), directory)
    [project] = [tomllib.loads(block)["project"] for block in blocks("toml")]
    [(group, points)] = project["entry-points"].items()
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    install(directory, project["name"], project["version"], {group.removeprefix("eupmim_dist."): lines})
    install(directory, "toy-parts", "1.2", PARTS)
    install(directory, "broken", "0.1", BROKEN)
    return directory


@pytest.fixture(scope="module")
def place(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with a `run` of two ranks."""
    root = tmp_path_factory.mktemp("place")
    small_store(root / "store", num_users=120)
    (root / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    ended = shell(root, f"python -m eupmim_dist launch --nproc 2 --cpu --threads 1 -- {TRAIN} run", packages)
    assert ended.code == 0, ended.err
    (root / "train.out").write_text(ended.out)
    return root


@pytest.fixture
def installed(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packages in this process too."""
    monkeypatch.syspath_prepend(str(packages))
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()
    for name in ("toy_model", "toy_parts"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("installed")
def test_the_model_of_the_page_keeps_to_the_interface() -> None:
    tests: dict[str, Any] = {}
    exec(blocks("python")[1], tests)
    tests["test_toy_keeps_to_the_interface"]()


def test_two_ranks_train_it_with_an_objective_and_a_task_of_another_package(place: Path) -> None:
    out = (place / "train.out").read_text()
    for line in (
        "task    toy.LastItem, objective toy-bpr\n",
        "model   toy: 84 dense parameters\ntables  item 31 x 8; exact\n",
        "ranks   2 on cpu, DDP, global batch 16\n",
    ):
        assert out.count(line) == 1, out
    losses = losses_of(place / "run")
    assert losses[20] < losses[5]
    logged = (place / "run" / "metrics.jsonl").read_text()
    assert "loss/pairwise" in logged
    assert "valid/strict/recall@5" in logged
    assert (place / "run" / "config.yaml").read_text().partition("\n")[0].endswith(", toy-parts 1.2, toy-model 0.1")


@pytest.mark.usefixtures("installed")
def test_one_rank_trains_the_same_and_goes_on_with_it(place: Path) -> None:
    ended = eupmim(place, f"{TRAIN} alone")
    assert ended.code == 0, ended.err
    assert losses_of(place / "alone") == pytest.approx(losses_of(place / "run"), rel=1e-5)
    ended = eupmim(place, f"{TRAIN} alone --set train.max_steps=25")
    assert ended.code == 0, ended.err
    assert list(losses_of(place / "alone")) == [5, 10, 15, 20, 25]
    ended = eupmim(place, f"{TRAIN} alone --set train.max_steps=25 --set model.sharpness=1")
    assert ended.code == 2
    check_line(ended.err, r"model.sharpness: 1.0, but alone/checkpoints/.* was trained with 2.0")
    ended = eupmim(place, f"{TRAIN} tuned --init-from run")
    assert ended.code == 0, ended.err


@pytest.mark.usefixtures("installed")
def test_its_checkpoints_are_those_of_any_other_model(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert eupmim(place, "verify run").out.count(" sound ") == len(list(place.glob("run/checkpoints/step-*")))
    found = []
    for path in ("run", model):
        if path == model:
            assert eupmim(place, f"consolidate run --out {model}").code == 0
        ended = eupmim(place, f"evaluate {path} --top-n 5 --baseline toy_alphabet,popularity --json {tmp_path}/a.json")
        assert ended.code == 0, ended.err
        found.append(json.loads((tmp_path / "a.json").read_text()))
    assert found[0] == found[1]
    assert [result["model"] for result in found[0]] == ["toy", "toy_alphabet", "popularity"]
    trained = json.loads((place / "run" / "evaluation.json").read_text())
    assert found[0][0]["metrics"] == pytest.approx(trained["metrics"], abs=1e-12)
    shown = eupmim(place, f"recommend {model} --user u100 --top-n 3 --json {tmp_path}/b.json")
    assert shown.code == 0, shown.err
    [entry] = json.loads((tmp_path / "b.json").read_text())
    assert len(entry["items"]) == 3
    inspected = eupmim(place, "inspect run").out
    assert "toy: 2 interest vectors of 8 numbers per user" in inspected
    assert re.search("toy-parts 1.2, toy-model 0.1", inspected)


@pytest.mark.usefixtures("installed")
def test_its_keys_are_described(place: Path) -> None:
    shown = eupmim(place, "config show --describe --set model.name=toy")
    assert shown.code == 0, shown.err
    assert "model.sharpness [1.0]\n    How far the weights of two places may be apart.\n" in shown.out
    ended = eupmim(place, f"{TRAIN} new --set model.sharpnes=3")
    assert ended.code == 2
    check_line(ended.err, r"unknown key model.sharpnes; did you mean model.sharpness\?")


@pytest.mark.parametrize("line", ["evaluate run", "inspect run", "consolidate run --out new", "recommend run --user 1"])
def test_without_its_packages_a_run_says_which_it_needs(place: Path, line: str) -> None:
    ended = eupmim(place, line)
    assert ended.code == 2
    check_line(
        ended.err,
        "manifest.json: task.name: 'toy.LastItem' is no task; choose from every_position, next_item, prompts, or "
        "install the package that has it .*; written with toy-parts 1.2, which is not installed, toy-model 0.1, "
        "which is not inst",
    )
    assert not (place / "new").exists()


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_imported_is_a_mistake_of_those_who_use_it(place: Path) -> None:
    for line in (f"{TRAIN} new --set model.name=broken_models", "evaluate run --baseline broken_scorers"):
        ended = eupmim(place, line)
        assert ended.code == 2
        check_line(
            ended.err, r"plug-in broken: its \w+ 'broken_\w+' \(no_such_module:ANY\) cannot be imported \(Module"
        )
    ended = eupmim(place, "evaluate run --baseline random")
    check_line(
        ended.err,
        "--baseline random: choose from association, cooccurrence, ease, history_paths, next_id, paths, "
        "popularity, toy_alphabet",
    )


def test_importing_a_plugin_first_is_no_cycle(packages: Path, place: Path) -> None:
    code = "import toy_model, eupmim_dist.config.registry as r; assert r.find('model', 'toy') is toy_model.MODEL"
    ended = shell(place, f'python -c "{code}"', packages)
    assert ended.code == 0, ended.err
