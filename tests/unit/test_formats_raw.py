"""Formats that get renumbered in the authors' way: movielens, fliggy."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.splits import BY_USER
from eupmim_dist.data.store import InteractionStore
from tests.unit.test_formats_prepared import append, refused, sequence, write

Event = tuple[int, int, int]


def random_events(num_users: int, num_items: int, count: int, seed: int = 0) -> list[Event]:
    """(user, item, time), many of them at equal times, some users and items rare."""
    draw = random.Random(seed)
    return [
        (draw.randint(1, num_users) * 3, int(num_items * draw.random() ** 2) + 1, draw.randint(100, 120))
        for _ in range(count)
    ]


def authors_preparation(events: list[Event]) -> tuple[dict[int, int], dict[int, int], list[list[Event]]]:
    """User and item numbers by raw id, and each user's events: the published recipe, in plain Python."""
    counts = Counter(item for _, item, _ in events)  # a Counter keeps first appearances in order
    frequent = [item for item, count in sorted(counts.items(), key=lambda pair: -pair[1]) if count >= 5]
    items = {item: number for number, item in enumerate(frequent, start=1)}
    kept = Counter({user: 0 for user, _, _ in events})
    kept.update(user for user, item, _ in events if item in items)
    users = [user for user, count in kept.items() if count >= 5]
    random.seed(1230)
    random.shuffle(users)
    sequences = [
        sorted((event for event in events if event[0] == user and event[1] in items), key=lambda event: event[2])
        for user in users
    ]
    return {user: number for number, user in enumerate(users)}, items, sequences


def write_movielens(source: Path, events: list[Event]) -> Path:
    source.mkdir()
    (source / "ratings.dat").write_text("".join(f"{u}::{i}::{1 + i % 5}::{t}\n" for u, i, t in events))
    users = sorted({user for user, _, _ in events})
    profiles = [f"{u}::{'FM'[u % 2]}::{(1, 18, 56)[u % 3]}::{u % 21}::{u}-x\n" for u in users]
    (source / "users.dat").write_text("".join(profiles))
    movies = "".join(f"{i}::Film {i}: a café::Drama|Comedy\n" for i in range(1, 40))
    (source / "movies.dat").write_bytes(movies.encode("iso-8859-1"))
    return source


def assert_as_the_authors(store: InteractionStore, events: list[Event]) -> None:
    users, items, sequences = authors_preparation(events)
    assert store.raw_user_ids(np.arange(store.num_users)) == [str(user) for user in users]
    assert store.raw_item_ids(np.arange(1, store.num_item_rows)) == [str(item) for item in items]
    assert [sequence(store, user) for user in users.values()] == [[items[e[1]] for e in s] for s in sequences]
    assert store.timestamps is not None
    assert store.timestamps.tolist() == [event[2] for s in sequences for event in s]
    ties = sum(a[2] == b[2] for s in sequences for a, b in pairwise(s))
    assert store.manifest.timestamp_ties == ties > 0
    assert store.manifest.report["dropped_users"] == len({e[0] for e in events}) - len(users) > 0
    assert store.manifest.report["dropped_items"] == len({e[1] for e in events}) - len(items) > 0
    assert store.manifest.report["dropped_interactions"] == len(events) - len(store.items)
    splits = [len(store.users(split)) for split in ("train", "valid", "test")]
    count = len(users)
    assert splits == [int(0.8 * count), int(0.9 * count) - int(0.8 * count), count - int(0.9 * count)]


@pytest.mark.parametrize("seed", [0, 1])
def test_movielens_is_prepared_as_published(tmp_path: Path, seed: int) -> None:
    events = random_events(60, 35, 400, seed)
    prepare_store(write_movielens(tmp_path / "source", events), tmp_path / "store", "movielens")
    store = InteractionStore.open(tmp_path / "store")
    assert_as_the_authors(store, events)
    assert [(a.name, a.cardinality) for a in store.attributes] == [("age", 57), ("gender", 2), ("occupation", 21)]
    raw = [int(user or 0) for user in store.raw_user_ids(np.arange(store.num_users))]
    assert store.attribute_values.tolist() == [[(1, 18, 56)[u % 3], u % 2, u % 21] for u in raw]
    titles = store.item_titles()
    assert titles is not None
    assert titles[1] == f"Film {store.raw_item_ids(np.array([1]))[0]}: a café"


