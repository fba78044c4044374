"""What a training took: seconds and steps, as the run itself recorded them."""

import json
from dataclasses import dataclass
from pathlib import Path

from eupmim_dist.checkpoint.layout import Checkpoint, resolve
from eupmim_dist.files import read_text
from eupmim_dist.telemetry.throughput import SECONDS


@dataclass(frozen=True)
class Effort:
    """None for what is not known."""

    seconds: float | None = None
    """Without the time of evaluations and checkpoints."""
    steps: int | None = None


def effort_of(path: Path, checkpoint: Checkpoint) -> Effort:
    """Of the training that `checkpoint` is of, which `path` led to: of a run directory all its steps, of a checkpoint
    those before it. A model tells its steps only, and nothing if it was trained elsewhere."""
    if checkpoint.is_model:
        return Effort(steps=None if checkpoint.manifest.imported_from else checkpoint.step)
    within = checkpoint.path.absolute().parent
    if within.name != "checkpoints":
        return Effort(steps=checkpoint.step)
    whole = path.resolve() == within.parent.resolve()
    steps = resolve(path, "last").step if whole else checkpoint.step
    return Effort(training_seconds(within.parent, steps), steps)


def training_seconds(run_dir: Path, steps: int) -> float | None:
    """Seconds of the first `steps`, from the run's metrics.jsonl; None if it tells none."""
    try:
        lines = read_text(run_dir / "metrics.jsonl").splitlines()
    except (OSError, ValueError):
        return None
    found = []
    for line in lines:
        try:
            content = json.loads(line)
            if int(content["step"]) <= steps:
                found.append(float(content[f"{SECONDS}training"]))
        except (ValueError, KeyError, TypeError, RecursionError):  # an evaluation's, or one that a crash cut short
            continue
    return sum(found) if found else None
