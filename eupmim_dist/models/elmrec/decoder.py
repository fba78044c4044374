"""T5's decoder over a tree of tokens, without gradients: beginnings of an answer share what they have in common.

It computes what transformers' decoder computes of each beginning on its own, with that one's weights; keys and values
of a prompt are there once, however many beginnings look at them.

B prompts, S tokens of a prompt, M nodes so far, K new ones, H heads, d width of a head, D dim.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Draft:
    prompt: list[KeysAndValues]  # of each layer, [B, H, S, d]
    seen: Tensor  # bool [B, 1, 1, S], what of a prompt may be looked at
    nodes: list[KeysAndValues]  # of each layer, [B, H, M, d]
    depth: Tensor  # int64 [B, M]


def opened(decoder: Any, states: Tensor, mask: Tensor) -> Draft:
    """A draft without nodes, of what the encoder made of prompts: [B, S, D] and bool [B, S]."""
    prompt = []
    for block in decoder.block:
        attention = block.layer[1].EncDecAttention
        prompt.append((_heads(attention, attention.k(states)), _heads(attention, attention.v(states))))
    nothing = [(keys[:, :, :0], values[:, :, :0]) for keys, values in prompt]
    return Draft(prompt, mask[:, None, None], nothing, mask.new_zeros(len(mask), 0, dtype=torch.int64))


def extend(decoder: Any, draft: Draft, tokens: Tensor, depth: Tensor, follows: Tensor) -> tuple[Tensor, Draft]:
    """States [B, K, D] of new nodes and the draft with them; arguments as of models/writing.py."""
    all_depths = torch.cat([draft.depth, depth], dim=1)
    bias = _bias(decoder, depth, all_depths).masked_fill(~follows[:, None], -torch.inf)
    hidden, nodes = decoder.embed_tokens(tokens), []
    for block, (keys, values), of_prompt in zip(decoder.block, draft.nodes, draft.prompt, strict=True):
        layer, attention = block.layer[0], block.layer[0].SelfAttention
        normed = layer.layer_norm(hidden)
        keys = torch.cat([keys, _heads(attention, attention.k(normed))], dim=2)
        values = torch.cat([values, _heads(attention, attention.v(normed))], dim=2)
        nodes.append((keys, values))
        hidden = hidden + _attend(attention, normed, keys, values, bias)
        layer, attention = block.layer[1], block.layer[1].EncDecAttention
        hidden = hidden + _attend(attention, layer.layer_norm(hidden), *of_prompt, draft.seen)
        hidden = block.layer[2](hidden)
    return decoder.final_layer_norm(hidden), replace(draft, nodes=nodes, depth=all_depths)


def _attend(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """T5 does not scale its products."""
    found = F.scaled_dot_product_attention(_heads(attention, attention.q(normed)), keys, values, mask, scale=1.0)
    attended: Tensor = attention.o(found.transpose(1, 2).flatten(2))
    return attended


def _heads(attention: Any, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def _bias(decoder: Any, depth: Tensor, of_all: Tensor) -> Tensor:
    """[B, H, K, M + K], by how far before a node another stands."""
    attention = decoder.block[0].layer[0].SelfAttention
    bucket = attention._relative_position_bucket(
        of_all[:, None] - depth[:, :, None],
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(bucket).permute(0, 3, 1, 2)
    return bias