def test_movielens_numbers_users_as_the_released_map(shared_data: Path, tmp_path: Path) -> None:
    """ratings.dat is not there, but up to equal timestamps the released files hold what was in it."""
    source = shared_data / "movielens-1m"
    columns = ["user", "age", "gender", "occupation", "item", "order"]
    lines = pl.concat(
        pl.read_csv(source / f"movielens_{split}.txt", has_header=False, new_columns=columns)
        for split in ("train", "valid", "test")
    )
    users = pl.read_csv(source / "movielens_user_map.txt", has_header=False, new_columns=["raw_user", "user"])
    items = pl.read_csv(source / "movielens_item_map.txt", has_header=False, new_columns=["raw_item", "item"])
    rebuilt = tmp_path / "ml-1m"
    rebuilt.mkdir()
    for name in ("users.dat", "movies.dat"):
        (rebuilt / name).symlink_to(source / name)
    lines.join(users, on="user").join(items, on="item").sort("raw_user", "order").select(
        pl.format("{}::{}::3::{}", "raw_user", "raw_item", pl.col("order") + 1000)
    ).write_csv(rebuilt / "ratings.dat", include_header=False, quote_style="never")

    prepare_store(rebuilt, tmp_path / "store", "movielens")
    store = InteractionStore.open(tmp_path / "store")
    assert store.raw_user_ids(np.arange(6040)) == users.sort("user")["raw_user"].cast(pl.String).to_list()
    np.testing.assert_array_equal(store.split, np.repeat([0, 1, 2], [4832, 604, 604]))
    by_user = lines.sort("user", "order")
    first = by_user.unique("user", keep="first", maintain_order=True)
    np.testing.assert_array_equal(store.attribute_values, first.select("age", "gender", "occupation").to_numpy())
    # Items of equal count are numbered by where they first stood in the file, which is not known.
    counts = np.bincount(store.items, minlength=store.num_item_rows)
    released = np.bincount(by_user["item"].to_numpy(), minlength=3417)
    np.testing.assert_array_equal(counts, released)
    raw_of = dict(zip(items["item"], items["raw_item"], strict=True))
    ours = np.array([int(raw or 0) for raw in store.raw_item_ids(np.arange(3417))])
    theirs = np.array([0, *(raw_of[item] for item in range(1, 3417))])
    np.testing.assert_array_equal(ours[store.items], theirs[by_user["item"].to_numpy()])
    unique = np.flatnonzero(np.bincount(released)[released] == 1)
    np.testing.assert_array_equal(ours[unique], theirs[unique])


def test_split_is_cut_as_published() -> None:
    codes = BY_USER.codes(6040)
    assert [int(np.flatnonzero(codes == code)[0]) for code in (0, 1, 2)] == [0, 4832, 5436]
    assert codes.dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("ratings.dat", "3::1::5\n"), r"ratings\.dat:401: 3 fields, expected 4: user::item::rating::time"),
        (append("ratings.dat", "3,1,5,100\n"), r"ratings\.dat:401: 1 fields, expected 4"),
        (append("ratings.dat", "3::0::5::100\n"), r"ratings\.dat:401: item is '0', expected a movie id from 1"),
        (append("ratings.dat", "3::1::6::100\n"), r"ratings\.dat:401: rating is '6'"),
        (append("ratings.dat", "3::1::5::1e9\n"), r"ratings\.dat:401: time is '1e9'"),
        (append("ratings.dat", "999::1::5::100\n" * 5), r"users\.dat: no profile of user 999, who has interactions"),
        (append("users.dat", "3::F::1::1::x\n"), r"users\.dat:\d+: user 3 has a profile on an earlier line too"),
        (append("users.dat", "998::X::1::1::x\n"), r"users\.dat:\d+: gender is 'X', expected F or M"),
        (append("users.dat", "998::F::2::1::x\n"), r"users\.dat:\d+: age is '2', expected one of 1, 18, 25"),
        (append("users.dat", "998::F::1::21::x\n"), r"users\.dat:\d+: occupation is '21', expected .* 0\.\.20"),
        (append("movies.dat", "1::Again::Drama\n"), r"movies\.dat:40: movie 1 is on an earlier line too"),
        (append("movies.dat", "99::Untitled\n"), r"movies\.dat:40: 2 fields, expected 3"),
        (write("ratings.dat", ""), r"ratings\.dat: the file is empty"),
        (write("ratings.dat", "3::1::5::100\n"), r"ratings\.dat: no user has 5 interactions with items that occur 5"),
        (write("ratings.dat", "".join(f"3::{i}::5::100\n" * 5 for i in range(1, 6))), "the train split has no user"),
        (lambda source: (source / "ratings.dat").unlink(), r"ratings\.dat: no such file"),
        (lambda source: (source / "users.dat").unlink(), r"users\.dat: no such file"),
        (lambda source: (source / "movies.dat").unlink(), r"movies\.dat: no such file"),
    ],
)
def test_bad_movielens_input_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = write_movielens(tmp_path / "source", random_events(60, 35, 400))
    change(source)
    refused(source, "movielens", message)


