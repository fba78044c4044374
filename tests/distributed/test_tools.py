"""Offline tools on checkpoints of several ranks: as good as what the ranks would do, and in bounded memory."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

from eupmim_dist.bench.exchanges import measure_exchanges
from eupmim_dist.bench.rivals import Shape
from eupmim_dist.bench.scaling import Cluster
from eupmim_dist.checkpoint import pieces as in_pieces
from eupmim_dist.checkpoint.layout import complete_steps, resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.manifest import STEP_MANIFEST
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.checkpoint.state import row_views
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.blocks import block_range
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.placement import RowOrder, Shard
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks
from tests.distributed.test_checkpoints import MIXED, SHARDED, at_ranks, checkpoints, losses, rows_of, start
from tests.stores import small_store

CASES = list(product(("exact", "rowwise_adagrad"), (SHARDED, MIXED)))
"""State as wide as the rows or a number for each; all tables sharded, or some held whole."""


def train_and_save(store: Path, place: Path) -> None:
    size = init_world(cpu=True).size
    for optimizer, placed in CASES:
        run = start(store, optimizer, placed)
        losses(run, 2)
        save_checkpoint(run, checkpoints(place, optimizer, size, placed))


def load_and_save(store: Path, place: Path, size: int) -> None:
    """At these ranks: saves what was saved at `size` ranks, and sees that it is loaded alike when resharded."""
    for optimizer, placed in CASES:
        run = start(store, optimizer, placed)
        load_training(run, resolve(checkpoints(place, optimizer, size, placed)))
        save_checkpoint(run, place / f"again-{optimizer}-{placed}")
        before = {name: rows.clone() for name, rows in rows_of(run).items()}
        for rows in rows_of(run).values():
            rows.fill_(-7.0)
        load_training(run, resolve(place / f"resharded-{optimizer}-{placed}"))
        assert all(torch.equal(rows, before[name]) for name, rows in rows_of(run).items())


def held(directory: Path) -> dict[str, list[tuple[str, list[int], list[int], bytes]]]:
    """Tensor -> for each of its parts: file, first indices, shape, content."""
    found: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            offsets = json.loads(tensors.metadata()["DCP_SHARDING_INFO"])
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_tensor(name)
                if part.size:  # ranks without rows may write an empty part
                    entry = (file.name, offsets[name]["saved_offsets"], list(part.shape), part.tobytes())
                    found.setdefault(name, []).append(entry)
    return found


@pytest.mark.parametrize(("size", "to"), [(3, 1), (3, 2), (1, 4)])
def test_a_resharded_checkpoint_is_what_those_ranks_would_have_saved(tmp_path: Path, size: int, to: int) -> None:
    store = small_store(tmp_path / "store", num_users=33).path
    at_ranks(size, train_and_save, store, tmp_path)
    for optimizer, placed in CASES:
        source = resolve(checkpoints(tmp_path, optimizer, size, placed))
        reshard(source, to, tmp_path / f"resharded-{optimizer}-{placed}")
    at_ranks(to, load_and_save, store, tmp_path, size)
    for optimizer, placed in CASES:
        case = f"{optimizer}-{placed}"
        resharded, [saved] = tmp_path / f"resharded-{case}", complete_steps(tmp_path / f"again-{case}")
        ours, theirs = held(resharded), held(saved)
        assert len(ours) == len(theirs) > 40
        assert ours.keys() == theirs.keys()
        whole = {"item", "tiny", "little"} if placed == MIXED and to > 1 else set()
        for name, parts in theirs.items():
            kind, _, rest = name.partition(".")
            if kind.startswith("dense") or rest.partition(".")[0] in whole:  # in whichever file
                parts, ours[name] = ([part[1:] for part in of] for of in (parts, ours[name]))
                assert len(parts) == 1
            assert ours[name] == parts, f"{case}: {name}"
        mine, others = (json.loads((path / STEP_MANIFEST).read_text()) for path in (resharded, saved))
        assert mine["files"].keys() == others["files"].keys()
        for content in (mine, others):
            del content["files"], content["checksum"]
        assert mine == others


ROWS, DIM = 700_003, 64  # 179 MB
BLOCK = 8 << 20
"""For the test; the program's is larger."""


def bound(block_bytes: int) -> int:
    """Bytes of memory that a tool may need, with what it imports."""
    return 6 * block_bytes + (64 << 20)


