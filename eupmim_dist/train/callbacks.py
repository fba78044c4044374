"""What users hang on a training from outside: called after the trainer's own hooks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.telemetry.metrics import OnMetrics
from eupmim_dist.train.state import Outcome, Run


class Callback:
    """Something to be called while a training runs; override what you need.

    `run.progress` says where it stands: `step`, `best_value`, `best_step`, `evaluations_since_best`, alike on all
    ranks. `run.world.is_main` is true on rank 0. To end the training, set on any rank, at any time,

        run.end_requested = True    as if the last step were done: the best checkpoint is tested
        run.stop_requested = True   unfinished: what there is is saved, and the same call goes on from there

    All ranks end after the same step, at most two later. What a callback raises ends it so too, unfinished; then it is
    raised, on the other ranks as an error that names the rank and the reason.
    """

    def after_step(self, run: Run, outcome: Outcome) -> None:
        """On every rank, after each step and what follows it: log, evaluation, checkpoint.

        `run.progress.step` steps are done. `outcome` is on the device: reading it, with `.item()` say, waits for a GPU.
        """

    def on_metrics(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        """On rank 0, when something is logged, by the names of `metrics.jsonl`, such as `valid/strict/recall@10`.

        Of one step there may be two: the losses, every `train.log_every` steps, and an evaluation, every
        `evaluation.every`.
        """

    def at_end(self, run: Run) -> None:
        """On every rank, when the training has ended and its last checkpoint is written; not after an error."""


class Callbacks:
    """The hook that calls a user's callbacks, and keeps what one of them raises until all ranks have stopped.

    A rank that left at once would leave the others in the middle of a step, and none of them could train again.
    """

    def __init__(self, run: Run, callbacks: Sequence[Callback], on_metrics: OnMetrics | None) -> None:
        self._run, self._callbacks, self._on_metrics = run, callbacks, on_metrics
        self._failure: Exception | None = None

    def after_step(self, run: Run, outcome: Outcome) -> None:
        for callback in self._callbacks:
            self._call(callback.after_step, run, outcome)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._on_metrics is not None:
            self._call(self._on_metrics, step, values)
        for callback in self._callbacks:
            self._call(callback.on_metrics, self._run, step, values)

    def at_end(self, run: Run) -> None:
        failed = everywhere(self._failure is not None, run.world)
        if self._failure is not None:
            raise self._failure
        if not any(failed):
            for callback in self._callbacks:
                callback.at_end(run)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._failure is None:
            try:
                function(*arguments)
            except Exception as error:
                self._failure, self._run.stop_requested = error, True
