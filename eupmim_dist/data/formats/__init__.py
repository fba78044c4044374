"""The formats `prepare` reads: each module turns a source into a `Dataset`."""

from __future__ import annotations

from eupmim_dist.data.formats import comirec, csv, elmrec, eupmim, fliggy, movielens, parquet, sequential
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import OF_ELMREC, Options
from eupmim_dist.data.formats.table import Tell

__all__ = ["FORMATS", "OF_ELMREC", "TABLES", "WITH_OPTIONS", "OnStage", "Options", "Tell"]

FORMATS = {
    "eupmim": eupmim.read,
    "movielens": movielens.read,
    "comirec": comirec.read,
    "fliggy": fliggy.read,
    "sequential": sequential.read,
}
"""`read(directory, progress)`."""
WITH_OPTIONS = {"elmrec": elmrec.read}
"""`read(directory, options, progress)`."""
TABLES = {"csv": csv.read, "parquet": parquet.read}
"""Files with columns that options name: `read(files and folders, options, workspace, progress, tell)`."""
