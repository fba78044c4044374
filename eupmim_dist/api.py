"""The life of a run, in Python: what `from eupmim_dist import ...` offers, and what the command line calls.

Each function works in one process, as in a notebook, and on every rank under `accelerate launch` or torchrun, where all
ranks call it alike; a mistake is a UserError, on all ranks. docs/python.md shows them in use.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from eupmim_dist import assemble
from eupmim_dist.arguments import (
    ConfigLike,
    StoreLike,
    config_of,
    cutoffs_of,
    evaluated_by,
    path_of,
    several,
    store_dir,
)
from eupmim_dist.checkpoint.changes import changed_settings
from eupmim_dist.checkpoint.run_dir import Start
from eupmim_dist.config.load import Overrides
from eupmim_dist.config.schema import Config
from eupmim_dist.data.categories import read_categories
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.baselines import CUTOFF, cheap_baselines, choose_history, judge_of, lists_of
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.explanations import ranked_of
from eupmim_dist.evaluation.frames import Results
from eupmim_dist.evaluation.judging import results_of_model
from eupmim_dist.evaluation.protocols import EXPLANATION, PROTOCOLS, check_names, check_protocols
from eupmim_dist.evaluation.runner import evaluate_by, ranking_of
from eupmim_dist.evaluation.scorers.interface import check_baselines, check_room, make_scorer
from eupmim_dist.export.source_settings import source_settings
from eupmim_dist.parallel.agreement import agreed, decided_by_main
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import OnMetrics
from eupmim_dist.train.callbacks import Callback
from eupmim_dist.train.state import Assembled, Run, Setup
from eupmim_dist.training import begin, rehearse, the_only_training, train_and_test

_collect_once = cache(gc.collect)
"""A process's first optimizer (torch 2.13) leaves its callers' frames in a cycle, which would keep the run alive."""


@dataclass(frozen=True)
class Fitted:
    """A training that has ended; the same on all ranks but for the rows that a rank holds of the tables."""

    run_dir: Path
    step: int
    """Steps done."""
    finished: bool
    """False if it was asked to stop (Ctrl-C, SIGTERM, a callback): the same call goes on with it."""
    best_value: float | None
    """The best `evaluation.metric` on the valid split, by `evaluation.protocol`: what to choose settings by."""
    best_step: int | None
    model: Assembled = field(repr=False)
    """With the weights of the best checkpoint, to be evaluated and recommended from; of the last if not finished."""
    results: Results = field(repr=False, default_factory=Results)
    """Metrics of the best checkpoint on the test split, then of baselines; empty if not finished."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which is the one to print."""
        return self.model.world.is_main


def fit(
    config: ConfigLike = None,
    run_dir: Path | str = "runs/default",
    *,
    data: StoreLike | None = None,
    overrides: str | Overrides = (),
    resume: Path | str = "auto",
    resume_with: str | Overrides = (),
    init_from: Path | str | None = None,
    baselines: str | Sequence[str] | None = (),
    callbacks: Sequence[Callback] = (),
    on_metrics: OnMetrics | None = None,
    cpu: bool = False,
) -> Fitted:
    """Trains, and tests the best checkpoint on the test split; collective.

    The same call with the same run directory goes on where the last one ended; after the end it only tests again.

    Args:
        config: a `Config`, its sections as a mapping (`{"train": {"max_steps": 500}}`), or a YAML file. Settings that
            it leaves out have their defaults; `eupmim-dist config show --describe` lists all.
        run_dir: where the run writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and evaluation.json.
        data: the store, in place of the configuration's `data.dir`.
        overrides: settings that come before those of `config`, as `{"train.max_steps": 500}` or, as on the command
            line, `["train.max_steps=500"]`.
        resume: `auto`; `never`, which wants a new directory; or the path of a checkpoint to go on from.
        resume_with: settings, as `overrides`, that a run which is gone on with has from here on in place of those it
            had: learning rates, schedule, clipping, regularisation. What was changed when is in `resumed_with.jsonl`.
        init_from: a run, checkpoint or model to take the initial weights from; rows are matched by raw id. So are the
            settings of its model, and its history length, where neither `config` nor `overrides` say them.
        baselines: to be tested beside it, as for `evaluate`; None for those of popularity and association that need
            seconds. One whose memory is not there is refused before the training.
        callbacks: called on every rank, after what the trainer itself does (eupmim_dist.Callback).
        on_metrics: `on_metrics(step, values)`, called on rank 0 with everything that is logged, by the names of
            metrics.jsonl; as `Callback.on_metrics`.
        cpu: use the CPU even where there are GPUs.

    Ctrl-C, SIGTERM and SIGUSR1 (in the main thread), and `run.stop_requested` of a callback, have it save and return
    with `finished` False; a second Ctrl-C is a KeyboardInterrupt at once. What a callback or `on_metrics` raises ends
    the training so too, and is raised then, on other ranks as a RuntimeError that tells it.

    It logs to `logging.getLogger("eupmim_dist")`, and sets the seed of torch's generator and, until its end, the number
    of torch's threads (`train.threads`). There is one training at a time in a process.

    Raises UserError, on all ranks: an unknown or bad setting, a store that cannot be read, a run directory that holds
    something else, a training of other settings or one that is running, a full disk, a training that diverged.
    """
    world = init_world(cpu)
    with agreed(world):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise UserError(f"callbacks: a {type(callback).__name__} is none; derive from eupmim_dist.Callback")
        if on_metrics is not None and not callable(on_metrics):
            raise UserError(f"on_metrics: give a function, not a {type(on_metrics).__name__}")
        place = path_of("run_dir", run_dir)
        start_at = str(path_of("resume", resume, "auto, never or the path of a checkpoint"))
        rivals = None if baselines is None else several(baselines)
        with the_only_training():
            run, start = _begun(
                world, config, place, start_at, data, overrides, resume_with, init_from, rivals, writes=True
            )
            _collect_once()
            results = Results(train_and_test(run, start, start_at, callbacks, on_metrics))
            progress, left = run.progress, run.asked_to_leave
            # Without the optimizers' state, which is twice as large.
            model = Assembled(run.config, world, run.store, run.task, run.model, run.tables)
            del run
        if not left:
            names = cheap_baselines(model.store) if rivals is None else rivals
            wanted = model.config.evaluation
            results.extend(results_of_baselines(names, model, "test", lists_of(wanted.protocol), wanted.top_n))
        return Fitted(place, progress.step, not left, progress.best_value, progress.best_step, model, results)


