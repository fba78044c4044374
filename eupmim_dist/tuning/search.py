"""A search under way: a thread for each job, which has trial after trial trained there, told and pruned here."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from eupmim_dist.arguments import config_of
from eupmim_dist.config.load import dump_config
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError
from eupmim_dist.files import write_text
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.train.preemption import SIGNALS
from eupmim_dist.tuning.jobs import Job
from eupmim_dist.tuning.results import BEST_FILE, Trial, line_of, ranked, run_dir_of, trial_of
from eupmim_dist.tuning.space import Knob
from eupmim_dist.tuning.study import distributions, quiet, seed_sampler

if TYPE_CHECKING:
    import optuna

MOST_FAILED = 3
"""Trials in a row, after which it is the machine or the program, and the search ends."""


@dataclass
class Search:
    """Trials until there are `most`; what touches the study has the lock."""

    study: "optuna.Study"
    config: Config
    """Around which settings are searched."""
    knobs: Sequence[Knob]
    most: int
    out: Path
    jobs: Sequence[Job]
    header: Callable[[Trial], str]
    """What best.yaml begins with."""
    advance: Callable[[float], None] = lambda done: None
    """Told of trials done since the last time."""
    stopped: bool = False
    """No trial is begun any more."""
    timed_out: bool = False
    _lock: Any = field(default_factory=threading.RLock)
    _failed: int = 0
    _error: BaseException | None = None
    _unfinished: list["optuna.trial.Trial"] = field(default_factory=list)
    _shares: dict[int, float] = field(default_factory=dict)
    """How far each trial is, as told to `advance`."""

    def run(self, seconds: float | None) -> None:
        """Until all trials have ended, it is asked to stop, or so many seconds are over.

        Raises UserError when trials fail one after another, and what else a thread raises.
        """
        self._take_up_unfinished()
        deadline = None if seconds is None else time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(job,)) for job in self.jobs]
        try:
            with self._leaving_on_signal():
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.1)
                        if deadline is not None and time.monotonic() > deadline and not self.stopped:
                            get_logger().info("the time is over: what is under way is saved")
                            self.timed_out = True
                            self.stop()
        except BaseException:
            self.stopped = True
            for job in self.jobs:
                job.kill()
            raise
        finally:
            for thread in threads:
                if thread.is_alive():
                    thread.join()
            for job in self.jobs:
                job.close()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Has jobs save and stop; in a signal handler too, so without the lock."""
        self.stopped = True
        for job in self.jobs:
            job.stop()

    def trials(self) -> list[Trial]:
        return [trial_of(frozen, self.out) for frozen in self.study.get_trials(deepcopy=False)]

    def write_best(self) -> None:
        """The whole configuration of the best so far, if there is one. Raises UserError."""
        for best in ranked(self.trials())[:1]:
            text = dump_config(config_of(self.config, best.settings))
            write_text(self.out / BEST_FILE, self.header(best) + text)

    def _take_up_unfinished(self) -> None:
        from optuna.trial import Trial as Open
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state == TrialState.RUNNING:
                self._unfinished.append(Open(self.study, frozen._trial_id))
            else:
                self.advance(1.0)
        self._sweep(self.trials())

    def _work(self, job: Job) -> None:
        try:
            while (trial := self._next()) is not None:
                started = time.monotonic()
                ended = self._trained(trial, job)
                with self._lock:
                    self._tell(trial, ended, time.monotonic() - started)
        except BaseException as error:  # of this thread, for the main one to raise
            self._error = self._error or error
            self.stop()

    def _next(self) -> "optuna.trial.Trial | None":
        with self._lock, quiet():
            if self.stopped:
                return None
            if self._unfinished:
                return self._unfinished.pop(0)
            if len(self.study.get_trials(deepcopy=False)) >= self.most:
                return None
            seed_sampler(self.study, self.config)
            return self.study.ask(distributions(self.knobs))

    def _trained(self, trial: "optuna.trial.Trial", job: Job) -> dict[str, Any]:
        try:
            config = config_of(self.config, trial.params)
        except UserError as error:
            return {"end": "invalid", "reason": error.as_typed.removeprefix("configuration: ")}
        with self._lock:
            for earlier in self.trials()[: trial.number]:
                if earlier.settings == trial.params and earlier.state in ("done", "pruned", "invalid"):
                    reason = f"the same as trial {earlier.number}"
                    return {"end": earlier.state, "value": earlier.value, "step": earlier.step, "reason": reason}
        steps = config.train.max_steps
        return job.train(config, run_dir_of(self.out, trial.number + 1), partial(self._keep, trial, steps))

    def _keep(self, trial: "optuna.trial.Trial", steps: int, step: int, value: float) -> bool:
        with self._lock, quiet():
            self._advance(trial.number, step / steps)
            trial.report(value, step)
            return not trial.should_prune()

    def _advance(self, number: int, share: float) -> None:
        before = self._shares.get(number, 0.0)
        self._shares[number] = max(share, before)
        self.advance(self._shares[number] - before)

    def _tell(self, trial: "optuna.trial.Trial", ended: dict[str, Any], seconds: float) -> None:
        from optuna.trial import TrialState

        state = ended["end"]
        if state == "stopped" and self.stopped:
            with quiet():
                trial.set_user_attr("seconds", ended.get("seconds", 0.0) + trial.user_attrs.get("seconds", 0.0))
            return
        if state == "stopped":
            state, ended["reason"] = "failed", "its job was told to stop, and not by the search"
        seconds = ended.get("seconds", seconds) + trial.user_attrs.get("seconds", 0.0)
        told = {"state": state, "seconds": seconds, "reason": ended.get("reason"), "step": ended.get("step")}
        states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL}
        with quiet():
            for name, content in told.items():
                if content is not None:
                    trial.set_user_attr(name, content)
            value = ended["value"] if state == "done" else None
            self.study.tell(trial, value, state=states.get(state, TrialState.PRUNED))
        self._advance(trial.number, 1.0)
        trials = self.trials()
        over = sum(each.state != "unfinished" for each in trials)
        best = next(iter(ranked(trials)), None)
        get_logger().info(f"[{over}/{self.most}] {line_of(trials[trial.number], best)}")
        if best is trials[trial.number]:
            self.write_best()
        self._sweep(trials)
        self._failed = self._failed + 1 if state == "failed" else 0
        if self._failed >= MOST_FAILED and not self.stopped:
            raise UserError(
                f"{MOST_FAILED} trials in a row failed, the last one: {ended['reason']}; mend that, then the same "
                "command goes on"
            )

    def _sweep(self, trials: Sequence[Trial]) -> None:
        """Removes the checkpoints of all that have ended but the best."""
        best = next(iter(ranked(trials)), None)
        for trial in trials:
            if trial is not best and trial.state != "unfinished":
                shutil.rmtree(trial.run_dir / "checkpoints", ignore_errors=True)

    @contextmanager
    def _leaving_on_signal(self) -> Iterator[None]:
        """As train/preemption.py: the first asks to stop, a second Ctrl-C ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.stopped:
                raise KeyboardInterrupt
            if not self.stopped:
                again = ", a second Ctrl-C stops at once" if number == signal.SIGINT else ""
                with suppress(OSError):
                    os.write(2, f"stopping: what is under way is saved{again}\n".encode())
            self.stop()

        previous = {number: signal.signal(number, request) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
