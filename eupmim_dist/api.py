"""The life of a run, in Python: what `from eupmim_dist import ...` offers, and what the command line calls.

Each function works in one process, as in a notebook, and on every rank under `accelerate launch` or torchrun; a
mistake is a UserError, on all ranks. docs/python.md shows them in use.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from eupmim_dist import assemble
from eupmim_dist.checkpoint.layout import Checkpoint, resolve
from eupmim_dist.checkpoint.load import load_model, load_training, open_sound
from eupmim_dist.checkpoint.origin import check_same_data
from eupmim_dist.checkpoint.run_dir import Start, find_start, forget_lost_best, write_config
from eupmim_dist.checkpoint.save import CheckpointHook
from eupmim_dist.config.load import apply_overrides, load_config, parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.categories import read_categories
from eupmim_dist.data.formats import Options
from eupmim_dist.data.prepare import no_progress, prepare_frame, prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.frames import recommendations_frame
from eupmim_dist.evaluation.hook import EvaluationHook
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.recommend import Recommendations, recommend_items
from eupmim_dist.evaluation.runner import Result, evaluate_model, evaluate_scorer, held_out_users, ranking_of
from eupmim_dist.evaluation.scorers.interface import check_baselines, make_scorer
from eupmim_dist.export.init_from import INIT_FILE, take_weights
from eupmim_dist.files import write_text
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.world import init_world
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import StepProgress, byte_progress
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.train.hooks import Hook, LogHook
from eupmim_dist.train.loop import train
from eupmim_dist.train.preemption import leaving_on_signal
from eupmim_dist.train.state import Assembled, Run, Setup

ConfigLike = Config | Mapping[str, Any] | Path | str | None
"""A configuration, its sections as a mapping, a YAML file, or None for the defaults."""
OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Told of a step and the numbers that are logged of it, by the names of metrics.jsonl; on rank 0 only."""


@dataclass(frozen=True)
class Fitted:
    """A training that has ended."""

    run_dir: Path
    step: int
    finished: bool
    """False if it was asked to stop (Ctrl-C, SIGTERM, a callback): the same call goes on with it."""
    model: Assembled
    """With the weights of the best checkpoint, to be evaluated and recommended from; of the last if not finished."""
    results: list[Result] = field(default_factory=list)
    """Metrics of the best checkpoint on the test split; empty if not finished."""


def prepare(
    source: Any,
    out: Path | str,
    *,
    format: str | None = None,
    name: str | None = None,
    force: bool = False,
    **options: Any,
) -> InteractionStore:
    """Makes an interaction store of a data frame or of files; returns it, opened. Not collective: call it on one rank.

    Args:
        source: a data frame of polars, pandas or any other library with the Arrow interface, a row for each
            interaction; or the path of a file or directory, whose `format` is then to be given.
        out: the directory of the new store. `force` replaces a store there.
        format: as `eupmim-dist prepare --format`; not for data frames.
        options: columns and rules as of `eupmim-dist prepare`: user_column, item_column, time_column, attributes,
            title_column, min_count, split, seed.

    Raises UserError, with nothing half-written, for what is wrong with the source or the options.
    """
    try:
        chosen = Options(**{**options, "attributes": tuple(options.get("attributes", ()))})
    except TypeError as error:
        raise UserError(f"prepare: {str(error).partition(') ')[2] or error}") from None
    out = Path(out)
    if isinstance(source, str | Path):
        if format is None:
            raise UserError(f"prepare: say which format {source} has, such as format='csv'")
        prepare_store(Path(source), out, format, chosen, name=name, force=force, progress=no_progress)
    else:
        if format is not None:
            raise UserError(f"prepare: a data frame has no format; leave out format={format!r}")
        prepare_frame(_frame(source), out, chosen, name=name, force=force)
    return InteractionStore.open(out)


