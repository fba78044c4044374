"""What the whole program does on the device: groups of ranks, ZeRO, killed and gone on with, several GPUs."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from eupmim_dist.bench.gpu.check import end
from eupmim_dist.bench.gpu.sizes import ON_GPU, Figures, Sizes, config_for, largest, nothing_of
from eupmim_dist.config.load import dump_config

MODULE = [sys.executable, "-m", "eupmim_dist"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
"""By number: the name of a machine may lead nowhere."""
TOLERANCE = 1e-5
"""Of a loss of other ranks in relation to one rank's."""
ALONE = (
    *("--no-python", sys.executable, "-c"),
    "import os, runpy; rank = os.environ['LOCAL_RANK']; seen = os.environ.get('CUDA_VISIBLE_DEVICES')\n"
    "os.environ['CUDA_VISIBLE_DEVICES'] = seen.split(',')[int(rank)] if seen else rank\n"
    "runpy.run_module('eupmim_dist', run_name='__main__', alter_sys=True)",
)
"""The program where each rank sees one GPU, as some systems of batch jobs have it."""
PATIENCE = 120
"""Seconds after which what is waited for is given up."""


def run_program(
    place: Path,
    sizes: Sizes,
    command: Sequence[str],
    settings: Sequence[str] = (),
    *,
    launcher: Sequence[str] = MODULE,
    objective: str = "sampled_softmax",
) -> None:
    """Runs a subcommand to its end, on the configuration of the checks. AssertionError: it failed."""
    done = subprocess.run(
        _line(place, sizes, command, settings, launcher, objective),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr[-3000:]}"


