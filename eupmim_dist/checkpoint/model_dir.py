"""Consolidated models: one `model.safetensors` and a `config.json`, readable at any number of ranks."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open

from eupmim_dist.checkpoint.layout import (
    MODEL_MANIFEST,
    STEP_MANIFEST,
    Checkpoint,
    verify_hashes,
    write_manifest,
)
from eupmim_dist.errors import UserError

TENSOR_FILE = "model.safetensors"
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
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def consolidate(checkpoint: Checkpoint, out: Path, on_bytes: Callable[[int], None] = lambda done: None) -> int:
    """Joins the shards of a checkpoint's weights into one file, by row blocks; returns its bytes.

    `on_bytes` is called with the number of bytes of each block written.
    """
    verify_hashes(checkpoint.path)
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
            _write_header(stream, header)
            for name, parts in pieces.items():
                for part in parts:
                    for block in _row_blocks(part, name):
                        stream.write(block)
                        on_bytes(len(block))
            stream.flush()
            os.fsync(stream.fileno())
        step_manifest = json.loads((checkpoint.path / STEP_MANIFEST).read_text(encoding="utf-8"))
        kept = {key: step_manifest[key] for key in ("step", "config", "tables", "data", "versions")}
        write_manifest(staging, MODEL_MANIFEST, {**kept, "training": {}, "trained": checkpoint.training})
    return position


def write_model(tensors: Mapping[str, Any], description: dict[str, Any], out: Path) -> None:
    """Writes whole tensors as a model directory."""
    from safetensors.torch import save_file

    with new_directory(out) as staging:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / TENSOR_FILE)
        write_manifest(staging, MODEL_MANIFEST, description)


def _pieces(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Model tensors -> their pieces by first row; a piece names its file, shape, dtype and bytes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        offsets = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in header.items():
            if name.startswith(MODEL_PREFIXES) and entry["shape"][0]:
                start = offsets[name]["saved_offsets"][0]
                size = entry["data_offsets"][1] - entry["data_offsets"][0]
                piece = {
                    "file": file,
                    "shape": entry["shape"],
                    "dtype": entry["dtype"],
                    "bytes": size,
                    "start": start,
                }
                found.setdefault(name, []).append(piece)
    return {name: sorted(parts, key=lambda part: part["start"]) for name, parts in sorted(found.items())}


def _row_blocks(part: dict[str, Any], name: str) -> Iterator[bytes]:
    with safe_open(part["file"], framework="numpy") as file:
        tensor = file.get_slice(name)
        rows = part["shape"][0]
        step = max(1, BLOCK_BYTES * rows // part["bytes"])
        for start in range(0, rows, step):
            yield tensor[start : min(start + step, rows)].tobytes()


def _write_header(stream: BinaryIO, header: dict[str, Any]) -> None:
    """The safetensors header: its length in 8 bytes, then JSON, padded with spaces to a multiple of 8."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