def _begun(
    world: World,
    config: ConfigLike,
    run_dir: Path,
    resume: str,
    data: StoreLike | None,
    overrides: str | Overrides,
    resume_with: str | Overrides,
    init_from: Path | str | None,
    baselines: Sequence[str] | None,
    *,
    writes: bool,
) -> tuple[Run, Start]:
    """A run as `fit` is asked for it; collective. Raises UserError."""
    with agreed(world):
        check_baselines(baselines or ())
        origin = path_of("init_from", init_from) if init_from else None
        beneath: dict[str, Any] = {"train": {"init_from": str(origin)}} if origin else {}
        if origin:
            if resume not in ("auto", "never"):
                raise UserError(f"--init-from {origin}: begins a new training, --resume {resume} does not; give one")
            if not config_of(config, overrides, beneath).train.init_only_rows:
                beneath |= decided_by_main(world, partial(source_settings, origin, run_dir))
        settings, changed = changed_settings(config_of(config, overrides, beneath), resume_with)
        if data is not None:
            settings.data.dir = store_dir(data)
        settings.train.init_from = origin or settings.train.init_from
    return begin(settings, run_dir, resume, origin, world, changed, baselines=baselines or (), writes=writes)


def dry_run(
    config: ConfigLike = None,
    run_dir: Path | str = "runs/default",
    *,
    overrides: str | Overrides = (),
    resume: Path | str = "auto",
    resume_with: str | Overrides = (),
    init_from: Path | str | None = None,
    baselines: str | Sequence[str] = (),
    cpu: bool = False,
) -> None:
    """Logs what `fit` would train, on what, the memory and the time that it would take; writes nothing. Collective.

    Raises UserError as `fit` before its first step: checkpoints that it would go on from, and weights that it would
    start from, are read.
    """
    world = init_world(cpu)
    with agreed(world), the_only_training():
        with agreed(world):
            place = path_of("run_dir", run_dir)
            start_at = str(path_of("resume", resume, "auto, never or the path of a checkpoint"))
        begun = _begun(
            world, config, place, start_at, None, overrides, resume_with, init_from, several(baselines), writes=False
        )
        rehearse(*begun)


def load(path: Path | str, *, data: StoreLike | None = None, which: str = "best", cpu: bool = False) -> Assembled:
    """A trained model: of a run directory its `best` or `last` checkpoint, a checkpoint, or a model; collective.

    `data` is the store it was trained on, where that no longer lies where the run found it. Each rank holds its part of
    the tables, whatever the number of ranks was. Raises UserError if there is no such model, or if something of it is
    damaged.
    """
    world = init_world(cpu)
    with agreed(world):
        if which not in ("best", "last"):
            raise UserError(f"which={which!r}: choose best or last")
        return assemble.load_trained(path_of("path", path), world, None if data is None else store_dir(data), which)