def elsewhere(function: Callable[[Path, Sizes], Any], place: Path, sizes: Sizes, environment: Mapping[str, str]) -> Any:
    """What a function of this package gives, as JSON, in a process of its own. AssertionError: it failed."""
    code = (
        "import importlib, json, sys; from pathlib import Path; from eupmim_dist.bench.gpu import sizes\n"
        "module, function, place, name, file = sys.argv[1:]\n"
        "found = getattr(importlib.import_module(module), function)(Path(place), getattr(sizes, name))\n"
        "Path(file).write_text(json.dumps(found))"
    )
    file = place / f"{'-'.join([function.__name__, *environment.values()])}.json"
    name = "ON_GPU" if sizes is ON_GPU else "ON_CPU"
    command = [sys.executable, "-c", code, function.__module__, function.__name__, str(place), name, str(file)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"with {dict(environment)}: ended with {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(file.read_text())


def _line(
    place: Path,
    sizes: Sizes,
    command: Sequence[str],
    settings: Sequence[str],
    launcher: Sequence[str],
    objective: str = "sampled_softmax",
) -> list[str]:
    config = place / f"{objective}.yaml"
    if not config.exists():
        changes: dict[str, Any] = {"objective__name": objective, "train__log_every": 1}
        config.write_text(dump_config(config_for(place / "store", sizes, **changes)))
    line = [*launcher, *command, "--config", str(config)]
    for setting in settings:
        line += ["--set", setting]
    return line


def losses(run_dir: Path) -> dict[int, float]:
    """What a training logged by step; of a step that was trained twice the last. NaN where a loss was not finite."""
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return {step: math.nan if loss is None else loss for step, loss in found.items()}


def _apart(found: dict[int, float], wanted: dict[int, float]) -> float:
    assert wanted, "the training logged no loss"
    assert found.keys() == wanted.keys(), f"steps {sorted(found.keys() ^ wanted.keys())[:5]} are in one log only"
    return largest(abs(found[step] - wanted[step]) / abs(wanted[step]) for step in wanted)


def _train(place: Path, sizes: Sizes, name: str, settings: Sequence[str] = (), **how: Any) -> dict[int, float]:
    run_program(place, sizes, ["train", "--run-dir", str(place / name)], settings, **how)
    return losses(place / name)


def _alike(
    wanted: dict[int, float], trainings: Mapping[str, Callable[[], dict[int, float]]], apart: dict[str, Any]
) -> None:
    """Makes all of the trainings; `apart` gets how far their losses are from those wanted."""
    wrong = []
    for name, training in trainings.items():
        try:
            apart[name] = _apart(training(), wanted)
        except AssertionError as failed:
            apart[name] = "failed"
            wrong.append(f"{name}: {failed}")
        else:
            if not apart[name] <= TOLERANCE:
                wrong.append(f"{name}: a loss is off by {apart[name]:.1e}")
    nothing_of(wrong)


def one_rank_groups(place: Path, sizes: Sizes, figures: Figures) -> None:
    """A process group of one rank (NCCL and gloo side by side) and ZeRO-1 and 2: the losses of a rank without them."""
    ways = {"torchrun": _ranks(1)}
    if importlib.util.find_spec("deepspeed"):
        for stage in (1, 2):
            config = place / f"zero{stage}.yaml"
            settings = {"distributed_type": "DEEPSPEED", "num_processes": 1, "num_machines": 1, "mixed_precision": "no"}
            config.write_text(yaml.safe_dump({**settings, "deepspeed_config": {"zero_stage": stage}}))
            ways[f"ZeRO-{stage}"] = [*MODULE, "launch", "--config-file", str(config), "--nproc", "1", "--"]
    else:
        figures["ZeRO"] = "DeepSpeed is not installed"
    trainings = {name: partial(_train, place, sizes, name, launcher=launcher) for name, launcher in ways.items()}
    if torch.cuda.is_available():
        graphs = ["train.compile=cuda_graphs"]
        for name in [name for name in ways if name != "ZeRO-1"]:  # whose graphs are ZeRO-2's
            run_dir = f"{name}-graphs"
            trainings[f"{name}, CUDA graphs"] = partial(_train, place, sizes, run_dir, graphs, launcher=ways[name])
    apart = figures["largest difference of a loss"] = {}
    _alike(_train(place, sizes, "plain"), trainings, apart)


def killed_and_resumed(place: Path, sizes: Sizes, figures: Figures) -> None:
    """A training that is killed after its first checkpoint, written meanwhile, and goes on: the curve of one that was
    let alone."""
    settings = [f"train.max_steps={4 * sizes.steps}", f"checkpoint.every={sizes.steps}", "checkpoint.asynchronous=true"]
    settings += ["model.dropout=0.2", "tables.optimizer=lazy_adam"]
    wanted = _train(place, sizes, "whole", settings)
    run_dir = place / "killed"
    command = _line(place, sizes, ["train", "--run-dir", str(run_dir)], settings, MODULE)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE
    while not list(run_dir.glob("checkpoints/step-*/manifest.json")):
        assert process.poll() is None, f"a training ended with {process.returncode} before its first checkpoint"
        assert time.monotonic() < until, f"no checkpoint after {PATIENCE} s"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"a training ended with {process.returncode} before it could be killed"
    found = _train(place, sizes, "killed", settings)
    assert wanted, "the training logged no loss"
    different = [step for step in wanted if found.get(step) != wanted[step]]
    assert not different, (
        f"resumed, the loss of step {different[0]} is {found.get(different[0])}, not {wanted[different[0]]}"
    )
    figures["steps alike"] = len(wanted)


def several_gpus(place: Path, sizes: Sizes, figures: Figures) -> None:
    """The losses of one rank at 2 ranks and at all GPUs of this machine, and what happens when one is killed."""
    steps = ["train.max_steps=20"]
    sharded = ["tables.replicate_below=0"]
    own = sizes.batch // 2  # samples of a rank; the last of so many micro-batches has none
    parts = next(parts for parts in range(2, own + 2) if -(-own // parts) * (parts - 1) >= own)
    cases = {
        "2 ranks": (_ranks(2), []),
        "2 ranks, each with a GPU of its own": (_ranks(2, ALONE), []),
        "2 ranks, most shards and a micro-batch empty": (_ranks(2), [*sharded, f"train.accumulation={parts}"]),
        "2 ranks, CUDA graphs": (_ranks(2), ["train.compile=cuda_graphs"]),
    }
    if (number := torch.cuda.device_count()) > 2:
        cases[f"{number} ranks"] = _ranks(number), []
    apart = figures["largest difference of a loss"] = {}
    whole = {"2 ranks, full softmax": (_ranks(2), sharded)}
    for objective, some in (("sampled_softmax", cases), ("full_softmax", whole)):
        train = partial(_train, place, sizes, objective=objective)
        trainings = {
            name: partial(train, name, [*steps, *settings], launcher=launcher)
            for name, (launcher, settings) in some.items()
        }
        _alike(train(objective, steps), trainings, apart)
    run_dir = place / "ranks-killed"
    command = _line(place, sizes, ["train", "--run-dir", str(run_dir)], ["train.max_steps=100000"], _ranks(2))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while not (run_dir / "metrics.jsonl").exists():
            assert process.poll() is None, f"two ranks ended with {process.returncode} before they trained"
            assert time.monotonic() < until, f"two ranks do not train after {PATIENCE} s"
            time.sleep(0.1)
        psutil.Process(process.pid).children()[-1].kill()
        started = time.monotonic()
        while process.poll() is None:
            assert time.monotonic() < started + PATIENCE, f"a rank was killed, and {PATIENCE} s later another runs"
            time.sleep(0.1)
        assert process.returncode != 0, "a rank was killed and the launch ended with 0"
        figures["seconds to end after a rank was killed"] = time.monotonic() - started
    finally:
        end(process)


def _ranks(number: int, program: Sequence[str] = ("-m", "eupmim_dist")) -> list[str]:
    return [*TORCHRUN, "--nproc-per-node", str(number), *program]
