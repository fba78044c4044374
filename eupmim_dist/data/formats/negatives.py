"""The negatives of each user that direct recommendation is judged on: read from a negative.txt, or drawn as that was.

N negatives a user.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.formats.lines import OnStage, bad_line, optional_file
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.sequential import Sequences, read_sequences
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short

NUMBER = 99
"""N."""
RULES = ("distinct", "repeats")
"""May later draws for a user hold an item of an earlier one? In the files of ELMRec's authors those of toys do."""
SEED, MOST_SEEDS = 12345, 1 << 32
USERS_A_STAGE = 500


def add_negatives(dataset: Dataset, sequences: Sequences, path: Path, options: Options, progress: OnStage) -> None:
    """Those of the file, or drawn if it is not there; the report says which, and counts users with a repeated one.

    Raises UserError for a file that lacks or holds what it must not, and for options that do not apply.
    """
    rule, seed = options.negatives_rule, options.negatives_seed
    if rule not in (None, *RULES):
        raise UserError(f"--negatives-rule {short(rule)}: unknown; one of {', '.join(RULES)}")
    if seed is not None and not 0 <= seed < MOST_SEEDS:
        raise UserError(f"--negatives-seed {seed}: give a seed from 0 to {MOST_SEEDS - 1}, such as {SEED}")
    if optional_file(path):
        if seed is not None:
            raise UserError(f"--negatives-seed {seed}: {path} has the negatives; remove it or leave the option out")
        negatives = _read(path, sequences, rule, len(dataset.raw_items), progress)
    else:
        dataset.report["negatives_drawn_by_seed"] = seed = SEED if seed is None else seed
        negatives = draw_negatives(sequences, seed, rule != "repeats", progress)
    dataset.negatives = negatives
    dataset.report["users_with_a_repeated_negative"] = int(np.count_nonzero(_repeats(negatives).any(1)))


def draw_negatives(sequences: Sequences, seed: int, distinct: bool, progress: OnStage) -> np.ndarray:
    """int64 [users, N] as the authors drew them, bit for bit: numpy's legacy generator, whose stream stays as it is.

    For each user, in the order of the file, N of all items (in order of first appearance), again until N are left
    that he has not had; where they are to be `distinct`, nor an earlier draw for him.
    """
    pool = pl.Series(sequences.items).unique(maintain_order=True).to_numpy()
    ends = np.cumsum(sequences.lengths)
    longest = int(sequences.lengths.argmax())
    if len(pool) - sequences.lengths[longest] < NUMBER:
        left = f"{sequences.lengths[longest]} of {len(pool)} items, and {NUMBER} others are needed as his negatives"
        raise bad_line(sequences.path, longest, f"user {sequences.user[longest]} has {left}; bring more items")
    generator = np.random.RandomState(seed)
    negatives = np.empty((len(ends), NUMBER), np.int64)
    barred = np.zeros(pool.max() + 1, bool)
    for line, user in enumerate(sequences.user.tolist()):
        if line % USERS_A_STAGE == 0:
            progress("drawing negatives", line, len(ends))
        own = sequences.items[ends[line] - sequences.lengths[line] : ends[line]]
        barred[own] = True
        drawn = np.zeros(0, np.int64)
        while len(drawn) < NUMBER:
            new = generator.choice(pool, NUMBER, replace=False)
            new = new[~barred[new]]
            barred[new] = distinct
            drawn = np.concatenate([drawn, new])
        negatives[user - 1] = drawn[:NUMBER]
        barred[own] = barred[drawn] = False
    return negatives


def _read(path: Path, sequences: Sequences, rule: str | None, num_items: int, progress: OnStage) -> np.ndarray:
    """int64 [users, N] of a file with the layout of sequential.txt."""
    given = read_sequences(path, progress)
    user, num_users = given.user, len(sequences.user)
    unknown = np.flatnonzero(user > num_users)
    if unknown.size:
        raise bad_line(path, unknown[0], f"user {user[unknown[0]]} is not in {sequences.path.name} (1..{num_users})")
    wrong = np.flatnonzero(given.lengths != NUMBER)
    if wrong.size:
        line = wrong[0]
        raise bad_line(path, line, f"user {user[line]} has {given.lengths[line]} negatives, expected {NUMBER}")
    missing = np.setdiff1d(np.arange(1, num_users + 1), user)
    if missing.size:
        raise UserError(f"{path}: no line for user {missing[0]}; add it, or remove the file to have negatives drawn")
    rows = num_items + 1
    had = np.repeat(sequences.user, sequences.lengths) * rows + sequences.items
    own = np.isin(np.repeat(user, NUMBER) * rows + given.items, had, kind="sort")
    repeated = _repeats(given.items.reshape(-1, NUMBER)).ravel() & (rule == "distinct")
    for bad, problem in (
        (given.items > num_items, f"which is not in {sequences.path.name} (1..{num_items})"),
        (own, "which he had"),
        (repeated, "twice; --negatives-rule repeats lets it be"),
    ):
        if bad.any():
            place = int(bad.argmax())
            line = place // NUMBER
            raise bad_line(path, line, f"the negatives of user {user[line]} hold item {given.items[place]}, {problem}")
    return given.by_user().items.reshape(-1, NUMBER)


def _repeats(negatives: np.ndarray) -> np.ndarray:
    """bool [n, N]: which there are earlier in their row too."""
    order = np.argsort(negatives, axis=1, kind="stable")
    ascending = np.take_along_axis(negatives, order, 1)
    again = np.zeros(negatives.shape, bool)
    np.put_along_axis(again, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], 1)
    return again
