"""What prompts, their sampling and the writing of answers come to, computed plainly, one sample at a time."""

import re
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def word_ids(tokens: list[str], number_of: dict[tuple[str, int], int]) -> list[int]:
    """The word of each token string: a name is `user` or `item` and `_`, in one token or two, and the tokens that begin
    with digits as long as those before were digits alone. `number_of` says which word a name is."""
    plain = [token.replace("▁", "") for token in tokens]
    words = [0] * len(tokens)
    for place, (first, second) in enumerate(pairwise(plain)):
        kind = first.removesuffix("_")
        if kind not in ("user", "item") or "_" not in (first[len(kind) :], second):
            continue
        stop, digits = place + 1 + (kind == first), ""
        while stop < len(plain) and (found := re.match("[0-9]+", plain[stop])):
            digits, stop = digits + found[0], stop + 1
            if found[0] != plain[stop - 1]:
                break
        words[place:stop] = [number_of[kind, int(digits)]] * (stop - place)
    return words


def log_probability(t5: Any, states: Tensor, mask: Tensor, answer: list[int]) -> Tensor:
    """Of one answer to one prompt: what the encoder made of it [S, D], and where it may be looked at [S]."""
    tokens = torch.tensor([[t5.config.decoder_start_token_id, *answer[:-1]]])
    decoded = t5.decoder(
        input_ids=tokens, encoder_hidden_states=states[None], encoder_attention_mask=mask[None], use_cache=False
    ).last_hidden_state
    if t5.config.scale_decoder_outputs:
        decoded = decoded * t5.config.d_model**-0.5
    scores = t5.lm_head(decoded)[0].log_softmax(1)
    return scores[torch.arange(len(answer)), torch.tensor(answer)].sum()
