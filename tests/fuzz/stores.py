"""(f) Stores whose arrays and tables hold what they must not, hashes made to fit, and checkpoints trained on them."""

import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.fitting import adopt_store, change_json
from tests.fuzz.metadata import AFTERWARDS, OF_STORE
from tests.fuzz.place import Chosen, Place, Plan, words

TYPES = [
    "int64", "int32", "uint32", "int16", "uint8", "int8", "uint64", "float64", "float32", "float16", "bool",
    "complex128", ">i8", ">i4", "<U3", "S4", "datetime64[s]", "timedelta64[s]",
]  # fmt: skip
ARRAYS = ("offsets", "items", "timestamps", "attributes", "split")
OF_HELD = [
    "train --config small.yaml --run-dir tuned --set train.max_steps=2 --set data.dir=held",
    "evaluate --data held --baseline popularity,ease,cooccurrence --top-n 3 --json out.json",
    "evaluate --data held --baseline popularity --split valid --top-n 3 --json out.json",
]


def draw(place: Place, random: Random) -> Plan:
    name = random.choice(["store", "store", "held"])
    store = place.take(name, "small.yaml")
    if name == "store":
        place.take("run", "model", "released.pt")
    change = random.choice([_numbers, _numbers, _numbers, _array, _array, _header, _table, _table, _bytes])
    what = change(store, random)
    if random.random() < 0.3 and change in (_numbers, _array):
        _fit_counts(store)
    adopt_store(place.here, store)
    line = random.choice(OF_STORE if name == "store" else OF_HELD)
    after = AFTERWARDS.get(line.partition(" ")[0])
    return Plan(f"{name}: {what}", [words(line), *([words(after)] if after else [])])


def _numbers(store: Path, random: Random) -> str:
    """Numbers outside their range, or out of order."""
    name = random.choice(ARRAYS)
    array = np.load(store / f"{name}.npy")
    flat = array.reshape(-1)
    at, other = random.randrange(len(flat)), random.randrange(len(flat))
    info = np.iinfo(array.dtype)
    low, high = int(array.min()), int(array.max())
    chosen = random.choice(
        [info.min, info.max, -1, 0, 1, high + 1, high + 1000, low - 1, low, high, 3, 7, 254, 255, 2**31 - 1, 2**40]
    )
    value = min(max(chosen, info.min), info.max)
    match random.randrange(6):
        case 0 | 1 | 2:
            flat[at] = value
        case 3:
            flat[at], flat[other] = flat[other], flat[at]
        case 4:
            flat[:] = value
        case _:
            flat[:] = flat[::-1].copy()
    np.save(store / f"{name}.npy", array)
    return f"{name} {value}"


def _array(store: Path, random: Random) -> str:
    """Another type, shape or order."""
    name = random.choice(ARRAYS)
    array: Any = np.load(store / f"{name}.npy")
    what = random.choice(["type", "type", "shape", "order", "length", "object", "none"])
    match what:
        case "type":
            with np.errstate(all="ignore"):
                array = array.astype(random.choice(TYPES))
        case "shape":
            array = random.choice([array[:, None], array[None], array.reshape(-1), array[..., 0], array[:0], array.T])
        case "order":
            array = random.choice([np.asfortranarray(array), np.asfortranarray(np.stack([array, array]))])
        case "length":
            array = random.choice(
                [array[:-1], array[1:], np.concatenate([array, array[-1:]]), np.concatenate([array, array])]
            )
        case "object":
            array = array.astype(object)
        case _:
            array = np.zeros((), array.dtype)
    np.save(store / f"{name}.npy", array, allow_pickle=True)
    return f"{name} {what}"


def _header(store: Path, random: Random) -> str:
    """The text that says what is in an array's file."""
    name = random.choice(ARRAYS)
    file = store / f"{name}.npy"
    content = file.read_bytes()
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length].decode()
    shapes = [
        "(-1,)",
        "(2**40,)",
        "(1099511627776,)",
        "()",
        "(1.0,)",
        "None",
        "(0,)",
        "(41,41)",
        "[41]",
        "(9999999999999999999999,)",
    ]
    start = header.index("'shape'")
    others = [
        header[:start] + f"'shape': {random.choice(shapes)}, }}",
        header.replace("'<", "'>").replace("'|", "'<"),
        header.replace("False", random.choice(["True", "None", "0"])),
        header.replace("descr", "dtype"),
        header.replace("{", "{'x': 1, "),
        "[" * 100,
        "__import__('os').getcwd()",
        "\0" * 20,
        "{}",
        "",
    ]
    other = random.choice(others).encode()
    other += b" " * (-(len(other) + 11) % 64) + b"\n"
    start_bytes = random.choice([content[:6], content[:6], content[:6], b"\x93NUMPX"]) + random.choice(
        [b"\x01\x00", b"\x01\x00", b"\x09\x00"]
    )
    size = random.choice([len(other), len(other), len(other), 65535]).to_bytes(2, "little")
    file.write_bytes(start_bytes + size + other + content[10 + length :])
    return f"{name} header"


