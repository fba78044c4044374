"""Which curves a report has: what runs logged, those of all runs in one chart where they can be compared."""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from eupmim_dist.reporting.charts import Chart, Series, chart
from eupmim_dist.reporting.metrics import Metrics
from eupmim_dist.reporting.runs import ReportedRun
from eupmim_dist.telemetry.throughput import SECONDS
from eupmim_dist.train.hooks import BYTES

LOSS, PART, INTERESTS = "loss", "loss/", "interests/"
EVALUATED = re.compile(r"(valid|test)/(\w+)/(.+)")
OTHERS = {
    "gradient_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "samples_per_second": "Samples per second",
    "skipped_steps": "Skipped steps",
}
"""Each has a chart of its own, in this order; those that are not here come last."""
OF_INTERESTS = {"share": "Share of the lists", "norm": "Length of the vectors"}


@dataclass(frozen=True)
class Group:
    title: str
    about: str
    charts: list[Chart]


def groups_of(runs: Sequence[ReportedRun]) -> list[Group]:
    """The charts of a report, without those that no run has anything for."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics.names()))
    parts = [name for name in names if name.startswith(PART) and _ever(runs, name)]
    evaluated = [name for name in names if EVALUATED.fullmatch(name)]
    others = [*OTHERS, *(name for name in names if _is_other(name))]
    groups = [
        Group("Loss", _about_losses(runs), [
            found for name in [LOSS, *(parts if len(parts) > 1 else [])] for found in _of_one_scale(runs, name)
        ]),
        Group("Evaluations while training", "On the split and by the protocol that each title names.", [
            found for name in evaluated for found in _overlaid(runs, _evaluated(name), name)
        ]),
        Group("Training", "Means over the steps between two lines of the log.", [
            found for name in others for found in _overlaid(runs, OTHERS.get(name, name), name)
            if name != "skipped_steps" or _ever(runs, name)
        ]),
        Group(
            "Interests",
            "Of the places in the recommended lists, how many each interest fills; how long its vectors are; and how "
            "alike two interests of a user are: at a cosine of 1 they are the same.",
            [*_overlaid(runs, "Mean cosine between interests", f"{INTERESTS}cosine"), *_by_interest(runs)],
        ),
    ]  # fmt: skip
    return [group for group in groups if group.charts]


def _overlaid(runs: Sequence[ReportedRun], title: str, name: str, only: Container[int] | None = None) -> list[Chart]:
    series = [
        Series(run.name, number, run.metrics.points(name))
        for number, run in enumerate(runs)
        if only is None or number in only
    ]
    return _found(chart(title, series, log=name == "gradient_norm"))


def _of_one_scale(runs: Sequence[ReportedRun], name: str) -> Iterable[Chart]:
    """A chart for each kind of loss: of another objective, or of more negatives, a lower one is no better one."""
    kinds = _kinds_of_loss(runs)
    for numbers in kinds:
        of_kind = f", {', '.join(runs[number].name for number in numbers)}" if len(kinds) > 1 else ""
        yield from _overlaid(runs, f"{_loss_part(name)}{of_kind}", name, only=numbers)


def _kinds_of_loss(runs: Sequence[ReportedRun]) -> list[list[int]]:
    """The numbers of runs whose losses are the same function of what a model says, together."""
    kinds: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        settings = run.config.task.name, run.config.objective.model_dump(mode="json")
        kinds.setdefault(repr(settings), []).append(number)
    return list(kinds.values())


def _about_losses(runs: Sequence[ReportedRun]) -> str:
    about = "What training minimises, and the parts that it is the sum of."
    if len(_kinds_of_loss(runs)) > 1:
        about += " These runs differ in objective, its settings or the task: such losses do not compare."
    return about


def _by_interest(runs: Sequence[ReportedRun]) -> Iterable[Chart]:
    for run in runs:
        of_run = f", {run.name}" if len(runs) > 1 else ""
        for kind, title in OF_INTERESTS.items():
            series = [
                Series(f"interest {k}", k - 1, run.metrics.points(f"{INTERESTS}{kind}_{k}"))
                for k in range(1, _num_interests(run.metrics, kind) + 1)
            ]
            yield from _found(chart(f"{title}{of_run}", series, bounds=(0, 1 if kind == "share" else 0), legend=True))


def _num_interests(metrics: Metrics, kind: str) -> int:
    found = (re.fullmatch(rf"{INTERESTS}{kind}_([0-9]{{1,3}})", name) for name in metrics.names())
    return max((int(name[1]) for name in found if name), default=0)


def _found(one: Chart | None) -> list[Chart]:
    return [] if one is None else [one]


def _ever(runs: Sequence[ReportedRun], name: str) -> bool:
    return any(value for run in runs for _, value in run.metrics.points(name))


def _is_other(name: str) -> bool:
    known = name in OTHERS or name == LOSS or name.startswith((PART, INTERESTS, SECONDS, BYTES))
    return not known and not EVALUATED.fullmatch(name)


def _loss_part(name: str) -> str:
    return f"Loss: {name.removeprefix(PART).replace('_', ' ')}" if name.startswith(PART) else "Loss"


def _evaluated(name: str) -> str:
    split, protocol, metric = name.split("/", 2)
    return f"{metric.replace('_', ' ')}, {split}, {protocol}"
