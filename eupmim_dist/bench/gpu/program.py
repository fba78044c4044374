"""What the whole program does on the device: groups of ranks, ZeRO, killed and gone on with, several GPUs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from eupmim_dist.bench.gpu.sizes import Figures, NotHere, Sizes, Wrong, config_for
from eupmim_dist.config.load import dump_config

MODULE = [sys.executable, "-m", "eupmim_dist"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TOLERANCE = 1e-5
"""Of a loss of other ranks in relation to one rank's."""
PATIENCE = 120
"""Seconds after which what is waited for is given up."""


def run_program(
    place: Path,
    sizes: Sizes | None,
    command: Sequence[str],
    settings: Sequence[str] = (),
    *,
    launcher: Sequence[str] = MODULE,
    environment: Mapping[str, str] = {},
) -> None:
    """Runs a subcommand to its end; with `sizes`, on the configuration of the checks. AssertionError: it failed."""
    done = subprocess.run(
        _line(place, sizes, command, settings, launcher),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command[:1])} ended with {done.returncode}: {done.stderr[-2000:]}"


def _line(
    place: Path, sizes: Sizes | None, command: Sequence[str], settings: Sequence[str], launcher: Sequence[str]
) -> list[str]:
    line = [*launcher, *command]
    if sizes is not None:
        config = place / "config.yaml"
        if not config.exists():
            config.write_text(dump_config(config_for(place / "store", sizes, train__log_every=1)))
        line += ["--config", str(config)]
    for setting in settings:
        line += ["--set", setting]
    return line


def losses(run_dir: Path) -> dict[int, float]:
    """What a training logged by step; of a step that was trained twice the last."""
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _apart(found: dict[int, float], wanted: dict[int, float]) -> float:
    assert wanted, "the training logged no loss"
    assert found.keys() == wanted.keys(), f"steps {sorted(found.keys() ^ wanted.keys())[:5]} are in one log only"
    return max(abs(found[step] - wanted[step]) / abs(wanted[step]) for step in wanted)


def _train(place: Path, sizes: Sizes, name: str, settings: Sequence[str] = (), **how: Any) -> dict[int, float]:
    run_program(place, sizes, ["train", "--run-dir", str(place / name)], settings, **how)
    return losses(place / name)


def one_rank_groups(place: Path, sizes: Sizes) -> Figures:
    """A process group of one rank (NCCL and gloo side by side) and ZeRO-1 and 2: the losses of a rank without them."""
    wanted = _train(place, sizes, "plain")
    figures: Figures = {}
    ways = {"torchrun": [*TORCHRUN, "--nproc-per-node", "1", "-m", "eupmim_dist"]}
    if importlib.util.find_spec("deepspeed"):
        for stage in (1, 2):
            config = place / f"zero{stage}.yaml"
            settings = {"distributed_type": "DEEPSPEED", "num_processes": 1, "num_machines": 1, "mixed_precision": "no"}
            config.write_text(yaml.safe_dump({**settings, "deepspeed_config": {"zero_stage": stage}}))
            ways[f"ZeRO-{stage}"] = [*MODULE, "launch", "--config-file", str(config), "--nproc", "1", "--"]
    cases = {name: (launcher, "none") for name, launcher in ways.items()}
    if torch.cuda.is_available():
        cases |= {f"{name}, CUDA graphs": (launcher, "cuda_graphs") for name, launcher in ways.items()}

    for name, (launcher, how) in cases.items():
        run_dir = name.replace(", ", "-").replace(" ", "-")
        found = _train(place, sizes, run_dir, [f"train.compile={how}"], launcher=launcher)
        figures[name] = _apart(found, wanted)
    if wrong := [f"{name}: a loss is off by {off:.1e}" for name, off in figures.items() if not off <= TOLERANCE]:
        raise Wrong(wrong, {"largest difference of a loss": figures})
    if "ZeRO-1" not in ways:
        figures["ZeRO"] = "DeepSpeed is not installed"
    return {"largest difference of a loss": figures}


def killed_and_resumed(place: Path, sizes: Sizes) -> Figures:
    """A training that is killed after its first checkpoint and goes on: the curve of one that was let alone."""
    every = max(1, sizes.steps // 3)
    settings = [f"checkpoint.every={every}", "model.dropout=0.2", "tables.optimizer=lazy_adam"]
    wanted = _train(place, sizes, "whole", settings)
    run_dir = place / "killed"
    command = _line(place, sizes, ["train", "--run-dir", str(run_dir)], settings, MODULE)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE
    while not list(run_dir.glob("checkpoints/step-*/manifest.json")):
        assert time.monotonic() < until, f"no checkpoint after {PATIENCE} s"
        if process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = _train(place, sizes, "killed", settings)
    assert wanted, "the training logged no loss"
    different = [step for step in wanted if found.get(step) != wanted[step]]
    assert not different, (
        f"resumed, the loss of step {different[0]} is {found.get(different[0])}, not {wanted[different[0]]}"
    )
    return {"steps alike": len(wanted), "killed after step": every, "ended by": process.returncode}


def several_gpus(place: Path, sizes: Sizes) -> Figures:
    """The losses of one rank at 2 ranks and at all GPUs of this machine, and what happens when one is killed."""
    number = torch.cuda.device_count()
    if number < 2:
        raise NotHere(f"{number} GPUs; needs two or more")
    wanted, figures = _train(place, sizes, "one", ["train.max_steps=20"]), {}
    for ranks in sorted({2, number}):
        launcher = [*TORCHRUN, "--nproc-per-node", str(ranks), "-m", "eupmim_dist"]
        ways = {
            "": [],
            ", most shards empty": ["tables.replicate_below=0"],
            ", CUDA graphs": ["train.compile=cuda_graphs"],
        }
        for name, settings in ways.items():
            found = _train(place, sizes, f"ranks-{ranks}{name}", ["train.max_steps=20", *settings], launcher=launcher)
            figures[f"{ranks} ranks{name}"] = _apart(found, wanted)
            assert figures[f"{ranks} ranks{name}"] <= TOLERANCE, f"{ranks} ranks{name}: {figures}"
    launcher = [*TORCHRUN, "--nproc-per-node", "2", "-m", "eupmim_dist"]
    run_dir = place / "ranks-killed"
    command = _line(place, sizes, ["train", "--run-dir", str(run_dir)], ["train.max_steps=100000"], launcher)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE
    while not (run_dir / "metrics.jsonl").exists():
        assert process.poll() is None, f"two ranks ended with {process.returncode} before they trained"
        assert time.monotonic() < until, f"two ranks do not train after {PATIENCE} s"
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    started = time.monotonic()
    code = process.wait(timeout=PATIENCE)
    assert code != 0, "a rank was killed and the launch ended with 0"
    figures["seconds to end after a rank was killed"] = time.monotonic() - started
    return {"largest difference of a loss": figures}
