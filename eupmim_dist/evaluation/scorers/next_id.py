"""next_id: the item whose number comes after that of the last one, then the one after it, and so on; a rule that knows
nothing, to see what the numbers of items alone tell (`audit`)."""

from typing import Literal

import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer


class NextIdConfig(ScorerSection):
    name: Literal["next_id"] = "next_id"
    """What ranks the catalogue."""


class NextId(Scorer):
    """After the largest number it goes on with the smallest."""

    def __init__(self, config: NextIdConfig, ranking: Ranking) -> None:
        self.rows = ranking.store.num_item_rows
        first, last = block_range(self.rows, ranking.world.rank, ranking.world.size)
        self.item_ids = torch.arange(first, last, device=ranking.world.device)

    def query(self, users: HeldOut) -> Tensor:
        """The last item, 0 without one: int64 [b, 1]."""
        return users.last_seen(1).clamp(min=0).to(self.item_ids.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return -((self.item_ids[start:stop] - query - 1) % self.rows).double()[:, None]

    def exact(self, query: Tensor, positions: Tensor) -> Tensor:
        return -((self.item_ids[positions] - query[:, None] - 1) % self.rows).double()


SCORER = Registered(NextIdConfig, NextId)