def evaluate(
    model: Assembled | Fitted | Path | str | None = None,
    *,
    split: str = "test",
    protocols: str | Sequence[str] = ("strict",),
    top_n: int | Sequence[int] | None = None,
    baselines: str | Sequence[str] = (),
    diversity: float = 0.0,
    categories: Any = None,
    overrides: str | Overrides = (),
    data: StoreLike | None = None,
    which: str = "best",
    cpu: bool = False,
) -> Results:
    """Metrics of a trained model, of baselines, or of both: a result for each and each protocol; collective.

    Args:
        model: what `fit` or `load` gave, or a path as for `load`. Without one the `baselines` are evaluated on `data`.
        split: `valid` or `test`.
        protocols: of `strict`, `comirec` and `seed` (README.md, Evaluating), `elmrec_sequential`, `elmrec_direct` and,
            of a model that writes, `elmrec_explanation` (docs/elmrec.md), whose result has the texts: `result.texts`.
        top_n: the cut-offs N; those usual for each protocol if not given: 10, 20, 50, of ELMRec's 1, 5, 10.
        baselines: of `popularity`, `ease`, `cooccurrence`, `association`, `paths`, `history_paths` and `next_id`. Those
            that may read more or less of a history read as many of its last items as give them the best recall on valid
            users, at the first N; at 10 if none is given.
        categories: a data frame, or a CSV or Parquet file, of item (raw ids) and category; adds the metric diversity.
        diversity: above 0, lists are re-ranked for variety of `categories`: the strength of ComiRec's controllable
            aggregation.
        overrides: settings of `evaluation` in place of the model's own, as for `fit`: `["evaluation.more_beams=15"]`.
        data, which, cpu: of a path, as for `load`.

    Returns a list of results (`results[0].metrics["recall@10"]`), `.frame()` a table, on all ranks. Raises UserError.
    """
    world = init_world(cpu)
    with agreed(world):
        names, rivals = several(protocols), several(baselines)
        cutoffs = None if top_n is None else cutoffs_of(top_n)
        if split not in ("valid", "test"):
            raise UserError(f"--split {split}: choose valid or test")
        check_names(names, [EXPLANATION])
        check_baselines(rivals)
        if model is None and not (rivals and data is not None):
            raise UserError("evaluate: give a run or checkpoint, or --baseline NAME with --data DIR")
    with agreed(world):
        setting: Setup
        if model is None:
            setting = assemble.without_model(Config(), world, assemble.open_store(store_dir(data), world))
        else:
            setting = loaded(model, data, which, cpu)
        setting = replace(setting, config=evaluated_by(setting.config, overrides))
        options = {"baseline": rivals, "top-n": cutoffs, "diversity": diversity, "categories": categories is not None}
        ranked = ranked_of(names, setting, split, options)
        check_protocols(ranked, setting.store)
        variety = variety_of(diversity, categories, setting.store, world)
        check_room(rivals, setting.store, world)
        results = Results()
        if isinstance(setting, Assembled):
            results.extend(results_of_model(setting, split, names, cutoffs, variety))
        results.extend(results_of_baselines(rivals, setting, split, ranked, cutoffs, variety))
    return results


def results_of_baselines(
    baselines: Sequence[str],
    setting: Setup,
    split: str,
    protocols: Sequence[str],
    cutoffs: Sequence[int] | None,
    variety: Variety | None = None,
) -> Results:
    """A result for each baseline and protocol, at the protocol's cut-offs if None; collective."""
    results = Results()
    for name in baselines:
        with agreed(setting.world):
            scorer = make_scorer(name, ranking_of(setting))
        histories: dict[str, int | None] = {}
        for protocol in protocols:
            if (judge := judge_of(protocol)) not in histories:
                choose_history(scorer, name, setting, cutoffs[0] if cutoffs else CUTOFF, judge)
                histories[judge] = scorer.history
            scorer.history = histories[judge]
            wanted = cutoffs or PROTOCOLS[protocol].top_n
            results.append(evaluate_by(scorer, name, setting, split, protocol, wanted, variety=variety, progress=True))
    return results


def loaded(model: Assembled | Fitted | Path | str, data: StoreLike | None, which: str, cpu: bool) -> Assembled:
    """A model that may be a path, loaded. Raises UserError as `load`, or where `data` and `which` are of none."""
    if not isinstance(model, Assembled | Fitted):
        return load(model, data=data, which=which, cpu=cpu)
    if data is not None or which != "best":
        raise UserError("data and which: are of a path, and this model is loaded already; leave them out")
    return model.model if isinstance(model, Fitted) else model


def variety_of(strength: float, categories: Any, store: InteractionStore, world: World) -> Variety | None:
    """How lists are to be varied, None for not at all; warns of items without a category. Raises UserError."""
    if not 0 <= strength < math.inf:
        raise UserError(f"--diversity {strength}: give a number from 0")
    if categories is None:
        if strength:
            raise UserError(f"--diversity {strength}: give the items' categories too, as --categories FILE")
        return None
    numbers, notes = read_categories(categories, store)
    for note in notes:
        get_logger(world.rank).warning(note)
    return Variety(torch.from_numpy(numbers), strength)
