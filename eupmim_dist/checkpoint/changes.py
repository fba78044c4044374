"""What a run may change when it is gone on with, and the record of what it did."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from eupmim_dist.arguments import config_of
from eupmim_dist.config.load import Overrides, apply_overrides
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, as_set, listed, short
from eupmim_dist.files import read_text, write_text

FREE_KEYS = (
    "world_size",
    "data.dir",
    "tables.replicate_below",
    "tables.exchange",
    "tables.memory",
    "train.prefetch",
    "train.threads",
    "train.max_steps",
    "train.log_every",
    "evaluation.every",
    "evaluation.patience",
    "evaluation.top_n",
    "evaluation.batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.asynchronous",
    "telemetry.trackers",
)
"""What a resumed run may change: nothing that the weights, or which of them are best, depend on, but for
the order of sums."""
ON_REQUEST = (
    "train.learning_rate",
    "train.schedule",
    "train.warmup_steps",
    "train.clip_norm",
    "train.l2",
    "train.weight_decay",
    "train.accumulation",
    "train.compile",
    "tables.learning_rate",
    "tables.weight_decay",
)
"""What it may change beside them if `--resume-with` asks for it: how the steps to come are made. The weights, the
state of the optimizers and what is sampled stay as they are."""
CHANGES_FILE = "resumed_with.jsonl"
"""Of a run directory: what `--resume-with` changed, a line for each time."""
Changed = dict[str, tuple[Any, Any]]
"""By key: what it was and what it is."""


def changed_settings(config: Config, resume_with: str | Overrides) -> tuple[Config, list[str]]:
    """A configuration with what `--resume-with` asks for, and the keys of that. Raises UserError."""
    values: dict[str, Any] = {}
    apply_overrides(values, [resume_with] if isinstance(resume_with, str) else resume_with, "--resume-with")
    if not values:
        return config, []
    found = config_of(config, values)
    keys = [f"{name}.{key}" for name, section in values.items() if isinstance(section, dict) for key in section]
    for key in keys + [name for name, value in values.items() if not isinstance(value, dict)]:
        if key not in (*ON_REQUEST, *FREE_KEYS):
            raise UserError(
                f"--resume-with {short(key)}: a run on its way can change {listed(ON_REQUEST)} and what "
                "needs no asking, but not this; begin another --run-dir, perhaps with --init-from, which takes weights"
            )
    return found, keys


def record_changes(run_dir: Path, step: int, changed: Changed) -> list[str]:
    """Adds what is changed from a step on to the run's record; in words, for the log."""
    if not changed:
        return []
    line = json.dumps({"step": step, "changed": changed}) + "\n"
    file = run_dir / CHANGES_FILE
    # Of what was tried from this step on, or from a later one, no checkpoint is left that is gone on with.
    earlier = [known for known in _lines_of(file) if _step_of(known) < step]
    write_text(file, "".join([*earlier, line]))
    return _in_words(json.loads(line))


def changes_of(run_dir: Path) -> list[str]:
    """What `--resume-with` changed in a run, in words."""
    told: list[str] = []
    with suppress(ValueError, KeyError, TypeError, AttributeError):  # a file that people may edit
        for line in _lines_of(run_dir / CHANGES_FILE):
            told += _in_words(json.loads(line))
    return told


def _lines_of(file: Path) -> list[str]:
    try:
        return read_text(file).splitlines(keepends=True)
    except (OSError, ValueError):
        return []


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a file that people may edit
        return -1


def _in_words(change: dict[str, Any]) -> list[str]:
    """`from step 6 on train.learning_rate is 0.001, before 0.01`, for each setting."""
    return [
        f"from step {change['step']:,} on {key} is {as_set(now)}, before {as_set(before)}"
        for key, (before, now) in change["changed"].items()
    ]
