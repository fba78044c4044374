"""Embedding tables and their optimizers, plainly: every table whole, in one process, in float64.

An oracle: nothing here knows of ranks, shards, messages or merged rows. A look-up is `weight[ids]`, gradients are
autograd's, and the optimizers that move touched rows only go through them one by one. It shares with the package
nothing but the counter-based random numbers, which define the initial weights.

T = steps that were not skipped so far, this one included; g = gradient * factor + l2 * row.
"""

import math

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.counter import random_normal, stream_key


def initial_weight(seed: int, name: str, rows: int, dim: int) -> Tensor:
    """Xavier normal, float32 [rows, dim]; row i is a function of (seed, name, i)."""
    return random_normal(stream_key(seed, "table", name), torch.arange(rows), dim) * math.sqrt(2.0 / (rows + dim))


class PlainTable:
    """One table: `weight` is a float64 leaf [rows, dim]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach().double().requires_grad_()

    def rows(self, ids: Tensor) -> Tensor:
        """Shape of `ids` plus dim: rows of the weight, zeros where the id is -1."""
        found = self.weight[ids.clamp(min=0).flatten()].view(*ids.shape, self.weight.shape[1])
        return torch.where((ids == -1)[..., None], 0.0, found)

    def take_gradient(self) -> Tensor:
        """What `backward` has accumulated since the last call, float64 [rows, dim]; zeros if nothing."""
        gradient, self.weight.grad = self.weight.grad, None
        return torch.zeros_like(self.weight) if gradient is None else gradient


class PlainOptimizer:
    """Moves the rows of one table; `state` has one entry per row."""

    state: dict[str, np.ndarray]

    def __init__(self, table: PlainTable, l2: float, weight_decay: float = 0.0) -> None:
        self.table, self.l2, self.weight_decay = table, l2, weight_decay
        self.weight: np.ndarray = table.weight.detach().numpy()  # the same memory
        self.num_steps = 0
        self.state = {}

    def step(self, gradient: Tensor, touched: set[int], learning_rate: float, factor: float = 1.0) -> None:
        """`gradient` [rows, dim]; `touched` are the ids that anyone asked for in this step."""
        self.num_steps += 1
        for row in touched:
            g = gradient[row].numpy() * factor + self.l2 * self.weight[row]
            self.weight[row] = self.moved(row, self.weight[row], g, learning_rate)

    def moved(self, row: int, w: np.ndarray, g: np.ndarray, learning_rate: float) -> np.ndarray:
        raise NotImplementedError


class PlainSGD(PlainOptimizer):
    """w <- w - lr g"""

    def moved(self, row: int, w: np.ndarray, g: np.ndarray, learning_rate: float) -> np.ndarray:
        return w - learning_rate * g


class PlainRowwiseAdagrad(PlainOptimizer):
    """s <- s + mean(g^2);  w <- w - lr g / (sqrt(s) + 1e-8)"""

    def __init__(self, table: PlainTable, l2: float, weight_decay: float = 0.0) -> None:
        super().__init__(table, l2, weight_decay)
        self.state = {"sum": np.zeros(len(self.weight))}

    def moved(self, row: int, w: np.ndarray, g: np.ndarray, learning_rate: float) -> np.ndarray:
        self.state["sum"][row] += (g**2).mean()
        return w - learning_rate * g / (math.sqrt(self.state["sum"][row]) + 1e-8)


class PlainLazyAdam(PlainOptimizer):
    """w <- (1 - lr wd) w - lr m / (1 - 0.9^T) / (sqrt(v / (1 - 0.999^T)) + 1e-8), for touched rows only"""

    def __init__(self, table: PlainTable, l2: float, weight_decay: float = 0.0) -> None:
        super().__init__(table, l2, weight_decay)
        self.state = {"exp_avg": np.zeros_like(self.weight), "exp_avg_sq": np.zeros_like(self.weight)}

    def moved(self, row: int, w: np.ndarray, g: np.ndarray, learning_rate: float) -> np.ndarray:
        m = self.state["exp_avg"][row] = 0.9 * self.state["exp_avg"][row] + 0.1 * g
        v = self.state["exp_avg_sq"][row] = 0.999 * self.state["exp_avg_sq"][row] + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**self.num_steps), v / (1 - 0.999**self.num_steps)
        return w * (1 - learning_rate * self.weight_decay) - learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)


class PlainExact(PlainOptimizer):
    """torch.optim.Adam on the whole table, with l2 as its weight_decay: every row moves."""

    def __init__(self, table: PlainTable, l2: float, weight_decay: float = 0.0) -> None:
        super().__init__(table, l2, weight_decay)
        self.adam = torch.optim.Adam([table.weight], weight_decay=l2, foreach=False)
        self.state = {"exp_avg": np.zeros_like(self.weight), "exp_avg_sq": np.zeros_like(self.weight)}

    def step(self, gradient: Tensor, touched: set[int], learning_rate: float, factor: float = 1.0) -> None:
        self.adam.param_groups[0]["lr"] = learning_rate
        self.table.weight.grad = gradient * factor
        self.adam.step()
        self.table.weight.grad = None
        self.state = {name: self.adam.state[self.table.weight][name].numpy() for name in self.state}


PLAIN_OPTIMIZERS: dict[str, type[PlainOptimizer]] = {
    "exact": PlainExact,
    "sgd": PlainSGD,
    "rowwise_adagrad": PlainRowwiseAdagrad,
    "lazy_adam": PlainLazyAdam,
}
