"""SASRec, GRU4Rec and the causal E-UPMiM, one position at a time, written from papers and the models' docstrings.

An oracle: no batching, no nn.Module, no helpers shared with the package. It works on a dict of tensors under the
models' parameter names, and "item", the item table; in whatever float type they have, differentiable, no dropout.
A prediction is computed from the items up to its position alone, so it cannot see what comes later.
B samples, P predictions per sample, L history, K interests, D dim, n items that a prediction knows.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """y = W x + b for one vector."""
    return weights[name + ".weight"] @ x + weights[name + ".bias"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Layer norm of one vector (biased variance, PyTorch's default epsilon)."""
    centred = x - x.mean()
    centred = centred / (centred.square().mean() + 1e-5).sqrt()
    return centred * weights[name + ".weight"] + weights[name + ".bias"]


def gelu(x: Tensor) -> Tensor:
    """x times the standard normal's distribution function at x."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def turned(x: Tensor, place: int) -> Tensor:
    """Rotary positions: coordinates i and i + d / 2 as a complex number, turned by place / 10000^(2 i / d)."""
    half = len(x) // 2
    angles = torch.tensor([place / 10000.0 ** (i / half) for i in range(half)], dtype=x.dtype)
    number = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([number.real, number.imag])


def gated(weights: Weights, name: str, x: Tensor, change: Tensor) -> Tensor:
    """x + change, weighted by 2 sigmoid(W x + b) where there is such a gate."""
    if name + ".weight" not in weights:
        return x + change
    return x + change * 2.0 / (1.0 + torch.exp(-linear(weights, name, x)))


def transformer_block(
    weights: Weights, name: str, states: list[Tensor], num_heads: int, rotary: bool = False
) -> list[Tensor]:
    """Pre-norm block over n states [D]: state i attends to the states 0..i."""
    dim = len(states[0])
    width = dim // num_heads
    projected = [linear(weights, name + "qkv", layer_norm(weights, name + "norm1", x)) for x in states]
    out = []
    for i, x in enumerate(states):
        heads = []
        for h in range(num_heads):
            query, key, value = (slice(part * dim + h * width, part * dim + (h + 1) * width) for part in range(3))
            asked = turned(projected[i][query], i) if rotary else projected[i][query]
            keys = [turned(p[key], j) if rotary else p[key] for j, p in enumerate(projected[: i + 1])]
            scores = [asked @ k / math.sqrt(width) for k in keys]
            alpha = torch.softmax(torch.stack(scores), dim=0)
            heads.append(sum(alpha[j] * projected[j][value] for j in range(i + 1)))
        y = gated(weights, name + "gate1", x, linear(weights, name + "out", torch.cat(heads)))
        inner = gelu(linear(weights, name + "linear1", layer_norm(weights, name + "norm2", y)))
        out.append(gated(weights, name + "gate2", y, linear(weights, name + "linear2", inner)))
    return out


def sasrec_state(weights: Weights, items: list[int], num_heads: int) -> Tensor:
    """What the Transformer says after the last of n items, [D]."""
    scale = math.sqrt(weights["item"].shape[1])
    states = [scale * weights["item"][item] + weights["positions.weight"][i] for i, item in enumerate(items)]
    layer = 0
    while f"transformer.layers.{layer}.qkv.weight" in weights:
        states = transformer_block(weights, f"transformer.layers.{layer}.", states, num_heads)
        layer += 1
    return layer_norm(weights, "transformer.norm", states[-1])


def gru_state(weights: Weights, items: list[int]) -> Tensor:
    """The last layer's state after the last of n items, [hidden_size] (gates in PyTorch's order: r, z, n)."""
    inputs = [math.sqrt(weights["item"].shape[1]) * weights["item"][item] for item in items]
    layer = 0
    while f"gru.weight_ih_l{layer}" in weights:
        of_input, of_state = weights[f"gru.weight_ih_l{layer}"], weights[f"gru.weight_hh_l{layer}"]
        bias_input, bias_state = weights[f"gru.bias_ih_l{layer}"], weights[f"gru.bias_hh_l{layer}"]
        size = of_state.shape[1]
        state = torch.zeros(size, dtype=of_state.dtype)
        states = []
        for x in inputs:
            a, b = of_input @ x + bias_input, of_state @ state + bias_state
            reset = torch.sigmoid(a[:size] + b[:size])
            update = torch.sigmoid(a[size : 2 * size] + b[size : 2 * size])
            new = torch.tanh(a[2 * size :] + reset * b[2 * size :])
            state = (1.0 - update) * new + update * state
            states.append(state)
        inputs = states
        layer += 1
    return inputs[-1]


def interests(weights: Weights, state: Tensor) -> Tensor:
    """The K slices of one linear layer, or the state itself where the model has none: [K, D]."""
    dim = weights["item"].shape[1]
    if "interests.weight" not in weights:
        return state[None]
    flat = linear(weights, "interests", state)
    return torch.stack([flat[first : first + dim] for first in range(0, len(flat), dim)])


def _queries(weights: Weights, history: Tensor, position: Tensor, state_of: Callable[[list[int]], Tensor]) -> Tensor:
    """[B * P, K, D], sample by sample; zeros for a history of padding alone."""
    found = []
    for items, places in zip(history.tolist(), position.tolist(), strict=True):
        real = [item for item in items if item != -1]
        for place in places:
            if real:
                found.append(interests(weights, state_of(real[: place + 1])))
            else:
                dim = weights["item"].shape[1]
                number = len(weights.get("interests.bias", torch.empty(dim))) // dim
                found.append(torch.zeros(number, dim, dtype=weights["item"].dtype))
    return torch.stack(found)


def plain_sasrec(weights: Weights, history: Tensor, position: Tensor, *, num_heads: int) -> Tensor:
    """history [B, L], item ids, -1 on the right; position [B, P], places of real items -> queries [B * P, K, D]."""
    return _queries(weights, history, position, lambda items: sasrec_state(weights, items, num_heads))


def plain_gru4rec(weights: Weights, history: Tensor, position: Tensor) -> Tensor:
    """As plain_sasrec."""
    return _queries(weights, history, position, lambda items: gru_state(weights, items))


def plain_causal_eupmim(
    weights: Weights,
    history: Tensor,
    position: Tensor,
    user: Tensor,
    attributes: Tensor,
    *,
    num_levels: int,
    num_heads: int,
    orthogonal: bool,
) -> tuple[Tensor, Tensor]:
    """Queries [B * P, K, D] of histories that are not empty, and the sum of the adjacencies over whole histories."""
    found, total = [], torch.zeros((), dtype=weights["item"].dtype)
    for row, items in enumerate(history.tolist()):
        real = [item for item in items if item != -1]
        tables = [weights[f"profile.attributes.{n}.weight"] for n in range(attributes.shape[1])]
        rows = [weights["user"][int(user[row])]] if int(user[row]) != -1 else [torch.zeros_like(tables[0][0])]
        rows += [table[int(value)] for table, value in zip(tables, attributes[row], strict=True)]
        profile = sum(rows) / len(rows)
        scaled = [math.sqrt(weights["item"].shape[1]) * weights["item"][item] for item in real]
        edges = [[1.0 / (1.0 + torch.exp(-(one * other * profile).sum())) for other in scaled] for one in scaled]
        total = total + sum(edges[i][j] for i in range(len(edges)) for j in range(i))
        for place in position[row].tolist():
            known = range(place + 1)
            levels = [[scaled[i] for i in known]]
            for _ in range(num_levels):
                levels.append(
                    [
                        (levels[-1][i] + sum(edges[i][j] * levels[-1][j] for j in range(i)))
                        / (1.0 + sum(edges[i][j] for j in range(i)))
                        for i in known
                    ]
                )
            states = [sum(level[i] for level in levels) / (num_levels + 1) for i in known]
            layer = 0
            while f"extractor.encoder.layers.{layer}.qkv.weight" in weights:
                states = transformer_block(
                    weights, f"extractor.encoder.layers.{layer}.", states, num_heads, rotary=True
                )
                layer += 1
            hidden = [layer_norm(weights, "extractor.encoder.norm", state) for state in states]
            interests = causal_interests(weights, hidden, orthogonal)
            found.append(torch.stack([with_profile(weights, profile, interest) for interest in interests]))
    return torch.stack(found), total


def causal_interests(weights: Weights, hidden: list[Tensor], orthogonal: bool) -> list[Tensor]:
    """ARMIENet at the last of n places: K vectors."""
    context, interests = hidden[-1], []
    query = context
    while f"extractor.mix.{len(interests)}.weight" in weights:
        k = len(interests)
        if k:
            inner = torch.tanh(linear(weights, f"extractor.next_query.{k - 1}.0", torch.cat([*interests, context])))
            query = linear(weights, f"extractor.next_query.{k - 1}.2", inner)
        asked = linear(weights, "extractor.query", query)
        scores = [asked @ linear(weights, "extractor.key", h) / math.sqrt(len(h)) for h in hidden]
        alpha = torch.softmax(torch.stack(scores), dim=0)
        pooled = sum(a * h for a, h in zip(alpha, hidden, strict=True))
        interest = context + linear(weights, f"extractor.mix.{k}", torch.cat([pooled, query]))
        for other in interests if orthogonal else []:
            interest = interest - (interest @ other) / (other @ other + 1e-6) * other
        interests.append(interest)
    return interests


def with_profile(weights: Weights, profile: Tensor, interest: Tensor) -> Tensor:
    """Profile attention over all coordinates, added to the interest."""
    hidden = torch.relu(linear(weights, "attention.weights1", torch.cat([profile, interest])))
    attended = torch.sigmoid(linear(weights, "attention.weights2", hidden)) * profile
    mixed = torch.relu(linear(weights, "attention.mix1", torch.cat([attended, interest])))
    return interest + linear(weights, "attention.mix2", mixed)
