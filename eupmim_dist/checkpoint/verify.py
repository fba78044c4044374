"""Whether checkpoints and models are what was written: complete, unchanged, whole and finite."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from eupmim_dist.checkpoint.layout import (
    INDEX_FILE,
    PackageMissing,
    backups,
    check_files,
    open_checkpoint,
    readable_steps,
    step_dirs,
)
from eupmim_dist.checkpoint.manifest import MODEL_MANIFEST, STEP_MANIFEST, Damaged, read_manifest
from eupmim_dist.checkpoint.pieces import FLOATS, Piece, as_numbers, read_pieces, shape_of, stored_blocks
from eupmim_dist.errors import UserError
from eupmim_dist.files import beside, read_text
from eupmim_dist.hashing import OnBytes, ignore_bytes
from eupmim_dist.metadata import Metadata, parse


class Index(Metadata):
    """Of a model in several files."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Finding:
    """What was found at the path of a checkpoint or model."""

    path: Path
    step: int | None
    problem: str | None
    """One line that says what is wrong, if anything is."""
    note: str | None = None
    """One that says why a sound one cannot be used here."""


def to_verify(path: Path) -> list[Path]:
    """The checkpoints that a path means, complete or not: itself, or all of a run.

    Raises UserError if there are none.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; give a run directory, a checkpoint or a model")
    if any((path / name).is_file() for name in (STEP_MANIFEST, MODEL_MANIFEST)) or path.name.startswith("step-"):
        return [path]
    found = sorted({*step_dirs(path), *readable_steps(path).values()}, key=lambda found: found.name.lstrip("."))
    if not found:
        raise UserError(f"{path}: neither a run with checkpoints nor a checkpoint or model")
    return found


def left_overs(path: Path) -> list[Path]:
    """What is being written in a run, or beside a checkpoint or model; or was, by what was killed: in nobody's way."""
    needed = readable_steps(path).values()
    directory = path / "checkpoints"
    found = [*directory.glob(".step-*.incomplete"), *directory.glob(".step-*.removed"), *backups(path).values()]
    found += [left for left in [beside(path)] if left.is_dir()]
    return sorted(left for left in found if left not in needed)


def verify(path: Path, on_bytes: OnBytes = ignore_bytes) -> Finding:
    """Checks a checkpoint or model: its manifest, its files and their hashes, that the pieces of each tensor make it
    whole with the manifest's sizes, and that all numbers are finite. Reads by blocks.

    `on_bytes` hears of each block hashed and of each looked at.
    """
    step, note = None, None
    try:
        manifest = read_manifest(path)
        step = manifest.step
        try:
            open_checkpoint(path)
        except PackageMissing as missing:
            note = str(missing)
        check_files(path, on_bytes=on_bytes)
        pieces = read_pieces(path)
        for problem in _misfits(path, manifest.tables, pieces):
            raise Damaged(problem)
        for name, of_tensor in pieces.items():
            for block in stored_blocks(of_tensor):
                on_bytes(len(block))
                if not np.isfinite(as_numbers(block, of_tensor[0].dtype)).all():
                    raise Damaged(f"{name} holds numbers that are not finite")
    except UserError as error:
        return Finding(path, step, str(error).replace(f"{path}/", "").removeprefix(f"{path}: "))
    except OSError as error:
        return Finding(path, step, f"cannot be read: {error.strerror}")
    return Finding(path, step, None, note)


def _misfits(path: Path, tables: dict[str, tuple[int, int]], pieces: dict[str, list[Piece]]) -> Iterator[str]:
    """Where the tensors are not those that the manifest tells of."""
    for file in {piece.file for of_tensor in pieces.values() for piece in of_tensor}:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{file}: is no sound safetensors file ({error})"
    for table in tables:
        if f"table.{table}" not in pieces:
            yield f"table.{table} is missing"
    for name, of_tensor in pieces.items():
        kind, _, rest = name.partition(".")
        shape = shape_of(of_tensor)
        if kind == "table" and shape != tables.get(rest):
            yield f"{name} is {shape}, the manifest says {tables.get(rest)}"
        elif kind == "table" and of_tensor[0].dtype not in FLOATS:
            yield f"{name} holds {of_tensor[0].dtype}, not floats"
        elif kind == "table_optimizer" and shape[:1] != tables.get(rest.rpartition(".")[0], ())[:1]:
            yield f"{name} is {shape}, which is not an entry for each row of its table"
        elif kind == "dense_optimizer":
            of = f"dense.{rest.partition('.')[2]}"
            if of not in pieces or shape != shape_of(pieces[of]):
                yield f"{name} is {shape}, which is not the shape of {of}"
        elif kind not in ("table", "table_optimizer", "dense"):
            yield f"{name} is no tensor of a checkpoint"
    if (index := path / INDEX_FILE).is_file():
        where = [(name, piece.file.name) for name, of_tensor in pieces.items() for piece in of_tensor]
        try:
            told = sorted(parse(Index, read_text(index)).weight_map.items())
        except ValueError as error:
            yield f"{INDEX_FILE} is no index ({error})"
        else:
            if told != sorted(where):
                yield f"{INDEX_FILE} tells other files than those that hold the tensors"
