"""Files and directories that are there whole or not at all."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from eupmim_dist import files
from eupmim_dist.errors import UserError
from eupmim_dist.files import (
    backup_path,
    check_out,
    is_there,
    new_directory,
    out_directory,
    put_back,
    read_text,
    real,
    replace_directory,
    replace_text,
    write_text,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def holding(directory: Path, content: str) -> Path:
    directory.mkdir()
    (directory / "file").write_text(content)
    return directory


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_text_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluation.json"
    write_text(path, "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be written: No space left on device"):
        write_text(path, "after")
    assert names(tmp_path) == ["evaluation.json"]
    assert path.read_text() == "before"


def test_a_text_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    path, link = tmp_path / "secret.json", tmp_path / "link.json"
    replace_text(path, "before")
    path.chmod(0o600)
    link.symlink_to("secret.json")
    replace_text(link, "after")
    assert link.is_symlink()
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["link.json", "secret.json"]


def test_a_pipe_is_written_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    replace_text(path, "all of it")
    reader.join()
    assert read == ["all of it"]
    assert path.is_fifo()


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: cannot be written: is a pipe that nobody reads"):
        write_text(tmp_path / "pipe", "x")


def test_a_file_in_a_directory_that_takes_no_new_ones_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "given.json"
    path.write_text("before")
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write wherever others may not
    replace_text(path, "after")
    assert (path.read_text(), path.stat().st_ino) == ("after", inode)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_directory_is_there_when_it_is_whole(tmp_path: Path, earlier: bool) -> None:
    final = tmp_path / "final"
    if earlier:
        holding(final, "before")
    holding(tmp_path / ".final.incomplete", "left by what was killed")

    def fails() -> None:
        with new_directory(final, replace=True) as staging:
            assert not list(staging.iterdir())
            (staging / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert names(tmp_path) == (["final"] if earlier else [])
    assert not earlier or (final / "file").read_text() == "before"
    with new_directory(final, replace=True) as staging:
        (staging / "file").write_text("whole")
    assert names(tmp_path) == ["final"]
    assert (final / "file").read_text() == "whole"


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def meanwhile() -> None:
        with new_directory(tmp_path / "final"):
            holding(tmp_path / "final", "another's")

    with pytest.raises(OSError, match="not empty"):
        meanwhile()
    assert names(tmp_path) == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "another's"


def test_a_directory_is_made_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "link").symlink_to("large")
    with out_directory(tmp_path / "link") as staging:
        (staging / "file").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "large") == ["file"]


def test_reading_and_writing_are_told_apart(tmp_path: Path) -> None:
    def read(file: Path) -> None:
        with out_directory(tmp_path / "out"):
            file.read_text()

    with pytest.raises(UserError, match=r"^.*gone\.txt: cannot be read: No such file"):
        read(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"^.*out: cannot be written: No such file"):
        read(tmp_path / ".out.incomplete" / "gone.txt")
    holding(tmp_path / "out", "x")
    with pytest.raises(UserError, match="out: already exists; give another out"):
        read(tmp_path / "gone.txt")


def test_a_replacement_that_fails_is_undone(tmp_path: Path) -> None:
    final = holding(tmp_path / "final", "before")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "nothing", final)
    assert names(tmp_path) == ["final"]
    assert (final / "file").read_text() == "before"


def test_a_replacement_that_was_killed_half_way_is_put_back_or_done_with(tmp_path: Path) -> None:
    final = holding(tmp_path / "final", "before")
    put_back(final)
    assert names(tmp_path) == ["final"]
    final.rename(backup_path(final))
    put_back(final)
    assert (final / "file").read_text() == "before"
    holding(backup_path(final), "older")
    put_back(final)
    assert names(tmp_path) == ["final"]
    assert (final / "file").read_text() == "before"


def test_texts_that_end_are_read_and_no_others(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    shared = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path  # no pipe of a shell's either
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        os.mkfifo(beside := Path(directory, "pipe"))
        for path in (tmp_path / "pipe", beside, Path("/dev/zero"), tmp_path, tmp_path / "none"):
            with pytest.raises(OSError, match=r"pipe|device|directory"):
                read_text(path)
    assert read_text(Path("/dev/null")) == ""
    read, write = os.pipe()
    os.write(write, b"given by a shell")
    os.close(write)
    assert read_text(Path(f"/dev/fd/{read}")) == "given by a shell"
    os.close(read)


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("later")
    assert real(tmp_path / "dangling") == tmp_path.resolve() / "later"
    assert is_there(tmp_path / "loop")
    assert not is_there(tmp_path / "none")
    for path in (tmp_path / "loop", tmp_path / "loop" / "new"):
        with pytest.raises(OSError, match="symbolic links"):
            real(path)
        with pytest.raises(UserError, match="cannot be written: Too many levels of symbolic links"):
            write_text(path, "x")
        with pytest.raises(UserError, match="cannot be written: Too many levels of symbolic links"):
            check_out(path)
    check_out(tmp_path / "dangling")
    assert names(tmp_path) == ["dangling", "loop"]
