"""The page: what was found, and the templates in page/ that show it. It needs nothing from anywhere else."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.reporting.charts import Chart
from eupmim_dist.reporting.curves import Group
from eupmim_dist.reporting.examples import SHOWN_HISTORY, SHOWN_TARGETS, Example, Served
from eupmim_dist.reporting.figures import METRICS, Plot, Row
from eupmim_dist.reporting.item_map import ItemMap
from eupmim_dist.reporting.metrics import Spent
from eupmim_dist.reporting.runs import ReportedRun
from eupmim_dist.reporting.settings import Difference
from eupmim_dist.telemetry.progress import duration

NUM_STYLES = 8
"""Colours of the style sheet."""


@dataclass(frozen=True)
class Content:
    """All that a page shows; lists of runs are in the same order, None for a run that has nothing of the kind."""

    store: InteractionStore
    split: str
    protocol: str
    top_n: int
    num_users: int
    runs: list[ReportedRun]
    rows: list[Row]
    """Of runs with a checkpoint, then of baselines."""
    plots: list[Plot]
    groups: list[Group]
    examples: list[Example]
    served: list[list[Served] | None]
    maps: list[ItemMap]
    spent: list[Spent | None]
    bytes_sent: list[dict[str, float] | None]
    """By a rank in a step, by kind of exchange; None of runs on one rank."""
    differences: list[Difference]
    notes: list[str]
    version: str


def render(content: Content) -> str:
    """The page as HTML. Whatever comes from data is escaped."""
    environment = Environment(
        loader=PackageLoader("eupmim_dist.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": moment, "style": style, "figure": figure, "data": data}
    text = environment.get_template("page.html").render(
        page=content,
        metrics=METRICS,
        made=datetime.now(UTC).timestamp(),
        ended=[run.metrics.times for run in content.runs],
        shown_history=SHOWN_HISTORY,
        shown_targets=SHOWN_TARGETS,
    )
    return text.encode("utf-8", "replace").decode()  # a name may hold half a surrogate pair


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):  # of a damaged line
        return "at an unknown time"


def style(number: int) -> str:
    """The classes of the colour and the dash of a run or an interest, counted from 0."""
    return f"c{number % NUM_STYLES}"


def figure(value: float) -> str:
    return f"{value:.4f}"


def data(chart: Chart) -> Markup:
    """What a pointer over a chart shows, as an attribute's value."""
    lines = [[line.name, style(line.style), line.points] for line in chart.lines]
    return Markup("{}").format(json.dumps(lines, separators=(",", ":")))
