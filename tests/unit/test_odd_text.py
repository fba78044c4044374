"""Sources that are text, or were: each is refused in one short line that names the place, or read as it stands."""

import bz2
import gzip
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data.categories import read_categories
from eupmim_dist.data.formats import Options, lines, records
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, shown
from tests.stores import small_store
from tests.unit.test_formats_prepared import SEQUENTIAL, write_splits
from tests.unit.test_formats_raw import HISTORY, PROFILE, random_events, write_fliggy, write_movielens

COLUMNS = Options(user_column="user", item_column="item", time_column="time", min_count=1, split="leave_one_out")
HEADER = "user,item,time,city\n"
GOOD = HEADER + "".join(f"u{user},i{item},{item},Oslo\n" for user in range(3) for item in range(5))  # 16 lines
LONG = "x" * 200_000


def gzipped(content: bytes) -> bytes:
    """Without the time, which would be in a test's name."""
    return gzip.compress(content, mtime=0)


GZIPPED = gzipped(GOOD.encode())


def told(value: object) -> str | None:
    """A short name of a case."""
    return shown(value) if isinstance(value, str | bytes) else None


def raw_ids(store: Path) -> tuple[list[str | None], list[str | None]]:
    opened = InteractionStore.open(store)
    return opened.raw_user_ids(np.arange(opened.num_users)), opened.raw_item_ids(np.arange(1, opened.num_item_rows))


def refused(source: Path, kind: str, options: Options, message: str) -> None:
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        prepare_store(source, source.parent / "store", kind, options)
    lines = str(error.value).split("\n")
    assert all(line.isprintable() and len(line) < 750 for line in lines)
    assert len(lines) < 25
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # line ends
        (GOOD.replace("\n", "\r"), r"log\.csv:1: a carriage return within the line"),
        (GOOD + "u0,i9,9,Bath\ru0,i8,9,Bath\n", r"log\.csv:17: a carriage return within the line"),
        (GOOD + "u0,i9\r,9,Bath\n", r"log\.csv:17: a carriage return"),  # which polars drops
        (GOOD + '"u\r",i9,9,Bath\n', r"log\.csv:17: user .*"),
        ("\n" + GOOD, r"log\.csv:1: the header line is blank"),
        # what is not seen
        (GOOD + "\ufeffu0,i9,9,Oslo\n", r"log\.csv:17: user holds a control character or a byte-order mark"),
        (GOOD + "u0,a\ufeffb,9,Oslo\n", r"log\.csv:17: item holds a control character or a byte-order mark"),
        (GOOD + "u0,a\0b,9,Oslo\n", r"log\.csv:17: item holds a control character"),
        (GOOD + 'u0,"a\nb",9,Oslo\n', r"log\.csv:17: item holds a control character"),
        (GOOD + "u3,i9,9,\ufeffOslo\n", r"log\.csv:17: city holds a NUL, a carriage return or a byte-order mark"),
        ("\ufeff\ufeff" + GOOD, r"no column 'user'; did you mean '\\ufeffuser'\?; there are \\ufeffuser, item"),
        ("\0" * 1000, r"log\.csv:1: not UTF-8 text"),
        # other encodings
        (GOOD.encode("utf-16-le"), r"log\.csv:1: not UTF-8 text"),
        ((GOOD + "u0,é,9,Oslo\n").encode("latin-1"), r"log\.csv:17: not UTF-8 text; encoding says"),
        # quotes
        (GOOD + '"u0,i9,9,Oslo\n', r"log\.csv:17: a quote is opened and not closed"),
        ('"' + GOOD, r"log\.csv:1: a quote is opened and not closed"),
        (GOOD + 'u0,i"9,9,Oslo\nu0,i9,9,Oslo\n', r"log\.csv:17: a quote"),
        (GOOD + '"u0"x,i9,9,Oslo\n', r"log\.csv:17: a quote within a field"),
        # times
        (GOOD + f"u0,i9,{2**63},Oslo\n", r"log\.csv:17: time is no integer of 64 bits"),
        (GOOD + "u0,i9,٣,Oslo\n", r"log\.csv:17: time is"),
        # compression
        (gzipped((GOOD + "u0,i9,9,Oslo,more\n").encode()), r"log\.csv:17: 5 fields, the header has 4"),
        (gzipped((GOOD + ",i9,9,Oslo\n").encode()), r"log\.csv:17: user is missing"),
        (gzipped((GOOD + "u0,i9,x,Oslo\n").encode()), r"log\.csv:17: time is no integer"),
        (gzipped((GOOD + "u0,é,9,Oslo\n").encode("latin-1")), r"log\.csv:17: not UTF-8 text"),
        (GZIPPED[:-20], r"log\.csv: what gzip made is damaged"),
        (GZIPPED[:-8] + bytes(8), r"log\.csv: what gzip made is damaged"),
        (zlib.compress(GOOD.encode()), r"log\.csv: is compressed, and not by gzip; decompress it"),
        (bz2.compress(GOOD.encode()), r"log\.csv:1: not UTF-8"),
        # length
        (GOOD + f"{LONG},i9,9,Oslo\nu0,,9,Oslo\n", r"log\.csv:18: item is missing"),
        (GOOD + f"{LONG},i9,9,Oslo\nu0,i9,9,Oslo,more\n", r"log\.csv:18: 5 fields, the header has 4"),
        (GOOD + f"u3,i9,9,{LONG}\nu3,i8,9,y\n", r"log\.csv:18: user u3 has city 'y', on an earlier row 'xxx"),
        (f"{LONG},{LONG}\n", r"log\.csv: no column 'user'; there are xxx"),
        (",".join(f"column{n}" for n in range(500)) + "\n", r"there are column0, .*, and 488 more"),
        # columns
        ("user,item,time,city,user\n" + "u,i,1,x,v\n" * 6, r"log\.csv: 2 columns called 'user'; rename"),
    ],
    ids=told,
)
def test_csv_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    source = tmp_path / "log.csv"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(source, "csv", replace(COLUMNS, attributes=("city",)), message)


