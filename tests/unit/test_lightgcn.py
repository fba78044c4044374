"""LightGCN on one rank, and what a model that propagates is asked everywhere else. Its rows and gradients over ranks:
tests/distributed/test_propagation.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eupmim_dist.assemble import load_trained, needed_room
from eupmim_dist.checkpoint.layout import open_checkpoint
from eupmim_dist.config.schema import Config
from eupmim_dist.convert import export_vectors
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import Result, evaluate_model, held_out_users, ranking_mode, scorer_of
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.recommending import recommend
from eupmim_dist.tasks.interface import Task
from eupmim_dist.train.room import TABLES
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.propagated import plain_rows
from tests.runs import WORLD, config_of, logged, start, train_in
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(tmp_path: Path, **changes: Any) -> Config:
    if not (tmp_path / "store").exists():
        small_store(tmp_path / "store", split_rule="leave_one_out")
    values: dict[str, Any] = {
        "model": {"name": "lightgcn", "dim": 8},
        "task": {"history_length": 1, "min_history": 1},
        "objective": {"name": "full_softmax"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    whole = {section: values.pop(section) for section in ("model", "objective")}  # in place of another model's
    return config_of(tmp_path, **whole, **{f"{s}__{name}": v for s, part in values.items() for name, v in part.items()})


@pytest.mark.parametrize("num_layers", [4, 0])
def test_a_step_is_that_of_the_formula(num_layers: int, tmp_path: Path) -> None:
    """Its loss, over all items and without the edges to its targets; so is that of one negative, which is BPR's."""
    for objective in ({"name": "full_softmax"}, {"name": "sampled_softmax", "num_negatives": 1}):
        settings = {f"objective__{key}": value for key, value in objective.items()}
        run = start(settings_of(tmp_path, model__num_layers=num_layers, **settings))
        batch, prepared = run.task.sample(0), prepare_step(run, 0)
        assert batch.target is not None
        users, targets = batch.user, batch.target[:, 0]
        of_users, of_items = plain_rows(run, set(zip(users.tolist(), targets.tolist(), strict=True)))
        [(_, candidates)] = prepared.micro_batches
        [share] = train_step(run, 0, prepared).shares.values()
        scores = of_users[users] @ of_items.T
        if objective["name"] == "full_softmax":
            expected = F.cross_entropy(scores[:, 1:], targets - 1)
        else:
            [(_, ids)] = candidates.uses().values()
            chosen, other = scores.gather(1, ids).unbind(1)
            expected = -F.logsigmoid(chosen - other).mean()
        torch.testing.assert_close(share.double(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("source", ["clean", "history"])
def test_room_is_asked_for_the_graphs_and_their_layers(source: str, tmp_path: Path) -> None:
    config = settings_of(tmp_path, model__graph=source)
    run = start(config)
    propagation = run.tables.propagation
    assert propagation is not None
    sides = list(propagation._sides.values())
    run.tables.to_rank("test").scored("item")
    if source == "history":
        sides += propagation._ranked[1].values()
    graph = sum(side.keys.nbytes + side.reached.nbytes + side.weights.nbytes for side in sides)
    layers = 3 * sum(shard.weight.nbytes for shard in run.tables.shards.values())
    tables = 4 * sum(shard.weight.nbytes for shard in run.tables.shards.values())  # and gradients, moments
    assert needed_room(config, run.store, WORLD)[TABLES] == tables + graph + layers


@pytest.mark.parametrize("num_layers", [4, 0])
def test_an_evaluation_is_of_the_weights_as_they_are(num_layers: int, tmp_path: Path) -> None:
    run = start(settings_of(tmp_path, model__num_layers=num_layers))
    train_step(run, 0, prepare_step(run, 0))
    first = evaluate_model(run, "valid", "strict", [5], per_user=True)
    with torch.no_grad():
        run.tables.shards["item"].weight.normal_()  # as other weights are loaded
    second = evaluate_model(run, "valid", "strict", [5], per_user=True)
    assert first.per_user is not None
    assert second.per_user is not None
    assert (first.per_user.ranked != second.per_user.ranked).any()
    check_lists(run, second, held_out=2, known="valid")


def check_lists(run: Run, found: Result, held_out: int, known: str) -> None:
    of_users, of_items = plain_rows(run, known=known)
    scores = of_users @ of_items.T
    assert found.per_user is not None
    for user, ranked in zip(found.per_user.users.tolist(), found.per_user.ranked[:, 0], strict=True):
        start_, stop = (int(offset) for offset in run.store.offsets[user : user + 2])
        left = scores[user].clone()
        left[[0, *run.store.items[start_ : stop - held_out].tolist()]] = -torch.inf
        assert left.topk(5).indices.tolist() == ranked.tolist()


def test_the_graph_of_histories_knows_what_came_before_a_target(tmp_path: Path) -> None:
    """In whatever order splits are evaluated, between training steps that do not know it."""
    run, other = (start(settings_of(tmp_path, model__graph=graph)) for graph in ("history", "clean"))
    for step in range(3):
        check_lists(run, evaluate_model(run, "test", "strict", [5], per_user=True), held_out=1, known="test")
        check_lists(run, evaluate_model(run, "valid", "strict", [5], per_user=True), held_out=2, known="valid")
        known = [scorer_of(run, split) for split in ("valid", "test")]
        users = held_out_users(run, "test").chunk(0)
        with ranking_mode(run.model):
            rows = [[scorer.query(users) for scorer in known] for _ in range(2)]
        assert torch.equal(rows[0][0], rows[1][0]), "each as it was made, whichever is asked first"
        assert torch.equal(rows[0][1], rows[1][1])
        assert not torch.equal(rows[0][0], rows[0][1])
        shares = [train_step(each, step, prepare_step(each, step)).shares for each in (run, other)]
        assert shares[0] == shares[1]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = settings_of(tmp_path, train__max_steps=6, checkpoint__every=3)
    whole = train_in(config, tmp_path / "whole")
    train_in(config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 3})}), tmp_path / "parts")
    parts = train_in(config, tmp_path / "parts")
    assert logged(tmp_path / "whole")[-1] == logged(tmp_path / "parts")[-1]
    for name, shard in whole.tables.shards.items():
        assert torch.equal(shard.weight, parts.tables.shards[name].weight)


