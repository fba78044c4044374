"""Trackers of others, such as Weights & Biases and MLflow, through Accelerate: `telemetry.trackers`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eupmim_dist.config.load import flat
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError, listed, short
from eupmim_dist.telemetry.board import tag_of
from eupmim_dist.telemetry.log import get_logger

PROJECT = "eupmim_dist"
"""What a tracker files runs under."""
PACKAGES = {"comet_ml": "comet-ml"}
"""Where they are not called as their tracker."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that Accelerate does not know or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = LOGGER_TYPE_TO_CLASS.keys() - {"tensorboard"}
    for name in names:
        if name == "tensorboard":
            raise UserError("telemetry.trackers: tensorboard is written by every run; leave it out")
        if name not in known:
            raise UserError(f"telemetry.trackers: {short(name)} is no tracker; choose from {listed(sorted(known))}")
        if name in LoggerType and LoggerType(name) not in get_available_trackers():
            package = PACKAGES.get(name, name)
            raise UserError(f"telemetry.trackers: {name} is not installed; pip install {package}, or leave it out")


class Trackers:
    """Tells trackers what is logged; one that fails is left alone from then on, and the training goes on."""

    def __init__(self, started: Sequence[Any]) -> None:
        self._started = list(started)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """By the names that TensorBoard has, but for what some trackers refuse: `@`, and one within another.

        MLflow's files are called so: `train/loss` cannot hold `train/loss/cross_entropy`.
        """
        told = {
            tag_of(name).replace("@", "_at_").replace("train/loss/", "train/loss_"): value
            for name, value in numbers.items()
        }
        for tracker in list(self._started):
            self._try(tracker, lambda tracker=tracker: tracker.log(told, step=step))

    def finish(self) -> None:
        for tracker in list(self._started):
            self._try(tracker, tracker.finish)

    def _try(self, tracker: Any, act: Any) -> None:
        try:
            act()
        except Exception as error:
            self._started.remove(tracker)
            get_logger().warning(
                f"telemetry.trackers: {tracker.name} failed and is told no more ({short(_reason(error))})"
            )


NO_TRACKERS = Trackers([])


@contextmanager
def tracking(accelerator: Any, config: Config, run_dir: Path) -> Iterator[Trackers]:
    """The trackers of a run, on rank 0; on others, and of a run without, there are none.

    Callbacks find them as `run.dense.accelerator.get_tracker(NAME)`. Raises UserError where one cannot be started.
    """
    from accelerate.tracking import filter_trackers

    accelerator.trackers = []
    names = list(dict.fromkeys(config.telemetry.trackers))
    if names and accelerator.is_main_process:
        accelerator.project_configuration.set_directories(str(run_dir))
        accelerator.log_with = filter_trackers(names, accelerator.logging_dir)
        settings = {k: str(value) if isinstance(value, list) else value for k, value in flat(config).items()}
        named = {"wandb": {"name": run_dir.name}, "mlflow": {"run_name": run_dir.name}}
        try:
            accelerator.init_trackers(PROJECT, settings, named)
        except Exception as error:
            raise UserError(f"telemetry.trackers: {listed(names)} cannot be started ({_reason(error)})") from error
    trackers = Trackers(accelerator.trackers)
    try:
        yield trackers
    finally:
        trackers.finish()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
