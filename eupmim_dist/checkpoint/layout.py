"""Where checkpoints lie and what makes one: a directory of safetensors files and, written last, a manifest.

`RUN/checkpoints/step-000001000/` holds a training state, with `manifest.json`, and its tables in their stored order
(parallel/placement.py); a consolidated or imported model is a directory of the same kind with `config.json` and one
`model.safetensors` or several with an index, without optimizer state, row i of a table being that of id i, and the
store's tables of raw ids. No pickle.
"""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eupmim_dist.checkpoint.manifest import (
    MODEL_MANIFEST,
    OTHERS,
    STEP_MANIFEST,
    Damaged,
    File,
    Manifest,
    TrainedOn,
    manifest_of,
    read_files,
    read_manifest,
    unreadable,
)
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.migrate import migrated
from eupmim_dist.config.schema import Config
from eupmim_dist.data.manifest import MANIFEST as STORE_MANIFEST
from eupmim_dist.errors import UserError
from eupmim_dist.files import backup_path
from eupmim_dist.hashing import OnBytes, ignore_bytes, sha256
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.train.state import Progress

TENSOR_FILE = "model.safetensors"
"""Of a consolidated model, if one file holds it."""
CONFIG_FILE = "config.yaml"
"""Of a run directory."""
INDEX_FILE = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint or consolidated model."""

    path: Path
    config: Config
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def progress(self) -> Progress | None:
        """Of the loop; None for a model."""
        return self.manifest.training

    @property
    def tables(self) -> dict[str, tuple[int, int]]:
        """Name -> rows and dim."""
        return self.manifest.tables

    @property
    def data(self) -> TrainedOn:
        return self.manifest.data

    @property
    def is_model(self) -> bool:
        return (self.path / MODEL_MANIFEST).is_file()


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def step_dirs(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, oldest first; no copies of them under names of a user's own."""
    return [path for path in called_steps(run_dir) if path.is_dir()]


def called_steps(run_dir: Path) -> list[Path]:
    """Whatever has the name of a checkpoint of a run, oldest first."""
    return sorted(p for p in (run_dir / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{9,}", p.name))


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
        raise UserError(f"{path}: {_why_none(path)}")
    last = _open_backup(list(steps.values())[-1])
    best_step = None if last.progress is None else last.progress.best_step
    if which == "last" or best_step in (None, last.step):
        return last
    best = step_dir(path, best_step)
    if best.name in steps or best.is_dir():
        return _open_backup(steps.get(best.name, best))
    get_logger().warning(f"{best}: the best checkpoint is not there; taking the last, step {last.step}")
    return last


def _why_none(path: Path) -> str:
    """What a directory without a checkpoint is, and the mend."""
    if (config := path / CONFIG_FILE).is_file():
        return (
            "is a run without a complete checkpoint: it has just begun, or was stopped, or `tune` kept those of its "
            f"best trial alone; `eupmim-dist train --config {config} --run-dir {path}` trains it"
        )
    if runs := sorted(checkpoints.parent for checkpoints in path.glob("*/checkpoints")):
        return f"holds runs and is none; give one, such as {runs[0]}"
    if (path / STORE_MANIFEST).is_file():
        return f"is an interaction store; `eupmim-dist audit {path}` tells what is in it"
    return "neither a run with a complete checkpoint nor a checkpoint; train one first"


def _open_backup(path: Path) -> Checkpoint:
    """Opens a checkpoint that may lie aside, as reading commands do: they change nothing."""
    if path.name.startswith("."):
        get_logger().warning(f"{path}: read where a replacement that was killed left it; `train` puts it back")
    return open_checkpoint(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's manifest and checks its files' sizes.

    Raises Damaged, UserError for another version, and PackageMissing if it needs one that is not installed.
    """
    manifest = read_manifest(path)
    file = manifest_of(path)
    if manifest.training is None and file.name == STEP_MANIFEST:
        raise Damaged(f"{file}: is no manifest of this program (no key training); use another checkpoint")
    try:
        config = parse_config(migrated(manifest.config, manifest.format_version), source=str(file))
        if file.name == MODEL_MANIFEST:
            config = config.bundled(path)
    except UserError as error:  # perhaps for want of another package, or of that version of it
        mine = ("eupmim-dist", "torch")
        others = {name: v for name, v in manifest.versions.items() if name not in mine and _version(name) != v}
        if not others:
            raise
        written = ", ".join(_compared(package, found) for package, found in others.items())
        kind = PackageMissing if any(_version(name) is None for name in others) else UserError
        raise kind(f"{error}; written with {written}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{file}: its config cannot be read ({error!r}); use another checkpoint") from None
    return Checkpoint(path, config, manifest)


class PackageMissing(UserError):
    """A checkpoint's model, task or objective is of a package that is not installed."""


def _compared(package: str, written: str) -> str:
    found = _version(package)
    return f"{package} {written}, " + ("which is not installed" if found is None else f"here is {found}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_files(path: Path, part: int = 0, num_parts: int = 1, on_bytes: OnBytes = ignore_bytes) -> None:
    """Compares every `num_parts`-th file of an opened checkpoint with its SHA-256.

    Raises Damaged if one differs, UserError if one cannot be read.
    """
    try:
        for name, entry in _files(path, part, num_parts).items():
            if sha256(path / name, on_bytes) != entry.sha256:
                raise Damaged(f"{path / name}: damaged (its hash differs from the manifest's); {OTHERS}")
    except OSError as error:
        raise unreadable(path, error) from None


def _files(path: Path, part: int, num_parts: int) -> dict[str, File]:
    """Every `num_parts`-th of the files that a checkpoint's manifest lists, with their entries there."""
    return dict(sorted(read_files(path).items())[part::num_parts])


def num_bytes(path: Path, part: int = 0, num_parts: int = 1) -> int:
    """Of the files that `check_files` reads."""
    return sum(entry.size for entry in _files(path, part, num_parts).values())
