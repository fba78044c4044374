"""MovieLens-1M as downloaded: ratings.dat, users.dat and movies.dat, prepared as the E-UPMiM authors did."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.events import Profiles, dataset_from_events
from eupmim_dist.data.formats.lines import Column, OnStage, bad_line, existing_file, read_lines
from eupmim_dist.data.item_features import add_item_attributes
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.writer import Dataset

RAW_ID = "[1-9][0-9]{0,17}"
AGES = (1, 18, 25, 35, 45, 50, 56)  # each the first year of its group
GENRES = {"genres": "|"}
"""The attributes of items, and what separates several values of one."""
GENDERS = {"F": 0, "M": 1}
ATTRIBUTES = (Attribute("age", 57), Attribute("gender", 2), Attribute("occupation", 21))


def read(source: Path, progress: OnStage) -> Dataset:
    """Read ratings.dat (`user::movie::rating::timestamp`), users.dat and movies.dat."""
    ratings, users, movies = (existing_file(source / f"{name}.dat") for name in ("ratings", "users", "movies"))
    events = read_lines(
        ratings,
        [
            Column("user", RAW_ID, "a user id from 1", pl.String),
            Column("item", RAW_ID, "a movie id from 1", pl.String),
            Column("rating", "[1-5]", "a rating 1..5"),
            Column("time", meaning="a timestamp in seconds"),
        ],
        separator="::",
        progress=progress,
    )
    known = read_movies(movies)
    dataset = dataset_from_events(
        events.select("user", "item", "time").lazy(),
        source=ratings,
        profiles=Profiles(users, read_profiles(users), ATTRIBUTES),
        titles=known.select("title", "item"),
        progress=progress,
    )
    add_item_attributes(dataset, known, GENRES, where=str(movies))
    return dataset


def read_profiles(path: Path) -> pl.DataFrame:
    """users.dat (`id::gender::age::occupation::zip`) as columns user (String), age, gender, occupation."""
    frame = read_lines(
        path,
        [
            Column("user", RAW_ID, "a user id from 1", pl.String),
            Column("gender", "[FM]", "F or M", pl.String),
            Column("age", "|".join(map(str, AGES)), f"one of {', '.join(map(str, AGES))}"),
            Column("occupation", "[0-9]|1[0-9]|20", "an occupation code 0..20"),
            Column("zip", "[^:]*", "a zip code", pl.String),
        ],
        separator="::",
    )
    repeated = (~frame["user"].is_first_distinct()).arg_true()
    if repeated.len():
        raise bad_line(path, repeated[0], f"user {frame['user'][repeated[0]]} has a profile on an earlier line too")
    return frame.select("user", "age", pl.col("gender").replace_strict(GENDERS, return_dtype=pl.Int64), "occupation")


def read_movies(path: Path) -> pl.DataFrame:
    """movies.dat (`id::title::genres`, ISO-8859-1) as String columns item, title and genres."""
    frame = read_lines(
        path,
        [
            Column("item", RAW_ID, "a movie id from 1", pl.String),
            Column("title", ".+", "a title", pl.String),
            Column("genres", ".*", "genres", pl.String),
        ],
        separator="::",
        encoding="iso-8859-1",
    )
    repeated = (~frame["item"].is_first_distinct()).arg_true()
    if repeated.len():
        raise bad_line(path, repeated[0], f"movie {frame['item'][repeated[0]]} is on an earlier line too")
    return frame
