"""Data frames: those of other libraries, and those that polars makes of a user's file."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from eupmim_dist.errors import UserError, short


def scan_parquet(file: Path) -> pl.LazyFrame:
    """One Parquet file, whatever its name holds: polars takes brackets for a pattern, and `~` for the home."""
    return pl.scan_parquet(file.absolute(), glob=False)


def scan_csv(file: Path, separator: str = ",") -> pl.LazyFrame:
    """The same of a CSV file, every column as String."""
    return pl.scan_csv(file.absolute(), separator=separator, infer_schema=False, glob=False)


@contextmanager
def reading(what: Path | str, mend: str = "copy or write it again", kind: str = "") -> Iterator[None]:
    """Around what has polars read `what`, as a file of a `kind`. Raises UserError.

    Polars has errors of its own, and panics at some kinds of damage.
    """
    try:
        with _without_panics():
            yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).partition("\n")[0]
        read = f"cannot be read as {kind}" if kind else "cannot be read"
        raise UserError(f"{what}: {read} ({reason}); {mend}") from error


_withheld = threading.Lock()


@contextmanager
def _without_panics() -> Iterator[None]:
    """On the command line: keeps back what is written to stderr, and drops it at a panic, of which each thread of Rust
    tells in many lines.

    Not on a terminal, where progress is shown; nor from Python, where stderr is everybody's.
    """
    kept = None
    with suppress(OSError):  # where stderr is closed, or no temporary file can be written
        if "eupmim_dist.cli.app" in sys.modules and not os.isatty(2) and _withheld.acquire(blocking=False):
            try:
                kept = tempfile.TemporaryFile()  # noqa: SIM115
            except OSError:
                _withheld.release()
    if kept is None:
        yield
        return
    panicked = False
    with kept, os.fdopen(os.dup(2), "wb") as stream:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except pl.exceptions.PanicException:
            panicked = True
            raise
        finally:
            os.dup2(stream.fileno(), 2)
            _withheld.release()
            if not panicked:
                kept.seek(0)
                shutil.copyfileobj(kept, stream)


def lazy_frame(source: Any, wanted: Collection[str | None] | None = None) -> pl.LazyFrame:
    """A frame of polars, pandas or any library with the Arrow interface; of a mapping of columns, too.

    Of pandas only the columns that are `wanted`, if it says so, are converted; the others keep their names alone.

    Raises UserError for anything else, or where pandas needs pyarrow and has it not.
    """
    if isinstance(source, pl.LazyFrame):
        return source
    unread: list[str] = []
    if wanted is not None and hasattr(source, "iloc"):  # pandas, which may hold what no other library can
        unread = [str(name) for name in source.columns if name not in wanted]
        source = source[[name for name in source.columns if name in wanted]]
    try:
        if source is None or isinstance(source, str):
            raise TypeError("it has no columns")
        frame = pl.DataFrame(source)
    except ImportError:
        raise UserError(
            f"data frame: {type(source).__module__.partition('.')[0]} hands over text and categories through pyarrow, "
            "which is not installed; `pip install pyarrow`, or give a frame of polars"
        ) from None
    except Exception as error:  # each library has its own
        reason = short(" ".join(str(error).split()))
        raise UserError(
            f"data frame: a {type(source).__name__} cannot be read as one ({reason}); give one of polars, pandas or "
            "Arrow, or a path"
        ) from None
    return frame.lazy().with_columns(pl.lit(None).alias(name) for name in unread)
