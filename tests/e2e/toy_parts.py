"""A package of somebody else: an objective, a task and a scorer, which test_plugin.py installs."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ObjectiveSection, ScorerSection, TaskSection
from eupmim_dist.data.batch import UserBatch, histories, last_position
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.counter import random_integers, stream_key
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer
from eupmim_dist.models.interface import ITEM_TABLE, Encoded, Model, Rows, Uses
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective
from eupmim_dist.tasks.interface import Setting, Task


class BPRConfig(ObjectiveSection):
    name: Literal["toy-bpr"] = "toy-bpr"
    """A pairwise loss."""
    margin: float = Field(0.0, ge=0)
    """By how much the target is to be ahead."""


@dataclass(frozen=True)
class Pairs(Candidates):
    ids: Tensor  # int64 [Q, 2], the target first

    def uses(self) -> Uses:
        return {"pairs": (ITEM_TABLE, self.ids)}


class BPR(Objective):
    """The target against one item, both by the interest that scores them highest."""

    def __init__(self, config: BPRConfig, model: Model, task: Task) -> None:
        super().__init__()
        self.margin, self.seed, self.num_rows = config.margin, task.seed, task.store.num_item_rows

    def draw(self, batch: UserBatch, step: int) -> Pairs:
        assert batch.target is not None
        assert batch.counter is not None
        drawn = random_integers(stream_key(self.seed, "toy pairs"), batch.counter.view(-1), self.num_rows - 1) + 1
        return Pairs(torch.stack([batch.target.view(-1), drawn], dim=1))

    def forward(
        self, encoded: Encoded, rows: Rows, batch: UserBatch, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        target, other = (encoded.queries @ rows["pairs"].transpose(1, 2)).amax(1).unbind(1)
        share = -F.logsigmoid(target - other - self.margin).sum() / batch.num_predictions
        return {"pairwise": share, **encoded.penalties}


class LastItemConfig(TaskSection):
    name: Literal["toy.LastItem"] = "toy.LastItem"
    """The last item of a user."""


class LastItem(Task):
    least = 1

    def __init__(self, config: LastItemConfig, setting: Setting) -> None:
        super().__init__(config, setting)

    def sample(self, step: int) -> UserBatch:
        user, start, cut = self._chosen(step, self.first_slot, self.last_slot)
        history = histories(self.store.items, start, cut, self.history_length)
        slot = torch.arange(self.first_slot, self.last_slot) + step * self.global_batch_size
        return UserBatch(
            num_predictions=self.global_batch_size,
            capacity=self.capacity,
            user=user,
            attributes=self.attributes(user.numpy()),
            history=history,
            position=last_position(history),
            target=self.items_at(start + cut)[:, None],
            counter=slot[:, None],
        )

    def targets(self, step: int) -> Tensor:
        _, start, cut = self._chosen(step, 0, self.global_batch_size)
        return self.items_at(start + cut)

    def nobody(self) -> str:
        return f"{self.store.path}: no training user has two items"

    def _chosen(self, step: int, first: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.training.chosen(step, first, stop)
        user = self.training.users[chosen]
        return user, self.starts(user), self.training.lengths[chosen] - 1


class AlphabetConfig(ScorerSection):
    name: Literal["toy_alphabet"] = "toy_alphabet"
    """Smaller ids first."""


class Alphabet(Scorer):
    def __init__(self, config: AlphabetConfig, ranking: Ranking) -> None:
        first, last = block_range(ranking.store.num_item_rows, ranking.world.rank, ranking.world.size)
        self.item_ids = torch.arange(first, last)

    def query(self, users: HeldOut) -> Tensor:
        return torch.zeros(len(users.batch), 1)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return -self.item_ids[start:stop].double().repeat(len(query), 1, 1)


OBJECTIVE = Registered(BPRConfig, BPR)
TASK = Registered(LastItemConfig, LastItem)
SCORER = Registered(AlphabetConfig, Alphabet)
