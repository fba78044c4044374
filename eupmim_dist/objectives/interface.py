"""What an objective is (design 1.2): queries, targets and candidates -> this rank's share of the loss.

A new objective is one module here: a configuration, the class, and `OBJECTIVE = Registered(Configuration, Class)`.

Q queries of this rank, K interests, D dim, W ranks, R = W * capacity queries of all ranks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eupmim_dist.data.batch import Batch, TensorFields, UserBatch
from eupmim_dist.models.interface import Encoded, Rows, Uses


@dataclass(frozen=True)
class Candidates(TensorFields):
    """What an objective draws for a batch ahead of the step, on the CPU; subclasses hold tensors."""

    def uses(self) -> Uses:
        """The rows that the loss looks up; names that no model uses."""
        return {}


class Catalogue(ABC):
    """The item table over all ranks, each with its own rows (design 1.1): what a loss over all items is made of.

    Every method but `blocks`, `rows_of` and `own` is collective, also for a rank without queries; all are
    differentiable.
    """

    @abstractmethod
    def blocks(self, most: int) -> list[Tensor]:
        """This rank's rows of items, without the padding, in blocks of `most` rows at most: [c, D] each."""

    @abstractmethod
    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of int64 ids [R] that this rank holds, zeros for others, [R, D]; and which those are, bool [R]."""

    @abstractmethod
    def gather(self, values: Tensor, capacity: int) -> Tensor:
        """[Q, ...] of each rank, Q <= capacity, which is alike everywhere -> [R, ...], zeros past each rank's own."""

    @abstractmethod
    def own(self, gathered: Tensor, number: int) -> Tensor:
        """The first `number` of this rank's part of [R, ...]."""

    @abstractmethod
    def logsumexp(self, values: Tensor) -> Tensor:
        """The log of the sum of exponentials over the ranks: [R] -> [R]. Some rank's value must be finite."""

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks: [R] -> [R]."""


class Objective(nn.Module, ABC):
    """A loss without weights of its own. `draw` runs beside the steps, in a thread."""

    batch_type: type[Batch] = UserBatch
    """What it is fed: a task that gives other batches is refused."""
    whole_catalogue = False
    """Whether `forward` is given a Catalogue."""

    @abstractmethod
    def draw(self, batch: Any, step: int) -> Candidates:
        """What the loss of a (micro-)batch of `step` needs beside it: a pure function, alike at any number of ranks."""

    @abstractmethod
    def forward(
        self, encoded: Encoded, rows: Rows, batch: Any, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        """This rank's share of each part of the global loss; their sum over parts and ranks is the loss.

        `rows` are those that the candidates use. A rank without predictions gives zeros that depend on the queries.
        """
