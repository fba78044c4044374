"""Speed of the full training step and of the evaluation, on the ranks it is started with and the threads of `train`."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.config.schema import Config
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import device_name
from eupmim_dist.train.step import prepare_step, train_step
from eupmim_dist.train.threads import settle_threads, threads_restored

WARM_UP_STEPS = 10


@threads_restored()
def measure_step(config: Config, world: World, steps: int, repeats: int) -> dict[str, object]:
    """Medians over `repeats` of training samples/s (`steps` steps each) and of evaluation users/s."""
    run = assemble_run(config, world, open_store(config.data.dir, world))
    if line := settle_threads(run):
        get_logger(world.rank).info(line)
    run.dense.module.train()
    num_steps = WARM_UP_STEPS + repeats * steps
    with Prefetcher(partial(prepare_step, run), world, num_steps - 1, config.train.prefetch) as batches:

        def some_steps(number: int) -> None:
            for _ in range(number):
                train_step(run, run.progress.step, batches.take(run.progress.step))
                run.progress.step += 1

        some_steps(WARM_UP_STEPS)
        run.tables.traffic.clear()
        batches.waited_seconds = 0.0
        training = _median_seconds(lambda: some_steps(steps), repeats, world)
        waited = 1000 * batches.waited_seconds / (repeats * steps)
        exchanged = {
            f"{kind} exchange ms/step": 1000 * cost.seconds / (repeats * steps)
            for kind, cost in run.tables.traffic.items()
        }
    protocol, cutoffs = config.evaluation.protocol, config.evaluation.top_n
    num_users = evaluate_model(run, "test", protocol, cutoffs).users  # the first one warms up
    evaluation = _median_seconds(lambda: evaluate_model(run, "test", protocol, cutoffs), repeats, world)
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
        "training samples/s": config.train.global_batch_size * steps / training,
        "evaluation protocol": protocol,
        "evaluation users": num_users,
        "evaluation users/s": num_users / evaluation,
    }


def _median_seconds(work: Callable[[], object], repeats: int, world: World) -> float:
    taken = []
    for _ in range(repeats):
        barrier(world)
        started = time.perf_counter()
        work()
        barrier(world)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
