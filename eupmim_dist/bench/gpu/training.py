"""What training computes on the device: the CPU's curve, the same bits twice, no wait for the GPU, and how fast."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.bench.gauges import now, peak_bytes, start_of_peak
from eupmim_dist.bench.gpu.program import elsewhere
from eupmim_dist.bench.gpu.sizes import Figures, Sizes, config_for, largest, nothing_of
from eupmim_dist.bench.gpu.stores import KIND, write_store
from eupmim_dist.config.registry import built_in
from eupmim_dist.config.schema import Config
from eupmim_dist.data.heldout import held_out
from eupmim_dist.data.splits import LEAVE_ONE_OUT
from eupmim_dist.evaluation.runner import ranking_mode, scorer_of
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.train.room import room_of
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step

FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-5, 1e-3
"""Of a loss, in relation to the CPU's in float32: sums in another order, and 8 bits in place of 24, which the forward
pass alone has."""
TABLE_RATES = {"exact": 2e-4, "lazy_adam": 2e-4, "rowwise_adagrad": 3e-4, "sgd": 1.0}
"""At which what tables learn in 50 steps moves a loss by 5e-4 to 2e-3, and weights off by 1e-7 by 2e-7 to 3e-6."""
PROFILED_STEPS = 10
SHORT = 10
"""Histories where a CPU computes the same."""
LARGEST_MICRO_BATCH = 16_384
"""What a GPU of 80 GB has memory for; larger batches are accumulated."""


def _run(config: Config, world: World) -> Run:
    run = assemble_run(config, world, open_store(config.data.dir, world))
    run.dense.module.train()
    return run


def _steps(run: Run, batches: Prefetcher, number: int) -> list[torch.Tensor]:
    """Trains on; the loss of each step, on the device."""
    losses = []
    for _ in range(number):
        outcome = train_step(run, run.progress.step, batches.take(run.progress.step))
        run.progress.step += 1
        losses.append(torch.stack(list(outcome.shares.values())).sum())
    return losses


def _prefetcher(run: Run, steps: int) -> Prefetcher:
    return Prefetcher(partial(prepare_step, run), run.world, steps - 1, run.config.train.prefetch)


def curves(place: Path, sizes: Sizes) -> dict[str, Any]:
    """Losses of short trainings by every table optimizer and memory, on this process's device, in its precision."""
    world, found = init_world(), {}
    for optimizer, memory in product(TABLE_OPTIMIZERS, ("device", "host")):
        if (optimizer, memory) == ("exact", "host"):  # is refused: it moves every row
            continue
        changes: dict[str, Any] = {
            "tables__optimizer": optimizer,
            "tables__memory": memory,
            "tables__learning_rate": TABLE_RATES[optimizer],
            "task__history_length": SHORT,
            "train__global_batch_size": sizes.batch // 2,
        }
        config = config_for(place / "store", sizes, **changes)
        run = _run(config, world)
        with _prefetcher(run, sizes.steps) as batches:
            found[f"{optimizer} {memory}"] = torch.stack(_steps(run, batches, sizes.steps)).tolist()
    return {"device": world.device.type, "losses": found}


def curves_agree(place: Path, sizes: Sizes, figures: Figures) -> None:
    """The CPU's losses, the device's in float32 and in bf16, each in a process of its own."""
    ways = {"CPU": {"ACCELERATE_USE_CPU": "1"}} | {
        name: {"ACCELERATE_MIXED_PRECISION": name} for name in ("no", "bf16")
    }
    with ThreadPoolExecutor(len(ways) if (os.cpu_count() or 1) > len(ways) else 1) as pool:
        found = dict(zip(ways, pool.map(partial(elsewhere, curves, place, sizes), ways.values()), strict=True))
    assert found["CPU"]["device"] == "cpu"
    apart: dict[str, float] = {}
    figures["largest difference of a loss"], wrong = apart, []
    for precision, tolerance in (("no", FLOAT32_TOLERANCE), ("bf16", BFLOAT16_TOLERANCE)):
        name = "float32" if precision == "no" else precision
        assert found[precision]["device"] == init_world().device.type, f"{name}: trained on the CPU"
        for case, losses in found[precision]["losses"].items():
            off = largest(abs(a - b) / abs(b) for a, b in zip(losses, found["CPU"]["losses"][case], strict=True))
            apart[f"{case} {name}"] = off
            if not off <= tolerance:
                wrong.append(f"{case}, {name}: a loss is off by {off:.1e} of the CPU's, {tolerance:.0e} allowed")
    nothing_of(wrong)


