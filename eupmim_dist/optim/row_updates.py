# mypy: allow-untyped-defs
"""Updates of a table's touched rows in place: a Triton kernel each for CUDA, torch operators for the rest.

Common to all: `rows` int64 [n], distinct positions in `weight` float32 [R, D]; `gradient` float32 [n, D], merged;
`factor` float32 [], which the gradient is multiplied by (clipping; None: 1); `ok` bool [], where False nothing at
all changes, whatever the gradient holds (None: True). `l2` adds l2 * row to the gradient after the factor.
Tables are contiguous (ValueError). The Triton versions never wait for the device.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.optim.adam import adam

from eupmim_dist.parallel.merge import tl, triton, uses_triton

TILE = 1024
"""Elements that a Triton program updates."""

BLOCK = 1 << 17
"""Elements that the torch versions gather at a time: rows are still in the cache when they are written back."""


@torch.no_grad()
def sgd_(
    weight: Tensor,
    rows: Tensor,
    gradient: Tensor,
    factor: Tensor | None,
    ok: Tensor | None,
    *,
    learning_rate: float,
    l2: float,
) -> None:
    """w -= learning_rate * g."""
    _check_contiguous(weight)
    n, dim = gradient.shape
    if n == 0:
        return
    if uses_triton(weight):
        grid, shape = _launch(n, dim)
        _sgd[grid](weight, rows.contiguous(), gradient.contiguous(), factor, ok, n, dim, learning_rate, l2, **shape)
    elif ok is None or ok:
        scale = 1.0 if factor is None else float(factor)
        for block, part in _blocks(rows, gradient):
            new = weight.index_select(0, block)
            if l2:
                new.mul_(1 - learning_rate * l2)
            _put(weight, block, new.add_(part, alpha=-learning_rate * scale))


@torch.no_grad()
def rowwise_adagrad_(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    gradient: Tensor,
    factor: Tensor | None,
    ok: Tensor | None,
    *,
    learning_rate: float,
    eps: float,
    l2: float,
) -> None:
    """total += mean(g^2); w -= learning_rate * g / (sqrt(total) + eps). `total`: float32 [R]."""
    _check_contiguous(weight, total)
    n, dim = gradient.shape
    if n == 0:
        return
    if uses_triton(weight):
        grid, shape = _launch(n, dim)
        touched = (rows.contiguous(), gradient.contiguous())
        _rowwise_adagrad[grid](weight, total, *touched, factor, ok, n, dim, learning_rate, eps, l2, **shape)
    elif ok is None or ok:
        scale = 1.0 if factor is None else float(factor)
        if not l2:  # the gradient alone decides: all rates at once
            rates = _adagrad_rates(total, rows, gradient, scale, learning_rate, eps)
            for block, part, rate in _blocks(rows, gradient, rates):
                weight.index_add_(0, block, part * rate)
            return
        for block, part in _blocks(rows, gradient):
            new = weight.index_select(0, block)
            part = _whole_gradient(part, new, scale, l2)
            rate = _adagrad_rates(total, block, part, 1.0, learning_rate, eps)
            _put(weight, block, new.addcmul_(part, rate))


@torch.no_grad()
def lazy_adam_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    gradient: Tensor,
    factor: Tensor | None,
    ok: Tensor | None,
    num_steps: Tensor,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    l2: float,
    weight_decay: float,
) -> None:
    """Adam of the touched rows and their moments; `weight_decay` is decoupled and theirs alone too.

    exp_avg, exp_avg_sq: float32 [R, D]. num_steps: float32 or int64 [], the number of this step, from 1.
    """
    _check_contiguous(weight, exp_avg, exp_avg_sq)
    n, dim = gradient.shape
    if n == 0:
        return
    if uses_triton(weight):
        grid, shape = _launch(n, dim)
        rests = (1 - beta1, 1 - beta2)  # on the host: float32 would lose digits of the difference
        logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
        tables = (weight, exp_avg, exp_avg_sq)
        numbers = (n, dim, learning_rate, beta1, beta2, *rests, *logs, eps, l2, 1 - learning_rate * weight_decay)
        touched = (rows.contiguous(), gradient.contiguous())
        _lazy_adam[grid](*tables, *touched, factor, ok, num_steps, *numbers, **shape)
    elif ok is None or ok:
        scale = 1.0 if factor is None else float(factor)
        update = partial(adam, fused=True, amsgrad=False, maximize=False, decoupled_weight_decay=True)
        update = partial(update, lr=learning_rate, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        for block, part in _blocks(rows, gradient):
            new, mean, square = (table.index_select(0, block) for table in (weight, exp_avg, exp_avg_sq))
            part = _whole_gradient(part, new, scale, l2)
            before = num_steps.float() - 1  # `adam` counts the step itself
            update([new], [part], [mean], [square], [], [before])
            for table, values in zip((weight, exp_avg, exp_avg_sq), (new, mean, square), strict=True):
                _put(table, block, values)


def _check_contiguous(*tables: Tensor) -> None:
    if not all(table.is_contiguous() for table in tables):
        raise ValueError("tables and their state must be contiguous to be updated in place")


def _blocks(rows: Tensor, gradient: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The arguments cut alike: into blocks that fit the cache on a CPU, whole elsewhere."""
    size = len(rows) if rows.is_cuda else max(1, BLOCK * torch.get_num_threads() // gradient.shape[1])
    return zip(*(tensor.split(size) for tensor in (rows, gradient, *more)), strict=True)


def _put(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows] = values."""
    if table.is_cuda:
        table.index_copy_(0, rows, values)
    else:  # half the time of index_copy_ for rows in the cache
        table.detach().numpy()[rows.numpy()] = values.numpy()


def _whole_gradient(gradient: Tensor, weight: Tensor, scale: float, l2: float) -> Tensor:
    """gradient * scale + l2 * weight; a new tensor unless nothing is to do."""
    if scale != 1.0:
        gradient = gradient * scale
    return gradient.add(weight, alpha=l2) if l2 else gradient


def _adagrad_rates(
    total: Tensor, rows: Tensor, gradient: Tensor, scale: float, learning_rate: float, eps: float
) -> Tensor:
    """Adds the mean squares of gradient * scale to `total`; [n, 1] by which `gradient` is to be added to rows."""
    norm = torch.linalg.vector_norm(gradient, dim=1).mul_(scale)
    new = total.index_select(0, rows).addcmul_(norm, norm, value=1 / gradient.shape[1])
    _put(total, rows, new)
    return new.sqrt_().add_(eps).reciprocal_().mul_(-learning_rate * scale).unsqueeze(1)


def _launch(n: int, dim: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and tile [BLOCK_N, BLOCK_D] of a Triton kernel over n touched rows."""
    width = triton.next_power_of_2(dim)
    height = max(1, TILE // width)
    return (triton.cdiv(n, height),), {"BLOCK_N": height, "BLOCK_D": width}


if triton is not None:

    @triton.jit(do_not_specialize=["n"])  # it changes every step
    def _sgd(
        weight, rows, gradient, factor, ok, n, dim, learning_rate, l2, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
    ):
        _, _, mask, at, g = _touched(rows, gradient, factor, ok, n, dim, BLOCK_N, BLOCK_D)
        w = tl.load(weight + at, mask=mask, other=0.0)
        tl.store(weight + at, w - learning_rate * (g + l2 * w), mask=mask)

    @triton.jit(do_not_specialize=["n"])
    def _rowwise_adagrad(
        weight,
        total,
        rows,
        gradient,
        factor,
        ok,
        n,
        dim,
        learning_rate,
        eps,
        l2,
        BLOCK_N: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        row, touched, mask, at, g = _touched(rows, gradient, factor, ok, n, dim, BLOCK_N, BLOCK_D)
        w = tl.load(weight + at, mask=mask, other=0.0)
        g += l2 * w
        squares = tl.load(total + row, mask=touched, other=0.0) + tl.sum(g * g, axis=1) / dim
        tl.store(total + row, squares, mask=touched)
        rate = learning_rate / (tl.sqrt(squares) + eps)
        tl.store(weight + at, w - rate[:, None] * g, mask=mask)

    @triton.jit(do_not_specialize=["n"])
    def _lazy_adam(
        weight,
        exp_avg,
        exp_avg_sq,
        rows,
        gradient,
        factor,
        ok,
        num_steps,
        n,
        dim,
        learning_rate,
        beta1,
        beta2,
        rest1,  # 1 - beta1
        rest2,
        log_beta1,
        log_beta2,
        eps,
        l2,
        keep,  # 1 - learning_rate * weight_decay
        BLOCK_N: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        _, _, mask, at, g = _touched(rows, gradient, factor, ok, n, dim, BLOCK_N, BLOCK_D)
        w = tl.load(weight + at, mask=mask, other=0.0)
        g += l2 * w
        mean = beta1 * tl.load(exp_avg + at, mask=mask, other=0.0) + rest1 * g
        square = beta2 * tl.load(exp_avg_sq + at, mask=mask, other=0.0) + rest2 * g * g
        tl.store(exp_avg + at, mean, mask=mask)
        tl.store(exp_avg_sq + at, square, mask=mask)
        steps = tl.load(num_steps).to(tl.float32)
        rate = learning_rate / _one_minus_exp(steps * log_beta1)
        deviation = tl.sqrt(square / _one_minus_exp(steps * log_beta2)) + eps
        tl.store(weight + at, w * keep - rate * mean / deviation, mask=mask)

    @triton.jit
    def _touched(rows, gradient, factor, ok, n, dim, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
        """This program's rows [BLOCK_N], which of them to touch, as a mask of elements, their offsets, gradient."""
        position = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        if ok is not None:
            n = tl.where(tl.load(ok), n, 0)
        touched = position < n
        mask = touched[:, None] & (columns < dim)[None, :]
        row = tl.load(rows + position, mask=touched, other=0)
        g = tl.load(gradient + position[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        if factor is not None:
            g *= tl.load(factor)
        return row, touched, mask, row[:, None] * dim + columns[None, :], g

    @triton.jit
    def _one_minus_exp(x):
        """1 - exp(x) for x <= 0. Near 0, where the difference cancels, by the series -x (1 + x/2 (1 + x/3 ...))."""
        series = 1.0 + x / 9
        for divisor in tl.static_range(8, 1, -1):
            series = 1.0 + x / divisor * series
        return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))
