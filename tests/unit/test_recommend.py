"""Recommendations to users, files and histories, against brute force: one user, one list, one item at a time."""

import json
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from eupmim_dist import recommending
from eupmim_dist.api import load
from eupmim_dist.cli import options
from eupmim_dist.cli import recommend as recommend_module
from eupmim_dist.data.audience import Audience, asked
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.data.requests import Requests
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.recommend import Recommendations, Wanted, recommendations
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.export import frame_files
from eupmim_dist.hashing import sha256
from eupmim_dist.recommending import recommend, recommend_batches, write_recommendations
from eupmim_dist.train.state import Assembled
from tests.runs import command_line, config_of, train_in
from tests.stores import small_store

NUM_ITEMS, LENGTH = 30, 6
NEW = {"age": ["3"], "gender": ["1"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recommend")
    train_in(config_of(path, train__max_steps=6, train__learning_rate=0.1, evaluation__batch_size=7), path / "run")
    return path / "run"


@pytest.fixture(scope="module")
def trained(run: Path) -> Assembled:
    return load(run)


def interests_of(trained: Assembled, history: list[int], user: int, attributes: list[int]) -> torch.Tensor:
    """[K, D], of a batch of one."""
    read = history[-LENGTH:]
    batch = UserBatch(
        num_predictions=1,
        capacity=1,
        user=torch.tensor([user]),
        attributes=torch.tensor([attributes]),
        history=torch.tensor([read + [NO_ROW] * (LENGTH - len(read))]),
        position=torch.tensor([[max(len(read) - 1, 0)]]),
    )
    trained.model.eval()
    with torch.no_grad():
        return trained.model.encode(trained.tables.lookup(trained.model.uses(batch)).rows[0], batch).queries[0].double()


def item_rows(trained: Assembled) -> torch.Tensor:
    ids = torch.arange(NUM_ITEMS + 1)
    return trained.tables.lookup({"item": ("item", ids)}).rows[0]["item"].detach().double()


def of_store(trained: Assembled, user: int) -> tuple[list[int], int, list[int]]:
    """History, the row that ranks for the user, attributes."""
    store = trained.store
    history = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
    return history, user if user in store.users("train") else NO_ROW, store.attribute_values[user].tolist()


def best(scores: torch.Tensor, num: int, without: list[int]) -> list[int]:
    scores = scores.clone()
    scores[[0, *without]] = -torch.inf
    order = torch.argsort(scores, descending=True, stable=True)[:num]
    return [item for item in order.tolist() if scores[item] > -torch.inf]


def check_lists(trained: Assembled, frame: pl.DataFrame, people: dict[str, tuple], num: int, **filters: Any) -> None:
    """A frame against brute force; `people` by name: history, row, attributes."""
    rows, expected = item_rows(trained), []
    for name, (history, user, attributes) in people.items():
        all_scores = interests_of(trained, history, user, attributes) @ rows.T
        scores, interest = all_scores.max(0)
        without = [] if filters.get("seen") else list(history)
        without += [item for item in range(NUM_ITEMS + 1) if item not in filters.get("only", range(NUM_ITEMS + 1))]
        for rank, item in enumerate(best(scores, num, without), start=1):
            title = f"Item {item}"
            expected.append((name, rank, f"i{item}", title, float(scores[item]), int(interest[item]) + 1))
    assert frame.drop("score").rows() == [row[:4] + row[5:] for row in expected]
    np.testing.assert_allclose(frame["score"], [row[4] for row in expected], rtol=1e-4, atol=1e-5)


def test_everybody_gets_the_best_of_all_items_in_any_kind_of_file(trained: Assembled, tmp_path: Path) -> None:
    people = {f"u{user}": of_store(trained, user) for user in range(40)}
    parquet = tmp_path / "out.parquet"
    written = write_recommendations(trained, parquet, all_users=True, top_n=12)
    frame = pl.read_parquet(parquet)
    assert (written.users, written.items) == (40, len(frame))
    assert frame.schema == recommend(trained, "u1").schema
    check_lists(trained, frame, people, 12)  # of users with 20 items 10 are left, so some lists are shorter
    assert len(frame) < 40 * 12
    assert pl.concat(recommend_batches(trained, all_users=True, top_n=12)).equals(frame)
    write_recommendations(trained, tmp_path / "out.csv", all_users=True, top_n=12)
    assert pl.read_csv(tmp_path / "out.csv", schema=frame.schema).equals(frame)
    write_recommendations(trained, tmp_path / "out.jsonl", all_users=True, top_n=12)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["user"] for line in lines] == list(people)
    assert [{"user": line["user"], **item} for line in lines for item in line["items"]] == frame.to_dicts()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "out.parquet"]
    assert set(recommend(trained, split="test")["user"]) == {f"u{user}" for user in trained.store.users("test")}


