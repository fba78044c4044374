"""How baselines count, invert and score, against plain loops; what they cost and how they say so."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eupmim_dist import audit, evaluate
from eupmim_dist.assemble import without_model
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation import baselines
from eupmim_dist.evaluation.baselines import HISTORIES, choose_history, histories_read
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.runner import evaluate_scorer, held_out_users, ranking_of
from eupmim_dist.evaluation.scorers import ease, paths
from eupmim_dist.evaluation.scorers.association import Association
from eupmim_dist.evaluation.scorers.cooccurrence import Cooccurrence, followers
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer, check_room, make_scorer
from eupmim_dist.evaluation.scorers.paths import Paths
from eupmim_dist.parallel import memory
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry import progress
from eupmim_dist.train.state import Setup
from tests.oracles import metrics_plain as plain
from tests.stores import negatives, small_store

CPU = torch.device("cpu")
WORLD = World(0, 1, 0, 1, CPU)
HISTORY = 6
MATRICES = {
    "ease": plain.ease_matrix,
    "cooccurrence": plain.cooccurrence_counts,
    "association": plain.association_weights,
}


@pytest.fixture
def store(tmp_path: Path) -> InteractionStore:
    return small_store(tmp_path / "store", num_users=40, num_items=60, longest=40)


def ranking(store: InteractionStore, world: World = WORLD) -> Ranking:
    return Ranking(store, world=world)


def interactions(num_users: int, num_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """User and item of some interactions, with repeats; the second user has none, and no item is the last."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 25, num_users)
    lengths[1] = 0
    return np.repeat(np.arange(num_users), lengths), generator.integers(1, num_items, lengths.sum())


def sequences(user: np.ndarray, items: np.ndarray) -> list[list[int]]:
    return [items[user == one].tolist() for one in range(user.max() + 1)]


def test_a_gram_matrix_counts_who_had_both() -> None:
    user, items = interactions(30, 12)
    expected = np.zeros((13, 13))
    for history in sequences(user, items):
        for first in set(history):
            for second in set(history):
                expected[first, second] += 1
    assert ease.gram_matrix(user, items, 13).tolist() == expected.tolist()
    nobody = np.zeros(0, np.int64)
    assert not ease.gram_matrix(nobody, nobody, 13).any()


def test_a_matrix_is_inverted_where_it_lies() -> None:
    half = torch.randn(40, 40, dtype=torch.float64)
    matrix = half @ half.T + torch.eye(40)
    expected = np.linalg.inv(matrix.numpy())
    ease.invert(matrix)
    assert matrix.numpy() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize(("first", "last"), [(0, 13), (4, 9), (9, 9)])
def test_followers_are_counted(first: int, last: int) -> None:
    user, items = interactions(30, 12)
    counts = plain.cooccurrence_counts(sequences(user, items), 13)
    counts[:, :first] = counts[:, last:] = 0
    earlier, later = np.nonzero(counts)
    keys, found = followers(user, items, 13, first, last)
    assert keys.tolist() == (earlier * 13 + later).tolist()
    assert found.tolist() == counts[earlier, later].tolist()


