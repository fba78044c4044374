"""Small runs on one rank, for tests."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.run_dir import find_start, write_config
from eupmim_dist.cli.app import main
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.parallel.world import World
from eupmim_dist.train.state import Run
from eupmim_dist.training import run_training
from tests.stores import small_store

ONLY_KNOWN_USERS = ("lightgcn",)
"""Models that rank for nobody they were not trained on."""
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def config_of(tmp_path: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": {"dir": str(tmp_path / "store")},
        "task": {"history_length": 6},
        "model": {"name": "eupmim", "dim": 8, "num_heads": 2, "num_encoder_layers": 1},
        "objective": {"num_negatives": 5},
        "train": {"global_batch_size": 8, "learning_rate": 0.01, "log_every": 2, "max_steps": 12},
        "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [5]},
        "checkpoint": {"every": 6},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    if not (tmp_path / "store").exists():
        known = values["model"].get("name") in ONLY_KNOWN_USERS
        small_store(tmp_path / "store", split_rule="leave_one_out" if known else "by_user")
    return parse_config(values, "test")


def command_line(line: str) -> int:
    """The exit code of `eupmim-dist` in this process."""
    before = sys.argv
    sys.argv = ["eupmim-dist", *shlex.split(line)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main() exits")


def start(config: Config) -> Run:
    return assemble_run(config, WORLD, open_store(config.data.dir, WORLD))


def train_in(config: Config, run_dir: Path, prepare: Callable[[Run], None] = lambda run: None) -> Run:
    begun = find_start(run_dir, "auto", config, WORLD)
    run = start(config)
    prepare(run)
    if begun.checkpoint:
        load_training(run, begun.checkpoint)
    write_config(run_dir, config)
    run_training(run, begun)
    return run


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock has measured or what is counted as it is prepared, ahead."""
    timed = re.compile("time|samples_per_second|seconds/.*|bytes_sent/.*")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    told = [{name: value for name, value in line.items() if not timed.fullmatch(name)} for line in lines]
    return [line for line in told if line.keys() > {"step"}]
