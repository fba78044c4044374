"""What the device ranks: the CPU's lists, whatever an image says of TF32, and how fast over how large a catalogue."""

from pathlib import Path
from typing import Any

import torch

from eupmim_dist.api import load
from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.bench.gauges import now
from eupmim_dist.bench.gpu.program import elsewhere, run_program
from eupmim_dist.bench.gpu.sizes import Figures, Sizes, config_for, largest, nothing_of
from eupmim_dist.bench.gpu.stores import write_store
from eupmim_dist.data.splits import BY_USER
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.world import init_world
from eupmim_dist.recommending import recommend

TF32_FORCED = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "1"}
RANKED = "ranked"
LONGEST_LIST, USERS = 10, 2_000
TOLERANCE = 1e-4
"""Of a score in relation to the largest of its list: float32 in another order is well below, TF32 above."""


def same_lists(place: Path, sizes: Sizes, figures: Figures) -> None:
    """The best items of the test split by the CPU, by the device, and by it with TF32 asked for by the environment."""
    settings = [f"train.max_steps={sizes.steps}", "tables.optimizer=lazy_adam"]
    run_program(place, sizes, ["train", "--run-dir", str(place / RANKED)], settings)
    wrong = []
    by_cpu = elsewhere(lists, place, sizes, {"ACCELERATE_USE_CPU": "1"})
    assert by_cpu["device"] == "cpu"
    wanted = by_cpu["lists"]
    for name, environment in (("as it is", {}), ("TF32 forced on", TF32_FORCED)):
        there = elsewhere(lists, place, sizes, environment)
        device, found = there["device"], there["lists"]
        assert device == init_world().device.type, f"{name}: ranked on {device}"
        assert found.keys() == wanted.keys(), f"{name}: other users than on the CPU"
        alike = sum(found[user][0] == wanted[user][0] for user in wanted) / len(wanted)
        off = largest(
            largest(abs(a - b) for a, b in zip(found[user][1], wanted[user][1], strict=True))
            / max(map(abs, wanted[user][1]))
            for user in wanted
        )
        figures[name] = {"users": len(wanted), "same lists %": 100 * alike, "largest difference of a score": off}
        if not off < TOLERANCE:
            wrong.append(f"{name}: a score is off by {off:.1e} of the list's largest")
        if alike < 0.99:
            wrong.append(f"{name}: {100 * alike:.1f} % of the lists are the CPU's")
    nothing_of(wrong)


def lists(place: Path, sizes: Sizes) -> dict[str, Any]:
    """On this process's device: user -> the items of his list and their scores."""
    trained = load(place / RANKED)
    found: dict[str, tuple[list[str], list[float]]] = {}
    for user, item, score in recommend(trained, split="test", top_n=LONGEST_LIST)["user", "item", "score"].rows():
        items, scores = found.setdefault(user, ([], []))
        items.append(item)
        scores.append(score)
    return {"device": trained.world.device.type, "lists": found}


def evaluation_speed(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Users/s of an exact evaluation of an untrained model, by the number of items."""
    world = init_world()
    by_size = figures["items"] = {}
    for number in sizes.catalogues:
        store = place / f"items-{number}"
        write_store(store, USERS, number, BY_USER.name)
        config = config_for(store, sizes, tables__optimizer="sgd", evaluation__batch_size=512)
        run = assemble_run(config, world, open_store(store, world))
        taken = []
        for _ in range(2):  # the first one warms up
            started = now(world.device)
            result = evaluate_model(run, "test", "strict", [LONGEST_LIST])
            taken.append(now(world.device) - started)
        by_size[f"{number:,}"] = {"users/s": result.users / taken[-1]}
        del run
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
