"""The tensors of a checkpoint as they lie in its files, read in blocks: what tools do without holding a table.

A step's tensor is cut by rows into pieces, one per rank that wrote some; a model's is one piece in one of its files.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from eupmim_dist.checkpoint.manifest import Damaged, gone, unreadable
from eupmim_dist.errors import short, shown
from eupmim_dist.metadata import Count, Metadata, explain
from eupmim_dist.parallel.placement import NUM_COLUMNS, RowOrder

BLOCK_BYTES = 64 << 20
"""Read at a time: what a tool needs of memory, whatever the size of the tables."""
INDEX_BYTES = 32
"""Of a row's position and its place in the block, several times: for narrow tables more than the row itself."""
NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
"""What numpy calls the types that a checkpoint may hold; it has no bfloat16, see `as_numbers`."""
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Piece:
    """Rows start..start+num_rows-1 of a tensor, side by side in a file from byte `offset` on."""

    file: Path
    dtype: str
    """As safetensors names it: F32, I64 ..."""
    shape: tuple[int, ...]
    start: int
    offset: int
    num_bytes: int

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def stop(self) -> int:
        return self.start + self.num_rows

    @property
    def row_bytes(self) -> int:
        return self.num_bytes // self.num_rows


class Entry(Metadata):
    """A tensor, as the header of a safetensors file has it."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8"]
    shape: list[Count]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


class Saved(Metadata):
    """Where a piece begins in its tensor, as torch's reader is told."""

    saved_offsets: list[Count]


_HEADER, _SAVED, _METADATA = TypeAdapter(dict[str, Entry]), TypeAdapter(dict[str, Saved]), TypeAdapter(dict[str, str])


def read_pieces(directory: Path) -> dict[str, list[Piece]]:
    """Tensor name -> its pieces by first row, from the headers of a checkpoint's or model's files.

    Raises Damaged if the directory is gone, or a file has no readable header, or one that contradicts itself.
    """
    if not directory.is_dir():
        raise gone(directory)
    found: dict[str, list[Piece]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            for name, piece in _pieces_of(file):
                found.setdefault(name, []).append(piece)
        except (ValueError, RecursionError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else short(error)
            raise Damaged(f"{file}: is no safetensors file ({reason}); use another checkpoint") from None
        except OSError as error:
            raise unreadable(file, error) from None
    return {name: sorted(pieces, key=lambda piece: piece.start) for name, pieces in sorted(found.items())}


def _pieces_of(file: Path) -> Iterator[tuple[str, Piece]]:
    """Those that hold something. Raises ValueError."""
    # Not by `safe_open`: it tells no byte offsets, and says of a file that may not be read that there is none.
    with file.open("rb") as stream:
        begin, size = 8 + int.from_bytes(stream.read(8), "little"), file.stat().st_size
        if begin > size:
            raise ValueError("it has no header")
        header = from_json(stream.read(begin - 8), allow_inf_nan=False)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = _METADATA.validate_python(header.pop("__metadata__", {}), strict=True)
    saved = _SAVED.validate_json(metadata.get("DCP_SHARDING_INFO", "{}"))
    if saved and saved.keys() != header.keys():
        raise ValueError(f"DCP_SHARDING_INFO is not of its tensors: {shown(min(saved.keys() ^ header.keys()))}")
    end = 0
    for name, entry in sorted(_HEADER.validate_python(header).items(), key=lambda item: item[1].data_offsets):
        name.encode()  # raises where it is no text
        first, last = entry.data_offsets
        num_bytes = np.dtype(NUMPY_TYPES[entry.dtype]).itemsize * prod(entry.shape)
        if first != end or last - first != num_bytes:
            raise ValueError(f"{short(name)} lies at {first} to {last}, where {num_bytes} bytes from {end} on are its")
        end = last
        start = saved[name].saved_offsets if name in saved else []
        if (name in saved and len(start) != len(entry.shape)) or any(start[1:]):
            raise ValueError(f"{short(name)}: saved_offsets {shown(start)}")
        if num_bytes:
            yield name, Piece(file, entry.dtype, tuple(entry.shape), start[0] if start else 0, begin + first, num_bytes)
    if begin + end != size:
        raise ValueError(f"it has {size} bytes, its header tells of {begin + end}")


def shape_of(pieces: list[Piece]) -> tuple[int, ...]:
    """The whole tensor's. Raises Damaged if rows are missing or twice there, or pieces are of different tensors."""
    first, at = pieces[0], 0
    for piece in pieces:
        if piece.start != at or piece.shape[1:] != first.shape[1:] or piece.dtype != first.dtype:
            raise Damaged(f"{piece.file}: its part of a tensor does not go on where the one before ends")
        at = piece.stop
    return (at, *first.shape[1:]) if first.shape else ()


def stored_blocks(pieces: list[Piece], first: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of rows first..stop-1 (to the end if None) as they are stored, BLOCK_BYTES at a time."""
    for piece in pieces:
        begin, end = max(first, piece.start), piece.stop if stop is None else min(stop, piece.stop)
        if begin >= end:
            continue
        with piece.file.open("rb") as stream:
            stream.seek(piece.offset + (begin - piece.start) * piece.row_bytes)
            left = (end - begin) * piece.row_bytes
            while left:
                yield (block := _read(stream, min(left, BLOCK_BYTES), piece))
                left -= len(block)


def blocks_by_id(pieces: list[Piece]) -> Iterator[bytes]:
    """The rows of a table stored in its order (RowOrder) in the order of their ids, some BLOCK_BYTES at a time."""
    rows, width = pieces[-1].stop, pieces[0].row_bytes
    order = RowOrder(rows)
    step = max(1, BLOCK_BYTES // ((width + INDEX_BYTES) * NUM_COLUMNS)) * NUM_COLUMNS
    with ExitStack() as files:
        streams = [files.enter_context(piece.file.open("rb")) for piece in pieces]
        ends = [piece.stop for piece in pieces]
        for first in range(0, rows, step):
            positions = order.positions(np.arange(first, min(first + step, rows)))
            by_position = positions.argsort()
            ascending = positions[by_position]
            # Runs of rows that lie side by side in one piece are read together.
            new_run = (np.diff(ascending) != 1) | np.isin(ascending[1:], ends)
            block = np.empty((len(positions), width), np.uint8)
            for run in np.split(by_position, np.flatnonzero(new_run) + 1):
                which = bisect_right(ends, positions[run[0]])
                piece, stream = pieces[which], streams[which]
                stream.seek(piece.offset + int(positions[run[0]] - piece.start) * width)
                content = _read(stream, len(run) * width, piece)
                block[run] = np.frombuffer(content, np.uint8).reshape(-1, width)
            yield block.tobytes()


def as_numbers(block: bytes, dtype: str) -> np.ndarray:
    """The elements of a block of a tensor, flat; bfloat16 as float32."""
    numbers = np.frombuffer(block, NUMPY_TYPES[dtype])
    return (numbers.astype("<u4") << 16).view("<f4") if dtype == "BF16" else numbers


def finite(blocks: Iterable[bytes], pieces: list[Piece], name: str) -> Iterator[bytes]:
    """The blocks of a tensor. Raises Damaged at a number that is not finite: tools hand on what can be used."""
    for block in blocks:
        if pieces[0].dtype in FLOATS and not np.isfinite(as_numbers(block, pieces[0].dtype)).all():
            raise Damaged(f"{pieces[0].file}: {name} holds numbers that are not finite; use another checkpoint")
        yield block


def _read(stream: BinaryIO, size: int, piece: Piece) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise Damaged(f"{piece.file}: cut short; use another checkpoint")
    return content
