"""What a run wrote to its metrics.jsonl while it trained: curves, and where its time went."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eupmim_dist.errors import mistake_of

Points = list[tuple[int, float]]
"""Steps, ascending, and a value at each."""
RATE = "samples_per_second"
"""What every line about training has, and no other."""


@dataclass(frozen=True)
class Line:
    step: int
    time: float | None
    """Seconds since 1970."""
    values: dict[str, float]


@dataclass(frozen=True)
class Metrics:
    lines: list[Line] = field(default_factory=list)
    """As they were written."""
    skipped: int = 0
    """Lines that could not be read."""
    missing: str | None = None
    """Why there are none."""

    @property
    def last_step(self) -> int:
        return max((line.step for line in self.lines), default=0)

    @property
    def times(self) -> list[float]:
        return [line.time for line in self.lines if line.time is not None]

    @cached_property
    def _by_name(self) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for line in self.lines:
            for name, value in line.values.items():
                found.setdefault(name, {})[line.step] = value
        return found

    def names(self) -> list[str]:
        """What was logged, in the order of its first appearance."""
        return list(self._by_name)

    def points(self, name: str) -> Points:
        """One value over the steps; the later one where a step was logged twice."""
        return sorted(self._by_name.get(name, {}).items())


def read_metrics(file: Path) -> Metrics:
    """Reads what can be read; a line that is cut short or is none of a run's is counted."""
    if not file.is_file():
        return Metrics(missing="there is no metrics.jsonl")
    lines, skipped = [], 0
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            for text in stream:
                if text.strip():
                    line = _line(text)
                    lines += [] if line is None else [line]
                    skipped += line is None
    except OSError as error:
        return Metrics(missing=str(mistake_of(error) or error))
    return Metrics(lines, skipped)


def _line(text: str) -> Line | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    if not isinstance(step, int) or not 0 <= step < 2**53:
        return None
    numbers = {name: float(value) for name, value in content.items() if _finite(value)}
    return Line(step, numbers.pop("time", None), {name: numbers[name] for name in numbers if name != "step"})


def _finite(value: Any) -> bool:
    """Whether it is a number that a chart can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


@dataclass(frozen=True)
class Spent:
    """Seconds between the first and the last line of a metrics.jsonl."""

    training: float
    """As the logged speeds have it."""
    evaluation: float | None
    """None where it cannot be told from the rest: the steps of evaluations are not among those logged."""
    rest: float
    """Checkpoints, and any time in which the run was not going."""
    longest_gap: float
    """The longest part of `rest` in one piece."""

    @property
    def total(self) -> float:
        return self.training + (self.evaluation or 0.0) + self.rest


def spent(lines: Sequence[Line], batch_size: int) -> Spent | None:
    """Where the time went; None where the lines do not tell it.

    A line about training tells the speed of the steps since the one before it, without what else was done meanwhile.
    An evaluation is logged when it ends; it began when the line about training of the same step was written.
    """
    timed = [line for line in lines if line.time is not None]
    training = evaluation = rest = gap = 0.0
    aligned = True
    before: Line | None = None
    """The last line about training."""
    within = 0.0
    """Seconds of evaluations since then."""
    for line in timed:
        assert line.time is not None
        rate = line.values.get(RATE)
        if before is None or before.time is None:
            before = line if rate else None
            continue
        if rate is None:
            aligned = aligned and line.step == before.step
            within = max(within, line.time - before.time) if line.step == before.step else within
            continue
        steps, elapsed = line.step - before.step, line.time - before.time
        if steps > 0 and elapsed > 0 and rate > 0:
            busy = min(steps * batch_size / rate, elapsed)
            judged = min(within, elapsed - busy)
            other = elapsed - busy - judged
            training, evaluation, rest, gap = training + busy, evaluation + judged, rest + other, max(gap, other)
        before, within = line, 0.0
    evaluation += within
    if not training or not math.isfinite(training + evaluation + rest):
        return None
    return Spent(training, evaluation if aligned else None, rest + (0.0 if aligned else evaluation), gap)