def fit(
    config: ConfigLike = None,
    run_dir: Path | str = "runs/default",
    *,
    data: InteractionStore | Path | str | None = None,
    overrides: Sequence[str] = (),
    resume: str = "auto",
    init_from: Path | str | None = None,
    callbacks: Sequence[Hook] = (),
    on_metrics: OnMetrics | None = None,
    cpu: bool = False,
) -> Fitted:
    """Trains, evaluates the best checkpoint on the test split, and returns both; collective.

    The same call with the same run directory goes on where the last one ended.

    Args:
        data: the store, in place of the configuration's data.dir.
        overrides: `a.b=value` settings, as `--set` of the command line.
        resume: `auto`, `never`, or the path of a checkpoint to go on from.
        init_from: a run, checkpoint or model to take the initial weights from.
        callbacks: objects with `after_step(run, outcome)` and `at_end(run)` (train/hooks.py), called on every rank,
            after those of the trainer itself. `run.stop_requested = True` ends the training some steps later.
        on_metrics: called on rank 0 with everything that is logged. What it or a callback raises ends the training.
        cpu: use the CPU even where there are GPUs.

    Raises UserError, on all ranks.
    """
    world, run_dir = init_world(cpu), Path(run_dir)
    log = get_logger(world.rank)
    with agreed(world):
        settings = _config(config, overrides, data)
        if init_from:
            settings.train.init_from = Path(init_from)
            if resume not in ("auto", "never"):
                raise UserError(f"--init-from {init_from}: begins a new training, --resume {resume} does not; give one")
    with agreed(world):
        start = find_start(run_dir, resume, settings, world)
    origin = None if start.checkpoint else settings.train.init_from
    source = open_sound(lambda: resolve(origin), world) if origin else None
    taken: list[str] = []

    def set_weights(initial: Assembled) -> None:
        if source:
            taken.extend(_take_weights(initial, source))

    store = assemble.open_store(settings.data.dir, world)
    with agreed(world):
        run = assemble.assemble_run(settings, world, store, set_weights)
        if start.checkpoint:
            check_same_data(start.checkpoint, store)
        for line in [*assemble.describe(run), *taken]:
            log.info(line)
    if start.checkpoint:
        settings.train.init_from = start.checkpoint.config.train.init_from  # stays on record
        with agreed(world):
            load_training(run, start.checkpoint)
        forget_lost_best(run, run_dir)
        log.info(f"going on from {start.checkpoint.path}, step {run.progress.step}")
        if init_from:
            log.info(f"--init-from {init_from}: not read again, this run has begun")
    with agreed(world):
        if world.is_main:
            write_config(run_dir, settings)
            if taken:
                write_text(run_dir / INIT_FILE, "\n".join(taken) + "\n")
    with agreed(world), leaving_on_signal(run):
        run_training(run, start, callbacks, on_metrics)
    if run.asked_to_leave:
        command = "the same command" if resume == "auto" else "the same command with --resume auto"
        log.info(f"stopped as asked: step {run.progress.step} is saved, {command} goes on from there")
        return Fitted(run_dir, run.progress.step, False, run)
    with agreed(world):
        log.info(assemble.describe_end(run))
        if world.size > 1:
            for line in assemble.describe_load(run):
                log.info(line)
        results = evaluate_best(run, run_dir)
    return Fitted(run_dir, run.progress.step, True, run, results)


def load(path: Path | str, *, data: Path | str | None = None, which: str = "best", cpu: bool = False) -> Assembled:
    """A trained model: of a run directory its `best` or `last` checkpoint, a checkpoint, or a model; collective.

    `data` names another place of the store it was trained on. Raises UserError.
    """
    world = init_world(cpu)
    with agreed(world):
        return assemble.load_trained(Path(path), world, None if data is None else Path(data), which)


def evaluate(
    model: Assembled | Fitted | Path | str | None,
    *,
    split: str = "test",
    protocols: Sequence[str] = ("strict",),
    top_n: Sequence[int] = (10, 20, 50),
    baselines: Sequence[str] = (),
    diversity: float = 0.0,
    categories: Path | str | None = None,
    data: Path | str | None = None,
    which: str = "best",
    cpu: bool = False,
) -> list[Result]:
    """Metrics of a trained model, of baselines, or of both, a result for each and each protocol; collective.

    Without a model the baselines are evaluated on the store `data`. `which`, `data`: as of `load`.

    `categories`, a table of items' categories (data/categories.py), adds the metric diversity; with `diversity` above 0
    lists are re-ranked for it: the strength of ComiRec's controllable aggregation. Raises UserError.
    """
    world = init_world(cpu)
    with agreed(world):
        if split not in ("valid", "test"):
            raise UserError(f"--split {split}: choose valid or test")
        for name in protocols:
            if name not in PROTOCOLS:
                raise UserError(f"--protocol {name}: choose from {', '.join(PROTOCOLS)}")
        check_baselines(baselines)
        if model is None and not (baselines and data):
            raise UserError("evaluate: give a run or checkpoint, or --baseline NAME with --data DIR")
    with agreed(world):
        setting: Setup
        if model is None:
            setting = assemble.without_model(Config(), world, assemble.open_store(Path(str(data)), world))
        else:
            setting = _loaded(model, data, which, cpu)
        variety = _variety(diversity, categories, setting.store)
        results: list[Result] = []
        if isinstance(setting, Assembled):
            for protocol in protocols:
                results.append(evaluate_model(setting, split, protocol, top_n, variety=variety, progress=True))
        users = held_out_users(setting, split)
        for name in baselines:
            with agreed(world):
                scorer = make_scorer(name, ranking_of(setting))
            for protocol in protocols:
                results.append(
                    evaluate_scorer(
                        scorer, name, users, PROTOCOLS[protocol], top_n, world, variety=variety, progress=True
                    )
                )
    return results


