"""A run directory at the start of a run: new, resumed, or refused."""

import errno
import os
import platform
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout

from eupmim_dist import __version__
from eupmim_dist.checkpoint.changes import FREE_KEYS, ON_REQUEST, Changed
from eupmim_dist.checkpoint.layout import (
    CONFIG_FILE,
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
from eupmim_dist.errors import UserError, as_set
from eupmim_dist.files import read_text, write_text
from eupmim_dist.parallel.agreement import decided_by_main
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import commit
from eupmim_dist.train.state import Run

HEADER = "# eupmim-dist"
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
    changed: Changed = field(default_factory=dict)
    """Settings that are others from here on."""


def find_start(
    run_dir: Path, resume: str, config: Config, world: World, changed: Collection[str] = (), *, writes: bool = True
) -> Start:
    """Decides how to start; collective, for the inside of `agreed`.

    `resume`: `auto` goes on from the run's last sound checkpoint, if there is one, and warns of those it skips;
    `never` wants a new directory; anything else is the path of a checkpoint or run to go on from. `changed` are the
    settings that may be others than it was trained with. Unless it `writes`, what lies aside is read from there.

    Raises UserError if the directory holds something else, a run of another configuration, or damaged checkpoints only.
    """
    candidates = decided_by_main(world, lambda: _candidates(run_dir, resume, writes))
    for path in candidates:
        try:
            checkpoint = open_sound(partial(open_checkpoint, path), world)
        except Damaged as problem:
            if resume != "auto":
                raise
            get_logger(world.rank).warning(f"{str(problem).partition('; ')[0]}: going back to the one before it")
            continue
        _check_compatible(checkpoint, config, changed)
        before, now = flat(checkpoint.config), flat(config)
        return Start(run_dir, checkpoint, {key: (before[key], now[key]) for key in changed if before[key] != now[key]})
    if candidates:
        raise UserError(f"{run_dir}: none of its checkpoints is sound; give another --run-dir to begin anew")
    if changed:
        raise UserError(
            f"--resume-with: there is nothing to go on with in {run_dir}; a new run has its settings by --set"
        )
    return Start(run_dir, None)


def _candidates(run_dir: Path, resume: str, writes: bool) -> list[Path]:
    """The checkpoints to go on from, the one to try first first."""
    for path in [run_dir / name for name in (CONFIG_FILE, LOCK_FILE, "metrics.jsonl")]:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file; move it away")
    for path in called_steps(run_dir):
        if not path.is_dir():
            raise UserError(f"{path}: is no directory, and in the place of a checkpoint; move it away")
    holds_run = _is_run(run_dir)
    if writes and backups(run_dir):
        _occupy(run_dir)  # or a save that is under way would be disturbed
        recover(run_dir)
    if run_dir.exists() and not holds_run and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir}: already holds something that is not a run; give another --run-dir")
    if resume == "auto":
        aside = {final: left for final, left in backups(run_dir).items() if not final.exists()}
        return [aside.get(path, path) for path in sorted([*step_dirs(run_dir), *aside], reverse=True)]
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
    header = f"{HEADER} {__version__}, torch {torch.__version__}, commit {commit()}{others}\n"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {run_dir}: cannot be written: {error.strerror}; give another one") from None
    _occupy(run_dir)
    write_text(run_dir / CONFIG_FILE, header + dump_config(config))


def check_free(run_dir: Path) -> None:
    """Raises UserError where `write_config` would, and writes nothing."""
    existing = next(place for place in (run_dir, *run_dir.absolute().parents) if place.exists())
    code = errno.EACCES if existing.is_dir() else errno.ENOTDIR
    if code == errno.ENOTDIR or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {run_dir}: cannot be written: {os.strerror(code)}; give another one")
    if (run_dir / LOCK_FILE).exists():
        _occupy(run_dir, stays=False)


def _occupy(run_dir: Path, *, stays: bool = True) -> None:
    """Keeps other trainings out of a run directory until `free`, where its file system can do so.

    Unless it `stays` it only looks whether that can be. Raises UserError where another one is in it.
    """
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
        if not stays:
            lock.release()
            return
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


def _check_compatible(checkpoint: Checkpoint, config: Config, changed: Collection[str]) -> None:
    before, now = _fixed(checkpoint.config), _fixed(config)
    if config.train.init_from is None:  # not needed again: the checkpoint has what became of those weights
        for key in ("train.init_from", "train.init_only_rows"):
            del before[key], now[key]
    if config.train.schedule != "constant":  # then every rate depends on it
        before["train.max_steps"], now["train.max_steps"] = checkpoint.config.train.max_steps, config.train.max_steps
    keys = [key for key in [*before, *(now.keys() - before.keys())] if key not in changed]
    others = [key for key in keys if before.get(key) != now.get(key)]
    if others:
        # Of another model, task or objective the name says it all.
        renamed = {name.partition(".")[0] for name in others if name.endswith(".name")}
        key, *more = [name for name in others if name.endswith(".name") or name.partition(".")[0] not in renamed]
        also = [f"{name} {as_set(now.get(name))} and not {as_set(before.get(name))}" for name in more[:MOST_TOLD]]
        also += [f"{len(more) - MOST_TOLD} more"] if len(more) > MOST_TOLD else []
        told = f"also {', '.join(also)}; " if also else ""
        asking = [
            f"--resume-with {name}={as_set(now[name])}" for name in others if name in (*ON_REQUEST, "train.max_steps")
        ]
        on_request = f", change it from here on by {' '.join(asking)}" if len(asking) == len(others) else ""
        raise UserError(
            f"{key}: {as_set(now.get(key))}, but {checkpoint.path} was trained with {as_set(before.get(key))}; "
            f"{told}set it as it was (--config RUN/{CONFIG_FILE} does){on_request}, or give another --run-dir"
        )


def _fixed(config: Config) -> dict[str, object]:
    return {key: value for key, value in flat(config).items() if key not in FREE_KEYS}
