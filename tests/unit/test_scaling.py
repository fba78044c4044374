"""What a step is predicted to send, against a plain count, and the ways that requests go."""

import json
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from eupmim_dist.bench.ids import IdKind, random_ids
from eupmim_dist.bench.mirror import mirrored_tables
from eupmim_dist.bench.rivals import NAME, Shape
from eupmim_dist.bench.scaling import COUNT_BYTES, SEED, Cluster, count, touched
from eupmim_dist.config.load import parse_config
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.placement import RowOrder
from eupmim_dist.parallel.route import ExchangeKind, two_levels
from eupmim_dist.parallel.world import World
from tests.runs import command_line

pytestmark = pytest.mark.usefixtures("one_thread")

WORLDS = [(2, 2), (2, 3), (3, 2), (4, 1), (1, 4), (3, 4)]
"""Numbers of nodes, and of ranks on each."""
WAYS = get_args(ExchangeKind)


@pytest.mark.parametrize(("nodes", "local"), WORLDS)
def test_two_levels_lead_from_every_rank_to_every_holder(nodes: int, local: int) -> None:
    """By the rank of the own node that has the holder's local number, and by no other."""
    size, stride = nodes * local, 5
    routes = [two_levels(rank, size, local) for rank in range(size)]
    for rank, holder in product(range(size), repeat=2):
        key = routes[rank].order[holder] * stride + 3
        within = routes[rank].levels[0]
        agent = within.peers[key // (within.holders * stride)]
        assert agent == rank // local * local + holder % local
        place = key % (within.holders * stride)
        assert routes[agent].levels[1].peers[place // stride] == holder
        assert place % stride == 3
        assert rank in within.peers
        assert agent in routes[agent].levels[1].peers


def plain(way: ExchangeKind, shape: Shape, kind: IdKind, cluster: Cluster, step: int) -> tuple[float, float]:
    """Bytes that a node sends others and that a rank sends its node, by going through all who ask."""
    order, block = RowOrder(shape.rows), -(-shape.rows // cluster.ranks)
    wanted = []
    for rank in range(cluster.ranks):
        ids = random_ids(kind, shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, step).numpy()
        wanted.append({(int(p) // block, int(p)) for p in order.positions(ids.flatten())})
    node = [rank // cluster.local for rank in range(cluster.ranks)]
    asked: dict[tuple[int, int], set[int]] = {pair: set() for pair in product(range(cluster.ranks), repeat=2)}
    for rank, rows in enumerate(wanted):
        for holder, row in rows:
            if way == "flat":
                asked[rank, holder].add(row)
            else:
                agent = node[rank] * cluster.local + holder % cluster.local
                asked[rank, agent].add(row)
                asked[agent, holder].add(row)
    between = within = 0
    for (rank, of), rows in asked.items():
        if rank == of:
            continue
        talk = way == "flat" or node[rank] == node[of] or rank % cluster.local == of % cluster.local
        size = COUNT_BYTES * talk + len(rows) * (4 + 8 * shape.dim)
        if node[rank] == node[of]:
            within += size
        else:
            between += size
    return between / (cluster.ranks // cluster.local), within / cluster.ranks


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
@pytest.mark.parametrize(("nodes", "local"), [(2, 2), (2, 3), (3, 2)])
def test_bytes_are_those_of_a_plain_count(kind: IdKind, nodes: int, local: int) -> None:
    shape, cluster = Shape(rows=307, dim=8, num_samples=20, ids_per_sample=3), Cluster(nodes * local, local)
    for way in WAYS:
        sent = count(way, shape, kind, cluster, [0, 1])
        steps = [plain(way, shape, kind, cluster, step) for step in (0, 1)]
        assert (sent.between, sent.within) == pytest.approx(np.mean(steps, axis=0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("nodes", "local"), [(2, 2), (3, 2), (1, 4)])
def test_one_rank_does_the_work_of_one_of_many(way: ExchangeKind, nodes: int, local: int) -> None:
    """It is asked for what it asks for, and has as many rows to handle as ranks have in the mean."""
    shape, cluster = Shape(rows=6000, dim=4, num_samples=400, ids_per_sample=5), Cluster(nodes * local, local)
    config = parse_config({"tables": {"replicate_below": 0, "exchange": way, "optimizer": "sgd"}}, "test").tables
    handled = []
    for rank in range(cluster.ranks):
        world = World(rank, cluster.ranks, rank % local, local, torch.device("cpu"))
        tables = mirrored_tables(TableSpec(NAME, shape.rows, shape.dim), SEED, world, config)
        ids = random_ids("zipf", shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, 0)
        [plan] = tables.plan([{NAME: (NAME, ids)}]).groups
        assert len(plan.hops) == (2 if way == "two_level" and nodes > 1 else 1)
        assert all(hop.sent == hop.received for hop in plan.hops)
        handled.append(sum(sum(hop.received) for hop in plan.hops))
        lookup = tables.fetch(tables.plan([{NAME: (NAME, ids)}]))
        lookup.rows[0][NAME].sum().backward()
        [gradients] = lookup.gradients(1.0)
        assert gradients.values.sum() == pytest.approx(shape.num_ids * shape.dim)  # each use's gradient arrives once
        assert len(gradients.rows) == len(plan.rows)
    share = np.mean(handled) / count(way, shape, "zipf", cluster, [0]).handled
    assert 0.97 < share < (1.03 if way == "flat" or nodes == 1 else 1.1)  # agents find nothing asked for twice


def test_the_command_predicts_from_one_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, file = "--rows 900 --dim 4 --samples 30 --ids-per-sample 3 --steps 2", tmp_path / "predicted.json"
    assert command_line(f"bench scaling --simulate --ranks 1,8,64 {shape} --json {file}") == 0
    lines = json.loads(file.read_text())["predicted"]
    assert [(line["ranks"], line["way"]) for line in lines] == [(1, "flat"), (8, "flat"), *((64, way) for way in WAYS)]
    assert lines[0]["between"] == lines[0]["within"] == lines[0]["messages"] == 0
    for options, told in (
        ("--simulate --ranks 12", "--ranks 12: at least 1, and a multiple of --ranks-per-node 8 beyond it"),
        ("--simulate --ranks 1,x", "--ranks '1,x': give whole numbers"),
        ("", "one rank exchanges nothing; launch several, or predict them with --simulate"),
    ):
        assert command_line(f"bench scaling {options}") == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
def test_rows_that_so_many_ids_touch(kind: IdKind) -> None:
    drawn = [len(random_ids(kind, 5000, 700, 5, 3, 0, step).unique()) for step in range(40)]
    assert touched(Shape(5000, 8, 700, 5), kind, 3500) == pytest.approx(np.mean(drawn), rel=0.01)
