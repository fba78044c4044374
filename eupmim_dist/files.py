"""Files and directories that are there whole or not at all.

They are written under a hidden name beside their place and renamed once they are whole.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eupmim_dist.errors import UserError

READER_SECONDS = 5
"""How long whoever reads a pipe has to open it."""


def beside(final: Path, ending: str = "incomplete") -> Path:
    """The hidden name under which something is written before it is whole, or kept out of the way: `.NAME.ending`."""
    return final.with_name(f".{final.name}.{ending}")


def real(path: Path) -> Path:
    """Where a path leads, by links too. Raises OSError, as Path.resolve does not for links in a circle."""
    with suppress(FileNotFoundError):
        path.stat()
    return path.resolve()


def is_there(path: Path) -> bool:
    """Whether there is something of that name, be it a link to nothing. Raises OSError."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def unnameable(path: Path | str) -> str | None:
    """Why nothing can have this name, or other libraries cannot take it; None of a good one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8 text; rename it"
    return "no name holds a NUL" if "\0" in str(path) else None


def regular_file(path: Path, mend: str) -> Path:
    """`path`, if it is a file. Raises UserError, which says what it is instead, then the mend."""
    if problem := unnameable(path):
        raise UserError(f"{path}: {problem}")
    if problem := _unlike_a_file(path):
        raise UserError(f"{path}: {problem}; {mend}")
    return path


def _unlike_a_file(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to a file that is not there" if path.is_symlink() else "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file"


_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_out(out: Path, what: str | None = None) -> None:
    """Refuses a place that can hold nothing, before the work whose result it is for; `what` errors call it."""
    if problem := unnameable(out):
        raise UserError(f"{what or out}: {problem}")
    with writing(what or out), suppress(FileNotFoundError):
        out.stat()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises OSError, also for what has no end or would be waited for; ValueError."""
    mode = path.stat().st_mode
    # A shell's <(...) and standard input do end.
    if stat.S_ISFIFO(mode) and not os.path.realpath(path).startswith(("/proc/", "/dev/fd/")):
        raise OSError(errno.ESPIPE, "is a pipe; give a file", str(path))
    if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and str(path) != os.devnull:
        raise OSError(errno.ENODEV, "is a device; give a file", str(path))
    return path.read_text(encoding="utf-8")


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Around what writes `what`: an OSError becomes a UserError with its name and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """As `replace_text`. Raises UserError where it cannot be written."""
    with writing(path):
        replace_text(path, text)


def replace_text(path: Path, text: str | Iterable[str]) -> None:
    """Writes `path` whole and to the disk, or leaves what was there; of a link, the file that it leads to.

    Pieces of text are written as they come.

    In place only what no other file can take the place of: a pipe, or a file in a directory that takes no new ones.
    Raises OSError.
    """
    pieces = [text] if isinstance(text, str) else text
    final = real(path)
    if path.exists() and not (path.is_file() and os.access(final.parent, os.W_OK)):
        with open(_reader_of(path) if path.is_fifo() else path, "w", encoding="utf-8") as stream:
            stream.writelines(pieces)
        return
    staging = beside(final)
    try:
        with staging.open("w", encoding="utf-8") as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
        if final.exists():
            with suppress(OSError):  # some file systems have none
                shutil.copymode(final, staging)
        staging.replace(final)
    except BaseException:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
        raise
    sync_directory(final.parent)


def _reader_of(pipe: Path) -> int:
    """A descriptor that writes to whoever reads the pipe. Raises OSError if nobody soon does: open would wait."""
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise OSError(errno.ENXIO, "is a pipe that nobody reads") from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


@contextmanager
def new_directory(final: Path, *, ending: str = "incomplete", replace: bool = False) -> Iterator[Path]:
    """A directory to fill that becomes `final` when the body succeeds, and is deleted when it fails.

    `final` is absent or empty by then, or what it holds is replaced if `replace`. What an earlier one with this
    `ending` left when it was killed is deleted: two at once need two endings. Raises OSError.
    """
    final = real(final)  # of a link, the directory itself is made
    staging = beside(final, ending)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        if replace:
            replace_directory(staging, final)
        else:
            staging.replace(final)
            sync_directory(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def out_directory(out: Path) -> Iterator[Path]:
    """`new_directory` for an `--out`, whose body may also read.

    Raises UserError where `out` holds something, or something cannot be read or written.
    """
    check_out(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; give another --out")
    final = out.resolve()
    try:
        with new_directory(final) as staging:
            yield staging
    except OSError as error:
        source = None if error.filename is None else Path(error.filename).absolute()
        if source and not source.is_relative_to(beside(final)) and not final.is_relative_to(source):
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def backup_path(final: Path) -> Path:
    """Where a directory lies while a new one takes its place; it stays there if that is killed half-way."""
    return beside(final, "replaced")


def replace_directory(staging: Path, final: Path) -> None:
    """Puts `staging` in the place of `final`, then deletes what was there; `put_back` mends it if killed half-way.

    Raises OSError, and what was there is there again.
    """
    before = backup_path(final)
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    try:
        staging.rename(final)
    except OSError:
        put_back(final)
        raise
    sync_directory(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def put_back(final: Path) -> None:
    """Brings back a directory whose replacement was killed half-way, or deletes what was replaced. Raises OSError."""
    left = backup_path(final)
    if final.exists():
        shutil.rmtree(left, ignore_errors=True)
    elif left.exists():
        left.rename(final)


def sync_directory(path: Path) -> None:
    """Has the names in a directory written to the disk, where the system can do so."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
