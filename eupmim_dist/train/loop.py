"""The training loop: steps until the last one or until a hook says stop."""

from collections.abc import Sequence
from functools import partial

from eupmim_dist.parallel import heartbeat
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.train.hooks import Hook
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step


def train(run: Run, hooks: Sequence[Hook]) -> None:
    """Trains from `run.progress.step` on. Every rank makes the same number of steps (design 3.6)."""
    progress, settings = run.progress, run.config.train
    first = progress.step
    run.dense.module.train()
    with Prefetcher(partial(prepare_step, run), run.world, settings.max_steps - 1, settings.prefetch) as batches:
        while progress.step < settings.max_steps and not progress.stopped:
            heartbeat.reached(progress.step + 1)
            prepared = batches.take(progress.step)
            if prepared.plan.stop:  # before the step, which an evaluation might follow
                run.asked_to_leave = any(everywhere(run.stop_requested, run.world))
                run.end_requested = not run.asked_to_leave
                break
            outcome = train_step(run, progress.step, prepared)
            progress.step += 1
            for hook in hooks:
                hook.after_step(run, outcome)
    if progress.step > first or run.asked_to_leave:  # going on with a finished run changes nothing
        for hook in hooks:
            hook.at_end(run)
    heartbeat.reached(None)
