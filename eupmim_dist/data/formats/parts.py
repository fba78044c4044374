"""The files that a source of events is made of, and which row of which file is which."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from eupmim_dist.errors import UserError
from eupmim_dist.files import regular_file


@dataclass(frozen=True)
class Part:
    """A file whose columns by role lie in the Parquet file `events`, `num_rows` of them."""

    name: str
    events: Path
    num_rows: int
    locate: Callable[[list[int]], list[tuple[int, str]]]
    """Of rows from 0, which rise: a number to sort by, and what messages call the place."""


def part_files(sources: Sequence[Path], endings: tuple[str, ...], mend: str) -> list[Path]:
    """The files of `sources`, of a folder those with one of the `endings`, by name.

    Raises UserError for a folder without any, for what is no file, and for one given twice.
    """
    files: list[Path] = []
    for source in sources:
        if not source.is_dir():
            files.append(regular_file(source, mend))
            continue
        found = [
            file
            for file in sorted(source.iterdir())
            if file.name.lower().endswith(endings) and not file.name.startswith(".") and not file.is_dir()
        ]
        if not found:
            raise UserError(f"{source}: the folder has no file *{', *'.join(endings)}; name a file or another folder")
        files += [regular_file(file, mend) for file in found]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise UserError(f"{file}: is given twice; name it once")
        seen.add(file.resolve())
    return files


def name_of(sources: Sequence[Path]) -> str:
    """What messages call several sources together."""
    more = len(sources) - 1
    return str(sources[0]) + (f" and {more} more" if more else "")


def places(parts: Sequence[Part], rows: Sequence[int]) -> list[tuple[tuple[int, int], str]]:
    """Of rows of all parts, counted on from one to the next, in rising order: a key to sort by, and the place."""
    starts = list(accumulate((part.num_rows for part in parts), initial=0))
    of_part: dict[int, list[int]] = {}
    for row in rows:
        number = bisect_right(starts, row) - 1
        of_part.setdefault(number, []).append(row - starts[number])
    return [((number, line), place) for number, own in of_part.items() for line, place in parts[number].locate(own)]
