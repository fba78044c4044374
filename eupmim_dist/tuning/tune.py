"""A search over settings, judged on the valid split: `from eupmim_dist import tune`."""

import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eupmim_dist import assemble
from eupmim_dist.arguments import ConfigLike, StoreLike, config_of, path_of, store_dir
from eupmim_dist.config.load import Overrides
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.tuning.jobs import Job, gpus
from eupmim_dist.tuning.results import Trial, Tuning, in_numbers, ranked
from eupmim_dist.tuning.search import Search
from eupmim_dist.tuning.space import knobs_of
from eupmim_dist.tuning.study import PRUNERS, check_optuna, importance_of, occupied, open_study, pins_of


def tune(
    config: ConfigLike = None,
    space: Mapping[str, Any] | None = None,
    *,
    trials: int = 20,
    out: Path | str = "runs/tune",
    data: StoreLike | None = None,
    overrides: str | Overrides = (),
    metric: str | None = None,
    jobs: int | None = None,
    timeout: float | None = None,
    pruner: str = "median",
    cpu: bool = False,
    command: str | None = None,
) -> Tuning:
    """Trains with one setting after another, chosen by Optuna's TPE, and tells which is best on the valid split.

    Each trial is a run in `out`, judged by the best `evaluation.metric` under `evaluation.protocol`; the test split is
    never looked at. The same call goes on with a search that was interrupted; with more trials it searches on. Also
    writes `best.yaml` to `out`, which trains.

    Args:
        config: around which settings are searched, as for `fit`; its `seed` is the search's too.
        space: what is searched, by key: a range (`"1..3"`, `"1e-4..1e-2 log"`, `"0..1 step 0.1"`) or values
            (`[32, 64]`, `"32,64"`).
        trials: how many in all, whatever became of them.
        out: where the search writes.
        data: the store, in place of the configuration's `data.dir`.
        overrides: settings that come before those of `config`, as for `fit`.
        metric: in place of the configuration's `evaluation.metric`.
        jobs: processes that train side by side; one for each visible GPU if not given, or one.
        timeout: minutes after which what is under way is saved and the search ends.
        pruner: `median` ends trials that are below the median of the others at the same step, `halving` all but the
            best third at growing steps (asynchronous successive halving), `none` none.
        cpu: use the CPU even where there are GPUs.
        command: what best.yaml names as the command it was made by.

    Ctrl-C and SIGTERM (in the main thread) have trials saved; then `finished` is False.

    Raises UserError: before the first trial for settings that do not exist or cannot have such values, for a
    configuration that cannot be trained, and an `out` of another search; later when three trials in a row failed.
    """
    check_optuna()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("tune: runs on one rank and starts processes itself; start it without a launcher")
    most, number, seconds = _whole("--trials", trials), _jobs(jobs, cpu), _seconds(timeout)
    if pruner not in PRUNERS:
        raise UserError(f"--pruner {shown(pruner)}: choose from {', '.join(PRUNERS)}")
    place = path_of("out", out)
    settings = _settings(config, overrides, data, metric)
    knobs = knobs_of(space, settings, overrides)
    if settings.world_size not in (None, 1):
        raise UserError(f"world_size: {settings.world_size}, and each trial is trained by one process; leave it out")
    here = World(0, 1, 0, 1, torch.device("cpu"))  # for looking only: jobs have the GPUs
    store = assemble.open_store(settings.data.dir, here)
    assemble.trainable(settings, here, store)
    with occupied(place, pins_of(settings, knobs, pruner, store)):
        study = open_study(place, pruner, settings)
        workers = [Job(each, number, place, cpu) for each in range(number)]
        search = Search(study, settings, knobs, most, place, workers, lambda best: _header(search, best, command))
        with task_progress("trials", most) as search.advance:
            search.run(seconds)
        search.write_best()  # which says of how many
        found = search.trials()
        finished = sum(trial.state != "unfinished" for trial in found) >= most
        best = next(iter(ranked(found)), None)
        if finished and best is None:
            raise UserError(f"no trial is done: {in_numbers(found)}; the last one: {found[-1].reason}")
        if not finished:
            over = sum(trial.state != "unfinished" for trial in found)
            told = f", best {best.value:.4f} by trial {best.number}" if best else ""
            get_logger().info(f"stopped: {over} of {most} trials have ended{told}; the same command goes on")
        return Tuning(
            trials=found,
            metric=settings.evaluation.metric,
            protocol=settings.evaluation.protocol,
            out=place,
            config=config_of(settings, best.settings) if best else None,
            importance=importance_of(study),
            finished=finished,
            timed_out=search.timed_out,
        )


def _settings(config: ConfigLike, overrides: str | Overrides, data: StoreLike | None, metric: str | None) -> Config:
    settings = config_of(config, overrides)
    if metric is not None:
        try:
            settings = config_of(settings, {"evaluation.metric": metric})
        except UserError as error:
            raise UserError(f"--metric: {error.as_typed.removeprefix('configuration: ')}") from None
    if data is not None:
        settings.data.dir = store_dir(data)
    return settings


def _header(search: Search, best: Trial, command: str | None) -> str:
    rules, trials = search.config.evaluation, search.trials()
    made = f"# by: {' '.join(command.split())}\n" if command else ""
    return (
        f"# The best of {in_numbers(trials)}: {rules.metric} {best.value:.6f} on the valid split, protocol "
        f"{rules.protocol}, at step {best.step:,}.\n# trial {best.number} ({best.run_dir.name})\n{made}"
    )


def _whole(option: str, number: Any) -> int:
    try:
        found = operator.index(number)
    except TypeError:
        found = 0
    if not 1 <= found <= 100_000:
        raise UserError(f"{option} {short(number)}: give a whole number from 1")
    return found


def _jobs(jobs: Any, cpu: bool) -> int:
    return max(1, len(gpus(cpu))) if jobs is None else _whole("--jobs", jobs)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, int | float) or not math.isfinite(timeout) or timeout <= 0:
        raise UserError(f"--timeout {short(timeout)}: give minutes, above 0")
    return 60.0 * timeout
