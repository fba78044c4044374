"""What came of many cases: progress, a table by kind, and the bad answers grouped by what they say."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz.cases import KINDS, Outcome
from tests.fuzz.judging import where

COLUMNS = "{:<14}{:>8}{:>8}{:>8}{:>8}"


@dataclass
class Group:
    """Bad answers that are alike; the first one is told."""

    first: Outcome
    detail: str
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    place: str = ""
    """Where in the program it was raised."""


class Tally:
    def __init__(self, total: int) -> None:
        self.total, self.started, self.shown = total, time.monotonic(), 0.0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.groups: dict[tuple[str, str], Group] = {}

    def add(self, outcome: Outcome) -> None:
        answer = "bad" if outcome.bad else "exit 0" if outcome.ended[-1].code == 0 else "exit 2"
        self.counts[outcome.kind, answer] += 1
        for kind, detail in outcome.bad:
            key = (kind, _normalised(kind, detail, outcome))
            group = self.groups.setdefault(key, Group(outcome, detail))
            group.count += 1
            group.kinds[outcome.kind] += 1
        done, now = self.counts.total(), time.monotonic()
        if now > self.shown + (1 if sys.stdout.isatty() else 10) or done == self.total:
            self.shown = now
            bad = sum(number for (_, answer), number in self.counts.items() if answer == "bad")
            left = (now - self.started) / done * (self.total - done)
            end = "\r" if sys.stdout.isatty() and done < self.total else "\n"
            print(
                f"{done:,} of {self.total:,} cases, {bad} answered badly, {left / 60:.0f} min left", end=end, flush=True
            )

    def find_places(self, again: Callable[[str], Outcome]) -> None:
        """Runs the first case of each group once more, for a traceback."""
        for (kind, _), group in self.groups.items():
            if kind in ("exit code", "memory", "traceback"):
                group.place = where(again(group.first.name).ended[-1].error)
            elif kind == "hang":
                group.place = group.detail

    def text(self) -> str:
        lines = ["", COLUMNS.format("change of", "cases", "exit 0", "exit 2", "bad")]
        for letter, title in [*((letter, f"({letter}) {kind.title}") for letter, kind in KINDS.items()), ("", "all")]:
            numbers = [
                sum(number for (of, found), number in self.counts.items() if of.startswith(letter) and found == answer)
                for answer in ("exit 0", "exit 2", "bad")
            ]
            lines.append(COLUMNS.format(title, sum(numbers), *numbers))
        for (kind, _), group in sorted(self.groups.items(), key=lambda item: -item[1].count):
            first = group.first
            letters = ", ".join(sorted(group.kinds))
            lines += ["", f"{group.count} x {kind} ({letters}): --case {first.name}, {group.detail}"]
            lines.append(f"    {_cut(first.what)}")
            lines += [f"    $ {_cut(first.line(ended), 400)}" for ended in first.ended]
            lines += [f"    {_cut(line, 300)}" for line in _last_lines(first)]
            if group.place:
                lines.append(f"    at {group.place}")
        return "\n".join(lines) + "\n"


def _last_lines(outcome: Outcome) -> list[str]:
    ended = outcome.ended[-1]
    lines = [line for line in ended.error.splitlines() if line.strip()]
    return [] if ended.hung else lines[-2:]


def _normalised(kind: str, detail: str, outcome: Outcome) -> str:
    """What is alike in answers that differ in names and numbers."""
    if kind in ("hang", "half-written", "not finite"):
        return re.sub(r":\d+", "", f"{outcome.ended[-1].words[0]} {detail}") if kind != "hang" else detail
    line = ([""] + [line for line in outcome.ended[-1].error.splitlines() if line.strip()])[-1][:600]
    line = re.sub(r"(['\"`]).*?\1", "Q", line)
    line = re.sub(r"\S*(/|\\ud|[^\0-\x7f])\S*", "PATH", line)
    line = re.sub(r"(.)\1{9,}", "REPEATED", line)
    return re.sub(r"\d[\d,.e+]*", "N", line)


def _cut(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"
