"""What the checks of a device are given, and what they say when there is nothing to check."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config

Figures = dict[str, Any]
"""What a check found, by name: numbers, texts, and tables of them."""


class NotHere(Exception):
    """The check cannot be made on this machine; says why."""


def largest(numbers: Iterable[float]) -> float:
    """NaN if one of them is, which Python's `max` passes over."""
    return max(numbers, key=lambda number: math.inf if math.isnan(number) else number)


def nothing_of(wrong: Sequence[str]) -> None:
    """Raises AssertionError of all that was found wrong."""
    assert not wrong, "; ".join(wrong)


@dataclass(frozen=True)
class Sizes:
    """How much a check does: as much as is worth knowing of a GPU, or as little as shows on a CPU that it runs."""

    users: int
    items: int
    steps: int
    batch: int
    history: int
    dim: int
    attention_rows: tuple[int, ...]
    table_rows: int  # of a table beyond the range of an int32, at `dim`
    batches: tuple[int, ...]
    catalogues: tuple[int, ...]
    bench_rows: int


ON_GPU = Sizes(
    users=20_000,
    items=5_000,
    steps=50,
    batch=256,
    history=50,
    dim=64,
    attention_rows=(65_535, 65_536, 196_608),
    table_rows=(1 << 31) // 64 + 1_000_000,
    batches=(128, 2_048, 16_384, 65_536),
    catalogues=(4_000, 1_000_000, 10_000_000),
    bench_rows=20_000_000,
)
ON_CPU = Sizes(
    users=300,
    items=300,
    steps=6,
    batch=16,
    history=8,
    dim=8,
    attention_rows=(5, 8),
    table_rows=5_000,
    batches=(16,),
    catalogues=(300,),
    bench_rows=2_000,
)


LEARNING_RATE = 5e-5
"""So low that rounding stays rounding: weights off by 1e-7 move a loss of 50 steps by 2e-7, and the training by 2e-4 to
4e-4. At 2e-3, where Adam makes much of gradients near zero, they move it by 1e-3 to 9e-3, on one CPU already."""


def sizes_for(device: torch.device) -> Sizes:
    return ON_GPU if device.type == "cuda" else ON_CPU


EUPMIM = {"num_heads": 2, "dropout": 0.0, "attention_dropout": 0.0}


def config_for(store: Path, sizes: Sizes, model: str = "eupmim", **changes: Any) -> Config:
    """A small E-UPMiM that a step shows everything of, or another model; `changes` as section__key=value."""
    values: dict[str, Any] = {
        "data": {"dir": str(store)},
        "task": {"history_length": sizes.history},
        "model": {"name": model, "dim": sizes.dim, **(EUPMIM if model == "eupmim" else {})},
        "objective": {},
        "train": {
            "global_batch_size": sizes.batch,
            "max_steps": sizes.steps,
            "clip_norm": 1.0,
            "learning_rate": LEARNING_RATE,
            "threads": 1,
        },
        "evaluation": {"every": 1000, "top_n": [10], "metric": "recall@10"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    if values["objective"].get("name", "sampled_softmax") == "sampled_softmax":
        values["objective"].setdefault("num_negatives", 10)
    return parse_config(values, "bench gpu")
