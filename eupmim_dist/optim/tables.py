"""Optimizers of tables. State is placed like the rows: tensors with one entry per row that this rank holds.

`exact` moves every row every step, as torch.optim.Adam on an nn.Embedding with an L2 term in the loss; the lazy
ones move the touched rows only, for tables too large for that (design 3.2).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.optim import row_updates
from eupmim_dist.parallel.lookup import RowGradients
from eupmim_dist.parallel.memory import table_zeros
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import Verdict

State = dict[str, Tensor]


class TableOptimizer(ABC):
    """One optimizer for all tables. `l2` adds l2 * row to a row's gradient."""

    held: ClassVar[int] = 0
    """Tensors as large as the rows that it holds beside them; numbers for each row do not count."""
    num_steps: Tensor
    """Float32 scalar, the steps that were not skipped; with `row_state` all there is to save."""

    def __init__(self, tables: ShardedTables, config: TablesConfig, learning_rate: float, l2: float) -> None:
        self.tables, self.config, self.learning_rate, self.l2 = tables, config, learning_rate, l2
        self.rate = learning_rate
        self.num_steps = torch.zeros((), device=tables.world.device)
        self._states = [self._new_state(group.weight) if group.trained else {} for group in tables.groups]

    @property
    def row_state(self) -> dict[str, State]:
        """Table -> name -> a view of the state with one entry per row of the table's shard."""
        views: dict[str, State] = {}
        for group, state in zip(self.tables.groups, self._states, strict=True):
            for name, member in group.members.items():
                stop = member.offset + len(self.tables.shards[name].weight)
                views[name] = {key: value[member.offset : stop] for key, value in state.items()}
        return views

    @torch.no_grad()
    def step(self, gradients: Sequence[RowGradients], verdict: Verdict | None = None, rate_factor: float = 1.0) -> None:
        """Moves the rows, unless the verdict has the step skipped; `rate_factor` is the schedule's."""
        self.rate = self.learning_rate * rate_factor
        ok = None if verdict is None else verdict.ok
        factor = None if verdict is None else verdict.factor
        self.num_steps += 1 if ok is None else ok
        for number, (group, gradient) in enumerate(zip(self.tables.groups, gradients, strict=True)):
            if not group.trained:
                continue
            place = group.weight.device  # the host's memory, where tables are kept there: then this waits for the GPU
            factor, ok = (None if scalar is None else scalar.to(place) for scalar in (factor, ok))
            self._update(number, RowGradients(gradient.rows, gradient.values.to(place)), factor, ok)

    @abstractmethod
    def _new_state(self, weight: Tensor) -> State: ...

    @abstractmethod
    def _update(self, number: int, gradient: RowGradients, factor: Tensor | None, ok: Tensor | None) -> None:
        """Updates the rows of group `number`; `factor` multiplies the gradient, nothing changes unless `ok`."""


class ExactAdam(TableOptimizer):
    """torch.optim.Adam over all rows: untouched ones move too. Holds a gradient as large as the rows."""

    held = 3

    def __init__(self, tables: ShardedTables, config: TablesConfig, learning_rate: float, l2: float) -> None:
        super().__init__(tables, config, learning_rate, l2)
        self._adams = []
        for group, state in zip(tables.groups, self._states, strict=True):
            parameter = torch.nn.Parameter(group.weight)  # the same memory
            parameter.grad = table_zeros(*group.weight.shape, device=group.weight.device) if group.trained else None
            adam = torch.optim.Adam([parameter], weight_decay=l2, fused=True)
            adam.state[parameter] = {"step": torch.zeros((), device=group.weight.device), **state}
            self._adams.append(adam)

    def _new_state(self, weight: Tensor) -> State:
        return {name: table_zeros(*weight.shape, device=weight.device) for name in ("exp_avg", "exp_avg_sq")}

    def _update(self, number: int, gradient: RowGradients, factor: Tensor | None, ok: Tensor | None) -> None:
        adam = self._adams[number]
        [parameters] = adam.param_groups
        [parameter] = parameters["params"]
        parameters["lr"] = self.rate
        adam.state[parameter]["step"].copy_(self.num_steps - 1)
        # What torch's GradScaler sets: the divisor of the gradient, and 1.0 where nothing may change.
        adam.grad_scale = None if factor is None else factor.reciprocal()  # type: ignore[attr-defined]
        adam.found_inf = None if ok is None else (~ok).float()  # type: ignore[attr-defined]
        if len(gradient.rows) == len(parameter):  # all rows, in their order
            zeros, parameter.grad = parameter.grad, gradient.values
            adam.step()
            parameter.grad = zeros
            return
        parameter.grad.index_copy_(0, gradient.rows, gradient.values)
        adam.step()
        parameter.grad.index_fill_(0, gradient.rows, 0.0)


class SGD(TableOptimizer):
    """Plain gradient descent of the touched rows."""

    def _new_state(self, weight: Tensor) -> State:
        return {}

    def _update(self, number: int, gradient: RowGradients, factor: Tensor | None, ok: Tensor | None) -> None:
        row_updates.sgd_(
            self.tables.groups[number].weight,
            gradient.rows,
            gradient.values,
            factor,
            ok,
            learning_rate=self.rate,
            l2=self.l2,
        )


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with one accumulator per row, the mean square of its gradient (as FBGEMM's row-wise Adagrad)."""

    eps = 1e-8

    def _new_state(self, weight: Tensor) -> State:
        return {"sum": table_zeros(len(weight), device=weight.device)}

    def _update(self, number: int, gradient: RowGradients, factor: Tensor | None, ok: Tensor | None) -> None:
        row_updates.rowwise_adagrad_(
            self.tables.groups[number].weight,
            self._states[number]["sum"],
            gradient.rows,
            gradient.values,
            factor,
            ok,
            learning_rate=self.rate,
            eps=self.eps,
            l2=self.l2,
        )


class LazyAdam(TableOptimizer):
    """Adam whose moments move with the touched rows only; bias correction by the common step count."""

    held = 2
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def _new_state(self, weight: Tensor) -> State:
        return {name: table_zeros(*weight.shape, device=weight.device) for name in ("exp_avg", "exp_avg_sq")}

    def _update(self, number: int, gradient: RowGradients, factor: Tensor | None, ok: Tensor | None) -> None:
        weight = self.tables.groups[number].weight
        row_updates.lazy_adam_(
            weight,
            self._states[number]["exp_avg"],
            self._states[number]["exp_avg_sq"],
            gradient.rows,
            gradient.values,
            factor,
            ok,
            self.num_steps.to(weight.device),
            learning_rate=self.rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            l2=self.l2,
            weight_decay=self.config.weight_decay,
        )


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "exact": ExactAdam,
    "lazy_adam": LazyAdam,
    "rowwise_adagrad": RowwiseAdagrad,
    "sgd": SGD,
}


def make_table_optimizer(
    config: TablesConfig, tables: ShardedTables, learning_rate: float, l2: float
) -> TableOptimizer:
    """The configured optimizer with fresh state; `learning_rate` holds unless the tables have their own."""
    return TABLE_OPTIMIZERS[config.optimizer](tables, config, config.learning_rate or learning_rate, l2)
