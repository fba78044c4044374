"""What a search gives: its trials, the best settings, and what decided."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from eupmim_dist.config.schema import Config
from eupmim_dist.telemetry.progress import duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_FILE = "best.yaml"
MOST_SHOWN = 5
LONGEST_REASON = 160
"""Characters in a line; `Trial.reason` has all."""


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    """From 1."""
    state: str
    """`done`, `pruned`, `invalid` (settings that cannot be trained, or diverged), `failed` or `unfinished`."""
    value: float | None
    """The best of the metric on the valid split, so far where it is not done."""
    step: int | None
    """When it had that value."""
    last_step: int | None
    """Of its last evaluation."""
    settings: dict[str, Any]
    seconds: float | None
    reason: str
    """Why it is invalid or failed, or what else there is to say."""
    run_dir: Path


@dataclass(frozen=True, repr=False)
class Tuning:
    """A search over settings."""

    trials: list[Trial]
    """In order."""
    metric: str
    protocol: str
    out: Path
    config: Config | None
    """The whole configuration of the best, as in best.yaml; None without one that is done."""
    importance: dict[str, float] = field(default_factory=dict)
    """Shares of how much each setting decides (PED-ANOVA); empty while fewer than 20 trials are done."""
    finished: bool = True
    """False if it was asked to stop (Ctrl-C, SIGTERM, the timeout): the same call goes on with it."""
    timed_out: bool = False
    """Whether that was the timeout."""

    @property
    def ranked(self) -> list[Trial]:
        """Those that are done, best first."""
        return ranked(self.trials)

    @property
    def best(self) -> Trial | None:
        return next(iter(self.ranked), None)

    @property
    def best_settings(self) -> dict[str, Any]:
        """What the best has of the searched settings; empty if none is done."""
        return {} if self.best is None else self.best.settings

    @property
    def best_value(self) -> float | None:
        return None if self.best is None else self.best.value

    @property
    def title(self) -> str:
        return f"valid split, protocol {self.protocol}, {self.metric}: {in_numbers(self.trials)}"

    def frame(self) -> pl.DataFrame:
        """A row for each trial, with a column for each setting by its whole key."""
        rows = [
            {**{name: value for name, value in vars(trial).items() if name != "settings"}, **trial.settings}
            | {"run_dir": str(trial.run_dir)}
            for trial in self.trials
        ]
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)

    def table(self, most: int = MOST_SHOWN) -> list[dict[str, str]]:
        """The best few, in short cells."""
        best = self.ranked
        different = [trial for at, trial in enumerate(best) if not _same(trial, best[:at])]
        names = short_names([key for trial in different for key in trial.settings])
        return [
            {
                "trial": str(trial.number),
                self.metric: f"{trial.value:.4f}",
                "step": f"{trial.step:,}",
                "time": "-" if trial.seconds is None else duration(trial.seconds),
                **{names[key]: shown(value) for key, value in trial.settings.items()},
            }
            for trial in different[:most]
        ]

    def __repr__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, **_PLAIN):
            return f"{self.title}\n{pl.DataFrame(self.table())}"

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, **_PLAIN):
            return f"{self.title}{pl.DataFrame(self.table())._repr_html_()}"


def _same(trial: Trial, others: Sequence[Trial]) -> bool:
    return any(other.settings == trial.settings for other in others)


_PLAIN: dict[str, Any] = {"tbl_hide_dataframe_shape": True, "tbl_hide_column_data_types": True}


def run_dir_of(out: Path, number: int) -> Path:
    return out / f"trial-{number:04d}"


def trial_of(frozen: "FrozenTrial", out: Path) -> Trial:
    """Optuna's number 0 is the first."""
    told = frozen.user_attrs
    values = frozen.intermediate_values
    last = max(values, default=None)
    # The first of the best, as training counts.
    step = min(values, key=lambda at: (-values[at], at), default=None)
    value = frozen.value if told.get("state") == "done" else None if step is None else values[step]
    return Trial(
        number=frozen.number + 1,
        state=told.get("state", "unfinished"),
        value=value,
        step=told.get("step", step),
        last_step=last,
        settings=dict(frozen.params),
        seconds=told.get("seconds"),
        reason=told.get("reason", ""),
        run_dir=run_dir_of(out, frozen.number + 1),
    )


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those that are done, best first; of equals the earlier."""
    done = [trial for trial in trials if trial.state == "done" and trial.value is not None]
    return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))


def in_numbers(trials: Sequence[Trial]) -> str:
    """`12 trials done, 6 pruned`."""
    counts = dict.fromkeys(("done", "pruned", "invalid", "failed", "unfinished"), 0)
    for trial in trials:
        counts[trial.state] += 1
    told = [f"{count} {state}" for state, count in counts.items() if count or state == "done"]
    return f"{len(trials)} trial{'s' * (len(trials) != 1)}, {', '.join(told)}"


def line_of(trial: Trial, best: Trial | None) -> str:
    """What a terminal shows when it has ended."""
    names = short_names(trial.settings)
    settings = " ".join(f"{names[key]}={shown(value)}" for key, value in trial.settings.items())
    told = f"trial {trial.number} {trial.state}"
    if trial.state == "pruned" and trial.last_step is not None:
        told += f" at step {trial.last_step:,}"
    told += f": {trial.value:.4f}" if trial.value is not None and trial.state in ("done", "pruned") else ""
    told += f" ({trial.reason})" if trial.reason and trial.state in ("done", "pruned") else ""
    told += f": {_beginning(trial.reason)}" if trial.state in ("invalid", "failed") else ""
    so_far = "none so far" if best is None else "the best" if best is trial else f"{best.value:.4f} by {best.number}"
    so_far = so_far if best is trial else f"best {so_far}"
    time = "" if trial.seconds is None else f"; {duration(trial.seconds)}"
    return f"{told}; {so_far}{time}; {settings}"


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def short_names(keys: Any) -> dict[str, str]:
    """`train.l2` -> `l2`, unless another key ends so."""
    ends = [key.rpartition(".")[2] for key in dict.fromkeys(keys)]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(dict.fromkeys(keys), ends, strict=True)}


def shown(value: Any) -> str:
    """A setting in three digits, where it needs more."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
