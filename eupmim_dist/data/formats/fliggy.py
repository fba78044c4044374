"""Fliggy's user profiles and behaviour history, prepared as the E-UPMiM authors did: purchases only."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.events import Profiles, dataset_from_events
from eupmim_dist.data.formats.lines import Column, OnStage, bad_line, existing_file, read_lines
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError

HISTORY = "user_item_behavior_history.csv"
PROFILE = "user_profile.csv"
ID = "0|[1-9][0-9]{0,17}"


def read(source: Path, progress: OnStage) -> Dataset:
    """Read the history (`user,item,behaviour,timestamp`, a header line) and `user,age,gender,occupation`."""
    profile, history = existing_file(source / PROFILE), existing_file(source / HISTORY)
    profiles = read_profiles(profile, progress)
    events = read_lines(
        history,
        [
            Column("user", ID, "a user id from 0", pl.String),
            Column("item", ID, "an item id from 0", pl.String),
            Column("behaviour", "[A-Za-z_]+", "a word such as pay", pl.String),
            Column("time", meaning="an integer timestamp"),
        ],
        header=True,
        keep=pl.col("behaviour") == "pay",
        progress=progress,
    )
    if not events.height:
        raise UserError(f"{history}: no line with behaviour pay; only purchases are used")
    return dataset_from_events(
        events.select("user", "item", "time").lazy(),
        source=history,
        profiles=Profiles(profile, profiles),
        progress=progress,
    )


def read_profiles(path: Path, progress: OnStage) -> pl.DataFrame:
    """Columns user, age, gender and occupation as String; further columns and a header line are skipped."""
    with path.open("rb") as stream:
        header = not stream.read(4).removeprefix(BOM_UTF8)[:1].isdigit()
    frame = read_lines(
        path,
        [
            Column("user", ID, "a user id from 0", pl.String),
            Column("age", "[^,]+", "an age", pl.String),
            Column("gender", "[^,]+", "a gender", pl.String),
            Column("occupation", "[^,]+(?:,.*)?", "an occupation", pl.String, rest=True),
        ],
        header=header,
        progress=progress,
    )
    repeated = (~frame["user"].is_first_distinct()).arg_true()
    if repeated.len():
        row = repeated[0]
        problem = f"user {frame['user'][row]} has a profile on an earlier line too"
        raise bad_line(path, row, problem, first_line=1 + header)
    return frame.with_columns(pl.col("occupation").str.split(",").list.first())
