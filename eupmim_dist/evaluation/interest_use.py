"""Whether the interests of a model differ: which ones fill the lists, how alike they are, how long.

b users of this rank, K interests, N items each, D dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.evaluation.scorers.interests import InterestScorer
from eupmim_dist.evaluation.topn import NO_ITEM
from eupmim_dist.parallel.collectives import sum_
from eupmim_dist.parallel.world import World

COLLAPSED = 0.95
"""Share of the lists from which one interest does the work of all."""


@dataclass(frozen=True)
class InterestUse:
    top_n: int
    """N: places of a list, of those that are asked for the longest."""
    share: list[float]
    """Of each interest: the part of the recommended places whose item it scores highest; 1 in all."""
    norm: list[float]
    """Of each interest: its mean length."""
    cosine: float
    """Mean over users and pairs of interests of the cosine of the two; 1: all are the same."""

    @property
    def collapsed(self) -> bool:
        return max(self.share) >= COLLAPSED

    def __str__(self) -> str:
        filled = ", ".join(f"{100 * share:.1f}" for share in self.share)
        return (
            f"its {len(self.share)} interests fill {filled} % of the lists of {self.top_n}; "
            f"mean cosine between them {self.cosine:.3f}"
        )

    def tags(self) -> dict[str, float]:
        """By names for a log, interests counted from 1."""
        numbered = {"share": self.share, "norm": self.norm}
        values = {f"{what}_{k}": value for what, of in numbered.items() for k, value in enumerate(of, start=1)}
        return {**values, "cosine": self.cosine}


class InterestSums:
    """Sums over the users that a scorer is asked for, on this rank."""

    def __init__(self, scorer: InterestScorer, top_n: int) -> None:
        self.scorer, self.top_n = scorer, top_n
        self.num_interests = scorer.model.num_interests
        self.sums = torch.zeros(2 * self.num_interests + 2, dtype=torch.float64)

    def add(self, ranked: Tensor) -> None:
        """ranked [b, N]: the lists of the users of the scorer's last query; collective where K > 1."""
        if self.num_interests == 1:
            return
        _, interest = self.scorer.served(ranked)
        vectors, num = self.scorer.interests.double(), self.num_interests
        places = torch.bincount(interest[ranked != NO_ITEM], minlength=num).double()
        unit = F.normalize(vectors, dim=-1)
        pairs = (unit.sum(1).square().sum() - unit.square().sum()) / (num * (num - 1))
        found = [places, vectors.norm(dim=-1).sum(0), pairs[None], places.new_tensor([len(vectors)])]
        self.sums += torch.cat(found).cpu()

    def reduce(self, world: World) -> InterestUse | None:
        """Over the users of all ranks; None where K is 1. Collective."""
        if self.num_interests == 1:
            return None
        num = self.num_interests
        sums = sum_(self.sums.to(world.device), world).cpu()
        places, norms, pairs, users = sums[:num], sums[num : 2 * num], float(sums[-2]), float(sums[-1])
        return InterestUse(
            self.top_n,
            share=(places / places.sum().clamp(min=1)).tolist(),
            norm=(norms / users).tolist(),
            cosine=pairs / users,
        )
