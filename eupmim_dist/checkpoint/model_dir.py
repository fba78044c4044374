"""Consolidated models: one `model.safetensors` and a `config.json`, readable at any number of ranks."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from eupmim_dist.checkpoint.pieces import blocks_by_id, read_pieces, shape_of, stored_blocks
from eupmim_dist.errors import UserError

MODEL_PREFIXES = ("dense.", "table.")


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
    pieces = {name: p for name, p in read_pieces(checkpoint.path).items() if name.startswith(MODEL_PREFIXES)}
    header: dict[str, Any] = {}
    position = 0
    for name, of_tensor in pieces.items():
        size = sum(piece.num_bytes for piece in of_tensor)
        header[name] = {
            "dtype": of_tensor[0].dtype,
            "shape": list(shape_of(of_tensor)),
            "data_offsets": [position, position + size],
        }
        position += size
    with new_directory(out) as staging:
        with (staging / TENSOR_FILE).open("wb") as stream:
            digest = hashlib.sha256(write_header(stream, header))
            for name, of_tensor in pieces.items():
                for block in blocks_by_id(of_tensor) if name.startswith("table.") else stored_blocks(of_tensor):
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
