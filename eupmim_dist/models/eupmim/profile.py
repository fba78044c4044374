"""The user profile and its attention over the interests (reference, Forward 1, 6 and 7).

B users, A attributes, K interests, D dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.models.interface import xavier_embedding
from eupmim_dist.models.layers.dropout import Dropout


class Profile(nn.Module):
    """Mean of the user's id row and the rows of his attributes, in the store's order; their tables are replicated."""

    def __init__(self, cardinalities: list[int], dim: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleList(xavier_embedding(rows, dim) for rows in cardinalities)

    def forward(self, user_rows: Tensor, attributes: Tensor) -> Tensor:
        """user_rows [B, D], attributes [B, A] -> [B, D]."""
        total = user_rows
        for column, embedding in enumerate(self.attributes):
            total = total + embedding(attributes[:, column])
        return total / (1 + len(self.attributes))


class ProfileAttention(nn.Module):
    """Weights the profile's coordinates for each interest and mixes the result into it.

    `seed` weights the first three coordinates only, as the released model does, and drops the others. `residual`: what
    comes out is added to the interests, which the two layers behind them would else make alike.
    """

    hidden = 8

    def __init__(self, dim: int, mode: str, dropout: float, *, residual: bool = False) -> None:
        super().__init__()
        self.dim, self.residual = dim, residual
        self.weights1 = nn.Linear(2 * dim, self.hidden)
        self.weights2 = nn.Linear(self.hidden, 3 if mode == "seed" else dim)
        self.dropout = Dropout(dropout)
        self.mix1 = nn.Linear(2 * dim, dim // 2)
        self.mix2 = nn.Linear(dim // 2, dim)
        nn.init.zeros_(self.mix1.bias)
        nn.init.zeros_(self.mix2.bias)

    def forward(self, profile: Tensor, interests: Tensor) -> Tensor:
        """profile [Q, D], interests [Q, K, D] -> [Q, K, D]."""
        spread = profile[:, None].expand_as(interests)
        hidden = self.dropout(self.weights1(torch.cat([spread, interests], dim=-1)))
        hidden = self.dropout(self.weights2(self.dropout(F.relu(hidden))))
        weights = self.dropout(hidden.sigmoid())
        attended = F.pad(weights, (0, self.dim - weights.shape[-1])) * spread
        mixed: Tensor = self.mix2(F.relu(self.mix1(torch.cat([attended, interests], dim=-1))))
        return interests + mixed if self.residual else mixed
