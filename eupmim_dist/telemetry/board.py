"""What TensorBoard shows of a run: curves, its settings (hparams, text) and, in the projector, its items."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from eupmim_dist.files import write_text, writing

DIRECTORY = "tensorboard"
GROUPS = {
    **dict.fromkeys(("loss", "gradient_norm", "learning_rate", "skipped_steps"), "train"),
    **dict.fromkeys(("samples_per_second", "seconds", "bytes_sent"), "speed"),
}
"""By the first word of a metric's name what TensorBoard has before it, which folds curves by that; others stay."""


class Board:
    """An event file in `RUN_DIR/tensorboard`."""

    # Not torch's SummaryWriter: on a full disk its thread prints a traceback, even where `flush` raises the error
    # (torch 2.13, tensorboard 2.21); and its add_hparams writes another run beside this one.

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """Has TensorBoard forget what earlier files say of `first_step` and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._name = Event, str(run_dir)
        directory = run_dir / DIRECTORY
        self._path = directory / f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        with writing(self._path):
            directory.mkdir(exist_ok=True)
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Points of curves, by the names of metrics.jsonl."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag_of(name), simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=Summary(value=values))

    def describe(self, step: int, config: str, settings: Mapping[str, object]) -> None:
        """A configuration as text, and settings as hparams; TensorBoard has the curves' last points beside them."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        code = "".join(f"    {line}\n" for line in config.splitlines())  # Markdown
        self._write(step=step, summary=text_pb("config", code))
        known = {key: value for key, value in settings.items() if value is not None}
        plain = {k: value if isinstance(value, bool | int | float) else str(value) for k, value in known.items()}
        self._write(step=step, summary=hparams_pb(plain, trial_id=self._name))

    def close(self) -> None:
        with writing(self._path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, **content: object) -> None:
        with writing(self._path):
            self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._file.flush()


def tag_of(name: str) -> str:
    """What TensorBoard calls the metric of that name."""
    group = GROUPS.get(name.partition("/")[0])
    return f"{group}/{name}" if group else name


def write_projector(run_dir: Path, name: str, vectors: np.ndarray, about: Mapping[str, Sequence[str]]) -> None:
    """Has the projector show float32 vectors [n, D]; `about` has columns of n labels, to be seen and searched.

    The files are written anew. Raises UserError.
    """
    directory = run_dir / DIRECTORY
    rows = ["\t".join(about), *("\t".join(map(_field, row)) for row in zip(*about.values(), strict=True))]
    write_text(directory / f"{name}.tsv", "".join("\t".join(f"{x:.6g}" for x in row) + "\n" for row in vectors))
    write_text(directory / f"{name}-labels.tsv", "".join(f"{row}\n" for row in rows))
    found = {"tensor_name": name, "tensor_path": f"{name}.tsv", "metadata_path": f"{name}-labels.tsv"}
    lines = "".join(f'  {key}: "{value}"\n' for key, value in found.items())
    write_text(directory / "projector_config.pbtxt", f"embeddings {{\n{lines}}}\n")


def _field(text: str) -> str:
    """On one line of one column: a tab or a line end would begin another."""
    return " ".join(text.split()) or "-"
