"""ComiRec's prepared files: `user,item,order`, split by user beforehand, without attributes."""

from __future__ import annotations

from pathlib import Path

from eupmim_dist.data.formats.eupmim import read_split_directory
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.writer import Dataset


def read(source: Path, progress: OnStage) -> Dataset:
    """Read `*_train.txt`, `*_valid.txt`, `*_test.txt` and, where present, the id maps."""
    return read_split_directory(source, [], progress)
