"""What a checkpoint or model holds, as one mapping for JSON."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from eupmim_dist.checkpoint.changes import changes_of
from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.checkpoint.pieces import Piece, as_numbers, read_pieces, shape_of, stored_blocks
from eupmim_dist.files import read_text
from eupmim_dist.hashing import OnBytes, ignore_bytes
from eupmim_dist.metadata import Count, Metadata, parse

NUMBERS = 1 << 20
"""Looked at together, as several arrays of float64 are made of them."""
KINDS = {
    "dense": "network",
    "table": "tables",
    "dense_optimizer": "optimizer of the network",
    "table_optimizer": "optimizer of the tables",
}


class Evaluation(Metadata):
    """A run's `evaluation.json`."""

    model: str
    protocol: str
    split: str
    users: Count
    step: Count
    metrics: dict[Annotated[str, Field(pattern="^[a-z_]+@[0-9]+$")], float]
    interests: dict[Literal["top_n", "share", "norm", "cosine"], list[float] | float] | None = None
    seen_included: bool | None = None
    """As of a result (evaluation/runner.py); None of older runs."""


def contents(checkpoint: Checkpoint, with_stats: bool = False, on_bytes: OnBytes = ignore_bytes) -> dict[str, Any]:
    """Model, step, data, progress, versions, and each tensor; with `stats` of its numbers if asked for.

    `stats` are min, max, mean and std (population) of the finite numbers in float64, None if there are none, and
    `not_finite`, the count of the others; they are read by blocks, of which `on_bytes` hears.

    Raises Damaged if a tensor is not whole.
    """
    manifest, progress = checkpoint.manifest, checkpoint.progress or checkpoint.manifest.trained
    pieces = read_pieces(checkpoint.path)
    tensors = {name: _tensor(of_tensor, with_stats, on_bytes) for name, of_tensor in pieces.items()}
    return {
        "path": str(checkpoint.path),
        "kind": "model" if checkpoint.is_model else "checkpoint",
        "format_version": manifest.format_version,
        "model": checkpoint.config.model.model_dump(mode="json"),
        "summary": checkpoint.config.model.summary(),
        "step": checkpoint.step,
        "data": {"dir": str(checkpoint.config.data.dir), **manifest.data.model_dump(mode="json", exclude_none=True)},
        "imported_from": manifest.imported_from,
        "ranks": None if checkpoint.is_model else _num_ranks(manifest.files),
        "training": progress.as_dict() if progress else {},
        "valid": {"metric": checkpoint.config.evaluation.metric, "protocol": checkpoint.config.evaluation.protocol},
        "evaluation": evaluation_of(checkpoint),
        "resumed_with": [] if (run_dir := _run_dir_of(checkpoint)) is None else changes_of(run_dir),
        "versions": manifest.versions,
        "files": {name: entry.model_dump() for name, entry in manifest.files.items()},
        "totals": _totals(tensors),
        "tensors": tensors,
    }


def evaluation_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The run's `evaluation.json`, if it is of this checkpoint."""
    run_dir = _run_dir_of(checkpoint)
    if run_dir is None:
        return None
    try:
        found = parse(Evaluation, read_text(run_dir / "evaluation.json"))
    except (OSError, ValueError):
        return None
    of_this = (found.step, found.model) == (checkpoint.step, checkpoint.config.model.label)
    return found.model_dump() if of_this and found.metrics else None


def _run_dir_of(checkpoint: Checkpoint) -> Path | None:
    directory = checkpoint.path.absolute().parent
    return directory.parent if directory.name == "checkpoints" else None  # of another run, it may be


def _num_ranks(files: Collection[str]) -> int:
    """Ranks that wrote a checkpoint: its files are named after them, but one with nothing to write has none."""
    named = [re.fullmatch(r"shard-\d+-of-(\d+)\.safetensors", name) for name in files]
    return max((int(match[1]) for match in named if match), default=len(files))


def _tensor(pieces: list[Piece], with_stats: bool, on_bytes: OnBytes) -> dict[str, Any]:
    found = {
        "shape": list(shape_of(pieces)),
        "dtype": pieces[0].dtype,
        "bytes": sum(piece.num_bytes for piece in pieces),
        "pieces": len(pieces),
    }
    return {**found, "stats": _stats(pieces, on_bytes)} if with_stats else found


def _stats(pieces: list[Piece], on_bytes: OnBytes) -> dict[str, Any]:
    count, not_finite, mean, squares = 0, 0, 0.0, 0.0
    low, high = np.inf, -np.inf
    for raw in _some_at_a_time(pieces, on_bytes):
        numbers = raw[np.isfinite(raw)].astype(np.float64)
        not_finite += len(raw) - len(numbers)
        if not len(numbers):
            continue
        low, high = min(low, numbers.min()), max(high, numbers.max())
        # Of what is seen so far and of this block, joined: a plain sum of squares would lose what mean squared hides.
        of_block, total = numbers.mean(), count + len(numbers)
        difference = of_block - mean
        squares += ((numbers - of_block) ** 2).sum() + difference**2 * count * len(numbers) / total
        mean += difference * len(numbers) / total
        count = total
    if not count:
        return {"min": None, "max": None, "mean": None, "std": None, "not_finite": not_finite}
    values = {"min": low, "max": high, "mean": mean, "std": (squares / count) ** 0.5}
    return {**{key: float(value) for key, value in values.items()}, "not_finite": not_finite}


def _some_at_a_time(pieces: list[Piece], on_bytes: OnBytes) -> Iterator[np.ndarray]:
    for block in stored_blocks(pieces):
        numbers = as_numbers(block, pieces[0].dtype)
        yield from (numbers[first : first + NUMBERS] for first in range(0, len(numbers), NUMBERS))
        on_bytes(len(block))


def _totals(tensors: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        kind = totals.setdefault(KINDS.get(name.partition(".")[0], "other"), {"tensors": 0, "numbers": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["numbers"] += int(np.prod(tensor["shape"], dtype=np.int64))
        kind["bytes"] += tensor["bytes"]
    return totals
