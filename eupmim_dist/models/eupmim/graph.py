"""The user-aware graph over a history and its weightless propagation (reference, Forward 2 and 3).

B users, L history, D dim, P levels.
"""

import torch
from torch import Tensor


def user_aware_adjacency(items: Tensor, profile: Tensor, mask: Tensor) -> Tensor:
    """A_ij = sigmoid(sum_d e_i e_j p) between unpadded positions.

    items [B, L, D], profile [B, D], mask [B, L] -> [B, L, L].
    """
    affinity = (items * profile[:, None, :]) @ items.transpose(1, 2)
    return affinity.sigmoid() * (mask[:, :, None] * mask[:, None, :])


def causal_levels(items: Tensor, adjacency: Tensor, num_levels: int) -> Tensor:
    """The mean of the levels x_0..x_P of x_l = N x_(l-1), of an adjacency with edges to earlier places alone.

    Rows of N = A + I are divided by their sum and not by its root: histories grow along a window, and places with many
    neighbours would be told by nothing but the length of their vectors. items [B, L, D], adjacency [B, L, L]
    -> [B, L, D].
    """
    with_self = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    normalised = with_self / with_self.sum(-1, keepdim=True)
    level, total = items, items
    for _ in range(num_levels):
        level = normalised @ level
        total = total + level
    return total / (num_levels + 1)


def propagate(items: Tensor, adjacency: Tensor, num_levels: int) -> Tensor:
    """Levels x_1..x_P of x_l = N x_(l-1), x_0 = items, N = (A + I) with row i over the square root of its sum.

    items [B, L, D], adjacency [B, L, L] -> [P, B, L, D].
    """
    with_self = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    normalised = with_self * with_self.sum(-1, keepdim=True).rsqrt()
    levels = [items]
    for _ in range(num_levels):
        levels.append(normalised @ levels[-1])
    return torch.stack(levels[1:])