def same_bits(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Two trainings with dropout and all kinds of updates end with the same bits."""
    world = init_world()
    alike: list[str] = []
    figures |= {"steps": sizes.steps, "optimizers": alike}
    for optimizer in TABLE_OPTIMIZERS:
        ends = []
        for _ in range(2):
            run = _run(config_for(place / "store", sizes, tables__optimizer=optimizer, model__dropout=0.2), world)
            with _prefetcher(run, sizes.steps) as batches:
                _steps(run, batches, sizes.steps)
            weights = [*run.model.parameters(), *(shard.weight for shard in run.tables.shards.values())]
            ends.append([weight.detach().cpu() for weight in weights])
        assert all(map(torch.equal, *ends)), f"{optimizer}: two trainings alike end with other weights"
        alike.append(optimizer)


def no_waiting(place: Path, sizes: Sizes, figures: Figures) -> None:
    """How often the host waits for the GPU in a step, and where: it should never, unless tables are in its memory."""
    world = init_world()
    waits = figures["waits a step"] = {}
    where: Counter[str] = Counter()
    known = place / "known"
    write_store(known, sizes.users // 10, sizes.items, LEAVE_ONE_OUT.name)
    lazy: dict[str, Any] = {"tables__optimizer": "lazy_adam"}
    whole: dict[str, Any] = {"tables__optimizer": "exact", "objective__name": "full_softmax"}
    kind: dict[str, Any] = {"model__item_attributes": [KIND.name]}
    cases = {
        "sampled softmax": config_for(place / "store", sizes, **lazy),
        "tables in host memory": config_for(place / "store", sizes, **lazy, tables__memory="host"),
        "full softmax": config_for(place / "store", sizes, **whole),
        "item attributes": config_for(known, sizes, **lazy, **kind),
        "item attributes, full softmax": config_for(known, sizes, **whole, **kind),
        "lightgcn": config_for(known, sizes, "lightgcn", **lazy),
    }
    for name, config in cases.items():
        run = _run(config, world)
        with _prefetcher(run, sizes.steps) as batches:
            _steps(run, batches, 5)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                _steps(run, batches, PROFILED_STEPS)
                torch.cuda.set_sync_debug_mode("default")
        found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
        waits[name] = len(found) / PROFILED_STEPS
        where.update(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found)
    figures["where"] = dict(where.most_common(8))
    unwanted = [name for name, number in waits.items() if number and cases[name].tables.memory == "device"]
    nothing_of([f"the host waits for the GPU with {', '.join(unwanted)}"] if unwanted else [])


def steps_of_nothing(place: Path, sizes: Sizes) -> dict[str, float]:
    """The loss of a step with a micro-batch of no samples, and nothing of no users, by model."""
    world, found = init_world(), {}
    for name in (name for name in built_in("model") if name != "elmrec"):  # which reads prompts
        few: dict[str, Any] = {"train__global_batch_size": 16, "train__accumulation": 7}  # 3, 3, 3, 3, 3, 1 and 0
        run = _run(config_for(place / "known", sizes, name, **few, train__max_steps=1), world)
        with _prefetcher(run, 1) as batches:
            found[name] = float(_steps(run, batches, 1)[0])
        nobody = run.store.users("test")[:0]
        held = held_out(run.store, nobody, *run.store.evaluation_window(nobody, "test"), run.task.to_rank)
        with ranking_mode(run.model):
            assert not len(scorer_of(run, "test").query(held)), f"{name}: queries of no users"
    return found


def no_samples(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Each model takes a step without samples, and ranks for no users, as a rank among many may have to."""
    write_store(place / "known", sizes.users // 10, sizes.items, LEAVE_ONE_OUT.name)
    for precision in ("no", "bf16"):
        found = elsewhere(steps_of_nothing, place, sizes, {"ACCELERATE_MIXED_PRECISION": precision})
        figures["float32" if precision == "no" else precision] = found
        nothing_of([f"{name}, {precision}: loss {loss}" for name, loss in found.items() if not math.isfinite(loss)])


def compiled_alike(place: Path, sizes: Sizes, figures: Figures) -> None:
    """CUDA graphs change no bit of a training, of one or several micro-batches; fused kernels its losses a little."""
    world = init_world()
    wrong = []

    def losses(how: str, accumulation: int, dropout: float) -> torch.Tensor:
        changes: dict[str, Any] = {
            "train__accumulation": accumulation,
            "train__compile": how,
            "model__dropout": dropout,
            "tables__optimizer": "lazy_adam",
        }
        run = _run(config_for(place / "store", sizes, **changes), world)
        started = now(world.device)
        with _prefetcher(run, sizes.steps) as batches:
            first = _steps(run, batches, 1)
            figures[f"first step of {how}, {accumulation} micro-batches, s"] = now(world.device) - started
            return torch.stack(first + _steps(run, batches, sizes.steps - 1))

    for accumulation in (1, 2):
        plain, graphs = (losses(how, accumulation, 0.2) for how in ("none", "cuda_graphs"))
        off = (plain - graphs).abs().max().item()
        figures[f"CUDA graphs, {accumulation} micro-batches, largest difference of a loss"] = off
        if off != 0:
            wrong.append(f"CUDA graphs, {accumulation} micro-batches: a loss is off by {off:.1e}")
    plain, fused = (losses(how, 1, 0.0) for how in ("none", "inductor"))  # whose dropout draws other numbers
    figures["fused, largest difference of a loss"] = off = ((fused - plain).abs() / plain).max().item()
    if not off <= FLOAT32_TOLERANCE:
        wrong.append(f"fused: a loss is off by {off:.1e}, {FLOAT32_TOLERANCE:.0e} allowed")
    nothing_of(wrong)


def speed(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Samples/s, kernels, share of the time the GPU works, wait for the plan and peak memory, by batch size."""
    cases = [(number, "none") for number in sizes.batches]
    if init_world().device.type == "cuda":
        cases[1:1] = [(number, "cuda_graphs") for number in sizes.batches[:2]]
    _speed(place, sizes, cases, figures)


def speed_of_fused(place: Path, sizes: Sizes, figures: Figures) -> None:
    """`speed` of a network whose kernels torch's compiler has fused."""
    _speed(place, sizes, [(sizes.batches[1], "inductor")], figures)


def _speed(place: Path, sizes: Sizes, cases: Sequence[tuple[int, str]], figures: Figures) -> None:
    by_size = figures["batch"] = {}
    for number, how in cases:
        name = f"{number:,}" if how == "none" else f"{number:,} {how}"
        try:
            by_size[name] = _speed_of(place, sizes, number, how)
        except torch.OutOfMemoryError as full:
            by_size[name] = f"not enough memory ({str(full).partition('. ')[0]})"


def _speed_of(place: Path, sizes: Sizes, number: int, how: str) -> Figures:
    world = init_world()
    changes: dict[str, Any] = {
        "train__compile": how,
        "train__global_batch_size": number,
        "train__accumulation": -(-number // LARGEST_MICRO_BATCH),
        "model__dropout": 0.1,
        "tables__optimizer": "lazy_adam",
    }
    config = config_for(place / "store", sizes, **changes)
    start = start_of_peak(world.device)
    run = _run(config, world)
    counted = max(3, min(sizes.steps, 200_000 // number))
    profiled = min(counted, PROFILED_STEPS)
    with _prefetcher(run, 3 * counted + profiled) as batches:
        _steps(run, batches, counted)
        batches.waited_seconds = 0.0
        started = now(world.device)
        _steps(run, batches, 2 * counted)
        taken = now(world.device) - started
        waited = batches.waited_seconds
        kernels, busy = _profiled(run, batches, profiled) if world.device.type == "cuda" else (0.0, 0.0)
    place_of_memory = "GPU" if world.device.type == "cuda" else "host"
    peak = peak_bytes(world.device).get(place_of_memory, 0) - start.get(place_of_memory, 0)
    shape = run.model.shape
    least = sum(room_of(config, shape, run.store, (1, 1), world, training=True).values())
    return {
        "samples/s": 2 * counted * number / taken,
        "ms/step": 1000 * taken / (2 * counted),
        "wait for the plan, ms": 1000 * waited / (2 * counted),
        "kernels a step": kernels,
        "GPU busy %": 100 * busy / (taken / (2 * counted)) if busy else 0.0,
        "peak MB": peak / 1e6,
        "of which foreseen, MB": least / 1e6,
    }


def _profiled(run: Run, batches: Prefetcher, number: int) -> tuple[float, float]:
    """Kernels launched in a step, and the seconds that they take."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        _steps(run, batches, number)
        now(run.world.device)
    events = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    seconds = sum(event.self_device_time_total for event in events) / 1e6
    return len(events) / number, seconds / number
