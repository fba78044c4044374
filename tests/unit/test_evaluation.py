"""Ranking, metrics and baselines against the naive oracle in tests/oracles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from eupmim_dist import evaluate, fit
from eupmim_dist.assemble import assemble, open_store, trainable, without_model
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation import topn
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.runner import (
    evaluate_model,
    evaluate_scorer,
    held_out_users,
    negatives_and_target,
    ranking_of,
    scorer_of,
)
from eupmim_dist.evaluation.scorers import interface
from eupmim_dist.evaluation.scorers.interests import InterestScorer
from eupmim_dist.evaluation.scorers.interface import Scorer, baselines, make_scorer
from eupmim_dist.parallel.world import World
from eupmim_dist.train.state import Assembled
from tests.oracles import metrics_plain as plain
from tests.runs import config_of, train_in
from tests.stores import negatives, small_store

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def assembled(tmp_path: Path) -> Assembled:
    store = small_store(tmp_path / "store", num_users=40, num_items=60, longest=40, negatives=negatives(40, 60, 12))
    values: dict[str, Any] = {
        "data": {"dir": str(store.path)},
        "task": {"history_length": 6},
        "model": {"name": "eupmim", "dim": 8, "num_heads": 2, "num_encoder_layers": 1},
        "evaluation": {"batch_size": 3},
    }
    made = assemble(parse_config(values, "test"), WORLD, open_store(store.path, WORLD))
    for shard in made.tables.shards.values():
        shard.weight.normal_()  # scores far apart
    return made


def histories(store: InteractionStore, split: str) -> list[tuple[list[int], list[int]]]:
    found = []
    for user in store.users(split):
        items = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
        cut = int(0.8 * len(items))
        found.append((items[:cut], items[cut:]))
    return found


def negatives_of(store: InteractionStore, split: str) -> list[list[int]]:
    assert store.negatives is not None
    return store.negatives[store.users(split)].tolist()


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_metrics_equal_the_naive_ones(assembled: Assembled, protocol: str, split: str, exclude_seen: bool) -> None:
    assembled.config.evaluation.exclude_seen = exclude_seen
    cutoffs = [1, 5, 20, 59]
    result = evaluate_model(assembled, split, protocol, cutoffs)
    users = held_out_users(assembled, split)
    interests = []
    assembled.model.eval()
    for index in range(len(users)):
        batch = users.chunk(index).batch
        with torch.no_grad():
            interests.append(
                assembled.model(assembled.tables.lookup(assembled.model.uses(batch)).rows[0], batch).queries
            )
    shard = assembled.tables.shards["item"]
    rows = shard.weight[shard.ids().argsort()].numpy()
    expected: dict[str, float] = {}
    for cutoff in cutoffs:
        per_user = [
            plain.user_metrics(
                protocol,
                plain.protocol_scores(protocol, vectors.numpy(), rows),
                seen,
                targets,
                cutoff,
                exclude_seen=exclude_seen,
                negatives=rivals,
            )
            for vectors, (seen, targets), rivals in zip(
                torch.cat(interests),
                histories(assembled.store, split),
                negatives_of(assembled.store, split),
                strict=True,
            )
        ]
        expected |= {f"{name}@{cutoff}": value for name, value in plain.average(per_user).items()}
    assert result.users == len(per_user) == 8
    told = PROTOCOLS[protocol].exclude_history and not exclude_seen
    assert ("among the candidates" in result.title) == result.as_dict().get("seen_included", False) == told
    assert result.metrics == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_what_each_user_got_is_averaged(assembled: Assembled, protocol: str) -> None:
    result = evaluate_model(assembled, "test", protocol, [5, 20], per_user=True)
    of = result.per_user
    assert of is not None
    assert of.users.tolist() == assembled.store.users("test").tolist()
    assert len(of.ranked) == result.users > 3  # in chunks of 3
    assert of.metrics.keys() == result.metrics.keys()
    for name, values in of.metrics.items():
        assert values.mean() == pytest.approx(result.metrics[name], abs=1e-12), name
    assert of.metrics["recall@5"].std() > 0
    targets = [set(after) for _, after in histories(assembled.store, "test")]
    hits = [len(set(lists.flatten().tolist()) & wanted) for lists, wanted in zip(of.ranked, targets, strict=True)]
    assert ((np.array(hits) > 0) == (of.metrics["hit_rate@20"] > 0)).all()


def test_a_sample_of_users_is_the_same_each_time_and_judged_as_among_all(assembled: Assembled) -> None:
    whole, some = (evaluate_model(assembled, "valid", "strict", [5], per_user=True, sample=n) for n in (None, 5))
    again = evaluate_model(assembled, "valid", "strict", [5], per_user=True, sample=5)
    assert whole.per_user is not None
    assert some.per_user is not None
    assert again.per_user is not None
    assert (some.users, whole.users) == (5, 8)
    chosen = np.isin(whole.per_user.users, some.per_user.users)
    assert some.per_user.users.tolist() == again.per_user.users.tolist() == whole.per_user.users[chosen].tolist()
    assert some.per_user.users.tolist() != whole.per_user.users[:5].tolist(), "drawn"
    for name, values in some.per_user.metrics.items():
        assert values.tolist() == whole.per_user.metrics[name][chosen].tolist()
        assert some.metrics[name] == pytest.approx(float(values.mean()))
    assert evaluate_model(assembled, "valid", "strict", [5], sample=100).metrics == whole.metrics


def test_a_training_judges_by_the_sample_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_store(tmp_path / "store", num_users=60, num_items=59)
    config = config_of(
        tmp_path, evaluation__users=3, evaluation__every=2, train__max_steps=2, evaluation__metric="recall@5"
    )
    run = train_in(config, tmp_path / "run")
    [best] = [run.progress.best_value]
    assert best == evaluate_model(run, "valid", "strict", [5], sample=3).metrics["recall@5"]
    assert best != evaluate_model(run, "valid", "strict", [5]).metrics["recall@5"]
    assert " of 3 users, best so far" in capsys.readouterr().out


def test_what_is_judged_among_negatives_is_tested_among_them(tmp_path: Path) -> None:
    small_store(tmp_path / "store", num_users=40, num_items=60, negatives=negatives(40, 60, 12))
    sections = {"train": {"max_steps": 1}, "model": {"name": "comirec_dr"}}
    for judge, test in (("elmrec_direct", "elmrec_direct"), ("comirec", "strict")):
        judged = {"evaluation": {"protocol": judge, "metric": "hit_rate@5", "top_n": [5]}}
        found = fit(sections | judged, tmp_path / judge, data=tmp_path / "store", baselines="popularity", cpu=True)
        assert [(result.model, result.protocol) for result in found.results] == [
            ("comirec_dr", test),
            ("popularity", test),
        ]


def test_how_interests_are_used(assembled: Assembled) -> None:
    """Against users one by one."""
    interests = evaluate_model(assembled, "test", "strict", [5], per_user=True).interests
    assert interests is not None
    scorer = scorer_of(assembled, "test")
    assert isinstance(scorer, InterestScorer)
    shard = assembled.tables.shards["item"]
    rows = shard.weight[shard.ids().argsort()]
    users = held_out_users(assembled, "test")
    served, norms, cosines = [0, 0, 0], torch.zeros(3), []
    assembled.model.eval()
    for index in range(len(users)):
        chunk = users.chunk(index)
        with torch.no_grad():
            vectors = scorer.query(chunk)
        seen = [set(chunk.seen.item[chunk.seen.user == user].tolist()) for user in range(len(vectors))]
        for three, before in zip(vectors, seen, strict=True):
            scores = three @ rows.T
            scores[:, [0, *before]] = -torch.inf
            best = scores.amax(0).argsort(descending=True)[:5]
            for item in best.tolist():
                served[int(scores[:, item].argmax())] += 1
            norms += three.norm(dim=1)
            cosines += [float(torch.cosine_similarity(three[i], three[j], 0)) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert interests.share == pytest.approx([number / sum(served) for number in served])
    assert interests.norm == pytest.approx((norms / len(users.users)).tolist(), rel=1e-5)
    assert interests.cosine == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    assert evaluate_model(assembled, "test", "seed", [5]).interests is None  # a list for each: nothing to share


def paths_from(seen: list[int], sequences: list[list[int]], num_rows: int) -> np.ndarray:
    """By paths item -> user -> item of the training graph, each start by the root of its degree: [1, R]."""
    users = len(sequences)
    half = np.zeros((users, num_rows))
    for user, items in enumerate(sequences):
        half[user, items] = 1
    degree = np.maximum(half.sum(0), 1)
    half = half / np.sqrt(half.sum(1, keepdims=True)) / np.sqrt(degree)
    start = np.zeros(num_rows)
    start[seen] = 1
    return ((start / np.sqrt(degree)) @ half.T @ half)[None]


@pytest.mark.parametrize("name", baselines())
def test_baselines_equal_the_naive_ones(assembled: Assembled, name: str) -> None:
    store = assembled.store
    sequences = [store.items[store.offsets[u] : store.offsets[u + 1]].tolist() for u in store.users("train")]
    num_rows = store.num_item_rows

    def by(matrix: np.ndarray) -> Callable[[list[int]], np.ndarray]:
        return lambda seen: plain.matrix_scores(matrix, seen, num_last=10)

    scores_of: Callable[[list[int]], np.ndarray] = {
        "ease": lambda: by(plain.ease_matrix(sequences, num_rows)),
        "cooccurrence": lambda: by(plain.cooccurrence_counts(sequences, num_rows)),
        "association": lambda: by(plain.association_weights(sequences, num_rows)),
        "popularity": lambda: lambda _: plain.popularity_scores(sequences, num_rows),
        "next_id": lambda: lambda seen: -((np.arange(num_rows)[None] - seen[-1] - 1) % num_rows),
        # Test users, who are in no training, become nodes of the graph without changing it.
        "paths": lambda: lambda seen: paths_from(seen, sequences, num_rows),
        "history_paths": lambda: lambda seen: paths_from(seen, sequences, num_rows),
    }[name]()
    scorer = make_scorer(name, ranking_of(assembled))
    users = held_out_users(assembled, "test")
    result = evaluate_scorer(scorer, name, users, PROTOCOLS["strict"], [5, 20], WORLD)
    expected: dict[str, float] = {}
    for cutoff in (5, 20):
        per_user = []
        for seen, targets in histories(store, "test"):
            scores = scores_of(seen).astype(np.float32)
            per_user.append(plain.user_metrics("strict", scores, seen, targets, cutoff))
        expected |= {f"{metric}@{cutoff}": value for metric, value in plain.average(per_user).items()}
    assert result.metrics == pytest.approx(expected, abs=1e-12)


class FewLevels(Scorer):
    """Scores with many ties: (7 * item + user) modulo 4."""

    item_ids = torch.arange(61)

    def query(self, users: HeldOut) -> Tensor:
        return torch.arange(len(users))

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return ((7 * torch.arange(start, stop) + query[:, None]) % 4)[:, None].float()

    def exact(self, query: Tensor, ids: Tensor) -> Tensor:
        return ((7 * ids + query[:, None, None]) % 4).double()


@pytest.mark.parametrize("block", [3, 7, 10, 61, 1000])
def test_ties_go_to_the_smaller_id_whatever_the_blocks(
    assembled: Assembled, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "ITEM_BLOCK", block)
    assembled.config.evaluation.batch_size = 8
    chunk = held_out_users(assembled, "test").chunk(0)
    ranked = topn.top_n(FewLevels(), chunk, chunk.seen, 9, 8, WORLD)[1]
    for user, (seen, _) in enumerate(histories(assembled.store, "test")):
        scores = np.array([(7 * item + user) % 4 for item in range(61)])
        assert ranked[user, 0].tolist() == plain.top_list(scores, seen, 9)


@pytest.mark.parametrize("exact", [True, False])
def test_candidates_are_ranked_in_no_order_but_the_scores_whatever_the_blocks(
    assembled: Assembled, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many ties; scores in float64 need no `exact`, and are cut into blocks."""

    class Doubles(FewLevels):
        exact = Scorer.exact

        def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
            return super().scores(query, start, stop).double()

    monkeypatch.setattr(interface, "ITEM_BLOCK", 7)
    users = held_out_users(assembled, "test")
    for index in range(len(users)):
        chunk = users.chunk(index)
        assert chunk.negatives is not None
        turned = Ragged(chunk.negatives.user.flip(0), chunk.negatives.item.flip(0))
        both = [negatives_and_target(replace(chunk, negatives=some), 61) for some in (chunk.negatives, turned)]
        number, scorer = len(chunk), FewLevels() if exact else Doubles()
        lists = [topn.top_n(scorer, chunk, chunk.seen, 20, number, WORLD, some)[1] for some in both]
        assert torch.equal(*lists)
        for user in range(number):
            allowed = set(both[0].item[both[0].user == user].tolist())
            scores = np.array([(7 * item + user) % 4 for item in range(61)])
            kept = [item for item in lists[0][user, 0].tolist() if item != topn.NO_ITEM]
            assert kept == plain.top_list(scores, set(range(61)) - allowed, 20)


