"""The formats `prepare` reads: each module turns a source into a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eupmim_dist.data.formats import comirec, csv, eupmim, fliggy, movielens, parquet, sequential
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.writer import Dataset

__all__ = ["FORMATS", "Format", "OnStage", "Options"]


@dataclass(frozen=True)
class Format:
    """`read(source, options, workspace, progress)`; `takes_options`: whether any of `Options` applies."""

    read: Callable[[Path, Options, Path, OnStage], Dataset]
    takes_options: bool = False


FORMATS = {
    "eupmim": Format(eupmim.read),
    "movielens": Format(movielens.read),
    "comirec": Format(comirec.read),
    "fliggy": Format(fliggy.read),
    "sequential": Format(sequential.read),
    "csv": Format(csv.read, takes_options=True),
    "parquet": Format(parquet.read, takes_options=True),
}
