"""Consolidated and imported models: a directory to hand on, readable at any number of ranks."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eupmim_dist.checkpoint.layout import INDEX_FILE, TENSOR_FILE, Checkpoint, check_files
from eupmim_dist.checkpoint.manifest import MODEL_MANIFEST, write_manifest
from eupmim_dist.checkpoint.origin import copy_id_maps, store_of
from eupmim_dist.checkpoint.pieces import Piece, blocks_by_id, finite, read_pieces, shape_of, stored_blocks
from eupmim_dist.checkpoint.stream import Part, write_parts
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, short
from eupmim_dist.export.card import CARD_FILE, model_card
from eupmim_dist.files import out_directory
from eupmim_dist.hashing import OnBytes, file_entry, ignore_bytes

MODEL_PREFIXES = ("dense.", "table.")
MAX_SHARD_BYTES = 5 * 10**9
"""Of a file, unless one tensor alone is larger: what the readers of other programs expect."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """`500MB` or `5GB` -> bytes, powers of 1000. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]B)", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise UserError(f"--max-shard-size {short(text)}: write it as 500MB or 5GB")
    return size


def model_pieces(checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """The pieces of the weights alone."""
    return {name: p for name, p in read_pieces(checkpoint.path).items() if name.startswith(MODEL_PREFIXES)}


def consolidate(
    checkpoint: Checkpoint,
    out: Path,
    data: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: OnBytes = ignore_bytes,
) -> int:
    """Joins the shards of a checkpoint's weights, tables in the order of their ids; returns the weights' bytes.

    `out` holds `model.safetensors`, or files of `max_shard_bytes` at most with an index, each tensor whole in one; the
    manifest `config.json`; the store's tables of raw ids; what else the model needs, such as a tokenizer; and a model
    card. The store is the one trained on, or `data`. Blocks are read and written one after another: less than 1 GB is
    needed, whatever the size of the tables.

    `on_bytes` hears of the bytes of each block of the checkpoint checked and of the model written.

    Raises Damaged for a damaged checkpoint, UserError where the store is missing or another, or `out` in use.
    """
    store = store_of(checkpoint, data)
    check_files(checkpoint.path, on_bytes=on_bytes)
    parts = [
        Part(
            name=name,
            dtype=pieces[0].dtype,
            shape=shape_of(pieces),
            num_bytes=sum(piece.num_bytes for piece in pieces),
            blocks=finite(blocks_by_id(pieces) if name.startswith("table.") else stored_blocks(pieces), pieces, name),
        )
        for name, pieces in model_pieces(checkpoint).items()
    ]
    total = sum(part.num_bytes for part in parts)
    grouped = _grouped(parts, max_shard_bytes)
    with out_directory(out) as staging:
        files = {name: write_parts(staging / name, group, {}, on_bytes) for name, group in grouped.items()}
        if len(grouped) > 1:
            where = {part.name: name for name, group in grouped.items() for part in group}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (staging / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            files[INDEX_FILE] = file_entry(staging / INDEX_FILE)
        files |= copy_id_maps(store, staging)
        checkpoint.config.bundle(staging)
        bundled = sorted(file for file in staging.glob("*/*") if file.is_file())
        files |= {file.relative_to(staging).as_posix(): file_entry(file) for file in bundled}
        (staging / CARD_FILE).write_text(
            model_card(checkpoint, store, str(out), sorted({file.parent.name for file in bundled})), encoding="utf-8"
        )
        kept = checkpoint.manifest.model_dump(mode="json", include={"step", "tables", "data", "versions"})
        assert checkpoint.progress is not None, "a model is consolidated already"
        kept |= {"config": checkpoint.config.model_dump(mode="json"), "trained": checkpoint.progress.as_dict()}
        write_manifest(staging, MODEL_MANIFEST, kept, files)
    return total


def _grouped(parts: Sequence[Part], max_bytes: int) -> dict[str, list[Part]]:
    """File name -> its tensors, in their order; a larger tensor has a file of its own."""
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.num_bytes
    if len(groups) == 1:
        return {TENSOR_FILE: groups[0]}
    stem = Path(TENSOR_FILE).stem
    return {f"{stem}-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def write_model(tensors: Mapping[str, Any], description: dict[str, Any], out: Path, store: InteractionStore) -> None:
    """Writes whole float32 tensors as a model directory, with the tables of raw ids of its store."""
    parts = [
        Part(name, "F32", tuple(tensor.shape), tensor.nbytes, [tensor.contiguous().numpy().tobytes()])
        for name, tensor in sorted(tensors.items())
    ]
    with out_directory(out) as staging:
        files = {TENSOR_FILE: write_parts(staging / TENSOR_FILE, parts, {}), **copy_id_maps(store, staging)}
        write_manifest(staging, MODEL_MANIFEST, description, files)
