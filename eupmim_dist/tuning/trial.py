"""A job of a search, in a process of its own: trains one trial after another, as it is told.

A line of JSON for each trial comes on stdin. Each evaluation of the valid split goes out as a line, and the answer says
whether the trial is worth going on; a last line says how it ended. The log goes to stderr.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eupmim_dist import assemble
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, mistake_of
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.train.callbacks import Callback
from eupmim_dist.train.skipped import Diverged
from eupmim_dist.train.state import Run
from eupmim_dist.training import train_alone

Keep = Callable[[int, float], bool]
"""Told of a step and the value that trials are judged by; False if the trial is not worth going on."""


def train_trial(config: Config, run_dir: Path, world: World, keep: Keep) -> dict[str, Any]:
    """Trains in `run_dir`, or goes on there; never looks at the test split.

    Returns `end`: `done`, `pruned`, `stopped` (asked to, by a signal), `invalid` (settings that cannot be trained) or
    `failed`; with the `reason`, or the best `value` and its `step`.
    """
    watch = _Watch(f"valid/{config.evaluation.protocol}/{config.evaluation.metric}", keep)
    try:
        store = InteractionStore.open(config.data.dir, verify=False)
        try:
            assemble.trainable(config, world, store)
        except UserError as error:
            return {"end": "invalid", "reason": error.as_typed}
        run = train_alone(config, run_dir, world, [watch])
    except Diverged as error:
        return {"end": "invalid", "reason": error.as_typed}
    except Exception as error:
        traceback.print_exc()
        told = mistake_of(error)
        reason = told.as_typed if told else f"{type(error).__name__}: {error}"
        return {"end": "failed", "reason": " ".join(reason.split())}
    if watch.pruned:
        return {"end": "pruned"}
    if run.asked_to_leave:
        return {"end": "stopped"}
    return {"end": "done", "value": run.progress.best_value, "step": run.progress.best_step}


class _Watch(Callback):
    """Asks after each evaluation whether to go on."""

    def __init__(self, metric: str, keep: Keep) -> None:
        self.pruned = False
        self._metric, self._keep = metric, keep

    def on_metrics(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        if self._metric in values and not self.pruned:
            self.pruned = not self._keep(step, values[self._metric])
            run.stop_requested = run.stop_requested or self.pruned


def serve() -> None:
    """Works until stdin ends, or a trial has failed: what that left in memory goes with the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed is log
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()

    def tell(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    def keep(step: int, value: float) -> bool:
        tell({"step": step, "value": value})
        return bool(json.loads(lines.get()))

    while True:
        order = json.loads(lines.get())
        print(f"--- {order['run_dir']}", flush=True)
        world = init_world(order["cpu"])
        started = time.monotonic()
        ended = train_trial(parse_config(order["config"], "trial"), Path(order["run_dir"]), world, keep)
        tell({**ended, "seconds": time.monotonic() - started})
        if ended["end"] == "failed":
            return


def _read(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # the search has ended, or was killed: at once, as the next one may want the run directory


if __name__ == "__main__":
    serve()
