"""Cases: which change a name or a number stands for, and running many of them."""

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

from tests.fuzz import integers, metadata, names, paths, settings, stores, text
from tests.fuzz.judging import judged
from tests.fuzz.place import Kind, Place, Plan
from tests.fuzz.running import Ended, run_plan

KINDS = {
    "a": Kind("settings", settings.draw, settings.CHOSEN),
    "b": Kind("paths", paths.draw, paths.CHOSEN),
    "c": Kind("text", text.draw, text.CHOSEN),
    "d": Kind("names", names.draw, names.CHOSEN),
    "e": Kind("metadata", metadata.draw, metadata.CHOSEN),
    "f": Kind("stores", stores.draw, stores.CHOSEN),
    "g": Kind("numbers", integers.draw, integers.CHOSEN),
}


@dataclass(frozen=True)
class Outcome:
    name: str
    what: str
    ended: list[Ended]
    bad: list[tuple[str, str]]

    @property
    def kind(self) -> str:
        return kind_of(self.name)

    def line(self, ended: Ended) -> str:
        """As typed, long words cut."""
        cut = [word if len(word) < 120 else f"{word[:60]}...{len(word)} characters" for word in ended.words]
        return shlex.join(["eupmim-dist", *cut])


def kind_of(name: str) -> str:
    """A number's kind goes round, so that each has an equal share."""
    return "abcdefg"[int(name) % 7] if name.isdigit() else name[0]


def chosen_cases(most: int) -> list[str]:
    """The names of up to `most` of each kind."""
    return [f"{letter}/{name}" for letter, kind in KINDS.items() for name in list(kind.chosen)[:most]]


def run_case(name: str, seed: int, place: Path, keep: Path | None, debug: bool = False) -> Outcome:
    """A number stands for what is drawn for it and the seed; a name for what was chosen."""
    kind = KINDS[kind_of(name)]

    def build(where: Place) -> Plan:
        if name.isdigit():
            return kind.draw(where, Random(f"{seed} {name}"))
        return kind.chosen[name.partition("/")[2]](where)

    root = place / f"case-{name.replace('/', '-')}"
    try:
        plan, ended = run_plan(build, place / "base", root, debug)
        bad = judged(plan, ended, root / "here")
    except BaseException as error:
        raise RuntimeError(f"case {name}, seed {seed}: {error}") from error
    if bad and keep:
        shutil.rmtree(keep / root.name, ignore_errors=True)
        root.rename(keep / root.name)
    shutil.rmtree(root, ignore_errors=True)
    return Outcome(name, plan.what, ended, bad)


def run_cases(names: list[str], seed: int, place: Path, jobs: int, keep: Path | None) -> Iterator[Outcome]:
    """In `jobs` forks of this process, as they end."""
    context = get_context("fork")
    pipes: list[Connection] = []
    workers = []
    for number in range(jobs):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(theirs, names[number::jobs], seed, place, keep), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    left = len(names)
    while pipes:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                outcome = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                continue
            left -= 1
            yield outcome
    if left:
        raise RuntimeError(f"{left} cases were not run; the reason is above")


def _work(pipe: Connection, names: list[str], seed: int, place: Path, keep: Path | None) -> None:
    os.chdir(place)
    for name in names:
        pipe.send(run_case(name, seed, place, keep))
