"""Paths that lead to what nobody expects, and Parquet files that hold it: one short line, no hang, nothing left."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from eupmim_dist import prepare, synthesize
from eupmim_dist.arguments import path_of, store_dir
from eupmim_dist.cli.options import check_json, cutoffs
from eupmim_dist.data.formats import Options
from eupmim_dist.data.frames import reading
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, mistake_of
from eupmim_dist.export.imported import read_release
from tests.runs import command_line
from tests.unit.test_odd_text import COLUMNS, GOOD, raw_ids, refused, told

LONG = "n" * 300
CSV = "--format csv --user-column user --item-column item --min-count 1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(GOOD)
    Path("empty").mkdir()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("not/there")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prepare \udcff.csv --format csv --out new", r"\\udcff.csv: is not UTF-8 text; rename"),
        (f"prepare log.csv {CSV} --out \udcff", r"\\udcff: is not UTF-8 text; rename"),
        ("config show --set data.dir=\udcff", r"data.dir=\\udcff: is not UTF-8 text; rename"),
        (f"prepare {LONG} {CSV} --out new", "nnn: cannot be read .File name too long"),
        (f"prepare log.csv {CSV} --out {LONG}", "nnn: cannot be written: File name too long"),
        (f"prepare log.csv {CSV} --out {'n' * 250}", "nnn: cannot be written .File name too long"),
        (f"verify {LONG}", "nnn: File name too long"),
        (f"config show {LONG}", "nnn: cannot be read as a configuration: File name too long"),
        (f"synth --users 20 --items 500 --out {LONG}", "nnn: cannot be written: File name too long"),
        (f"import {LONG} --data store --out new", "nnn: File name too long"),
        (f"inspect log.csv --json {LONG}", "--json nnn.*: cannot be written: File name too long"),
        (f"prepare loop {CSV} --out new", "loop: cannot be read .Too many levels of symbolic links"),
        (f"prepare log.csv {CSV} --out loop", "loop: cannot be written: Too many levels"),
        (f"prepare log.csv {CSV} --out loop/new", "loop/new: cannot be written: Too many levels"),
        ("synth --users 20 --items 500 --out loop", "loop: cannot be written: Too many levels"),
        ("config show loop", "loop: cannot be read as a configuration: Too many levels"),
        ("import loop --data store --out new", "loop: cannot be read .Too many levels"),
        ("inspect log.csv --json loop", "--json loop: cannot be written: Too many levels"),
        (f"prepare nowhere {CSV} --out new", "nowhere: no such file or directory"),
        (f"prepare pipe {CSV} --out new", "pipe: is a pipe, not a file"),
        ("config show pipe", "pipe: cannot be read as a configuration: is a pipe"),
        ("config show /dev/zero", "/dev/zero: cannot be read as a configuration: is a device"),
        ("import pipe --data store --out new", "pipe: is a pipe, not a file; give a released"),
        (f"prepare empty {CSV} --out new", r"empty: the folder has no file \*\.csv, \*\.tsv, .*; name a file"),
        ("prepare log.csv --format sequential --out new", r"log.csv/sequential\.txt: cannot be read .Not a directory"),
        (f"prepare log.csv {CSV} --out log.csv/new", "log.csv/new: cannot be written: Not a directory"),
        (f"prepare log.csv --format {'n' * 100_000} --out new", "--format nnn.*100,000.*nnn: unknown; one of eupmim"),
        (f"prepare log.csv --{'n' * 100_000} --out new", "No such option: --nnn.*characters"),
        (f"train --run-dir new --set {'n' * 100_000}", "--set nnn.*100,000.*nnn: write it as key=value"),
        ("config show --set model=[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested more than 20 levels deep"),
        ("synth --users 1000000000000 --items 500 --out new", "--users 1000000000000: needs 30,000 GB of memory"),
        ("synth --users 20 --items 1000000000000 --out new", "--items 1000000000000: needs 100,000 GB of memory"),
        ("synth --users 9000 --items 120000000 --mean-length 10000000 --out new", "--mean-length 10000000: needs"),
        (f"synth --users 20 --items 500 --seed {2**64} --out new", f"--seed {2**64}: give a number below"),
    ],
    ids=told,
)
def test_a_line_on_the_command_line(here: Path, line: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    code = command_line(line)
    error = capfd.readouterr().err
    assert code == 2, error
    assert len(error.splitlines()) == 1
    assert len(error) < 1000
    assert re.search(message, error), error
    assert sorted(here.rglob("*")) == before


def test_a_working_directory_that_is_gone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    assert command_line("synth --users 20 --items 500 --out new") == 2
    assert capfd.readouterr().err == "error: the working directory is gone; change to another one\n"


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?", "~", "{a,b}", "s3:", "a\nb"])
def test_names_are_no_patterns(here: Path, name: str) -> None:
    Path(name).mkdir()
    Path("x1").mkdir()
    frame = pl.DataFrame({"user": ["u"] * 5, "item": list("abcde"), "time": range(5)})
    frame.write_parquet(Path(name, "log[1].parquet").absolute())
    frame.write_csv(Path(name, "log[1].csv").absolute())
    for decoy in (Path("x1/log1"), Path(name, "log1")):
        for kind in ("parquet", "csv"):
            decoy.with_suffix(f".{kind}").write_text("user,item,time\n")
    stores = []
    for kind in ("parquet", "csv"):
        prepare_store(Path(name, f"log[1].{kind}"), Path(name, kind + "[x]*?"), kind, COLUMNS)
        stores.append(Path(name, kind + "[x]*?"))
        assert raw_ids(stores[-1]) == (["u"], list("abcde"))
    assert InteractionStore.open(stores[0]).fingerprint == InteractionStore.open(stores[1]).fingerprint
    assert synthesize(here / name / "[s]", 20, 500).num_users == 20


def test_a_directory_is_not_all_the_files_below_it(here: Path) -> None:
    Path("logs.parquet/below").mkdir(parents=True)
    frame = pl.DataFrame({"user": ["u"] * 5, "item": list("abcde"), "time": range(5)})
    for name in ("below/a.parquet", ".a.parquet", "a.parquet.gz"):
        frame.write_parquet(Path("logs.parquet", name))
    refused(here / "logs.parquet", "parquet", COLUMNS, r"logs\.parquet: the folder has no file \*\.parquet; name")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("\udcff", r"out: \\udcff: a name that is not UTF-8 text; rename it"),
        ("a\0b", r"out: a\\x00b: no name holds a NUL"),
        (["x" * 9000], r"out: give a path, not \['xxx.*x'\]"),
    ],
    ids=told,
)
def test_paths_given_in_python(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        path_of("out", value)
    assert len(str(error.value)) < 300
    if isinstance(value, str):
        for give in (lambda: store_dir(value), lambda: prepare(value, "new", format="csv"), lambda: synthesize(value)):
            with pytest.raises(UserError, match=message.removeprefix("out: ")):
                give()


def test_a_name_that_begins_like_a_home(here: Path) -> None:
    assert path_of("out", "~root/x") == Path("~root/x")
    assert path_of("out", Path("~/x")) == Path.home() / "x"
    Path("~").mkdir()
    assert path_of("out", Path("~/x")) == Path("~/x")


def test_json_and_cutoffs(here: Path) -> None:
    with pytest.raises(UserError, match=r"^json loop: cannot be written: Too many levels"):
        check_json(Path("loop"))
    assert cutoffs(" 20,10 ") == [10, 20]
    for text in ("٣", "1_0", "+5", "9" * 5000, "", "10,,20"):
        with pytest.raises(UserError, match=r"^top_n .*: give whole numbers from 1"):
            cutoffs(text)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error", "data/items.npy"), None),  # a restart may find it well
        (PermissionError(errno.EACCES, "Permission denied", b"x\xff"), "x\\udcff: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files", "data/items.npy"), None),
        (OSError(errno.ECONNRESET, "Connection reset"), None),
        (OSError("no errno"), None),
        (ValueError("x"), None),
        (UserError("told"), "told"),
    ],
    ids=told,
)
def test_what_the_user_has_to_mend(error: Exception, message: str | None) -> None:
    found = mistake_of(error)
    assert message == (found and found.as_typed)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("users", 10.5, "users 10.5: give a whole number"),
        ("items", "many", "items 'many': give a whole number"),
        ("mean_length", 10**400, "mean_length 1000.*: give a number below"),
        ("seed", 2**63, "seed 9223372036854775808: give a number below"),
        ("seed", -(10**400), "seed -1000.*: give a number below"),
    ],
    ids=told,
)
def test_sizes_that_are_none(tmp_path: Path, option: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        synthesize(tmp_path / "new", **{option: value})  # type: ignore[arg-type]
    assert len(str(error.value)) < 200
    assert not list(tmp_path.iterdir())


ROWS = 10


def table(**columns: pl.Series) -> pl.DataFrame:
    full = {
        "user": pl.Series([f"u{row // 5}" for row in range(ROWS)]),
        "item": pl.Series([f"i{row % 5}" for row in range(ROWS)]),
        "time": pl.Series(range(ROWS)),
    }
    return pl.DataFrame({**full, **columns})


def every(value: object, dtype: type[pl.DataType] | pl.DataType) -> pl.Series:
    return pl.Series([value] * ROWS, dtype=dtype)


def cut(first: int, last: int | None = None) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        table().write_parquet(path)
        path.write_bytes(path.read_bytes()[first:last])

    return change


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(item=every(1, pl.Decimal(10, 2))), r"column 'item' is Decimal.*; the item is an integer or a string"),
        (table(item=every(b"a", pl.Binary)), "column 'item' is Binary; the item is"),
        (table(item=every([1], pl.List(pl.Int64))), r"column 'item' is List\(Int64\); the item is"),
        (table(user=every({"a": 1}, pl.Struct({"a": pl.Int64}))), r"column 'user' is Struct.*; the user is"),
        (table(user=every(None, pl.Null)), "column 'user' is Null; the user is"),
        (table(time=every(1, pl.Duration)), r"column 'time' is Duration.*; the time is an integer, a date or text"),
        (table(time=every("a", pl.Enum([f"value{n}" for n in range(900)] + ["a"]))), "row 1: time is neither .*: 'a'"),
        (table(time=every(2**64 - 1, pl.UInt64)), "row 1: time is neither an integer of 64 bits nor .*: '184467"),
        (table(time=every(2**63 - 1, pl.Datetime("ms"))), "row 1: time is neither .*: 'a date out of range'"),
        (table(time=every(None, pl.Int64)), "row 1: time is missing"),
        (table(city=every([1], pl.List(pl.Int64))), r"column 'city' is List\(Int64\); a label is text, a number or"),
        (table(city=every({"a": 1}, pl.Struct({"a": pl.Int64}))), "column 'city' is Struct.*; a label is text"),
        (table(city=every(b"\xff", pl.Binary)), "column 'city' is Binary; a label is text"),
        (table(city=every(1, pl.Duration)), "column 'city' is Duration.*; a label is text"),
        (table(item=every("a\nb", pl.String)), "row 1: item holds a control character"),
        (table(city=every("a\0b", pl.String)), "row 1: city holds a NUL"),
        (table(city=every("a", pl.String)).head(0), "there is no row to take in it"),
        (pl.DataFrame(), "no column 'user'; there are none"),
        (cut(0, -10), r"log\.parquet: cannot be read \(.*\); copy or write it again"),
        (cut(50), r"log\.parquet: cannot be read \("),
        (cut(0, 0), r"log\.parquet: cannot be read \("),
    ],
    ids=told,
)
def test_parquet_refused(tmp_path: Path, content: pl.DataFrame | Callable[[Path], object], message: str) -> None:
    source = tmp_path / "log.parquet"
    content.write_parquet(source) if isinstance(content, pl.DataFrame) else content(source)
    cities = ("city",) if isinstance(content, pl.DataFrame) and "city" in content.columns else ()
    refused(source, "parquet", Options(**{**vars(COLUMNS), "attributes": cities}), message)


def test_parquet_of_wide_integers_and_plain_labels(tmp_path: Path) -> None:
    wide = pl.Series([2**100 + row % 5 for row in range(ROWS)], dtype=pl.Int128)
    frame = table(item=wide, city=every(True, pl.Boolean), age=every(1.5, pl.Float32))
    frame.write_parquet(tmp_path / "log.parquet")
    options = Options(**{**vars(COLUMNS), "attributes": ("city", "age")})
    prepare_store(tmp_path / "log.parquet", tmp_path / "store", "parquet", options)
    assert raw_ids(tmp_path / "store")[1] == [str(2**100 + row) for row in range(5)]
    labels = [attribute.labels for attribute in InteractionStore.open(tmp_path / "store").attributes]
    assert labels == [("true",), ("1.5",)]


def test_a_panic_of_polars_is_a_line_and_what_else_was_written_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def read(written: bytes, error: BaseException) -> None:
        with reading("log"):
            os.write(2, written)
            raise error

    with pytest.raises(UserError, match=r"^log: cannot be read \(thrift\); copy"):
        read(b"thread panicked at\n" * 50, pl.exceptions.PanicException("thrift\nand more"))
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match="its own"):
        read(b"a warning\n", UserError("its own"))
    assert capfd.readouterr().err == "a warning\n"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.zeros(1).expand(10**6, 10**6)}, r"x is \(1000000, 1000000\), more numbers than the file holds"),
        ({"x": torch.zeros(31, 0)}, r"x is \(31, 0\), no number"),
        ({"n" * 10**6: torch.zeros(2, dtype=torch.int64)}, "nnn.* is int64; only plain tensors of floats"),
    ],
    ids=told,
)
def test_released_models_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as error:
        read_release(tmp_path / "model.pt")
    assert len(str(error.value)) < 400
