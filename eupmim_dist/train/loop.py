"""The training loop: steps until the last one or until a hook says stop."""

from collections.abc import Sequence

from eupmim_dist.train.hooks import Hook
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import train_step


def train(run: Run, hooks: Sequence[Hook]) -> None:
    """Trains from `run.progress.step` on. Every rank makes the same number of steps (design 3.6)."""
    progress = run.progress
    first = progress.step
    run.dense.module.train()
    while progress.step < run.config.train.max_steps and not progress.stopped:
        parts = train_step(run, progress.step)
        progress.step += 1
        for hook in hooks:
            hook.after_step(run, parts)
    if progress.step > first:  # going on with a finished run changes nothing
        for hook in hooks:
            hook.at_end(run)
