"""SHA-256: of a file that is there, of blocks while they are written, of a value."""

import hashlib
import json
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

HASHED_AT_A_TIME = 1 << 22
"""Bytes."""
OnBytes = Callable[[int], None]
"""Told how many bytes have been worked through since the last time."""


def ignore_bytes(done: int) -> None:
    """An OnBytes for nobody."""


def sha256(path: Path, on_bytes: OnBytes = ignore_bytes) -> str:
    """Of a file, in hexadecimal; `on_bytes` hears of each block read. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASHED_AT_A_TIME):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def file_entry(file: Path) -> dict[str, Any]:
    """Its size and sha256, as manifests have them. Raises OSError."""
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def fingerprint_of_directory(directory: Path) -> str:
    """Of the names of files in it, what is in the JSON ones, and how large others are, such as weights."""
    files = sorted(file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    return sha256_of_json(
        {file.name: sha256(file) if file.suffix == ".json" else file.stat().st_size for file in files}
    )


def sha256_of_json(content: Any) -> str:
    """Of a value that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Digest(Protocol):
    """What blocks are put into; `hexdigest` is of all of them once the context is left."""

    def update(self, block: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def running_sha256(beside: bool) -> AbstractContextManager[Digest]:
    """Of blocks on their way to a file.

    `beside`: in a thread of its own, which is faster where nothing else needs the CPUs.
    """
    return _Beside() if beside else nullcontext(hashlib.sha256())


class _Beside(threading.Thread):
    """Hashes a block, which takes longest, while the next one is read and written."""

    def __init__(self) -> None:
        super().__init__(name="sha256", daemon=True)
        self._digest = hashlib.sha256()
        self._blocks: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=1)

    def update(self, block: bytes | memoryview, /) -> None:
        self._blocks.put(block)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> "_Beside":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self.join()

    def run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._digest.update(block)
