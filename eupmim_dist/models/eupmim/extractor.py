"""ARMIENet: interests extracted one after another, each aware of the earlier ones (reference, Forward 4).

M sequences (levels times users), L history, P places asked for, K interests, D dim.
"""

import math

import torch
from torch import Tensor, nn

from eupmim_dist.models.layers.attention import MASKED
from eupmim_dist.models.layers.causal import CausalTransformer, at_positions
from eupmim_dist.models.layers.transformer import LinearEncoder, TransformerEncoder


class ARMIENet(nn.Module):
    def __init__(
        self, encoder: TransformerEncoder | LinearEncoder, dim: int, num_interests: int, orthogonal: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_interests = num_interests
        self.orthogonal = orthogonal
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)
        self.next_query = _next_queries(dim, num_interests)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [M, L, D], mask [M, L] -> interests [M, K, D]."""
        hidden = self.encoder(x, mask) * mask[..., None]
        context = hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        keys = self.key(hidden)
        bias = (1 - mask) * MASKED
        interests: list[Tensor] = []
        query = context
        for k in range(self.num_interests):
            if k:
                query = self.next_query[k - 1](torch.cat([*interests, context], dim=-1))
            scores = self.score(torch.tanh(self.query(query)[:, None] + keys))[..., 0] + bias
            interest = (scores.softmax(-1)[..., None] * hidden).sum(1)
            if self.orthogonal:
                interest = orthogonalise(interest, interests)
            interests.append(interest)
        return torch.stack(interests, dim=1)


class CausalARMIENet(nn.Module):
    """ARMIENet at places of a history, of what came until there alone.

    As ARMIENet but for three things. Its context is what the encoder says at the place, not the mean over places: what
    comes next depends on what came last. Places are scored by scaled dot products, which at P places cost P * L * D and
    not as many tanh. And an interest is the context plus a projection, of its own, of what its query found: without
    that the interests after the first are what Gram-Schmidt leaves of nearly equal vectors, and collapse
    (docs/results.md, Interests).
    """

    def __init__(self, encoder: CausalTransformer, dim: int, num_interests: int, orthogonal: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.orthogonal = orthogonal
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.next_query = _next_queries(dim, num_interests)
        self.mix = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_interests))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [M, L, D], int64 position [M, P] -> interests [M, P, K, D]."""
        hidden = self.encoder(x)
        context = at_positions(hidden, position)
        keys = self.key(hidden).transpose(1, 2) / math.sqrt(x.shape[2])
        later = torch.arange(x.shape[1], device=x.device) > position[..., None]  # [M, P, L]
        interests: list[Tensor] = []
        query = context
        for k, mix in enumerate(self.mix):
            if k:
                query = self.next_query[k - 1](torch.cat([*interests, context], dim=-1))
            scores = (self.query(query) @ keys).masked_fill(later, -math.inf)
            found = scores.softmax(-1) @ hidden
            interest = context + mix(torch.cat([found, query], dim=-1))
            interests.append(orthogonalise(interest, interests) if self.orthogonal else interest)
        return torch.stack(interests, dim=2)


def _next_queries(dim: int, num_interests: int) -> nn.ModuleList:
    """For k = 1..K-1: [V_0..V_(k-1), context] -> the query of interest k."""
    return nn.ModuleList(
        nn.Sequential(nn.Linear((k + 1) * dim, dim), nn.Tanh(), nn.Linear(dim, dim)) for k in range(1, num_interests)
    )


def orthogonalise(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Gram-Schmidt of each row [..., D] against the basis vectors [..., D], in order."""
    for other in basis:
        share = (vector * other).sum(-1, keepdim=True) / ((other * other).sum(-1, keepdim=True) + 1e-6)
        vector = vector - share * other
    return vector