HISTORY, PROFILE = "user_item_behavior_history.csv", "user_profile.csv"


def write_fliggy(source: Path, events: list[Event]) -> Path:
    source.mkdir()
    lines = [f"{u},{i},pay,{t}\n{u},{i + 1},clk,{t}\n" for u, i, t in events]
    (source / HISTORY).write_text("user_id,item_id,behavior_type,time\n" + "".join(lines))
    users = sorted({user for user, _, _ in events})
    (source / PROFILE).write_text("".join(f"{u},{u % 3 * 100},{'ab'[u % 2]},{u % 5},x;y,7\n" for u in users))
    return source


@pytest.mark.parametrize("header", ["", "\ufeff", "user_id,age,gender,occupation\n"])
def test_fliggy_keeps_purchases(tmp_path: Path, header: str) -> None:
    events = random_events(60, 35, 400)
    source = write_fliggy(tmp_path / "source", events)
    (source / PROFILE).write_text(header + (source / PROFILE).read_text())
    prepare_store(source, tmp_path / "store", "fliggy")
    store = InteractionStore.open(tmp_path / "store")
    assert_as_the_authors(store, events)
    labels = [list(attribute.labels or ()) for attribute in store.manifest.attributes]
    assert labels[1:] == [["a", "b"], ["0", "1", "2", "3", "4"]]
    assert [a.cardinality for a in store.attributes] == [len(values) for values in labels]
    raw = [int(user or 0) for user in store.raw_user_ids(np.arange(store.num_users))]
    decoded = [[values[code] for values, code in zip(labels, codes, strict=True)] for codes in store.attribute_values]
    assert decoded == [[str(u % 3 * 100), "ab"[u % 2], str(u % 5)] for u in raw]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append(HISTORY, "3,1,pay\n"), r"history\.csv:802: 3 fields, expected 4: user,item,behaviour,time"),
        (append(HISTORY, "3,1,pay,now\n"), r"history\.csv:802: time is 'now', expected an integer timestamp"),
        (append(HISTORY, "3,-1,pay,100\n"), r"history\.csv:802: item is '-1'"),
        (append(HISTORY, "999,1,pay,100\n" * 5), r"user_profile\.csv: no profile of user 999"),
        (append(PROFILE, "3,1,1,1\n"), r"user_profile\.csv:\d+: user 3 has a profile on an earlier line too"),
        (append(PROFILE, "998,,1,1\n"), r"user_profile\.csv:\d+: age is '', expected an age"),
        (append(PROFILE, "x,1,1,1,more,fields\n"), r"user_profile\.csv:\d+: user is 'x'"),
        (append(PROFILE, "998,1,1\n"), r"user_profile\.csv:\d+: 3 fields, expected 4"),
        (write(HISTORY, "3,1,pay,100\n"), r"history\.csv:1: data, where the format has a header line"),
        (write(HISTORY, "user,item,behaviour,time\n3,1,clk,100\n"), "no line with behaviour pay"),
        (write(HISTORY, "user,item,behaviour,time\n"), "no line with behaviour pay"),
        (write(PROFILE, ""), r"user_profile\.csv: the file is empty"),
        (lambda source: (source / PROFILE).unlink(), r"user_profile\.csv: no such file"),
        (lambda source: (source / HISTORY).unlink(), r"user_item_behavior_history\.csv: no such file"),
    ],
)
def test_bad_fliggy_input_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    source = write_fliggy(tmp_path / "source", random_events(60, 35, 400))
    change(source)
    refused(source, "fliggy", message)