def save_large(store: Path, final: Path) -> None:
    """A table whose rows hold the numbers of their positions, and a state with one number for each row."""
    world = init_world(cpu=True)
    first, stop = block_range(ROWS, world.rank, world.size)
    numbers = torch.arange(first, stop, dtype=torch.float32)
    shard = Shard(TableSpec("item", ROWS, DIM), RowOrder(ROWS), first, torch.empty(0), False)
    rows = numbers[:, None].expand(-1, DIM).contiguous()
    tensors = row_views({"table.item": (shard, rows), "table_optimizer.item.sum": (shard, numbers)}, world)
    tensors["dense.weight"] = torch.ones(3)
    config = Config.model_validate({"data": {"dir": store}})
    description = {
        "step": 5,
        "training": {"step": 5},
        "config": config.model_dump(mode="json"),
        "tables": {"item": [ROWS, DIM]},
        "data": {"name": "small", "fingerprint": small_fingerprint(store)},
        "versions": {},
    }
    dcp.save(tensors, storage_writer=CheckpointWriter(final, description, lambda: None))
    dist.barrier()


def small_fingerprint(store: Path) -> str:
    from eupmim_dist.data.store import InteractionStore

    return InteractionStore.open(store).fingerprint


MEASURE = """
import json, sys
from pathlib import Path
from eupmim_dist.checkpoint import pieces
from eupmim_dist.checkpoint.contents import contents
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.verify import verify
def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
checkpoint, work = resolve(Path(sys.argv[1])), Path(sys.argv[2])
tools = {
    "consolidate": lambda: consolidate(checkpoint, work / "model"),
    "reshard": lambda: reshard(checkpoint, 3, work / "resharded"),
    "verify": lambda: verify(checkpoint.path),
    "inspect": lambda: contents(checkpoint, with_stats=True),
}
pieces.BLOCK_BYTES = int(sys.argv[3])
start = memory("VmRSS:")
for name, tool in tools.items():
    found = tool()
    assert getattr(found, "problem", None) is None, found
    print(json.dumps([name, memory("VmHWM:") - start]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_no_tool_holds_a_table(tmp_path: Path) -> None:
    assert bound(BLOCK) < ROWS * DIM * 4  # so that one that held the table would be found out
    assert bound(in_pieces.BLOCK_BYTES) < 10**9
    store, final = small_store(tmp_path / "store").path, tmp_path / "run" / "checkpoints" / "step-000000005"
    run_ranks(3, save_large, store, final, timeout=120)
    assert len(list(final.glob("*.safetensors"))) == 3
    command = [sys.executable, "-c", MEASURE, str(final), str(tmp_path), str(BLOCK)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = dict(json.loads(line) for line in ended.stdout.splitlines())
    assert list(grown) == ["consolidate", "reshard", "verify", "inspect"]
    assert grown["inspect"] < bound(BLOCK), grown  # the most that any of them needed
    with safe_open(tmp_path / "model" / "model.safetensors", framework="np") as tensors:
        table, order = tensors.get_slice("table.item"), RowOrder(ROWS)
        for first in (0, 444_444, ROWS - 1000):
            expected = order.positions(torch.arange(first, first + 1000).numpy())
            assert (table[first : first + 1000] == expected[:, None]).all()


def scaling(local_size: int) -> dict[str, Any]:
    world = init_world(cpu=True)
    world = replace(world, local_rank=world.rank % local_size, local_size=local_size)
    config = parse_config({"tables": {"optimizer": "sgd", "replicate_below": 0}}, "test").tables
    shape = Shape(rows=300, dim=4, num_samples=8, ids_per_sample=3)
    return measure_exchanges(shape, "zipf", config, 2, Cluster(world.size, local_size), world)


def test_steps_are_predicted_from_the_links_that_are_there() -> None:
    found, other = run_ranks(2, scaling, 2)
    assert found == other
    assert set(found["ways"]) == {"flat"}
    assert set(run_ranks(4, scaling, 2)[0]["ways"]) == {"flat", "two_level"}
    given, cluster = Cluster(2, 2), found["cluster"]
    assert 1e6 < cluster["within"] < 1e12
    assert cluster["within"] != given.within
    for way in found["ways"].values():
        assert 0 <= way["waits ms/step"] < way["predicted ms/step"] < 10_000
    assert cluster["link"] == given.link, "there is one node"
