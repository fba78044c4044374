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
from eupmim_dist.bench.scaling import COUNT_BYTES, SEED, Cluster, Way, count, head_ids, set_to, touched
from eupmim_dist.config.load import parse_config
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.head import NODES
from eupmim_dist.parallel.placement import RowOrder
from eupmim_dist.parallel.route import two_levels
from eupmim_dist.parallel.world import World
from tests.runs import command_line

pytestmark = pytest.mark.usefixtures("one_thread")

WORLDS = [(2, 2), (2, 3), (3, 2), (4, 1), (1, 4), (3, 4)]
"""Numbers of nodes, and of ranks on each."""
WAYS = get_args(Way)


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


def plain(way: Way, shape: Shape, kind: IdKind, cluster: Cluster, step: int) -> tuple[float, float]:
    """Bytes that a node sends others and that a rank sends its node, by going through all who ask."""
    order, block = RowOrder(shape.rows), -(-shape.rows // cluster.ranks)
    wanted = []
    for rank in range(cluster.ranks):
        ids = random_ids(kind, shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, step).numpy()
        wanted.append({(int(p) // block, int(p)) for p in order.positions(ids.flatten())})
    head = set(order.positions(head_ids(shape, kind, cluster)).tolist()) if "head" in way else set()
    summed = {row for rows in wanted for _, row in rows} & head
    wanted = [{(holder, row) for holder, row in rows if row not in head} for rows in wanted]
    node = [rank // cluster.local for rank in range(cluster.ranks)]
    asked: dict[tuple[int, int], set[int]] = {pair: set() for pair in product(range(cluster.ranks), repeat=2)}
    for rank, rows in enumerate(wanted):
        for holder, row in rows:
            if way.startswith("flat"):
                asked[rank, holder].add(row)
            else:
                agent = node[rank] * cluster.local + holder % cluster.local
                asked[rank, agent].add(row)
                asked[agent, holder].add(row)
    between = within = 0
    for (rank, of), rows in asked.items():
        if rank == of:
            continue
        talk = way.startswith("flat") or node[rank] == node[of] or rank % cluster.local == of % cluster.local
        told = COUNT_BYTES + 8 * -(-len(head) // 64)
        size = told * talk + len(rows) * (4 + 8 * shape.dim)
        if node[rank] == node[of]:
            within += size
        else:
            between += size
    nodes, local, gradients = cluster.ranks // cluster.local, cluster.local, 4 * shape.dim * len(summed)
    sums = [2 * gradients * (number - 1) / number for number in (nodes, local)]
    return between / nodes + sums[0], within / cluster.ranks + sums[1]


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
@pytest.mark.parametrize(("nodes", "local"), [(2, 2), (2, 3), (3, 2)])
def test_bytes_are_those_of_a_plain_count(kind: IdKind, nodes: int, local: int) -> None:
    shape, cluster = Shape(rows=307, dim=8, num_samples=20, ids_per_sample=3), Cluster(nodes * local, local)
    for way in WAYS:
        sent = count(way, shape, kind, cluster, [0, 1])
        steps = [plain(way, shape, kind, cluster, step) for step in (0, 1)]
        assert (sent.between, sent.within) == pytest.approx(np.mean(steps, axis=0))


def test_a_head_that_all_hold_sends_as_much_as_two_levels() -> None:
    """But for what ranks tell each other of the head's rows, which many small nodes see."""
    shape = Shape(rows=2000, dim=64, num_samples=100, ids_per_sample=5)
    for nodes, local in ((2, 2), (4, 4), (8, 8)):
        cluster = Cluster(nodes * local, local)
        sent = {way: count(way, shape, "zipf", cluster, [0]).between for way in WAYS}
        assert sent["two_level, head"] == pytest.approx(sent["two_level"], rel=0.02)
        assert sent["two_level, head"] <= sent["flat, head"] < 0.9 * sent["flat"]


@pytest.mark.parametrize("local", [2, 8])
def test_a_head_is_what_nearly_every_node_asks_for(local: int) -> None:
    shape = Shape(rows=2000, dim=8, num_samples=100, ids_per_sample=5)
    drawn = [
        random_ids("zipf", shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, step).unique()
        for rank in range(local)
        for step in range(300)
    ]
    share = torch.cat(drawn).bincount(minlength=shape.rows) / len(drawn)
    of_nodes = 1 - (1 - share) ** local
    head = torch.from_numpy(head_ids(shape, "zipf", Cluster(2 * local, local)))
    assert len(head) == pytest.approx(int((of_nodes > NODES).sum()), rel=0.1)
    assert of_nodes[head].min() > NODES - 0.1
    assert not len(head_ids(shape, "zipf", Cluster(2, 1)))
    assert not len(head_ids(shape, "zipf", Cluster(local, local)))
    assert not len(head_ids(shape, "uniform", Cluster(2 * local, local)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("nodes", "local"), [(2, 2), (3, 2), (1, 4)])
def test_one_rank_does_the_work_of_one_of_many(way: Way, nodes: int, local: int) -> None:
    """It is asked for what it asks for, and has as many rows to handle as ranks have in the mean."""
    shape, cluster = Shape(rows=6000, dim=4, num_samples=400, ids_per_sample=5), Cluster(nodes * local, local)
    config = parse_config({"tables": {"replicate_below": 0, **set_to(way), "optimizer": "sgd"}}, "test").tables
    head = {NAME: head_ids(shape, "zipf", cluster)} if config.replicate_head else None
    handled = []
    for rank in range(cluster.ranks):
        world = World(rank, cluster.ranks, rank % local, local, torch.device("cpu"))
        tables = mirrored_tables(TableSpec(NAME, shape.rows, shape.dim), SEED, world, config, head)
        ids = random_ids("zipf", shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, 0)
        plan, *of_head = tables.plan([{NAME: (NAME, ids)}]).groups
        assert len(of_head) == (head is not None and nodes > 1)
        assert len(plan.hops) == (2 if way.startswith("two_level") and nodes > 1 else 1)
        assert all(hop.sent == hop.received for hop in plan.hops)
        handled.append(sum(sum(hop.received) for hop in plan.hops))
        lookup = tables.fetch(tables.plan([{NAME: (NAME, ids)}]))
        lookup.rows[0][NAME].sum().backward()
        gradients, *of_copies = lookup.gradients(1.0)
        copied = (
            torch.isin(ids, torch.from_numpy(head[NAME])) if of_copies else torch.zeros(ids.shape, dtype=torch.bool)
        )
        assert gradients.values.sum() == pytest.approx(int((~copied).sum()) * shape.dim)  # each use's arrives once
        assert sum(len(part.rows) for part in of_copies) == len(ids[copied].unique())
        assert len(gradients.rows) == len(plan.rows)
    share = np.mean(handled) / count(way, shape, "zipf", cluster, [0]).handled
    assert 0.97 < share < (1.03 if way.startswith("flat") or nodes == 1 else 1.1)  # agents find nothing asked for twice


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
