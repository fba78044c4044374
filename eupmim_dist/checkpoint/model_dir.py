"""Consolidated models: one `model.safetensors` and a `config.json`, readable at any number of ranks."""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eupmim_dist.checkpoint.layout import (
    MODEL_MANIFEST,
    STEP_MANIFEST,
    TENSOR_FILE,
    Checkpoint,
    Damaged,
    damage,
    sha256,
    sync_directory,
    write_header,
    write_manifest,
)
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.placement import NUM_COLUMNS, RowOrder

MODEL_PREFIXES = ("dense.", "table.")
BLOCK_BYTES = 64 << 20
"""Read and written at a time: what consolidating needs of memory, whatever the size of the tables."""


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to fill that becomes `out` when the body succeeds; refuses an `out` that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; give another --out")
    staging = out.with_name(f".{out.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        os.replace(staging, out)
        sync_directory(out.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def consolidate(checkpoint: Checkpoint, out: Path, on_bytes: Callable[[int], None] = lambda done: None) -> int:
    """Joins the shards of a checkpoint's weights into one file, tables in the order of their ids; returns its bytes.

    `on_bytes` is called with the number of bytes of each block written.
    """
    if wrong := damage(checkpoint.path):
        raise Damaged(wrong)
    pieces = _pieces(checkpoint.path)
    header: dict[str, Any] = {}
    position = 0
    for name, parts in pieces.items():
        rows = sum(part["shape"][0] for part in parts)
        size = sum(part["bytes"] for part in parts)
        shape = [rows, *parts[0]["shape"][1:]]
        header[name] = {
            "dtype": parts[0]["dtype"],
            "shape": shape,
            "data_offsets": [position, position + size],
        }
        position += size
    with new_directory(out) as staging:
        with (staging / TENSOR_FILE).open("wb") as stream:
            digest = hashlib.sha256(write_header(stream, header))
            for name, parts in pieces.items():
                for block in _blocks_by_id(parts) if name.startswith("table.") else _blocks(parts):
                    stream.write(block)
                    digest.update(block)
                    on_bytes(len(block))
            stream.flush()
            os.fsync(stream.fileno())
            files = {TENSOR_FILE: {"size": stream.tell(), "sha256": digest.hexdigest()}}
        step_manifest = json.loads((checkpoint.path / STEP_MANIFEST).read_text(encoding="utf-8"))
        kept = {key: step_manifest[key] for key in ("step", "config", "tables", "data", "versions")}
        write_manifest(staging, MODEL_MANIFEST, {**kept, "training": {}, "trained": checkpoint.training}, files)
    return position


def write_model(tensors: Mapping[str, Any], description: dict[str, Any], out: Path) -> None:
    """Writes whole tensors as a model directory."""
    from safetensors.torch import save_file

    with new_directory(out) as staging:
        file = staging / TENSOR_FILE
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        write_manifest(
            staging, MODEL_MANIFEST, description, {file.name: {"size": file.stat().st_size, "sha256": sha256(file)}}
        )


def _pieces(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Model tensors -> their pieces by first row; a piece names its file, shape, dtype and bytes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_size))
        offsets = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in header.items():
            if name.startswith(MODEL_PREFIXES) and entry["shape"][0]:
                first, last = entry["data_offsets"]
                piece = {
                    "file": file,
                    "shape": entry["shape"],
                    "dtype": entry["dtype"],
                    "bytes": last - first,
                    "offset": 8 + header_size + first,
                    "start": offsets[name]["saved_offsets"][0],
                }
                found.setdefault(name, []).append(piece)
    return {name: sorted(parts, key=lambda part: part["start"]) for name, parts in sorted(found.items())}


def _blocks(parts: list[dict[str, Any]]) -> Iterator[bytes]:
    """The bytes of a tensor's pieces, one after another."""
    for part in parts:
        with part["file"].open("rb") as stream:
            stream.seek(part["offset"])
            left = part["bytes"]
            while left:
                block = stream.read(min(left, BLOCK_BYTES))
                if not block:
                    raise UserError(f"{part['file']}: cut short; use another checkpoint")
                left -= len(block)
                yield block


def _blocks_by_id(parts: list[dict[str, Any]]) -> Iterator[bytes]:
    """The rows of a table in the order of their ids, some BLOCK_BYTES at a time."""
    rows = sum(part["shape"][0] for part in parts)
    width = parts[0]["bytes"] // parts[0]["shape"][0]
    order = RowOrder(rows)
    step = max(1, BLOCK_BYTES // (width * NUM_COLUMNS)) * NUM_COLUMNS
    with ExitStack() as files:
        opened = [(part["start"], part["offset"], files.enter_context(part["file"].open("rb"))) for part in parts]
        ends = [part["start"] + part["shape"][0] for part in parts]
        for first in range(0, rows, step):
            positions = order.positions(np.arange(first, min(first + step, rows)))
            by_position = positions.argsort()
            ascending = positions[by_position]
            # Runs of rows that lie side by side in one piece are read together.
            new_run = (np.diff(ascending) != 1) | np.isin(ascending[1:], ends)
            block = np.empty((len(positions), width), np.uint8)
            for run in np.split(by_position, np.flatnonzero(new_run) + 1):
                start, offset, stream = opened[bisect_right(ends, positions[run[0]])]
                stream.seek(offset + int(positions[run[0]] - start) * width)
                block[run] = np.frombuffer(stream.read(len(run) * width), np.uint8).reshape(-1, width)
            yield block.tobytes()
