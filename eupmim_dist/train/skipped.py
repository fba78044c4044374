"""Ends a training that has diverged: many steps in a row whose gradients were not finite, and so were skipped."""

import torch

from eupmim_dist.errors import UserError
from eupmim_dist.train.state import Outcome, Run

MOST_SKIPPED = 20
"""Steps in a row, after which training ends."""


class Diverged(UserError):
    """The settings led nowhere; others may."""


class SkippedHook:
    """Raises Diverged, on all ranks, since a verdict is that of all.

    It counts on the device and looks after every step on a CPU; on a GPU, which it would have to wait for, after every
    MOST_SKIPPED steps and at the end, and finds skipped steps that have ended by then too.
    """

    def __init__(self, device: torch.device) -> None:
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._longest = self._until = self._in_a_row  # the most so far, and the last step of those
        self._every = 1 if device.type == "cpu" else MOST_SKIPPED

    def after_step(self, run: Run, outcome: Outcome) -> None:
        step = run.progress.step
        self._in_a_row = torch.where(outcome.verdict.ok, 0, self._in_a_row + 1)
        self._until = torch.where(self._in_a_row > self._longest, step, self._until)
        self._longest = torch.maximum(self._longest, self._in_a_row)
        if step % self._every == 0:
            self._judge()

    def at_end(self, run: Run) -> None:
        self._judge()

    def _judge(self) -> None:
        skipped = int(self._longest)
        if skipped >= MOST_SKIPPED:
            raise Diverged(
                f"step {int(self._until)}: the gradients of the last {skipped} steps were not finite, so all were "
                "skipped; lower train.learning_rate, set train.clip_norm, or go on from an earlier checkpoint"
            )
