"""What other programs can use of a checkpoint: its item vectors, and the whole model as its authors save theirs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.pieces import (
    BLOCK_BYTES,
    FLOATS,
    Piece,
    as_numbers,
    blocks_by_id,
    finite,
    read_pieces,
    shape_of,
    stored_blocks,
)
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.export.imported import model_settings, release_names, release_of
from eupmim_dist.export.vector_files import Block, Vectors
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.models.release import ITEM_BIASES
from eupmim_dist.parallel.placement import owner_of


def item_vectors(checkpoint: Checkpoint) -> Vectors:
    """Vectors [items, D] in the order of their ids, without the padding row, read in blocks of BLOCK_BYTES."""
    pieces = _floats(read_pieces(checkpoint.path), f"table.{ITEM_TABLE}", checkpoint)
    rows, dim = shape_of(pieces)

    def blocks() -> Iterator[Block]:
        first = 0
        for content in finite(_by_id(checkpoint, pieces), pieces, f"table.{ITEM_TABLE}"):
            block = _float32(content, pieces[0], (-1, dim))
            ids = np.arange(first, first := first + len(block))
            kept = slice(1 if ids[0] == 0 else 0, None)
            if len(ids[kept]):
                yield ids[kept], block[kept]

    return Vectors("items", (rows - 1, dim), blocks())


def check_authors(checkpoint: Checkpoint, store: InteractionStore) -> None:
    """Raises UserError for a model that has parts which the authors' has not, or the other way round."""
    model = checkpoint.config.model
    mend = "so --format authors cannot say it; use another format, or consolidate"
    for key, value in release_of(model.name).always.items():
        if (found := getattr(model, key)) != value:
            raise UserError(
                f"{checkpoint.path}: model.{key} is {str(found).lower()} and the authors' model always has "
                f"{str(value).lower()}, {mend}"
            )
    if featured := [table for table in checkpoint.tables if owner_of(table) is not None]:
        raise UserError(f"{checkpoint.path}: has the table {featured[0]}, and the authors' model has none such, {mend}")
    try:
        release_names(model.name, [], store)
    except UserError as error:
        raise UserError(f"{error.as_typed}, {mend}") from None


def write_authors(checkpoint: Checkpoint, store: InteractionStore, file: Path) -> list[str]:
    """Writes a model as the `model.pt` that its authors' code saves, which `import` reads back bit for bit.

    Returns the settings, as KEY=VALUE, that this model has and `import` cannot tell from the file. Holds the model in
    memory. Tensors that the authors' classes have and nothing reads are zeros.
    """
    model = checkpoint.config.model
    release = release_of(model.name)
    stored = read_pieces(checkpoint.path)
    dense = [name.removeprefix("dense.") for name in stored if name.startswith("dense.")]
    tensors: dict[str, Tensor] = {}
    for ours, theirs in release_names(model.name, dense, store).items():
        pieces = _floats(stored, ours, checkpoint)
        content = _by_id(checkpoint, pieces) if ours.startswith("table.") else stored_blocks(pieces)
        whole = b"".join(finite(content, pieces, ours))
        tensors[theirs] = torch.from_numpy(_float32(whole, pieces[0], shape_of(pieces)))
    unused = {ITEM_BIASES: (store.num_item_rows, 1), **release.unused(model.dim, store.num_users)}
    tensors = {name: torch.zeros(shape) for name, shape in unused.items()} | tensors
    try:
        with file.open("wb") as stream:
            torch.save(tensors, stream)
    except RuntimeError as error:  # how torch tells of a full disk
        raise OSError(f"{file.name}: {error}") from None
    return _untold(checkpoint.config, model_settings(tensors, file))


def _untold(config: Config, told: dict[str, Any]) -> list[str]:
    """The settings of a model that are neither told by its tensors nor the defaults."""
    untold = []
    for section, keys in (("model", config.model.model_dump()), ("task", config.task.model_dump())):
        ours = getattr(config, section)
        for key in keys:
            default = told.get(section, {}).get(key, type(ours).model_fields[key].default)
            if (value := getattr(ours, key)) != default:
                untold.append(f"{section}.{key}={str(value).lower()}")
    return untold


def _floats(stored: dict[str, list[Piece]], name: str, checkpoint: Checkpoint) -> list[Piece]:
    pieces = stored.get(name)
    if pieces is None or pieces[0].dtype not in FLOATS:
        raise Damaged(f"{checkpoint.path}: holds no {name} of floats; use another checkpoint")
    return pieces


def _by_id(checkpoint: Checkpoint, pieces: list[Piece]) -> Iterator[bytes]:
    """Whole rows of a table in the order of their ids, about BLOCK_BYTES at a time."""
    if not checkpoint.is_model:
        yield from blocks_by_id(pieces)
        return
    rows, step = pieces[-1].stop, max(1, BLOCK_BYTES // pieces[0].row_bytes)
    for first in range(0, rows, step):
        yield b"".join(stored_blocks(pieces, first, min(first + step, rows)))


def _float32(content: bytes, piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
    return as_numbers(content, piece.dtype).astype("<f4").reshape(shape)
