"""Offline tools on the checkpoints of a small run: consolidate, reshard, verify, inspect, and what `resolve` finds."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eupmim_dist.api import evaluate, fit
from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint.contents import contents
from eupmim_dist.checkpoint.layout import complete_steps, open_checkpoint, resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.manifest import Damaged, write_manifest
from eupmim_dist.checkpoint.pieces import Piece, shape_of
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.verify import left_overs, to_verify, verify
from eupmim_dist.cli.verify import verify as verify_command
from eupmim_dist.errors import UserError
from eupmim_dist.export.model_dir import INDEX_FILE, consolidate, parse_size
from eupmim_dist.files import backup_path
from eupmim_dist.hashing import sha256
from eupmim_dist.training import evaluate_best
from tests.runs import WORLD, config_of, start, train_in
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`, a finished `run`, its `model`, the model in `parts`, and its checkpoint for 3 ranks in `shards`."""
    root = tmp_path_factory.mktemp("place")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train_in(config_of(root, checkpoint__keep=3, tables__replicate_below=0), root / "run")
    evaluate_best(run, root / "run")
    consolidate(resolve(root / "run"), root / "model")
    consolidate(resolve(root / "run"), root / "parts", max_shard_bytes=2000)
    reshard(resolve(root / "run"), 3, root / "shards")
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same, to be harmed."""
    return Path(shutil.copytree(place, tmp_path / "place"))


def test_a_model_in_parts_is_the_model(place: Path) -> None:
    whole, parts = load_file(place / "model" / "model.safetensors"), sorted((place / "parts").glob("*.safetensors"))
    assert [file.name for file in parts] == [
        f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)
    ]
    index = json.loads((place / "parts" / INDEX_FILE).read_text())
    found = {}
    for file in parts:
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 2000 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
        found |= tensors
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in whole.values())}
    one, other = (load_trained(place / name, WORLD) for name in ("model", "parts"))
    for name, shard in one.tables.shards.items():
        assert torch.equal(shard.weight, other.tables.shards[name].weight)
        assert torch.equal(shard.weight, whole[f"table.{name}"][shard.ids()])
    for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_carries_the_raw_ids_and_the_hashes_of_its_files(place: Path) -> None:
    for model in (place / "model", place / "parts"):
        for name in ("items.parquet", "users.parquet"):
            assert pl.read_parquet(model / name).equals(pl.read_parquet(place / "store" / name))
        files = json.loads((model / "config.json").read_text())["files"]
        assert files.keys() == {path.name for path in model.iterdir()} - {"README.md", "config.json"}
        for name, entry in files.items():
            assert entry == {"size": (model / name).stat().st_size, "sha256": sha256(model / name)}


def test_a_card_tells_what_the_files_say(place: Path) -> None:
    card = (place / "model" / "README.md").read_text()
    checkpoint = resolve(place / "run")
    evaluation = json.loads((place / "run" / "evaluation.json").read_text())
    assert card.startswith("---\nlibrary_name: eupmim-dist\ntags:\n")
    assert f"Trained for {checkpoint.step} steps on `small`" in card
    assert "40 users, 30 items" in card
    assert "(24 train, 8 valid, 8 test)" in card
    assert f"recall@5 {checkpoint.progress.best_value:.4f} on the valid split, protocol `strict`" in card
    assert "Test split, protocol `strict`, 8 users:" in card
    [row] = re.findall(r"^\| 5 \|(.*)\|$", card, re.MULTILINE)
    names = re.findall(r"^\| N \|(.*)\|$", card, re.MULTILINE)[0].split("|")
    told = {f"{name.strip()}@5": value.strip() for name, value in zip(names, row.split("|"), strict=True)}
    assert told == {name: f"{value:.4f}" for name, value in evaluation["metrics"].items()}
    assert "| train.learning_rate | 0.01 |" in card
    assert f"train --init-from {place / 'model'}" in card


def test_a_card_has_no_test_metrics_of_another_step(copied: Path) -> None:
    other = next(path for path in complete_steps(copied / "run") if path != resolve(copied / "run").path)
    consolidate(resolve(other), copied / "other")
    card = (copied / "other" / "README.md").read_text()
    assert "Test split" not in card
    (copied / "run" / "evaluation.json").write_text("[1]")
    consolidate(resolve(copied / "run"), copied / "again")
    assert "Test split" not in (copied / "again" / "README.md").read_text()


def test_a_store_made_anew_is_told_as_such(tmp_path: Path) -> None:
    train_in(config_of(tmp_path, train__max_steps=2, evaluation__every=2), tmp_path / "run")
    consolidate(resolve(tmp_path / "run"), tmp_path / "model")
    shutil.rmtree(tmp_path / "store")
    small_store(tmp_path / "store", num_users=50, num_items=40, seed=3)
    anew = r"store: was made anew since .* and holds other data; make it as it was, or train anew on it in another"
    for call in (
        lambda: consolidate(resolve(tmp_path / "run"), tmp_path / "new"),
        lambda: evaluate(tmp_path / "run", data=tmp_path / "store", cpu=True),
        lambda: fit(config_of(tmp_path), tmp_path / "run", cpu=True),
    ):
        with pytest.raises(UserError, match=f"{anew} run_dir$"):
            call()
    with pytest.raises(UserError, match=f"{anew} run_dir, by `train --init-from .*model`$"):
        evaluate(tmp_path / "model", cpu=True)


def test_a_directory_without_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    train_in(config_of(tmp_path, train__max_steps=2, evaluation__every=2), tmp_path / "runs" / "a")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    shutil.rmtree(tmp_path / "runs" / "b" / "checkpoints")
    with pytest.raises(UserError, match=r"runs: holds runs and is none; give one, such as .*runs/a$"):
        resolve(tmp_path / "runs")
    config = tmp_path / "runs" / "b" / "config.yaml"
    with pytest.raises(
        UserError, match=rf"is a run without a complete checkpoint.*`eupmim-dist train --config {config} "
    ):
        resolve(tmp_path / "runs" / "b")


def test_the_store_must_be_the_one_trained_on(copied: Path, tmp_path: Path) -> None:
    checkpoint = resolve(copied / "run")
    small_store(tmp_path / "other", seed=3)
    with pytest.raises(UserError, match=r"other: is another store than .* give that one with data"):
        consolidate(checkpoint, tmp_path / "new", tmp_path / "other")
    shutil.copytree(copied / "store", tmp_path / "moved")
    items = bytearray((tmp_path / "moved" / "items.parquet").read_bytes())
    items[20] ^= 1
    (tmp_path / "moved" / "items.parquet").write_bytes(items)
    with pytest.raises(UserError, match=r"items.parquet: content does not match its SHA-256"):
        consolidate(checkpoint, tmp_path / "new", tmp_path / "moved")
    assert not list(tmp_path.glob("*new*"))


def test_a_lost_store_is_asked_for(tmp_path: Path) -> None:
    train_in(config_of(tmp_path, train__max_steps=4), tmp_path / "run")
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"store: the store that .* was trained on is not there; name it with data"):
        consolidate(resolve(tmp_path / "run"), tmp_path / "model")
    consolidate(resolve(tmp_path / "run"), tmp_path / "model", tmp_path / "moved")
    assert verify(tmp_path / "model").problem is None


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5 kb", 1500), ("2TB", 2 * 10**12)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "5XB", "-1GB", "0MB", "0.0001KB", "1GB2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write it as 500MB or 5GB"):
        parse_size(text)


def test_training_goes_on_from_a_resharded_checkpoint(place: Path, tmp_path: Path) -> None:
    run, other = (start(config_of(place, tables__replicate_below=0)) for _ in range(2))
    load_training(run, resolve(place / "run"))
    load_training(other, resolve(place / "shards"))
    assert other.progress == run.progress
    for name, shard in run.tables.shards.items():
        assert torch.equal(other.tables.shards[name].weight, shard.weight)
    for name, moment in run.dense.optimizer_state().items():
        assert torch.equal(other.dense.optimizer_state()[name], moment)
    sizes = [file.stat().st_size for file in (place / "shards").glob("*.safetensors")]
    assert len(sizes) == 3
    assert max(sizes) < 1.1 * min(sizes)
    consolidate(resolve(place / "shards"), tmp_path / "model")
    assert sha256(tmp_path / "model" / "model.safetensors") == sha256(place / "model" / "model.safetensors")


def test_what_is_sound_is_found_sound(place: Path) -> None:
    assert to_verify(place / "run") == complete_steps(place / "run")
    for name in ("run", "model", "parts", "shards"):
        for path in to_verify(place / name):
            finding = verify(path)
            assert (finding.problem, finding.step) == (None, open_checkpoint(path).step)


def rewritten(directory: Path, change: Callable[[dict[str, torch.Tensor]], object], file_name: str) -> None:
    """Changes the tensors of a file and has the manifest agree, as a faulty program would."""
    file, manifest = directory / file_name, directory / "config.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    content = json.loads(manifest.read_text())
    content["files"][file_name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    manifest.write_text(json.dumps(content))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


TENSORS = "model.safetensors"
HARMS: list[tuple[Callable[[Path], object], str]] = [
    (lambda model: (model / TENSORS).unlink(), "model.safetensors: missing or cut short"),
    (lambda model: flip(model / TENSORS), "model.safetensors: damaged"),
    (lambda model: flip(model / "users.parquet"), "users.parquet: damaged"),
    (lambda model: (model / "config.json").write_text("{}"), "config.json: is no manifest of this program"),
    (lambda model: shutil.copy(model / TENSORS, model / "x.safetensors"), "x.safetensors: is no file of this"),
    (
        lambda model: rewritten(model, lambda t: t["table.item"][3].fill_(torch.nan), TENSORS),
        "table.item .* not finite",
    ),
    (lambda model: rewritten(model, lambda t: t.pop("table.user"), TENSORS), "table.user is missing"),
    (
        lambda model: rewritten(model, lambda t: t.update({"table.item": t["table.item"][1:].clone()}), TENSORS),
        r"table.item is \(30, 8\), the manifest says \(31, 8\)",
    ),
    (
        lambda model: rewritten(model, lambda t: t.update({"table_optimizer.item.sum": torch.ones(7)}), TENSORS),
        r"table_optimizer.item.sum is \(7,\), which is not an entry for each row of its table",
    ),
    (
        lambda model: rewritten(model, lambda t: t.update({"table.item": t["table.item"].int()}), TENSORS),
        "table.item holds I32, not floats",
    ),
    (lambda model: rewritten(model, lambda t: t.update({"other.x": torch.ones(7)}), TENSORS), "other.x is no tensor"),
]


@pytest.mark.parametrize(("harm", "reason"), HARMS, ids=[reason for _, reason in HARMS])
def test_what_is_wrong_is_told(copied: Path, harm: Callable[[Path], object], reason: str) -> None:
    harm(copied / "model")
    found = verify(copied / "model").problem
    assert found is not None
    assert re.search(reason, found), found
    assert "\n" not in found
    assert str(copied) not in found  # the table has a column for it


def test_pieces_that_leave_out_or_repeat_rows_are_found(copied: Path) -> None:
    """Files that agree with a manifest that was made for them."""
    directory = copied / "shards"
    _, second, third = sorted(directory.glob("*.safetensors"))
    content = json.loads((directory / "manifest.json").read_text())
    del content["checksum"], content["format_version"], content["files"]

    def problem() -> str:
        files = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in directory.glob("shard*")}
        write_manifest(directory, "manifest.json", content, files)
        return verify(directory).problem or ""

    assert not problem()
    for file in (second, third):
        moved = file.rename(copied / file.name)
        assert "dense" in problem()  # parts of it are missing too
        moved.rename(file)
    shutil.copy(second, directory / "shard-00004-of-00004.safetensors")
    assert "does not go on where the one before ends" in problem()


def test_what_is_of_a_package_that_is_not_installed_is_sound(copied: Path) -> None:
    file = copied / "model" / "config.json"
    content = json.loads(file.read_text())
    content["config"]["model"] = {"name": "shop"}
    file.write_text(json.dumps(content))
    assert "'shop' is no model" in (verify(copied / "model").problem or "")
    content["versions"]["shop-models"] = "1.2"
    file.write_text(json.dumps(content))
    found = verify(copied / "model")
    assert found.problem is None
    assert "written with shop-models 1.2, which is not installed" in (found.note or "")


def test_a_tensor_is_whole_where_its_pieces_meet() -> None:
    def shape(*pieces: tuple[int, tuple[int, ...], str]) -> tuple[int, ...]:
        return shape_of([Piece(Path("f"), dtype, rows, start, 0, 4) for start, rows, dtype in pieces])

    assert shape((0, (3, 2), "F32"), (3, (2, 2), "F32")) == (5, 2)
    assert shape((0, (), "F32")) == ()
    for wrong in (
        [(0, (3, 2), "F32"), (4, (2, 2), "F32")],
        [(0, (3, 2), "F32"), (2, (2, 2), "F32")],
        [(1, (3, 2), "F32")],
        [(0, (3, 2), "F32"), (3, (2, 3), "F32")],
        [(0, (3, 2), "F32"), (3, (2, 2), "F16")],
        [(0, (), "F32"), (0, (), "F32")],
    ):
        with pytest.raises(Damaged, match="does not go on where the one before ends"):
            shape(*wrong)


def test_a_run_with_a_bad_checkpoint_is_told_line_by_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = complete_steps(copied / "run")
    (first / "manifest.json").unlink()
    left = copied / "run" / "checkpoints" / ".step-000000020.incomplete"
    left.mkdir()
    assert left_overs(copied / "run") == [left]
    assert not left_overs(copied / "model")
    (copied / ".model.incomplete").mkdir()
    assert left_overs(copied / "model") == [copied / ".model.incomplete"]
    with pytest.raises(UserError, match=f"verify: 1 of {len(others) + 2} not sound"):
        verify_command([copied / "run", copied / "model"])
    out = capsys.readouterr().out
    assert out.count("sound") == len(others) + 1
    assert "incomplete, it has no" in out
    assert f"{left}: unfinished" in out.replace("\n", "")
    verify_command([copied / "model"])
    with pytest.raises(UserError, match="neither a run with checkpoints nor a checkpoint"):
        verify_command([copied / "store"])


def test_contents_are_what_the_tensors_say(place: Path) -> None:
    for name in ("run", "shards", "model", "parts"):
        checkpoint = resolve(place / name)
        found = contents(checkpoint, with_stats=True)
        assert found["kind"] == ("model" if name in ("model", "parts") else "checkpoint")
        assert found["ranks"] == {"run": 1, "shards": 3}.get(name)
        assert found["training"]["best_step"] == checkpoint.step
        assert sum(total["bytes"] for total in found["totals"].values()) == sum(
            tensor["bytes"] for tensor in found["tensors"].values()
        )
        assert json.loads(json.dumps(found, allow_nan=False)) == found
    whole = load_file(next(resolve(place / "run").path.glob("*.safetensors")))
    found = contents(resolve(place / "shards"), with_stats=True)
    assert found["tensors"].keys() == whole.keys()
    for name, tensor in whole.items():
        told, numbers = found["tensors"][name], tensor.double()
        assert (told["shape"], told["bytes"]) == (list(tensor.shape), tensor.nbytes)
        assert told["pieces"] == (1 if name.startswith("dense") else 3)
        expected = (numbers.min(), numbers.max(), numbers.mean(), numbers.std(correction=0))
        got = [told["stats"][key] for key in ("min", "max", "mean", "std")]
        assert got == pytest.approx([float(value) for value in expected], rel=1e-12, abs=1e-15)
        assert told["stats"]["not_finite"] == 0


def test_numbers_that_are_not_finite_are_counted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eupmim_dist.checkpoint import contents as module

    monkeypatch.setattr(module, "NUMBERS", 50)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["table.item"] += 1e6  # a naive sum of squares would lose the deviation
        tensors["table.item"][3] = torch.inf
        tensors["table.user"].fill_(torch.nan)

    rewritten(copied / "model", change, TENSORS)
    found = contents(resolve(copied / "model"), with_stats=True)["tensors"]
    numbers = load_file(copied / "model" / TENSORS)["table.item"].double().numpy()
    numbers = numbers[np.isfinite(numbers)]
    stats = found["table.item"]["stats"]
    assert stats["not_finite"] == 8
    assert [stats["mean"], stats["std"]] == pytest.approx([numbers.mean(), numbers.std()], rel=1e-9)
    assert found["table.user"]["stats"] == {"min": None, "max": None, "mean": None, "std": None, "not_finite": 40 * 8}


def test_a_lost_best_is_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, last = resolve(copied / "run"), resolve(copied / "run", "last")
    assert best.step != last.step
    shutil.rmtree(best.path)
    capsys.readouterr()
    assert resolve(copied / "run").step == last.step
    told = capsys.readouterr().err
    assert told == f"warning: {best.path}: the best checkpoint is not there; taking the last, step {last.step}\n"


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_checkpoint_put_aside_is_read_where_it_lies(
    copied: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = resolve(copied / "run", which)
    left = checkpoint.path.rename(backup_path(checkpoint.path))
    capsys.readouterr()
    for path in (copied / "run", checkpoint.path):
        assert resolve(path, which).path == left
        assert str(left) in capsys.readouterr().err
    assert load_trained(copied / "run", WORLD, which=which).config == checkpoint.config
    assert left in to_verify(copied / "run")
    assert not left_overs(copied / "run")
    assert verify(left).problem is None
    shutil.copytree(left, checkpoint.path)
    assert resolve(copied / "run", which).path == checkpoint.path
    assert left_overs(copied / "run") == [left]
