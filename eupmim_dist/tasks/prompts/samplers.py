"""What the prompts of each kind are about: pure functions of (seed, turn, slot).

A turn is a step among those of its kind, counted from 0. G slots of the global batch, S those of this rank, L history,
C candidates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, histories
from eupmim_dist.data.blocks import spans
from eupmim_dist.data.counter import permute, random_bits, random_integers, stream_key
from eupmim_dist.data.manifest import EXPLANATIONS
from eupmim_dist.data.prompts.templates import TEMPLATES, PromptKind
from eupmim_dist.data.training_data import training_interactions
from eupmim_dist.errors import UserError
from eupmim_dist.tasks.interface import Task
from eupmim_dist.tasks.users import TrainingUsers


@dataclass(frozen=True)
class Asked:
    """What prompts name: int64."""

    user: Tensor  # [S]
    items: Tensor  # [S, n], NO_ROW past the end
    template: Tensor  # [S], NO_ROW for the short wording


class Sampler(ABC):
    """The samples of one kind of prompts, with wordings that are drawn or `short` ones. `size` is G."""

    kind: PromptKind

    def __init__(self, task: Task, short: bool) -> None:
        self.task, self.store, self.short = task, task.store, short
        self.seed, self.size = stream_key(task.seed, "prompts", self.kind), task.global_batch_size

    @abstractmethod
    def ask(self, turn: int, first: int, stop: int) -> Asked:
        """What is asked in the slots first..stop-1 of a turn."""

    @abstractmethod
    def answers(self, turn: int) -> Tensor:
        """The answers in all slots of a turn, int64 [G]: items, or records of explanations."""

    @abstractmethod
    def predicted(self, turn: int) -> tuple[Tensor, Tensor]:
        """Users and items, int64 [n] each, whose edges the propagation of a turn leaves out."""

    def counters(self, turn: int, first: int, stop: int) -> Tensor:
        return torch.arange(first, stop) + turn * self.size

    def drawn(self, what: str, counters: Tensor, bound: Tensor | int) -> Tensor:
        """Uniform in [0, bound)."""
        return random_integers(stream_key(self.seed, what), counters, bound)

    def templates(self, counters: Tensor) -> Tensor:
        """int64 [S], NO_ROW for the short wording."""
        if self.short:
            return torch.full_like(counters, NO_ROW)
        return self.drawn("template", counters, len(TEMPLATES[self.kind]))


class OfUsers(Sampler):
    """A kind whose samples go through the users who have two training items or more."""

    def __init__(self, task: Task, short: bool) -> None:
        super().__init__(task, short)
        self.training = TrainingUsers(self.store, self.seed, self.size, 1)

    def users(self, turn: int, first: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Users, where their items begin in the store, and how many of these may be trained on: [S] each."""
        chosen = self.training.chosen(turn, first, stop)
        user = self.training.users[chosen]
        return user, self.task.starts(user), self.training.lengths[chosen]


class Sequential(OfUsers):
    """A part of a user's training items, between two places drawn one after the other: its last item is the answer, the
    last L before that are named."""

    kind = "sequential"

    def ask(self, turn: int, first: int, stop: int) -> Asked:
        counters = self.counters(turn, first, stop)
        user, begin, from_, to = self._parts(turn, first, stop)
        history = histories(self.store.items, begin + from_, to - from_, self.task.history_length)
        return Asked(user, history, self.templates(counters))

    def answers(self, turn: int) -> Tensor:
        _, begin, _, to = self._parts(turn, 0, self.size)
        return self.task.items_at(begin + to)

    def predicted(self, turn: int) -> tuple[Tensor, Tensor]:
        """The answer and what the user had after it, which he will not have had either where he is asked in earnest."""
        _, _, _, to = self._parts(turn, 0, self.size)
        user, begin, length = self.users(turn, 0, self.size)
        slot, places = spans((begin + to).numpy(), (begin + length).numpy())
        return user[slot], self.task.items_at(torch.from_numpy(places))

    def _parts(self, turn: int, first: int, stop: int) -> tuple[Tensor, ...]:
        """Users, where their items begin, and first and last place of the parts."""
        counters = self.counters(turn, first, stop)
        user, begin, length = self.users(turn, first, stop)
        from_ = self.drawn("from", counters, length - 1)
        return user, begin, from_, from_ + 1 + self.drawn("to", counters, length - 1 - from_)