@pytest.mark.parametrize(("first", "last"), [(0, 13), (4, 9), (9, 9)])
@pytest.mark.parametrize("block", [1, 20, 10_000])
def test_paths_from_item_to_item(first: int, last: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks, and with items that a user took several times."""
    monkeypatch.setattr(paths, "BLOCK", block)
    user, items = interactions(30, 12)
    trained = [set(one) for one in sequences(user, items)]
    graph, degree = plain.path_weights(trained, 13)[:30, 30:], np.array([len(one) for one in trained])
    scorer = Paths.__new__(Paths)
    scorer.rows, scorer.first = 13, first
    keys, weights = scorer.weighted_pairs(user, items, last)
    matrix = np.zeros((13, 13))
    matrix.flat[keys] = weights
    assert (np.diff(keys) > 0).all()
    assert ((keys % 13 >= first) & (keys % 13 < last)).all()
    for one, own in enumerate(trained):
        found = matrix[sorted(own), first:last].sum(0) / np.sqrt(max(degree[one], 1))
        assert found == pytest.approx(graph[one, first:last], abs=1e-12)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_paths_start_from_what_a_user_trained_on(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "lack_of_memory", lambda *_: None)
    monkeypatch.setattr(paths, "everywhere", lambda value, _: [value])  # every one of the ranks here has all users
    store = small_store(tmp_path / "last", num_users=30, num_items=40, split_rule="leave_one_out")
    trained = [store.items[store.offsets[u] : store.offsets[u + 1] - 2].tolist() for u in range(30)]
    expected = plain.path_weights(trained, 41)[:30, 30:] * np.sqrt([len(items) for items in trained])[:, None]
    users = held_out_users(without_model(parse_config({}, "test"), WORLD, store), split).chunk(0)
    cuts = []
    for size in (1, 3):
        made = [make_scorer("paths", ranking(store, World(rank, size, 0, 1, CPU))) for rank in range(size)]
        parts = [scorer.scores(scorer.query(users), 0, len(scorer.item_ids))[:, 0] for scorer in made]
        cuts.append(torch.cat(parts, 1))
    assert cuts[0].numpy() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(*cuts)
    of_history = make_scorer("history_paths", ranking(store)).query(users)
    lengths = [len(items) + (split == "test") for items in trained]
    assert (of_history != NO_ROW).sum(1).tolist() == lengths
    assert of_history.shape[1] == max(lengths)


def test_what_paths_cost_is_said_or_refused(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "QUICK_SECONDS", 0.0)
    make_scorer("paths", ranking(store))
    assert "pairs of items take at most 0.0 GB of memory and about 0 s" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    for name in ("paths", "history_paths"):
        with pytest.raises(
            UserError, match=rf"baselines {name}: [\d,]+ pairs of items needs 0.0 GB of memory, and 0.0 GB"
        ):
            check_room([name], store, WORLD)  # before a training whose end it would be


def test_the_rule_of_the_next_id_is_that_of_an_audit(tmp_path: Path) -> None:
    for rule in ("by_user", "leave_one_out"):
        store = small_store(tmp_path / rule, num_users=60, num_items=40, split_rule=rule)
        [result] = evaluate(data=store.path, baselines="next_id", top_n=10)
        assert audit(store)["next_ids"].value == pytest.approx(result.metrics["recall@10"], abs=1e-12)
        assert result.metrics["recall@10"] > 0.1


def query_of(scorer: Scorer, store: InteractionStore, history: Tensor) -> Tensor:
    users = held_out_users(without_model(parse_config({}, "test"), WORLD, store), "test").chunk(0)
    user, place = (history != NO_ROW).nonzero(as_tuple=True)
    nobody = np.zeros(len(history), dtype=np.int64)
    held_out: HeldOut = replace(users, users=nobody, seen=Ragged(user, history[user, place]))
    return scorer.query(held_out)


@pytest.mark.parametrize("name", MATRICES)
def test_scores_are_sums_in_one_order_however_items_are_cut(
    store: InteractionStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EASE takes an item of a history once, the others as often as it is there."""
    monkeypatch.setattr(ease, "lack_of_memory", lambda *_: None)  # which asks the other ranks
    rows = store.num_item_rows
    history = torch.randint(1, rows, (9, HISTORY), generator=torch.Generator().manual_seed(0))
    history[0, 3:], history[1] = -1, -1
    history[2, 1] = history[2, 4] = history[2, 0]
    trained = [store.items[store.offsets[u] : store.offsets[u + 1]].tolist() for u in store.users("train")]
    matrix = MATRICES[name](trained, rows)
    expected = np.zeros((len(history), rows))
    for user, items in enumerate(history.tolist()):
        for item in set(items) if name == "ease" else items:
            if item != -1:
                expected[user] += matrix[item]
    whole = make_scorer(name, ranking(store))
    scores = whole.scores(query_of(whole, store, history), 0, rows)
    assert scores.dtype == torch.float64
    assert scores[:, 0].numpy() == pytest.approx(expected, abs=1e-12)
    for size in (2, 3, 62):
        parts = []
        for rank in range(size):
            scorer = make_scorer(name, ranking(store, World(rank, size, 0, 1, CPU)))
            query, own = query_of(scorer, store, history), len(scorer.item_ids)
            parts += [scorer.scores(query, start, min(start + 7, own)) for start in range(0, max(own, 1), 7)]
        assert torch.equal(torch.cat(parts, -1), scores), size


def test_memory_that_is_not_there_is_refused_before_any_is_taken(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ease, "gram_matrix", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(memory, "available_bytes", lambda _: 61 * 61 * 8)  # and there are interactions too
    with pytest.raises(
        UserError, match=r"baselines ease: a matrix of 61 x 61 items needs 0.0 GB of memory, and 0.0 GB"
    ):
        make_scorer("ease", ranking(store))


def test_the_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 7_000_000_000)
    assert memory.lack_of_memory(7_000_000_000, CPU, WORLD) is None
    two = replace(WORLD, local_size=2)
    assert memory.lack_of_memory(3_500_000_000, CPU, two) is None
    wanted = "needs 3.6 GB of memory for each of 2 ranks, and 7.0 GB are free"
    assert memory.lack_of_memory(3_600_000_000, CPU, two) == wanted
    monkeypatch.setattr(memory, "available_bytes", lambda _: None)  # not known, as on systems without /proc
    assert memory.lack_of_memory(1 << 60, CPU, two) is None


def test_the_cost_is_the_first_line(
    store: InteractionStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scorer("ease", ranking(store))
    assert capsys.readouterr().out == ""  # it is quick
    monkeypatch.setattr(ease, "TRIAL_ROWS", 6)
    monkeypatch.setattr(ease, "_seconds_to_invert", lambda rows: 0.5 * (rows / 6))
    monkeypatch.setattr(progress, "QUICK_SECONDS", 1e-4)
    make_scorer("ease", ranking(store))
    first, *later = capsys.readouterr().out.splitlines()
    assert (
        first == "ease: a matrix of 61 x 61 items takes 0.0 GB of memory and about 525 s to count and invert"
    )  # 0.5 * (61 / 6)^3
    assert all("so far" in line for line in later)


@pytest.mark.parametrize(("name", "cls"), [("cooccurrence", Cooccurrence), ("association", Association)])
def test_counting_is_named_after_the_baseline(
    store: InteractionStore,
    name: str,
    cls: type[Cooccurrence],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "QUICK_SECONDS", 1e-4)
    monkeypatch.setattr(cls, "weights_of", lambda *_: time.sleep(0.05) or np.zeros(1))
    make_scorer(name, ranking(store))
    assert capsys.readouterr().out.startswith(f"{name}: counting what followed what, 0 s so far\n")


def test_baselines_read_the_same_whatever_the_model_beside_them_reads(store: InteractionStore) -> None:
    """Their last ten items, oldest first; of the task's histories a scorer sees nothing."""
    found = []
    for length in (2, 30):
        config = parse_config({"task": {"history_length": length}}, "test")
        users = held_out_users(without_model(config, WORLD, store), "test").chunk(0)
        found.append(users.last_seen(10))
        for row, user in zip(found[-1].tolist(), range(len(users)), strict=True):
            before = users.seen.item[users.seen.user == user].tolist()[-10:]
            assert row == before + [NO_ROW] * (10 - len(before))
        assert make_scorer("ease", ranking(store)).query(users).shape[1] == 10
    assert torch.equal(*found)
    assert (found[0] != NO_ROW).sum(1).max() == 10
    assert (found[0] == NO_ROW).any()


def chosen(name: str, setup: Setup, protocol: str = "strict") -> int | None:
    scorer = make_scorer(name, ranking_of(setup))
    choose_history(scorer, name, setup, 5, protocol)
    return scorer.history


@pytest.mark.parametrize(
    ("name", "protocol", "judge"),
    [
        ("ease", "strict", "strict"),
        ("association", "comirec", "strict"),
        ("association", "elmrec_direct", "elmrec_direct"),
        ("popularity", "strict", "strict"),
    ],
)
def test_baselines_read_what_is_best_for_them_on_valid_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: str, judge: str
) -> None:
    store = small_store(tmp_path / "store", num_users=300, num_items=60, longest=80, negatives=negatives(300, 60, 20))
    setup = without_model(parse_config({}, "test"), WORLD, store)
    if name == "popularity":
        assert chosen(name, setup, protocol) is None
        return
    scorer, users = make_scorer(name, ranking_of(setup)), held_out_users(setup, "valid")
    for most, step in ((10_000, 1), (60, 1), (59, 2), (20, 3)):  # of 60
        monkeypatch.setattr(baselines, "MOST_USERS", most)
        users.users, recalls = store.users("valid")[::step], []
        for scorer.history in HISTORIES:
            result = evaluate_scorer(scorer, name, users, PROTOCOLS[judge], [5], WORLD)
            recalls.append(result.metrics["recall@5"])
        assert len(set(recalls)) > 1, "the users are too much alike to tell"
        assert chosen(name, setup, protocol) == HISTORIES[recalls.index(max(recalls))]


def test_baselines_read_what_they_do_by_default_without_valid_users(store: InteractionStore) -> None:
    setup = without_model(parse_config({}, "test"), WORLD, replace(store, split=np.where(store.split == 1, 0, 2)))
    assert chosen("ease", setup) == 10


def test_what_baselines_read_is_told() -> None:
    assert histories_read({"eupmim": None, "popularity": None}) == ""
    told = histories_read({"ease": 5, "popularity": None, "association": 20})
    assert told == (
        "Last items of a history that baselines read, of 1, 2, 3, 5, 10, 20 or 50 those with the best recall on "
        "valid users: ease 5, association 20."
    )
