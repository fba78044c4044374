"""What happens between steps: a hook is called after every step, on every rank, in the order given."""

from typing import Protocol

import torch
from torch import Tensor

from eupmim_dist.optim.schedule import rate_factor
from eupmim_dist.parallel.collectives import sum_
from eupmim_dist.parallel.exchange import KINDS, all_reduce_bytes
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import StepProgress
from eupmim_dist.telemetry.throughput import SECONDS, Throughput
from eupmim_dist.train.state import Outcome, Run

BYTES = "bytes_sent/"
"""What metrics of the bytes that a rank sends in a step begin with: of look-ups by KINDS, and bytes_sent/dense."""


class Hook(Protocol):
    def after_step(self, run: Run, outcome: Outcome) -> None:
        """`run.progress.step` steps are done; reading the outcome on the host waits for the device."""

    def at_end(self, run: Run) -> None:
        """Training has ended, by its steps or early."""


class LogHook:
    """Loss, its parts, gradient norm and samples/s every `train.log_every` steps; of several ranks the bytes they send.

    Means over the steps of the window that were not skipped, and over the ranks.
    """

    def __init__(self, run: Run, writer: MetricsWriter, progress: StepProgress, throughput: Throughput) -> None:
        self.writer, self.progress, self.throughput = writer, progress, throughput
        self._sent = run.tables.traffic.sent()
        gradients = sum(part.nbytes for part in run.dense.module.parameters() if part.requires_grad)
        self._dense_bytes = all_reduce_bytes(gradients, run.world)
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def after_step(self, run: Run, outcome: Outcome) -> None:
        verdict = outcome.verdict
        for name, value in {"used": torch.ones_like(verdict.norm), "norm": verdict.norm, **outcome.shares}.items():
            value = torch.where(verdict.ok, value, 0.0)  # a skipped step tells nothing of the others
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self.throughput.add(run.config.train.global_batch_size)
        if run.progress.step % run.config.train.log_every == 0:
            self._log(run)
        else:
            self.progress.tick(run.progress.step)

    def at_end(self, run: Run) -> None:
        if self._steps:
            self._log(run)

    def _log(self, run: Run) -> None:
        step, sums, num_steps = run.progress.step, self._sums, self._steps
        self._sums, self._steps = {}, 0
        used, norm = int(sums.pop("used")), float(sums.pop("norm"))  # alike on every rank
        dense_l2, tables_l2 = l2_term(run)
        shares = torch.stack([*(total / max(used, 1) for total in sums.values()), tables_l2])
        sum_(shares, run.world)
        shares[-1] += dense_l2
        values = dict(zip([*sums, "l2"], shares.tolist(), strict=True))
        loss, window = sum(values.values()), self.throughput.window()
        told = {"loss": loss, **{f"loss/{name}": value for name, value in values.items()}}
        told["gradient_norm"] = norm / max(used, 1)
        self.writer.log(
            step,
            {
                **(told if used else {}),
                "skipped_steps": num_steps - used,
                "learning_rate": run.config.train.learning_rate * rate_factor(run.config.train, step - 1),
                "samples_per_second": window.rate,
                f"{SECONDS}training": self.throughput.untold(),
                **self._bytes_of_a_step(run, num_steps),
            },
        )
        if used < num_steps:
            log = get_logger(run.world.rank)
            skipped = num_steps - used
            log.warning(f"step {step}: {skipped} of {num_steps} steps skipped: their gradients were not finite")
        self.progress.update(step, loss, window.rate)

    def _bytes_of_a_step(self, run: Run, num_steps: int) -> dict[str, float]:
        """What a rank has sent, on average; collective. Look-ups are counted when they are prepared, steps ahead."""
        if run.world.size == 1:
            return {}
        before, self._sent = self._sent, run.tables.traffic.sent()
        sent = [now - then for now, then in zip(self._sent, before, strict=True)]
        of_all = sum_(torch.tensor(sent, dtype=torch.float64, device=run.world.device), run.world)
        mean = [*(of_all / (run.world.size * num_steps)).tolist(), float(self._dense_bytes)]
        return {f"{BYTES}{kind}": value for kind, value in zip([*KINDS, "dense"], mean, strict=True)}


@torch.no_grad()
def l2_term(run: Run) -> tuple[Tensor, Tensor]:
    """(the replicated part, this rank's shards' part) of l2/2 times the sum of squares of every parameter.

    The optimizers add its gradient (weight decay as Adam's L2); its value is only needed for the log. Weights count
    where the optimizer adds it: the lazy table optimizers to touched rows alone, AdamW not at all.
    """
    config = run.config
    factor = 0.5 * config.train.l2
    common = torch.zeros((), device=run.world.device)
    own = torch.zeros_like(common)
    if not factor:
        return common, own
    if config.train.optimizer == "adam":
        common += torch.stack([p.square().sum() for p in run.model.parameters()]).sum()
    for group in run.tables.groups if config.tables.optimizer == "exact" else []:
        if not group.trained:
            continue
        total = common if group.replicated else own
        total += torch.linalg.vector_norm(group.weight).square().to(total.device)
    return factor * common, factor * own
