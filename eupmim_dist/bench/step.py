"""Speed of the full training step and of the evaluation, on the ranks it is started with and the threads of `train`."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.bench.gauges import product_flops
from eupmim_dist.bench.plain import PlainStep
from eupmim_dist.config.schema import Config
from eupmim_dist.data.batch import Batch
from eupmim_dist.evaluation.judging import judge
from eupmim_dist.objectives.interface import Candidates
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import device_name
from eupmim_dist.train.step import PHASES, prepare_step, train_step
from eupmim_dist.train.threads import settle_threads, threads_restored

WARM_UP_STEPS = 10
PROFILED_STEPS = 11
"""One to count what it computes, the others to see where its time goes."""


@threads_restored()
def measure_step(config: Config, world: World, steps: int, repeats: int, *, plain: bool = False) -> dict[str, Any]:
    """Medians over `repeats` of training samples/s (`steps` steps each) and of evaluation users/s; on a CPU also where
    a step's time goes, and what share of a large matrix product's speed it reaches. With `plain` also of the authors'
    step (plain.py), by turns with ours.

    Raises UserError if `plain` has no such model.
    """
    run = assemble_run(config, world, open_store(config.data.dir, world))
    if line := settle_threads(run):
        get_logger(world.rank).info(line)
    run.dense.module.train()
    authors = PlainStep(run) if plain else None
    num_steps = WARM_UP_STEPS + repeats * steps + PROFILED_STEPS
    with Prefetcher(partial(prepare_step, run), world, num_steps - 1, config.train.prefetch) as batches:

        def some_steps(number: int) -> None:
            for _ in range(number):
                train_step(run, run.progress.step, batches.take(run.progress.step))
                run.progress.step += 1

        some_steps(WARM_UP_STEPS)
        run.tables.traffic.clear()
        batches.waited_seconds = 0.0
        works: list[Callable[[], object]] = [lambda: some_steps(steps)]
        if authors is not None:
            batches_of = (prepare_step(run, step).micro_batches for step in range(steps))
            given = [(batch.to(world.device), drawn.to(world.device)) for [(batch, drawn)] in batches_of]
            works.append(lambda: _plain_steps(authors, given))
        training, *other = _median_seconds(works, repeats, world)
        waited = 1000 * batches.waited_seconds / (repeats * steps)
        exchanged = {
            f"{kind} exchange ms/step": 1000 * cost.seconds / (repeats * steps)
            for kind, cost in run.tables.traffic.items()
        }
        where = _profiled(lambda: some_steps(1), training / steps) if world.device.type == "cpu" else {}
    beside = {}
    for seconds in other:
        beside["the authors' step samples/s"] = config.train.global_batch_size * steps / seconds
        beside["times the authors' step"] = seconds / training
    protocol, cutoffs = config.evaluation.protocol, config.evaluation.top_n
    num_users = judge(run, "test", protocol, cutoffs).users  # the first one warms up
    [evaluation] = _median_seconds([lambda: judge(run, "test", protocol, cutoffs)], repeats, world)
    return {
        "device": device_name(world.device),
        "ranks": world.size,
        "threads per rank": torch.get_num_threads(),
        "torch": torch.__version__,
        "data": run.store.name,
        "global batch": config.train.global_batch_size,
        "prefetch": config.train.prefetch,
        "training ms/step": 1000 * training / steps,
        "waited for batch ms/step": waited,
        **exchanged,
        **where,
        "training samples/s": config.train.global_batch_size * steps / training,
        **beside,
        "evaluation protocol": protocol,
        "evaluation users": num_users,
        "evaluation users/s": num_users / evaluation,
    }


def _plain_steps(authors: PlainStep, given: Sequence[tuple[Batch, Candidates]]) -> None:
    for batch, candidates in given:
        authors.step(batch, candidates)


def _profiled(step: Callable[[], None], seconds: float) -> dict[str, float]:
    """The phases of a step that takes `seconds`, and its arithmetic beside a large matrix product's, as far as torch
    counts it: not the products within GRU4Rec's cells, nor some of causal attention."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED_STEPS - 1):
            step()
    taken = {event.key: event.cpu_time_total for event in profiled.key_averages() if event.key in PHASES}
    whole = sum(taken.values())
    speed, most = (
        counter.get_total_flops() / seconds / 1e9,
        product_flops(1024, torch.float32, torch.device("cpu")) / 1e9,
    )
    return {
        **{f"{phase} % of the step": 100 * taken[phase] / whole for phase in PHASES if phase in taken},
        "products of a step, GFLOP": counter.get_total_flops() / 1e9,
        "products GFLOP/s": speed,
        "a large product's GFLOP/s": most,
        "share of that %": 100 * speed / most,
    }


def _median_seconds(works: Sequence[Callable[[], object]], repeats: int, world: World) -> list[float]:
    """Of each, by turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, seconds in zip(works, taken, strict=True):
            barrier(world)
            started = time.perf_counter()
            work()
            barrier(world)
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]
