"""When checkpoints are written, and which are kept."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from eupmim_dist import __version__
from eupmim_dist.checkpoint.layout import complete_steps, step_dir, step_dirs
from eupmim_dist.checkpoint.state import host_copies, not_finite, readable_failures, training_tensors
from eupmim_dist.checkpoint.writer import CheckpointWriter, remove
from eupmim_dist.config.load import origins
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.exchange import background_group
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.throughput import SECONDS, Throughput
from eupmim_dist.train.skipped import Diverged
from eupmim_dist.train.state import Assembled, Outcome, Run


def save_checkpoint(run: Run, run_dir: Path) -> Path:
    """Saves the training state at `run.progress.step`, then deletes what `checkpoint.keep` spares not; collective.

    Nothing is at the final path before it is complete, and nothing is deleted before that.
    """
    writer = _writer(run, run_dir)
    with agreed(run.world):
        tensors = _finite(run, training_tensors(run))
    with agreed(run.world), readable_failures(writer.final):
        dcp.save(tensors, storage_writer=writer, no_dist=run.world.size == 1)
    return writer.final


def _finite(run: Run, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same. Raises Diverged if a number is not finite: a checkpoint is something to go on from."""
    if strange := not_finite(tensors):
        raise Diverged(
            f"step {run.progress.step}: {strange} holds numbers that are not finite, so it is not saved: the training "
            "has diverged; lower train.learning_rate or train.l2, or set train.clip_norm"
        )
    return tensors


class Saving:
    """A `save_checkpoint` of a copy, written by a thread while training goes on; collective.

    Not through `dcp.async_save`, whose stager failed when it was used again in a process (torch 2.13: "invalid python
    storage").
    """

    def __init__(self, run: Run, run_dir: Path) -> None:
        """Copies this rank's part of the state to host memory, which is what training waits for."""
        alone = run.world.size == 1
        writer = _writer(run, run_dir)
        self._path = writer.final
        with agreed(run.world):
            tensors = host_copies(_finite(run, training_tensors(run)), run.world)
        group = None if alone else background_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future = self._thread.submit(dcp.save, tensors, storage_writer=writer, process_group=group, no_dist=alone)
        self._thread.shutdown(wait=False)

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        """Waits for the end, whatever it is."""
        self._thread.shutdown()

    def failed(self) -> bool:
        """Once it is done."""
        return self._future.exception() is not None

    def finish(self) -> None:
        """Waits for the end. Raises what went wrong, on every rank what went wrong on any."""
        self.wait()
        with readable_failures(self._path):
            self._future.result()


def _writer(run: Run, run_dir: Path) -> CheckpointWriter:
    progress = run.progress
    progress.num_updates = int(run.table_optimizer.num_steps)
    prune = partial(_prune, run_dir, run.config.checkpoint.keep, progress.step, progress.best_step)
    description = describe(run, progress.step, progress.as_dict())
    description["mixed_precision"] = run.dense.accelerator.mixed_precision
    return CheckpointWriter(step_dir(run_dir, progress.step), description, prune)


def describe(assembled: Assembled, step: int, training: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint or consolidated model, but for its files."""
    told = assembled.store.manifest
    of_items: dict[str, Any] = {}
    if told.item_attributes or told.item_numbers:
        of_items["item_attributes"] = [asdict(attribute) for attribute in told.item_attributes]
        of_items["item_numbers"] = list(told.item_numbers)
    return {
        "step": step,
        "training": training,
        "config": assembled.config.model_dump(mode="json"),
        "tables": {name: [s.spec.rows, s.spec.dim] for name, s in assembled.tables.shards.items()},
        "data": {
            "name": assembled.store.name,
            "fingerprint": assembled.store.fingerprint,
            "attributes": [attribute.as_manifest() for attribute in assembled.store.attributes],
            **of_items,
        },
        "versions": {"eupmim-dist": __version__, "torch": torch.__version__, **origins(assembled.config)},
    }


def _prune(run_dir: Path, keep: int, step: int, best_step: int | None) -> None:
    """Keeps the last ones up to this step and the best; later ones are of a training that was gone back on."""
    kept = [path for path in complete_steps(run_dir) if path <= step_dir(run_dir, step)][-keep:]
    if best_step is not None:
        kept.append(step_dir(run_dir, best_step))
    for path in step_dirs(run_dir):
        if path not in kept:
            remove(path)


class CheckpointHook:
    """Saves every `checkpoint.every` steps, at a new best and at the end; comes after the evaluation's hook."""

    def __init__(self, run_dir: Path, writer: MetricsWriter, throughput: Throughput) -> None:
        self.run_dir, self.writer, self.throughput = run_dir, writer, throughput
        self._saved: dict[str, Any] | None = None
        self._under_way: Saving | None = None

    def after_step(self, run: Run, outcome: Outcome) -> None:
        if self._under_way is not None and self._under_way.done():
            if self._under_way.failed():
                run.stop_requested = True  # ranks see it some steps apart: they stop at the same one and raise it there
            else:
                self._finish()
        progress = run.progress
        if progress.step % run.config.checkpoint.every == 0 or progress.best_step == progress.step:
            self._save(run, run.config.checkpoint.asynchronous)

    def at_end(self, run: Run) -> None:
        self._finish()
        if self._saved != run.progress.as_dict():  # the evaluation at the end may find a new best at a saved step
            self._save(run, asynchronous=False)

    def wait(self) -> None:
        """After a failure: waits until nothing is written any more, as the process may go on to other things."""
        if self._under_way is not None:
            self._under_way.wait()

    def _save(self, run: Run, asynchronous: bool) -> None:
        with self.throughput.pause() as pause:
            self._finish()  # one at a time
            if asynchronous:
                self._under_way = Saving(run, self.run_dir)
            else:
                save_checkpoint(run, self.run_dir)
        self._saved = run.progress.as_dict()
        # What is saved is on record with it: a run that goes on from here knows nothing of what was before.
        seconds = {"checkpoint": pause.seconds, "training": self.throughput.untold()}
        self.writer.log(run.progress.step, {f"{SECONDS}{what}": value for what, value in seconds.items()})

    def _finish(self) -> None:
        if self._under_way is not None:
            saving, self._under_way = self._under_way, None
            saving.finish()
