"""Paths of three steps in the graph of users and items: user, his items, those who had them too, their items.

Rows and columns of the graph are divided by the square roots of their degrees, and its third power from users to items
is read off: no parameters, and nothing of a user but the items that he trained on. R item rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range, spans
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.scorers.cooccurrence import Cooccurrence
from eupmim_dist.evaluation.scorers.interface import Ranking
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.memory import lack_of_memory
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import QUICK_SECONDS

BLOCK = 1 << 21
"""Pairs of items of one user that are counted at a time."""
KEPT_BYTES, BLOCK_BYTES = 32, 64 * BLOCK
"""Of a pair of items that is kept, while the parts are joined; and beside them."""
START_BYTES = 40 * 1024
"""Of each item that the longest history of a chunk of users to rank for has."""
PAIR_SECONDS = 1.2e-7
"""Rough cost of a pair of items of one user."""


class PathsConfig(ScorerSection):
    name: Literal["paths"] = "paths"
    """What ranks the catalogue."""


class Paths(Cooccurrence):
    """How many paths lead to an item, each by 1 / (degrees of the user and the item in the middle) and by the root of
    the degree of the item at its end; that of the user at its start would change no order.

    One who trained on nothing, as he is held out as a whole, starts from what he had before the cut.
    """

    name = "paths"
    history = None
    counted = "paths from item to item"

    def __init__(self, config: ScorerSection, ranking: Ranking) -> None:
        self.store, self.world = ranking.store, ranking.world
        self.check_room(self.store, self.world)
        _state_cost(self.name, self.store, self.world)
        super().__init__(config, ranking)

    @classmethod
    def check_room(cls, store: InteractionStore, world: World) -> None:
        pairs = _pairs(store)
        if lack := lack_of_memory(_bytes(pairs, store, world), torch.device("cpu"), world):
            raise UserError(f"--baseline {cls.name}: {pairs:,} pairs of items {lack}; choose another baseline")

    def weighted_pairs(self, user: np.ndarray, items: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
        user, items = _edges(user, items, self.rows)
        of_user, of_item = np.bincount(user), np.bincount(items, minlength=self.rows)
        starts = np.cumsum(of_user) - of_user
        by_item = np.argsort(items, kind="stable")
        user, middle_of = user[by_item], items[by_item]
        keys, weights = [np.empty(0, np.int64)], [np.empty(0)]
        for begin, end in _blocks(middle_of, of_user[user]):
            middle = user[begin:end]
            edge, places = spans(starts[middle], starts[middle] + of_user[middle])
            later = items[places]
            own = (later >= self.first) & (later < last)
            edge, later = edge[own], later[own]
            block, sums = _summed(middle_of[begin:end][edge] * self.rows + later, 1 / of_user[middle[edge]])
            earlier, later = np.divmod(block, self.rows)
            sums = sums / of_item[earlier] / np.sqrt(of_item[later])
            if begin and middle_of[begin - 1] == middle_of[begin]:  # an item that the last block could not hold whole
                block, sums = _summed(np.concatenate([keys.pop(), block]), np.concatenate([weights.pop(), sums]))
            keys.append(block)
            weights.append(sums)
        return np.concatenate(keys), np.concatenate(weights)

    def query(self, users: HeldOut) -> Tensor:
        start = self.starts(users).distinct(self.rows)
        most = int(torch.bincount(start.user, minlength=1).max())
        width = max(1, *everywhere(most, self.world))
        return replace(users, seen=start).last_seen(width).to(self.keys.device)

    def starts(self, users: HeldOut) -> Ragged:
        """The items where each user's paths begin."""
        user = users.users
        begin, number = self.store.offsets[user], self.store.train_lengths(user)
        trained, seen = Ragged.of(self.store.items, begin, begin + number), users.seen
        only_seen = torch.from_numpy(number == 0)[seen.user]
        return Ragged(torch.cat([trained.user, seen.user[only_seen]]), torch.cat([trained.item, seen.item[only_seen]]))


def _edges(user: np.ndarray, items: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Each item of a user once."""
    edges = Ragged(torch.from_numpy(user), torch.from_numpy(items)).distinct(rows)
    return edges.user.numpy(), edges.item.numpy()


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending distinct keys and the sums of their values, in the order in which they came."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    new = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    return keys[new], np.bincount(np.cumsum(new) - 1, values[order], int(new.sum()))


def _blocks(items: np.ndarray, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ascending items of edges in blocks that lead to BLOCK pairs at most, or to those of one edge. An item is not
    parted, unless its own are more."""
    ends, begin = np.concatenate([[0], np.cumsum(pairs)]), 0
    while begin < len(items):
        end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + BLOCK, side="right")) - 1)
        if end < len(items) and (whole := int(np.searchsorted(items, items[end]))) > begin:
            end = whole
        yield begin, end
        begin = end


def _pairs(store: InteractionStore) -> int:
    """Pairs of items of one user, at the most."""
    return int((store.train_lengths(store.users("train")) ** 2).sum())


def _bytes(pairs: int, store: InteractionStore, world: World) -> int:
    """That a rank takes at its peak, to count them or to rank."""
    first, last = block_range(store.num_item_rows, world.rank, world.size)
    kept = KEPT_BYTES * min(pairs, store.num_item_rows * (last - first))
    return kept + max(min(BLOCK_BYTES, 64 * pairs), START_BYTES * int(np.diff(store.offsets).max()))


def _state_cost(name: str, store: InteractionStore, world: World) -> None:
    """Logs the memory and time it will take, if more than a moment."""
    if (seconds := PAIR_SECONDS * (pairs := _pairs(store))) > QUICK_SECONDS:
        cost = f"at most {_bytes(pairs, store, world) / 1e9:,.1f} GB of memory and about {seconds:,.0f} s"
        get_logger(world.rank).info(f"{name}: {pairs:,} pairs of items take {cost}")


SCORER = Registered(PathsConfig, Paths)
