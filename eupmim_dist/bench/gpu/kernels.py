"""The device's own arithmetic: bandwidth, row kernels beyond 2^31 elements, attention over very many sequences."""

import importlib.util
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from eupmim_dist.bench.gauges import copy_bandwidth, now, product_flops
from eupmim_dist.bench.gpu.sizes import Figures, NotHere, Sizes, largest
from eupmim_dist.bench.rivals import Shape
from eupmim_dist.bench.tables import SystemName, measure_tables
from eupmim_dist.config.load import parse_config
from eupmim_dist.models.layers.attention import fused_attention
from eupmim_dist.optim.row_updates import lazy_adam_, rowwise_adagrad_, sgd_
from eupmim_dist.parallel.memory import available_bytes
from eupmim_dist.parallel.merge import lack_of_triton, merge_rows
from eupmim_dist.parallel.world import init_world
from eupmim_dist.telemetry.machine import commit, device_name

TOUCHED = 4096
LENGTH, HEADS = 10, 2
"""Of the sequences that are attended to: the authors' history."""
DROPOUT = 0.2
CHECKED = 512
"""Sequences at both ends of the many whose attention is computed once more in float64."""


def machine(place: Path, sizes: Sizes, figures: Figures) -> None:
    """What everything else was measured on."""
    world = init_world()
    cuda = world.device.type == "cuda"
    versions = {
        name: getattr(importlib.import_module(name), "__version__", "?")
        for name in ("torch", "triton", "accelerate", "deepspeed", "numpy", "polars", "pydantic")
        if importlib.util.find_spec(name)
    }
    figures |= {
        "device": device_name(world.device),
        "GPUs": torch.cuda.device_count(),
        "commit": commit(),
        "python": platform.python_version(),
        **versions,
        "CUDA": torch.version.cuda or "none",
        "C compiler": shutil.which("gcc") or shutil.which("clang") or "none",
        "Triton's kernels": "used" if lack_of_triton() is None else lack_of_triton(),
        "TF32": torch.get_float32_matmul_precision() != "highest" or (cuda and torch.backends.cudnn.allow_tf32),
        "copy GB/s": copy_bandwidth(world.device) / 1e9 if cuda else None,
        "bf16 TFLOP/s": product_flops(8192 if cuda else 256, torch.bfloat16, world.device) / 1e12,
        "update of many rows, GB/s": _update_speed(world.device, sizes),
    }