@pytest.mark.parametrize(
    "content",
    [
        GZIPPED,
        gzipped(GOOD[:40].encode()) + gzipped(GOOD[40:].encode()),
        gzipped(b"\xef\xbb\xbf" + GOOD.encode()),
        b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("Oslo", '"Oslo, ""N""\r\n."').encode(),
        GOOD.replace(",0,Oslo", f",{2**63 - 1},Oslo").replace(",1,Oslo", f",{-(2**63)},Oslo").encode(),
        GOOD.replace("city", "user_duplicated_0").replace("Oslo", LONG).encode(),
        (GOOD.replace("\n", ",,\n")).encode(),  # two columns without a name
    ],
    ids=told,
)
def test_csv_read_as_it_stands(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    prepare_store(tmp_path / "log.csv", tmp_path / "store", "csv", COLUMNS)
    users, items = raw_ids(tmp_path / "store")
    assert users == ["u0", "u1", "u2"]
    assert sorted(map(str, items)) == ["i0", "i1", "i2", "i3", "i4"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["*", "^u.*$", "user", "attribute user", "row"])
def test_names_of_columns_are_no_patterns(tmp_path: Path, kind: str, name: str) -> None:
    frame = pl.DataFrame({"ua": [f"u{row // 5}" for row in range(15)], "ub": [f"i{row % 5}" for row in range(15)]})
    frame = frame.with_columns(pl.lit("a").alias(name))
    source = tmp_path / f"log.{kind}"
    frame.write_csv(source) if kind == "csv" else frame.write_parquet(source)
    options = Options(user_column="ua", item_column="ub", attributes=(name,), min_count=1, split="leave_one_out")
    prepare_store(source, tmp_path / "store", kind, options)
    [attribute] = InteractionStore.open(tmp_path / "store").attributes
    assert (attribute.name, attribute.labels) == (name, ("a",))
    assert raw_ids(tmp_path / "store")[0] == ["u0", "u1", "u2"]


def test_a_line_longer_than_any_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, records):
        monkeypatch.setattr(module, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    (tmp_path / "log.csv").write_text(GOOD + "x" * (1 << 20) + ",,,,,,")
    refused(tmp_path / "log.csv", "csv", COLUMNS, r"log\.csv:17: ends nowhere; .* in 1 MB")
    source = write_splits(tmp_path / "source", with_profiles=False)
    (source / "small_test.txt").write_text("3,1,0\n" + "x" * (1 << 21))
    refused(source, "comirec", Options(), r"small_test\.txt:2: a line of more than 1 MB")


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda source: (source / name).write_bytes(content.encode() if isinstance(content, str) else content)


def changed(name: str, before: bytes, after: bytes) -> Callable[[Path], object]:
    return lambda source: (source / name).write_bytes((source / name).read_bytes().replace(before, after))


def encoded(name: str, encoding: str) -> Callable[[Path], object]:
    return lambda source: (source / name).write_bytes((source / name).read_bytes().decode("latin-1").encode(encoding))


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(source: Path) -> None:
        (source / name).unlink(missing_ok=True)
        make(source / name)

    return change


PIPE, LOOP, NOWHERE = os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("nowhere")
MAP = "small_item_map.txt"


def write_sequential(source: Path) -> Path:
    source.mkdir()
    (source / "sequential.txt").write_text(SEQUENTIAL)
    return source


SOURCES: dict[str, Callable[[Path], Path]] = {
    "eupmim": lambda source: write_splits(source, with_profiles=True),
    "sequential": write_sequential,
    "movielens": lambda source: write_movielens(source, random_events(60, 35, 400)),
    "fliggy": lambda source: write_fliggy(source, random_events(60, 35, 400)),
}
RAW_ITEMS = {str(item): f"B{item}" for item in range(1, 8)}


def maps(**users: object) -> Callable[[Path], object]:
    return write("datamaps.json", json.dumps({"id2user": users, "id2item": RAW_ITEMS}))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("eupmim", write(MAP, "a,1\rb,2\rc,3\r"), rf"{MAP}:1: a carriage return within the line"),
        ("eupmim", write(MAP, "a,1\n\ufeffb,2\n"), rf"{MAP}:2: a byte-order mark within the text"),
        ("eupmim", write(MAP, "\ufeff\ufeffa,1\n"), rf"{MAP}:1: a byte-order mark within the text"),
        ("eupmim", write(MAP, "a,1\nb\0,2\n"), rf"{MAP}:2: not UTF-8 text"),
        ("eupmim", write(MAP, f"{LONG},1\n{LONG},2\n"), rf"{MAP}:2: raw_id xxx.* is mapped twice"),
        ("eupmim", write(MAP, gzipped(b"a,1\n")), rf"{MAP}:1: not UTF-8 text"),
        ("eupmim", instead(MAP, PIPE), rf"{MAP}: is a pipe, not a file"),
        ("eupmim", instead(MAP, LOOP), rf"{MAP}: cannot be read \(Too many levels of symbolic links\)"),
        ("eupmim", instead(MAP, NOWHERE), rf"{MAP}: is a link to a file that is not there"),
        ("eupmim", instead("small_test.txt", PIPE), r"small_test\.txt: is a pipe"),
        ("eupmim", instead("small_test.txt", Path.mkdir), r"small_test\.txt: is a directory"),
        ("eupmim", encoded("small_test.txt", "utf-16"), r"small_test\.txt:1: not UTF-8 text"),
        ("eupmim", encoded("small_test.txt", "utf-16-be"), r"small_test\.txt:1: not UTF-8 text"),
        ("eupmim", changed("small_test.txt", b"3,", b"3" * 100_000 + b","), r"small_test\.txt:1: user is '333.*'"),
        ("eupmim", changed("small_test.txt", b"3,", "٣,".encode()), r"small_test\.txt:1: user is '٣'"),
        ("sequential", write("sequential.txt", f"1 2\n{LONG} 1\n"), r"sequential\.txt:2: 'xxx.*' is no id"),
        ("sequential", changed("sequential.txt", b"\n", b"\r"), r"sequential\.txt:1: a carriage return"),
        ("sequential", instead("datamaps.json", NOWHERE), r"datamaps\.json: is a link to a file that is not there"),
        ("sequential", instead("datamaps.json", PIPE), r"datamaps\.json: is a pipe"),
        ("sequential", write("datamaps.json", "[" * 100_000), r"datamaps\.json: no map of ids: .*nested too deep"),
        ("sequential", write("datamaps.json", '{"a":' * 100_000), r"datamaps\.json: no map of ids"),
        ("sequential", write("datamaps.json", "[1]"), r"datamaps\.json: no map of id to raw id"),
        ("sequential", write("datamaps.json", "NaN"), r"datamaps\.json: no map of id to raw id"),
        ("sequential", write("datamaps.json", '{"id2user": ' + "9" * 5000 + "}"), r"datamaps\.json: no map of ids"),
        ("sequential", write("datamaps.json", '{"id2user": ["a"]}'), r"no map of id .* 'id2user' \(there is \['a'\]\)"),
        ("sequential", write("datamaps.json", '{"id2user": {"1": "a", "1": "b"}}'), "'1' is given twice"),
        ("sequential", maps(**{"1": "a", "3": "a"}), "two ids have the raw id 'a' under the key 'id2user'"),
        ("sequential", maps(**{"1": "\ufeffa"}), r"no map of id .*\(there is '\\ufeffa'\)"),
        ("sequential", maps(**{"1": "\ud800"}), r"no map of id .*\(there is '\\ud800'\)"),
        ("sequential", maps(**{"1": LONG + "\0"}), r"no map of id .*\(there is 'xxx"),
        ("sequential", maps(**{"1": ""}), r"no map of id .*\(there is ''\)"),
        ("movielens", changed("movies.dat", b"\n", b"\r"), r"movies\.dat:1: a carriage return within"),
        ("movielens", encoded("movies.dat", "utf-16"), r"movies\.dat:1: not ISO-8859-1 text"),
        ("movielens", changed("users.dat", b"\n", b"\r"), r"users\.dat:1: a carriage return within"),
        ("movielens", instead("ratings.dat", PIPE), r"ratings\.dat: is a pipe"),
        ("fliggy", changed(PROFILE, b"\n", b"\r"), r"user_profile\.csv:1: a carriage return within"),
        ("fliggy", changed(HISTORY, b"\n", b"\r"), r"history\.csv:1: a carriage return within"),
        ("fliggy", changed(PROFILE, b",a,", "\n9,1,\ufeffa,".encode()), r"user_profile\.csv:\d+: "),
    ],
    ids=told,
)
def test_text_refused(tmp_path: Path, kind: str, change: Callable[[Path], object], message: str) -> None:
    source = SOURCES[kind](tmp_path / "source")
    change(source)
    refused(source, kind, Options(), message)


