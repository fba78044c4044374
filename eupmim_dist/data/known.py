"""The files that tell of items and users: tables with a column `item`, and vectors by raw id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.formats.separators import Told
from eupmim_dist.data.frames import reading, scan_parquet
from eupmim_dist.data.item_features import Known, add_item_attributes
from eupmim_dist.data.requests import read_requests
from eupmim_dist.data.told import FEW_VALUES, MANY_VALUES, Tell, cost_of_many
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, listed, short
from eupmim_dist.files import regular_file


def check_known(known: Known) -> None:
    """Raises UserError for options that do not go together and for files that are not there: before the log is read."""
    columns = [*known.attributes, *known.numbers]
    if columns and known.items is None:
        raise UserError("--item-attribute, --item-number: columns of which file, --items says; give it too")
    if known.items is not None and not columns:
        raise UserError(f"--items {known.items}: say which columns to take with --item-attribute or --item-number")
    (told := _told(known)).check()
    if known.items is None and (option := told.first):
        raise UserError(f"{option}: of which file, --items says; give it too")
    for file in (known.items, known.item_vectors, known.user_vectors):
        if file is not None:
            regular_file(file, "it tells what is known of items or users")


def add_known(dataset: Dataset, known: Known, tell: Tell) -> None:
    """Adds to `dataset` what the files tell of its items and users; `tell` is called with what was taken for what.

    `check_known` has been asked. Raises UserError for a file that cannot be read, a column that is not there, and files
    without any item of the data.
    """
    _add_items(dataset, known, tell)
    if known.item_vectors is not None:
        dataset.item_vectors = _vectors(dataset, known.item_vectors, "item", dataset.raw_items, tell)
    if known.user_vectors is not None:
        dataset.user_vectors = _vectors(dataset, known.user_vectors, "user", dataset.raw_users, tell)


def _add_items(dataset: Dataset, known: Known, tell: Tell) -> None:
    if known.items is None:
        return
    asked = [_readings(each) for each in known.attributes] + [{name: None} for name in known.numbers]
    found = read_requests(known.items, "item", [name for names in asked for name in names], asked, _told(known))
    rows = found.rows
    if missing := [list(names)[-1] for names in asked if not names.keys() & set(rows.columns)]:
        raise UserError(f"{known.items}: no column {listed(missing)}; look at its first line")
    columns = [next((name, names[name]) for name in names if name in rows.columns) for names in asked]
    if len(dict(columns)) < len(columns):
        raise UserError("--item-attribute, --item-number: the same column is given twice")
    attributes = dict(columns[: len(known.attributes)])
    if found.described:
        tell("items", f"{known.items.name}: {found.described}")
    if not rows["item"].is_in(dataset.raw_items.implode()).any():
        raise UserError(f"{known.items}: has none of the items of the data; are these its ids?")
    add_item_attributes(dataset, rows, attributes, known.numbers, str(known.items))
    for attribute in dataset.item_attributes:
        several = f", up to {attribute.columns} an item" if attribute.columns > 1 else ""
        tell("items", f"{short(attribute.name)}: {len(attribute.labels):,} values{several}")
        if len(attribute.labels) > max(FEW_VALUES, min(MANY_VALUES, len(dataset.raw_items) // 2)):
            tell("note", cost_of_many(attribute.name, len(attribute.labels)))
    for name in dataset.number_names:
        tell("items", f"{short(name)}: a number")


def _told(known: Known) -> Told:
    return Told(known.items_separator, known.items_encoding, option="--items-")


def _readings(text: str) -> dict[str, str | None]:
    """What NAME[:SEPARATOR] may mean: a column of this name, which may hold a colon; or one and its separator."""
    name, colon, separator = text.rpartition(":")
    return {text: None, name: separator} if colon and name and separator else {text: None}


def read_vectors(file: Path, column: str) -> tuple[pl.Series, np.ndarray]:
    """Raw ids and their vectors, float32 [n, V].

    `file`: Parquet with the columns item (or user) and vector, or NAME.npy beside NAME.parquet, which says in the same
    order whose the rows are: what `eupmim-dist export` writes. A user's K vectors of D numbers, [n, K, D], become one
    of K x D. Raises UserError.
    """
    regular_file(file, "give the Parquet or .npy file of the vectors")
    table = file if file.suffix == ".parquet" else file.with_suffix(".parquet")
    if file.suffix not in (".parquet", ".npy"):
        raise UserError(f"{file}: ends in neither .parquet nor .npy; give one of these")
    if table != file:
        regular_file(table, f"it says whose vectors {file.name} has, row by row, in a column {column}")
    with reading(table):
        names = scan_parquet(table).collect_schema().names()
        wanted = [column, "vector"] if table == file else [column]
        if table == file and "interest" in names:
            raise UserError(f"{file}: has a row for each interest; give users.npy, as `export --format npy` writes it")
        if missing := [name for name in wanted if name not in names]:
            raise UserError(f"{table}: no column {listed(missing)}; there are {listed(names)}")
        frame = scan_parquet(table).select(pl.col(column).cast(pl.String), *wanted[1:]).collect()
    vectors = _of_column(file, frame["vector"]) if table == file else _of_npy(file)
    if len(vectors) != len(frame):
        raise UserError(
            f"{file}: has {len(vectors):,} vectors, and {table.name} {len(frame):,} rows; export both again"
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise UserError(f"{file}: the vector of {column} {short(frame[column][row])} is not finite; mend or delete it")
    if frame[column].is_duplicated().any():
        twice = frame.filter(frame[column].is_duplicated())[column][0]
        raise UserError(f"{file}: {column} {short(twice)} has two vectors; leave one")
    return frame[column], vectors


def _of_column(file: Path, column: pl.Series) -> np.ndarray:
    is_list = isinstance(column.dtype, pl.List | pl.Array)
    if not is_list or not column.dtype.inner.is_numeric() or column.null_count():  # type: ignore[attr-defined]
        raise UserError(f"{file}: column vector is {column.dtype}; it holds a list of numbers in each row")
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else column.arr.len()
    if not len(column) or lengths.n_unique() > 1 or not lengths[0]:
        sizes = listed(lengths.unique().sort().head(3).cast(pl.String))
        raise UserError(f"{file}: its vectors are of {sizes or 'no'} numbers; they are all of one length, above 0")
    return column.explode().cast(pl.Float32).to_numpy().reshape(len(column), -1)


def _of_npy(file: Path) -> np.ndarray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read as an array ({short(error)}); write it again") from None
    if found.ndim not in (2, 3) or found.dtype.kind != "f" or not found.size:
        raise UserError(f"{file}: is {found.dtype} {found.shape}; it holds floats, a vector (or several) in each row")
    return np.ascontiguousarray(found, np.float32).reshape(len(found), -1)


def _vectors(dataset: Dataset, file: Path, column: str, raw: pl.Series, tell: Tell) -> np.ndarray:
    """Float32 [items or users, V]; zeros for those that have none."""
    ids, vectors = read_vectors(file, column)
    rows = pl.DataFrame({column: raw}).join(
        pl.DataFrame({column: ids}).with_row_index("row"), on=column, how="left", maintain_order="left"
    )["row"]
    known = rows.is_not_null().to_numpy()
    if not known.any():
        raise UserError(f"{file}: has the vector of none of the {column}s of the data; are these its ids?")
    found = np.zeros((len(raw), vectors.shape[1]), np.float32)
    found[known] = vectors[rows.drop_nulls().to_numpy()]
    without, unknown = int(np.count_nonzero(~known)), len(vectors) - int(np.count_nonzero(known))
    dataset.report |= {f"{column}s_without_a_vector": without, f"vectors_of_other_{column}s": unknown}
    counts = f"{len(raw) - without:,} of {len(raw):,} have one, {unknown:,} of others left out"
    tell(f"{column}s", f"vectors of {vectors.shape[1]} numbers: {counts}")
    return found