def test_negatives_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_items=60)
    message = r"elmrec_direct: .*store has no negatives to rank; prepare it with --format elmrec"
    with pytest.raises(UserError, match=message.replace("--format", "format")):
        evaluate(data=store.path, baselines="popularity", protocols=["strict", "elmrec_direct"])
    with pytest.raises(UserError, match=rf"^evaluation\.protocol: {message}".replace("--format", "format")):
        trainable(parse_config({"evaluation": {"protocol": "elmrec_direct"}}, "test"), WORLD, store)
    results = evaluate(data=store.path, baselines="popularity", protocols=["strict", "elmrec_sequential"], top_n=None)
    at = [{name.partition("@")[2] for name in result.metrics} for result in results]
    assert at[1] == {"1", "5", "10"}
    assert results[0].metrics["recall@10"] == results[1].metrics["recall@10"]


@pytest.mark.parametrize(
    ("queries", "block"),
    [((1, 1, 64), interface.GPU_ITEMS), ((1024, 1, 64), 65_536), ((1024, 8, 64), 8192), ((2048, 3), 32_768)],
)
def test_a_gpu_is_given_blocks_of_bounded_items_and_scores(queries: tuple[int, ...], block: int) -> None:
    with FakeTensorMode():
        assert interface.item_block(torch.empty(queries, device="cuda")) == block
    assert interface.item_block(torch.empty(queries)) == interface.ITEM_BLOCK


