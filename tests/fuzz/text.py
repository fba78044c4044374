"""(c) Text: sources, maps, titles and categories with what text files have when something went wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.roles import SOURCES
from tests.fuzz.values import changed_json

FIELDS = [
    b"", b" ", b"0", b"-1", b"1.0", b"1e5", b"+1", b" 1", b"007", b"9" * 20, b"9" * 18, b"9" * 5000, b"nan", b"NULL",
    "٣".encode(), b"0x1", b"1_0", b"a" * 140_000, b'"', b'"a', b'a"b', b'""', b"\0", b"\xff", "\u2028".encode(),
    "\x85".encode(), b"\x0b", b"\x1c", b"\xef\xbb\xbfu1", b"<script>", b"=1+1", b"u1", b"1",
]  # fmt: skip
BREAKS = [
    b"\r", b"\r\n", b"\n\n", b"\n\r", "\u2028".encode(), "\u2029".encode(), "\x85".encode(), b"\x0b", b"\x0c",
    b"\x1e", b"\0",
]  # fmt: skip
AS_IT_IS = [
    "", "", "--skip-bad", "--skip-bad --trim", "--trim", "--encoding cp1252 --skip-bad", "--encoding utf-16",
    "--separator ;", "--where age>=2 --skip-bad", "--where gender!=1",
]  # fmt: skip
EVALUATE = "evaluate --data new --baseline popularity,ease,cooccurrence --top-n 2 --json out.json"


def changed(content: bytes, random: Random) -> tuple[str, bytes]:
    """What was done, and the text then."""
    name = random.choice(list(CHANGES))
    return name, CHANGES[name](content, random)


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")[:-1] or [b""]


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def _field(content: bytes, random: Random) -> bytes:
    """One field of one line replaced."""
    lines = _lines(content)
    row = random.choice([0, 1, random.randrange(len(lines))]) % len(lines)
    separator = next((sign for sign in (b"::", b",", b" ") if sign in lines[row]), b",")
    fields = lines[row].split(separator)
    fields[random.randrange(len(fields))] = random.choice(FIELDS)
    lines[row] = separator.join(fields)
    return _joined(lines)


def _column(content: bytes, random: Random) -> bytes:
    """The names of the columns, or of the first line: one twice, swapped, gone, empty."""
    lines = _lines(content)
    fields = lines[0].split(b",")
    one, other = random.randrange(len(fields)), random.randrange(len(fields))
    match random.randrange(5):
        case 0:
            fields[one] = fields[other]
        case 1:
            fields[one], fields[other] = fields[other], fields[one]
        case 2:
            del fields[one]
        case 3:
            fields.append(fields[one])
        case _:
            fields[one] = random.choice([b"", b" " + fields[one], b"x" * 3000, b'"' + fields[one], fields[one].upper()])
    return _joined([b",".join(fields), *lines[1:]])


def _row(content: bytes, random: Random) -> bytes:
    """A line too long, too short, twice, in another place, gone, or blank."""
    lines = _lines(content)
    row, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(7):
        case 0:
            lines[row] += b",x"
        case 1:
            lines[row] = lines[row].rpartition(b",")[0]
        case 2:
            lines.insert(other, lines[row])
        case 3:
            lines[row], lines[other] = lines[other], lines[row]
        case 4:
            del lines[row]
        case 5:
            lines.insert(row, random.choice([b"", b" ", b"#", b",,,,,,", b"\t"]))
        case _:
            lines[row] = random.choice([b"x" * 2_000_000, lines[row] * 3000, lines[row][: len(lines[row]) // 2]])
    return _joined(lines)


def _breaks(content: bytes, random: Random) -> bytes:
    """Line ends of another kind, all or one."""
    end = random.choice(BREAKS)
    return content.replace(b"\n", end) if random.random() < 0.5 else _insert(content, end, random)


def _insert(content: bytes, what: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + what + content[at:]


def _bytes(content: bytes, random: Random) -> bytes:
    """Some bytes flipped, deleted, inserted, doubled, or the rest cut off."""
    array = bytearray(content)
    for _ in range(random.choice([1, 1, 3, 20])):
        at = random.randrange(len(array) + 1)
        length = random.choice([1, 1, 2, 8, 100])
        match random.randrange(5):
            case 0 if at < len(array):
                array[at] ^= 1 << random.randrange(8)
            case 1:
                del array[at : at + length]
            case 2:
                array[at:at] = random.randbytes(length)
            case 3:
                array[at:at] = array[at : at + length]
            case _:
                if random.random() < 0.2:
                    del array[at:]
    return bytes(array)


def _mark(content: bytes, random: Random) -> bytes:
    """A byte-order mark: in front, twice, or in front of a later line."""
    mark = b"\xef\xbb\xbf"
    at = random.choice([0, 0, content.find(b"\n") + 1])
    return content[:at] + mark * random.choice([1, 2]) + content[at:]


def _encoded(content: bytes, random: Random) -> bytes:
    text = content.decode("utf-8", "replace")
    encoding = random.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "latin-1"])
    return text.encode(encoding, "replace")


def _hardly(content: bytes, random: Random) -> bytes:
    """Hardly anything left."""
    first = _lines(content)[0]
    return random.choice(
        [b"", b"\n", b" ", first, first + b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b'"', b",", first * 2, content[:1]]
    )


CHANGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "field": _field,
    "column": _column,
    "row": _row,
    "line ends": _breaks,
    "bytes": _bytes,
    "mark": _mark,
    "encoding": _encoded,
    "hardly anything": _hardly,
    "insertion": lambda content, random: _insert(content, random.choice(FIELDS), random),
}


def draw(place: Place, random: Random) -> Plan:
    if random.random() < 0.1:
        return _categories(place, random)
    source = random.choice([*SOURCES, "log.csv", "log.csv"])
    taken = place.take(source)
    file = taken if taken.is_file() else random.choice(sorted(taken.iterdir()))
    content = file.read_bytes()
    packed = file.suffix == ".gz"
    content = gzip.decompress(content) if packed else content
    if file.suffix == ".json" and random.random() < 0.7:
        what, content = "JSON", changed_json(json.loads(content), random).encode()
    elif file.suffix == ".parquet":
        what, content = "bytes", _bytes(content, random)
    else:
        what, content = changed(content, random)
    if packed or (random.random() < 0.05 and file == taken):
        content = gzip.compress(content, mtime=0)
        if random.random() < 0.2:
            content = _bytes(content, random)
    file.write_bytes(content)
    more = random.choice(AS_IT_IS) if source.startswith("log.") else ""
    first = words(f"prepare {source} {SOURCES[source]} {more} --out new")
    place.take("small.yaml")
    then = random.choice(
        [EVALUATE, EVALUATE, "train --config small.yaml --run-dir run --set train.max_steps=2 --set data.dir=new"]
    )
    return Plan(f"text of {source}/{file.name}: {what}", [first, words(then)])


def _categories(place: Place, random: Random) -> Plan:
    place.take("run", "store")
    file = place.take(random.choice(["items.csv", "items.csv", "items.parquet"]))
    change = _bytes if file.suffix == ".parquet" else lambda content, random: changed(content, random)[1]
    file.write_bytes(change(file.read_bytes(), random))
    line = random.choice(["evaluate run --top-n 3", "recommend run --user u1 --top-n 3"])
    return Plan(f"text of {file.name}", [words(f"{line} --categories {file.name} --diversity 0.5 --json out.json")])


def _chosen(source: str, name: str, change: Callable[[bytes], bytes]) -> Callable[[Place], Plan]:
    def plan(place: Place) -> Plan:
        file = Path(place.take(source), name)
        content = file.read_bytes()
        if file.suffix == ".gz":
            file.write_bytes(gzip.compress(change(gzip.decompress(content)), mtime=0))
        else:
            file.write_bytes(change(content))
        return Plan(f"text of {source}", [words(f"prepare {source} {SOURCES[source]} --out new")], must=2)

    return plan


def _second_line(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def changed_text(content: bytes) -> bytes:
        first, second, rest = content.split(b"\n", 2)
        return b"\n".join([first, change(second), rest])

    return changed_text


CHOSEN: Chosen = {
    "carriage-returns": _chosen("eupmim", "shop_user_map.txt", lambda text: text.replace(b"\n", b"\r")),
    "mark-in-map": _chosen("comirec", "shop_item_map.txt", lambda text: b"\xef\xbb\xbf" * 2 + text),
    "column-twice": _chosen("log.csv", "", lambda text: text.replace(b"time", b"user", 1)),
    "gzip-with-a-bad-row": _chosen("log.csv.gz", "", _second_line(lambda line: line + b",x")),
    "long-field": _chosen("log.csv", "", _second_line(lambda line: b"x" * 140_000 + line + b",x")),
    "long-line": _chosen("comirec", "shop_train.txt", _second_line(lambda line: line * 3000)),
}
