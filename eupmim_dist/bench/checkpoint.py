"""Speed and memory of checkpoints: saving (in a pause, meanwhile), checking, loading and consolidating a large table.

The training is a real one on a small store, with one more table that no sample asks for: what is saved is nearly that
table and its optimizer's state, and what a step takes has nothing to do with its size.
"""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.bench.gauges import now, peak_bytes, start_of_peak
from eupmim_dist.checkpoint.layout import open_checkpoint, step_dir
from eupmim_dist.checkpoint.load import load_training, open_sound
from eupmim_dist.checkpoint.save import Saving, save_checkpoint
from eupmim_dist.config.schema import Config
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.agreement import decided_by_main, everywhere
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import device_name
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step

PROBE_BYTES, BLOCK = 1 << 30, bytes(16 << 20)
WARM_UP_STEPS, COUNTED_STEPS = 5, 20
MEANWHILE = "save meanwhile"


def measure_checkpoint(
    config: Config, world: World, rows: int, dim: int, place: Path | None, rounds: int
) -> dict[str, Any]:
    """Medians over `rounds` of seconds, with GB/s over all ranks and each rank's peak memory; collective.

    Writes some three times the table under `place` (the system's place for temporary files if None), and removes it.
    """
    run = _run_with_table(config, world, TableSpec("large", rows, dim))
    made = decided_by_main(world, lambda: tempfile.mkdtemp(prefix="bench-checkpoint-", dir=place))
    try:
        return _measure(run, Path(made), rounds)
    finally:
        if world.is_main:
            shutil.rmtree(made, ignore_errors=True)


def _run_with_table(config: Config, world: World, spec: TableSpec) -> Run:
    run = assemble_run(config, world, open_store(config.data.dir, world))
    run.tables = ShardedTables([*run.model.tables(), spec], config.seed, world, config.tables)
    run.table_optimizer = make_table_optimizer(config.tables, run.tables, config.train.learning_rate, config.train.l2)
    run.dense.module.train()
    return run


def _measure(run: Run, place: Path, rounds: int) -> dict[str, Any]:
    world = run.world
    taken: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def timed(what: str, work: Callable[[], object]) -> None:
        barrier(world)
        before = start_of_peak(world.device)["host"]
        started = time.perf_counter()
        work()
        barrier(world)
        taken.setdefault(what, []).append(time.perf_counter() - started)
        peaks[what] = max(peaks.get(what, 0), peak_bytes(world.device)["host"] - before)

    _step_seconds(run, WARM_UP_STEPS)
    step_seconds = _step_seconds(run, COUNTED_STEPS)
    lost: list[float] = []
    for number in range(rounds):
        get_logger(world.rank).info(f"round {number + 1} of {rounds}")
        _step_seconds(run, 1)  # a step that was saved is not saved again
        timed("save", lambda: save_checkpoint(run, place))
        _step_seconds(run, 1)
        path = step_dir(place, run.progress.step)
        timed(MEANWHILE, partial(_save_meanwhile, run, place, step_seconds, lost))
        timed("check", partial(open_sound, partial(open_checkpoint, path), world))
        checkpoint = open_checkpoint(path)
        timed("load", partial(load_training, run, checkpoint))
        if world.is_main:
            shutil.rmtree(place / "model", ignore_errors=True)
        timed("consolidate", partial(consolidate, checkpoint, place / "model") if world.is_main else _nothing)
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    of_model = sum(file.stat().st_size for file in (place / "model").iterdir())
    peaks_by_rank = everywhere(peaks, world)
    return {
        "device": device_name(world.device),
        "ranks": world.size,
        "rows": run.tables.shards["large"].spec.rows,
        "dim": run.tables.shards["large"].spec.dim,
        "optimizer": run.config.tables.optimizer,
        "checkpoint GB": num_bytes / 1e9,
        "model GB": of_model / 1e9,
        "step ms": 1000 * step_seconds,
        "probes GB/s": _probes(place) if world.is_main else {},
        # What saving costs the training: a pause of its whole length, or slower steps meanwhile.
        "training lost s": {"save": statistics.median(taken["save"]), MEANWHILE: statistics.median(lost)},
        "phases": {
            what: {
                "seconds": statistics.median(seconds),
                "rounds": seconds,
                "GB/s": (of_model if what == "consolidate" else num_bytes) / 1e9 / statistics.median(seconds),
                "peak MB by rank": [rank[what] / 1e6 for rank in peaks_by_rank],
            }
            for what, seconds in taken.items()
        },
    }


def _nothing() -> None:
    """What the other ranks do while rank 0 works alone."""


def _save_meanwhile(run: Run, place: Path, step_seconds: float, lost: list[float]) -> None:
    """Trains until the checkpoint is written; `lost` gets the seconds by which its steps took longer than without."""
    started = time.perf_counter()
    saving = Saving(run, place)
    num_steps = 0
    while not all(everywhere(saving.done(), run.world)):
        _step_seconds(run, 1)
        num_steps += 1
    saving.finish()
    lost.append(time.perf_counter() - started - num_steps * step_seconds)


def _step_seconds(run: Run, num_steps: int) -> float:
    """Trains; the median seconds of a step."""
    taken = []
    for _ in range(num_steps):
        started = now(run.world.device)
        train_step(run, run.progress.step, prepare_step(run, run.progress.step))
        run.progress.step += 1
        taken.append(now(run.world.device) - started)
    return statistics.median(taken)


def _probes(place: Path) -> dict[str, float]:
    """GB/s of what saving cannot be faster than on one rank: SHA-256, and writing to the disk."""
    started = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(PROBE_BYTES // len(BLOCK)):
        digest.update(BLOCK)
    hashed = time.perf_counter()
    with (place / "probe").open("wb") as stream:
        for _ in range(PROBE_BYTES // len(BLOCK)):
            stream.write(BLOCK)
        stream.flush()
        os.fsync(stream.fileno())
    written = time.perf_counter()
    return {
        "SHA-256": PROBE_BYTES / 1e9 / (hashed - started),
        "write and fsync": PROBE_BYTES / 1e9 / (written - hashed),
    }
