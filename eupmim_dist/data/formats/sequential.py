"""ELMRec's (and P5's) sequential.txt: a line a user, `user item item ...` in time order, ids from 1."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.blocks import spans
from eupmim_dist.data.formats.lines import OnStage, bad_line, blocks, optional_file
from eupmim_dist.data.formats.sequences import check_gaps, kept_ids_dataset
from eupmim_dist.data.splits import LEAVE_ONE_OUT
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import read_text

ID = "[1-9][0-9]{0,17}"


@dataclass(frozen=True)
class Sequences:
    """A file of such lines. `user` and `lengths` int64 [lines]: whose, and of how many items; `items` int64, flat."""

    path: Path
    user: np.ndarray
    lengths: np.ndarray
    items: np.ndarray

    def line_of(self, place: int) -> int:
        """The 0-based line that `items[place]` is on."""
        return int(np.searchsorted(np.cumsum(self.lengths), place, side="right"))

    def by_user(self) -> Sequences:
        """The same with ascending users."""
        order = np.argsort(self.user)
        if (order[1:] > order[:-1]).all():
            return self
        starts = (np.cumsum(self.lengths) - self.lengths)[order]
        _, places = spans(starts, starts + self.lengths[order])
        return Sequences(self.path, self.user[order], self.lengths[order], self.items[places])


def read(source: Path, progress: OnStage) -> Dataset:
    """Read sequential.txt and, where present, datamaps.json; user id u of the file becomes user u - 1."""
    return dataset_of(read_sequences(source / "sequential.txt", progress))


def dataset_of(sequences: Sequences, *, all_mapped: bool = False) -> Dataset:
    """The dataset of what a sequential.txt holds; `all_mapped`: a datamaps.json beside it names every user and item."""
    path, user, items = sequences.path, sequences.user, sequences.items
    num_users = check_gaps(int(user.max()), len(user), "user", path, int(user.argmax())) - 1
    last = int(items.argmax())
    num_item_rows = check_gaps(int(items[last]), len(np.unique(items)), "item", path, sequences.line_of(last))

    row_lengths = np.zeros(num_users, np.int64)
    row_lengths[user - 1] = sequences.lengths
    dataset = kept_ids_dataset(
        row_lengths,
        sequences.by_user().items,
        num_item_rows=num_item_rows,
        split=LEAVE_ONE_OUT.codes(num_users),
        split_rule=LEAVE_ONE_OUT.name,
    )
    dataset.raw_users = pl.int_range(1, num_users + 1, eager=True).cast(pl.String)
    if file := optional_file(path.parent / "datamaps.json"):
        maps = _read_maps(file)
        dataset.raw_users = _raw_ids(file, maps, "id2user", num_users, all_mapped)
        dataset.raw_items = _raw_ids(file, maps, "id2item", num_item_rows - 1, all_mapped)
    return dataset


def read_sequences(path: Path, progress: OnStage) -> Sequences:
    """Raises UserError, which names file and line, for what is no such line, or a second one of a user."""
    users, lengths, items = [], [], []
    line = 1
    for lines in blocks(path, progress=progress):
        text = pl.Series(lines, dtype=pl.String)
        unmatched = (~text.str.contains(f"^{ID}( {ID})+$")).arg_true()
        if unmatched.len():
            problem = _problem(lines[unmatched[0]])
            raise bad_line(path, unmatched[0], problem, first_line=line)
        ids = text.str.split(" ")
        lengths.append(ids.list.len().to_numpy().astype(np.int64) - 1)
        users.append(ids.list.first().cast(pl.Int64).to_numpy())
        items.append(ids.list.slice(1).explode().cast(pl.Int64).to_numpy())
        line += len(lines)
    user = np.concatenate(users)
    repeated = np.flatnonzero(~pl.Series(user).is_first_distinct().to_numpy())
    if repeated.size:
        raise bad_line(path, repeated[0], f"user {user[repeated[0]]} is on an earlier line too; one line a user")
    return Sequences(path, user, np.concatenate(lengths), np.concatenate(items))


def _problem(line: str) -> str:
    if not line:
        return "the line is blank; delete it"
    fields = line.split(" ")
    wrong = next((field for field in fields if not (field.isascii() and field.isdigit() and field[0] != "0")), None)
    if wrong is not None:
        return f"{shown(wrong)} is no id: ids are integers from 1, single spaces between them"
    return f"{len(fields)} ids, expected a user and at least one item" if len(fields) < 2 else "an id is too large"


def _read_maps(path: Path) -> dict[str, object]:
    maps = read_json(path, "no map of ids")
    return maps if isinstance(maps, dict) else {}


def read_json(path: Path, otherwise: str) -> object:
    """What a JSON file holds. Raises UserError, which says what it then is, for a file that is none."""
    try:
        return json.loads(read_text(path).removeprefix("\ufeff"), object_pairs_hook=_distinct)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else short(error)
        raise UserError(f"{path}: {otherwise}: not a JSON file ({reason}); mend or remove it") from None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(twice)} is given twice")
    return names


def _raw_ids(path: Path, maps: dict[str, object], key: str, count: int, all_mapped: bool) -> pl.Series:
    """Raw ids of ids 1..count from datamaps.json; null where it names none, if it need not name all."""
    names = maps.get(key)
    raw_ids = [names.get(str(i)) for i in range(1, count + 1)] if isinstance(names, dict) else [names]
    known = [raw_id for raw_id in raw_ids if raw_id is not None]
    wrong = next((raw_id for raw_id in known if not isinstance(raw_id, str) or UNSEEN.search(raw_id)), None)
    if wrong is not None or not isinstance(names, dict):
        found = f" (there is {shown(wrong)})" if wrong is not None else ""
        raise UserError(f"{path}: no map of id to raw id (a string) under the key {key!r}{found}; mend or remove it")
    if all_mapped and None in raw_ids:
        what = f"{key.removeprefix('id2')} {raw_ids.index(None) + 1}"
        raise UserError(f"{path}: no raw id of {what} under the key {key!r}; add it, or remove the file")
    if len(set(known)) < len(known):
        twice = Counter(known).most_common(1)[0][0]
        raise UserError(f"{path}: two ids have the raw id {shown(twice)} under the key {key!r}; mend or remove it")
    return pl.Series(raw_ids, dtype=pl.String)


UNSEEN = re.compile("^$|[\x00-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
"""What no id may hold: nothing at all, control characters, byte-order marks, halves of a character."""
