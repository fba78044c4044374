"""A run's numbers over its steps: `metrics.jsonl` for programs, TensorBoard for people."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from eupmim_dist.errors import UserError
from eupmim_dist.files import read_text, write_text, writing
from eupmim_dist.telemetry.board import Board

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Told of a step and the numbers that are logged of it, by the names of metrics.jsonl; on rank 0 only."""


class MetricsWriter:
    """Writes each logged step to `RUN_DIR/metrics.jsonl` and `RUN_DIR/tensorboard/`; idle unless `enabled`.

    Args:
        run_dir: created if absent.
        enabled: true on rank 0 only, else the ranks would write over each other.
        resume_step: the step of the checkpoint that training goes on from; what was logged after it is
            dropped, because those steps are run again. None starts anew and drops everything.
        on_metrics: each told of each step and its numbers too.

    Raises UserError where a file cannot be written, here or in `log`.
    """

    def __init__(
        self,
        run_dir: Path,
        enabled: bool,
        resume_step: int | None = None,
        on_metrics: Sequence[OnMetrics] = (),
    ) -> None:
        self._enabled, self._on_metrics = enabled, on_metrics
        if not enabled:
            return
        self._path = run_dir / "metrics.jsonl"
        with writing(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            _keep_until(self._path, resume_step)
            self._lines = self._path.open("a", encoding="utf-8")
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._board = Board(run_dir, self._first_step)

    def describe(self, config: str, settings: Mapping[str, object]) -> None:
        """Has TensorBoard show the run's configuration, and compare runs by some settings of it."""
        if self._enabled:
            self._board.describe(self._first_step, config, settings)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record `values` (name: number; slashes group them) as of `step`; flushes the line.

        A number that is not finite becomes null in `metrics.jsonl` (JSON has no word for it).
        """
        if not self._enabled:
            return
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with writing(self._path):
            self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
            self._lines.flush()
        self._board.log(step, numbers)
        for told in self._on_metrics:
            told(step, numbers)

    def close(self) -> None:
        if not self._enabled:
            return
        try:
            with writing(self._path):
                self._lines.close()
        finally:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(UserError) if error else nullcontext():  # what could not be written is tried again
            self.close()


def _keep_until(path: Path, step: int | None) -> None:
    """Drop the lines after `step` (all for None), and a last line that a crash has cut short."""
    if not path.exists():
        return
    kept = []
    try:
        lines = read_text(path).splitlines() if step is not None else []
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; move it elsewhere") from None
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_text(path, "".join(kept))
