"""Evaluations of models -> rows of a table: means over seeds, intervals and tests over users, best first.

n users, S seeds, m figures.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from eupmim_dist.comparison.effort import Effort
from eupmim_dist.evaluation.generation.likeness import ROUGES
from eupmim_dist.evaluation.runner import Result
from eupmim_dist.evaluation.statistics import bootstrap_intervals, holm, paired_p_value
from eupmim_dist.evaluation.topn import NO_ITEM

METRICS = ("recall", "ndcg", "hit_rate")
"""Of lists; of texts there are the ROUGES. The first orders the rows and is tested."""
Kind = Literal["trained", "configuration", "baseline"]


@dataclass(frozen=True)
class Measured:
    """One model, of one seed, on the split."""

    model: str
    kind: Kind
    seed: int | None
    """None of what was not trained here."""
    per_user: dict[str, np.ndarray] = field(repr=False)  # float64 [n] of each metric
    others: dict[str, float]
    """Of all users together, as Row has them."""
    interests: float | None
    num_interests: int | None
    history: int | None
    parameters: tuple[int, int] | None
    """Of the dense network and of the tables."""
    effort: Effort
    users_per_second: float


@dataclass(frozen=True)
class Figure:
    """A metric of a row."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval over users."""
    std: float | None
    """Over seeds, where there are several."""


@dataclass(frozen=True)
class Row:
    model: str
    kind: Kind
    seeds: list[int]
    """Those it was trained with here."""
    figures: dict[str, Figure]
    """By METRICS, or by the ROUGES of what was written."""
    p_value: float | None
    """Of a first figure like the best one's, corrected for the number of rows; None of the best."""
    others: dict[str, float]
    """Of lists `coverage`, the share of the catalogue that is in somebody's list, and with categories `diversity`, the
    share of pairs of a list that differ in category. Of texts `bleu_1`, `bleu_4` and `different`, how many
    different texts there are, as a share of all."""
    interests: float | None
    """How many interests fill the lists, effectively: 1 if one does, K if all do alike; None of models with one."""
    num_interests: int | None
    history: int | None
    """How many of a history's last items a baseline read."""
    dense_parameters: int | None
    table_parameters: int | None
    train_seconds: float | None
    """Of a training, without its evaluations and checkpoints; of a baseline, to make it."""
    steps: float | None
    users_per_second: float
    """In the evaluation; of texts, these."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a metric's figure by its name."""
        content = asdict(self)
        figures, others = content.pop("figures"), content.pop("others")
        first = {name: content.pop(name) for name in ("model", "kind", "seeds")}
        return first | figures | others | content


def measured(
    model: str,
    kind: Kind,
    seed: int | None,
    result: Result,
    num_items: int,
    parameters: tuple[int, int] | None,
    effort: Effort,
    seconds: float,
) -> Measured:
    """What an evaluation in `seconds` gave, with one cut-off and the users' own values."""
    per_user, others = _of_lists(result, num_items) if result.texts is None else _of_texts(result)
    share = None if result.interests is None else result.interests.share
    return Measured(
        model,
        kind,
        seed,
        per_user,
        others,
        interests=None if share is None else effective_number(share),
        num_interests=None if share is None else len(share),
        history=result.history,
        parameters=parameters,
        effort=effort,
        users_per_second=result.users / seconds if seconds > 0 else 0.0,
    )


def _of_lists(result: Result, num_items: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    assert result.per_user is not None
    by_name = {name.partition("@")[0]: name for name in result.metrics}
    listed = result.per_user.ranked[result.per_user.ranked != NO_ITEM]
    others = {"coverage": len(np.unique(listed)) / num_items}
    others |= {name: result.metrics[by_name[name]] for name in ("diversity",) if name in by_name}
    return {name: result.per_user.metrics[by_name[name]] for name in METRICS}, others


def _of_texts(result: Result) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    assert result.texts is not None
    others = {name: result.metrics[name] for name in ("bleu_1", "bleu_4")}
    others["different"] = result.texts["written"].n_unique() / len(result.texts)
    return {name: result.texts[name].to_numpy() for name in ROUGES.values()}, others


def effective_number(share: Sequence[float]) -> float:
    """exp of the entropy of shares that are 1 in all."""
    used = np.array([part for part in share if part > 0])
    return float(np.exp(-(used * np.log(used)).sum()))


def rows_of(models: Sequence[Sequence[Measured]]) -> list[Row]:
    """A row for each model, whose evaluations differ by seed; best first, equals as they were given."""
    first, *_ = metrics = list(models[0][0].per_user)
    values = np.stack([_of_users(seeds, metric) for seeds in models for metric in metrics], axis=1)
    intervals = iter(bootstrap_intervals(values))
    figures = [{metric: _figure(seeds, metric, next(intervals)) for metric in metrics} for seeds in models]
    order = sorted(range(len(models)), key=lambda place: -figures[place][first].mean)
    best, *others = [_of_users(models[place], first) for place in order]
    p_values = [None, *holm([paired_p_value(best, other) for other in others])]
    return [_row(models[place], figures[place], p) for place, p in zip(order, p_values, strict=True)]


def _of_users(seeds: Sequence[Measured], metric: str) -> np.ndarray:
    """Each user's mean over the seeds: float64 [n]."""
    return np.mean([one.per_user[metric] for one in seeds], axis=0)


def _figure(seeds: Sequence[Measured], metric: str, interval: tuple[float, float]) -> Figure:
    means = [one.per_user[metric].mean() for one in seeds]
    return Figure(float(np.mean(means)), *interval, float(np.std(means, ddof=1)) if len(means) > 1 else None)


def _row(seeds: Sequence[Measured], figures: dict[str, Figure], p_value: float | None) -> Row:
    first = seeds[0]
    dense, tables = first.parameters or (None, None)
    return Row(
        model=first.model,
        kind=first.kind,
        seeds=[one.seed for one in seeds if one.seed is not None],
        figures=figures,
        p_value=p_value,
        others={name: float(np.mean([one.others[name] for one in seeds])) for name in first.others},
        interests=_mean([one.interests for one in seeds]),
        num_interests=first.num_interests,
        history=first.history,
        dense_parameters=dense,
        table_parameters=tables,
        train_seconds=_mean([one.effort.seconds for one in seeds]),
        steps=_mean([one.effort.steps for one in seeds]),
        users_per_second=float(np.mean([one.users_per_second for one in seeds])),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
