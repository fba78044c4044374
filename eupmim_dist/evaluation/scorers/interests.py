"""interests: the dot products of a user's interests with this rank's part of the rows of the item table.

G queries, K interests, D dim.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer, users_at_a_time
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.train.skipped import Diverged

EXACT_NUMBERS = 1 << 25
"""Numbers of rows that are scored exactly at a time, at the most."""


class InterestsConfig(ScorerSection):
    trained = True
    name: Literal["interests"] = "interests"
    """What ranks the catalogue."""


class InterestScorer(Scorer):
    """A cosine list per interest, where the protocol has it so; else one list by the best dot product over them."""

    interests: Tensor

    def __init__(self, config: InterestsConfig, ranking: Ranking) -> None:
        assert ranking.model is not None, "interests are a model's"
        assert ranking.tables is not None
        self.model, self.tables, self.per_interest = ranking.model, ranking.tables, ranking.per_interest
        self.world = ranking.world
        part = self.tables.scored(ITEM_TABLE)
        self.item_ids = part.ids
        self.weight = part.rows()
        self.rows = part.places.to(self.weight.device)  # of `weight`, by position
        self.longest = everywhere(_longest(self.weight), self.world)  # of the rows of each rank

    def only(self, items: Tensor) -> None:
        """Ranks none but these of its items, int64."""
        kept = torch.isin(self.item_ids, items.to(self.item_ids.device))
        self.item_ids, self.rows = self.item_ids[kept], self.rows[kept.to(self.rows.device)]

    def query(self, users: HeldOut) -> Tensor:
        """Interests [b, K, D]; collective. They are kept as `interests` until the next ones."""
        batch = users.batch.to(self.world.device)
        lookup = self.tables.lookup(self.model.uses(users.batch))
        parts = []
        number = users_at_a_time(self.world.device)
        for start in range(0, max(len(batch), 1), number):
            stop = start + number
            rows = {name: values[start:stop] for name, values in lookup.rows[0].items()}
            parts.append(self.model.encode(rows, batch.samples(start, stop)).queries)
        interests = torch.cat(parts)  # not normalised: an interest's length does not change the order of its list
        # No score is larger than the product of the longest vectors. A NaN is no smaller than anything. All ranks look
        # at those of all, since one that raised alone would leave the others waiting.
        longest = everywhere(_longest(interests), self.world)
        if not all(one * other < torch.finfo(torch.float32).max for one in longest for other in self.longest):
            raise Diverged(
                f"{type(self.model).__name__}: its vectors are not finite, or so long that their products are not; its "
                "training has diverged or its weights were damaged: train again with a lower train.learning_rate"
            )
        self.interests = interests
        return interests

    def served(self, ranked: Tensor) -> tuple[Tensor, Tensor]:
        """Of items [b, N] ranked for the users of the last `query`: the best dot product over the interests, and which
        interest has it, int64 from 0; [b, N] each, of no meaning where there is no item. Collective.
        """
        rows = self.tables.lookup({"ranked": (ITEM_TABLE, ranked.clamp(min=0))}).rows[0]["ranked"]  # [b, N, D]
        best = (self.interests @ rows.transpose(1, 2)).max(1)
        return best.values, best.indices

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        rows = self.weight.index_select(0, self.rows[start:stop]).to(query.device)
        if self.per_interest:
            return query @ F.normalize(rows, dim=-1).T
        best = query[:, 0] @ rows.T
        for interest in query.unbind(1)[1:]:
            torch.maximum(best, interest @ rows.T, out=best)
        return best[:, None]

    def exact(self, query: Tensor, positions: Tensor) -> Tensor:
        of_a_user = max(1, positions.shape[1:].numel() * query.shape[-1])
        number = min(users_at_a_time(query.device), max(1, EXACT_NUMBERS // of_a_user))
        parts = zip(query.split(number), positions.split(number), strict=True)
        return torch.cat([self._exact_part(*part) for part in parts])

    def _exact_part(self, query: Tensor, positions: Tensor) -> Tensor:
        rows = self.weight[self.rows[positions.to(self.rows.device)]].to(query.device).double()  # [G, S, n, D]
        query = query.double()  # [G, K, D]
        if self.per_interest:
            return (F.normalize(rows, dim=-1) @ query[..., None])[..., 0]
        return (rows @ query[:, None].transpose(-1, -2)).amax(-1)


def _longest(vectors: Tensor) -> float:
    """The length of the longest of [..., D]; 0 of none."""
    return float(torch.linalg.vector_norm(vectors.float(), dim=-1).max()) if vectors.numel() else 0.0


SCORER = Registered(InterestsConfig, InterestScorer)
