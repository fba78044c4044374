"""csv and parquet: any ids, columns named by options."""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eupmim_dist.data.formats import Options
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from tests.unit.test_formats_prepared import sequence

COLUMNS = Options(user_column="who", item_column="what", time_column="when", min_count=1, split="leave_one_out")
HEADER = "who,what,when,age,city,film\n"


def rows(num_users: int = 12, length: int = 6) -> list[tuple[str, str, int, str, str, str]]:
    return [
        (f"u{user}", f"i{(user + step) % 8}", 100 - step, str(user % 11), "Oslo" if user % 2 else "Bath, UK", "A")
        for step in range(length)
        for user in range(num_users)
    ]


def write_csv(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(HEADER)
        csv.writer(file, lineterminator="\n").writerows(rows())
    return path


def write_parquet(path: Path) -> Path:
    pl.DataFrame(rows(), schema=HEADER.strip().split(","), orient="row").write_parquet(path)
    return path


WRITERS = {"csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_attributes_and_titles(tmp_path: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / "log")
    options = replace(COLUMNS, attributes=("age", "city"), title_column="film")
    prepare_store(source, tmp_path / "store", kind, options, name="films")
    store = InteractionStore.open(tmp_path / "store")
    assert (store.name, store.split_rule, store.num_users) == ("films", "leave_one_out", 12)
    assert store.raw_user_ids(np.arange(12)) == [f"u{user}" for user in range(12)]  # by first appearance
    assert store.timestamps is not None
    assert store.timestamps[:6].tolist() == [95, 96, 97, 98, 99, 100]
    assert store.raw_item_ids(np.array(sequence(store, 3))) == ["i0", "i7", "i6", "i5", "i4", "i3"]
    labels = {a.name: list(a.labels or ()) for a in store.manifest.attributes}
    assert labels == {"age": [str(age) for age in range(11)], "city": ["Bath, UK", "Oslo"]}  # 10 after 9
    assert store.attribute_values[11].tolist() == [0, 1]
    assert store.item_titles() == [None, *["A"] * 8]


def test_split_by_user_and_seed(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "log.csv")
    by_user = replace(COLUMNS, split=None, time_column=None)
    stores = []
    for number, seed in enumerate((None, 1230, 7)):
        prepare_store(source, tmp_path / str(number), "csv", replace(by_user, seed=seed))
        stores.append(InteractionStore.open(tmp_path / str(number)))
    first, same, other = stores
    assert first.split_rule == "by_user"
    assert [len(first.users(split)) for split in ("train", "valid", "test")] == [9, 1, 2]
    assert first.timestamps is None
    assert first.fingerprint == same.fingerprint != other.fingerprint
    [user] = first.users_of_raw_ids(["u3"])
    assert user is not None
    in_file_order = first.raw_item_ids(np.array(sequence(first, user)))
    assert in_file_order == ["i3", "i4", "i5", "i6", "i7", "i0"]


def test_parquet_takes_integers_and_dates(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    frame = pl.DataFrame(
        {"who": [user for user in range(3) for _ in range(5)], "what": list(range(5)) * 3}
    ).with_columns(when=pl.Series([start - timedelta(days=day) for day in range(15)]))
    frame.write_parquet(tmp_path / "log.parquet")
    prepare_store(tmp_path / "log.parquet", tmp_path / "store", "parquet", COLUMNS)
    store = InteractionStore.open(tmp_path / "store")
    assert store.timestamps is not None
    assert store.timestamps[4] == start.timestamp() * 1_000_000
    assert store.raw_item_ids(np.array(sequence(store, 0))) == ["4", "3", "2", "1", "0"]


def oracle(events: list[tuple[str, str, int]], min_count: int) -> tuple[dict[str, list[str]], list[str]]:
    """Raw sequences by raw user, and raw items by number, in plain Python."""
    kept = list(enumerate(events))
    while True:
        items = Counter(item for _, (_, item, _) in kept)
        left = [entry for entry in kept if items[entry[1][1]] >= min_count]
        users = Counter(user for _, (user, _, _) in left)
        left = [entry for entry in left if users[entry[1][0]] >= max(5, min_count)]
        if left == kept:
            break
        kept = left
    first_row = {item: row for row, (_, item, _) in reversed(list(enumerate(events)))}
    order = sorted(items, key=lambda item: (-items[item], first_row[item]))
    sequences: dict[str, list[str]] = {}
    for user in dict.fromkeys(user for user, _, _ in events):
        own = sorted((time, row, item) for row, (u, item, time) in kept if u == user)
        if own:
            sequences[user] = [item for _, _, item in own]
    return sequences, order


IDS = st.sampled_from(["a", "b", "c,d", 'e"f', "g h", "7", "-1", "é"])


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(IDS, IDS, st.integers(-3, 3)), min_size=1, max_size=80),
    min_count=st.integers(1, 4),
)
def test_round_trip_is_what_plain_python_makes(events: list[tuple[str, str, int]], min_count: int) -> None:
    sequences, items = oracle(events, min_count)
    options = replace(COLUMNS, min_count=min_count)
    with TemporaryDirectory() as directory:
        source, out = Path(directory, "log.csv"), Path(directory, "store")
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("who", "what", "when"), *events])
        if not sequences:
            with pytest.raises(UserError, match="no user has"):
                prepare_store(source, out, "csv", options)
            return
        prepare_store(source, out, "csv", options)
        store = InteractionStore.open(out)
        assert store.raw_user_ids(np.arange(store.num_users)) == list(sequences)
        assert store.raw_item_ids(np.arange(1, store.num_item_rows)) == items
        for user, raw in enumerate(sequences.values()):
            assert store.raw_item_ids(np.array(sequence(store, user))) == raw
        assert store.manifest.report["dropped_interactions"] == len(events) - len(store.items)


