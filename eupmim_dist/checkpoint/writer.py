"""Writes a checkpoint through torch.distributed.checkpoint: every rank its shards, then rank 0 the manifest.

Torch's own writer of safetensors holds a second copy of all that a rank writes, and leaves hashing to a second reading.
This one streams blocks and hashes them on the way; the files are alike, so torch's reader reads them.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import Metadata, SavePlan, SavePlanner, StorageWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from eupmim_dist.checkpoint.layout import backups
from eupmim_dist.checkpoint.manifest import STEP_MANIFEST, write_manifest
from eupmim_dist.checkpoint.stream import Part, shard_metadata, write_parts
from eupmim_dist.files import beside, put_back, replace_directory, sync_directory

BLOCK_ELEMENTS = 1 << 22
"""Of a tensor, copied from its device and written at a time."""

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


class CheckpointWriter(StorageWriter):
    """For one `dcp.save`: nothing is at `final` before it is complete and on the disk.

    What fails on one rank, `dcp.save` raises on all.
    """

    def __init__(self, final: Path, description: dict[str, Any], then: Callable[[], None]) -> None:
        """`description` is the manifest but for its files; `then` runs on rank 0 once `final` exists."""
        self.final, self.staging = final, beside(final)
        self.description, self.then = description, then

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Nothing to reset: one writer writes one checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False  # the path is given to the writer, not to `dcp.save`

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:  # before any rank has a plan to write
            kind = self.final.name.partition("-")[0]  # step, or tables (accelerate_hooks.py)
            for ending in ("incomplete", "removed"):  # left by what was killed
                for left in self.final.parent.glob(f".{kind}*.{ending}"):
                    shutil.rmtree(left, ignore_errors=True)
            self.staging.mkdir(parents=True)
            sync_directory(self.final.parent.parent)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [
            replace(plan, storage_data=f"shard-{number:05d}-of-{len(plans):05d}.safetensors")
            for number, plan in enumerate(plans, start=1)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors = [(item, cast(Tensor, planner.resolve_data(item)).detach()) for item in plan.items]
        written: list[WriteResult] = []
        if tensors:
            entry = self._write(self.staging / plan.storage_data, tensors)
            written = [WriteResult(item.index, tensor.nbytes, entry) for item, tensor in tensors]
        future: Future[list[WriteResult]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = dict(of_rank[0].storage_data for of_rank in results if of_rank)
        write_manifest(self.staging, STEP_MANIFEST, self.description, files)
        replace_directory(self.staging, self.final)
        self.then()

    def _write(self, file: Path, tensors: list[tuple[WriteItem, Tensor]]) -> tuple[str, dict[str, Any]]:
        """Writes one file; its name and its entry in the manifest."""
        parts = [
            Part(
                name=item.index.fqn,
                dtype=DTYPES[tensor.dtype],
                shape=tuple(tensor.shape),
                num_bytes=tensor.nbytes,
                blocks=_blocks(tensor),
                start=_first_row(item),
            )
            for item, tensor in tensors
        ]
        # No thread for hashing: beside a training on CPUs it would only take more of its time.
        return file.name, write_parts(file, parts, shard_metadata(parts), hash_beside=False)


def _first_row(item: WriteItem) -> int:
    assert item.tensor_data is not None, "a checkpoint holds tensors only"
    first, *others = item.tensor_data.chunk.offsets or (0,)
    assert not any(others), "tensors are cut by rows only"
    return first


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    for block in tensor.flatten().split(BLOCK_ELEMENTS):
        yield memoryview(block.cpu().view(torch.uint8).numpy())


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint: at once from those that count, then from the disk. What fails is left to a later save."""
    with suppress(OSError):
        removed = checkpoint.rename(beside(checkpoint, "removed"))
        shutil.rmtree(removed, ignore_errors=True)


def recover(run_dir: Path) -> None:
    """Brings back a checkpoint whose replacement was killed half-way."""
    for final in backups(run_dir):
        put_back(final)
