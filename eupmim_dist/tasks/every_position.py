"""every_position: of a window of a user's sequence each item is predicted from those before it (SASRec's training).

A causal model reads the window once and answers at every place of it. For any other, each prediction is a sample of
its own with the last L items before it as history: what it computes is what `next_item` has it compute, but several
predictions of a step are of one user.

S slots, L history, P predictions per window, B samples: S for a causal model, S * P for others.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import TaskSection
from eupmim_dist.data.batch import NO_ROW, UserBatch, histories
from eupmim_dist.data.counter import random_bits, stream_key
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.tasks.users import draw_cuts

UNLESS_CAUSAL = 4
"""P of a model that reads a history for each prediction: all places of a window would be as many samples."""


class EveryPositionConfig(TaskSection):
    name: Literal["every_position"] = "every_position"
    """What is predicted: next_item (one drawn item of a user) or every_position (each place of a window)."""
    history_length: int = Field(50, ge=1)
    """L: length of a window, and of the histories that are ranked for."""
    num_positions: int | None = Field(None, ge=1)
    """P: places of a window that are trained, drawn anew in each step. If not given, all L of a causal model; 4 of any
    other, for which each is a history of its own to be read."""

    @model_validator(mode="after")
    def _of_a_window(self) -> "EveryPositionConfig":
        if (self.num_positions or 1) > self.history_length:
            raise ValueError(f"num_positions {self.num_positions} exceeds history_length {self.history_length}")
        return self


class EveryPosition(Task):
    """A window per slot that ends before an item uniform in [min(L, length - 1), length - 1]: whole wherever it can be.

    Users with two items or more are trained on. Places that a short window lacks predict nothing.
    """

    least = 1

    def __init__(self, config: EveryPositionConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        most = config.history_length if setting.causal else UNLESS_CAUSAL
        self.num_positions = min(config.num_positions or most, config.history_length)
        self.one_window = setting.causal

    def sample(self, step: int) -> UserBatch:
        user, start, cut, place, counter = self._drawn(step, self.first_slot, self.last_slot)
        target = self._targets(start, cut, place)
        taken = cut.clamp(max=self.history_length)
        if self.causal:
            history = histories(self.store.items, start, cut, self.history_length)
            position = place.clamp(min=0)
        else:
            user, start = user.repeat_interleave(self.num_positions), start.repeat_interleave(self.num_positions)
            # A place that predicts nothing gets an empty history.
            cuts = torch.where(place == NO_ROW, 0, (cut - taken)[:, None] + place + 1).flatten()
            history = histories(self.store.items, start, cuts, self.history_length)
            position = (cuts.clamp(max=self.history_length) - 1).clamp(min=0)[:, None]
            target, counter = target.view(-1, 1), counter.view(-1, 1)
        return UserBatch(
            num_predictions=self._num_predictions(step),
            capacity=self.capacity * (1 if self.causal else self.num_positions),
            user=user,
            attributes=self.attributes(user.numpy()),
            history=history,
            position=position,
            target=target,
            counter=counter,
        )

    def targets(self, step: int) -> Tensor:
        return self.predicted(step)[1]

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        user, start, cut, place, _ = self._drawn(step, 0, self.global_batch_size)
        return user.repeat_interleave(self.num_positions), self._targets(start, cut, place).flatten()

    def target_weights(self, place: np.ndarray, length: np.ndarray) -> np.ndarray:
        window = np.minimum(self.history_length, length - 1)
        # The windows that end before an item from `window` on, and have this place's among their targets.
        windows = np.minimum(place + window - 1, length - 1) - np.maximum(window, place) + 1
        return (place >= 1) * windows / (length - window) * np.minimum(self.num_positions, window) / window

    def _drawn(self, step: int, first: int, stop: int) -> tuple[Tensor, ...]:
        """Users, starts of their sequences and ends of their windows [S], places and counters [S, P]; int64."""
        slot = torch.arange(first, stop) + step * self.global_batch_size
        chosen = self.training.chosen(step, first, stop)
        user, length = self.training.users[chosen], self.training.lengths[chosen]
        cut = draw_cuts(self.seed, slot, (length - 1).clamp(max=self.history_length), length)
        counter = slot[:, None] * self.num_positions + torch.arange(self.num_positions)
        return user, self.starts(user), cut, self._places(slot, cut), counter

    def _places(self, slot: Tensor, cut: Tensor) -> Tensor:
        """P distinct places of each window, ascending, NO_ROW where there are no more: int64 [S, P]."""
        column = torch.arange(self.history_length)
        outside = column >= cut[:, None]
        if self.num_positions == self.history_length:
            return torch.where(outside, NO_ROW, column)
        bits = random_bits(stream_key(self.seed, "places"), slot[:, None] * self.history_length + column)
        order = (bits >> 1).masked_fill(outside, torch.iinfo(torch.int64).max).argsort(1)[:, : self.num_positions]
        drawn = torch.where(outside.gather(1, order), self.history_length, order).sort(1).values
        return torch.where(drawn == self.history_length, NO_ROW, drawn)

    def _targets(self, start: Tensor, cut: Tensor, place: Tensor) -> Tensor:
        first = start + cut - cut.clamp(max=self.history_length)
        nothing = place == NO_ROW
        items = self.items_at(torch.where(nothing, 0, first[:, None] + place + 1))
        return torch.where(nothing, NO_ROW, items)

    def _num_predictions(self, step: int) -> int:
        """Of the global batch; a pure function, so no rank has to ask the others."""
        lengths = self.training.lengths[self.training.chosen(step, 0, self.global_batch_size)]
        return int((lengths - 1).clamp(max=self.num_positions).sum())

    def nobody(self) -> str:
        return f"{self.store.path}: no training user has two items, of which one could be predicted from the other"


TASK = Registered(EveryPositionConfig, EveryPosition)