def test_a_mark_at_the_start_is_none_of_the_text(tmp_path: Path) -> None:
    source = SOURCES["sequential"](tmp_path / "source")
    maps(**{"1": "A"})(source)
    (source / "datamaps.json").write_bytes(b"\xef\xbb\xbf" + (source / "datamaps.json").read_bytes())
    prepare_store(source, tmp_path / "store", "sequential")
    assert raw_ids(tmp_path / "store") == (["A", None, None], list(RAW_ITEMS.values()))


CATEGORIES = "item,category\ni1,a\ni2,b\n"


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("c.csv", PIPE, r"c\.csv: is a pipe, not a file; it cannot be read as a table"),
        ("c.csv", LOOP, r"c\.csv: cannot be read \(Too many levels"),
        ("c.csv", Path.mkdir, r"c\.csv: is a directory"),
        ("c.parquet", Path.mkdir, r"c\.parquet: is a directory"),
        ("c.csv", lambda path: path.write_text(CATEGORIES + "i3,c,d\n"), r"c\.csv:4: 3 fields, the header has 2"),
        ("c.csv", lambda path: path.write_text(CATEGORIES.replace("\n", "\r")), r"c\.csv:1: a carriage return"),
        ("c.csv", lambda path: path.write_text("item,category,item\n"), "has 2 columns called 'item'"),
        ("c.csv", lambda path: path.write_text(CATEGORIES, encoding="utf-16-le"), r"c\.csv:1: not UTF-8"),
        ("c.csv", lambda path: path.write_text(CATEGORIES + '"i3,c\n'), r"c\.csv:4: a quote is opened"),
        ("c.csv", lambda path: path.write_text(LONG), r"c\.csv: has no column 'item'; there are xxx"),
        ("c.csv", lambda path: path.write_text(""), r"c\.csv: the file is empty"),
        ("c.parquet", lambda path: path.write_text("PAR1"), r"c\.parquet: cannot be read \("),
    ],
    ids=told,
)
def test_categories_refused(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    store = small_store(tmp_path / "store", num_users=10, num_items=20)
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_categories(tmp_path / name, store)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 750


def test_categories_of_a_file_called_like_a_pattern(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=10, num_items=20)
    (tmp_path / "c[1].csv").write_text(CATEGORIES)
    (tmp_path / "c1.csv").write_text(CATEGORIES.replace(",a", ",b"))
    assert read_categories(tmp_path / "c[1].csv", store)[0].tolist()[:4] == [-1, 1, 2, -1]
