"""The graph of users and items that LightGCN and ELMRec propagate over: who has taken what, from one of three sources.

clean      what training may see: of `leave_one_out` stores all but the last two items of each user
history    the same while training; where a model is judged, all that each user had before what is held out, and all
           that they had where items are recommended. So on test users it knows what others had last but one, too
published  what ELMRec was published with: the training part of a random split over all interactions, which knows about
           as much of what is held out as of anything else. Scores made with it are those of a leak.

An edge is a pair (user, item), once however often he took it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from eupmim_dist.data.counter import random_bits, random_integers, stream_key
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.training_data import spans

TRAIN_SHARE = 0.8
"""Of the interactions that P5's random split trains on, at the least one of each user and of each item."""
USERS_AT_A_TIME = 1 << 14
EDGES_AT_A_TIME = 1 << 18
DRAWN = 1 << 53
"""A share of interactions is drawn by integers below this."""

if TYPE_CHECKING:
    import polars as pl  # few need it

Pairs = tuple[np.ndarray, np.ndarray]
"""Users and items, int64 [n] each."""
GraphSource = Literal["clean", "history", "published"]
Known = str
"""What is known of users, one of KNOWN: what training may see, what came before the targets of a split, everything."""
KNOWN = ("train", "valid", "test", "all")


@dataclass(frozen=True)
class GraphChoice:
    source: GraphSource = "clean"
    seed: int = 0
    """Of the random split, where the store has no explanations: the graph is a pure function of it."""
    explained: float = 2 / 3
    """The share of interactions that have an explanation, likewise: the published graph is of these alone."""


class InteractionGraph:
    """Edges of a store, read block by block: it holds none.

    The published one of a store with `explanations.parquet` is that of its records for training.
    """

    def __init__(self, store: InteractionStore, choice: GraphChoice, known: Known = "train") -> None:
        self.store, self.choice, self.known = store, choice, known

    def where_known(self, known: Known) -> InteractionGraph:
        """The graph to rank with where so much of users is known; itself if that has the same edges."""
        assert known in KNOWN, f"{known} is none of {KNOWN}"
        if self.choice.source != "history" or known == self.known:
            return self
        other = InteractionGraph(self.store, self.choice, known)
        return self if np.array_equal(self.lengths(), other.lengths()) else other

    def lengths(self) -> np.ndarray:
        """Of each user, how many of the first interactions are known: int64 [users]."""
        store, found = self.store, np.zeros(self.store.num_users, np.int64)
        if self.known == "all":
            return store.lengths(np.arange(store.num_users))
        users = store.users("train")
        found[users] = store.train_lengths(users)
        if self.known != "train":
            users = store.users(self.known)
            found[users] = np.maximum(found[users], store.evaluation_window(users, self.known)[0])
        return found

    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """How many edges each user and each item row has: int64 [users], [item rows]."""
        of_users, of_items = np.zeros(self.store.num_users, np.int64), np.zeros(self.store.num_item_rows, np.int64)
        for users, items in self.edges():
            of_users += np.bincount(users, minlength=len(of_users))
            of_items += np.bincount(items, minlength=len(of_items))
        return of_users, of_items

    def edges(self) -> Iterator[Pairs]:
        """All edges, in blocks of some users or records; none is in two of them."""
        if self.choice.source == "published":
            explanations = self.store.explanations()
            blocks = self._drawn() if explanations is None else self._explained(explanations)
        else:
            blocks = self._had()
        for users, items in blocks:
            keys = np.unique(users * self.store.num_item_rows + items)
            yield keys // self.store.num_item_rows, keys % self.store.num_item_rows

    def _had(self) -> Iterator[Pairs]:
        lengths = self.lengths()
        users = np.flatnonzero(lengths)
        for first in range(0, len(users), USERS_AT_A_TIME):
            some = users[first : first + USERS_AT_A_TIME]
            starts = self.store.offsets[some]
            position, places = spans(starts, starts + lengths[some])
            yield some[position], self.store.items[places].astype(np.int64)

    def _explained(self, explanations: pl.LazyFrame) -> Iterator[Pairs]:
        trained = explanations.filter(split="train").select("user", "item").unique().sort("user", "item").collect()
        for part in trained.iter_slices(EDGES_AT_A_TIME):
            yield part["user"].to_numpy(), part["item"].to_numpy()

    def _drawn(self) -> Iterator[Pairs]:
        forced, number, rest = 0, len(self.store.items), TRAIN_SHARE
        first_of_items = self._first_of_items()
        for interactions, users, items in self._interactions():
            forced += int(self._forced(interactions, users, items, first_of_items).sum())
        if number > forced:
            rest = max(0.0, (TRAIN_SHARE * number - forced) / (number - forced))
        for interactions, users, items in self._interactions():
            kept = self._forced(interactions, users, items, first_of_items) | self._draw("rest", interactions, rest)
            kept &= self._draw("explained", interactions, self.choice.explained)
            yield users[kept], items[kept]

    def _interactions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Their numbers, users and items, some users at a time."""
        offsets = self.store.offsets
        for first in range(0, self.store.num_users, USERS_AT_A_TIME):
            last = min(first + USERS_AT_A_TIME, self.store.num_users)
            interactions = np.arange(offsets[first], offsets[last])
            users = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
            yield interactions, users, self.store.items[offsets[first] : offsets[last]].astype(np.int64)

    def _first_of_items(self) -> np.ndarray:
        """Of each item the smallest random number that one of its interactions has."""
        smallest = np.full(self.store.num_item_rows, np.iinfo(np.int64).max)
        for interactions, _, items in self._interactions():
            np.minimum.at(smallest, items, self._bits("of items", interactions))
        return smallest

    def _forced(
        self, interactions: np.ndarray, users: np.ndarray, items: np.ndarray, first_of_items: np.ndarray
    ) -> np.ndarray:
        """Which are trained on in any case: a random one of each user, and of each item."""
        of_items = self._bits("of items", interactions) == first_of_items[items]
        order = np.lexsort((self._bits("of users", interactions), users))
        of_users = np.zeros(len(users), dtype=bool)
        of_users[order] = np.diff(users[order], prepend=-1) != 0
        return of_items | of_users

    def _draw(self, what: str, interactions: np.ndarray, share: float) -> np.ndarray:
        key = stream_key(self.choice.seed, "graph", what)
        drawn = random_integers(key, torch.from_numpy(interactions), DRAWN).numpy()
        return drawn < share * DRAWN

    def _bits(self, what: str, interactions: np.ndarray) -> np.ndarray:
        return random_bits(stream_key(self.choice.seed, "graph", what), torch.from_numpy(interactions)).numpy()
