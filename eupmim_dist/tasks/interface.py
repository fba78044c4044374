"""What a task is (design 1.2): what is predicted from what, in training and when the catalogue is ranked.

A new task is one module here: a configuration, the class, and `TASK = Registered(Configuration, Class)`.

B samples of this rank, L history, P predictions per sample, G samples of the global batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.schema import TaskSection
from eupmim_dist.data.batch import NO_ROW, Batch, UserBatch, histories, last_position
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.tasks.users import TrainingUsers

USERS_AT_A_TIME = 1 << 14
"""Whose items are counted together."""


@dataclass(frozen=True)
class Setting:
    """What a task works with, beside its own configuration."""

    store: InteractionStore
    seed: int
    global_batch_size: int
    causal: bool
    """Whether the model gives a query for each place of a history (models/interface.py)."""
    zero_untrained: bool
    """Whether a user who is never trained on is ranked without an id (TableSpec.untrained)."""
    rank: int = 0
    world_size: int = 1


class Task(ABC):
    """Prediction of items from a user's history. Sampling is a pure function of (seed, step, slot)."""

    least: int
    """A user is trained on who has more items than this."""
    num_kinds = 1
    """Of steps, in turn: step 0 to num_kinds - 1 have one each."""
    one_window = False
    """Whether all targets of a sample are items of one sequence, in its order."""

    def __init__(self, config: TaskSection, setting: Setting) -> None:
        self.history_length = config.history_length
        self.store, self.seed, self.causal = setting.store, setting.seed, setting.causal
        self.global_batch_size, self.zero_untrained = setting.global_batch_size, setting.zero_untrained
        self.first_slot, self.last_slot = block_range(self.global_batch_size, setting.rank, setting.world_size)
        self.capacity = block_range(self.global_batch_size, 0, setting.world_size)[1]

    @cached_property
    def training(self) -> TrainingUsers:
        """The users of the train split that are long enough. Raises UserError if there are none."""
        found = TrainingUsers(self.store, self.seed, self.global_batch_size, self.least)
        if not len(found):
            raise UserError(self.nobody())
        return found

    @abstractmethod
    def sample(self, step: int) -> Batch:
        """This rank's part of the global batch of a step, counted from 0."""

    @abstractmethod
    def targets(self, step: int) -> Tensor:
        """What the whole global batch of a step predicts, in the order of its slots: int64, NO_ROW for nothing."""

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        """Users and items, int64 [n] each, NO_ROW for nothing: those of `targets`, and others that the model must not
        know, edges that the propagation of the step leaves out, of a model that has one. Raises UserError where a task
        does not say it."""
        raise UserError(
            f"model.mask_targets: {type(self).__name__} does not say whose items are its targets (predicted); set "
            "model.mask_targets=false"
        )

    @cached_property
    def target_share(self) -> Tensor:
        """The share of each item in what training predicts, in the long run: float64 [item rows], 1 in all."""
        share = np.zeros(self.store.num_item_rows)
        users, lengths = self.training.users.numpy(), self.training.lengths.numpy()
        for first in range(0, len(users), USERS_AT_A_TIME):
            some = slice(first, first + USERS_AT_A_TIME)
            length = np.repeat(lengths[some], lengths[some])
            place = np.arange(len(length)) - np.repeat(lengths[some].cumsum() - lengths[some], lengths[some])
            items = self.store.items[np.repeat(self.store.offsets[users[some]], lengths[some]) + place]
            share += np.bincount(items, self.target_weights(place, length), len(share))
        return torch.from_numpy(share / share.sum())

    def target_weights(self, place: np.ndarray, length: np.ndarray) -> np.ndarray:
        """How often an item is the target, in proportion, that stands at a place (from 0) of a user with so many
        items: float64 [n] of int64 [n] each. Users are drawn equally often.

        Only a correction by log q needs it. Raises UserError where a task does not say it.
        """
        raise UserError(
            f"objective.log_q: {type(self).__name__} does not say how often an item is its target (target_weights); "
            "set objective.log_q=false"
        )

    def to_rank(self, users: np.ndarray, cuts: np.ndarray) -> Batch:
        """Users [B] with what they had before the cuts [B], without anything to learn."""
        starts = self.store.offsets[users].astype(np.int64)
        return self.to_rank_by(self.store.items, starts, cuts, users, self.attributes(users))

    def to_rank_by(
        self, items: np.ndarray, starts: np.ndarray, cuts: np.ndarray, users: np.ndarray, attributes: Tensor
    ) -> Batch:
        """The same of histories items[start:start + cut] that need not be the store's, nor need the users: NO_ROW."""
        history = histories(items, torch.from_numpy(starts), torch.from_numpy(cuts), self.history_length)
        trained = self.store.train_lengths(np.where(users == NO_ROW, 0, users)) > self.least
        ids = np.where(trained, users, NO_ROW) if self.zero_untrained else users.astype(np.int64)
        return UserBatch(
            num_predictions=len(users),
            capacity=len(users),
            user=torch.from_numpy(ids),
            attributes=attributes,
            history=history,
            position=last_position(history),
        )

    def attributes(self, users: np.ndarray) -> Tensor:
        """Int64 [B, A]."""
        return torch.from_numpy(self.store.attribute_values[users].astype(np.int64))

    def starts(self, users: Tensor) -> Tensor:
        """Where each user's sequence begins in the store's items."""
        return torch.from_numpy(self.store.offsets[users.numpy()].astype(np.int64))

    def items_at(self, positions: Tensor) -> Tensor:
        """What stands at places of the store's flat array of items: int64."""
        return torch.from_numpy(self.store.items[positions.numpy()].astype(np.int64))

    @abstractmethod
    def nobody(self) -> str:
        """What to say where no user can be trained on."""
