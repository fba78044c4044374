"""next_item: one item of a user is drawn, and predicted from the last L before it.

S slots, L history.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import TaskSection
from eupmim_dist.data.batch import UserBatch, histories, last_position
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.tasks.users import draw_cuts


class NextItemConfig(TaskSection):
    name: Literal["next_item"] = "next_item"
    """What is predicted: next_item (one drawn item of a user) or every_position (each place of a window)."""
    min_history: int = Field(4, ge=1)
    """Smallest number of items before a training target; users with fewer are dropped and counted."""


class NextItem(Task):
    """A target position uniform in [min_history, length - 1] per slot, as the authors of E-UPMiM train."""

    def __init__(self, config: NextItemConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.least = config.min_history

    def sample(self, step: int) -> UserBatch:
        user, start, cut, counter = self._drawn(step, self.first_slot, self.last_slot)
        history = histories(self.store.items, start, cut, self.history_length)
        return UserBatch(
            num_predictions=self.global_batch_size,
            capacity=self.capacity,
            user=user,
            attributes=self.attributes(user.numpy()),
            history=history,
            position=last_position(history),
            target=self.items_at(start + cut)[:, None],
            counter=counter[:, None],
        )

    def targets(self, step: int) -> Tensor:
        return self.predicted(step)[1]

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        user, start, cut, _ = self._drawn(step, 0, self.global_batch_size)
        return user, self.items_at(start + cut)

    def target_weights(self, place: np.ndarray, length: np.ndarray) -> np.ndarray:
        return (place >= self.least) / (length - self.least)

    def _drawn(self, step: int, first: int, stop: int) -> tuple[Tensor, ...]:
        """Users, where their sequences start, how many items come before the targets, and counters: int64 [S] each."""
        counter = torch.arange(first, stop) + step * self.global_batch_size
        chosen = self.training.chosen(step, first, stop)
        user, length = self.training.users[chosen], self.training.lengths[chosen]
        return user, self.starts(user), draw_cuts(self.seed, counter, self.least, length), counter

    def nobody(self) -> str:
        return f"{self.store.path}: no training user has more than task.min_history={self.least} items; lower it"


TASK = Registered(NextItemConfig, NextItem)
