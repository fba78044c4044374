"""`doctor --estimate`: bytes are those of a plain count over what each rank would sample, memory is what is held."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eupmim_dist import assemble
from eupmim_dist.config.registry import build
from eupmim_dist.config.schema import Config
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.doctor.estimate import BATCH, STEPS, Plan, estimate
from eupmim_dist.doctor.traffic import StepTraffic, traffic_of_step
from eupmim_dist.errors import UserError
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.placement import RowOrder
from eupmim_dist.parallel.world import World
from tests.runs import command_line, config_of, start

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 3


def parts(config: Config, rank: int, size: int) -> tuple[Any, Any, Any]:
    world = World(rank, size, rank, size, torch.device("cpu"))
    store = InteractionStore.open(config.data.dir)
    model = assemble.make_model(config, assemble.shape_of_data(config, store))
    task = assemble.make_task(config, world, store, model)
    return model, task, build("objective", config.objective.name, Objective, config.objective, model, task)


def wanted_by(config: Config, rank: int, step: int) -> dict[str, set[int]]:
    """The rows that a rank of a launch looks up."""
    model, task, objective = parts(config, rank, SIZE)
    batch = task.sample(step)
    found: dict[str, set[int]] = {}
    for table, ids in (model.uses(batch) | objective.draw(batch, step).uses()).values():
        found.setdefault(table, set()).update(set(ids.flatten().tolist()) - {-1})
    return found


def plain_count(config: Config, step: int) -> dict[str, np.ndarray]:
    """Bytes of ids, rows and gradients from rank to rank, a row at a time; of replicated rows what each rank sends."""
    specs = {spec.name: spec for spec in parts(config, 0, SIZE)[0].tables()}
    wanted = [wanted_by(config, rank, step) for rank in range(SIZE)]
    sent = {kind: np.zeros((SIZE, SIZE)) for kind in ("ids", "rows", "gradients")}
    summed = 0.0
    for name, spec in specs.items():
        if spec.rows < config.tables.replicate_below:
            summed += len(set().union(*(of_rank.get(name, set()) for of_rank in wanted))) * 4 * spec.dim
            continue
        owner = {}
        for rank in range(SIZE):
            ids = RowOrder(spec.rows).ids(np.arange(*block_range(spec.rows, rank, SIZE)))
            owner |= dict.fromkeys(ids.tolist(), rank)
        for rank, of_rank in enumerate(wanted):
            for row in of_rank.get(name, set()):
                if (holder := owner[row]) != rank:
                    sent["ids"][rank, holder] += 4
                    sent["rows"][holder, rank] += 2 * spec.dim  # bfloat16
                    sent["gradients"][rank, holder] += 4 * spec.dim
    return sent | {"replicated": np.full(SIZE, 2 * (SIZE - 1) / SIZE * summed)}


def counted(config: Config, step: int) -> StepTraffic:
    model, task, objective = parts(config, 0, 1)
    return traffic_of_step(config, model, task, objective, model.tables(), [], SIZE, step)


@pytest.mark.parametrize("replicate_below", [0, 35, 1000])
@pytest.mark.parametrize(
    "others",
    [{}, {"objective": {"candidates": "in_batch"}, "train__accumulation": 2}, {"task__name": "every_position"}],
)
def test_bytes_are_those_of_distinct_remote_rows(tmp_path: Path, replicate_below: int, others: dict[str, Any]) -> None:
    tables = {"replicate_below": replicate_below, "row_format": "bfloat16"}
    config = config_of(tmp_path, tables=tables, **{"train__global_batch_size": 10, **others})
    for step in (0, 7):
        found, expected = counted(config, step), plain_count(config, step)
        for kind in ("ids", "rows", "gradients"):
            np.testing.assert_array_equal(found.sent[kind], expected[kind])
        np.testing.assert_allclose(found.sent["replicated"].sum(1), expected["replicated"])
        parameters = sum(p.numel() for p in parts(config, 0, 1)[0].parameters())
        np.testing.assert_allclose(found.sent["dense"].sum(1), 2 * (SIZE - 1) / SIZE * 4 * parameters)
        assert (found.total.diagonal() == 0).all()
        between = found.between_nodes(2)  # of ranks 0 and 1 on one node, 2 on another
        np.testing.assert_allclose(between, [[0, found.total[:2, 2].sum()], [found.total[2, :2].sum(), 0]])


def test_a_loss_over_all_items_sends_queries_round_and_their_gradients_back(tmp_path: Path) -> None:
    config = config_of(tmp_path, objective={"name": "full_softmax"}, train__global_batch_size=9)
    found = counted(config, 0)
    queries = 3 * config.model.num_interests * config.model.dim * 4  # of 3 samples
    assert found.sent["catalogue"][0, 2] == queries
    sums = 5 * 2 * 9 * 4 * 2 / 3  # of all 9 scores: 2/3 of them twice round the ring
    assert found.sent["catalogue"].sum(1) == pytest.approx([4 * queries + 2 * 3 * 8 + sums] * 3)
    sampled = counted(config_of(tmp_path, train__global_batch_size=9), 0)
    assert not sampled.sent["catalogue"].any()
    assert found.sums == sampled.sums + 7  # five of scores, two of items: all hold them, apart from users


@pytest.mark.parametrize("optimizer", ["exact", "lazy_adam", "rowwise_adagrad"])
def test_memory_of_one_rank_is_what_it_holds(tmp_path: Path, optimizer: str) -> None:
    config = config_of(tmp_path, tables={"optimizer": optimizer})
    found, run = estimate(config, Plan(1, 8)), start(config)
    held = {name: shard.weight.nbytes for name, shard in run.tables.shards.items()}
    assert {table.name: table.weights for table in found.tables} == held
    state = make_table_optimizer(config.tables, run.tables, 0.1, 0.0).row_state
    for table in found.tables:
        of_rows = sum(each.nbytes for each in state[table.name].values() if each.dim() > 1)
        gradient = table.weights if optimizer == "exact" else 0
        assert table.state == of_rows + gradient
    assert found.memory["dense network"] == 4 * sum(p.nbytes for p in run.model.parameters())
    assert found.memory[BATCH] > 0
    assert (found.link, found.exchange_ms, found.sums) == (0, 0, 0)


def test_more_ranks_hold_less_and_zero_less_still(tmp_path: Path) -> None:
    config = config_of(tmp_path, tables={"replicate_below": 0})
    one, many = estimate(config, Plan(1, 8)), estimate(config, Plan(4, 2))
    assert [table.held for table in many.tables] == [-(-table.rows // 4) for table in one.tables]
    dense = [estimate(config, Plan(4, 2, zero)).memory["dense network"] for zero in (0, 1, 2)]
    assert dense[0] == one.memory["dense network"] > dense[1] > dense[2]


def test_a_step_takes_its_computation_and_what_of_the_communication_it_does_not_hide(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    slow = estimate(config, Plan(4, 2, link_gbps=0.008, latency_us=0, step_ms=5.0))  # a byte a microsecond
    assert slow.transfer_ms == pytest.approx(slow.link / 1000)
    assert slow.step_ms == (max(5.0, slow.exchange_ms), 5.0 + slow.exchange_ms)
    late = estimate(config, Plan(4, 2, link_gbps=1e9, latency_us=100))
    assert late.exchange_ms == pytest.approx(0.1 * (2 + 4 * (late.sums + 1)))  # two levels of a tree, up and down
    assert late.step_ms is None


def test_what_it_prints_is_what_it_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, world_size=4)
    (tmp_path / "small.json").write_text(config.model_dump_json())
    line = f"doctor --estimate --config {tmp_path}/small.json --json {tmp_path}/found.json"
    assert command_line(f"{line} --world 4 --ranks-per-node 2 --step-ms 3") == 0
    out = capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert "4 ranks, 2 a node on 2" in out
    assert f"{found['sent']['dense'][0] / 1e3:,.1f}" in out
    assert "a step: " in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert command_line(f"{line} --world 8") == 2
    assert "the configuration is for world_size 4" in capfd.readouterr().err
    with pytest.raises(UserError, match="no such directory"):
        estimate(config_of(tmp_path, data={"dir": str(tmp_path / "none")}), Plan(4, 2))
    assert Counter(table["name"] for table in found["tables"]) == Counter(["item", "user"])
    assert STEPS > 1
