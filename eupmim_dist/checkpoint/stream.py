"""Safetensors files written in blocks and hashed on the way: no tensor need be in memory whole."""

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OnBytes = Callable[[int], None]
"""Told how many bytes have been worked through since the last time."""


def unheard(done: int) -> None:
    """An OnBytes for nobody."""


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
    on_bytes: OnBytes = unheard,
    hash_beside: bool = True,
) -> dict[str, Any]:
    """Writes one file, to the disk; returns its size and sha256, its entry in a manifest.

    `hash_beside`: in a thread of its own, which is faster where nothing else needs the CPUs.
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
    with file.open("wb") as stream, _Sha256() if hash_beside else nullcontext(hashlib.sha256()) as digest:
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


class _Sha256(threading.Thread):
    """Hashes a block, which takes longest, while the next one is read and written."""

    def __init__(self) -> None:
        super().__init__(name="sha256", daemon=True)
        self._digest = hashlib.sha256()
        self._blocks: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=1)
        self.update, self.hexdigest = self._blocks.put, self._digest.hexdigest

    def __enter__(self) -> "_Sha256":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self.join()

    def run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._digest.update(block)
