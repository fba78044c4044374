"""A run directory at the start of a run: new, resumed, or refused."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout

from eupmim_dist.checkpoint.layout import (
    Checkpoint,
    backups,
    called_steps,
    complete_steps,
    open_checkpoint,
    resolve,
    step_dir,
    step_dirs,
)
from eupmim_dist.checkpoint.load import open_sound
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.writer import recover
from eupmim_dist.config.load import dump_config, flat, origins
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, shown
from eupmim_dist.files import read_text, write_text
from eupmim_dist.parallel.agreement import decided_by_main
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import commit
from eupmim_dist.train.state import Run

CONFIG_FILE = "config.yaml"
HEADER = "# eupmim-dist"
FREE_KEYS = (
    "world_size",
    "data.dir",
    "tables.replicate_below",
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
MOST_TOLD = 4
"""Other settings that a message names, beside the first."""


LOCK_FILE = ".lock"
LOCK_SECONDS = 5.0
"""Time for a training that was killed to be gone."""
_occupied: list[BaseFileLock] = []


@dataclass(frozen=True)
class Start:
    """Where a run writes, and the checkpoint it goes on from, if any."""

    run_dir: Path
    checkpoint: Checkpoint | None


def find_start(run_dir: Path, resume: str, config: Config, world: World) -> Start:
    """Decides how to start; collective, for the inside of `agreed`.

    `resume`: `auto` goes on from the run's last sound checkpoint, if there is one, and warns of those it skips;
    `never` wants a new directory; anything else is the path of a checkpoint or run to go on from.

    Raises UserError if the directory holds something else, a run of another configuration, or damaged checkpoints only.
    """
    candidates = decided_by_main(world, lambda: _candidates(run_dir, resume))
    for path in candidates:
        try:
            checkpoint = open_sound(partial(open_checkpoint, path), world)
        except Damaged as problem:
            if resume != "auto":
                raise
            get_logger(world.rank).warning(f"{str(problem).partition('; ')[0]}: going back to the one before it")
            continue
        _check_compatible(checkpoint, config)
        return Start(run_dir, checkpoint)
    if candidates:
        raise UserError(f"{run_dir}: none of its checkpoints is sound; give another --run-dir to begin anew")
    return Start(run_dir, None)


def _candidates(run_dir: Path, resume: str) -> list[Path]:
    """The checkpoints to go on from, the one to try first first."""
    for path in [run_dir / name for name in (CONFIG_FILE, LOCK_FILE, "metrics.jsonl")]:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file; move it away")
    for path in called_steps(run_dir):
        if not path.is_dir():
            raise UserError(f"{path}: is no directory, and in the place of a checkpoint; move it away")
    holds_run = _is_run(run_dir)
    if backups(run_dir):
        _occupy(run_dir)  # or a save that is under way would be disturbed
        recover(run_dir)
    if run_dir.exists() and not holds_run and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir}: already holds something that is not a run; give another --run-dir")
    if resume == "auto":
        return step_dirs(run_dir)[::-1]
    if resume == "never":
        if holds_run:
            raise UserError(f"{run_dir}: already holds a run; use --resume auto to go on with it or another --run-dir")
        return []
    checkpoint = resolve(Path(resume), "last")
    if checkpoint.is_model:
        raise UserError(f"--resume {resume}: is a model without training state; give a run or a checkpoint of one")
    if holds_run and run_dir.resolve() not in checkpoint.path.resolve().parents:
        raise UserError(f"{run_dir}: already holds another run than --resume {resume}; give a new --run-dir")
    if holds_run and (later := [path for path in complete_steps(run_dir) if path > step_dir(run_dir, checkpoint.step)]):
        raise UserError(
            f"{run_dir}: goes on to {later[-1].name}, which --resume {resume} would go back on; give a new --run-dir, "
            "or move what is later away"
        )
    return [checkpoint.path]


def forget_lost_best(run: Run, run_dir: Path) -> None:
    """After going back, or on in another directory, the best checkpoint may be none of this run's: the next is."""
    progress = run.progress
    if progress.best_step is None:
        return
    best = step_dir(run_dir, progress.best_step)
    if not decided_by_main(run.world, lambda: best in complete_steps(run_dir)):
        get_logger(run.world.rank).warning(f"{best}: is not there, so the best so far is forgotten")
        progress.best_step = progress.best_value = None
        progress.evaluations_since_best = 0


def write_config(run_dir: Path, config: Config) -> None:
    """The resolved configuration, with what it ran under as comments."""
    others = "".join(f", {package} {number}" for package, number in origins(config).items())
    header = f"{HEADER} {version('eupmim-dist')}, torch {torch.__version__}, commit {commit()}{others}\n"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {run_dir}: cannot be written: {error.strerror}; give another one") from None
    _occupy(run_dir)
    write_text(run_dir / CONFIG_FILE, header + dump_config(config))


def _occupy(run_dir: Path) -> None:
    """Keeps other trainings out of a run directory until `free`, where its file system can do so."""
    path = run_dir / LOCK_FILE
    # One per file in this process, as it may be asked for twice; a marker in its stead would outlive a killed training.
    lock = FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False)
    if lock.is_locked:
        return
    with suppress(OSError):  # what cannot be locked or written fails later, or not at all
        try:
            lock.acquire(LOCK_SECONDS)
        except Timeout:
            raise UserError(
                f"{run_dir}: a training is running in it ({path.read_text(encoding='utf-8').strip()}); wait for its "
                "end, or give another --run-dir"
            ) from None
        _occupied.append(lock)
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")


def free() -> None:
    """Lets other trainings into the run directories of this process, whose training has ended. So does its death."""
    while _occupied:
        _occupied.pop().release(force=True)


def _is_run(run_dir: Path) -> bool:
    if complete_steps(run_dir):
        return True
    try:
        return read_text(run_dir / CONFIG_FILE).startswith(HEADER)
    except (OSError, ValueError):
        return False


def _check_compatible(checkpoint: Checkpoint, config: Config) -> None:
    before, now = _fixed(checkpoint.config), _fixed(config)
    if config.train.init_from is None:  # not needed again: the checkpoint has what became of those weights
        del before["train.init_from"], now["train.init_from"]
    if config.train.schedule != "constant":  # then every rate depends on it
        before["train.max_steps"], now["train.max_steps"] = checkpoint.config.train.max_steps, config.train.max_steps
    others = [key for key in [*before, *(now.keys() - before.keys())] if before.get(key) != now.get(key)]
    if others:
        # Of another model, task or objective the name says it all.
        renamed = {name.partition(".")[0] for name in others if name.endswith(".name")}
        key, *more = [name for name in others if name.endswith(".name") or name.partition(".")[0] not in renamed]
        also = [f"{name} {shown(now.get(name))} and not {shown(before.get(name))}" for name in more[:MOST_TOLD]]
        also += [f"{len(more) - MOST_TOLD} more"] if len(more) > MOST_TOLD else []
        told = f"also {', '.join(also)}; " if also else ""
        raise UserError(
            f"{key}: {shown(now.get(key))}, but {checkpoint.path} was trained with {shown(before.get(key))}; {told}set "
            f"it as it was (--config RUN/{CONFIG_FILE} does), or give another --run-dir"
        )


def _fixed(config: Config) -> dict[str, object]:
    return {key: value for key, value in flat(config).items() if key not in FREE_KEYS}