def _update_speed(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Bytes that an update of rows all over a table needs to read and write, by the time that it takes."""
    rows, dim = sizes.bench_rows, sizes.dim
    touched = torch.randperm(rows, device=device)[: rows // 16].sort().values
    gradient = torch.randn(len(touched), dim, device=device)
    table, first, second = (torch.zeros(rows, dim, device=device) for _ in range(3))
    total, number = torch.zeros(rows, device=device), torch.ones((), device=device)
    options = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0}
    common = {"learning_rate": 0.1, "l2": 0.0}

    def adagrad() -> None:
        rowwise_adagrad_(table, total, touched, gradient, None, None, eps=1e-8, **common)

    def adam() -> None:
        lazy_adam_(table, first, second, touched, gradient, None, None, number, eps=1e-8, **common, **options)

    def speed(update: Callable[[], None], floats: int) -> float:
        """`floats`: read and written for each row."""
        update()
        started = now(device)
        for _ in range(10):
            update()
        return 10 * 4 * floats * len(touched) / (now(device) - started) / 1e9

    return {
        "sgd": speed(lambda: sgd_(table, touched, gradient, None, None, **common), 3 * dim),
        "rowwise_adagrad": speed(adagrad, 3 * dim + 2),
        "lazy_adam": speed(adam, 7 * dim),
    }


def large_tables(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Updates of a table's last rows against float64, and sums of values that lie beyond 2^31 elements."""
    device, rows, dim = init_world().device, sizes.table_rows, sizes.dim
    needed, free = 4 * 4 * rows * dim, available_bytes(device)  # a table, its moments, and room beside them
    if free is not None and free < needed:
        raise NotHere(f"needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
    figures["elements"] = rows * dim
    worst = figures["largest difference"] = {}
    generator = torch.Generator().manual_seed(1)
    touched = (rows - 1 - torch.randperm(min(rows // 2, 1 << 20), generator=generator)[:TOUCHED]).to(device)
    gradient = torch.randn(len(touched), dim, generator=generator).to(device)
    number = torch.ones((), device=device)

    def check(name: str, table: Tensor, wanted: Tensor) -> None:
        worst[name] = (table[touched].double() - wanted).abs().max().item()
        assert worst[name] < 1e-5, f"{name}: the last rows of {rows:,} are off by {worst[name]:.1e}"

    table = torch.zeros(rows, dim, device=device)
    sgd_(table, touched, gradient, None, None, learning_rate=0.1, l2=0.0)
    check("sgd", table, -0.1 * gradient.double())
    table.zero_()
    total = torch.zeros(rows, device=device)
    rowwise_adagrad_(table, total, touched, gradient, None, None, learning_rate=0.1, eps=1e-8, l2=0.0)
    mean = gradient.double().square().mean(1, keepdim=True)
    check("rowwise_adagrad", table, -0.1 * gradient.double() / (mean.sqrt() + 1e-8))
    table.zero_()
    first, second = torch.zeros_like(table), torch.zeros_like(table)
    options = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "l2": 0.0, "weight_decay": 0.0}
    lazy_adam_(table, first, second, touched, gradient, None, None, number, **options)
    check("lazy_adam", table, -0.1 * gradient.double() / (gradient.double().abs() + 1e-8))
    del first, second
    table.normal_()
    starts = torch.arange(0, len(touched), 4, dtype=torch.int32, device=device)
    merged = merge_rows(table, touched.int(), starts)
    wanted = torch.stack([part.sum(0) for part in table[touched].double().split(4)])
    worst["merge_rows"] = (merged.double() - wanted).abs().max().item()
    assert worst["merge_rows"] < 1e-5, f"merge_rows: sums of the last rows are off by {worst['merge_rows']:.1e}"


def attention(place: Path, sizes: Sizes, figures: Figures) -> None:
    """Forward and backward over so many sequences against float64; with dropout finite, and right on average."""
    device = init_world().device
    worst = figures["largest difference"] = {}
    for number in sizes.attention_rows:
        torch.manual_seed(number)
        qkv = torch.randn(number, LENGTH, 3 * sizes.dim, device=device, requires_grad=True)
        present = torch.arange(LENGTH, device=device) < torch.randint(1, LENGTH + 1, (number, 1), device=device)
        bias = torch.where(present, 0.0, -1e9)[:, None, None]
        ends = torch.cat([torch.arange(min(CHECKED, number)), torch.arange(max(0, number - CHECKED), number)]).to(
            device
        )
        for name, mask in (("padded", bias), ("causal", None)):
            mixed = fused_attention(qkv, HEADS, 0.0, mask)
            (slope,) = torch.autograd.grad(mixed.square().sum(), qkv)
            some = qkv.detach()[ends].double().requires_grad_()
            exact = _plain(some, None if mask is None else mask[ends].double())
            (exact_slope,) = torch.autograd.grad(exact.square().sum(), some)
            off = largest([(mixed[ends] - exact).abs().max().item(), (slope[ends] - exact_slope).abs().max().item()])
            worst[f"{number:,} {name}"] = off
            assert off < 1e-3, f"attention over {number:,} sequences, {name}: off by {off:.1e}"
            # Where all values are 1, what is mixed is the sum of the weights that dropout left: on average 1.
            ones = torch.cat([qkv[..., : 2 * sizes.dim], torch.ones_like(mixed)], -1)
            left = fused_attention(ones, HEADS, DROPOUT, mask)
            (slope,) = torch.autograd.grad(left.square().sum(), qkv)
            assert torch.isfinite(slope).all(), f"{number:,} {name}: the gradient under dropout is not finite"
            apart = abs(left.mean().item() - 1)
            assert apart < 3 / number**0.5, f"{number:,} {name}: dropout of {DROPOUT} moves the mean by {apart:.1e}"


def _plain(qkv: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores + (torch.full_like(scores[0, 0], -torch.inf).triu(1) if bias is None else bias)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def table_speed(place: Path, sizes: Sizes, figures: Figures) -> None:
    """A step of a large table in device and in host memory, beside TorchRec where it is installed."""
    world = init_world()
    tables = figures["tables"] = {}
    for memory in ("device", "host") if world.device.type == "cuda" else ("device",):
        config = parse_config(
            {"tables": {"optimizer": "rowwise_adagrad", "replicate_below": 0, "memory": memory}}, "bench gpu"
        ).tables
        shape = Shape(sizes.bench_rows, sizes.dim, sizes.batch * 8, 21)
        systems: list[SystemName] = ["ours", "torchrec"] if memory == "device" else ["ours"]
        measured = measure_tables(shape, "zipf", systems, config, 20, 3, world)
        for name, result in measured["systems"].items():
            tables[f"{name} {memory}"] = {key: result[key] for key in ("ms/step", "ids/s", "GB/s") if key in result}
        tables["copy GB/s"] = measured["copy GB/s"]
