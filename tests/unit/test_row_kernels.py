"""The kernels against loops over rows in float64: torch operators on the CPU, Triton's on a GPU where there is one.

Triton's kernels need no GPU to be tested: the last tests run this file once more in Triton's interpreter, in a process
of its own as Triton chooses when it is imported, and compile them for a GPU that is not there.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eupmim_dist.optim import row_updates as updates
from eupmim_dist.optim.row_updates import lazy_adam_, rowwise_adagrad_, sgd_
from eupmim_dist.parallel import merge as sums
from eupmim_dist.parallel.merge import CHUNK, INTERPRETED, merge_rows, triton

needs_triton = pytest.mark.skipif(triton is None, reason="Triton is not installed: pip install triton==3.7.1")
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="this is Triton's interpreter")
GPU = torch.cuda.is_available() and not INTERPRETED


@pytest.fixture(params=["cpu", "cuda"] if GPU else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def segments(lengths: list[int], m: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """values [m, dim], an order that repeats and leaves out some of them, and the starts of segments so long."""
    generator = torch.Generator().manual_seed(sum(lengths) + dim)
    values = torch.randn(m, dim, generator=generator).to(dtype)
    order = torch.randint(0, max(m, 1), (sum(lengths),), generator=generator, dtype=torch.int32)
    ends = torch.tensor(lengths).cumsum(0)
    return values, order, (ends - torch.tensor(lengths)).to(torch.int32)


def merge_in_a_loop(values: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    edges = [*starts.tolist(), len(order)]
    rows = [values.double()[order[edges[i] : edges[i + 1]].long()].sum(0) for i in range(len(starts))]
    return torch.stack(rows) if rows else torch.zeros(0, values.shape[1], dtype=torch.float64)


SMALL = 8  # CHUNK in the test of all kinds of segments, so that many chunks are few positions
HUGE = 11 * SMALL + 5
LENGTHS = {
    "ones": [1] * 9,
    "one huge": [HUGE],
    "huge among short": [3, 1, HUGE, 2, 1, 0, 5],
    "huge after huge": [1, HUGE, 0, HUGE, HUGE, 2],
    "edges of chunks": [SMALL, SMALL + 1, SMALL - 1, 2 * SMALL, SMALL, SMALL + 1, 3, 3 * SMALL],
    "empty at the end": [2, SMALL + 3, 0, 0],
    "empty at the start": [0, 0, 4],
    "all empty": [0, 0, 0],
    "none": [],
    **{f"random {seed}": random.Random(seed).choices([0, 1, 2, 3, 7, 8, 9, 16, 17, 40], k=20) for seed in (0, 1)},
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("dim", [1, 5])
def test_merged_rows(monkeypatch: pytest.MonkeyPatch, device: torch.device, lengths: list[int], dim: int) -> None:
    monkeypatch.setattr(sums, "CHUNK", SMALL)
    arguments = segments(lengths, 50, dim)
    merged = merge_rows(*(tensor.to(device) for tensor in arguments))
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.cpu().double(), merge_in_a_loop(*arguments), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [24, 300])
def test_merged_rows_of_other_types_are_summed_in_float32(device: torch.device, dtype: torch.dtype, dim: int) -> None:
    arguments = segments([2, 4 * CHUNK + 3, 40], 70, dim, dtype)
    merged = merge_rows(*(tensor.to(device) for tensor in arguments))
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.cpu().double(), merge_in_a_loop(*arguments), rtol=1e-5, atol=1e-4)


def test_merging_nothing(device: torch.device) -> None:
    merged = merge_rows(*(tensor.to(device) for tensor in segments([0, 0], 0, 7)))
    assert torch.equal(merged, torch.zeros(2, 7, device=device))
    assert merge_rows(*(tensor.to(device) for tensor in segments([], 0, 7))).shape == (0, 7)


def test_merging_twice_gives_the_same_bits(device: torch.device) -> None:
    arguments = [tensor.to(device) for tensor in segments([5, 9 * CHUNK + 7, 1, 3 * CHUNK], 200, 16)]
    assert torch.equal(merge_rows(*arguments), merge_rows(*arguments))


SIZE = 40  # rows of the tables that are updated
SGD = {"learning_rate": 0.1, "l2": 0.01}
ADAGRAD = {"learning_rate": 0.1, "l2": 0.01, "eps": 1e-8}
ADAM = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "l2": 0.01, "weight_decay": 0.05}
Update = Callable[..., None]
Loop = Callable[[list[Tensor], Tensor, int, dict[str, float]], None]


def sgd_in_a_loop(row: list[Tensor], g: Tensor, _: int, options: dict[str, float]) -> None:
    row[0] -= options["learning_rate"] * g


def rowwise_adagrad_in_a_loop(row: list[Tensor], g: Tensor, _: int, options: dict[str, float]) -> None:
    weight, total = row
    total += g.square().mean()
    weight -= options["learning_rate"] * g / (total.sqrt() + options["eps"])


def lazy_adam_in_a_loop(row: list[Tensor], g: Tensor, step: int, options: dict[str, float]) -> None:
    weight, mean, square = row
    beta1, beta2 = options["beta1"], options["beta2"]
    mean.copy_(beta1 * mean + (1 - beta1) * g)
    square.copy_(beta2 * square + (1 - beta2) * g**2)
    weight *= 1 - options["learning_rate"] * options["weight_decay"]
    deviation = (square / (1 - beta2**step)).sqrt() + options["eps"]
    weight -= options["learning_rate"] / (1 - beta1**step) * mean / deviation


UPDATES = {
    "sgd": (sgd_, sgd_in_a_loop, SGD),
    "rowwise_adagrad": (rowwise_adagrad_, rowwise_adagrad_in_a_loop, ADAGRAD),
    "lazy_adam": (lazy_adam_, lazy_adam_in_a_loop, ADAM),
}
WITHOUT_L2 = {name: (update, loop, {**options, "l2": 0.0}) for name, (update, loop, options) in UPDATES.items()}
each_update = pytest.mark.parametrize(("update", "loop", "options"), UPDATES.values(), ids=UPDATES.keys())


def tables_of(update: Update, dim: int, device: torch.device) -> list[Tensor]:
    """The weight, rows 1.. of a larger tensor, and its state."""
    torch.manual_seed(dim)
    weight = torch.randn(SIZE + 1, dim, device=device)[1:]
    if update is sgd_:
        return [weight]
    if update is rowwise_adagrad_:
        return [weight, torch.zeros(SIZE, device=device)]
    return [weight, torch.zeros(SIZE, dim, device=device), torch.zeros(SIZE, dim, device=device)]


def apply(
    update: Update,
    tables: list[Tensor],
    gradient: tuple[Tensor, Tensor],
    factor: float | None,
    ok: bool | None,
    step: int,
    options: dict[str, float],
) -> None:
    device = tables[0].device
    numbers = [None if number is None else torch.tensor(number, device=device) for number in (factor, ok, step)]
    update(*tables, *gradient, *(numbers if update is lazy_adam_ else numbers[:2]), **options)


def some_rows(dim: int, step: int, device: torch.device, n: int = 23) -> tuple[Tensor, Tensor]:
    """Distinct rows [n] and their gradients [n, dim]."""
    generator = torch.Generator().manual_seed(1000 * dim + step)
    rows = torch.randperm(SIZE, generator=generator)[:n]
    return rows.to(device), torch.randn(n, dim, generator=generator).to(device)


@pytest.mark.parametrize(
    ("update", "loop", "options"),
    [*UPDATES.values(), *WITHOUT_L2.values()],
    ids=[*UPDATES, *(f"{name} without l2" for name in WITHOUT_L2)],
)
@pytest.mark.parametrize(("dim", "factor"), [(1, 0.3), (5, None), (64, None), (70, 0.3), (1100, 0.3)])
def test_updates(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    update: Update,
    loop: Loop,
    options: dict[str, float],
    dim: int,
    factor: float | None,
) -> None:
    monkeypatch.setattr(updates, "BLOCK", 300)  # more rows than are gathered at a time, or a row longer than that
    tables = tables_of(update, dim, device)
    expected = [table.double().cpu() for table in tables]
    for step in (1, 2, 3):
        rows, gradient = some_rows(dim, step, device)
        apply(update, tables, (rows, gradient), factor, True, step, options)
        for row, g in zip(rows.tolist(), gradient.double().cpu(), strict=True):
            whole = g * (1.0 if factor is None else factor) + options["l2"] * expected[0][row]
            loop([table[row] for table in expected], whole, step, options)
    for table, wanted in zip(tables, expected, strict=True):
        torch.testing.assert_close(table.cpu().double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [1, 2, 30, 300, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bias_correction_of_any_step(device: torch.device, step: int, dtype: torch.dtype) -> None:
    options = {**ADAM, "learning_rate": 1.0, "beta2": 0.9999}  # 1 - beta2**1 has few digits in float32
    tables = tables_of(lazy_adam_, 8, device)
    expected = [table.double().cpu() for table in tables]
    rows, gradient = some_rows(8, step, device)
    lazy_adam_(*tables, rows, gradient, None, None, torch.tensor(step, dtype=dtype, device=device), **options)
    for row, g in zip(rows.tolist(), gradient.double().cpu(), strict=True):
        lazy_adam_in_a_loop([table[row] for table in expected], g + 0.01 * expected[0][row], step, options)
    torch.testing.assert_close(tables[0].cpu().double(), expected[0], rtol=2e-6, atol=1e-6)


@each_update
def test_nothing_changes_where_it_is_not_ok(
    device: torch.device, update: Update, loop: Loop, options: dict[str, float]
) -> None:
    tables, before = tables_of(update, 6, device), tables_of(update, 6, device)
    rows, gradient = some_rows(6, 1, device)
    gradient[0, 0], gradient[1] = float("inf"), float("nan")
    apply(update, tables, (rows, gradient), float("nan"), False, 1, options)
    assert all(torch.equal(table, old) for table, old in zip(tables, before, strict=True))


@each_update
def test_other_rows_do_not_change(device: torch.device, update: Update, loop: Loop, options: dict[str, float]) -> None:
    tables, before = tables_of(update, 6, device), tables_of(update, 6, device)
    rows, gradient = some_rows(6, 1, device)
    apply(update, tables, (rows, gradient), None, None, 1, options)
    others = torch.ones(SIZE, dtype=torch.bool, device=device).index_fill_(0, rows, False)
    assert all(torch.equal(table[others], old[others]) for table, old in zip(tables, before, strict=True))
    assert (tables[0][rows] != before[0][rows]).all()


@each_update
def test_updating_no_rows(device: torch.device, update: Update, loop: Loop, options: dict[str, float]) -> None:
    tables, before = tables_of(update, 6, device), tables_of(update, 6, device)
    apply(update, tables, some_rows(6, 1, device, 0), None, True, 1, options)
    assert all(torch.equal(table, old) for table, old in zip(tables, before, strict=True))


@each_update
def test_updating_twice_gives_the_same_bits(
    device: torch.device, update: Update, loop: Loop, options: dict[str, float]
) -> None:
    results = []
    for _ in range(2):
        tables = tables_of(update, 20, device)
        for step in (1, 2):
            apply(update, tables, some_rows(20, step, device), 0.5, None, step, options)
        results.append(tables)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_tables_that_are_not_contiguous_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        sgd_(torch.zeros(SIZE, 8, device=device)[:, :4], *some_rows(4, 1, device), None, None, **SGD)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@needs_triton
@each_update
def test_the_host_does_not_wait(update: Update, loop: Loop, options: dict[str, float]) -> None:
    device = torch.device("cuda")
    arguments = [tensor.to(device) for tensor in segments([5, 9 * CHUNK, 1], 200, 16)]
    tables, gradient = tables_of(update, 16, device), some_rows(16, 1, device)
    numbers = [torch.tensor(number, device=device) for number in (0.5, True, 1)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        merge_rows(*arguments)
        update(*tables, *gradient, *(numbers if update is lazy_adam_ else numbers[:2]), **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_triton
@not_interpreted
def test_triton_kernels_in_its_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TYPES = {"order": "*i32", "starts": "*i32", "rows": "*i64", "ok": "*i1", "num_steps": "*i64"}
TYPES |= dict.fromkeys(["values", "partial", "out", "weight", "gradient", "factor"], "*fp32")
TYPES |= dict.fromkeys(["total", "exp_avg", "exp_avg_sq"], "*fp32") | dict.fromkeys(["n", "k", "dim"], "i32")


@needs_triton
@not_interpreted
@pytest.mark.parametrize("name", ["_sum_chunks", "_sum_segments", "_sgd", "_rowwise_adagrad", "_lazy_adam", "plain"])
def test_triton_kernels_compile(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For an H100, which need not be there: the interpreter takes what the compiler does not."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(sums, name, None) or getattr(updates, "_lazy_adam" if name == "plain" else name)
    constants: dict[str, int | None] = {"CHUNK": CHUNK, "BLOCK_P": 16, "BLOCK_N": 16, "BLOCK_D": 64}
    if name == "plain":  # what is left out compiles to another kernel
        constants |= {"factor": None, "ok": None}
    types = TYPES | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "fp32") for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(key),): constants[key] for key in constants if key in kernel.arg_names},
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target).asm["cubin"]
