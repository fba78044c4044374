"""Where checkpoints lie and what makes one: a directory of safetensors files and, written last, a manifest.

`RUN/checkpoints/step-000001000/` holds a training state, with `manifest.json`, and its tables in their stored order
(parallel/placement.py); a consolidated or imported model is a directory of the same kind with `config.json` and one
`model.safetensors` or several with an index, without optimizer state, row i of a table being that of id i, and the
store's tables of raw ids. No pickle.
"""

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eupmim_dist.config.load import parse_config
from eupmim_dist.config.migrate import migrated
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError
from eupmim_dist.files import backup_path, replace_text
from eupmim_dist.hashing import OnBytes, ignore_bytes, sha256, sha256_of_json
from eupmim_dist.telemetry.log import get_logger

FORMAT_VERSION = 4
STEP_VERSIONS, MODEL_VERSIONS = (2, 3, 4), (1, 2, 3, 4)
"""That can be read: since 2 tables of steps are in their stored order, since 3 their manifests have a checksum, since 4
a configuration has a task and an objective (config/migrate.py)."""
CHECKSUM_SINCE = 3
STEP_MANIFEST, MODEL_MANIFEST = "manifest.json", "config.json"
OTHERS = "use another (`eupmim-dist verify RUN` tells which are sound)"
TENSOR_FILE = "model.safetensors"
"""Of a consolidated model, if one file holds it."""
INDEX_FILE = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""


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
    data: dict[str, Any]  # name, fingerprint and, in later ones, attributes of the store it was trained on
    mixed_precision: str | None = None  # of a step, where it was recorded

    @property
    def is_model(self) -> bool:
        return (self.path / MODEL_MANIFEST).is_file()


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def step_dirs(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first; no copies of them under names of a user's own."""
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(path for path in found if path.is_dir() and re.fullmatch(r"step-\d{9,}", path.name))


def backups(run_dir: Path) -> dict[Path, Path]:
    """Where they belong -> where they lie, of the checkpoints that lie aside."""
    left = (run_dir / "checkpoints").glob(".step-*.replaced")
    return {path.with_name(path.name.removeprefix(".").removesuffix(".replaced")): path for path in left}


def complete_steps(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in step_dirs(run_dir) if (path / STEP_MANIFEST).is_file()]


def readable_steps(run_dir: Path) -> dict[str, Path]:
    """Name -> path of the complete checkpoints of a run, oldest first; some may lie `aside`."""
    found = {path.name: path for path in complete_steps(run_dir)}
    for final, left in backups(run_dir).items():
        if not final.exists() and (left / STEP_MANIFEST).is_file():
            found[final.name] = left
    return dict(sorted(found.items()))


def resolve(path: Path, which: str = "best") -> Checkpoint:
    """The checkpoint that a path means: itself, or of a run directory the `best` or the `last`.

    Warns where it is another than was asked for: the last, as the best was lost. Raises UserError if there is none, or
    if a file of it is missing, has another size or another version.
    """
    if not path.exists():
        if (backup_path(path) / STEP_MANIFEST).is_file():
            return _open_backup(backup_path(path))
        raise UserError(f"{path}: no such file or directory; give a run directory, a checkpoint or a model")
    if path.is_file():
        raise UserError(f"{path}: is a file; give the directory it is in, or `import` a released model.pt first")
    if (path / STEP_MANIFEST).is_file() or (path / MODEL_MANIFEST).is_file():
        return open_checkpoint(path)
    steps = readable_steps(path)
    if not steps:
        raise UserError(f"{path}: neither a run with a complete checkpoint nor a checkpoint; train one first")
    last = _open_backup(list(steps.values())[-1])
    best_step = last.training.get("best_step")
    if which == "last" or best_step in (None, last.step):
        return last
    best = step_dir(path, best_step)
    if best.name in steps or best.is_dir():
        return _open_backup(steps.get(best.name, best))
    get_logger().warning(f"{best}: the best checkpoint is not there; taking the last, step {last.step}")
    return last


def _open_backup(path: Path) -> Checkpoint:
    """Opens a checkpoint that may lie aside, as reading commands do: they change nothing."""
    if path.name.startswith("."):
        get_logger().warning(f"{path}: read where a replacement that was killed left it; `train` puts it back")
    return open_checkpoint(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's manifest and checks its files' sizes. Raises Damaged, or UserError for another version."""
    content = read_manifest(path)
    manifest = _manifest(path)
    if "num_steps" in content:  # accelerate_hooks.py
        raise UserError(f"{path}: was written by `accelerator.save_state`; the loop's `load_state` checks and reads it")
    try:
        return Checkpoint(
            path=path,
            step=content["step"],
            config=_config(manifest, content),
            training=content["training"],
            tables=content["tables"],
            data=content["data"],
            mixed_precision=content.get("mixed_precision"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_manifest(manifest, error) from None


def _config(manifest: Path, content: dict[str, Any]) -> Config:
    try:
        return parse_config(migrated(content["config"], content["format_version"]), source=str(manifest))
    except UserError as error:  # perhaps for want of another package, or of that version of it
        written = content.get("versions", {}).items()
        others = [_compared(package, found) for package, found in written if package not in ("eupmim-dist", "torch")]
        raise UserError(f"{error}; written with {', '.join(others)}" if others else str(error)) from None


def _compared(package: str, written: str) -> str:
    try:
        return f"{package} {written}, here is {version(package)}"
    except PackageNotFoundError:
        return f"{package} {written}, which is not installed"


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest, its checksum and its files' sizes checked. Raises as `open_checkpoint`."""
    manifest = _manifest(path)
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        checksum = content.pop("checksum", None)
        # Before the version, which may be what is damaged: the checksum's rule is for all versions to come.
        expected = manifest.name == STEP_MANIFEST and content["format_version"] >= CHECKSUM_SINCE
        if checksum != sha256_of_json(content) and (checksum or expected):
            raise Damaged(f"{manifest}: damaged (its checksum is another); use another checkpoint")
        readable = MODEL_VERSIONS if manifest.name == MODEL_MANIFEST else STEP_VERSIONS
        if (found := content["format_version"]) not in readable:
            mend = "update eupmim-dist" if found > FORMAT_VERSION else "train again, or use an earlier eupmim-dist"
            raise UserError(f"{manifest}: format version {found}, this program reads {FORMAT_VERSION}; {mend}")
        for name, entry in content["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                raise Damaged(f"{file}: missing or cut short; {OTHERS}, or consolidate again")
        for file in path.iterdir():  # which readers would take for a part of it, torch's even unpickle
            if (file.suffix == ".safetensors" or file.name == ".metadata") and file.name not in content["files"]:
                raise UserError(f"{file}: is no file of this checkpoint; move it away")
        return content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_manifest(manifest, error) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _no_manifest(manifest: Path, error: Exception) -> Damaged:
    return Damaged(f"{manifest}: not a manifest of this program ({error!r}); use another checkpoint")


def gone(path: str | Path) -> Damaged:
    """A training deletes checkpoints that another command may be reading."""
    return Damaged(f"{path}: is gone; use another checkpoint")


def unreadable(path: Path, error: OSError) -> UserError:
    """A file that is gone is damage. One that cannot be read may be sound tomorrow: nothing is to go on without it."""
    name = error.filename or path
    if isinstance(error, FileNotFoundError):
        return gone(name)
    return UserError(f"{name}: cannot be read ({error.strerror}); try again, or move {path} away to do without it")


def check_files(path: Path, part: int = 0, num_parts: int = 1, on_bytes: OnBytes = ignore_bytes) -> None:
    """Compares every `num_parts`-th file of an opened checkpoint with its SHA-256.

    Raises Damaged if one differs, UserError if one cannot be read.
    """
    try:
        for name, entry in _files(path, part, num_parts).items():
            if sha256(path / name, on_bytes) != entry["sha256"]:
                raise Damaged(f"{path / name}: damaged (its hash differs from the manifest's); {OTHERS}")
    except (KeyError, TypeError) as error:
        raise _no_manifest(_manifest(path), error) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _manifest(path: Path) -> Path:
    try:
        for name in (STEP_MANIFEST, MODEL_MANIFEST):
            if (path / name).is_file():
                return path / name
    except OSError as error:
        raise unreadable(path, error) from None
    if not path.is_dir():
        raise gone(path)
    raise Damaged(f"{path}: incomplete, it has no {STEP_MANIFEST}; use another checkpoint")


def write_manifest(directory: Path, name: str, content: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Completes a checkpoint; written last. `files`: name -> size and sha256."""
    content = {"format_version": FORMAT_VERSION, **content, "files": files}
    if name == STEP_MANIFEST:  # a model's people may edit
        content["checksum"] = sha256_of_json(content)
    replace_text(directory / name, json.dumps(content, indent=1))


def _files(path: Path, part: int, num_parts: int) -> dict[str, dict[str, Any]]:
    """Every `num_parts`-th of the files that a checkpoint's manifest lists, with their entries there."""
    return dict(sorted(read_manifest(path)["files"].items())[part::num_parts])


def num_bytes(path: Path, part: int = 0, num_parts: int = 1) -> int:
    """Of the files that `check_files` reads."""
    return sum(entry["size"] for entry in _files(path, part, num_parts).values())
