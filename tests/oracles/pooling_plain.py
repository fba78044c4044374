"""MIND, ComiRec-SA and the YouTube DNN, one sample at a time, from their papers.

An oracle: no batching, no nn.Module, no helpers shared with the package. It works on a dict of the model's parameters
and buffers by name, in whatever float type they have, and is differentiable. A history is a list of the real items,
oldest first; padding never enters. R item rows, L history, A attributes, K interests, D dim.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def relu_network(weights: Weights, x: Tensor, *, last_relu: bool) -> Tensor:
    """`layers.<i>`, affine maps of one vector with max(0, .) between them, and after the last one too if told so."""
    places = sorted({int(name.split(".")[1]) for name in weights if name.startswith("layers.")})
    for place in places:
        x = weights[f"layers.{place}.weight"] @ x + weights[f"layers.{place}.bias"]
        if last_relu or place != places[-1]:
            x = torch.where(x > 0, x, torch.zeros_like(x))
    return x


def with_attributes(weights: Weights, x: Tensor, values: list[int]) -> Tensor:
    """x, then the row `attributes.<a>.weight[value]` of every attribute the model has a table for."""
    parts = [x]
    for column, value in enumerate(values):
        if f"attributes.{column}.weight" in weights:
            parts.append(weights[f"attributes.{column}.weight"][value])
    return torch.cat(parts)


def squash(s: Tensor) -> Tensor:
    """||s||^2 / (1 + ||s||^2) * s / ||s||, with 1e-9 under the root of the norm."""
    square = sum(value * value for value in s)
    return square / (1 + square) * s / torch.sqrt(square + 1e-9)


def b2i_routing(weights: Weights, rows: list[Tensor], *, dynamic: bool) -> list[Tensor]:
    """MIND's algorithm 1: b_ij starts as `routing.initial_logits[j, i]`; K vectors [D].

    Only the last of three iterations has a gradient. Dynamic: max(1, min(K, log2 n)) capsules, rounded down, repeated
    in turn until there are K.
    """
    initial = weights["routing.initial_logits"]
    num_interests = len(initial)
    num_active = max(1, min(num_interests, math.floor(math.log2(len(rows))))) if dynamic else num_interests
    b = [[initial[j, i] for j in range(num_active)] for i in range(len(rows))]
    votes = [weights["routing.map"] @ row for row in rows]
    capsules: list[Tensor] = []
    for iteration in range(3):
        seen = votes if iteration == 2 else [vote.detach() for vote in votes]
        w = [torch.softmax(torch.stack(b_i), dim=0) for b_i in b]
        capsules = [squash(sum(w[i][j] * seen[i] for i in range(len(rows)))) for j in range(num_active)]
        b = [[b[i][j] + (capsules[j] @ seen[i]).detach() for j in range(num_active)] for i in range(len(rows))]
    return [capsules[k % num_active] for k in range(num_interests)]


def plain_mind(weights: Weights, items: Tensor, history: list[int], values: list[int], *, dynamic: bool) -> Tensor:
    """items [R, D] -> queries [K, D]: the capsules, each with the attributes through two ReLU layers."""
    capsules = b2i_routing(weights, [items[item] for item in history], dynamic=dynamic)
    joined = [with_attributes(weights, capsule, values) for capsule in capsules]
    return torch.stack([relu_network(weights, x, last_relu=True) for x in joined])


def plain_comirec_sa(weights: Weights, items: Tensor, history: list[int]) -> tuple[Tensor, Tensor]:
    """items [R, D] -> queries [K, D] and attention weights [K, n] over the n real positions."""
    scores = []
    for position, item in enumerate(history):
        hidden = torch.tanh(weights["hidden.weight"] @ (items[item] + weights["positions.weight"][position]))
        scores.append(weights["heads.weight"] @ hidden)
    queries, attention = [], []
    for k in range(len(weights["heads.weight"])):
        raised = [torch.exp(score[k]) for score in scores]
        attention.append(torch.stack([value / sum(raised) for value in raised]))
        queries.append(sum(a * items[item] for a, item in zip(attention[-1], history, strict=True)))
    return torch.stack(queries), torch.stack(attention)


def plain_youtube_dnn(weights: Weights, items: Tensor, history: list[int], values: list[int]) -> Tensor:
    """items [R, D] -> queries [1, D]: the mean item row with the attributes through a ReLU network."""
    mean = sum(items[item] for item in history) / len(history)
    return relu_network(weights, with_attributes(weights, mean, values), last_relu=False)[None]
