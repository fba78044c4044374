"""When checkpoints are written, and which are kept."""

import shutil
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from eupmim_dist.checkpoint.layout import complete_steps, step_dir
from eupmim_dist.checkpoint.state import readable_failures, training_tensors
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.train.state import Assembled, Outcome, Run


def save_checkpoint(run: Run, run_dir: Path) -> Path:
    """Saves the training state at `run.progress.step`, then deletes what `checkpoint.keep` spares not; collective.

    Nothing is at the final path before it is complete, and nothing is deleted before that.
    """
    run.progress.num_updates = int(run.table_optimizer.num_steps)
    final = step_dir(run_dir, run.progress.step)
    writer = CheckpointWriter(
        final, describe(run, run.progress.step, run.progress.as_dict()), partial(_prune, run, run_dir)
    )
    with agreed(run.world), readable_failures(final), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank has no need of it
        dcp.save(dict(training_tensors(run)), storage_writer=writer, no_dist=run.world.size == 1)
    return final


def describe(assembled: Assembled, step: int, training: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint or consolidated model, but for its files."""
    return {
        "step": step,
        "training": training,
        "config": assembled.config.model_dump(mode="json"),
        "tables": {name: [s.spec.rows, s.spec.dim] for name, s in assembled.tables.shards.items()},
        "data": {"name": assembled.store.name, "fingerprint": assembled.store.fingerprint},
        "versions": {"eupmim-dist": version("eupmim-dist"), "torch": torch.__version__},
    }


def _prune(run: Run, run_dir: Path) -> None:
    """Keeps the last ones up to this step and the best; later ones are of a training that was gone back on."""
    progress = run.progress
    steps = complete_steps(run_dir)
    kept = [path for path in steps if path <= step_dir(run_dir, progress.step)][-run.config.checkpoint.keep :]
    if progress.best_step is not None:
        kept.append(step_dir(run_dir, progress.best_step))
    for path in steps:
        if path not in kept:
            shutil.rmtree(path)


class CheckpointHook:
    """Saves every `checkpoint.every` steps, at a new best and at the end; comes after the evaluation's hook."""

    def __init__(self, run_dir: Path, throughput: Throughput) -> None:
        self.run_dir, self.throughput = run_dir, throughput
        self._saved: dict[str, Any] | None = None

    def after_step(self, run: Run, outcome: Outcome) -> None:
        progress = run.progress
        if progress.step % run.config.checkpoint.every == 0 or progress.best_step == progress.step:
            self._save(run)

    def at_end(self, run: Run) -> None:
        self._save(run)

    def _save(self, run: Run) -> None:
        if self._saved != run.progress.as_dict():  # the evaluation at the end may find a new best at the same step
            with self.throughput.pause():
                save_checkpoint(run, self.run_dir)
            self._saved = run.progress.as_dict()
