"""Formats whose ids are kept: eupmim, comirec, sequential."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eupmim_dist.data.formats import Options
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

PROFILES = {0: "25,1,4", 1: "25,1,4", 2: "56,0,20", 3: "1,0,0"}
SPLIT_OF = {0: "train", 1: "train", 2: "valid", 3: "test"}


def prepared(source: Path, format_name: str) -> InteractionStore:
    prepare_store(source, source.parent / "store", format_name)
    return InteractionStore.open(source.parent / "store")


def sequence(store: InteractionStore, user: int) -> list[int]:
    return store.items[store.offsets[user] : store.offsets[user + 1]].tolist()


def history(user: int) -> list[int]:
    return [(user * 3 + position) % 7 + 1 for position in range(5 + user)]


def write_splits(source: Path, with_profiles: bool) -> Path:
    source.mkdir()
    for split in ("train", "valid", "test"):
        lines = [
            f"{user},{PROFILES[user] + ',' if with_profiles else ''}{item},{order}\n"
            for user in PROFILES
            if SPLIT_OF[user] == split
            for order, item in reversed(list(enumerate(history(user))))
        ]
        (source / f"small_{split}.txt").write_text("".join(lines))
    return source


def append(name: str, text: str) -> Callable[[Path], object]:
    def change(source: Path) -> object:
        with (source / name).open("a") as file:
            return file.write(text)

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda source: (source / name).write_bytes(content.encode() if isinstance(content, str) else content)


def refused(source: Path, format_name: str, message: str) -> None:
    out = source.parent / "deep" / "store"
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        prepare_store(source, out, format_name)
    assert "\n" not in str(error.value)
    assert sorted(source.parent.rglob("*")) == before


def test_eupmim(tmp_path: Path) -> None:
    store = prepared(write_splits(tmp_path / "source", with_profiles=True), "eupmim")
    assert store.split_rule == "given"
    assert [(a.name, a.cardinality) for a in store.attributes] == [("age", 57), ("gender", 2), ("occupation", 21)]
    assert store.attributes[1].labels == ("0", "1")
    assert store.attribute_values.tolist() == [[int(v) for v in PROFILES[u].split(",")] for u in range(4)]
    assert [store.users(split).tolist() for split in ("train", "valid", "test")] == [[0, 1], [2], [3]]
    assert [sequence(store, user) for user in range(4)] == [history(user) for user in range(4)]
    assert store.num_item_rows == 8
    assert store.raw_user_ids(np.array([3])) == ["3"]
    assert store.name == "store"


def test_eupmim_maps_and_titles(tmp_path: Path) -> None:
    source = write_splits(tmp_path / "source", with_profiles=True)
    (source / "small_user_map.txt").write_text("".join(f"{9 - user},{user}\n" for user in range(4)))
    (source / "small_item_map.txt").write_text("100,1\n200,2\n")
    (source / "movies.dat").write_bytes("200::Les misérables: I::Drama\n300::Other::\n".encode("iso-8859-1"))
    store = prepared(source, "eupmim")
    assert store.users_of_raw_ids([8]) == [1]
    assert store.raw_item_ids(np.array([1, 2, 3])) == ["100", "200", None]
    assert store.item_titles() == [None, None, "Les misérables: I", *[None] * 5]


def test_comirec_has_no_attributes(tmp_path: Path) -> None:
    store = prepared(write_splits(tmp_path / "source", with_profiles=False), "comirec")
    assert store.attributes == ()
    assert store.attribute_values.shape == (4, 0)
    assert [sequence(store, user) for user in range(4)] == [history(user) for user in range(4)]


def test_short_histories_are_dropped_and_unseen_items_counted(tmp_path: Path) -> None:
    source = write_splits(tmp_path / "source", with_profiles=False)
    append("small_train.txt", "6,9,0\n6,8,1\n6,9,2\n6,8,3\n")(source)
    append("small_test.txt", "7,8,0\n7,9,1\n7,10,2\n7,2,3\n7,2,4\n")(source)
    store = prepared(source, "comirec")
    assert store.num_users == 8
    assert [store.users(split).tolist() for split in ("train", "valid", "test")] == [[0, 1], [2], [3, 7]]
    assert store.lengths(np.arange(8)).tolist() == [5, 6, 7, 8, 0, 0, 0, 5]  # 4 and 5 are in no file
    assert store.split.tolist() == [0, 0, 1, 2, 255, 255, 255, 2]
    assert store.manifest.report == {
        "dropped_users": 1,
        "dropped_interactions": 4,
        "valid_items_unseen_in_training": 0,
        "test_items_unseen_in_training": 3,
    }


FIRST = "0,25,1,4,5,9\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("small_train.txt", "0,25,1,4,1\n"), r"small_train\.txt:12: 5 fields, expected 6: user,age,gender"),
        (append("small_train.txt", "0,25,1,4,1,9,1\n"), r"small_train\.txt:12: 7 fields, expected 6"),
        (append("small_train.txt", FIRST + "\n" + FIRST), r"small_train\.txt:13: the line is blank"),
        (append("small_valid.txt", "2,56,0,20,1.0,9\n"), r"small_valid\.txt:8: item is '1\.0', expected an item id"),
        (append("small_train.txt", "0,25,1,4, 3,9\n"), r"txt:12: item is ' 3', expected"),
        (append("small_train.txt", "0,25,1,4,0,9\n"), r"txt:12: item is '0', .*0 is padding"),
        (append("small_train.txt", "-1,25,1,4,1,9\n"), r"txt:12: user is '-1', expected a user id from 0"),
        (append("small_train.txt", "x,25,1,4,1,9\n"), r"txt:12: user is 'x'"),
        (append("small_train.txt", "0,25,1,4,1,\n"), r"txt:12: order is ''"),
        (append("small_train.txt", "9" * 19 + ",25,1,4,1,9\n"), r"txt:12: user is '999"),
        (append("small_train.txt", "0,25,2,4,1,9\n"), r"txt:12: gender is '2', expected 0 or 1"),
        (append("small_train.txt", "0,-5,1,4,1,9\n"), r"txt:12: age is '-5', expected an age code 0\.\.149"),
        (append("small_train.txt", "0,25,1,4,1,2\n"), r"txt:12: user 0 has order 2 on an earlier line too"),
        (append("small_train.txt", "0,25,1,5,1,9\n"), r"txt:12: user 0 has occupation 5, on an earlier line 4"),
        (append("small_test.txt", "0,25,1,4,1,9\n"), r"small_test\.txt:9: user 0 is in small_train\.txt too"),
        (append("small_test.txt", "8000,25,1,4,1,9\n"), r"small_test\.txt:9: user 8000 is far above the number"),
        (append("small_test.txt", "3,1,0,0,5000,9\n"), r"small_test\.txt:9: item 5000 is far above the number"),
        (write("small_test.txt", b"3,1,0,0,1,0\n3,1,0,\xff,1,1\n"), r"small_test\.txt:2: not UTF-8 text"),
        (write("small_test.txt", b""), r"small_test\.txt: the file is empty"),
        (write("small_test.txt", "3,1,0,0,1,0\n"), "the test split has no user"),
        (lambda source: (source / "small_valid.txt").unlink(), r"no file \*_valid\.txt"),
        (write("other_valid.txt", ""), r"two files other_valid\.txt and small_valid\.txt"),
        (lambda source: (source / "small_valid.txt").rename(source / "big_valid.txt"), "different data sets"),
        (write("small_user_map.txt", "a,0\nb,4\n"), r"small_user_map\.txt:2: id 4 is not in the data \(0\.\.3\)"),
        (write("small_user_map.txt", "a,0\nb,0\n"), r"small_user_map\.txt:2: id 0 is mapped twice"),
        (write("small_item_map.txt", "a,1\na,2\n"), r"small_item_map\.txt:2: raw_id a is mapped twice"),
        (write("small_item_map.txt", "a,0\n"), r"small_item_map\.txt:1: id 0 is not in the data \(1\.\.7\)"),
        (write("small_item_map.txt", "a\n"), r"small_item_map\.txt:1: 1 fields, expected 2: raw_id,id"),
    ],
)
def test_bad_eupmim_input_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = write_splits(tmp_path / "source", with_profiles=True)
    change(source)
    refused(source, "eupmim", message)


def test_lines_are_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eupmim_dist.data.formats.lines.BLOCK_BYTES", 7)
    source = write_splits(tmp_path / "source", with_profiles=False)
    content = (source / "small_test.txt").read_text()
    for ending in ("\r\n", "\n"):
        text = "\ufeff" + content.replace("\n", ending).removesuffix(ending)  # no end of line at the end
        (source / "small_test.txt").write_bytes(text.encode())
        prepare_store(source, tmp_path / "store", "comirec", force=True)
        assert sequence(InteractionStore.open(tmp_path / "store"), 3) == history(3)
    append("small_test.txt", "\n3,x,9\n")(source)
    refused(source, "comirec", r"small_test\.txt:9: item is 'x'")


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    source = write_splits(tmp_path / "source", with_profiles=False)
    refused(
        source, "netflix", "format netflix: unknown; one of eupmim, movielens, comirec, fliggy, sequential, elmrec, csv"
    )
    refused(tmp_path / "nowhere", "comirec", "nowhere: no such file or directory")
    refused(source / "small_test.txt", "comirec", "not a directory")
    with pytest.raises(UserError, match="min_count: does not apply to format comirec, only to csv, parquet"):
        prepare_store(source, tmp_path / "out", "comirec", Options(min_count=2))
    with pytest.raises(UserError, match="attributes: does not apply"):
        prepare_store(source, tmp_path / "out", "comirec", Options(attributes=("age",)))


SEQUENTIAL = "1 3 1 2 4 5\n3 1 2 3 4 5 6 7\n2 1 2\n"


def test_sequential(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "sequential.txt").write_text(SEQUENTIAL)
    store = prepared(source, "sequential")
    assert store.split_rule == "leave_one_out"
    assert [sequence(store, user) for user in range(3)] == [[3, 1, 2, 4, 5], [], [1, 2, 3, 4, 5, 6, 7]]
    assert store.users("test").tolist() == [0, 2]
    assert store.raw_user_ids(np.array([0, 2])) == ["1", "3"]
    assert store.manifest.report == {
        "dropped_users": 1,
        "dropped_interactions": 2,
        "valid_items_unseen_in_training": 1,
        "test_items_unseen_in_training": 1,
    }


def test_sequential_raw_ids(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "sequential.txt").write_text(SEQUENTIAL)
    maps = {"id2user": {"1": "A", "3": "C"}, "id2item": {str(i): f"B{i}" for i in range(1, 8)}}
    (source / "datamaps.json").write_text(json.dumps(maps))
    store = prepared(source, "sequential")
    assert store.raw_user_ids(np.arange(3)) == ["A", None, "C"]
    assert store.users_of_raw_ids(["C"]) == [2]
    assert store.raw_item_ids(np.array([7])) == ["B7"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("sequential.txt", "1 2 3 4 5 6\n"), r"sequential\.txt:4: user 1 is on an earlier line too"),
        (append("sequential.txt", "4\n"), r"sequential\.txt:4: 1 ids, expected a user and at least one item"),
        (append("sequential.txt", "4 1 0\n"), r"sequential\.txt:4: '0' is no id"),
        (append("sequential.txt", "4 1 -2\n"), r"sequential\.txt:4: '-2' is no id"),
        (append("sequential.txt", "4  1 2\n"), r"sequential\.txt:4: '' is no id: .*single spaces"),
        (append("sequential.txt", "\n"), r"sequential\.txt:4: the line is blank"),
        (append("sequential.txt", "4 1 " + "9" * 19 + "\n"), r"sequential\.txt:4: an id is too large"),
        (append("sequential.txt", "9000 1 2\n"), r"sequential\.txt:4: user 9000 is far above"),
        (append("sequential.txt", "4 1 9000\n"), r"sequential\.txt:4: item 9000 is far above"),
        (write("sequential.txt", "1 2 3\n"), "no user has 5 interactions or more"),
        (write("sequential.txt", b"1 2 \xff\n"), r"sequential\.txt:1: not UTF-8 text"),
        (write("sequential.txt", b""), r"sequential\.txt: the file is empty"),
        (lambda source: (source / "sequential.txt").unlink(), r"sequential\.txt: no such file"),
        (write("datamaps.json", "{}"), r"datamaps\.json: no map of id to raw id .* under the key .id2user."),
        (write("datamaps.json", "{"), r"datamaps\.json: no map"),
        (write("datamaps.json", '{"id2user": {"1": 7}, "id2item": []}'), r"datamaps\.json: no map"),
    ],
)
def test_bad_sequential_input_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "sequential.txt").write_text(SEQUENTIAL)
    change(source)
    refused(source, "sequential", message)


def test_published_movielens_files(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "movielens-1m"
    prepare_store(source, tmp_path / "store", "eupmim")
    store = InteractionStore.open(tmp_path / "store")
    assert (store.num_users, store.num_item_rows, len(store.items)) == (6040, 3417, 999611)
    assert [(a.name, a.cardinality) for a in store.attributes] == [("age", 57), ("gender", 2), ("occupation", 21)]
    for split, (first, last) in {"train": (0, 4831), "valid": (4832, 5435), "test": (5436, 6039)}.items():
        assert store.users(split).tolist() == list(range(first, last + 1))
    lines = np.loadtxt(source / "movielens_test.txt", np.int64, delimiter=",")
    start = store.offsets[5436]
    np.testing.assert_array_equal(store.items[start:], lines[:, 4])  # the file is in order
    np.testing.assert_array_equal(store.attribute_values[lines[:, 0]], lines[:, 1:4])
    assert store.users_of_raw_ids([44]) == [0]
    titles = store.item_titles()
    assert titles is not None
    assert titles[2] == "Star Wars: Episode IV - A New Hope (1977)"
    assert not any(title is None for title in titles[1:])


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [("beauty", 22363, 12101, 198502), ("sports", 35598, 18357, 296337), ("toys", 19412, 11924, 167597)],
)
def test_published_amazon_files(
    shared_data: Path, tmp_path: Path, name: str, users: int, items: int, interactions: int
) -> None:
    source = shared_data / "amazon" / name
    prepare_store(source, tmp_path / "store", "sequential")
    store = InteractionStore.open(tmp_path / "store")
    assert (store.num_users, store.num_item_rows - 1, len(store.items)) == (users, items, interactions)
    assert len(store.users("test")) == users
    with (source / "sequential.txt").open() as file:
        for user, line in enumerate(file):
            if user % 1000 == 0:
                assert line.split()[1:] == [str(item) for item in sequence(store, user)]
    maps = json.loads((source / "datamaps.json").read_text())
    assert store.users_of_raw_ids([maps["id2user"]["5"]]) == [4]
    assert store.raw_item_ids(np.array([items])) == [maps["id2item"][str(items)]]
