"""A training on two ranks that is killed with SIGKILL, starts again, and must end as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.runs import logged

ROOT = Path(__file__).parents[2]
VICTIMS = ("rank 0", "rank 1", "both", "launcher")
PATIENCE_SECONDS = 180


@dataclass(frozen=True)
class Setting:
    store: Path
    steps: int
    evaluate_every: int = 50
    save_every: int = 20
    batch: int = 64

    def command(self, run_dir: Path, asynchronous: bool, max_restarts: int) -> list[str]:
        values = {
            "data.dir": self.store,
            "model.dim": 16,
            "model.num_heads": 2,
            "model.num_encoder_layers": 1,
            "tables.replicate_below": 0,
            "train.global_batch_size": self.batch,
            "train.max_steps": self.steps,
            "train.log_every": 1,
            "evaluation.every": self.evaluate_every,
            "checkpoint.every": self.save_every,
            "checkpoint.asynchronous": asynchronous,
        }
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        launch = ["launch", "--cpu", "--nproc", "2", "--threads", "1", "--max-restarts", str(max_restarts)]
        return [sys.executable, "-m", "eupmim_dist", *launch, "--", "train", "--run-dir", str(run_dir), *sets]


@dataclass(frozen=True)
class Kill:
    phase: str
    step: int
    """The last one logged."""
    victim: str
    seconds: float
    """From the kill until every rank of the attempt was gone."""


def train_through(setting: Setting, run_dir: Path) -> None:
    log = run_dir.with_suffix(".log")
    with log.open("w") as output:
        code = subprocess.call(setting.command(run_dir, False, 0), cwd=ROOT, stdout=output, stderr=output)
    assert code == 0, log.read_text()


def kill_and_finish(
    setting: Setting,
    run_dir: Path,
    num_kills: int,
    random_: random.Random,
    asynchronous: bool,
    told: Callable[[int, Kill], None] = lambda number, kill: None,
) -> list[Kill]:
    """Kills at moments spread over the training; what `launch` does not start again itself is started here."""
    command, log = setting.command(run_dir, asynchronous, num_kills), run_dir.with_suffix(".log")
    kills: list[Kill] = []
    with log.open("w") as output:

        def start() -> subprocess.Popen:
            return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)

        launcher = start()
        try:
            began = 0.0
            for number in range(num_kills):
                # Not the last tenth: a kill after the last save would leave nothing to be killed.
                first = int(setting.steps * 0.9 * (number + random_.random()) / num_kills)
                aim = random_.choice(("start", "step", "step", "save", "save", "evaluation"))
                ranks = _ranks(launcher)
                if aim == "start":
                    time.sleep(random_.uniform(0, 4))
                else:
                    _await(aim, first, setting, run_dir, began, launcher)
                    time.sleep(random_.uniform(0, 0.03))
                kills.append(_kill(launcher, ranks, random_.choice(VICTIMS), *_under_way(setting, run_dir, began)))
                told(number + 1, kills[-1])
                began = time.time()
                if kills[-1].victim == "launcher":
                    launcher.wait()
                    launcher = start()
            code = launcher.wait(PATIENCE_SECONDS)
        finally:
            for pid in [*_children(launcher.pid), launcher.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert code == 0, log.read_text()
    return kills


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished runs: last checkpoints, their states, every step's log, the test metrics."""
    found = []
    last = sorted((whole / "checkpoints").glob("step-*"))[-1].name
    for file in sorted((whole / "checkpoints" / last).glob("*.safetensors")):
        other = killed / "checkpoints" / last / file.name
        if not other.is_file() or other.read_bytes() != file.read_bytes():
            found.append(f"{other}: differs")
    for what, read in {
        "training state": _training,
        "log": lambda run_dir, _: logged(run_dir),
        "evaluation": _evaluation,
    }.items():
        if read(whole, last) != read(killed, last):
            found.append(f"{killed}: another {what}")
    if left := [path.name for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")]:
        found.append(f"{killed}: left behind {', '.join(left)}")
    return found


def _training(run_dir: Path, last: str) -> dict:
    return json.loads((run_dir / "checkpoints" / last / "manifest.json").read_text())["training"]


def _evaluation(run_dir: Path, last: str) -> dict:
    return json.loads((run_dir / "evaluation.json").read_text())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _rank(pid: int) -> int | None:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry.removeprefix(b"RANK="))
    return None


def _ranks(launcher: subprocess.Popen) -> dict[int, int]:
    """Rank -> process, as soon as both of the attempt are there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and launcher.poll() is None:
        ranks = {rank: pid for pid in _children(launcher.pid) if _alive(pid) and (rank := _rank(pid)) is not None}
        if len(ranks) == 2:
            return ranks
        time.sleep(0.01)
    raise AssertionError(f"no ranks, launcher's code {launcher.returncode}")


def _await(aim: str, first: int, setting: Setting, run_dir: Path, began: float, launcher: subprocess.Popen) -> None:
    """Returns when `aim` is under way, from step `first` on."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and launcher.poll() is None:
        phase, step = _under_way(setting, run_dir, began)
        if phase == aim and step >= first:
            return
        time.sleep(0.001)
    raise AssertionError(f"{aim} from step {first} on did not come, launcher's code {launcher.poll()}")


def _under_way(setting: Setting, run_dir: Path, began: float) -> tuple[str, int]:
    """What the attempt that began then is doing, and the last step that was logged."""
    log, step = run_dir / "metrics.jsonl", 0
    with suppress(OSError, ValueError, IndexError):  # not there yet, or half a line
        last = json.loads(log.read_text().splitlines()[-1])
        step = last["step"]
        if log.stat().st_mtime >= began:
            hidden = [path for path in (run_dir / "checkpoints").glob(".*") if path.stat().st_mtime >= began]
            evaluating = step % setting.evaluate_every == 0 and "loss" in last
            return "save" if hidden else "evaluation" if evaluating else "step", step
    return "start", step


def _kill(launcher: subprocess.Popen, ranks: dict[int, int], victim: str, phase: str, step: int) -> Kill:
    pids = {"rank 0": [ranks[0]], "rank 1": [ranks[1]], "both": list(ranks.values()), "launcher": [launcher.pid]}
    started = time.monotonic()
    for pid in pids[victim]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(_alive(pid) for pid in ranks.values()):
        assert time.monotonic() < started + PATIENCE_SECONDS, f"{victim} killed in {phase}: a rank stays"
        time.sleep(0.01)
    return Kill(phase, step, victim, time.monotonic() - started)
