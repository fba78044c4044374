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


@dataclass(frozen=True)
class Evaluated:
    """A row without its intervals."""

    model: str
    style: int | None
    about: str
    means: dict[str, float]
    of_users: np.ndarray  # float64 [n, METRICS]
    interests: InterestUse | None


def evaluated(name: str, style: int | None, about: str, result: Result, top_n: int) -> Evaluated:
    """Of a result that has what each user got."""
    assert result.per_user is not None
    keys = {metric: f"{metric}@{top_n}" for metric in METRICS}
    means = {metric: result.metrics[key] for metric, key in keys.items()}
    of_users = np.stack([result.per_user.metrics[key] for key in keys.values()], axis=1)
    return Evaluated(name, style, about, means, of_users, result.interests)


def rows_of(found: Sequence[Evaluated]) -> list[Row]:
    """All intervals from the same draws of users: for the time of one."""
    if not found:
        return []
    with task_progress("intervals over users"):
        intervals = iter(bootstrap_intervals(np.concatenate([one.of_users for one in found], axis=1)))
    return [
        Row(
            one.model,
            one.style,
            one.about,
            {metric: Figure(mean, *next(intervals)) for metric, mean in one.means.items()},
            one.interests,
        )
        for one in found
    ]


def evaluated_baselines(
    names: Sequence[str],
    runs: Sequence[ReportedRun],
    store: InteractionStore,
    split: str,
    protocol: str,
    top_n: int,
    world: World,
) -> list[Evaluated]:
    """They leave out what the first run does."""
    config = Config()
    config.evaluation.exclude_seen = runs[0].config.evaluation.exclude_seen
    setup = assemble.without_model(config, world, store)
    found = []
    for name in names:
        scorer = make_scorer(name, ranking_of(setup))
        choose_history(scorer, name, setup, top_n, protocol)
        result = evaluate_by(scorer, name, setup, split, protocol, [top_n], progress=True, per_user=True)
        read = "" if result.history is None else f", by the last {result.history} item{'s' * (result.history != 1)}"
        found.append(evaluated(name, None, f"baseline{read}", result, top_n))
    return found


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
