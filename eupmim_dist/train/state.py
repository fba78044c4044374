"""What a training run is made of, and the little that changes while it trains."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.metadata import Count
from eupmim_dist.models.interface import Model
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.optim.tables import TableOptimizer
from eupmim_dist.parallel.dense import Dense
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import Verdict
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.interface import Task


@dataclass
class Progress:
    """Where training stands; with the weights and optimizer states, all that a resumed run needs."""

    step: Count = 0
    """Steps done."""
    num_updates: Count = 0
    """Those among them that were not skipped for their gradients, as of the last checkpoint."""
    best_value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    best_step: Count | None = None
    evaluations_since_best: Count = 0
    stopped: bool = False
    """Early stopping has ended the training."""

    def __post_init__(self) -> None:
        if (self.best_value is None) != (self.best_step is None):
            raise ValueError("best_value and best_step are given together")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(repr=False)
class Setup:
    """What there is without a model: enough to rank by a baseline."""

    config: Config
    world: World
    store: InteractionStore
    task: Task

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.model.name} on {self.store.path}, {self.world.device})"


@dataclass(repr=False)
class Assembled(Setup):
    """A model with its tables and data on one rank, as assemble.py builds it: enough to rank and to save."""

    model: Model
    tables: ShardedTables


@dataclass(repr=False)
class Run(Assembled):
    """A training run on one rank."""

    objective: Objective
    dense: Dense
    table_optimizer: TableOptimizer
    progress: Progress
    stop_requested: bool = False
    """Set on any rank, at any time: all end after one of the next steps, the same one."""
    end_requested: bool = False
    """The same, but as if that step were the last one: the training is finished."""
    asked_to_leave: bool = False
    """Training ended by `stop_requested`: it is not finished, and its last step is saved."""


@dataclass(frozen=True)
class Outcome:
    """What a step gave, on the device."""

    shares: dict[str, Tensor]
    """This rank's share of each part of the loss, detached."""
    verdict: Verdict
