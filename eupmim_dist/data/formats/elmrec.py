"""ELMRec's directory: sequential.txt and, where present, datamaps.json, negative.txt and explanation.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eupmim_dist.data.formats.explanations import read_explanations
from eupmim_dist.data.formats.lines import OnStage, bad_line, optional_file
from eupmim_dist.data.formats.negatives import add_negatives
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.sequences import MIN_LENGTH
from eupmim_dist.data.formats.sequential import Sequences, dataset_of, read_sequences
from eupmim_dist.data.writer import Dataset


def read(source: Path, options: Options, progress: OnStage) -> Dataset:
    """As the format sequential, and stricter: every user is there, long enough, and mapped where there is a map.

    Negatives that the source does not give are drawn.
    """
    sequences = read_sequences(source / "sequential.txt", progress)
    _check_users(sequences)
    dataset = dataset_of(sequences, all_mapped=True)
    add_negatives(dataset, sequences, source / "negative.txt", options, progress)
    if file := optional_file(source / "explanation.json"):
        progress(f"reading {file.name}", 0, 0)
        dataset.explanations = read_explanations(file, len(dataset.raw_users), len(dataset.raw_items))
    return dataset


def _check_users(sequences: Sequences) -> None:
    """Raises UserError for a user without enough items, or whom the numbers leave out."""
    path, user, lengths = sequences.path, sequences.user, sequences.lengths
    short = np.flatnonzero(lengths < MIN_LENGTH)
    if short.size:
        problem = f"user {user[short[0]]} has {lengths[short[0]]} items, fewer than {MIN_LENGTH}"
        raise bad_line(path, short[0], f"{problem}; leave him out, and number the others without a gap")
    gap = np.flatnonzero(np.sort(user) != np.arange(1, len(user) + 1))
    if gap.size:
        line = int(user.argmax())
        problem = f"user {user[line]}, but there is no user {gap[0] + 1}"
        raise bad_line(path, line, f"{problem}; number users from 1 without a gap")
