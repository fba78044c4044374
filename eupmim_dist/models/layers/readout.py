"""Hard read-out and sampled softmax: the candidates of a sample are its target and its negatives."""

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_readout(interests: Tensor, candidates: Tensor) -> Tensor:
    """Each candidate's score with the interest that scores it highest.

    interests [B, K, D], candidates [B, C, D] -> [B, C].
    """
    return (interests @ candidates.transpose(-1, -2)).amax(1)


def cross_entropy_share(scores: Tensor, global_size: int) -> Tensor:
    """This rank's share of the mean cross entropy of column 0 against the others; scores [B, C]."""
    target = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(precise, target, reduction="sum") / global_size
