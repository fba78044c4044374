"""SASRec and GRU4Rec, one sample and one position at a time, written from the papers and the models' docstrings.

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


def transformer_block(weights: Weights, name: str, states: list[Tensor], num_heads: int) -> list[Tensor]:
    """Pre-norm block over n states [D]: state i attends to the states 0..i."""
    dim = len(states[0])
    width = dim // num_heads
    projected = [linear(weights, name + "qkv", layer_norm(weights, name + "norm1", x)) for x in states]
    out = []
    for i, x in enumerate(states):
        heads = []
        for h in range(num_heads):
            query, key, value = (slice(part * dim + h * width, part * dim + (h + 1) * width) for part in range(3))
            scores = [projected[i][query] @ projected[j][key] / math.sqrt(width) for j in range(i + 1)]
            alpha = torch.softmax(torch.stack(scores), dim=0)
            heads.append(sum(alpha[j] * projected[j][value] for j in range(i + 1)))
        y = x + linear(weights, name + "out", torch.cat(heads))
        inner = gelu(linear(weights, name + "linear1", layer_norm(weights, name + "norm2", y)))
        out.append(y + linear(weights, name + "linear2", inner))
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
