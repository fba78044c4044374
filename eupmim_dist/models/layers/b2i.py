"""Behaviour-to-interest (B2I) dynamic routing of MIND (Li et al., CIKM 2019, algorithm 1).

M sequences, L positions, K interests, D dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.data.counter import random_normal, stream_key


class BehaviourToInterest(nn.Module):
    """Routes the positions of a history to K interest capsules by one bilinear map, shared by all of both.

    The paper draws the first routing logits from N(0, 1) for each sample, because a shared map sends the same vote to
    all interests and something must tell them apart. Here they are drawn once for each interest and position, and are
    the same for every sample, so that interests depend neither on the rank nor on how a batch is cut, and a history
    is ranked with the interests that it was trained with. They are a function of K and L alone, no weights: a buffer
    that no state dictionary holds. No gradient passes the first iterations, as in the code of ComiRec's authors.

    `dynamic`: a history of n items has max(1, min(K, log2 n)) interests, rounded down. Positions are
    routed to the first so many; the places of the others hold these again, in turn. So the best of the K scores of an
    item is the best of the interests there are; a mean over K weights them alike as far as their number divides K.
    """

    num_iterations = 3
    initial_logits: Tensor

    def __init__(self, length: int, num_interests: int, dim: int, dynamic: bool) -> None:
        super().__init__()
        self.num_interests, self.dynamic = num_interests, dynamic
        self.map = nn.Parameter(torch.randn(dim, dim) / dim**0.5)
        drawn = random_normal(stream_key(0, "b2i routing logits"), torch.arange(num_interests), length)
        self.register_buffer("initial_logits", drawn, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [M, L, D], mask [M, L] (1 for an item, 0 for padding) -> capsules [M, K, D]."""
        votes = F.linear(x, self.map)
        constant = votes.detach()
        logits = self.initial_logits.expand(len(x), -1, -1)
        interest = torch.arange(self.num_interests, device=x.device)
        if self.dynamic:
            # A float is m * 2**exponent with m in [0.5, 1): without rounding, its log2 rounded down is exponent - 1.
            number = (torch.frexp(mask.sum(1).float()).exponent - 1).clamp(1, self.num_interests)[:, None]
            logits = logits.masked_fill((interest >= number)[..., None], -torch.inf)
        for _ in range(self.num_iterations - 1):
            logits = logits + _gather(logits, constant, mask) @ constant.transpose(1, 2)
        capsules = _gather(logits, votes, mask)
        return capsules.take_along_dim((interest % number)[..., None], 1) if self.dynamic else capsules


def _gather(logits: Tensor, votes: Tensor, mask: Tensor) -> Tensor:
    """squash(sum over the positions of softmax over the interests * votes): logits [M, K, L] -> [M, K, D]."""
    summed = (logits.softmax(1) * mask[:, None]) @ votes
    square = summed.square().sum(-1, keepdim=True)
    return square / (1 + square) / (square + 1e-9).sqrt() * summed