def refused(source: Path, kind: str, options: Options, message: str) -> None:
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        prepare_store(source, source.parent / "store", kind, options)
    assert "\n" not in str(error.value)
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "log.csv: the file is empty"),
        (HEADER, "there is no row to take in it"),
        (HEADER + "u,i,1,2,x,\n\n", r"log\.csv:3: the line is blank"),
        (HEADER + "u,i,1,2,x,\nu,i,1.0,2,x,\n", r"log\.csv:3: time is no integer of 64 bits: '1.0'; time_format"),
        (HEADER + "u,i,1,2,x,\nu,i, 3,2,x,\n", r"log\.csv:3: time has blanks around it: ' 3'; trim"),
        (HEADER + "u,i,1,2,x,\nu,i,,2,x,\n", r"log\.csv:3: time is missing; mend"),
        (HEADER + "u,i,1,2,x,\nu,i\n", r"log\.csv:3: 2 fields, the header has 6"),
        (HEADER + "u,i,1,2,x,\n,i,1,2,x,\n", r"log\.csv:3: user is missing"),
        (HEADER + 'u,i,1,2,x,\nu,"",1,2,x,\n', r"log\.csv:3: item is missing"),
        (HEADER + "u,i,1,2,x,\nu, i,1,2,x,\n", r"log\.csv:3: item has blanks around it: ' i'; trim drops"),
        (HEADER + 'u,i,1,2,"x\ny",\nu,i,1,2,"x\ny",\nu,i,x,2,x,\n', r"log\.csv:6: time is no integer"),
        (HEADER + "u,i,1,2,x,\nu,i,1,2,x,z,more\n", r"log\.csv:3: 7 fields, the header has 6"),
        (HEADER + "u,i,1,2,x,\nu,j,1,3,x,\n", r"log\.csv:3: user u has age '3', on an earlier row '2'"),
        (HEADER.encode() + b"u,i,1,2,x,\nu,i,1,2,\xff,\n", r"log\.csv:3: not UTF-8 text"),
        (HEADER + 'u,i,1,2,x,\nu,"i,1,2,x,\n', r"log\.csv:\d: .*quotes"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    source = tmp_path / "log.csv"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(source, "csv", replace(COLUMNS, attributes=("age", "city")), message)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_column": "User"}, r"no column 'User'; there are who, what, when, age, city, film"),
        ({"attributes": ("age", "job")}, "no column 'job'; there are who"),
        ({"attributes": ("age", "age")}, "attributes: the same name is given twice"),
        ({"user_column": None}, r"user_column: say which column holds the user \(there: who, what"),
        ({"item_column": None}, "item_column: say which"),
        ({"min_count": 0}, "min_count 0: give 1 or more"),
        ({"min_count": 99}, "no user has 99 interactions with items that occur 99 times"),
        ({"split": "random"}, "split random: give one of by_user, leave_one_out"),
        ({"seed": 3}, "seed: leave_one_out draws nothing"),
        ({"split": "by_user", "seed": -1, "min_count": 7}, "no user has 7"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, kind: str, change: dict[str, object], message: str) -> None:
    source = WRITERS[kind](tmp_path / "log")
    refused(source, kind, replace(COLUMNS, **change), message)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", WRITERS)
def test_too_few_users_for_a_split(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "log"
    frame = pl.DataFrame(rows(num_users=4), schema=HEADER.strip().split(","), orient="row")
    frame.write_csv(source) if kind == "csv" else frame.write_parquet(source)
    message = r"the valid split has no user \(4 users are left\); 10 are enough"
    refused(source, kind, replace(COLUMNS, split="by_user"), message)


def _parquet(**columns: list[object]) -> Callable[[Path], object]:
    full = {"who": ["u"] * 2, "what": ["i"] * 2, "when": [1, 2], "age": ["1", "1"]}
    return lambda path: pl.DataFrame({**full, **columns}, strict=False).write_parquet(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no parquet"), r"cannot be read \("),
        (lambda path: path.mkdir(), r"the folder has no file \*\.parquet"),
        (_parquet(who=["u", None]), r"log\.parquet: row 2: user is missing"),
        (_parquet(what=["i", ""]), r"log\.parquet: row 2: item is missing"),
        (_parquet(when=[1, None]), r"log\.parquet: row 2: time is missing"),
        (_parquet(age=["1", "2"]), r"log\.parquet: row 2: user u has age '2', on an earlier row '1'"),
        (_parquet(who=[1.0, 2.0]), r"column 'who' is Float64; the user is an integer or a string"),
        (_parquet(when=[1.0, 2.0]), r"column 'when' is Float64; the time is an integer, a date or text"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "log.parquet")
    refused(tmp_path / "log.parquet", "parquet", replace(COLUMNS, attributes=("age",)), message)
