"""Frames that come one after another as one file: Parquet, CSV or lines of JSON, in memory that does not grow."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, BinaryIO

import polars as pl

from eupmim_dist.errors import UserError
from eupmim_dist.export.vector_files import sink_frames
from eupmim_dist.files import beside, check_out, real, sync_directory, writing

ENDINGS = (".parquet", ".jsonl", ".csv")
Write = Callable[[pl.DataFrame], None]

AHEAD = 4
"""Frames that may wait for the thread that writes Parquet."""


def check_file(out: Path, option: str = "--out") -> None:
    """Refuses an `option` of another kind or that cannot be written, before the work whose result it is for."""
    if out.suffix not in ENDINGS:
        raise UserError(f"{option} {out}: give a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    check_out(out, f"{option} {out}")
    if out.exists() and not out.is_file():
        raise UserError(f"{option} {out}: is no file; give another name")
    if not out.parent.is_dir():
        raise UserError(f"{option} {out}: there is no directory {out.parent}; make it first")


@contextmanager
def frame_file(out: Path, columns: dict[str, Any], option: str = "--out") -> Iterator[Write]:
    """Gives a function that appends a frame of these columns; `out` is there when the body succeeds, or as before.

    Raises UserError where it cannot be written.
    """
    check_file(out, option)
    with writing(f"{option} {out}"):
        final = real(out)
        staging = beside(final)
        try:
            with _parquet(staging, columns) if out.suffix == ".parquet" else _text(staging, out.suffix) as write:
                yield write
            with staging.open("rb+") as stream:
                os.fsync(stream.fileno())
            staging.replace(final)
            sync_directory(final.parent)
        finally:
            with suppress(OSError):
                staging.unlink(missing_ok=True)


@contextmanager
def _text(file: Path, ending: str) -> Iterator[Write]:
    with file.open("wb") as stream:
        yield _json_lines(stream) if ending == ".jsonl" else _csv(stream)


def _json_lines(stream: BinaryIO) -> Write:
    def write(frame: pl.DataFrame) -> None:
        _told(lambda: frame.write_ndjson(stream))

    return write


def _csv(stream: BinaryIO) -> Write:
    first = True

    def write(frame: pl.DataFrame) -> None:
        nonlocal first
        _told(lambda: frame.write_csv(stream, include_header=first))
        first = False

    return write


def _told(work: Callable[[], Any]) -> None:
    """Polars has errors of its own for a full disk."""
    try:
        work()
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error).partition("\n")[0]) from None


@contextmanager
def _parquet(file: Path, columns: dict[str, Any]) -> Iterator[Write]:
    """Polars asks for frames itself, from threads of its own: so another one waits for it, and this one computes."""
    waiting: Queue[pl.DataFrame | None] = Queue(AHEAD)
    failed: list[BaseException] = []

    def frames() -> Iterator[pl.DataFrame]:
        while (frame := waiting.get()) is not None:
            yield frame

    def work() -> None:
        try:
            sink_frames(file, frames(), columns, "zstd")
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=work, daemon=True)

    def write(frame: pl.DataFrame | None) -> None:
        while thread.is_alive():
            with suppress(Full):
                waiting.put(frame, timeout=1.0)
                return
        _raise(failed)

    thread.start()
    try:
        yield write
    finally:
        with suppress(OSError):
            write(None)  # also after a failure: nothing waits for ever
        thread.join()
    _raise(failed)


def _raise(failed: list[BaseException]) -> None:
    for error in failed:
        raise error
