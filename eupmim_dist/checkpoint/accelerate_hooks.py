"""Sharded tables in `accelerator.save_state` and `load_state`, for training loops of your own.

Accelerate's `register_for_checkpointing` writes one file whose name has no rank in it, so every rank would load rank
0's shard. These hooks write `OUTPUT_DIR/tables`, a checkpoint of its own: complete or not there, hashed, readable at
any number of ranks.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from eupmim_dist.checkpoint.load import check_hashes
from eupmim_dist.checkpoint.manifest import read_tables_manifest
from eupmim_dist.checkpoint.state import readable_failures, table_rows, table_states
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.errors import UserError, short
from eupmim_dist.files import put_back
from eupmim_dist.optim.tables import TableOptimizer
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.sharded import ShardedTables

DIRECTORY = "tables"


def checkpoint_tables(accelerator: Accelerator, tables: ShardedTables, optimizer: TableOptimizer) -> None:
    """Has `accelerator.save_state(DIR)` and `load_state(DIR)` save and load all shards and their optimizer's state.

    Both become collective. Call it once, after `accelerator.prepare`. The tables load at any number of ranks and any
    placement; what Accelerate writes beside them, such as random states, has limits of its own.

    `load_state` raises UserError, on all ranks, where DIR holds no tables, damaged ones, tables of other sizes or
    another optimizer's state.
    """
    accelerator.register_save_state_pre_hook(partial(_save, tables, optimizer))
    accelerator.register_load_state_pre_hook(partial(_load, tables, optimizer))


def _save(
    tables: ShardedTables, optimizer: TableOptimizer, models: list[nn.Module], weights: list[Any], output_dir: str
) -> None:
    description = {**_description(tables, optimizer), "num_steps": int(optimizer.num_steps)}
    writer = CheckpointWriter(Path(output_dir) / DIRECTORY, description, lambda: None)
    _recover(writer.final, tables)
    with agreed(tables.world), readable_failures(writer.final):
        dcp.save(_tensors(tables, optimizer), storage_writer=writer, no_dist=tables.world.size == 1)


def _load(tables: ShardedTables, optimizer: TableOptimizer, models: list[nn.Module], input_dir: str) -> None:
    path, world = Path(input_dir) / DIRECTORY, tables.world
    _recover(path, tables)
    with agreed(world):
        manifest = read_tables_manifest(path)
        for key, ours in _description(tables, optimizer).items():
            if (theirs := manifest.model_dump(mode="json")[key]) != ours:
                raise UserError(f"{path}: its {key} is {short(theirs)}, here it is {ours}")
    check_hashes(path, world)
    with agreed(world), readable_failures(path):
        tensors = _tensors(tables, optimizer)
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world.size == 1)
        optimizer.num_steps.fill_(manifest.num_steps)


def _recover(path: Path, tables: ShardedTables) -> None:
    """Brings back what was there when a replacement was killed half-way, before any rank looks."""
    with agreed(tables.world):
        if tables.world.is_main:
            put_back(path)


def _description(tables: ShardedTables, optimizer: TableOptimizer) -> dict[str, Any]:
    return {
        "tables": {name: [shard.spec.rows, shard.spec.dim] for name, shard in tables.shards.items()},
        "optimizer": optimizer.config.optimizer,
    }


def _tensors(tables: ShardedTables, optimizer: TableOptimizer) -> dict[str, Tensor]:
    return {**table_rows(tables), **table_states(tables, optimizer)}
