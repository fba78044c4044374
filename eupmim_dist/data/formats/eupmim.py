"""The E-UPMiM authors' prepared files: `user,age,gender,occupation,item,order`, split by user beforehand."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.lines import ITEM, ORDER, USER, Column, OnStage, optional_file, read_lines, read_map
from eupmim_dist.data.formats.movielens import GENRES, read_movies
from eupmim_dist.data.formats.sequences import SplitFile, dataset_from_splits, split_files
from eupmim_dist.data.item_features import add_item_attributes
from eupmim_dist.data.writer import Dataset

# The ranges only have to be tight enough that a shifted column or a stray value is noticed.
PROFILE = [
    Column("age", "[0-9]|[1-9][0-9]|1[0-4][0-9]", "an age code 0..149"),
    Column("gender", "[01]", "0 or 1"),
    Column("occupation", "[0-9]|[1-9][0-9]{1,2}", "an occupation code 0..999"),
]


def read(source: Path, progress: OnStage) -> Dataset:
    """Read `*_train.txt`, `*_valid.txt`, `*_test.txt` and, where present, the id maps and `movies.dat`."""
    return read_split_directory(source, PROFILE, progress)


def read_split_directory(source: Path, profile: list[Column], progress: OnStage) -> Dataset:
    """A directory of three files `user,PROFILE...,item,order`, with optional maps and titles beside them."""
    prefix, paths = split_files(source)
    columns = [USER, *profile, ITEM, ORDER]
    files = [SplitFile(path, read_lines(path, columns, progress=progress)) for path in paths.values()]
    dataset = dataset_from_splits(files, [column.name for column in profile])
    if user_map := optional_file(source / f"{prefix}_user_map.txt"):
        dataset.raw_users = read_map(user_map, len(dataset.raw_users), 0)
    if item_map := optional_file(source / f"{prefix}_item_map.txt"):
        dataset.raw_items = read_map(item_map, len(dataset.raw_items), 1)
        if movies := optional_file(source / "movies.dat"):
            known = read_movies(movies)
            rows = pl.DataFrame({"item": dataset.raw_items})
            dataset.titles = rows.join(known, on="item", how="left", maintain_order="left")["title"]
            add_item_attributes(dataset, known, GENRES, where=str(movies))
    return dataset