@pytest.mark.parametrize(("graph", "known"), [("clean", "train"), ("history", "all")])
def test_vectors_and_lists_are_of_propagated_rows(graph: str, known: str, tmp_path: Path) -> None:
    run = train_in(settings_of(tmp_path, model__graph=graph), tmp_path / "run")
    consolidate(open_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{run.progress.step:09d}"), tmp_path / "model")
    trained = load_trained(tmp_path / "model", WORLD)
    of_users, of_items = plain_rows(trained, known=known)
    export_vectors(open_checkpoint(tmp_path / "model"), tmp_path / "items", ["items"])
    items = np.load(tmp_path / "items" / "items.npy")
    np.testing.assert_allclose(items, of_items[1:].numpy(), rtol=1e-4, atol=1e-6)
    found = recommend(trained, ["u3"], 3)
    scores = of_users[3] @ of_items.T
    scores[[0, *trained.store.items[trained.store.offsets[3] : trained.store.offsets[4]].tolist()]] = -torch.inf
    assert found["item"].to_list() == [f"i{item}" for item in scores.topk(3).indices.tolist()]
    with pytest.raises(UserError, match=r"histories: model lightgcn knows a user by his row alone"):
        recommend(trained, histories=[["i1", "i2"]])


def test_the_published_graph_tells_what_is_held_out(tmp_path: Path) -> None:
    """Untrained, where nobody prefers anything: chance with the clean graph, far above it with the published one."""
    small_store(tmp_path / "store", num_users=200, num_items=100, longest=12, split_rule="leave_one_out")
    found = {}
    for graph in ("clean", "published"):
        run = start(settings_of(tmp_path, model__graph=graph, model__dim=64))
        found[graph] = evaluate_model(run, "test", "strict", [10]).metrics["hit_rate@10"]
    assert found["clean"] < 0.2
    assert found["published"] > 0.4


@pytest.mark.parametrize("task", ["next_item", "every_position"])
def test_every_rank_knows_whose_items_the_global_batch_predicts(tmp_path: Path, task: str) -> None:
    run = start(settings_of(tmp_path, task__name=task) if task == "next_item" else _every_position(tmp_path))
    for step in range(3):
        batch = run.task.sample(step)
        users, items = run.task.predicted(step)
        assert batch.target is not None
        assert torch.equal(items, batch.target.flatten())
        assert torch.equal(users, batch.user.repeat_interleave(batch.target.shape[1]))
        assert torch.equal(run.task.targets(step), items)


def _every_position(tmp_path: Path) -> Config:
    config = settings_of(tmp_path)
    return Config(**{**config.model_dump(), "task": {"name": "every_position", "history_length": 5}})


def test_without_layers_there_is_no_graph_to_ask_for_or_to_tell_of(tmp_path: Path) -> None:
    config = settings_of(tmp_path, model__num_layers=0, model__graph="published")
    assert config.model.label == "lightgcn"
    assert "leak" not in config.model.summary()
    assert start(config).tables.propagation is None


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lightgcn: knows a user by his row alone, and .*\(by_user\) trains on none"):
        start(_by_user(tmp_path / "by_user"))
    with pytest.raises(UserError, match=r"num_interests: lightgcn makes one vector per user"):
        settings_of(tmp_path, model__num_interests=2)
    monkeypatch.setattr("eupmim_dist.tasks.next_item.NextItem.predicted", Task.predicted)
    with pytest.raises(UserError, match=r"model\.mask_targets: NextItem does not say .* set model\.mask_targets=false"):
        start(settings_of(tmp_path))
    assert start(settings_of(tmp_path, model__mask_targets=False)).model.dim == 8


def _by_user(tmp_path: Path) -> Config:
    small_store(tmp_path / "store")
    return settings_of(tmp_path)
