"""Writes checkpoints: every rank its shards, then the manifest, then one rename makes it exist."""

import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from eupmim_dist.checkpoint.layout import STEP_MANIFEST, complete_steps, step_dir, write_manifest
from eupmim_dist.checkpoint.state import readable_failures, training_tensors
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.train.state import Assembled, Outcome, Run


def save_checkpoint(run: Run, run_dir: Path) -> Path:
    """Saves the training state at `run.progress.step` and deletes all others but the best; collective.

    Nothing is at the final path before it is complete, and nothing is deleted before that.
    """
    run.progress.num_updates = int(run.table_optimizer.num_steps)
    final = step_dir(run_dir, run.progress.step)
    staging = final.with_name(f".{final.name}.incomplete")
    with agreed(run.world):
        if run.world.is_main:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
    with agreed(run.world):
        write_tensors(training_tensors(run), staging, run.world)
    with agreed(run.world):
        if run.world.is_main:
            write_manifest(staging, STEP_MANIFEST, describe(run, run.progress.step, run.progress.as_dict()))
            _replace(staging, final)
            _prune(run, run_dir)
    return final


def write_tensors(tensors: dict[str, Tensor], directory: Path, world: World) -> None:
    """One safetensors file per rank; collective."""
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank has no need of it
        with readable_failures(directory):
            dcp.save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
    if world.size > 1:
        dist.barrier()


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


def _replace(staging: Path, final: Path) -> None:
    """Puts `staging` in the place of `final`, which is only deleted once the new one is there."""
    aside = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.rename(final, aside)
    os.rename(staging, final)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(run: Run, run_dir: Path) -> None:
    kept = {step_dir(run_dir, run.progress.step)}
    if run.progress.best_step is not None:
        kept.add(step_dir(run_dir, run.progress.best_step))
    for path in complete_steps(run_dir):
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
