"""Top-N metrics as sums: hits are counted, sums are float64, and one division ends it (design 3.3).

b users of a chunk, S lists per user, N length of a list.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eupmim_dist.data.heldout import Ragged
from eupmim_dist.evaluation.diversity import diversity
from eupmim_dist.evaluation.protocols import METRICS, Protocol
from eupmim_dist.parallel.collectives import sum_
from eupmim_dist.parallel.world import World


class MetricSums:
    """Sums of recall, hit_rate, ndcg and precision at several N over the users of this rank; with categories of the
    items, int64 [item rows], of diversity too."""

    def __init__(
        self, protocol: Protocol, cutoffs: Sequence[int], num_item_rows: int, categories: Tensor | None = None
    ) -> None:
        self.protocol, self.cutoffs, self.num_item_rows = protocol, tuple(cutoffs), num_item_rows
        self.categories = categories
        self.metrics = METRICS if categories is None else (*METRICS, "diversity")
        self.sums = torch.zeros(len(self.metrics) * len(self.cutoffs), dtype=torch.float64)
        self.num_users = 0

    @property
    def names(self) -> list[str]:
        """Such as `recall@10`, in the order of the columns of `add`."""
        return [f"{name}@{cutoff}" for cutoff in self.cutoffs for name in self.metrics]

    def add(self, ranked: Tensor, targets: Ragged) -> Tensor:
        """ranked [b, S, N] item ids, best first (NO_ITEM for none); `targets` of the same users -> each user's own
        metrics, float64 [b, names]."""
        ranked = ranked.cpu()
        num_users = len(ranked)
        num_targets = torch.bincount(targets.user, minlength=num_users).double()
        owner = torch.arange(num_users)[:, None, None]
        keys = torch.where(ranked >= 0, owner * self.num_item_rows + ranked, -1)
        hits = torch.isin(keys, targets.keys(self.num_item_rows)).double()
        gains = hits * discounts(hits.shape[-1])
        columns = []
        for cutoff in self.cutoffs:
            num_hits = hits[..., :cutoff].sum((1, 2))
            dcg = gains[..., :cutoff].sum((1, 2))
            ideal_hits = num_hits if self.protocol.ideal == "hits" else num_targets.clamp(max=cutoff)
            by_name = {
                "recall": num_hits / num_targets,
                "hit_rate": (num_hits > 0).double(),
                "ndcg": torch.where(num_hits > 0, dcg / ideal_dcg(ideal_hits.long()), 0.0),
                "precision": num_hits / cutoff,
            }
            if self.categories is not None:
                by_name["diversity"] = diversity(ranked[:, 0, :cutoff], self.categories)
            columns += [by_name[name] for name in self.metrics]
        self.sums += torch.stack([column.sum() for column in columns])
        self.num_users += num_users
        return torch.stack(columns, dim=1)

    def reduce(self, world: World) -> tuple[dict[str, float], int]:
        """Means over the users of all ranks by `metric@N`, and the number of those users; collective."""
        everything = torch.cat([self.sums, torch.tensor([self.num_users], dtype=torch.float64)]).to(world.device)
        *sums, num_users = sum_(everything, world).tolist()
        return {name: total / num_users for name, total in zip(self.names, sums, strict=True)}, int(num_users)


def discounts(length: int) -> Tensor:
    """1 / log2(position + 1) for positions 1..length, float64."""
    return 1.0 / torch.arange(2, length + 2, dtype=torch.float64).log2()


def ideal_dcg(num_hits: Tensor) -> Tensor:
    """DCG of so many hits at the head of a list; int64 [b] -> float64 [b], at least that of one hit."""
    longest = int(num_hits.max()) if len(num_hits) else 0
    return discounts(max(longest, 1)).cumsum(0)[num_hits.clamp(min=1) - 1]
