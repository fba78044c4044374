"""Optimizers of sharded tables. State is sharded like the rows: tensors with one entry per row of the shard.

`exact` moves every row every step, as torch.optim.Adam on an nn.Embedding with an L2 term in the loss; the lazy
ones move the touched rows only, for tables too large for that (design 3.2).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from eupmim_dist.parallel.tables import RowGradients, Shard


class TableOptimizer(ABC):
    """One optimizer for all shards of a rank. `l2` adds l2 * row to a row's gradient."""

    row_state: dict[str, dict[str, Tensor]]
    """Table -> name -> state with one entry per row of the shard; with `num_steps`, all there is to save."""

    def __init__(self, shards: dict[str, Shard], learning_rate: float, l2: float) -> None:
        self.shards, self.learning_rate, self.l2 = shards, learning_rate, l2
        self.row_state = {name: self._new_state(shard.weight) for name, shard in shards.items()}
        self.num_steps = 0

    @torch.no_grad()
    def step(self, gradients: dict[str, RowGradients]) -> None:
        self.num_steps += 1
        for name, gradient in gradients.items():
            self._update(name, gradient)

    @abstractmethod
    def _new_state(self, weight: Tensor) -> dict[str, Tensor]: ...

    @abstractmethod
    def _update(self, name: str, gradient: RowGradients) -> None: ...


class ExactAdam(TableOptimizer):
    """torch.optim.Adam over the whole shard: untouched rows move too. Holds a gradient as large as the shard."""

    def __init__(self, shards: dict[str, Shard], learning_rate: float, l2: float) -> None:
        super().__init__(shards, learning_rate, l2)
        self._adam: dict[str, torch.optim.Adam] = {}
        for name, shard in shards.items():
            parameter = torch.nn.Parameter(shard.weight)  # the same memory
            parameter.grad = torch.zeros_like(shard.weight)
            adam = torch.optim.Adam([parameter], lr=learning_rate, weight_decay=l2, fused=True)
            step = torch.zeros((), device=shard.weight.device)
            adam.state[parameter] = {"step": step, **self.row_state[name]}
            self._adam[name] = adam

    def _new_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def _update(self, name: str, gradient: RowGradients) -> None:
        adam = self._adam[name]
        [parameter] = adam.param_groups[0]["params"]
        adam.state[parameter]["step"].fill_(self.num_steps - 1)  # num_steps is what checkpoints restore
        parameter.grad[gradient.rows] = gradient.values
        adam.step()
        parameter.grad[gradient.rows] = 0.0


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with one accumulator per row, the mean square of its gradient (as FBGEMM's row-wise Adagrad)."""

    eps = 1e-8

    def _new_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"sum": weight.new_zeros(len(weight))}

    def _update(self, name: str, gradient: RowGradients) -> None:
        weight, state, rows = self.shards[name].weight, self.row_state[name], gradient.rows
        values = gradient.values.add(weight[rows], alpha=self.l2)
        total = state["sum"][rows] + values.square().mean(-1)
        state["sum"][rows] = total
        weight.index_add_(0, rows, values / (total.sqrt() + self.eps)[:, None], alpha=-self.learning_rate)


class LazyAdam(TableOptimizer):
    """Adam whose moments move with the touched rows only; bias correction by the common step count."""

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def _new_state(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def _update(self, name: str, gradient: RowGradients) -> None:
        weight, state, rows = self.shards[name].weight, self.row_state[name], gradient.rows
        values = gradient.values.add(weight[rows], alpha=self.l2)
        mean = state["exp_avg"][rows].lerp_(values, 1 - self.beta1)
        square = state["exp_avg_sq"][rows].mul_(self.beta2).addcmul_(values, values, value=1 - self.beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        corrected = (square / (1 - self.beta2**self.num_steps)).sqrt_().add_(self.eps)
        rate = self.learning_rate / (1 - self.beta1**self.num_steps)
        weight.index_add_(0, rows, mean / corrected, alpha=-rate)


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "exact": ExactAdam,
    "rowwise_adagrad": RowwiseAdagrad,
    "lazy_adam": LazyAdam,
}
