"""Safetensors files written in blocks and hashed on the way: no tensor need be in memory whole."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eupmim_dist.hashing import OnBytes, ignore_bytes, running_sha256


@dataclass(frozen=True)
class Part:
    """A tensor to write, or its rows from `start` on."""

    name: str
    dtype: str
    """As safetensors names it: F32, I64 ..."""
    shape: tuple[int, ...]
    num_bytes: int
    blocks: Iterable[bytes | memoryview]
    start: int = 0


def shard_metadata(parts: Sequence[Part]) -> dict[str, str]:
    """What tells torch's reader of safetensors which rows of the whole tensors a file holds."""
    offsets = {}
    for part in parts:
        others = [0] * (len(part.shape) - 1)
        offsets[part.name] = {"saved_offsets": [part.start, *others] if part.shape else []}
    return {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}


def write_parts(
    file: Path,
    parts: Sequence[Part],
    metadata: dict[str, str],
    on_bytes: OnBytes = ignore_bytes,
    hash_beside: bool = True,
) -> dict[str, Any]:
    """Writes one file, to the disk; returns its size and sha256, its entry in a manifest.

    `hash_beside` as in `running_sha256`.
    """
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    position = 0
    for part in parts:
        header[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [position, position := position + part.num_bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    start = len(text).to_bytes(8, "little") + text
    with file.open("wb") as stream, running_sha256(hash_beside) as digest:
        digest.update(start)
        stream.write(start)
        for part in parts:
            for block in part.blocks:
                digest.update(block)
                stream.write(block)
                on_bytes(len(block))
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return {"size": size, "sha256": digest.hexdigest()}
