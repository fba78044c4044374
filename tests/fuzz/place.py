"""A case's directory, in which its command lines run: copies of base artifacts, of which one is changed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Plan:
    """What to run once the directory is there. A later command runs if the one before ended with 0."""

    what: str
    """The change, in a few words."""
    commands: list[list[str]]
    must: int | None = None
    """The exit code of the first command, where only one will do: 0 if nothing is wrong with what it is given."""


@dataclass(frozen=True)
class Place:
    base: Path
    """With one of each artifact (artifacts.py), to be copied."""
    here: Path
    """The directory of the case."""

    def take(self, *names: str) -> Path:
        """Copies artifacts; returns where the first one lies."""
        for name in names:
            source, copy = self.base / name, self.here / name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
        return self.here / names[0]


Draw = Callable[[Place, Random], Plan]
Chosen = dict[str, Callable[[Place], Plan]]


@dataclass(frozen=True)
class Kind:
    """A family of mutations: one drawn by chance, and some that were chosen by hand."""

    title: str
    draw: Draw
    chosen: Chosen


def words(line: str, **values: str) -> list[str]:
    """A command line cut at blanks, then with `{name}` replaced, whatever blanks the values hold."""
    found = []
    for word in line.split():
        for name, value in values.items():
            word = word.replace("{" + name + "}", value)
        found.append(word)
    return found


Seen = dict[str, tuple[int, int, int]]


def seen(directory: Path) -> Seen:
    """Every path below, with what changes when it is written: time, size and inode."""
    found: Seen = {}
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found[os.path.relpath(path, directory)] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found
