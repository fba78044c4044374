"""The life of a training: begun or gone on with, trained with all that hangs on it, its best checkpoint tested."""

import json
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eupmim_dist import assemble
from eupmim_dist.checkpoint.changes import FREE_KEYS, record_changes
from eupmim_dist.checkpoint.layout import Checkpoint, resolve
from eupmim_dist.checkpoint.load import load_model, load_training, open_sound
from eupmim_dist.checkpoint.origin import check_same_data
from eupmim_dist.checkpoint.run_dir import Start, check_free, find_start, forget_lost_best, free, write_config
from eupmim_dist.checkpoint.save import CheckpointHook
from eupmim_dist.config.load import dump_config, flat
from eupmim_dist.config.schema import Config
from eupmim_dist.data.training_data import popular_items
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.baselines import judge_of
from eupmim_dist.evaluation.hook import EvaluationHook, cutoffs_of
from eupmim_dist.evaluation.judging import judge
from eupmim_dist.evaluation.runner import Result
from eupmim_dist.evaluation.scorers.interface import check_room
from eupmim_dist.export.init_from import INIT_FILE, take_weights
from eupmim_dist.export.source_settings import compare_settings
from eupmim_dist.files import write_text
from eupmim_dist.hashing import fingerprint_of_directory
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.parallel import heartbeat
from eupmim_dist.parallel.agreement import agreed, check_alike
from eupmim_dist.parallel.merge import lack_of_triton
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.board import Board, write_projector
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import MetricsWriter, OnMetrics
from eupmim_dist.telemetry.progress import StepProgress, byte_progress, duration, in_hours
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.telemetry.trackers import NO_TRACKERS, Trackers, tracking
from eupmim_dist.train.callbacks import Callback, Callbacks
from eupmim_dist.train.compiled import told_of_compiling
from eupmim_dist.train.hooks import LogHook
from eupmim_dist.train.loop import train
from eupmim_dist.train.preemption import leaving_on_signal
from eupmim_dist.train.rehearsal import seconds_of_a_step
from eupmim_dist.train.skipped import SkippedHook
from eupmim_dist.train.state import Assembled, Run
from eupmim_dist.train.threads import settle_threads, threads_restored

MOST_SHOWN = 5000
"""Items in TensorBoard's projector, which computes in the browser."""

_training = threading.Lock()


@contextmanager
def the_only_training() -> Iterator[None]:
    """Keeps a second training out of this process; in the end frees the run directory of this one, and its threads.

    Two would share the state of torch's generator, which each step sets. Raises UserError if there is another one.
    """
    if not _training.acquire(blocking=False):
        raise UserError("a training is under way in this process already: wait for its end, or start another process")
    try:
        with threads_restored():
            yield
    finally:
        free()
        _training.release()


def begin(
    config: Config,
    run_dir: Path,
    resume: str,
    init_from: Path | None,
    world: World,
    changed: Collection[str] = (),
    *,
    baselines: Sequence[str] = (),
    writes: bool = True,
) -> tuple[Run, Start]:
    """A run at its first step, or at that of the checkpoint it goes on from; collective.

    `resume` and `changed` as of `find_start`; `init_from` is what was asked for beside the configuration, whose own
    `train.init_from` counts. For `baselines`, which are wanted in the end, there has to be memory. Unless it `writes`
    the run directory stays as it is.
    """
    log = get_logger(world.rank)
    _check_alike(config, world)
    with agreed(world):
        start = find_start(run_dir, resume, config, world, changed, writes=writes)
    origin = None if start.checkpoint else config.train.init_from
    source = open_sound(lambda: resolve(origin), world) if origin else None
    taken: list[str] = []

    def set_weights(initial: Assembled) -> None:
        if source:
            taken.extend(compare_settings(config, source) if init_from and not config.train.init_only_rows else [])
            taken.extend(_take_weights(initial, source))

    store = assemble.open_store(config.data.dir, world)
    with agreed(world):
        if start.checkpoint:
            check_same_data(start.checkpoint, store)
        check_room(baselines, store, world)
        run = assemble.assemble_run(config, world, store, set_weights)
        for line in [*assemble.describe(run), *taken]:
            log.info(line)
        if (note := told_of_compiling(config.train, world)) is not None:
            log.info(note)
        if world.device.type == "cuda" and (lack := lack_of_triton()):
            log.warning(f"each step waits for the GPU, as rows are updated by torch's operators: {lack}")
    if start.checkpoint:
        before = start.checkpoint.config.train  # where it began stays on record
        config.train.init_from, config.train.init_only_rows = before.init_from, before.init_only_rows
        with agreed(world):
            load_training(run, start.checkpoint)
        forget_lost_best(run, run_dir)
        log.info(f"going on from {start.checkpoint.path}, step {run.progress.step}")
        if init_from:
            log.info(f"{init_from}: not read again, this run has begun")
    as_asked = config.model_copy(deep=True)
    with agreed(world):
        if told := settle_threads(run, start.checkpoint.config.train.threads if start.checkpoint else None):
            log.info(told)
        if world.is_main and not writes:
            check_free(run_dir)
        elif world.is_main:
            write_config(run_dir, as_asked)  # what was measured here is no order for elsewhere; checkpoints have it
            for line in record_changes(run_dir, run.progress.step, start.changed):
                log.info(line)
            if taken:
                write_text(run_dir / INIT_FILE, "\n".join(taken) + "\n")
    return run, start


