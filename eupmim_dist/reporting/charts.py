"""Numbers as the coordinates of SVG: scales with round ticks, lines, and what a pointer over them shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eupmim_dist.reporting.metrics import Points

WIDTH, HEIGHT = 360, 200
"""Of a chart, in the units of its viewBox."""
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22
MOST_POINTS = 300
"""Of a line; of more, neighbours are averaged."""
WIDE = 100.0
"""Positive values whose largest is so many times the smallest get a logarithmic scale."""


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Values low..high (low < high) at start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self._own(self.low), self._own(self.high)
        return round(self.start + (self._own(value) - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[Tick]:
        """At round values, at most `most` or a few more."""
        values = _decades(self.low, self.high, most) if self.log else []
        if len(values) < 2:
            values = _round_values(self.low, self.high, most)
        return [Tick(self.at(value), compact(value)) for value in values]

    def _own(self, value: float) -> float:
        return math.log10(value) if self.log else value


def scale_of(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.05) -> Scale:
    """One that holds all of some values, with some room about them."""
    low, high = min(values), max(values)
    if log and low > 0 and high > WIDE * low:
        return Scale(low / 1.2, high * 1.2, start, end, log=True)
    room = (high - low) * margin
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike
        room = margin * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def _round_values(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(times for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    every = max(1, math.ceil((last - first + 1) / most))
    return [10.0**exponent for exponent in range(first, last + 1, every)]


def compact(value: float) -> str:
    """A number of at most 4 digits: 12k, 0.05, 3e-5."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e") if "e" in text else text


@dataclass(frozen=True)
class Series:
    name: str
    style: int
    """Which colour and dash, from 0."""
    points: Points


@dataclass(frozen=True)
class Drawn:
    name: str
    style: int
    path: str
    end: tuple[float, float]
    points: list[tuple[int, float, float, str]]
    """Step, x, y and the value in words, for a pointer."""


@dataclass(frozen=True)
class Chart:
    title: str
    summary: str
    """In a sentence, for those who do not see it."""
    lines: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    log: bool
    legend: bool
    """Whether its lines are not the runs, and so are named beside it."""


def chart(
    title: str,
    series: Sequence[Series],
    *,
    log: bool = False,
    bounds: tuple[float, float] | None = None,
    legend: bool = False,
) -> Chart | None:
    """A line for each series over the steps; None if there is nothing to show. `bounds` are values to hold too."""
    shown = [Series(one.name, one.style, thinned(one.points)) for one in series if one.points]
    if not shown:
        return None
    steps = [step for one in shown for step, _ in one.points]
    values = [value for one in shown for _, value in one.points]
    across = scale_of([0, *steps], LEFT, WIDTH - RIGHT, margin=0.0)
    up = scale_of([*values, *(bounds or ())], HEIGHT - BOTTOM, TOP, log=log)
    drawn = [_drawn(one, across, up) for one in shown]
    told = "; ".join(f"{one.name} from {compact(one.points[0][1])} to {compact(one.points[-1][1])}" for one in shown)
    summary = f"{title} over steps {min(steps):,} to {max(steps):,}: {told}"
    return Chart(title, summary, drawn, across.ticks(4), up.ticks(7), up.log, legend)


def _drawn(series: Series, across: Scale, up: Scale) -> Drawn:
    places = [(step, across.at(step), up.at(value), f"{value:.5g}") for step, value in series.points]
    path = "M" + "L".join(f"{x:g},{y:g}" for _, x, y, _ in places)
    return Drawn(series.name, series.style, path, places[-1][1:3], places)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points, each the mean of neighbours, at the step of the last of them."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]
