"""The manifests of checkpoints and models: what one holds, and the size and SHA-256 of its files. Written last."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from eupmim_dist.data.manifest import Attribute, ItemAttribute
from eupmim_dist.errors import UserError, shown
from eupmim_dist.files import read_text, replace_text
from eupmim_dist.hashing import sha256_of_json
from eupmim_dist.metadata import Count, FilePath, Metadata, Sha256, parse
from eupmim_dist.train.state import Progress

FORMAT_VERSION = 5
STEP_VERSIONS, MODEL_VERSIONS = (2, 3, 4, 5), (1, 2, 3, 4, 5)
"""That can be read: since 2 tables of steps are in their stored order, since 3 their manifests have a checksum, since 4
a configuration has a task and an objective, since 5 no settings that do nothing (config/migrate.py)."""
CHECKSUM_SINCE = 3
STEP_MANIFEST, MODEL_MANIFEST = "manifest.json", "config.json"
OTHERS = "use another (`eupmim-dist verify RUN` tells which are sound)"


class Damaged(UserError):
    """A checkpoint is incomplete or not what was written; an earlier one may be sound."""


class File(Metadata):
    size: Count
    sha256: Sha256


class TrainedOn(Metadata):
    """The store."""

    name: str
    fingerprint: Sha256
    attributes: tuple[Attribute, ...] | None = None
    """None in early ones."""
    item_attributes: tuple[ItemAttribute, ...] = ()
    item_numbers: tuple[str, ...] = ()


Size = Annotated[int, Field(ge=1, lt=2**63)]
State = Annotated[Progress | None, BeforeValidator(lambda value: value or None)]
"""Of the loop; `{}` for none."""


class Holding(Metadata):
    """What every manifest has: of training steps, of models, of tables in Accelerate's states."""

    format_version: Count
    tables: dict[str, tuple[Size, Size]]
    """Name -> rows and dim."""
    files: dict[FilePath, File]


class Manifest(Holding):
    """Of a training step or a model."""

    step: Count
    config: dict[str, Any]
    data: TrainedOn
    training: State = None
    """Of a step."""
    trained: State = None
    """Of a model: as it was when it was consolidated."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the packages that it needs."""
    mixed_precision: str | None = None
    imported_from: str | None = None

    @model_validator(mode="after")
    def _of_this_step(self) -> "Manifest":
        if self.training is not None and self.training.step != self.step:
            raise ValueError(f"training.step is {self.training.step}, step {self.step}")
        return self


class TablesManifest(Holding):
    """Of tables in Accelerate's states (accelerate_hooks.py)."""

    optimizer: str
    num_steps: Count


H = TypeVar("H", bound=Holding)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint or model, its checksum and its files' sizes checked.

    Raises Damaged if it is not what was written, UserError for another version, and for a file that cannot be read.
    """
    return _read(path, Manifest)


def read_files(path: Path) -> dict[str, File]:
    """The files of whatever has a manifest, by name. Raises as `read_manifest`."""
    return _read(path, Holding).files


def read_tables_manifest(path: Path) -> TablesManifest:
    """The same of tables in Accelerate's states."""
    return _read(path, TablesManifest)


def _read(path: Path, kind: type[H]) -> H:
    manifest = manifest_of(path)
    try:
        text = read_text(manifest)
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        _check_version(manifest, content)
        if kind is Manifest and "num_steps" in content:
            raise UserError(
                f"{path}: was written by `accelerator.save_state`; the loop's `load_state` checks and reads it"
            )
        found = parse(kind, text)
        for name, entry in found.files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != entry.size:
                raise Damaged(f"{file}: missing or cut short; {OTHERS}, or consolidate again")
        for file in path.iterdir():  # which readers would take for a part of it, torch's even unpickle
            if (file.suffix == ".safetensors" or file.name == ".metadata") and file.name not in found.files:
                raise UserError(f"{file}: is no file of this checkpoint; move it away")
        return found
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{manifest}: is no manifest of this program ({error}); use another checkpoint") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _check_version(manifest: Path, content: dict[str, Any]) -> None:
    checksum, version = content.pop("checksum", None), content.get("format_version")
    if type(version) is not int:
        raise ValueError(f"format_version: {shown(version)}")
    # Before the version, which may be what is damaged: the checksum's rule is for all versions to come.
    expected = manifest.name == STEP_MANIFEST and version >= CHECKSUM_SINCE
    if checksum != sha256_of_json(content) and (checksum or expected):
        raise Damaged(f"{manifest}: damaged (its checksum is another); use another checkpoint")
    readable = MODEL_VERSIONS if manifest.name == MODEL_MANIFEST else STEP_VERSIONS
    if version not in readable:
        mend = "update eupmim-dist" if version > FORMAT_VERSION else "train again, or use an earlier eupmim-dist"
        raise UserError(f"{manifest}: format version {shown(version)}, this program reads {FORMAT_VERSION}; {mend}")


def manifest_of(path: Path) -> Path:
    """The file. Raises Damaged if there is none."""
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


def gone(path: str | Path) -> Damaged:
    """A training deletes checkpoints that another command may be reading."""
    return Damaged(f"{path}: is gone; use another checkpoint")


def unreadable(path: Path, error: OSError) -> UserError:
    """A file that is gone is damage. One that cannot be read may be sound tomorrow: nothing is to go on without it."""
    name = error.filename or path
    if isinstance(error, FileNotFoundError):
        return gone(name)
    return UserError(f"{name}: cannot be read ({error.strerror}); try again, or move {path} away to do without it")
