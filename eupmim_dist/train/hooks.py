"""What happens between steps: a hook is called after every step, on every rank, in the order given."""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import TrainProgress
from eupmim_dist.telemetry.throughput import Throughput
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import l2_term


class Hook(Protocol):
    def after_step(self, run: Run, parts: dict[str, Tensor]) -> None:
        """`parts` are this rank's shares of the step's loss, on the device; `run.progress.step` steps are done."""

    def at_end(self, run: Run) -> None:
        """Training has ended, by its steps or early."""


class LogHook:
    """Loss, its parts and samples/s every `train.log_every` steps, the mean over the window and the ranks."""

    def __init__(self, writer: MetricsWriter, progress: TrainProgress, throughput: Throughput) -> None:
        self.writer, self.progress, self.throughput = writer, progress, throughput
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def after_step(self, run: Run, parts: dict[str, Tensor]) -> None:
        for name, part in parts.items():
            self._sums[name] = self._sums[name] + part if name in self._sums else part.clone()
        self._steps += 1
        self.throughput.add(run.config.train.global_batch_size)
        if run.progress.step % run.config.train.log_every == 0:
            self._log(run)

    def at_end(self, run: Run) -> None:
        if self._steps:
            self._log(run)

    def _log(self, run: Run) -> None:
        dense_l2, tables_l2 = l2_term(run)
        shares = torch.stack([*(total / self._steps for total in self._sums.values()), tables_l2])
        if run.world.size > 1:
            dist.all_reduce(shares)
        shares[-1] += dense_l2
        values = dict(zip([*self._sums, "l2"], shares.tolist(), strict=True))
        loss, rate = sum(values.values()), self.throughput.rate()
        step = run.progress.step
        self.writer.log(
            step,
            {
                "loss": loss,
                **{f"loss/{name}": value for name, value in values.items()},
                "samples_per_second": rate,
            },
        )
        value = run.progress.best_value
        best = None if value is None else (f"valid {run.config.evaluation.metric}", value)
        self.progress.update(step, loss, rate, best)
        self._sums, self._steps = {}, 0