def _bytes(store: Path, random: Random) -> str:
    """Of any file: hardly anything, flipped bytes, the end gone; or not there."""
    file = random.choice(sorted(path for path in store.iterdir() if path.suffix != ".json"))
    content = bytearray(file.read_bytes())
    match random.randrange(5):
        case 0:
            file.write_bytes(
                random.choice(
                    [
                        b"",
                        b"\0",
                        b"PAR1",
                        b"PAR1PAR1",
                        b"\x93NUMPY",
                        bytes(content[:-1]),
                        bytes(content[: len(content) // 2]),
                    ]
                )
            )
        case 1:
            file.write_bytes(bytes(content) + b"\0" * 8)
        case 2:
            file.unlink()
            change_json(store / "dataset.json", lambda manifest: manifest["files"].pop(file.name))
        case _:
            for _ in range(random.choice([1, 3, 30])):
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            file.write_bytes(bytes(content))
    return f"bytes of {file.name}"


def _table(store: Path, random: Random) -> str:
    """Another table of raw ids: columns, types, nulls, repeats, rows."""
    import polars as pl

    file = store / random.choice(["users.parquet", "items.parquet"])
    frame = pl.read_parquet(file)
    column = random.choice(frame.columns)
    types = [pl.String, pl.Float64, pl.Int8, pl.UInt64, pl.Int32, pl.Binary, pl.Categorical, pl.Null]
    fourth = pl.int_range(pl.len()) == 3
    another = random.choice([pl.lit(None), pl.col(column).first()])
    odd = ["\n", "\r", "\0", "\x1b[31m", "[bold]", " ", "\u2028", "\ufeff"]
    changes: dict[str, Callable[[], pl.DataFrame]] = {
        "gone": lambda: frame.drop(column),
        "renamed": lambda: frame.rename({column: random.choice(["x", "", "ID", "id2"])}),
        "another type": lambda: frame.with_columns(pl.col(column).cast(random.choice(types), strict=False)),
        "in lists": lambda: frame.with_columns(pl.concat_list(column)),
        "in structs": lambda: frame.with_columns(pl.struct(column).alias(column)),
        "all null": lambda: frame.with_columns(pl.lit(None).alias(column)),
        "all alike": lambda: frame.with_columns(pl.col(column).first()),
        "one changed": lambda: frame.with_columns(
            pl.when(fourth).then(another).otherwise(pl.col(column)).alias(column)
        ),
        "fewer rows": lambda: frame.head(random.choice([0, 1, frame.height - 1])),
        "more rows": lambda: pl.concat([frame, frame.head(3)]),
        "reversed": lambda: frame.reverse(),
        "shifted": lambda: frame.with_columns(pl.col("id") + random.choice([1, -1, 1000, 2**40])),
        "more columns": lambda: frame.with_columns(pl.lit("x").alias(random.choice(["title", "category", "x" * 500]))),
        "long ids": lambda: frame.with_columns(pl.col("raw_id") + "x" * 20_000),
        "odd ids": lambda: frame.with_columns(pl.col("raw_id") + random.choice(odd)),
        "another format": lambda: frame,
    }
    what = random.choice(list(changes))
    try:
        changed = changes[what]()
    except pl.exceptions.PolarsError:  # of types that do not become each other
        changed = frame.drop(column)
    if what == "another format":
        target = io.BytesIO()
        changed.write_ipc(target)
        text = random.choice([changed.write_csv(), changed.write_ndjson()]).encode()
        file.write_bytes(random.choice([b"", b"PAR1"]) + random.choice([target.getvalue(), text]))
    else:
        changed.write_parquet(file)
    return f"{column} of {file.name} {what}"


def _fit_counts(store: Path) -> None:
    """Counts in dataset.json as the arrays have them now."""

    def fit(manifest: Any) -> None:
        offsets, items = (np.load(store / f"{name}.npy") for name in ("offsets", "items"))
        manifest["counts"].update(users=len(offsets) - 1, interactions=len(items), item_rows=int(items.max()) + 1)

    change_json(store / "dataset.json", fit)


def _chosen(name: str, change: Callable[[np.ndarray], Any], line: str, must: int | None = 2) -> Callable[[Place], Plan]:
    def plan(place: Place) -> Plan:
        store = place.take("store", "run", "model", "small.yaml")
        array = np.load(store / f"{name}.npy")
        np.save(store / f"{name}.npy", array if (other := change(array)) is None else other)
        adopt_store(place.here, store)
        return Plan(f"chosen {name}", [words(line)], must)

    return plan


def _put(at: Any, value: int) -> Callable[[np.ndarray], None]:
    def put(array: np.ndarray) -> None:
        array[at] = value

    return put


TRAIN, BASELINES, RECOMMEND = OF_STORE[0], OF_STORE[3], OF_STORE[5]
CHOSEN: Chosen = {
    "offsets-fall": _chosen("offsets", _put(5, 1), BASELINES),
    "attribute-negative": _chosen("attributes", _put((1, 1), -1), RECOMMEND),
    "offsets-negative": _chosen("offsets", _put(3, -7), BASELINES),
    "item-too-large": _chosen("items", _put(4, 999), TRAIN),
    "item-negative": _chosen("items", _put(4, -1), BASELINES),
    "attribute-too-large": _chosen("attributes", _put((0, 0), 99), TRAIN),
    "split-unknown": _chosen("split", _put(0, 7), BASELINES),
    "fortran": _chosen("attributes", np.asfortranarray, TRAIN, None),
}
