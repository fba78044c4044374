"""The graphs of users and items, against what plain loops make of the same sequences."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eupmim_dist.data import graph
from eupmim_dist.data.explanations import SCHEMA
from eupmim_dist.data.graph import GraphChoice, InteractionGraph
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, write_dataset
from tests.stores import small_store

Pairs = set[tuple[int, int]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    directory = tmp_path_factory.mktemp("graph") / "store"
    return small_store(directory, num_users=400, num_items=60, longest=30, split_rule="leave_one_out")


def edges_of(store: InteractionStore, choice: GraphChoice, known: str = "train") -> Pairs:
    graph = InteractionGraph(store, choice).where_known(known)
    found = [pair for users, items in graph.edges() for pair in zip(users, items, strict=True)]
    assert len(set(found)) == len(found)
    return {(int(user), int(item)) for user, item in found}


def interactions(store: InteractionStore, part: slice = slice(None)) -> Pairs:
    sequences = np.split(store.items, store.offsets[1:-1])
    return {(user, int(item)) for user, sequence in enumerate(sequences) for item in sequence[part]}


def test_the_clean_graph_is_what_training_may_see(store: InteractionStore, tmp_path: Path) -> None:
    assert edges_of(store, GraphChoice()) == interactions(store, slice(-2))
    by_user = small_store(tmp_path / "by_user")
    trained = set(by_user.users("train").tolist())
    assert edges_of(by_user, GraphChoice()) == {pair for pair in interactions(by_user) if pair[0] in trained}


def test_the_graph_of_histories_is_what_came_before_what_is_asked_for(store: InteractionStore, tmp_path: Path) -> None:
    history = GraphChoice("history")
    for known, last in (("train", -2), ("valid", -2), ("test", -1), ("all", None)):
        assert edges_of(store, history, known) == interactions(store, slice(last)), known
        assert edges_of(store, GraphChoice(), known) == interactions(store, slice(-2)), known
    trained = InteractionGraph(store, history)
    assert trained.where_known("valid") is trained, "one graph in memory where there are not two"
    by_user = small_store(tmp_path / "by_user")
    histories = set()
    users = by_user.users("test")
    for user, cut in zip(users.tolist(), by_user.evaluation_window(users, "test")[0].tolist(), strict=True):
        histories |= {(user, int(item)) for item in by_user.items[by_user.offsets[user] :][:cut]}
    assert edges_of(by_user, history, "test") == edges_of(by_user, history) | histories


def test_the_published_graph_takes_some_of_everything_held_out(store: InteractionStore) -> None:
    everything, whole = interactions(store), GraphChoice("published", explained=1.0)
    found = edges_of(store, whole)
    assert found < everything
    assert len(found) / len(everything) == pytest.approx(0.8, abs=0.02)
    assert {user for user, _ in found} == set(range(store.num_users))
    assert {item for _, item in found} == {item for _, item in everything}
    held_out = interactions(store, slice(-1, None))
    assert len(found & held_out) / len(held_out) == pytest.approx(0.8, abs=0.08)
    explained = edges_of(store, GraphChoice("published"))
    assert explained < found
    assert len(explained) / len(found) == pytest.approx(2 / 3, abs=0.03)


def test_the_published_graph_is_a_function_of_its_seed(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = edges_of(store, GraphChoice("published", seed=1))
    assert edges_of(store, GraphChoice("published", seed=2)) != one
    monkeypatch.setattr(graph, "USERS_AT_A_TIME", 7)
    assert edges_of(store, GraphChoice("published", seed=1)) == one
    assert edges_of(store, GraphChoice()) == interactions(store, slice(-2))


def test_one_who_took_an_item_twice_has_one_edge(tmp_path: Path) -> None:
    dataset = Dataset(
        offsets=np.array([0, 6, 9]),
        items=np.array([3, 1, 3, 3, 2, 2, 1, 2, 3]),
        timestamps=None,
        attributes=[],
        attribute_values=np.zeros((2, 0), np.int64),
        split=np.zeros(2, np.int64),
        split_rule="leave_one_out",
        raw_users=pl.Series(["a", "b"]),
        raw_items=pl.Series(["x", "y", "z"]),
    )
    write_dataset(dataset, tmp_path / "store", name="twice", source="test")
    found = InteractionGraph(InteractionStore.open(tmp_path / "store"), GraphChoice())
    assert edges_of(found.store, found.choice) == {(0, 3), (0, 1), (1, 1)}
    assert [degrees.tolist() for degrees in found.degrees()] == [[2, 1], [0, 2, 0, 1]]


def test_where_there_are_explanations_the_published_graph_is_of_them(tmp_path: Path) -> None:
    records = {"user": [0, 0, 5, 0, 7], "item": [1, 2, 3, 1, 4], "split": ["train", "train", "train", "train", "test"]}
    frame = pl.DataFrame({**records, "feature": "size", "explanation": "it fits"}).select(*SCHEMA)
    store = small_store(tmp_path / "store", split_rule="leave_one_out", explanations=frame)
    assert edges_of(store, GraphChoice("published")) == {(0, 1), (0, 2), (5, 3)}
    assert edges_of(store, GraphChoice()) == interactions(store, slice(-2))