def test_histories_up_to_the_cut_give_the_lists_that_an_evaluation_judges(trained: Assembled) -> None:
    result = evaluate_model(trained, "test", "strict", [5], per_user=True).per_user
    assert result is not None
    cuts, _ = trained.store.evaluation_window(result.users, "test")
    histories = [
        [f"i{item}" for item in of_store(trained, user)[0][:cut]] for user, cut in zip(result.users, cuts, strict=True)
    ]
    frame = recommend(trained, [f"u{user}" for user in result.users], 5, histories=histories)
    ranked = [f"i{item}" for item in result.ranked[:, 0].flatten() if item != NO_ROW]
    assert frame["item"].to_list() == ranked


def test_people_the_store_does_not_know(trained: Assembled) -> None:
    frame = recommend(trained, "6", 6, histories=[["i3", "i9", "i3", "i27"]], attributes={"age": [3], "gender": ["1"]})
    check_lists(trained, frame, {"6": ([3, 9, 3, 27], NO_ROW, [3, 1])}, 6)
    # The store's history and attributes, told anew, are as the store's; None stands for them.
    users = ["u1", "u35", "u2"]
    told = [[f"i{item}" for item in of_store(trained, user)[0]] for user in (1, 35)]
    attributes = pl.DataFrame({"age": [str(of_store(trained, user)[2][0]) for user in (1, 35, 2)]})
    again = recommend(trained, users, 6, histories=[*told, None], attributes=attributes)
    assert again.equals(recommend(trained, users, 6))
    # A history without a user is nobody's, though it is numbered as somebody may be called.
    numbered = Requests(
        pl.DataFrame({"user": ["u1"], "history": [["i3"]], "age": "3", "gender": "1"}), str, named=False
    )
    assert asked(trained.store, numbered, (), source="", skip=False).users.tolist() == [NO_ROW]
    assert recommend(trained, histories=[["i3", "i9", "i3", "i27"]], attributes=NEW)["user"].unique().to_list() == ["1"]
    other = recommend(trained, "u1", 6, attributes={"age": 6})
    history, row, [_, gender] = of_store(trained, 1)
    check_lists(trained, other, {"u1": (history, row, [6, gender])}, 6)


