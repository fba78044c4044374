"""A pickle in the place of any file that is loaded is refused, and what it would execute is not executed."""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint.contents import contents
from eupmim_dist.checkpoint.layout import complete_steps, resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.manifest import Damaged, write_manifest
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.checkpoint.verify import verify
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.export.imported import read_release
from eupmim_dist.export.model_dir import consolidate
from tests.runs import WORLD, config_of, start, train_in

pytestmark = pytest.mark.usefixtures("one_thread")
MARKER = "executed"


class Payload:
    """Unpickled, it makes the directory MARKER where the test runs."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (MARKER,)


def pickled() -> bytes:
    return pickle.dumps(Payload())


def saved_by_torch() -> bytes:
    stream = io.BytesIO()
    torch.save({"table.item": Payload()}, stream)
    return stream.getvalue()


def saved_by_numpy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    return stream.getvalue()


KINDS = (pickled, saved_by_torch, saved_by_numpy)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    train_in(config_of(root, train__max_steps=4, checkpoint__every=4), root / "run")
    consolidate(resolve(root / "run"), root / "model")
    consolidate(resolve(root / "run"), root / "parts", max_shard_bytes=4000)
    reshard(resolve(root / "run"), 2, root / "shards")
    return root


@pytest.fixture
def copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(place, tmp_path / "place"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pickles_are_armed(kind: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if kind is pickled:
        pickle.loads(kind())
    elif kind is saved_by_torch:
        torch.load(io.BytesIO(kind()), weights_only=False)
    else:
        np.load(io.BytesIO(kind()), allow_pickle=True)
    assert Path(MARKER).is_dir()


def training_from(path: Path) -> None:
    config = config_of(path.parent)
    begun = find_start(path.parent / "new", str(path), config, WORLD)
    assert begun.checkpoint is not None
    load_training(start(config), begun.checkpoint)


def verified(path: Path) -> None:
    if problem := verify(path).problem:
        raise Damaged(problem)


LOADERS: dict[str, Callable[[Path], object]] = {
    "load": lambda path: load_trained(path, WORLD, path.parent / "store"),
    "train": training_from,
    "consolidate": lambda path: consolidate(resolve(path), path.parent / "new"),
    "reshard": lambda path: reshard(resolve(path), 3, path.parent / "new"),
    "inspect": lambda path: contents(resolve(path), with_stats=True),
    "verify": verified,
}


def refused(path: Path, content: bytes, name: str, loaders: dict[str, Callable[[Path], object]]) -> None:
    """Plants `content` in the file `name` of a checkpoint or model: as it is, and with a manifest that agrees."""
    manifest = path / ("manifest.json" if (path / "manifest.json").exists() else "config.json")
    told = json.loads(manifest.read_text())
    (path / name).write_bytes(content)
    for agreeing in (False, True):
        if agreeing and name in told["files"]:
            told["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            files = told.pop("files")
            for key in ("checksum", "format_version"):
                told.pop(key, None)
            write_manifest(path, manifest.name, told, files)
        for loader, load in loaders.items():
            with pytest.raises(UserError) as error:
                load(path)
            assert "\n" not in str(error.value), loader
            assert not Path(MARKER).exists(), loader
            assert not (path.parent / "new").exists(), loader


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_checkpoint(copied: Path, kind: Callable[[], bytes]) -> None:
    [checkpoint] = complete_steps(copied / "run")
    [shard] = [file.name for file in checkpoint.glob("*.safetensors")]
    for number, name in enumerate((shard, "manifest.json", ".metadata", "shard-00009-of-00009.safetensors")):
        path = Path(shutil.copytree(checkpoint, copied / f"copy-{number}"))
        refused(path, kind(), name, LOADERS)
    path = copied / "shards"
    refused(path, kind(), "shard-00002-of-00002.safetensors", LOADERS)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_model(copied: Path, kind: Callable[[], bytes]) -> None:
    loaders = {name: LOADERS[name] for name in ("load", "inspect", "verify")}
    for number, name in enumerate(("model.safetensors", "config.json", ".metadata", "more.safetensors")):
        path = Path(shutil.copytree(copied / "model", copied / f"copy-{number}"))
        refused(path, kind(), name, loaders)
    refused(copied / "parts", kind(), "model-00002-of-00003.safetensors", loaders)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "items.parquet", "users.parquet"])
def test_beside_the_tensors_of_a_model(copied: Path, name: str) -> None:
    (copied / "parts" / name).write_bytes(pickled())
    for loader in ("load", "verify"):
        with pytest.raises(UserError):
            LOADERS[loader](copied / "parts")
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["offsets.npy", "items.npy", "attributes.npy", "split.npy", "items.parquet", "users.parquet", "dataset.json"],
)
def test_in_a_store(copied: Path, name: str, kind: Callable[[], bytes]) -> None:
    store, content = copied / "store", kind()
    manifest = json.loads((store / "dataset.json").read_text())
    (store / name).write_bytes(content)
    for agreeing in (False, True):
        if agreeing and name != "dataset.json":
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (store / "dataset.json").write_text(json.dumps(manifest))
        for verified in (False, True):
            with pytest.raises(UserError):
                InteractionStore.open(store, verify=verified)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_release(tmp_path: Path, kind: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(kind())
    with pytest.raises(UserError, match=r"model.pt: is not a checkpoint of tensors alone, so it is not loaded"):
        read_release(Path("model.pt"))
    assert not Path(MARKER).exists()
