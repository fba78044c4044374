"""Read-out and sampled softmax: the candidates of a sample are its target and its negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F


def read_out(interests: Tensor, candidates: Tensor, hard: bool = True) -> Tensor:
    """Each candidate's score: `hard`, with the interest that scores it highest; else the mean over the interests.

    interests [B, K, D], candidates [B, C, D] -> [B, C].
    """
    scores = interests @ candidates.transpose(-1, -2)
    return scores.amax(1) if hard else scores.mean(1)


def cross_entropy_share(scores: Tensor, global_size: int) -> Tensor:
    """This rank's share of the mean cross entropy of column 0 against the others; scores [B, C]."""
    target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(precise, target, reduction="sum") / global_size
