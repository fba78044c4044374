"""csv and parquet as people have them: any separator and encoding, dates, blanks, gaps, bad rows, parts, conditions."""

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest

from eupmim_dist import prepare
from eupmim_dist.data.formats import Options, bad_rows, times
from eupmim_dist.data.prepare import look_at, prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from tests.runs import command_line

COLUMNS = Options(
    user_column="who",
    item_column="what",
    time_column="when",
    attributes=("age", "city"),
    title_column="film",
    min_count=2,
)
NAMES = ("who", "what", "when", "age", "city", "film", "event", "stars")
START = datetime(2024, 1, 31, 23, 0, tzinfo=UTC)
Row = dict[str, Any]


def events(seed: int = 1, users: int = 24) -> list[Row]:
    """Rows with a datetime; age and city of each user are "" on some of his rows, or on all."""
    random = Random(seed)
    profiles = [(random.choice(["", "7", "30", "101"]), random.choice(["", "Åre", "Bath; UK"])) for _ in range(users)]
    rows: list[Row] = []
    for user in range(users):
        for _ in range(random.randrange(5, 12)):
            item, (age, city) = random.randrange(9), profiles[user]
            rows.append(
                {
                    "who": f"u{user}",
                    "what": f"i{item}",
                    "when": START + timedelta(seconds=random.randrange(10**6)),
                    "age": random.choice([age, age, ""]),
                    "city": random.choice([city, city, ""]),
                    "film": f'The "{item}"',
                    "event": random.choice(["view", "buy", "refund", ""]),
                    "stars": random.choice(["1", "4", "4.5", "5"]),
                }
            )
    random.shuffle(rows)
    return rows


def filled(rows: list[Row]) -> list[Row]:
    """Each with what is known of its user, or `unknown`."""
    known = {(row["who"], name): row[name] for row in rows for name in ("age", "city") if row[name]}
    return [{**row, **{name: known.get((row["who"], name), "unknown") for name in ("age", "city")}} for row in rows]


def clean(path: Path, rows: list[Row]) -> Path:
    """Of the plainest kind: commas, times as microseconds, no gaps."""
    table = pl.DataFrame([{**row, "when": microseconds(row["when"])} for row in filled(rows)], schema=list(NAMES))
    table.write_csv(path)
    return path


