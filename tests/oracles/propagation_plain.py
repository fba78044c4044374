"""Propagation over a graph of users and items, plainly: the whole adjacency as a dense matrix, in float64.

An oracle: it shares nothing with the package. Nodes are the users, then the rows of items.
"""

import torch
from torch import Tensor

Edge = tuple[int, int]


UNKNOWN = {"train": 2, "valid": 2, "test": 1, "all": 0}
"""Of each user, how many of the last items."""


def clean_edges(sequences: list[list[int]], known: str = "train") -> set[Edge]:
    """(user, item) of all but the last items of each user; of one who has none for training and valid only for test."""
    return {
        (user, item)
        for user, sequence in enumerate(sequences)
        for item in sequence[: max(len(sequence) - UNKNOWN[known], 0)]
    }


def adjacency(edges: set[Edge], left_out: set[Edge], num_users: int, num_items: int) -> Tensor:
    """D^-1/2 A D^-1/2 without some edges, with the degrees of all; zeros where a node has no edge."""
    whole = torch.zeros(num_users + num_items, num_users + num_items, dtype=torch.float64)
    for user, item in edges:
        whole[user, num_users + item] = whole[num_users + item, user] = 1.0
    degrees = whole.sum(1)
    for user, item in edges & left_out:
        whole[user, num_users + item] = whole[num_users + item, user] = 0.0
    scale = torch.where(degrees > 0, degrees.clamp(min=1) ** -0.5, 0.0)
    return scale[:, None] * whole * scale


def propagated(users: Tensor, items: Tensor, matrix: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """The mean of the rows and of what 1 to num_layers products with the adjacency make of them."""
    layers = [torch.cat([users, items])]
    for _ in range(num_layers):
        layers.append(matrix @ layers[-1])
    mean = torch.stack(layers).mean(0)
    return mean[: len(users)], mean[len(users) :]
