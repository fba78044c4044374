"""The format elmrec: negatives read or drawn, explanations, permuted ids, and what is wrong with a source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eupmim_dist import prepare
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

NUM_USERS, NUM_ITEMS = 12, 130


def sequences() -> dict[int, list[int]]:
    """By user, not in order; every item is somebody's, and many draws hold some of a user's own."""
    generator = np.random.default_rng(0)
    parts = np.array_split(generator.permutation(NUM_ITEMS) + 1, NUM_USERS)
    others = [generator.permutation(NUM_ITEMS)[:number] + 1 for number in generator.integers(0, 16, NUM_USERS)]
    items = [list(dict.fromkeys(np.concatenate(both).tolist())) for both in zip(parts, others, strict=True)]
    return dict(zip((generator.permutation(NUM_USERS) + 1).tolist(), items, strict=True))


def plain_negatives(own: dict[int, list[int]], seed: int, distinct: bool) -> dict[int, list[int]]:
    """As the authors drew them."""
    generator = np.random.RandomState(seed)
    pool = list(dict.fromkeys(item for items in own.values() for item in items))
    negatives: dict[int, list[int]] = {}
    for user, items in own.items():
        found: list[int] = []
        while len(found) < 99:
            drawn = generator.choice(pool, 99, replace=False).tolist()
            found += [item for item in drawn if item not in items and not (distinct and item in found)]
        negatives[user] = found[:99]
    return negatives


def as_lines(of_users: dict[int, list[int]]) -> str:
    return "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in of_users.items())


def written(place: Path, **files: Any) -> Path:
    """A source: sequential.txt, a whole datamaps.json, and other files by the names of their stems."""
    place.mkdir()
    own = sequences()
    maps = {"id2user": {str(u): f"U{u}" for u in own}, "id2item": {str(i): f"I{i}" for i in range(1, NUM_ITEMS + 1)}}
    content = {"sequential.txt": as_lines(own), "datamaps.json": maps, **files}
    for name, text in content.items():
        (place / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return place


RECORDS = {
    "train": [{"user": 3, "item": 7, "feature": "smell", "explanation": "it smells of roses", "rating": 5}],
    "val": [{"user": 1, "item": 2, "feature": "box", "explanation": "a fine box"}],
    "test": [],
}


def by_raw_id(store: InteractionStore, ids: np.ndarray, users: list[str]) -> dict[str, list[str | None]]:
    """Rows of `ids` (one a user of the store) by raw ids."""
    numbers = store.users_of_raw_ids(users)
    return {user: store.raw_item_ids(ids[number]) for user, number in zip(users, numbers, strict=True)}


@pytest.mark.parametrize("options", [{}, {"keep_ids": True}, {"permute_users": 5, "permute_items": 6}])
@pytest.mark.parametrize("given", [False, True])
def test_all_is_in_the_store_whatever_its_ids_are(tmp_path: Path, options: dict[str, Any], given: bool) -> None:
    own = sequences()
    negatives = plain_negatives(own, 77 if given else 12345, distinct=True)
    files = {"negative.txt": as_lines(dict(reversed(negatives.items())))} if given else {}
    source = written(tmp_path / "source", **{"explanation.json": RECORDS}, **files)
    store = prepare(source, tmp_path / "store", format="elmrec", **options)
    report = store.manifest.report
    keeps = "keep_ids" in options
    for what, seed in (("user", options.get("permute_users", 1)), ("item", options.get("permute_items", 1))):
        assert report.get(f"{what}_ids_permuted_by_seed") == (None if keeps else seed)
    assert (store.raw_user_ids(np.arange(NUM_USERS)) == [f"U{u}" for u in range(1, NUM_USERS + 1)]) == keeps
    assert report.get("negatives_drawn_by_seed") == (None if given else 12345)
    assert report["users_with_a_repeated_negative"] == 0
    assert store.split_rule == "leave_one_out"
    assert store.users("test").tolist() == list(range(NUM_USERS))

    assert store.negatives is not None
    users = [f"U{user}" for user in own]
    expected = {f"U{user}": [f"I{item}" for item in items] for user, items in negatives.items()}
    assert by_raw_id(store, store.negatives, users) == expected
    for user, items in own.items():
        [row] = store.users_of_raw_ids([f"U{user}"])
        assert row is not None
        history = store.items[store.offsets[row] : store.offsets[row + 1]]
        assert store.raw_item_ids(history) == [f"I{item}" for item in items]
    rows = store.explanations()
    assert rows is not None
    frame = rows.collect()
    assert store.raw_user_ids(frame["user"].to_numpy()) == ["U3", "U1"]
    assert store.raw_item_ids(frame["item"].to_numpy()) == ["I7", "I2"]
    assert frame.select("feature", "explanation", "split").rows() == [
        ("smell", "it smells of roses", "train"),
        ("box", "a fine box", "valid"),
    ]


def test_negatives_are_drawn_by_seed_and_rule(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    (source / "datamaps.json").unlink()
    for rule, repeated in (("distinct", False), ("repeats", True)):
        options = {"keep_ids": True, "negatives_seed": 2022, "negatives_rule": rule}
        store = prepare(source, tmp_path / rule, format="elmrec", **options)
        drawn = plain_negatives(sequences(), 2022, distinct=not repeated)
        assert store.negatives is not None
        assert store.negatives.tolist() == [drawn[user] for user in range(1, NUM_USERS + 1)]
        assert store.manifest.report["users_with_a_repeated_negative"] == (NUM_USERS if repeated else 0)
        assert store.raw_user_ids(np.array([4])) == ["5"]
        assert store.explanations() is None
    # What a file holds is taken as it is, unless a rule is asked for.
    (source / "negative.txt").write_text(as_lines(plain_negatives(sequences(), 2022, distinct=False)))
    prepare(source, tmp_path / "any", format="elmrec")
    with pytest.raises(UserError, match=r"negative\.txt:\d+: the negatives of user \d+ hold item \d+, twice"):
        prepare(source, tmp_path / "none", format="elmrec", negatives_rule="distinct")


Change = Callable[[Path], object]


def negatives_with(user: int, change: Callable[[list[int]], list[int] | None]) -> Change:
    def write(source: Path) -> object:
        negatives = plain_negatives(sequences(), 1, distinct=True)
        changed = change(negatives.pop(user))
        return (source / "negative.txt").write_text(as_lines(negatives | ({} if changed is None else {user: changed})))

    return write


def in_json(name: str, change: Callable[[Any], object]) -> Change:
    def write(source: Path) -> object:
        file = source / name
        content = json.loads(file.read_text()) if file.exists() else json.loads(json.dumps(RECORDS))
        change(content)
        return file.write_text(json.dumps(content))

    return write


def sequential(change: Callable[[dict[int, list[int]]], object]) -> Change:
    def write(source: Path) -> object:
        own = sequences()
        change(own)
        return (source / "sequential.txt").write_text(as_lines(own))

    return write


def record(**values: Any) -> Change:
    return in_json("explanation.json", lambda content: content["val"][0].update(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sequential(lambda own: own.update({4: own[4][:4]})), r"sequential\.txt:\d+: user 4 has 4 items, fewer than 5"),
        (
            sequential(lambda own: own.pop(4)),
            r"sequential\.txt:\d+: user 12, but there is no user 4; number users from 1",
        ),
        (in_json("datamaps.json", lambda m: m["id2user"].pop("7")), r"datamaps\.json: no raw id of user 7 under"),
        (in_json("datamaps.json", lambda m: m["id2item"].pop("9")), r"datamaps\.json: no raw id of item 9 under"),
        (negatives_with(6, lambda _: None), r"negative\.txt: no line for user 6; add it, or remove the file"),
        (negatives_with(6, lambda old: old[:98]), r"negative\.txt:12: user 6 has 98 negatives, expected 99"),
        (
            negatives_with(6, lambda old: [*old[:98], 500]),
            r"negative\.txt:12: .* user 6 hold item 500, which is not in",
        ),
        (
            negatives_with(6, lambda old: [*old[:98], sequences()[6][-1]]),
            r"negative\.txt:12: the negatives of user 6 hold item \d+, which he had",
        ),
        (
            lambda source: (source / "negative.txt").write_text(as_lines({13: list(range(1, 100))})),
            r"negative\.txt:1: user 13 is not in sequential\.txt \(1\.\.12\)",
        ),
        (in_json("explanation.json", lambda c: c.update(more=[])), r"explanation\.json: .* \(there is 'more'\)"),
        (in_json("explanation.json", lambda c: c.update(val=3)), r"explanation\.json: val is 3, expected a list"),
        (in_json("explanation.json", lambda c: c["val"].append(3)), r"explanation\.json: record 2 of val: 3 is none"),
        (
            record(user=13),
            r"explanation\.json: record 1 of val: user is 13, which is not in sequential\.txt \(1\.\.12\)",
        ),
        (record(user="A1"), r"explanation\.json: record 1 of val: user is 'A1', which is not in"),
        (record(item=0), r"explanation\.json: record 1 of val: item is 0, .* \(user 1\)"),
        (record(explanation=" "), r"explanation\.json: record 1 of val: explanation is ' ', expected text \(user 1\)"),
        (record(feature=None), r"explanation\.json: record 1 of val: feature is None, expected text"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, change: Change, message: str) -> None:
    change(source := written(tmp_path / "source"))
    with pytest.raises(UserError, match=message) as error:
        prepare(source, tmp_path / "store", format="elmrec")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("format_name", "options", "message"),
    [
        ("elmrec", {"negatives_rule": "some"}, "negatives_rule some: unknown; one of distinct, repeats"),
        ("elmrec", {"negatives_seed": 2**32}, "negatives_seed 4294967296: give a seed from 0 to 4294967295"),
        ("elmrec", {"keep_ids": True, "permute_users": 1}, "keep_ids: contradicts permute_users and permute_items"),
        ("sequential", {"keep_ids": True}, "keep_ids: only format elmrec permutes ids"),
        ("sequential", {"negatives_seed": 1}, "negatives_seed: does not apply to format sequential, only to elmrec"),
        ("elmrec", {"min_count": 2}, "min_count: does not apply to format elmrec, only to csv, parquet"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_options_that_do_not_apply(
    tmp_path: Path, format_name: str, options: dict[str, Any], message: str, dry_run: bool
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(written(tmp_path / "source"), tmp_path / "store", format=format_name, dry_run=dry_run, **options)


def test_a_seed_of_negatives_that_are_given_and_too_few_items(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    negatives_with(6, lambda old: old)(source)
    with pytest.raises(UserError, match=r"negatives_seed 1: .*negative\.txt has the negatives"):
        prepare(source, tmp_path / "store", format="elmrec", negatives_seed=1)
    few = {user: list(range(1 + 5 * user, 6 + 5 * user)) for user in range(1, 20)}
    few[1] = list(range(1, 8))
    (source / "sequential.txt").write_text(as_lines(few))
    (source / "negative.txt").unlink()
    (source / "datamaps.json").unlink()
    with pytest.raises(UserError, match=r"sequential\.txt:1: user 1 has 7 of \d+ items, and 99 others are needed"):
        prepare(source, tmp_path / "store", format="elmrec")