class Direct(OfUsers):
    """One of a user's training items, the answer, among others drawn evenly from the rest, in random order."""

    kind = "direct"

    def __init__(self, task: Task, short: bool, num_negatives: int) -> None:
        super().__init__(task, short)
        self.num_negatives = num_negatives

    def ask(self, turn: int, first: int, stop: int) -> Asked:
        counters = self.counters(turn, first, stop)
        user, begin, length = self.users(turn, first, stop)
        others = self._others(counters, begin, length)
        candidates = torch.cat([self._positives(counters, begin, length)[:, None], others], dim=1)
        return Asked(user, shuffled(candidates, random_bits(self.seed, counters)), self.templates(counters))

    def answers(self, turn: int) -> Tensor:
        _, begin, length = self.users(turn, 0, self.size)
        return self._positives(self.counters(turn, 0, self.size), begin, length)

    def predicted(self, turn: int) -> tuple[Tensor, Tensor]:
        return self.users(turn, 0, self.size)[0], self.answers(turn)

    def _positives(self, counters: Tensor, begin: Tensor, length: Tensor) -> Tensor:
        return self.task.items_at(begin + self.drawn("positive", counters, length))

    def _others(self, counters: Tensor, begin: Tensor, length: Tensor) -> Tensor:
        """The first of a random order of all items that are not the user's: [S, C - 1], NO_ROW past the end."""
        if not len(counters):
            return torch.zeros(0, self.num_negatives, dtype=torch.int64)
        items = self.store.num_item_rows - 1
        longest = int(length.max())
        place = torch.arange(min(self.num_negatives + longest, items)).expand(len(counters), -1)
        key = random_bits(stream_key(self.seed, "others"), counters)[:, None].expand(place.shape)
        found = permute(key.flatten(), place.flatten(), items).view(place.shape) + 1
        own = histories(self.store.items, begin, length, longest)
        slot = torch.arange(len(counters))[:, None] * (items + 1)
        allowed = ~torch.isin(slot + found, (slot + own)[own != NO_ROW])
        kept = allowed & (allowed.cumsum(1) <= self.num_negatives)
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : self.num_negatives]
        return torch.where(kept, found, NO_ROW).gather(1, order)


def shuffled(items: Tensor, keys: Tensor) -> Tensor:
    """Each row of items [S, n] in an order that its int64 key [S] and the items themselves say; NO_ROW comes last."""
    bits = random_bits(keys[:, None], items) >> 1
    return items.gather(1, bits.masked_fill(items == NO_ROW, torch.iinfo(torch.int64).max).argsort(1))


class Explanation(Sampler):
    """A record of what a user wrote of an item; an epoch is a permutation of the records for training.

    Of those that the source trains on, the ones of training interactions alone: its split knows nothing of the store's,
    and others would train the rows of users and items that are held out together.
    """

    kind = "explanation"

    def __init__(self, task: Task, short: bool) -> None:
        super().__init__(task, short)
        store = self.store
        if (explanations := store.explanations()) is None:
            raise UserError(
                f"task.mix: explanation, and {store.path} has no {EXPLANATIONS}; prepare it from data with an "
                "explanation.json, or leave it out"
            )
        position, items = training_interactions(store)
        trained = pl.LazyFrame({"user": store.users("train")[position], "item": items}).cast(pl.Int64)
        records = explanations.filter(split="train")
        frame = records.join(trained, on=["user", "item"], how="semi", maintain_order="left").collect()
        if not len(frame):
            raise UserError(
                f"{store.path}: has no explanations of training interactions; leave explanation out of task.mix"
            )
        self.user = torch.tensor(frame["user"].to_list())
        self.item = torch.tensor(frame["item"].to_list())
        self.texts: list[str] = frame["explanation"].to_list()

    def ask(self, turn: int, first: int, stop: int) -> Asked:
        record, counters = self._records(turn)[first:stop], self.counters(turn, first, stop)
        return Asked(self.user[record], self.item[record][:, None], self.templates(counters))

    def answers(self, turn: int) -> Tensor:
        return self._records(turn)

    def predicted(self, turn: int) -> tuple[Tensor, Tensor]:
        """A sentence is none."""
        return (torch.zeros(0, dtype=torch.int64),) * 2

    def _records(self, turn: int) -> Tensor:
        counters = self.counters(turn, 0, self.size)
        epoch, place = counters // len(self.texts), counters % len(self.texts)
        first = int(epoch[0])  # of consecutive ones
        keys = torch.tensor([stream_key(self.seed, "records", each) for each in range(first, int(epoch[-1]) + 1)])
        return permute(keys[epoch - first], place, len(self.texts))