def test_only_some_items(trained: Assembled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = [29, 2, 3, 17, 11, 5]
    (tmp_path / "items.txt").write_text("".join(f"i{item}\n" for item in [*allowed, 99, 98]))
    frame = recommend(trained, ["u1", "u2"], 5, items=tmp_path / "items.txt", exclude_seen=False)
    people = {"u1": of_store(trained, 1), "u2": of_store(trained, 2)}
    check_lists(trained, frame, people, 5, seen=True, only=allowed)
    assert "items.txt: unknown items: 2 of 8 (i99, i98)" in capsys.readouterr().err
    frame = recommend(trained, ["u1", "u2"], 5, items=[f"i{item}" for item in allowed])
    check_lists(trained, frame, people, 5, only=allowed)
    seen = f"i{people['u1'][0][0]}"
    write_recommendations(trained, tmp_path / "out.jsonl", ["u1", "u1"], items=[seen])
    assert (tmp_path / "out.jsonl").read_text() == '{"user":"u1","items":[]}\n' * 2


def test_reasons_are_what_the_score_would_lose(trained: Assembled) -> None:
    history = [4, 9, 4, 12, 20]
    told = {"u1": of_store(trained, 1), "u33": of_store(trained, 33), "new": (history, NO_ROW, [3, 1])}
    histories = [None, None, [f"i{item}" for item in history]]
    ages = {name: [None, None, *value] for name, value in NEW.items()}
    frame = recommend(trained, list(told), 4, histories=histories, attributes=ages, why=True)
    check_lists(trained, frame.drop("because"), told, 4)
    rows, lengths = item_rows(trained), set()
    for name, item, because in frame.select("user", "item", "because").iter_rows():
        taken, user, attributes = told[name]
        read, row = taken[-LENGTH:], rows[int(item[1:])]
        score = float((interests_of(trained, read, user, attributes) @ row).max())
        drops = {}
        for one in read:
            rest = [other for other in read if other != one]
            drops[f"i{one}"] = score - float((interests_of(trained, rest, user, attributes) @ row).max())
        expected = sorted(((drop, one) for one, drop in drops.items() if drop > 2e-5), reverse=True)[:3]
        assert [reason["item"] for reason in because] == [one for _, one in expected]
        np.testing.assert_allclose([reason["weight"] for reason in because], [d for d, _ in expected], atol=1e-5)
        assert all(reason["title"] == f"Item {reason['item'][1:]}" for reason in because)
        lengths.add(len(because))
    assert 0 not in lengths or len(lengths) > 1


def test_each_interest_has_its_list(trained: Assembled) -> None:
    frame = recommend(trained, ["u1", "u2"], 4, per_interest=True)
    rows, at = item_rows(trained), 0
    for name in ("u1", "u2"):
        history, user, attributes = of_store(trained, int(name[1:]))
        for number, interest in enumerate(interests_of(trained, history, user, attributes), start=1):
            scores = rows @ interest
            near = sorted(set(history[-LENGTH:]), key=lambda item: -float(scores[item]))[:3]
            expected = best(scores, 4, history)
            for rank, item in enumerate(expected, start=1):
                row = frame.row(at, named=True)
                assert (row["user"], row["interest"], row["rank"], row["item"]) == (name, number, rank, f"i{item}")
                assert row["score"] == pytest.approx(float(scores[item]), rel=1e-4, abs=1e-5)
                assert [one["item"] for one in row["nearest"]] == [f"i{one}" for one in near]
                at += 1
    assert at == len(frame)
    merged = frame.sort("score", descending=True).unique(["user", "item"], keep="first", maintain_order=True)
    one_list = recommend(trained, ["u1", "u2"], 4)
    assert merged.group_by("user").head(4).sort("user", "score", descending=[False, True])["item"].to_list() == (
        one_list["item"].to_list()
    )


FILES = {
    "users.csv": "name,user,history,age,gender\nA,u1,,,\nB,u99,i1 i2 i77,3,1\nC,u98,,2,0\nD,u97,i78,2,0\n",
    "users.jsonl": (
        '{"user": "u1"}\n{"user": "u99", "history": ["i1", "i2", "i77"], "age": 3, "gender": "1"}\n'
        '{"user": "u98", "age": "2"}\n\n{"user": "u97", "history": "i78", "age": 2, "gender": 0}\n'
    ),
    "users.parquet": "",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_users(trained: Assembled, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    if name == "users.parquet":
        rows = {
            "user": ["u1", "u99", "u98", "u97"],
            "history": [None, ["i1", "i2", "i77"], [], ["i78"]],
            "age": [None, 3, 2, 2],
            "gender": [None, "1", "0", "0"],
        }
        pl.DataFrame(rows).write_parquet(file)
    frame = recommend(trained, file, 5)
    check_lists(trained, frame, {"u1": of_store(trained, 1), "u99": ([1, 2], NO_ROW, [3, 1])}, 5)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(f"{name}: ")[2] for line in told] == [
        "unknown items of histories, left out: 2 (i77, i78)",
        "users unknown and without a history, skipped: 1 of 4 (u98)",
        "users with no known item in their history, skipped: 1 of 4 (u97)",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name\nu1\n", "no column 'user'; there are name"),
        ("a.csv", "user,age\nu1,2\nu2,12\n", "a.csv:3: age '12' is unknown; there are 0 to 6"),
        (
            "a.csv",
            "user,history,age\nx,i1,2\n",
            "a.csv:2: the model reads age, gender of a user, and gender is missing",
        ),
        ("a.csv", "user\nu1\n\n", "a.csv:3: the user is missing"),
        ("a.csv", "user\n", "a.csv: has no users"),
        (
            "a.txt",
            "u98\nu99\n",
            r"a.txt: users unknown and without a history, skipped: 2 of 2 \(u98, u99\); nobody is left",
        ),
        ("a.jsonl", '{"user": "u1"}\n{"user": 1.5}\n', "a.jsonl:2: user is 1.5; give text or an integer"),
        ("a.jsonl", '{"user": "u1"\n', "a.jsonl:1: is no line of JSON"),
        ("a.jsonl", '["u1"]\n', "a.jsonl:1: is .* not an object such as"),
        ("a.jsonl", '{"user": "x", "history": [null]}\n', "a.jsonl:1: an item of the history is None"),
        ("none.csv", None, "none.csv: no such file; give a CSV"),
    ],
)
def test_files_of_users_that_are_refused(
    trained: Assembled, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        recommend(trained, tmp_path / name)


def test_ids_that_hold_blanks_are_a_list_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["red shoes, 42", "[b]", *(f"i{item}" for item in range(3, 21))]
    store = small_store(tmp_path / "store", num_items=20)
    items = pl.read_parquet(store.path / "items.parquet").with_columns(raw_id=pl.Series(ids))
    items.write_parquet(store.path / "items.parquet")
    entry = {"bytes": (file := store.path / "items.parquet").stat().st_size, "sha256": sha256(file)}
    manifest = json.loads((store.path / "dataset.json").read_text())
    manifest["files"]["items.parquet"] = entry
    (store.path / "dataset.json").write_text(json.dumps(manifest))
    run = tmp_path / "run"
    train_in(config_of(tmp_path, train__max_steps=1, evaluation__every=1), run)
    told = [ids[0], ids[1], "i7"]
    frame = recommend(run, histories=[told], attributes=NEW, top_n=4)
    who = "--profile age=3 --profile gender=1 --top-n 4"
    line = f"recommend {run} --history {shlex.quote(json.dumps(told))} {who} --out {tmp_path / 'a.parquet'}"
    assert command_line(line) == 0
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)
    rows = pl.DataFrame({"user": ["1", "2"], "history": [json.dumps(told), " i7  i8"], "age": "3", "gender": "1"})
    rows.write_csv(tmp_path / "users.csv")
    rows.write_parquet(tmp_path / "users.parquet")
    rows.write_ndjson(tmp_path / "users.jsonl")
    for name in ("users.csv", "users.parquet", "users.jsonl"):
        found = recommend(run, tmp_path / name, 4)
        assert found.filter(pl.col("user") == "1").equals(frame)
        assert found.filter(pl.col("user") == "2")["item"].equals(
            recommend(run, histories=[["i7", "i8"]], attributes=NEW, top_n=4)["item"]
        )
    (tmp_path / "users.csv").write_text("user,history\nx,i7\ny,[b] i7\n")
    with pytest.raises(UserError, match=r"users\.csv:3: begins as a list in JSON and is none"):
        recommend(run, tmp_path / "users.csv")
    for mistake, message in (
        ("[b", "--history [b: begins as a list in JSON"),
        ("[1.5]", "an item of the history is 1.5; give text"),
        ("i7,i8", "none of its items (i7,i8) is in"),
        ("i7,i8", "put blanks, not commas, between ids"),
    ):
        assert command_line(f"recommend {run} --history {shlex.quote(mistake)} {who}") == 2
        assert message in capsys.readouterr().err


def test_users_that_preparation_dropped_are_told_of(tmp_path: Path) -> None:
    config = config_of(tmp_path, train__max_steps=1, evaluation__every=1)
    file = tmp_path / "store" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"report": {"dropped_users": 1234}}))
    train_in(config, tmp_path / "run")
    why = r"\(preparing it dropped 1,234 users with fewer than 5 interactions, or than min_count\)"
    with pytest.raises(UserError, match=rf"users u99: no such user in .* {why}; .* histories serves anybody"):
        recommend(tmp_path / "run", "u99")
    (tmp_path / "users.txt").write_text("u99\n")
    with pytest.raises(UserError, match=rf"skipped: 1 of 1 \(u99\) {why}; nobody is left"):
        recommend(tmp_path / "run", tmp_path / "users.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give users ID, users FILE, all_users, split NAME or histories"),
        ({"users": "u1", "split": "test"}, "split: is for users as the store has them"),
        ({"all_users": True, "attributes": NEW}, "all_users: is for users as the store has them"),
        ({"split": "all"}, "split all: choose from train, valid, test; all_users is for everybody"),
        ({"users": "u99", "attributes": NEW}, "^users u99: no such user"),
        ({"histories": [["x", "y"]], "attributes": NEW}, "^histories: none of its items \\(x, y\\) is in"),
        ({"histories": ["i1 i2"]}, "histories: give a list of lists"),
        ({"users": ["u1"], "histories": [["i1"], ["i2"]]}, "history: there are 2 of them, and 1 users"),
        ({"histories": [["i1"]]}, "^attributes: history 1: the model reads age, gender of a user, and age is missing"),
        ({"histories": [["i1"]], "attributes": {"age": 3, "gender": "f"}}, "gender 'f' is unknown; there are 0 to 1"),
        ({"users": "u1", "attributes": {"size": 3}}, "attributes size: no such attribute; there are age, gender"),
        ({"users": "u1", "items": ["x"]}, "items: none of its items \\(x\\) is in"),
        ({"users": "u1", "why": True, "per_interest": True}, "why: explains one list"),
    ],
)
def test_mistakes(trained: Assembled, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommend(trained, **options)


@pytest.mark.parametrize("ending", frame_files.ENDINGS)
def test_a_file_is_there_whole_or_as_before(
    trained: Assembled, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out{ending}"
    out.write_text("before")
    blocks = recommending.ranked_blocks

    def broken(*given: Any) -> Any:
        yield next(blocks(*given))
        raise RuntimeError("lost power")

    monkeypatch.setattr(recommending, "ranked_blocks", broken)
    with pytest.raises(RuntimeError, match="lost power"):
        write_recommendations(trained, out, all_users=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_disk_that_is_full_ends_it(trained: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(frame_files, "sink_frames", full)
    with pytest.raises(UserError, match=r"out\.parquet: cannot be written: No space left"):
        write_recommendations(trained, tmp_path / "out.parquet", all_users=True)
    assert not list(tmp_path.iterdir())


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"--data {run.parent / 'store'}"
    line = f'recommend {run} {store} --history "i3 i9 i99" --profile age=3 --profile gender=1'
    assert command_line(f"{line} --why --top-n 3 --json {tmp_path / 'a.json'}") == 0
    shown = capsys.readouterr()
    assert "given history, after Item 9, Item 3" in shown.out
    assert "because of" in shown.out
    assert "warning: recommend: unknown items of histories, left out: 1 (i99)" in shown.err
    [entry] = json.loads((tmp_path / "a.json").read_text())

    assert len(entry["items"]) == 3
    assert command_line(f"recommend {run} --split test --out {tmp_path / 'b.csv'}") == 0
    assert "b.csv: 8 users, 80 items, " in capsys.readouterr().out
    assert command_line(f"recommend {run} --user u1 --per-interest --top-n 2") == 0
    assert "interest 3, near Item" in capsys.readouterr().out
    for mistake, message in (
        ("--user u1 --all-users", "--all-users: cannot go with --user; give one of"),
        ("--all-users --split test", "--split: cannot go with --all-users; give one of"),
        ("--history i1 --profile age", "--profile 'age': give NAME=VALUE"),
        ("--history i1 --profile age=1 --profile age=2", "age is given twice"),
        ("--user u1 --profile age=1", "--profile: describes whom --history is of"),
        ("--user u1 --out a.txt", "--out a.txt: give a name that ends in .parquet, .jsonl or .csv"),
        ("--user u1 --out nowhere/a.csv", "--out nowhere/a.csv: there is no directory nowhere"),
        ("--user u1 --out a.csv --json a.json", "--json: --out has all of it"),
        ("--history ' '", "--history: holds no item; give raw ids"),
    ):
        assert command_line(f"recommend {run} {mistake}") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", ["", "--why", "--per-interest"])
def test_json_is_what_a_file_of_lines_has(run: Path, tmp_path: Path, more: str) -> None:
    line = f"recommend {run} --split test --top-n 3 {more}"
    assert command_line(f"{line} --json {tmp_path / 'all.json'}") == 0
    assert command_line(f"{line} --out {tmp_path / 'all.jsonl'}") == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert all(len(entry.pop("recent")) == 3 for entry in found)
    assert found == [json.loads(text) for text in (tmp_path / "all.jsonl").read_text().splitlines()]


def test_tables_are_of_the_first_users_and_no_others_are_ranked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommend_module, "MOST_TABLES", 3)
    assert command_line(f"recommend {run} --all-users --top-n 2 --json {tmp_path / 'all.json'}") == 0
    assert len(json.loads((tmp_path / "all.json").read_text())) == 40
    first = capsys.readouterr()
    written: list[str] = []  # an entry goes out before the next block is ranked
    monkeypatch.setattr(options, "replace_text", lambda file, pieces: written.extend(islice(pieces, 5)))
    monkeypatch.setattr(recommending, "as_objects", lambda *given: until(5, recommendations(*given)))
    assert command_line(f"recommend {run} --all-users --top-n 2 --json {tmp_path / 'all.json'}") == 0
    assert [json.loads(text.lstrip("[,\n"))["user"] for text in written] == [f"u{user}" for user in range(5)]
    assert capsys.readouterr().out == first.out
    monkeypatch.setattr(recommending, "as_objects", of_few)
    assert command_line(f"recommend {run} --all-users --top-n 2") == 0
    told = capsys.readouterr()
    assert told.out == first.out
    assert "these are the first 3 of 40 users: --out FILE takes all of them" in told.err


def until(number: int, entries: Iterator[Recommendations]) -> Iterator[Recommendations]:
    yield from islice(entries, number)
    raise AssertionError("more is made than is asked for")


def of_few(model: Assembled, audience: Audience, wanted: Wanted) -> Iterator[Recommendations]:
    assert len(audience) == 3
    return recommendations(model, audience, wanted)
