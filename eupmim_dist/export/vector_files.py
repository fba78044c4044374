"""Vectors by id as files for other programs, written block by block: numpy arrays, parquet tables, faiss indexes.

n vectors of a block, K interests, D dim.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from eupmim_dist.data.tables import has_titles, open_table
from eupmim_dist.errors import UserError

ROWS_PER_GROUP = 1 << 16
"""Of a parquet file's row groups: a reader, and the writer here, holds some of them at a time."""

Block = tuple[np.ndarray, np.ndarray]
"""Ids, int64 [n] ascending, and their vectors, float32 [n, D] or [n, K, D]."""


@dataclass(frozen=True)
class Vectors:
    """What is to be written of all `items` or `users`; `blocks` can be gone through once, by ascending id."""

    kind: str
    shape: tuple[int, ...]  # [items, D] or [users, K, D]
    blocks: Iterator[Block]

    @property
    def name(self) -> str:
        """The column of whose they are."""
        return self.kind.removesuffix("s")


def write_npy(vectors: Vectors, store: Path, out: Path) -> None:
    """Writes `{kind}.npy`, float32 of the vectors' shape, and `{kind}.parquet`, which says whose a row is.

    The table's columns: row (from 0), user or item (the raw id), and title where the store at `store` has titles.
    """
    with (out / f"{vectors.kind}.npy").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        _write_names(vectors, store, out, lambda block: stream.write(block.astype("<f4", order="C").data))


def write_faiss(vectors: Vectors, store: Path, out: Path) -> None:
    """Writes `{kind}.faiss`, an exact inner-product index, and `{kind}.parquet` as `write_npy`, whose rows it finds.

    Vectors [items, D]. faiss builds an index in memory. Raises UserError if faiss is not installed.
    """
    faiss = import_faiss()
    index = faiss.IndexFlatIP(vectors.shape[-1])
    _write_names(vectors, store, out, lambda block: index.add(np.ascontiguousarray(block)))
    try:
        faiss.write_index(index, str(out / f"{vectors.kind}.faiss"))
    except RuntimeError as error:  # a full disk, most of all
        raise OSError(f"faiss: {error}") from None


def import_faiss() -> Any:
    """The module. Raises UserError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            '--format faiss: faiss is not installed; `pip install "eupmim-dist[faiss]"`, or choose npy or parquet'
        ) from None
    return faiss


def write_parquet(vectors: Vectors, store: Path, out: Path) -> None:
    """Writes `{kind}.parquet` with columns user or item (the raw id) and vector, float32 lists of fixed size D.

    A user has a row for each interest, numbered 1..K in the column interest.
    """
    num_interests = vectors.shape[1] if len(vectors.shape) == 3 else 0
    vector = pl.Array(pl.Float32, vectors.shape[-1])
    schema: dict[str, Any] = {vectors.name: pl.String}
    if num_interests:
        schema["interest"] = pl.Int32
    schema["vector"] = vector

    def frames() -> Iterator[pl.DataFrame]:
        for ids, block in vectors.blocks:
            frame = _named(ids, store / f"{vectors.kind}.parquet", vectors.name).select(vectors.name)
            if num_interests:
                interest = pl.Series(np.tile(np.arange(1, num_interests + 1, dtype=np.int32), len(ids)))
                frame = frame[np.repeat(np.arange(len(ids)), num_interests)].with_columns(interest=interest)
            flat = np.ascontiguousarray(block).reshape(-1, vectors.shape[-1])
            yield frame.with_columns(vector=pl.Series(flat, dtype=vector))

    # Vectors hardly compress.
    sink_frames(out / f"{vectors.kind}.parquet", frames(), schema, "uncompressed")


def _write_names(vectors: Vectors, store: Path, out: Path, take: Callable[[np.ndarray], Any]) -> None:
    """Hands each block of vectors to `take` and writes the table that says whose they are."""
    table = store / f"{vectors.kind}.parquet"
    titled = has_titles(table)

    def frames() -> Iterator[pl.DataFrame]:
        row = 0
        for ids, block in vectors.blocks:
            take(block)
            rows = pl.Series(np.arange(row, row := row + len(ids)))
            yield _named(ids, table, vectors.name).insert_column(0, rows.alias("row"))

    schema: dict[str, Any] = {"row": pl.Int64, vectors.name: pl.String}
    sink_frames(out / table.name, frames(), schema | ({"title": pl.String} if titled else {}), "zstd")


def _named(ids: np.ndarray, table: Path, name: str) -> pl.DataFrame:
    """What a store's table says of some ids, in their order, the raw id as `name`; null where it has none."""
    near = open_table(table).filter(pl.col("id").is_between(int(ids[0]), int(ids[-1]))).collect()
    joined = pl.DataFrame({"id": ids}).join(near, on="id", how="left", maintain_order="left")
    return joined.drop("id").rename({"raw_id": name})


def sink_frames(file: Path, frames: Iterator[pl.DataFrame], schema: dict[str, Any], compression: Any) -> None:
    """Writes frames as they come, in memory that does not grow with their number."""

    def source(*_: Any) -> Iterator[pl.DataFrame]:
        return frames

    try:
        register_io_source(source, schema=schema).sink_parquet(
            file, compression=compression, row_group_size=ROWS_PER_GROUP, engine="streaming"
        )
    except pl.exceptions.ComputeError as error:  # how polars tells of a full disk
        raise OSError(f"{file.name}: {error}") from None
