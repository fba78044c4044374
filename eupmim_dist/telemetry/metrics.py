"""A run's numbers over its steps: `metrics.jsonl` for programs, TensorBoard for people."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from eupmim_dist.errors import UserError
from eupmim_dist.files import read_text, write_text, writing


class MetricsWriter:
    """Writes each logged step to `RUN_DIR/metrics.jsonl` and `RUN_DIR/tensorboard/`; idle unless `enabled`.

    Args:
        run_dir: created if absent.
        enabled: true on rank 0 only, else the ranks would write over each other.
        resume_step: the step of the checkpoint that training goes on from; what was logged after it is
            dropped, because those steps are run again. None starts anew and drops everything.
        on_metrics: told of each step and its numbers too.

    Raises UserError where a file cannot be written, here or in `log`.
    """

    def __init__(
        self,
        run_dir: Path,
        enabled: bool,
        resume_step: int | None = None,
        on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self._enabled, self._on_metrics = enabled, on_metrics
        if not enabled:
            return
        self._path = run_dir / "metrics.jsonl"
        with writing(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            _keep_until(self._path, resume_step)
            self._lines = self._path.open("a", encoding="utf-8")
        self._board = _Board(run_dir / "tensorboard", 0 if resume_step is None else resume_step + 1)

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
        if self._on_metrics is not None:
            self._on_metrics(step, numbers)

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


class _Board:
    """An event file that TensorBoard reads."""

    # Not torch's SummaryWriter: on a full disk its thread prints a traceback, even where `flush` raises the error
    # (torch 2.13, tensorboard 2.21).

    def __init__(self, directory: Path, first_step: int) -> None:
        """Has TensorBoard forget what earlier files of `directory` say of `first_step` and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self._path = directory / f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        with writing(self._path):
            directory.mkdir(exist_ok=True)
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        with writing(self._path):
            self._file.close()

    def _write(self, **content: object) -> None:
        with writing(self._path):
            self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._file.flush()


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
