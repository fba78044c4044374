"""The processes that train: each one trial after another, and on one GPU of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError
from eupmim_dist.parallel import processors

COMMAND = [sys.executable, "-m", "eupmim_dist.tuning.trial"]
Keep = Callable[[int, float], bool]
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def gpus(cpu: bool) -> list[str]:
    """The visible GPUs, by what CUDA_VISIBLE_DEVICES calls them; none of them is touched."""
    count = 0 if cpu else torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


class Job:
    """A process that is started when the first trial comes, and again after it has failed."""

    def __init__(self, number: int, num_jobs: int, out: Path, cpu: bool) -> None:
        self.log_file = out / f"job-{number + 1}.log"
        self._cpu = cpu
        self._env = _environment(number, num_jobs, gpus(cpu))
        self._process: subprocess.Popen[str] | None = None
        self._stop_asked = False

    def train(self, config: Config, run_dir: Path, keep: Keep) -> dict[str, Any]:
        """As `trial.train_trial`; a process that dies has `failed`, or `stopped` after `stop`."""
        if self._stop_asked:
            return {"end": "stopped"}
        process = self._process = self._process or self._start()
        if self._stop_asked:  # while it was started
            self.close()
            return {"end": "stopped"}
        order = {"run_dir": str(run_dir), "config": config.model_dump(mode="json"), "cpu": self._cpu}
        told: dict[str, Any] = {}
        with suppress(BrokenPipeError):
            _send(process.stdin, order)
            for line in process.stdout or ():
                told = json.loads(line)
                if "end" in told:
                    break
                _send(process.stdin, keep(told["step"], told["value"]))
        if "end" not in told:
            code = process.wait()
            told = {"end": "stopped"} if self._stop_asked else {"end": "failed", "reason": _death(code, self.log_file)}
        if told["end"] == "failed":
            self.close()
        return told

    def stop(self) -> None:
        """Has it save after the step and stop; from a signal handler, too."""
        self._stop_asked = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stop_asked = True
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    if stream:
                        stream.close()
            process.wait()

    def _start(self) -> "subprocess.Popen[str]":
        try:
            with self.log_file.open("a", encoding="utf-8") as log:
                # In a session of its own: Ctrl-C is for the search, which tells it.
                return subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._env,
                    text=True,
                    start_new_session=True,
                )
        except OSError as error:
            raise UserError(f"{self.log_file}: a job cannot be started: {error.strerror}") from None

    def _signal(self, number: int) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _environment(number: int, num_jobs: int, devices: list[str]) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    elif num_jobs > 1:  # or each would take all cores
        cores = len(processors.available())
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_jobs)))
    return env


def _send(stream: IO[str] | None, content: Mapping[str, Any] | bool) -> None:
    if stream is not None:
        stream.write(json.dumps(content) + "\n")
        stream.flush()


def _death(code: int, log_file: Path) -> str:
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return f"its job was killed by {signal.Signals(-code).name}{hint}"
    return f"its job ended with code {code}; {log_file} may say why"
