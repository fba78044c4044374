"""ARMIENet: interests extracted one after another, each aware of the earlier ones (reference, Forward 4).

M sequences (levels times users), L history, K interests, D dim.
"""

import torch
from torch import Tensor, nn

from eupmim_dist.models.layers.attention import MASKED
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
        self.next_query = nn.ModuleList(
            nn.Sequential(nn.Linear((k + 1) * dim, dim), nn.Tanh(), nn.Linear(dim, dim))
            for k in range(1, num_interests)
        )

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


def orthogonalise(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Gram-Schmidt of each row [M, D] against the basis vectors [M, D], in order."""
    for other in basis:
        share = (vector * other).sum(-1, keepdim=True) / ((other * other).sum(-1, keepdim=True) + 1e-6)
        vector = vector - share * other
    return vector
