"""(d) What a path may lead to: names that are not UTF-8, link loops, pipes, directories for files and the reverse."""

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.roles import READ, WRITTEN, Role

NOT_UTF8 = [os.fsdecode(name) for name in (b"x\xff", b"\xe9t\xe9", b"\xc3", b"x\xed\xa0\x80", b"\xff\xfe")]
TYPED = [
    "",
    ".",
    "..",
    "./",
    "nowhere",
    "nowhere/x",
    "x" * 256,
    "x/" * 2100 + "x",
    "a" * 5000,
    "small.yaml/x",
    "/dev/null/x",
    "/nowhere/x",
]
"""Paths that are typed as they stand; nothing lies there, or the case's own directory."""
WRITTEN_TO = [*TYPED, "/dev/null", "/dev/full"]
KINDS = (
    "pipe",
    "loop",
    "dangling",
    "within",
    "null",
    "socket",
    "empty file",
    "empty directory",
    "other",
    "link",
    "file over it",
)


def replace(path: Path, kind: str) -> None:
    """Puts something else where `path` is."""
    was_directory = path.is_dir()
    with suppress(FileNotFoundError):
        shutil.rmtree(path) if was_directory and not path.is_symlink() else path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "within":  # a link to the directory it is in
            path.symlink_to(".")
        case "null":
            path.symlink_to("/dev/null")
        case "socket":
            _socket(path)
        case "empty file":
            path.write_bytes(b"")
        case "empty directory":
            path.mkdir()
        case "other":  # a file for a directory, a directory for a file
            path.write_text("a file\n") if was_directory else path.mkdir()
        case _:
            path.write_text("a file\n")


def _socket(path: Path) -> None:
    """Bound by a short relative name, as its path may be no longer than 108 bytes."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def draw(place: Place, random: Random) -> Plan:
    match random.choice(["name", "kind", "kind", "part", "part", "part", "typed", "written"]):
        case "name":
            role, name = random.choice([*READ, *WRITTEN]), random.choice(NOT_UTF8)
            return not_utf8(place, role, name, inside=random.random() < 0.3)
        case "kind":
            return another(place, random.choice(READ), random.choice(KINDS))
        case "part":
            role = random.choice([role for role in READ if "." not in (role.artifact or ".")])
            return another_part(place, role, random.choice(KINDS), random)
        case "typed":
            role, path = random.choice(READ), random.choice(TYPED)
            return _typed(place, role, path)
        case _:
            role = random.choice(WRITTEN)
            if random.random() < 0.5:
                kind = random.choice(KINDS)
                replace(place.here / "new", kind)
                return _typed(place, role, "new", f"written to a {kind}")
            paths = WRITTEN_TO if "--json" in role.line else TYPED  # no directory is to take the place of a device
            return _typed(place, role, random.choice(paths))


def _typed(place: Place, role: Role, path: str, what: str = "") -> Plan:
    for needed in role.needs:
        place.take(needed)
    return Plan(f"{what or f'typed {path[:20]!r}'}: {role.line}", [words(role.line, path=path)])


def not_utf8(place: Place, role: Role, name: str, inside: bool = False) -> Plan:
    path = Path(name, role.artifact or "new") if inside else Path(name + role.suffix)
    if inside:
        (place.here / name).mkdir()
    if role.artifact:
        place.take(role.artifact).rename(place.here / path)
    return _typed(place, role, str(path), "not UTF-8")


def another(place: Place, role: Role, kind: str) -> Plan:
    """Something else where the artifact was."""
    assert role.artifact
    taken = place.take(role.artifact)
    if kind == "link":
        taken.rename(place.here / "real")
        taken.symlink_to("real")
        plan = _typed(place, role, role.artifact, kind)
        return Plan(plan.what, plan.commands, must=0)
    replace(taken, kind)
    return _typed(place, role, role.artifact, kind)


def another_part(place: Place, role: Role, kind: str, random: Random) -> Plan:
    """Something else where a file or directory within the artifact was."""
    assert role.artifact
    taken = place.take(role.artifact)
    part = random.choice(sorted(taken.rglob("*")))
    if kind == "link":
        part.rename(place.here / "real")
        part.symlink_to(place.here / "real")
    else:
        replace(part, kind)
    return _typed(place, role, role.artifact, f"{kind} for {part.name}")


def _chosen(line: str, kind: str, part: str | None = None) -> Callable[[Place], Plan]:
    role = next(role for role in READ if role.line.startswith(line))

    def plan(place: Place) -> Plan:
        assert role.artifact
        if part is None:
            return another(place, role, kind)
        replace(place.take(role.artifact) / part, kind)
        return _typed(place, role, role.artifact, f"{kind} for {part}")

    return plan


CHOSEN: Chosen = {
    "pipe": _chosen("evaluate --data {path}", "pipe", "dataset.json"),
    "not-utf-8": lambda place: not_utf8(place, READ[0], NOT_UTF8[0]),
    "loop": _chosen("config show {path}", "loop"),
    "pipe-in-run": _chosen("train --config small.yaml --run-dir {path}", "pipe", "config.yaml"),
    "pipe-as-source": _chosen("prepare {path} --format csv", "pipe"),
    "loop-of-run": _chosen("verify {path}", "loop"),
    "not-utf-8-out": lambda place: not_utf8(place, WRITTEN[0], NOT_UTF8[0]),
}
