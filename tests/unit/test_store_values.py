"""Stores that were edited by hand, hashes and all: what their arrays and tables hold is still looked at."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data import checks
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import write_dataset
from eupmim_dist.errors import UserError
from tests.unit.test_store import dataset


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six users, one of whom has nothing; looked at three values at a time."""
    monkeypatch.setattr(checks, "BLOCK", 3)
    lengths = [5, 7, 0, 6, 5, 9]
    times = np.concatenate([np.arange(length) // 2 + 100 for length in lengths])
    data = dataset(
        lengths,
        [0, 0, 255, 0, 1, 2],
        "given",
        timestamps=times,
        attributes=[Attribute("age", 3), Attribute("city", 2)],
        attribute_values=np.array([[2, 0], [0, 1], [1, 1], [0, 0], [0, 0], [1, 0]]),
    )
    write_dataset(data, tmp_path / "store", name="small", source="test")
    InteractionStore.open(tmp_path / "store")
    return tmp_path / "store"


def edit(store: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes an array or table in place, or gives another one; sizes and hashes are made to fit."""
    file = store / name
    value = np.load(file) if name.endswith(".npy") else pl.read_parquet(file)
    changed = change(value)
    changed = value if changed is None else changed
    if isinstance(changed, bytes):
        file.write_bytes(changed)
    elif isinstance(changed, np.ndarray):
        np.save(file, changed)
    else:
        changed.write_parquet(file)
    manifest = json.loads((store / "dataset.json").read_text())
    content = file.read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (store / "dataset.json").write_text(json.dumps(manifest))


def put(*place: int, value: int) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[place] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("offsets.npy", put(2, value=3), r"offsets\.npy: falls from 5 to 3 after user 1; copy the store again"),
        ("offsets.npy", put(4, value=-9), r"offsets\.npy: falls from 12 to -9 after user 3"),
        ("offsets.npy", put(0, value=1), r"offsets\.npy: does not span items\.npy"),
        ("items.npy", put(7, value=0), r"items\.npy: holds item 0 at 7, where there are 1 to 9"),
        ("items.npy", put(31, value=10), r"items\.npy: holds item 10 at 31, where there are 1 to 9"),
        ("items.npy", put(0, value=-1), r"items\.npy: holds item -1 at 0"),
        ("attributes.npy", put(5, 1, value=2), r"attributes\.npy: holds city 2 at 5, where there are 0 to 1"),
        ("attributes.npy", put(0, 0, value=-1), r"attributes\.npy: holds age -1 at 0, where there are 0 to 2"),
        ("split.npy", put(4, value=3), r"split\.npy: user 4 has the code 3, which stands for no split"),
        ("split.npy", put(2, value=1), r"split\.npy: user 2 is held out and has no interactions"),
        ("timestamps.npy", put(8, value=7), r"timestamps\.npy: falls within a user, at interaction 8"),
        ("timestamps.npy", put(31, value=-5), r"timestamps\.npy: falls within a user, at interaction 31"),
        ("items.npy", lambda array: array.astype(np.float32), r"items\.npy: is float32 \(32,\), expected int32 or"),
        ("items.npy", lambda array: b"\x93NUMPY\x01\x00", r"items\.npy: cannot be read as an array"),
        ("users.parquet", lambda table: table.reverse(), r"users\.parquet: its column id is not 0 to 5, in order"),
        ("items.parquet", lambda table: table.head(3), r"items\.parquet: its column id is not 1 to 9, in order"),
        ("items.parquet", lambda table: table.drop("raw_id"), "its column raw_id is not there, expected String"),
        ("items.parquet", lambda table: table.rename({"id": "number"}), "its column id is not there, expected Int64"),
        ("users.parquet", lambda table: table.cast({"id": pl.Int32}), "its column id is Int32, expected Int64"),
        ("users.parquet", lambda table: b"PAR1 and no more", r"users\.parquet: cannot be read as a table of ids"),
    ],
)
def test_values_that_cannot_be_are_named(store: Path, name: str, change: Callable[[Any], Any], message: str) -> None:
    edit(store, name, change)
    with pytest.raises(UserError, match=message):
        InteractionStore.open(store)


def test_times_may_fall_from_one_user_to_the_next(store: Path) -> None:
    edit(store, "timestamps.npy", lambda times: times - np.repeat(np.arange(6), [5, 7, 0, 6, 5, 9]) * 1000)
    InteractionStore.open(store)
