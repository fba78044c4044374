"""Paths of three steps in the graph of users and items: user, his items, those who had them too, their items.

Rows and columns of the graph are divided by the square roots of their degrees, and its third power from users to items
is read off: no parameters, and nothing of a user but the items that he trained on. R item rows.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range, spans
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.scorers.cooccurrence import Cooccurrence
from eupmim_dist.evaluation.scorers.interface import Ranking
from eupmim_dist.parallel.memory import lack_of_memory
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import QUICK_SECONDS

BLOCK = 1 << 21
"""Pairs of items of one user that are counted at a time."""
KEPT_BYTES, BLOCK_BYTES = 32, 64 * BLOCK
"""Of a pair of items that is kept, while the parts are joined; and beside them."""
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

    history = None
    counted = "paths from item to item"

    def __init__(self, config: ScorerSection, ranking: Ranking) -> None:
        self.store = ranking.store
        self.longest = int(np.diff(self.store.offsets).max())
        _state_cost(config.name, ranking)
        super().__init__(config, ranking)

    def weighted_pairs(self, user: np.ndarray, items: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
        user, items = _edges(user, items, self.rows)
        of_user, of_item = np.bincount(user), np.bincount(items, minlength=self.rows)
        starts = np.cumsum(of_user) - of_user
        by_item = np.argsort(items, kind="stable")
        user, first_of = user[by_item], np.cumsum(of_item) - of_item
        pairs = np.concatenate([[0], np.cumsum(of_user[user])])[np.append(first_of, len(user))]
        keys, weights, begin = [], [], 0
        while begin < self.rows:
            end = max(begin + 1, int(np.searchsorted(pairs, pairs[begin] + BLOCK, side="right")) - 1)
            middle = user[first_of[begin] : first_of[begin] + of_item[begin:end].sum()]
            edge, places = spans(starts[middle], starts[middle] + of_user[middle])
            later = items[places]
            own = (later >= self.first) & (later < last)
            edge, later = edge[own], later[own]
            earlier = np.repeat(np.arange(begin, end), of_item[begin:end])[edge]
            block, sums = _summed(earlier * self.rows + later, 1 / of_user[middle[edge]])
            earlier, later = np.divmod(block, self.rows)
            keys.append(block)
            weights.append(sums / of_item[earlier] / np.sqrt(of_item[later]))
            begin = end
        return np.concatenate(keys), np.concatenate(weights)

    def query(self, users: HeldOut) -> Tensor:
        start = self.starts(users).distinct(self.rows)
        return replace(users, seen=start).last_seen(self.longest).to(self.keys.device)

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


def _state_cost(name: str, ranking: Ranking) -> None:
    """Logs the memory and time it will take, if more than a moment; collective.

    Raises UserError if the memory is not there.
    """
    store, world = ranking.store, ranking.world
    first, last = block_range(store.num_item_rows, world.rank, world.size)
    lengths = store.train_lengths(store.users("train"))
    pairs, seconds = int((lengths**2).sum()), PAIR_SECONDS * float((lengths**2).sum())
    memory = KEPT_BYTES * min(pairs, store.num_item_rows * (last - first)) + min(BLOCK_BYTES, 64 * pairs)
    if lack := lack_of_memory(memory, torch.device("cpu"), world):
        raise UserError(f"--baseline {name}: {pairs:,} pairs of items {lack}; choose another baseline")
    if seconds > QUICK_SECONDS:
        cost = f"at most {memory / 1e9:,.1f} GB of memory and about {seconds:,.0f} s"
        get_logger(world.rank).info(f"{name}: {pairs:,} pairs of items take {cost}")


SCORER = Registered(PathsConfig, Paths)