def _check_alike(config: Config, world: World) -> None:
    with agreed(world):
        settings = compared_settings(config)
    check_alike(world, settings, "start all hosts with the same configuration")


def compared_settings(config: Config) -> dict[str, Any]:
    """What all ranks train by: where a host has files, and how many CPUs, is its own affair."""
    return {key: _compared(key, value) for key, value in flat(config).items() if key != "data.dir"}


def _compared(key: str, value: Any) -> Any:
    """What of a setting must be the same on all hosts; where rank 0 has what it begins from counts for all."""
    if key in ("train.init_from", "train.threads"):
        return None if value is None else "set"
    if key in ("model.t5", "task.tokenizer") and value is not None and Path(value).is_dir():
        return f"a directory with {fingerprint_of_directory(Path(value))[:12]}"
    return value


def rehearse(run: Run, start: Start) -> None:
    """Tells what a run that has begun would take, from a few of its steps; writes nothing. Collective."""
    config, world, log = run.config, run.world, get_logger(run.world.rank)
    step, steps = run.progress.step, max(config.train.max_steps - run.progress.step, 0)
    log.info(assemble.describe_room(run))
    with agreed(world):
        a_step, measured = seconds_of_a_step(run)
        started = time.perf_counter()
        wanted = config.evaluation
        result = judge(run, "valid", wanted.protocol, cutoffs_of(wanted), progress=True, sample=wanted.users)
        evaluation = time.perf_counter() - started
    evaluations = -(-steps // config.evaluation.every)
    users = f"evaluations {evaluations:,}, of {result.users:,} users"
    log.info(f"steps   {steps:,}, of {config.train.global_batch_size:,} samples; {users}")
    total = in_hours(steps * a_step + evaluations * evaluation)
    log.info(f"time    about {total}: {1000 * a_step:,.1f} ms a step, {duration(evaluation)} an evaluation")
    log.info(f"        (measured: {measured} steps, 1 evaluation; checkpoints and the test come on top)")
    would = f"go on from step {step}" if start.checkpoint else "begin"
    log.info(f"dry run: nothing was written; {start.run_dir} would {would}")


def run_training(
    run: Run,
    start: Start,
    callbacks: Sequence[Callback] = (),
    on_metrics: OnMetrics | None = None,
    trackers: Trackers = NO_TRACKERS,
) -> None:
    """Trains with logging, evaluation of the valid split and checkpoints attached; collective.

    Until its end a signal, or Ctrl-C, has it save and leave (train/preemption.py).
    """
    main, run_dir = run.world.is_main, start.run_dir
    if beating := heartbeat.mine():
        beating.run_dir = run_dir
    throughput, users = Throughput(), Callbacks(run, callbacks, on_metrics)
    told = [trackers.log, users.on_metrics]
    settings = {key: value for key, value in flat(run.config).items() if key not in FREE_KEYS}
    with (
        MetricsWriter(run_dir, main, run.progress.step or None, told) as writer,
        StepProgress(run.config.train.max_steps, run.progress.step, is_main=main) as progress,
    ):
        writer.describe(dump_config(run.config), settings)
        logging, skipped = LogHook(run, writer, progress, throughput), SkippedHook(run.world.device)
        saving = CheckpointHook(run_dir, writer, throughput)
        try:
            train(run, [logging, skipped, EvaluationHook(writer, throughput), saving, users])
        except BaseException:
            if run.world.size == 1:  # of several ranks one may be gone, without which a save does not end
                saving.wait()
            raise


def train_alone(config: Config, run_dir: Path, world: World, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains in `run_dir`, or goes on there, as one of several trainings that are judged; collective.

    The test split is not looked at. Asked to leave it has saved: `run.asked_to_leave`.
    """
    with the_only_training():
        run, start = begin(config, run_dir, "auto", None, world)
        with _tracked(run, run_dir) as trackers, leaving_on_signal(run):
            run_training(run, start, callbacks, trackers=trackers)
    return run


@contextmanager
def _tracked(run: Run, run_dir: Path) -> Iterator[Trackers]:
    """The trackers of a run; collective. All ranks hear at once of one that rank 0 cannot start."""
    with ExitStack() as stack:
        with agreed(run.world):
            trackers = stack.enter_context(tracking(run.dense.accelerator, run.config, run_dir))
        with agreed(run.world):
            yield trackers


def train_and_test(
    run: Run, start: Start, resume: str, callbacks: Sequence[Callback], on_metrics: OnMetrics | None
) -> list[Result]:
    """Trains to the end and tests the best checkpoint, whose weights `run` then has; collective.

    Nothing is tested where it was asked to leave: `run.asked_to_leave`.
    """
    world, run_dir = run.world, start.run_dir
    log = get_logger(world.rank)
    with _tracked(run, run_dir) as trackers:
        with agreed(world), leaving_on_signal(run):
            run_training(run, start, callbacks, on_metrics, trackers)
        if run.asked_to_leave:
            command = "the same command" if resume == "auto" else "the same command with resume auto"
            log.info(f"stopped as asked: step {run.progress.step} is saved, {command} goes on from there")
            return []
        for line in assemble.describe_end(run):
            log.info(line)
        if world.size > 1:
            for line in assemble.describe_load(run):
                log.info(line)
        results = evaluate_best(run, run_dir)
        show_tested(run, run_dir, results[0], trackers)
    return results


def evaluate_best(run: Run, run_dir: Path) -> list[Result]:
    """The best checkpoint of a finished run on the test split; also `evaluation.json` in the run directory."""
    checkpoint = open_sound(lambda: resolve(run_dir, "best"), run.world)
    load_model(run, checkpoint)
    wanted = run.config.evaluation
    result = judge(run, "test", judge_of(wanted.protocol), wanted.top_n, progress=True)
    if run.world.is_main:
        content = {**result.as_dict(), "step": checkpoint.step}
        write_text(run_dir / "evaluation.json", json.dumps(content, indent=1) + "\n")
    return [result]


def show_tested(run: Run, run_dir: Path, result: Result, trackers: Trackers = NO_TRACKERS) -> None:
    """Gives TensorBoard and trackers the figures of a finished run, and its most popular items; collective.

    They are of the step after the last: a run that is gone on with has TensorBoard forget them.
    """
    main, step = run.world.is_main, run.progress.step + 1
    items, counts = popular_items(run.store, MOST_SHOWN) if main else (np.zeros(0, dtype=np.int64), np.zeros(0))
    wanted = {"items": (ITEM_TABLE, torch.from_numpy(items))} if ITEM_TABLE in run.tables.shards else {}
    rows = run.tables.lookup(wanted).rows[0]
    if not main:
        return
    told, top_n, cutoff = result.tags(), run.config.evaluation.top_n, run.config.evaluation.cutoff
    end = "" if cutoff is None else f"@{cutoff if cutoff in top_n else top_n[0]}"
    with Board(run_dir, step) as board:  # few, by a name before others: its table of runs begins with these
        board.log(step, {f"final/{name}": value for name, value in told.items() if name.endswith(end)})
    trackers.log(step, told)
    if not rows:
        return
    titles = run.store.item_titles()
    about = {} if titles is None else {"title": [titles[item] or "" for item in items]}
    about |= {"item": [str(raw) for raw in run.store.raw_item_ids(items)], "interactions": [str(n) for n in counts]}
    write_projector(run_dir, "items", rows["items"].detach().cpu().numpy(), about)


def _take_weights(initial: Assembled, source: Checkpoint) -> list[str]:
    """Sets the weights to those of `source`; what was taken, in lines."""
    total = sum(4 * rows * dim for rows, dim in source.tables.values())
    with byte_progress("taking weights", total, initial.world.is_main) as on_bytes:
        return take_weights(initial, source, on_bytes)
