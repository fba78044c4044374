import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, new_store, write_dataset
from eupmim_dist.errors import UserError
from tests.stores import small_store


def dataset(lengths: list[int], split: list[int], split_rule: str, **changes: object) -> Dataset:
    count = sum(lengths)
    fields: dict[str, object] = {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "items": np.arange(count) % 9 + 1,
        "timestamps": None,
        "attributes": [],
        "attribute_values": np.zeros((len(lengths), 0), np.int32),
        "split": np.array(split),
        "split_rule": split_rule,
        "raw_users": pl.Series([f"u{i}" for i in range(len(lengths))]),
        "raw_items": pl.Series([f"i{i}" for i in range(1, 10)]),
    }
    return Dataset(**{**fields, **changes})  # type: ignore[arg-type]


def written(path: Path, data: Dataset) -> InteractionStore:
    write_dataset(data, path, name="small", source="test")
    return InteractionStore.open(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data = dataset(
        [6, 0, 5],
        [0, 255, 2],
        "given",
        timestamps=np.array([7, 7, 8, 9, 9, 9, 9, 10, 10, 11, 12]),
        attributes=[Attribute("age", 3)],
        attribute_values=np.array([[2], [0], [1]]),
        titles=pl.Series(["A", None, *"CDEFGHI"]),
    )
    store = written(tmp_path / "store", data)
    assert (store.name, store.num_users, store.num_item_rows) == ("small", 3, 10)
    assert store.attributes == (Attribute("age", 3),)
    assert store.offsets.dtype == np.int64
    assert store.items.dtype == np.int32
    assert store.attribute_values.dtype == np.int32
    assert store.split.dtype == np.uint8
    assert store.timestamps is not None
    for read, given in (
        (store.offsets, data.offsets),
        (store.items, data.items),
        (store.timestamps, data.timestamps),
        (store.attribute_values, data.attribute_values),
        (store.split, data.split),
    ):
        np.testing.assert_array_equal(read, given)
    assert store.lengths(np.array([2, 0, 1])).tolist() == [5, 6, 0]
    assert store.raw_user_ids(np.array([2, 0, 2])) == ["u2", "u0", "u2"]
    assert store.raw_item_ids(np.array([9, 0, 1])) == ["i9", None, "i1"]
    assert store.users_of_raw_ids(["u2"]) == [2]
    assert store.users_of_raw_ids(["nobody"]) == [None]
    assert store.item_titles() == [None, "A", None, *"CDEFGHI"]
    assert store.manifest.timestamp_ties == 4  # not the 9 with which user 2 begins
    assert store.manifest.split_users == {"train": 1, "valid": 0, "test": 1}
    with pytest.raises(ValueError, match="read-only"):
        store.items[0] = 1


def test_windows_of_a_split_by_user(tmp_path: Path) -> None:
    store = written(tmp_path / "store", dataset([6, 10, 0, 15, 5], [0, 1, 255, 2, 0], "by_user"))
    everyone = np.arange(5)
    assert [store.users(split).tolist() for split in ("train", "valid", "test")] == [[0, 4], [1], [3]]
    assert store.train_lengths(everyone).tolist() == [6, 0, 0, 0, 5]
    cut, end = store.evaluation_window(everyone, "test")
    assert cut.tolist() == [int(0.8 * n) for n in (6, 10, 0, 15, 5)]
    assert end.tolist() == [6, 10, 0, 15, 5]
    assert cut.dtype == end.dtype == store.users("train").dtype == np.int64
    assert store.item_titles() is None
    assert store.timestamps is None


def test_windows_of_leave_one_out(tmp_path: Path) -> None:
    store = written(tmp_path / "store", dataset([6, 1, 2, 3, 0], [0, 0, 0, 0, 255], "leave_one_out"))
    assert [store.users(split).tolist() for split in ("train", "valid", "test")] == [[0, 3], [0, 3], [0, 2, 3]]
    assert store.train_lengths(np.arange(5)).tolist() == [4, 0, 0, 1, 0]
    window = store.evaluation_window(np.array([0, 3]), "valid")
    assert [part.tolist() for part in window] == [[4, 1], [5, 2]]
    window = store.evaluation_window(np.array([0, 3]), "test")
    assert [part.tolist() for part in window] == [[5, 2], [6, 3]]
    with pytest.raises(ValueError, match="holds out no item"):
        store.evaluation_window(np.array([0]), "train")
    with pytest.raises(ValueError, match="unknown split"):
        store.users("dev")


def test_cut_is_that_of_the_authors_for_every_length(tmp_path: Path) -> None:
    lengths = list(range(5, 300))
    store = written(tmp_path / "store", dataset(lengths, [2] * len(lengths), "by_user"))
    cut, _ = store.evaluation_window(store.users("test"), "test")
    assert cut.tolist() == [int(0.8 * length) for length in lengths]


def test_fingerprint_moves_with_the_directory_and_changes_with_content(tmp_path: Path) -> None:
    first = small_store(tmp_path / "a").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert InteractionStore.open(tmp_path / "b").fingerprint == first
    assert small_store(tmp_path / "c", seed=1).fingerprint != first


def _damage_manifest(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(store: Path) -> object:
        manifest = json.loads((store / "dataset.json").read_text())
        change(manifest)
        return (store / "dataset.json").write_text(json.dumps(manifest))

    return damage


def _flip_last_byte(store: Path) -> None:
    content = (store / "items.npy").read_bytes()
    (store / "items.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda store: (store / "dataset.json").unlink(), "no interaction store"),
        (lambda store: (store / "dataset.json").write_text("{"), r"dataset.json: cannot be read"),
        (lambda store: (store / "dataset.json").write_text("[]"), "cannot be read"),
        (_damage_manifest(lambda m: m.pop("format_version")), "format_version is None"),
        (_damage_manifest(lambda m: m.update(format_version=2)), "format_version is 2, this program reads 1"),
        (_damage_manifest(lambda m: m.pop("counts")), "no key counts"),
        (_damage_manifest(lambda m: m["files"].pop("split.npy")), r"no split\.npy"),
        (_damage_manifest(lambda m: m["counts"].update(users=41)), r"offsets\.npy: is int64 \(41,\), expected"),
        (_damage_manifest(lambda m: m.update(split_rule="random")), "unknown split rule 'random'"),
        (lambda store: (store / "items.npy").unlink(), r"items\.npy: missing"),
        (lambda store: (store / "items.npy").write_bytes(b"x"), r"items\.npy: 1 bytes, dataset\.json says"),
        (_flip_last_byte, r"items\.npy: content does not match its SHA-256"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    store = small_store(tmp_path / "store").path
    damage(store)
    with pytest.raises(UserError, match=message):
        InteractionStore.open(store)


def test_verify_false_trusts_content_but_not_sizes(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store").path
    _flip_last_byte(store)
    InteractionStore.open(store, verify=False)
    (store / "split.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"split\.npy: 0 bytes"):
        InteractionStore.open(store, verify=False)


def _hold_other_file(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("all of it")


def _hold_store_and_more(out: Path) -> None:
    small_store(out)
    (out / "thesis.tex").write_text("all of it")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("occupy", "message"),
    [
        (lambda out: out.write_text(""), "is a file"),
        (_hold_other_file, r"holds other files \(thesis\.tex\)"),
        (_hold_store_and_more, r"holds thesis\.tex beside a store"),
    ],
)
def test_other_peoples_files_are_never_replaced(
    tmp_path: Path, occupy: Callable[[Path], object], message: str, force: bool
) -> None:
    out = tmp_path / "out"
    occupy(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        write_dataset(dataset([5], [0], "given"), out, name="x", source="test", force=force)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_store_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty directory is no obstacle
    written(out, dataset([5], [0], "given"))
    with pytest.raises(UserError, match=r"already holds the store 'small'; replace it with force or name another out"):
        written(out, dataset([6], [0], "given"))
    write_dataset(dataset([6], [0], "given"), out, name="new", source="test", force=True)
    assert InteractionStore.open(out).name == "new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("earlier", [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, earlier: bool) -> None:
    out = tmp_path / "out"
    if earlier:
        small_store(out)

    def run_out_of_space() -> None:
        with new_store(out, force=True) as directory:
            (directory / "items.npy").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written"):
        run_out_of_space()
    assert list(tmp_path.iterdir()) == ([out] if earlier else [])
    if earlier:
        InteractionStore.open(out)


def test_labels_of_values_are_kept_and_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    values = np.array([[1], [0], [1]])
    labelled, plain = (
        written(tmp_path / name, dataset([6, 0, 5], [0, 255, 2], "given", attributes=[city], attribute_values=values))
        for name, city in (("labelled", Attribute("city", 2, ("Bath", "Oslo"))), ("plain", Attribute("city", 2)))
    )
    assert labelled.attributes == (Attribute("city", 2, ("Bath", "Oslo")),)
    assert plain.attributes == (Attribute("city", 2),)
    assert labelled.fingerprint == plain.fingerprint
    for labels in (["Bath"], ["Bath", "Bath"], ["Bath", "Bath", "Oslo"], 2, [[], []]):
        attribute = {"name": "city", "cardinality": 2, "labels": labels}
        manifest = {**labelled.manifest.model_dump(), "attributes": [attribute]}
        (labelled.path / "dataset.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="damaged store"):
            InteractionStore.open(labelled.path)
