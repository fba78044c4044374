"""The runs of a report: found, read and checked before any work."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eupmim_dist.api import Fitted
from eupmim_dist.arguments import path_of, several
from eupmim_dist.checkpoint.layout import CONFIG_FILE, Checkpoint, readable_steps, resolve
from eupmim_dist.checkpoint.origin import data_dir_of
from eupmim_dist.checkpoint.run_dir import LOCK_FILE
from eupmim_dist.config.load import load_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.manifest import read_manifest
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.files import read_text
from eupmim_dist.reporting.metrics import Metrics, read_metrics
from eupmim_dist.telemetry.progress import task_progress

RunLike = Fitted | Path | str
"""What `fit` gave, or the path of a run directory."""


@dataclass(frozen=True)
class ReportedRun:
    name: str
    path: Path
    config: Config
    """As the run directory has it now."""
    yaml: str
    """The text of its config.yaml."""
    metrics: Metrics
    best: Checkpoint | None
    """None before the first one."""
    last: Checkpoint | None
    running: bool
    """A training holds the directory, as far as this machine can see."""
    tested: bool
    """It has an evaluation.json that is no older than its last line."""

    @property
    def step(self) -> int:
        return max(self.metrics.last_step, self.last.step if self.last else 0)

    @property
    def state(self) -> str:
        """Where its training stands, in words."""
        at, most = self.step, self.config.train.max_steps
        if self.running:
            return f"still training, step {at:,} of {most:,}"
        progress = self.last.progress if self.last else None
        if progress is not None and progress.stopped:
            patience = self.config.evaluation.patience
            return f"finished at step {at:,} of {most:,}: no better one in {patience} evaluations"
        if self.last is not None and self.last.step >= most:
            return f"finished, {self.last.step:,} steps"
        return f"ended at step {at:,} of {most:,}" if self.tested else f"not finished, step {at:,} of {most:,}"

    def best_now(self) -> Checkpoint | None:
        """Its best checkpoint: while it trains a better one may have come, and this one have been deleted."""
        if self.running and self.best is not None and not self.best.path.is_dir():
            return resolve(self.path, "best")
        return self.best


def runs_of(runs: RunLike | Sequence[RunLike]) -> list[ReportedRun]:
    """Reads run directories. Raises UserError for what is none, and for one that is given twice."""
    given = [run.run_dir if isinstance(run, Fitted) else path_of("runs", run) for run in several(runs)]
    if not given:
        raise UserError("report: give the directory of a run")
    found = [_read(path) for path in given]
    places = [run.path.resolve() for run in found]
    for run, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{run.path}: is given twice; give it once")
    taken = Counter(run.name for run in found)
    return [replace(run, name=str(run.path)) if taken[run.name] > 1 else run for run in found]


def _read(path: Path) -> ReportedRun:
    file = path / CONFIG_FILE
    if not path.is_dir():
        raise UserError(f"{path}: {'is a file' if path.exists() else 'no such directory'}; give a run directory")
    if not file.is_file():
        raise UserError(f"{path}: is no run directory: it has no {CONFIG_FILE}; give the --run-dir of a training")
    last = resolve(path, "last") if readable_steps(path) else None
    best = None if last is None else resolve(path, "best")
    with task_progress(f"{path}: reading metrics.jsonl"):
        metrics, running = read_metrics(path / "metrics.jsonl"), _is_running(path)
    try:
        text = read_text(file)
        config = load_config(file)
    except (UserError, ValueError):  # of an earlier version, or damaged; checkpoints have it too
        if last is None:
            raise
        text, config = "", last.config
    return ReportedRun(path.resolve().name, path, config, text, metrics, best, last, running, _tested(path, metrics))


def _tested(path: Path, metrics: Metrics) -> bool:
    with suppress(OSError):
        return (path / "evaluation.json").stat().st_mtime >= max(metrics.times, default=0.0)
    return False


def _is_running(path: Path) -> bool:
    """Whether a training has its lock, which is looked at without being taken."""
    with suppress(ImportError, OSError):
        import fcntl

        with (path / LOCK_FILE).open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def store_dir_of(runs: Sequence[ReportedRun], data: Path | None) -> Path:
    """Where the store of the report lies. Raises UserError if it is not there."""
    return data or data_dir_of(runs[0].config, runs[0].path)


def check_same_store(runs: Sequence[ReportedRun], store: InteractionStore, named: bool) -> None:
    """Raises UserError if a run is of another store than the report; `named`: --data chose that."""
    for run in runs:
        other = run.best.data if run.best is not None else None if named else _named_store(run.config.data.dir)
        if other is not None and not store.is_that_of(other.fingerprint):
            chosen = f"--data {store.path}" if named else f"{store.path} of {runs[0].path}"
            raise UserError(
                f"{run.path}: was trained on another store, {other.name} ({other.fingerprint[:12]}), than {chosen}, "
                f"{store.name} ({store.fingerprint[:12]}); a report is on one store"
            )


def _named_store(path: Path) -> Any:
    """The manifest of the store that a run without a checkpoint names, if it is there."""
    with suppress(UserError):
        return read_manifest(path)
    return None