def microseconds(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def stored(path: Path, source: Path | list[Path], options: Options = COLUMNS, kind: str = "csv") -> InteractionStore:
    prepare_store(source, path, kind, options)
    return InteractionStore.open(path)


def same(one: InteractionStore, other: InteractionStore) -> bool:
    return one.fingerprint == other.fingerprint and one.manifest.attributes == other.manifest.attributes


def quoted(value: str, separator: str) -> str:
    return '"' + value.replace('"', '""') + '"' if separator in value or '"' in value else value


def written(rows: list[Row], separator: str, end: str = "\n", blanks: bool = False, form: str = "") -> str:
    """CSV with times by `form`, ISO 8601 in the zone of Delhi if it is left out."""
    delhi = timezone(timedelta(hours=5, minutes=30))
    around = (lambda value, n: " " * (n % 3) + value + " " * (n % 2)) if blanks else (lambda value, n: value)
    lines = [separator.join(around(name, n) for n, name in enumerate(NAMES))]
    for row in rows:
        time = row["when"].strftime(form) if form else row["when"].astimezone(delhi).isoformat()
        values = [quoted(value, separator) for value in {**row, "when": time}.values()]
        lines.append(separator.join(around(value, n + len(lines)) for n, value in enumerate(values)))
    return end.join(lines) + end


BAD = {
    "u1": "1 field, the header has 8",
    "u1;i1;yesterday;;;;;": "time is no date or time (ISO 8601): 'yesterday'",
    ";i1;2024-01-01;;;;;": "user is missing",
    "u1; ;2024-01-01;;;;;": "item is missing",
    'u1;"i1;2024-01-01;;;;;': "a quote is opened and not closed",
    "u1;i1;2024-01-01;;;;;;": "9 fields, the header has 8",
    ";".join(NAMES): "repeats the header",
    "": "the line is blank",
    "u1;i\a1;2024-01-01;;;;;": "item holds a control character or a byte-order mark: 'i\\x071'",
    "u1;i1;17;;;;;": "time is no date or time (ISO 8601): '17'",
    "u1;i1;;;;;;": "time is missing",
}


def with_bad_lines(text: str, lines: Sequence[str], seed: int = 5) -> tuple[str, list[int]]:
    """A text with more lines, anywhere but first, and their numbers from 1."""
    random, content = Random(seed), text.splitlines()
    bad = sorted(random.sample(range(1, len(content) + len(lines)), len(lines)))
    for number, line in zip(bad, lines, strict=True):
        content.insert(number, line)
    return "\n".join(content) + "\n", [number + 1 for number in bad]


def test_a_messy_file_is_its_clean_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Semicolons, a byte-order mark, dates, empty attributes, blanks, a repeated header, bad rows: one command."""
    rows = events(users=100)
    text, lines = with_bad_lines(written(rows, ";", blanks=True), list(BAD))
    assert 0.01 < len(lines) / len(rows) < 0.02
    (tmp_path / "log.csv").write_text(text, encoding="utf-8-sig")
    line = f"prepare {tmp_path}/log.csv --format csv --user-column who --item-column what --time-column when"
    line += (
        f" --attribute age --attribute city --title-column film --min-count 2 --trim --skip-bad --out {tmp_path}/messy"
    )
    assert command_line(line) == 0
    messy = InteractionStore.open(tmp_path / "messy")
    assert same(messy, stored(tmp_path / "clean", clean(tmp_path / "clean.csv", rows)))

    told = capsys.readouterr().out
    assert max(map(len, told.partition("┌")[0].splitlines()[:-1])) <= 80  # the table is as wide as the terminal
    assert "semicolon, UTF-8 (byte-order mark)" in told
    assert f"rows         {len(rows) + len(BAD):,} read; {len(BAD)} bad ones skipped; {len(rows)} taken" in told
    assert "time         dates and times, 2024-01-31 23:" in told
    assert f"bad rows     1 x repeats the header: log.csv:{lines[list(BAD).index(';'.join(NAMES))]}" in told
    report = messy.manifest.report
    counts = {what: count for what, count in report.items() if what.startswith("bad rows skipped: ")}
    assert sum(counts.values()) == len(BAD)
    assert counts["bad rows skipped: wrong number of fields"] == 2
    kept = {str(raw) for raw in messy.raw_user_ids(np.arange(messy.num_users))}
    known = {row["who"] for row in rows if row["city"]}
    assert report["users without city, unknown there"] == len(kept - known) > 0


@pytest.mark.parametrize("skip", [False, True])
def test_all_problems_are_told_in_one_go(tmp_path: Path, skip: bool, capfd: pytest.CaptureFixture[str]) -> None:
    text, lines = with_bad_lines(written(events(), ";", blanks=True), list(BAD))
    source = tmp_path / "log.csv"
    source.write_text(text)
    options = replace(COLUMNS, trim=True, skip_bad=skip)
    if skip:
        assert stored(tmp_path / "store", source, options).num_users
        return
    with pytest.raises(UserError) as error:
        prepare_store(source, tmp_path / "store", "csv", options)
    head, *told = str(error.value).split("\n")
    assert head == f"{source}: 11 bad rows; mend or delete them, or leave them out with skip_bad"
    assert told[:10] == [f"{source}:{line}: {problem}" for line, problem in zip(lines, BAD.values(), strict=True)][:10]
    assert told[10:12] == ["and 1 more", "by reason:"]
    reasons = Counter({line.partition(" x ")[2]: int(line.partition(" x ")[0]) for line in told[12:]})
    assert reasons.total() == 11
    assert reasons["wrong number of fields"] == 2
    assert reasons["time is no date or time (ISO 8601); time_format says how times are written"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    line = f"prepare {source} --format csv --user-column who --item-column what --trim --out {tmp_path}/store"
    assert command_line(line) == 2
    printed = capfd.readouterr().err.splitlines()
    assert printed[0].startswith(f"error: {source}: ")
    assert printed[1] == f"{source}:{lines[0]}: {BAD['u1']}"


@pytest.mark.parametrize(
    ("separator", "encoding", "end"),
    [(";", "utf-16", "\r\n"), (",", "cp1252", "\r\n"), ("|", "utf-8-sig", "\n"), ("\t", "utf-16-be", "\n")],
)
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    rows = events()
    expected = stored(tmp_path / "expected", clean(tmp_path / "clean.csv", rows))
    text = written(rows, separator, end)
    (tmp_path / "log.csv").write_text(text, encoding=encoding, newline="")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text.encode(encoding)))
    found = encoding in ("utf-16", "utf-8-sig")  # by a mark
    options = replace(COLUMNS, encoding=None if found else encoding)
    assert same(stored(tmp_path / "plain", tmp_path / "log.csv", options), expected)
    given = replace(options, separator={"\t": "tab"}.get(separator, separator))
    assert same(stored(tmp_path / "packed", tmp_path / "log.csv.gz", given), expected)
    if separator != ",":
        with pytest.raises(UserError, match=r"log\.csv:.* no column 'who'; there are who"):
            prepare_store(tmp_path / "log.csv", tmp_path / "other", "csv", replace(options, separator=","))


HEADER = "who,what,when\n"
PLAIN = replace(COLUMNS, attributes=(), title_column=None, min_count=1, split="leave_one_out")


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        ("who;what;when;x,who,what,when\n", {}, r"log\.csv: .*columns by comma and by semicolon; say which with sep"),
        (HEADER, {"user_column": None, "item_column": None, "time_column": None}, r"^user_column: say which column"),
        (HEADER, {"item_column": "What"}, r"no column 'What'; did you mean 'what'\?; there are who, what, when"),
        (HEADER, {"separator": ";;"}, r"^separator ;;: give one character"),
        (HEADER, {"separator": "é"}, r"^separator é: give one character"),
        (HEADER, {"separator": '"'}, r"^separator \": give one character"),
        (HEADER, {"encoding": "latin-99"}, r"^encoding latin-99: unknown; give a name such as utf-8"),
        (HEADER, {"encoding": "hex"}, r"^encoding hex: unknown"),
        (HEADER, {"encoding": "utf-16"}, r"log\.csv: not UTF-16 text \(.*BOM\); encoding says"),
        (HEADER, {"encoding": "utf-16-le"}, r"log\.csv: read as UTF-16-LE, no column 'who'; there are"),
        (HEADER + "u,é,1\n", {"encoding": "ascii"}, r"log\.csv:2: not ASCII text; encoding says which"),
        (HEADER + "u,i,1\n" * 5 + "u,\x81\n", {"encoding": "cp1252"}, r"log\.csv:7: not CP1252 text; encoding says"),
        (b"who,what,when\nu,\xe9,1\n", {}, r"log\.csv:2: not UTF-8 text; encoding says which it is, such as cp1252"),
        (b"who,\xe9,what,when\n", {}, r"log\.csv:1: not UTF-8 text; encoding"),
        (" who ,what,when\n", {}, "there are blanks around the names of its columns; trim drops them"),
        (HEADER + "u , i,1\n", {}, r"log\.csv:2: user has blanks around it: 'u '; trim drops"),
        (HEADER + "u,i,31.01.2024\n", {}, r"log\.csv:2: time is neither .*: '31\.01\.2024'; time_format says"),
        (HEADER + "u,i,2024-02-30\n", {}, r"log\.csv:2: time is neither .*: '2024-02-30'; time_format"),
        (HEADER + "u,i,2024-02-29\n" * 6 + "u,i,2024-02-30\n", {}, r"log\.csv:8: time is no date .*: '2024-02-30'; t"),
        (HEADER + "u,i,2024-02-29\n", {"time_format": "%d.%m.%Y"}, r"2: time is not as time_format %d.%m.%Y: '2024"),
        (HEADER, {"time_format": "%H:%M"}, r"^time_format %H:%M: no date can be read by it"),
        (HEADER, {"time_format": "%Q"}, r"^time_format %Q: no date can be read by it"),
        (HEADER, {"time_format": "%Y", "time_column": None}, "^time_format: there are no times; give time_column"),
        (HEADER, {"where": ("stars>=4",)}, r"^where stars>=4: .*log\.csv: no column 'stars'; there are who, what"),
        (HEADER, {"where": ("what",)}, r"^where what: write it as event=purchase"),
        (HEADER, {"where": ("when>today",)}, r"^where when>today: 'today' is no number to compare with"),
        (HEADER, {"where": ("when>nan",)}, r"^where when>nan: 'nan' is no number"),
        (HEADER + "u,i,1\nu,i,\n", {"where": ("when>0",)}, r"log\.csv:3: when is no number, which where compares"),
        (HEADER + "u,i,1\nu,x,2\n", {"where": ("what<1",)}, r"log\.csv:2: what is no number, which where .*: 'i'"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_named(
    tmp_path: Path, content: str | bytes, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        prepare_store(tmp_path / "log.csv", tmp_path / "store", "csv", replace(PLAIN, **change))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    if "x," not in str(content):
        assert "\n" not in str(error.value)


SECONDS = 1706698800  # 2024-01-31 11:00 UTC
TIMES = [
    ("2024-01-31", 1706659200 * 10**6),
    ("2024-01-31T11:00", SECONDS * 10**6),
    ("2024-01-31 11:00:00", SECONDS * 10**6),
    ("2024-01-31T11:00:00Z", SECONDS * 10**6),
    ("2024-01-31T11:00:00.250", SECONDS * 10**6 + 250_000),
    ("2024-01-31 13:00:00.1234567+02:00", SECONDS * 10**6 + 123_456),
    ("2024-01-31T07:30:00-0330", SECONDS * 10**6),
    ("1969-12-31T23:59:59.999999", -1),
]


def test_times_of_one_column(tmp_path: Path) -> None:
    for text, value in TIMES:
        if text.endswith(("Z", ":00", ":00.250")) and "T" in text:  # what Python 3.11 reads too
            time = datetime.fromisoformat(text)
            assert microseconds(time if time.tzinfo else time.replace(tzinfo=UTC)) == value
    log = "".join(f"u,i{n},{text}\n" for n, (text, _) in enumerate(TIMES))
    (tmp_path / "log.csv").write_text(HEADER + log)
    store = stored(tmp_path / "store", tmp_path / "log.csv", PLAIN)
    assert store.timestamps is not None
    assert store.timestamps.tolist() == sorted(value for _, value in TIMES)
    by_time = [f"i{n}" for n, _ in sorted(enumerate(TIMES), key=lambda entry: entry[1][1])]
    assert store.raw_item_ids(np.asarray(store.items)) == by_time
    frame = pl.read_csv(tmp_path / "log.csv")
    made = prepare(frame, tmp_path / "made", user_column="who", item_column="what", time_column="when", min_count=1,
                   split="leave_one_out")  # fmt: skip
    assert made.fingerprint == store.fingerprint


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([SECONDS, SECONDS + 5], "Unix seconds, 2024-01-31 11:00 to 2024-01-31 11:00 UTC"),
        ([SECONDS * 10**3], "Unix milliseconds, 2024-01-31 11:00 to"),
        ([SECONDS * 10**6], "Unix microseconds, 2024-01-31 11:00 to"),
        ([SECONDS * 10**9], "Unix nanoseconds, 2024-01-31 11:00 to"),
        ([1, 2, 3], "integers, 1 to 3"),
        ([0, SECONDS], "integers, 0 to 1706698800"),
        ([-(2**63), 2**63 - 1], "integers, -9223372036854775808 to"),
        (["2024-01-31", "2024-01-31", 7], "dates and times, 2024-01-31 00:00 to"),
        (["2024-01-31", 7, 7], "integers, 7 to 7"),
        (["soon"], "unknown, none that can be read"),
    ],
)
def test_the_kind_of_times_is_that_of_most(values: list[object], told: str) -> None:
    table = pl.LazyFrame({"time": [str(value) for value in values]})
    kind = times.kind_of(times.parsed(table, "log", "when", pl.String(), None), None)
    assert str(kind).startswith(told)


def test_times_by_a_format_of_their_own(tmp_path: Path) -> None:
    rows = events()
    expected = stored(tmp_path / "expected", clean(tmp_path / "clean.csv", rows))
    for number, form in enumerate(("%d.%m.%Y %H:%M:%S", "%d/%b/%Y:%H:%M:%S %z", "%s")):
        (tmp_path / "log.csv").write_text(written(rows, ",", form=form))
        options = replace(COLUMNS, time_format=form)
        assert same(stored(tmp_path / str(number), tmp_path / "log.csv", options), expected)


CONDITIONS = {
    ("event=buy",): lambda row: row["event"] == "buy",
    ("event=view, buy",): lambda row: row["event"] in ("view", "buy"),
    ("event!=refund",): lambda row: row["event"] != "refund",
    ("event!=",): lambda row: row["event"] != "",
    ("stars>=4",): lambda row: float(row["stars"]) >= 4,
    ("stars<4.5", "event!=view", "stars>-1"): lambda row: float(row["stars"]) < 4.5 and row["event"] != "view",
    ("stars<=4", "stars=4,5"): lambda row: row["stars"] == "4",
}


@pytest.mark.parametrize("where", CONDITIONS)
def test_conditions(tmp_path: Path, where: tuple[str, ...]) -> None:
    rows = events(users=40)
    kept = [row for row in rows if CONDITIONS[where](row)]
    options = replace(COLUMNS, attributes=(), split="leave_one_out", min_count=1)
    expected = stored(tmp_path / "expected", clean(tmp_path / "clean.csv", kept), options)
    wanted = replace(options, where=where)
    found = stored(tmp_path / "csv", clean(tmp_path / "all.csv", rows), wanted)
    assert same(found, expected)
    dropped = {what: count for what, count in found.manifest.report.items() if what.startswith("rows dropped by")}
    assert sum(dropped.values()) == len(rows) - len(kept)
    pl.read_csv(tmp_path / "all.csv").write_parquet(tmp_path / "log.parquet")  # stars are numbers there
    assert same(stored(tmp_path / "parquet", tmp_path / "log.parquet", wanted, "parquet"), expected)
    frame = pl.read_csv(tmp_path / "all.csv").to_pandas()
    made = prepare(frame, tmp_path / "made", user_column="who", item_column="what", time_column="when",
                   title_column="film", split="leave_one_out", min_count=1, where=where)  # fmt: skip
    assert same(made, expected)


def test_a_row_that_is_not_wanted_may_be_bad(tmp_path: Path) -> None:
    good = "".join(f"u,i{n},{n},buy\n" for n in range(6))
    (tmp_path / "log.csv").write_text("who,what,when,event\n" + good + "u,,never,view\n" * 3)
    assert stored(tmp_path / "store", tmp_path / "log.csv", replace(PLAIN, where=("event=buy",))).num_users == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_are_one_file(tmp_path: Path, kind: str) -> None:
    rows = events()
    expected = stored(tmp_path / "expected", clean(tmp_path / "clean.csv", rows))
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / ".hidden.csv").write_text("no part")
    (folder / "README.md").write_text("no part")
    for number, start in enumerate(range(0, len(rows), 50)):
        part = rows[start : start + 50]
        if kind == "parquet":  # of several types
            frame = pl.DataFrame([{**row, "when": row["when"].replace(tzinfo=None)} for row in part])
            frame = frame.with_columns(pl.col("when").dt.cast_time_unit(["ms", "us", "ns"][number % 3]))
            frame.write_parquet(folder / f"part-{number}.parquet")
        elif number % 3:
            (folder / f"part-{number}.{['', 'csv', 'TSV'][number % 3]}").write_text(
                written(part, ",\t"[number % 3 - 1])
            )
        else:
            (folder / f"part-{number}.csv.gz").write_bytes(gzip.compress(written(part, "|").encode("utf-16")))
    assert number > 2
    found = stored(tmp_path / "store", folder, kind=kind)
    assert same(found, expected)
    assert found.manifest.source == f"{kind} parts"
    files = sorted(path for path in folder.iterdir() if path.name.startswith("part"))
    assert same(stored(tmp_path / "listed", files, kind=kind), expected)
    made = prepare(files, tmp_path / "made", user_column="who", item_column="what", time_column="when", min_count=2,
                   attributes=["age", "city"], title_column="film", format=kind)  # fmt: skip
    assert same(made, expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_messages_name_the_part(tmp_path: Path, kind: str) -> None:
    def write(name: str, frame: pl.DataFrame) -> Path:
        file = tmp_path / f"{name}.{kind}"
        frame.write_csv(file) if kind == "csv" else frame.write_parquet(file)
        return file

    good = pl.DataFrame({"who": ["u"] * 3, "what": ["i", "j", "k"], "when": [1, 2, 3], "age": ["1", None, "1"]})
    a = write("a", good)
    b = write("b", good.with_columns(what=pl.Series([None, "j", "k"])))
    c = write("c", good.with_columns(age=pl.Series(["1", None, "2"])))
    options = replace(PLAIN, attributes=("age",))
    line = {"csv": ":{}", "parquet": ": row {}"}[kind]
    of_b, of_c = (line.format(row + (kind == "csv")) for row in (1, 3))
    with pytest.raises(UserError) as error:
        prepare_store([a, b, c], tmp_path / "store", kind, options)
    assert str(error.value).split("\n") == [
        f"{a} and 2 more: 2 bad rows; mend or delete them, or leave them out with skip_bad",
        f"{b}{of_b}: item is missing",
        f"{c}{of_c}: user u has age '2', on an earlier row '1'",
        "by reason:",
        "1 x item is missing",
        "1 x user has another age on an earlier row; a user has one value of an attribute",
    ]
    store = stored(tmp_path / "store", [a, b, c], replace(options, skip_bad=True), kind)
    assert len(store.items) == 7
    assert [attribute.labels for attribute in store.attributes] == [("1",)]
    (tmp_path / f"empty.{kind}").mkdir()
    mistakes = {
        f"empty\\.{kind}: the folder has no file ": [tmp_path / f"empty.{kind}"],
        f"a\\.{kind}: is given twice": [a, b, a],
        f"d\\.{kind}: no column 'what'; there are who, when": [a, write("d", good.drop("what"))],
    }
    for message, sources in mistakes.items():
        with pytest.raises(UserError, match=message):
            prepare_store(sources, tmp_path / "other", kind, options)


def test_one_open_quote_costs_one_line(tmp_path: Path) -> None:
    lines = [f"u{n % 3},i{n},{n}" for n in range(60)]
    (tmp_path / "clean.csv").write_text(HEADER + "\n".join(lines))
    expected = stored(tmp_path / "expected", tmp_path / "clean.csv", PLAIN)
    for number, bad in enumerate(('u0,"i,1', 'u0,5" disk,1', '"u0"x,i,1', 'u0,i,"1')):
        broken = [*lines[:20], bad, *lines[20:40], bad, *lines[40:50], bad, *lines[50:]]
        (tmp_path / "log.csv").write_text(HEADER + "\n".join(broken))
        found = stored(tmp_path / str(number), tmp_path / "log.csv", replace(PLAIN, skip_bad=True))
        assert same(found, expected)
        assert found.manifest.report["bad rows skipped: quotes are not in order"] == 3


def test_attributes_of_a_row_that_stops_short_are_not_taken_for_missing(tmp_path: Path) -> None:
    lines = "".join(f'u{n % 3},i{n},{n},"a, b",\n' for n in range(30))
    (tmp_path / "log.csv").write_text("who,what,when,note,age\n" + lines + "u1,i,1,\n")
    with pytest.raises(UserError, match=r"log\.csv:32: 4 fields, the header has 5"):
        prepare_store(tmp_path / "log.csv", tmp_path / "store", "csv", replace(PLAIN, attributes=("age",)))
    (tmp_path / "log.csv").write_text("who,what,when,age,note\n" + lines.replace('"a, b",', '7,"a, b"') + "u1,i,1,\n")
    store = stored(tmp_path / "store", tmp_path / "log.csv", replace(PLAIN, attributes=("age",)))  # after what is used
    assert len(store.items) == 31


def test_blanks_around_quotes_are_trimmed(tmp_path: Path) -> None:
    lines = "".join(f' u{n % 3} , "i, {n} " ,"{n}"\n' for n in range(30))
    (tmp_path / "log.csv").write_text('"who " , what,when\n' + lines)
    store = stored(tmp_path / "store", tmp_path / "log.csv", replace(PLAIN, trim=True))
    assert store.raw_item_ids(np.array([1, 2])) == ["i, 0", "i, 1"]


def test_a_look_beforehand_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = events()
    (tmp_path / "log.csv").write_text(written(rows, ";"))
    line = "prepare log.csv --format csv --user-column who --item-column what --time-column when --attribute city"
    assert command_line(f"{line} --title-column film --where event!=refund --min-count 2 --dry-run") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    told = capsys.readouterr().out
    store = stored(tmp_path / "store", tmp_path / "log.csv", replace(COLUMNS, where=("event!=refund",)))
    words = " ".join(told.split())
    assert "columns user: who; item: what; time: when; title: film; attributes: city" in words
    assert f"store {store.num_users} users, {store.num_item_rows - 1} items, {len(store.items)} interactions" in words
    [first] = store.raw_user_ids(np.array([0]))
    titles = store.item_titles()
    items = ", ".join(str(titles[item]) for item in store.items[:5])
    assert f"first users {first} (city {store.attributes[1].labels[store.attribute_values[0, 1]]}): {items}" in words
    assert command_line("prepare log.csv --format csv --user-column who --item-column what") == 2
    assert "--out: name the directory of the new store, or look at the source with --dry-run" in capsys.readouterr().err


def test_a_look_beforehand_from_python_tells_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_text(written(events(), ";"))
    options: dict[str, Any] = {"user_column": "who", "item_column": "what", "min_count": 2, "dry_run": True}
    caplog.set_level("INFO", "eupmim_dist")
    assert prepare(tmp_path / "log.csv", format="csv", **options) is None
    of_file = [line.partition(": ") for line in caplog.messages]
    caplog.clear()
    assert prepare(pl.read_csv(tmp_path / "log.csv", separator=";"), tmp_path / "store", **options) is None
    of_frame = [line.partition(": ") for line in caplog.messages]
    assert [what for what, _, _ in of_file] == ["source", "columns", "rows", "store", "too rare"] + ["first users"] * 3
    assert of_frame == of_file[1:]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    with pytest.raises(UserError, match="negatives_seed: does not apply to a data frame"):
        prepare(pl.read_csv(tmp_path / "log.csv", separator=";"), tmp_path / "store", negatives_seed=1, **options)
    with pytest.raises(UserError, match=r"out=\.\.\., or look at it with dry_run=True"):
        prepare(tmp_path / "log.csv", format="csv", **options | {"dry_run": False})


def test_an_attribute_of_very_many_values_is_told_with_its_cost(tmp_path: Path) -> None:
    lines = "".join(f"u{user},i{item},{item},{user % 130}\n" for user in range(200) for item in range(5))
    (tmp_path / "log.csv").write_text("who,what,when,zip\n" + lines)
    told: list[str] = []
    options = replace(PLAIN, attributes=("zip",))
    look_at(tmp_path / "log.csv", "csv", options, beside=tmp_path / "x", tell=lambda what, text: told.append(text))
    assert any(text.startswith("zip has very many values: ") and "130 values x model.dim" in text for text in told)


def test_not_all_bad_rows_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bad_rows.BadRow] = []
    add = bad_rows.BadRows.add
    monkeypatch.setattr(bad_rows.BadRows, "add", lambda self, *args: (add(self, *args), kept.append(self)))
    (tmp_path / "log.csv").write_text(HEADER + "u\n" * 5000 + "u,,1\n" * 5000)
    with pytest.raises(UserError, match=r"log\.csv: 10,000 bad rows"):
        prepare_store(tmp_path / "log.csv", tmp_path / "store", "csv", PLAIN)
    assert {reason: len(rows) for reason, rows in kept[-1].first.items()} == {  # type: ignore[attr-defined]
        "wrong number of fields": 10,
        "item is missing": 10,
    }
