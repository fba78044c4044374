"""How a text file with a header line is read: its encoding, and what separates its fields, as told or found."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.encodings import check_encoding, copy_as_utf8, encoding_of
from eupmim_dist.data.formats.records import Layout, check_characters, check_records, header
from eupmim_dist.data.frames import reading, scan_csv
from eupmim_dist.errors import UserError, short

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
WHOLE_LINES = pl.QueryOptFlags(projection_pushdown=False)
"""Without it unused columns are not parsed, and a line with too many fields passes."""


@dataclass(frozen=True)
class Told:
    """What was said of a text file. `option`: how the options begin that say it; empty where there are none."""

    separator: str | None = None
    encoding: str | None = None
    trim: bool = False
    option: str = ""

    def check(self) -> None:
        """Raises UserError for what is no separator or encoding."""
        check_encoding(self.encoding, f"{self.option}encoding")
        self.separators()

    @property
    def first(self) -> str | None:
        """The option that says something, if one does."""
        return next((self.option + n for n in ("separator", "encoding") if getattr(self, n) is not None), None)

    def separators(self) -> list[str]:
        """Those that are possible."""
        if (given := self.separator) is None:
            return list(SEPARATORS)
        separator = {"tab": "\t", "\\t": "\t"}.get(given, given)
        if len(separator) != 1 or separator in '"\r\n' or not (separator == "\t" or " " <= separator <= "~"):
            raise UserError(f"{self.option}separator {short(given)}: give one character, such as ; or |, or tab")
        return [separator]


UNTOLD = Told()


@dataclass(frozen=True)
class TextFile:
    """A text file and how it is read; `text` holds what it does, in UTF-8."""

    file: Path
    layout: Layout
    names: list[str]
    """Of its columns."""
    described: str
    """Separator and encoding, for people."""

    @property
    def text(self) -> Path:
        return self.layout.copy or self.file

    def scan(self) -> pl.LazyFrame:
        """Every column as String; to be collected with the optimizations WHOLE_LINES."""
        return scan_csv(self.text, self.layout.separator)


def found_file(file: Path, asked: Sequence[Collection[str]], told: Told, copy: Path) -> TextFile:
    """How to read `file`: so that its header line has the columns `asked`, each by one of several names.

    `copy`: where its text goes in UTF-8, if it has another encoding. Raises UserError where two separators fit.
    """
    encoding, by_mark = encoding_of(file, told.encoding)
    mend = f"{told.option}encoding says which it is, such as cp1252" if told.option else Layout.mend
    layout = Layout(trim=told.trim, encoding=encoding, mend=mend)
    if encoding != "utf-8":
        copy_as_utf8(file, encoding, copy, mend)
        layout = replace(layout, copy=copy)
    candidates, failed = {}, None
    for separator in told.separators():
        try:
            names = header(file, replace(layout, separator=separator))
        except UserError as error:  # its quotes are not in order with another one
            failed = failed or error
        else:
            candidates[separator] = [name.strip() for name in names] if told.trim else names
    if not candidates and failed:
        raise failed
    fitting = [separator for separator, names in candidates.items() if _fits(names, asked)]
    if len({tuple(candidates[separator]) for separator in fitting}) > 1:
        one, other = (SEPARATORS[separator] for separator in fitting[:2])
        mend = f"say which with {told.option}separator" if told.option else "rename what is in doubt"
        raise UserError(f"{file}: its header has the columns by {one} and by {other}; {mend}")
    separator = max(fitting or candidates, key=lambda each: len(candidates[each]))
    names = candidates[separator]
    if not fitting and _fits([name.strip() for name in names], asked):
        mend = "--trim drops them" if told.option == "--" else "delete them"
        raise UserError(f"{file}: there are blanks around the names of its columns; {mend}")
    described = f"{SEPARATORS.get(separator, repr(separator))}, {encoding.upper()}"
    return TextFile(file, replace(layout, separator=separator), names, described + " (byte-order mark)" * by_mark)


def _fits(names: list[str], asked: Sequence[Collection[str]]) -> bool:
    return bool(asked) and all(any(name in names for name in each) for each in asked)


@contextmanager
def small_text_file(file: Path, asked: Sequence[Collection[str]], told: Told = UNTOLD) -> Iterator[TextFile]:
    """One that is read whole. Around what has polars read it, too: UserError, with the line where there is one."""
    with tempfile.TemporaryDirectory() as place:
        found = found_file(file, asked, told, Path(place) / "text.csv")
        check_characters(file, len(found.names), found.layout)
        with reading(file):
            try:
                yield found
            except (pl.exceptions.PolarsError, OSError):
                check_records(file, len(found.names), found.layout)
                raise
