"""Reads checkpoints and consolidated models at any number of ranks: each rank keeps the rows it holds."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from eupmim_dist.checkpoint.layout import Checkpoint, check_files, num_bytes
from eupmim_dist.checkpoint.manifest import Damaged, gone
from eupmim_dist.checkpoint.pieces import FLOATS, read_pieces, shape_of
from eupmim_dist.checkpoint.state import model_tensors, not_finite, readable_failures, training_tensors
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import agreed, decided_by_main, everywhere
from eupmim_dist.parallel.placement import Shard
from eupmim_dist.parallel.world import World, collective_timeout
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import byte_progress
from eupmim_dist.train.state import Assembled, Run

ROWS_AT_A_TIME = 1 << 16


def open_sound(opening: Callable[[], Checkpoint], world: World) -> Checkpoint:
    """The checkpoint that `opening` opens on rank 0, its files compared with their hashes by all ranks; collective.

    Raises Damaged on all ranks if one finds something wrong.
    """

    def opened() -> Checkpoint | Damaged:
        try:
            return opening()
        except Damaged as problem:
            return problem

    found = decided_by_main(world, opened)
    if isinstance(found, Damaged):
        raise found
    check_hashes(found.path, world)
    return found


def check_hashes(path: Path, world: World) -> None:
    """Compares the files of a checkpoint with their hashes, each on one rank; collective. Raises what one finds.

    Ranks meet now and then while one is still at it: a large file may take longer than a collective may.
    """
    total = 0
    if world.is_main:
        with suppress(UserError):  # which is found again below, and told to all ranks
            total = num_bytes(path, 0, world.size)
    met = time.monotonic()
    with byte_progress(f"checking {path.name}", total, world.is_main) as on_bytes:

        def still_checking(done: int) -> None:
            nonlocal met
            on_bytes(done)
            if time.monotonic() - met > collective_timeout() / 2:
                everywhere("still checking", world)
                met = time.monotonic()

        mine: UserError | None = None
        try:
            check_files(path, world.rank, world.size, still_checking)
        except UserError as found:
            mine = found
        while "still checking" in (said := everywhere(mine, world)):
            pass
    for problem in said:
        if problem is not None:
            raise problem


def load_model(assembled: Assembled, checkpoint: Checkpoint) -> None:
    """Sets the weights, dense and tables; collective. Raises UserError for another model's checkpoint."""
    tensors = model_tensors(assembled.model, assembled.tables)
    _read(tensors, checkpoint, assembled.world, assembled.tables.shards)


def load_training(run: Run, checkpoint: Checkpoint) -> None:
    """Sets the weights, the optimizers' state and the progress; collective. Warns of another precision."""
    before, now = checkpoint.manifest.mixed_precision, run.dense.accelerator.mixed_precision
    if before not in (None, now):
        get_logger(run.world.rank).warning(
            f"{checkpoint.path}: was trained with mixed precision {before} and goes on with {now}: not the same"
        )
    tensors = training_tensors(run)
    _read(tensors, checkpoint, run.world, run.tables.shards)
    assert checkpoint.progress is not None, "a model cannot be gone on with"
    progress = run.progress = replace(checkpoint.progress)
    patience = run.config.evaluation.patience  # which may have changed
    progress.stopped = bool(patience) and progress.evaluations_since_best >= patience
    run.table_optimizer.num_steps.fill_(progress.num_updates)
    prefix = "dense_optimizer."
    run.dense.restore_optimizer(
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
        progress.num_updates,
    )


def _read(tensors: dict[str, Tensor], checkpoint: Checkpoint, world: World, shards: dict[str, Shard]) -> None:
    wanted, pieces = dict(tensors), read_pieces(checkpoint.path)
    held = {name: shape_of(of_tensor) for name, of_tensor in pieces.items()}
    for name, tensor in tensors.items():
        if held.get(name) != tuple(tensor.shape):
            found = f"holds it as {held[name]}" if name in held else "does not hold it"
            raise UserError(
                f"{checkpoint.path}: is of another model: {name} should be {tuple(tensor.shape)}, the checkpoint "
                f"{found}; use the configuration and data it was trained with"
            )
        if tensor.is_floating_point() and pieces[name][0].dtype not in FLOATS:
            raise Damaged(
                f"{pieces[name][0].file}: {name} holds {pieces[name][0].dtype}, not floats; use another checkpoint"
            )
    if checkpoint.is_model:
        for name, shard in shards.items():
            whole, *others = pieces[f"table.{name}"]
            if others:
                raise Damaged(f"{others[0].file}: holds a part of table.{name}, which is whole in one file of a model")
            _read_by_id(shard, whole.file, f"table.{name}")
            del tensors[f"table.{name}"]
    try:
        with readable_failures(checkpoint.path):
            reader = HuggingFaceStorageReader(str(checkpoint.path))
            dcp.load(tensors, storage_reader=reader, no_dist=world.size == 1)
    except (UserError, RuntimeError):
        if checkpoint.path.is_dir():
            raise
        raise gone(checkpoint.path) from None  # a training may have saved later ones meanwhile
    with agreed(world):
        if strange := not_finite(wanted):
            raise Damaged(f"{checkpoint.path}: {strange} holds numbers that are not finite; use another checkpoint")


def _read_by_id(shard: Shard, file: Path, name: str) -> None:
    """Sets the rows of a shard from a file that holds the table in the order of its ids, by blocks of rows."""
    with safe_open(file, framework="pt") as tensors:
        whole = tensors.get_slice(name)
        for first in range(0, shard.spec.rows, ROWS_AT_A_TIME):
            block = whole[first : first + ROWS_AT_A_TIME]
            position = torch.from_numpy(shard.order.positions(np.arange(first, first + len(block)))) - shard.start
            mine = (position >= 0) & (position < len(shard.weight))
            shard.weight[position[mine].to(shard.weight.device)] = block[mine].to(shard.weight.device)
