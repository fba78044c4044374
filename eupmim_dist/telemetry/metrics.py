"""A run's numbers over its steps: `metrics.jsonl` for programs, TensorBoard for people."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat


class MetricsWriter:
    """Writes each logged step to `RUN_DIR/metrics.jsonl` and `RUN_DIR/tensorboard/`; idle unless `enabled`.

    Args:
        run_dir: created if absent.
        enabled: true on rank 0 only, else the ranks would write over each other.
        resume_step: the step of the checkpoint that training goes on from; what was logged after it is
            dropped, because those steps are run again. None starts anew and drops everything.
    """

    def __init__(self, run_dir: Path, enabled: bool, resume_step: int | None = None) -> None:
        self._enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        _keep_until(path, resume_step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=0 if resume_step is None else resume_step + 1
        )

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record `values` (name: number; slashes group them) as of `step`; flushes the line.

        A number that is not finite becomes null in `metrics.jsonl` (JSON has no word for it).
        """
        if not self._enabled:
            return
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
        self._lines.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._enabled:
            self._lines.close()
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _keep_until(path: Path, step: int | None) -> None:
    """Drop the lines after `step` (all for None), and a last line that a crash has cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if step is not None else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
