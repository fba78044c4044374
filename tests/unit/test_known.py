"""prepare with files that tell of items and users: by raw id, whatever their order, and what cannot be is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data.formats import Options
from eupmim_dist.data.item_features import Known
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

OPTIONS = Options(user_column="user", item_column="item", min_count=1, split="leave_one_out")
USERS, ITEMS = 12, 9


def log(place: Path) -> Path:
    rows = [(f"u{user}", f"i{(user + step) % ITEMS}") for user in range(USERS) for step in range(6)]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(place / "log.csv")
    return place / "log.csv"


def prepared(place: Path, **known: Any) -> InteractionStore:
    prepare_store(log(place), place / "store", "csv", OPTIONS, known=Known(**known), force=True)
    return InteractionStore.open(place / "store")


def vectors_by_item(store: InteractionStore) -> dict[str | None, list[float]]:
    assert store.item_vectors is not None
    names = store.raw_item_ids(np.arange(1, store.num_item_rows))
    return dict(zip(names, store.item_vectors[1:].tolist(), strict=True))


VECTORS = {f"i{n}": [n + 0.5, -n, 1.0] for n in range(ITEMS + 3) if n != 4}  # one is missing, three are of others


def write_parquet(place: Path, item: str = "item", **changed: list[float]) -> Path:
    rows = {**VECTORS, **changed}
    pl.DataFrame({item: list(rows), "vector": list(rows.values())}).reverse().write_parquet(place / "v.parquet")
    return place / "v.parquet"


def write_npy(place: Path) -> Path:
    np.save(place / "n.npy", np.array(list(VECTORS.values()), np.float64))
    pl.DataFrame({"row": range(len(VECTORS)), "item": list(VECTORS)}).write_parquet(place / "n.parquet")
    return place / "n.npy"


@pytest.mark.parametrize("write", [write_parquet, write_npy])
def test_vectors_come_by_raw_id(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    store = prepared(tmp_path, item_vectors=write(tmp_path))
    assert vectors_by_item(store) == {f"i{n}": VECTORS.get(f"i{n}", [0.0, 0.0, 0.0]) for n in range(ITEMS)}
    report = store.manifest.report
    assert (report["items_without_a_vector"], report["vectors_of_other_items"]) == (1, 3)


def latin(place: Path) -> Path:
    (place / "l.csv").write_text("item,tags\ni1,é\n", encoding="latin-1")
    return place / "l.csv"


def wide(place: Path) -> Path:
    (place / "w.csv").write_text('item;tags\ni1;"a\nb"\n;x\n', encoding="utf-16")
    return place / "w.csv"


def two(place: Path) -> Path:
    (place / "t.csv").write_text("a;item;tags;b,item,tags\n")
    return place / "t.csv"


def jsonl(place: Path) -> Path:
    (place / "i.jsonl").write_text('{"item": "i1", "tags": "a"}\n')
    return place / "i.jsonl"


def rows_of_interests(place: Path) -> Path:
    table = pl.DataFrame({"user": ["u1", "u1"], "interest": [1, 2], "vector": [[1.0], [2.0]]})
    table.write_parquet(place / "k.parquet")
    return place / "k.parquet"


def test_users_and_items_together(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,price,tags\ni2,1.5,a|b\ni0,,b\nother,3,c\n")
    pl.DataFrame({"user": ["u3", "u1"], "vector": [[1.0, 2.0], [3.0, 4.0]]}).write_parquet(tmp_path / "u.parquet")
    store = prepared(
        tmp_path,
        items=tmp_path / "items.csv",
        attributes=("tags:|",),
        numbers=("price",),
        user_vectors=tmp_path / "u.parquet",
    )
    [(tags, values)] = store.values_of_items()
    assert tags.labels == ("a", "b")  # nobody had `other`
    names = store.raw_item_ids(np.arange(1, store.num_item_rows))
    assert values[1 + names.index("i2")].tolist() == [1, 2]
    assert values[1 + names.index("i0")].tolist() == [2, 0]
    assert store.item_numbers is not None
    assert store.item_numbers[1 + names.index("i2"), 0] == 1.5
    assert store.user_vectors is not None
    [user] = store.users_of_raw_ids(["u1"])
    assert user is not None
    assert store.user_vectors[user].tolist() == [3.0, 4.0]
    assert store.user_vectors.sum() == 10.0


NAMES = ("S", "é")


@pytest.mark.parametrize(
    ("name", "separator", "encoding", "told"),
    [
        ("items.csv", ";", "utf-8-sig", {}),
        ("items.tsv", "\t", "utf-16", {}),
        ("items.txt", "|", "cp1252", {"items_encoding": "cp1252"}),
        ("items", ":", "utf-8", {"items_separator": ":"}),
    ],
)
def test_a_file_of_items_is_read_as_a_log_is(
    tmp_path: Path, name: str, separator: str, encoding: str, told: dict[str, str]
) -> None:
    rows = [f"i{n}{separator}{n}.5{separator}{NAMES[n % 2]}" for n in range(ITEMS)]
    text = "\n".join([separator.join(("item", "price", "size")), *rows]) + "\n"
    (tmp_path / name).write_text(text, encoding=encoding)
    store = prepared(tmp_path, items=tmp_path / name, attributes=("size",), numbers=("price",), **told)
    [(size, values)] = store.values_of_items()
    assert store.item_numbers is not None
    for row, raw in enumerate(store.raw_item_ids(np.arange(1, ITEMS + 1)), start=1):
        assert raw is not None
        assert store.item_numbers[row, 0] == int(raw[1:]) + 0.5
        assert size.labels[values[row, 0] - 1] == NAMES[int(raw[1:]) % 2]


@pytest.mark.parametrize(
    ("header", "given", "labels"),
    [
        ("size:a", "size:a", ("xay", "z")),  # the name of a column
        ("size", "size:a", ("x", "y", "z")),  # a column and what separates its values
        ("size:a,size", "size:a", ("xay", "z")),
        ("size:b", "size:b:a", ("x", "y", "z")),
    ],
)
def test_names_that_hold_a_colon(tmp_path: Path, header: str, given: str, labels: tuple[str, ...]) -> None:
    more = ",other" * header.count(",")
    (tmp_path / "items.csv").write_text(f"item,{header}\ni1,xay{more}\ni2,z{more}\n")
    store = prepared(tmp_path, items=tmp_path / "items.csv", attributes=(given,))
    assert [attribute.labels for attribute in store.manifest.item_attributes] == [labels]


def test_several_vectors_of_a_user_lie_one_after_another(tmp_path: Path) -> None:
    interests = np.arange(USERS * 6, dtype=np.float32).reshape(USERS, 2, 3)
    np.save(tmp_path / "users.npy", interests)
    users = [f"u{user}" for user in range(USERS)]
    pl.DataFrame({"row": range(USERS), "user": users}).write_parquet(tmp_path / "users.parquet")
    store = prepared(tmp_path, user_vectors=tmp_path / "users.npy")
    assert store.user_vectors is not None
    rows = store.users_of_raw_ids(users)
    assert [store.user_vectors[row].tolist() for row in rows] == [
        [*first, *second] for first, second in interests.tolist()
    ]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (lambda p: {"items_encoding": "cp1252"}, "items_?-?encoding: of which file, .*items says"),
        (
            lambda p: {"items": p / "i.csv", "attributes": ("tags",), "items_separator": "ab"},
            "items_separator ab: give",
        ),
        (lambda p: {"items": p / "i.csv", "attributes": ("tags",), "items_encoding": "x"}, "items_encoding x: unknown"),
        (lambda p: {"items": latin(p), "attributes": ("tags",)}, r"l\.csv:2: not UTF-8 text; items_encoding says"),
        (lambda p: {"items": wide(p), "attributes": ("tags",)}, r"w\.csv:4: the item is missing"),
        (lambda p: {"items": two(p), "attributes": ("tags",)}, "by comma and by semicolon; say which with items_sep"),
        (lambda p: {"items": p / "i.csv", "attributes": ("tags", "tags:|")}, "the same column is given twice"),
        (lambda p: {"items": jsonl(p), "attributes": ("tags",), "items_separator": ";"}, "is of csv files alone, and"),
        (lambda p: {"user_vectors": rows_of_interests(p)}, r"a row for each interest; give users\.npy"),
        (lambda p: {"attributes": ("tags",)}, "item_?-?attributes?.*items says; give it too"),
        (lambda p: {"items": p / "i.csv"}, "say which columns to take"),
        (lambda p: {"items": p / "i.csv", "attributes": ("size",)}, r"i\.csv: no column size"),
        (lambda p: {"items": p / "o.csv", "attributes": ("tags",)}, "has none of the items of the data"),
        (lambda p: {"item_vectors": p / "none.parquet"}, "no such file"),
        (lambda p: {"item_vectors": p / "i.csv"}, r"ends in neither \.parquet nor \.npy"),
        (lambda p: {"item_vectors": write_parquet(p, "raw_id")}, "no column item; there are raw_id, vector"),
        (lambda p: {"item_vectors": write_parquet(p, i2=[1.0])}, "vectors are of 1, 3 numbers"),
        (lambda p: {"item_vectors": write_parquet(p, i2=[1.0, float("nan"), 0.0])}, "vector of item i2 is not finite"),
        (lambda p: {"user_vectors": write_parquet(p, "user")}, "vector of none of the users"),
        (lambda p: {"item_vectors": (write_npy(p), np.save(p / "n.npy", np.ones(3)))[0]}, r"n\.npy: is float64 \(3,\)"),
        (lambda p: {"item_vectors": (write_npy(p), np.save(p / "n.npy", np.ones((3, 2))))[0]}, "has 3 vectors, and"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, known: Callable[[Path], dict[str, Any]], message: str) -> None:
    (tmp_path / "i.csv").write_text("item,tags\ni1,a\n")
    (tmp_path / "o.csv").write_text("item,tags\nx,a\n")
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, **known(tmp_path))
    assert not (tmp_path / "store").exists()