def recommend(
    model: Assembled | Fitted | Path | str, users: Sequence[str | int], top_n: int = 10, **options: Any
) -> pl.DataFrame:
    """The best items for users, by their raw ids, from their whole history, as a data frame; on one rank.

    Columns: user, rank (from 1), item (raw id), title (null where unknown), score, interest (from 1). Options and
    errors as of `recommendations`.
    """
    return recommendations_frame(recommendations(model, users, top_n, **options))


def recommendations(
    model: Assembled | Fitted | Path | str,
    users: Sequence[str | int],
    top_n: int = 10,
    *,
    exclude_seen: bool = True,
    diversity: float = 0.0,
    categories: Path | str | None = None,
    data: Path | str | None = None,
    which: str = "best",
) -> list[Recommendations]:
    """The best items for each of some users, and what they had last; on one rank.

    `exclude_seen` leaves out what a user had already; `diversity` and `categories` as of `evaluate`, `data` and `which`
    as of `load`. Raises UserError for an unknown user or more items than there are.
    """
    trained = _loaded(model, data, which, cpu=True)
    variety = _variety(diversity, categories, trained.store)
    return recommend_items(trained, [str(user) for user in users], top_n, exclude_seen=exclude_seen, variety=variety)


def run_training(run: Run, start: Start, callbacks: Sequence[Hook] = (), on_metrics: OnMetrics | None = None) -> None:
    """Trains with logging, evaluation of the valid split and checkpoints attached; collective."""
    main, run_dir = run.world.is_main, start.run_dir
    throughput = Throughput()
    with (
        MetricsWriter(run_dir, enabled=main, resume_step=run.progress.step or None, on_metrics=on_metrics) as writer,
        StepProgress(run.config.train.max_steps, run.progress.step, is_main=main) as progress,
    ):
        train(
            run,
            [
                LogHook(writer, progress, throughput),
                EvaluationHook(writer, throughput),
                CheckpointHook(run_dir, throughput),
                *callbacks,
            ],
        )


def evaluate_best(run: Run, run_dir: Path) -> list[Result]:
    """The best checkpoint of a finished run on the test split; also `evaluation.json` in the run directory."""
    checkpoint = open_sound(lambda: resolve(run_dir, "best"), run.world)
    load_model(run, checkpoint)
    result = evaluate_model(run, "test", "strict", run.config.evaluation.top_n, progress=True)
    if run.world.is_main:
        content = {**result.as_dict(), "step": checkpoint.step}
        write_text(run_dir / "evaluation.json", json.dumps(content, indent=1) + "\n")
    return [result]


def _config(config: ConfigLike, overrides: Sequence[str], data: InteractionStore | Path | str | None) -> Config:
    if isinstance(config, Config):
        settings = _config(config.model_dump(), overrides, None)
    elif isinstance(config, Mapping):
        values = copy.deepcopy(dict(config))
        apply_overrides(values, overrides)
        settings = parse_config(values, source="configuration")
    else:
        settings = load_config(None if config is None else Path(config), overrides)
    if data is not None:
        settings.data.dir = data.path if isinstance(data, InteractionStore) else Path(data)
    return settings


def _frame(source: Any) -> pl.LazyFrame:
    if isinstance(source, pl.LazyFrame):
        return source
    try:
        return pl.DataFrame(source).lazy()
    except (TypeError, ValueError, ImportError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"prepare: a {type(source).__name__} is no data frame ({error}); "
            "give one of polars, pandas or Arrow, or a path"
        ) from None


def _variety(strength: float, categories: Path | str | None, store: InteractionStore) -> Variety | None:
    if not 0 <= strength < math.inf:
        raise UserError(f"--diversity {strength}: give a number from 0")
    if categories is None:
        if strength:
            raise UserError(f"--diversity {strength}: give the items' categories too, as --categories FILE")
        return None
    return Variety(torch.from_numpy(read_categories(Path(categories), store)), strength)


def _loaded(model: Assembled | Fitted | Path | str, data: Path | str | None, which: str, cpu: bool) -> Assembled:
    if isinstance(model, Fitted):
        return model.model
    return model if isinstance(model, Assembled) else load(model, data=data, which=which, cpu=cpu)


def _take_weights(initial: Assembled, source: Checkpoint) -> list[str]:
    """Sets the weights to those of `source`; what was taken, in lines."""
    total = sum(4 * rows * dim for rows, dim in source.tables.values())
    with byte_progress("taking weights", total, initial.world.is_main) as on_bytes:
        return take_weights(initial, source, on_bytes)
