"""Answers in free words.

B prompts, M nodes of a draft.
"""

import torch

from eupmim_dist.models.writing import Draft, Writer


@torch.no_grad()
def write_texts(writer: Writer, draft: Draft, number: int, end: int, most: int) -> tuple[list[list[int]], bool]:
    """The tokens of the answer to each of `number` prompts, without the end: the likeliest one each time, `most` at
    most; and whether all scores were numbers."""
    device = next(writer.parameters()).device
    tokens = torch.full((number, 1), writer.start_token, device=device)
    written: list[torch.Tensor] = []
    ended = torch.zeros(number, dtype=torch.bool, device=device)
    sound = torch.ones((), dtype=torch.bool, device=device)
    while len(written) < most and not bool(ended.all()):
        depth = torch.full_like(tokens, len(written))
        follows = torch.ones(number, 1, len(written) + 1, dtype=torch.bool, device=device)
        logits, draft = writer.write(draft, tokens, depth, follows)
        sound &= ~logits.isnan().any()
        tokens = logits[:, -1:].argmax(2)
        written.append(tokens)
        ended |= tokens[:, 0] == end
    rows = torch.cat(written, dim=1).tolist() if written else [[] for _ in range(number)]
    return [row[: row.index(end)] if end in row else row for row in rows], bool(sound)