class LargestTensor(TorchDispatchMode):
    """The most elements that any result of an operation had."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_memory_is_bounded_by_a_block_of_items(assembled: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    """What topn.py promises: no tensor is larger than G x S x (a block of items + the list), far below all scores."""
    num_items, num_users, num = 100_000, 8, 20

    class ManyItems(FewLevels):
        item_ids = torch.arange(num_items)

    monkeypatch.setattr(interface, "ITEM_BLOCK", 1000)
    assembled.config.evaluation.batch_size = num_users
    chunk = held_out_users(assembled, "test").chunk(0)
    with LargestTensor() as seen:
        topn.top_n(ManyItems(), chunk, chunk.seen, num, num_users, WORLD)
    assert seen.largest <= num_users * (1000 + 2 * (num + topn.MARGIN)) < num_users * num_items / 50


def test_lists_end_where_nothing_is_left_to_recommend(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=20, num_items=12, longest=12)
    config = parse_config({"data": {"dir": str(store.path)}}, "test")
    setup = without_model(config, WORLD, store)
    users = held_out_users(setup, "test")
    popularity = make_scorer("popularity", ranking_of(setup))
    chunk = users.chunk(0)
    ranked = topn.top_n(popularity, chunk, chunk.seen, 12, len(users.users), WORLD)[1]
    for user, (seen, _) in enumerate(histories(store, "test")):
        kept = [item for item in ranked[user, 0].tolist() if item != topn.NO_ITEM]
        assert len(kept) == min(12, 13 - len(seen))
        assert not set(kept) & set(seen)
    evaluate_scorer(popularity, "popularity", users, PROTOCOLS["strict"], [12], WORLD)


def test_a_list_longer_than_the_catalogue_is_refused(assembled: Assembled) -> None:
    with pytest.raises(UserError, match="top-N 61 is larger than the catalogue of 60 items"):
        evaluate_model(assembled, "test", "strict", [61])


def test_a_split_without_users_is_refused(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=4)  # a fifth of four is none
    setup = without_model(parse_config({}, "test"), WORLD, store)
    popularity = make_scorer("popularity", ranking_of(setup))
    with pytest.raises(UserError, match="split test has no users"):
        evaluate_scorer(popularity, "popularity", held_out_users(setup, "test"), PROTOCOLS["strict"], [5], WORLD)
