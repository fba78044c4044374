"""Controllable aggregation: accuracy traded for diversity (Cen et al., "Controllable Multi-Interest Framework for
Recommendation", KDD 2020).

b users, M ranked items per user, N length of the list they are left with, R item rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eupmim_dist.evaluation.topn import NO_ITEM

CANDIDATES = 4
"""Items ranked for each place of a list that is to be varied, as the authors take N for each of K = 4 interests."""


@dataclass(frozen=True)
class Variety:
    """How lists are to be varied."""

    categories: Tensor  # int64 [R], -1 for an unknown one
    strength: float
    """lambda of the paper; 0 leaves a list as it is, which is then only measured."""


def diversify(scores: Tensor, ids: Tensor, categories: Tensor, strength: float, num: int) -> Tensor:
    """The `num` items of each user that make a good and varied list, in the order in which they are taken.

    Time and again that is, as in the authors' code, the item with the largest score - strength * (items of its
    category taken before); ties go by smaller id. So the paper's objective, the sum of scores + strength * (pairs of
    items of different categories), is maximised greedily. Strength 0 leaves the ranking as it is.

    scores float64 [b, M], finite for items; ids int64 [b, M], distinct for a user, NO_ITEM past the end of a list;
    categories int64 [R], -1 for an unknown one, which is like no other -> int64 [b, num], NO_ITEM where a user has
    fewer items.
    """
    order = ids.argsort(dim=1)  # argmax takes the first of equals, of which NO_ITEM comes first where nothing is left
    ids = ids.gather(1, order)
    left = scores.gather(1, order).masked_fill(ids == NO_ITEM, -torch.inf)
    category = _category(ids, categories)
    num_taken = torch.zeros_like(left)  # of the category of each item
    taken = torch.full((len(ids), num), NO_ITEM, dtype=ids.dtype, device=ids.device)
    for place in range(min(num, ids.shape[1])):
        best = (left - strength * num_taken).argmax(dim=1, keepdim=True)
        taken[:, place : place + 1] = ids.gather(1, best)
        left = left.scatter(1, best, -torch.inf)
        num_taken += category == category.gather(1, best)
    return taken


def diversity(ids: Tensor, categories: Tensor) -> Tensor:
    """Diversity@N of each list: the share of its pairs of items that differ in category.

    ids int64 [b, N], distinct for a user, NO_ITEM past the end; categories as for `diversify` -> float64 [b], 0 for a
    list of fewer than two items.
    """
    category = _category(ids, categories)
    listed = ids != NO_ITEM
    differ = (category[:, :, None] != category[:, None]) & listed[:, :, None] & listed[:, None]
    length = listed.sum(1)
    return differ.sum((1, 2)).double() / (length * (length - 1)).clamp(min=1)


def _category(ids: Tensor, categories: Tensor) -> Tensor:
    """The category of each item, and a negative number of its own for each item without."""
    known = categories[ids.clamp(min=0)]
    return torch.where(known >= 0, known, -1 - ids)
