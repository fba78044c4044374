"""The table at the end: runs and baselines on the same users, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eupmim_dist import assemble
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.baselines import choose_history
from eupmim_dist.evaluation.interest_use import InterestUse
from eupmim_dist.evaluation.runner import Result, evaluate_by, ranking_of
from eupmim_dist.evaluation.scorers.interface import make_scorer
from eupmim_dist.evaluation.statistics import bootstrap_intervals
from eupmim_dist.parallel.world import World
from eupmim_dist.reporting.charts import Scale, Tick
from eupmim_dist.reporting.runs import ReportedRun
from eupmim_dist.telemetry.progress import task_progress

PROTOCOL = "strict"
METRICS = ("recall", "ndcg", "hit_rate", "precision")


@dataclass(frozen=True)
class Figure:
    mean: float
    low: float
    high: float
    """The 95 % interval over users."""


@dataclass(frozen=True)
class Row:
    model: str
    style: int | None
    """Of a run its colour; None for a baseline."""
    about: str
    figures: dict[str, Figure]
    """By METRICS."""
    interests: InterestUse | None


def row_of(name: str, style: int | None, about: str, result: Result, top_n: int) -> Row:
    """A row of a result that has what each user got."""
    assert result.per_user is not None
    names = [f"{metric}@{top_n}" for metric in METRICS]
    with task_progress(f"{name}: intervals over users"):
        intervals = bootstrap_intervals(np.stack([result.per_user.metrics[key] for key in names], axis=1))
    figures = {
        metric: Figure(result.metrics[key], *interval)
        for metric, key, interval in zip(METRICS, names, intervals, strict=True)
    }
    return Row(name, style, about, figures, result.interests)


def baseline_rows(
    names: Sequence[str], runs: Sequence[ReportedRun], store: InteractionStore, split: str, top_n: int, world: World
) -> list[Row]:
    """They leave out what the first run does."""
    config = Config()
    config.evaluation.exclude_seen = runs[0].config.evaluation.exclude_seen
    setup = assemble.without_model(config, world, store)
    rows = []
    for name in names:
        scorer = make_scorer(name, ranking_of(setup))
        choose_history(scorer, name, setup, top_n)
        result = evaluate_by(scorer, name, setup, split, PROTOCOL, [top_n], progress=True, per_user=True)
        read = "" if result.history is None else f", by the last {result.history} items"
        rows.append(row_of(name, None, f"baseline{read}", result, top_n))
    return rows


@dataclass(frozen=True)
class Bar:
    """A row of a plot; places in percent of its width."""

    row: Row
    figure: Figure
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    metric: str
    bars: list[Bar]
    ticks: list[Tick]


def plot_of(rows: Sequence[Row], metric: str) -> Plot:
    """Dots and intervals of one metric, the best first, on a scale from 0."""
    best = sorted(rows, key=lambda row: -row.figures[metric].mean)
    scale = Scale(0.0, max(row.figures[metric].high for row in rows) * 1.05 or 1.0, 0.0, 100.0)
    bars = []
    for row in best:
        figure = row.figures[metric]
        bars.append(Bar(row, figure, scale.at(figure.mean), scale.at(figure.low), scale.at(figure.high)))
    return Plot(metric, bars, scale.ticks(5))
