"""What a run wrote to its metrics.jsonl while it trained: curves, and where its time went."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eupmim_dist.errors import mistake_of
from eupmim_dist.telemetry.throughput import SECONDS
from eupmim_dist.train.hooks import BYTES

Points = list[tuple[int, float]]
"""Steps, ascending, and a value at each."""


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
    """Seconds between the first and the last line of a metrics.jsonl, and those before the first that it tells of."""

    training: float
    evaluation: float
    checkpoints: float
    rest: float
    """Any time in which the run was not going, and what callbacks did."""

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.checkpoints + self.rest


def spent(metrics: Metrics) -> Spent | None:
    """Where the time went; None where the lines do not tell it."""
    training, evaluation, checkpoints = (
        math.fsum(line.values.get(SECONDS + kind, 0.0) for line in metrics.lines)  # a step may have several
        for kind in ("training", "evaluation", "checkpoint")
    )
    if training <= 0 or not metrics.times:
        return None
    first = next(line for line in metrics.lines if line.time is not None)
    before = sum(value for name, value in first.values.items() if name.startswith(SECONDS))
    elapsed = metrics.times[-1] - metrics.times[0] + before
    return Spent(training, evaluation, checkpoints, max(0.0, elapsed - training - evaluation - checkpoints))


def bytes_sent(metrics: Metrics) -> dict[str, float] | None:
    """What a rank sent in a step, by kind of exchange, on average over the lines; None where they do not tell it."""
    kinds = [name for name in metrics.names() if name.startswith(BYTES)]
    if not kinds:
        return None
    of_kind = {name: [value for _, value in metrics.points(name)] for name in kinds}
    return {name.removeprefix(BYTES): math.fsum(values) / len(values) for name, values in of_kind.items()}
