"""Where checkpoints lie and what makes one: a directory of safetensors files and, written last, a manifest.

`RUN/checkpoints/step-000001000/` holds a training state, with `manifest.json`, and its tables in their stored order
(parallel/placement.py); a consolidated or imported model is a directory of the same kind with `config.json` and one
`model.safetensors`, without optimizer state, row i of a table being that of id i. No pickle.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError

FORMAT_VERSION = 3
STEP_VERSIONS, MODEL_VERSIONS = (2, 3), (1, 2, 3)
"""That can be read: since 2 tables of steps are in their stored order, since 3 their manifests have a checksum."""
STEP_MANIFEST, MODEL_MANIFEST = "manifest.json", "config.json"
TENSOR_FILE = "model.safetensors"
"""Of a consolidated model."""


class Damaged(UserError):
    """A checkpoint is incomplete or not what was written; an earlier one may be sound."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint or consolidated model. `training` is the loop's state; empty for a model."""

    path: Path
    step: int
    config: Config
    training: dict[str, Any]
    tables: dict[str, list[int]]  # name -> [rows, dim]
    data: dict[str, Any]  # name and fingerprint of the store it was trained on

    @property
    def is_model(self) -> bool:
        return (self.path / MODEL_MANIFEST).is_file()


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def step_dirs(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step-*") if path.is_dir())


def complete_steps(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in step_dirs(run_dir) if (path / STEP_MANIFEST).is_file()]


def resolve(path: Path, which: str = "best") -> Checkpoint:
    """The checkpoint that a path means: itself, or of a run directory the `best` or the `last`.

    Raises UserError if there is none, or if a file of it is missing, has another size or another version.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give a run directory, a checkpoint or a model")
    if path.is_file():
        raise UserError(f"{path}: is a file; give the directory it is in, or `import` a released model.pt first")
    if (path / STEP_MANIFEST).is_file() or (path / MODEL_MANIFEST).is_file():
        return open_checkpoint(path)
    steps = complete_steps(path)
    if not steps:
        raise UserError(f"{path}: neither a run with a complete checkpoint nor a checkpoint; train one first")
    last = open_checkpoint(steps[-1])
    best_step = last.training.get("best_step")
    if which == "last" or best_step is None or not (best := step_dir(path, best_step)).is_dir():
        return last
    return open_checkpoint(best)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's manifest and checks its files' sizes. Raises Damaged, or UserError for another version."""
    content = read_manifest(path)
    manifest = _manifest(path)
    try:
        return Checkpoint(
            path=path,
            step=content["step"],
            config=parse_config(content["config"], source=str(manifest)),
            training=content["training"],
            tables=content["tables"],
            data=content["data"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_manifest(manifest, error) from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest, its checksum and its files' sizes checked. Raises as `open_checkpoint`."""
    manifest = _manifest(path)
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        checksum = content.pop("checksum", None)
        # Before the version, which may be what is damaged: the checksum's rule is for all versions to come.
        expected = manifest.name == STEP_MANIFEST and content["format_version"] >= FORMAT_VERSION
        if checksum != _checksum(content) and (checksum or expected):
            raise Damaged(f"{manifest}: damaged (its checksum is another); use another checkpoint")
        readable = MODEL_VERSIONS if manifest.name == MODEL_MANIFEST else STEP_VERSIONS
        if (found := content["format_version"]) not in readable:
            mend = "update eupmim-dist" if found > FORMAT_VERSION else "train again, or use an earlier eupmim-dist"
            raise UserError(f"{manifest}: format version {found}, this program reads {FORMAT_VERSION}; {mend}")
        for name, entry in content["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                raise Damaged(f"{file}: missing or cut short; use another checkpoint or consolidate again")
        return content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_manifest(manifest, error) from None
    except OSError as error:
        raise Damaged(f"{manifest}: cannot be read ({error.strerror}); use another checkpoint") from None


def _no_manifest(manifest: Path, error: Exception) -> Damaged:
    return Damaged(f"{manifest}: not a manifest of this program ({error!r}); use another checkpoint")


def damage(path: Path, part: int = 0, num_parts: int = 1) -> str | None:
    """Compares every `num_parts`-th file of an opened checkpoint with its SHA-256; what is wrong, if anything is."""
    try:
        files = json.loads(_manifest(path).read_text(encoding="utf-8"))["files"]
        for name, entry in sorted(files.items())[part::num_parts]:
            if sha256(path / name) != entry["sha256"]:
                return f"{path / name}: damaged (its hash differs from the manifest's); use another checkpoint"
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        return f"{path}: cannot be checked ({error}); use another checkpoint"
    return None


def _manifest(path: Path) -> Path:
    for name in (STEP_MANIFEST, MODEL_MANIFEST):
        if (path / name).is_file():
            return path / name
    raise Damaged(f"{path}: incomplete, it has no {STEP_MANIFEST}; use another checkpoint")


def write_manifest(directory: Path, name: str, content: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Completes a checkpoint; written last. `files`: name -> size and sha256."""
    content = {"format_version": FORMAT_VERSION, **content, "files": files}
    if name == STEP_MANIFEST:  # a model's people may edit
        content["checksum"] = _checksum(content)
    text = json.dumps(content, indent=1)
    with (directory / name).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(directory)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync_directory(path: Path) -> None:
    """Has the names in a directory written to the disk, where the system can do so."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_header(stream: BinaryIO, header: dict[str, Any]) -> bytes:
    """Writes a safetensors header: its length in 8 bytes, then JSON, padded with spaces to a multiple of 8."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text
    stream.write(raw)
    return raw


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
