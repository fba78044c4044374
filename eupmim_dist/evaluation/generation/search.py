"""Items written as answers to prompts: the likeliest by beam search, or each of some candidates, exactly.

The score of an item is the log-probability of its tokens, the one for the end among them, of all that the model could
have written. What is searched is a trie of items, so every answer is one, and none comes twice.

B prompts, K beams, M nodes of a draft, C children of a node or candidates, V tokens there are, D as of trie.py.
"""

import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.evaluation.generation.trie import NO_NODE, ROOT, Allowed, Trie
from eupmim_dist.models.writing import Draft, Writer


@torch.no_grad()
def beam_search(
    writer: Writer, draft: Draft, number: int, trie: Trie, num_beams: int, allowed: Allowed
) -> tuple[Tensor, Tensor]:
    """The best `num_beams` items for each of `number` prompts, best first: scores float32 [B, K], minus infinity past
    the end, and items int64 [B, K], NO_ROW there.

    Exact if there are as many beams as allowed items. There are always as many items as beams, where so many are
    allowed: a beam goes on only where an allowed answer lies ahead.
    """
    device = trie.token.device
    user = torch.arange(number, device=device)[:, None, None]
    node = torch.full((number, 1), ROOT, device=device)
    score = torch.zeros(number, 1, device=device)
    follows = torch.zeros(number, 1, 0, dtype=torch.bool, device=device)
    ended: list[tuple[Tensor, Tensor]] = []
    while node.shape[1]:
        own = torch.eye(node.shape[1], dtype=torch.bool, device=device).expand(number, -1, -1)
        follows = torch.cat([follows, own], dim=2)
        tokens = torch.where(node == ROOT, writer.start_token, trie.token[node])
        logits, draft = writer.write(draft, tokens, trie.depth[node], follows)
        count = torch.where(score == -torch.inf, 0, trie.num_children[node])
        column = torch.arange(max(1, int(count.max())) if count.numel() else 1, device=device)
        inside = column < count[..., None]
        child = torch.where(inside, trie.first_child[node][..., None] + column, ROOT)
        inside = inside & allowed(user, child)
        found = _log_probabilities(logits, torch.where(inside, trie.token[child], 0)) + score[..., None]
        found, child = found.masked_fill(~inside, -torch.inf).flatten(1), child.flatten(1)
        leaf = trie.item[child] != NO_ROW
        ended.append(_best(found.masked_fill(~leaf, -torch.inf), trie.item[child], num_beams)[:2])
        score, node, place = _best(found.masked_fill(leaf, -torch.inf), child, num_beams)
        alive = int((score != -torch.inf).sum(1).max()) if number else 0
        score, node, parent = score[:, :alive], node[:, :alive], place[:, :alive] // len(column)
        follows = follows.gather(1, parent[..., None].expand(-1, -1, follows.shape[2]))
    scores, items = (torch.cat(parts, dim=1) for parts in zip(*ended, strict=True))
    by_item = items.argsort(dim=1)  # of equal scores, among those that were kept, the smaller id comes first
    scores, items, _ = _best(scores.gather(1, by_item), items.gather(1, by_item), num_beams)
    missing = num_beams - scores.shape[1]
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    items = torch.nn.functional.pad(items, (0, missing), value=NO_ROW)
    return scores, items.masked_fill(scores == -torch.inf, NO_ROW)


@torch.no_grad()
def answer_scores(writer: Writer, draft: Draft, trie: Trie, candidates: Tensor) -> Tensor:
    """The score of each candidate, int64 [B, C], NO_ROW for none: float32 [B, C], minus infinity there.

    All tokens of all of them are written in one pass, what candidates have in common once: that takes the scores of V
    tokens at up to C times D nodes of each prompt, float32, and once more while they are normalised.
    """
    device, number = trie.token.device, len(candidates)
    path = torch.where((candidates != NO_ROW)[..., None], trie.path[candidates.clamp(min=0)], NO_NODE)  # [B, C, D]
    before = torch.cat([torch.full_like(path[..., :1], ROOT), path[..., :-1]], dim=2)
    user = torch.arange(number, device=device)[:, None, None]
    written = path != NO_NODE
    roots = user[:, 0, 0] * len(trie) + ROOT
    keys = torch.cat([roots, (user * len(trie) + before)[written]]).unique()
    counts = torch.bincount(keys // len(trie), minlength=number)
    starts = counts.cumsum(0) - counts
    nodes = torch.full((number, int(counts.max()) if number else 1), NO_NODE, device=device)
    nodes[keys // len(trie), torch.arange(len(keys), device=device) - starts[keys // len(trie)]] = keys % len(trie)
    line = trie.line[nodes.clamp(min=0)]  # [B, M, D + 1]
    follows = torch.zeros(*nodes.shape, nodes.shape[1], dtype=torch.bool, device=device)
    for level in line.unbind(2):
        follows |= (level[..., None] == nodes[:, None]) & (nodes >= 0)[:, None]
    follows |= torch.eye(nodes.shape[1], dtype=torch.bool, device=device)
    tokens = torch.where(nodes <= ROOT, writer.start_token, trie.token[nodes.clamp(min=0)])
    logits, _ = writer.write(draft, tokens, trie.depth[nodes.clamp(min=0)], follows)
    place = torch.searchsorted(keys, user * len(trie) + before.clamp(min=0)) - starts[:, None, None]
    place = torch.where(written, place, 0)
    total = logits.float().logsumexp(2)  # [B, M]
    token = torch.where(written, trie.token[path.clamp(min=0)], 0)
    chosen = logits.flatten(1).gather(1, (place * logits.shape[2] + token).flatten(1)).view(path.shape).float()
    found = chosen - total.gather(1, place.flatten(1)).view(path.shape)
    return found.masked_fill(~written, 0.0).sum(2).masked_fill(candidates == NO_ROW, -torch.inf)


def _log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of tokens [B, K, C] after each node: [B, K, C] of [B, K, V]."""
    logits = logits.float()
    return logits.gather(2, tokens) - logits.logsumexp(2, keepdim=True)


def _best(scores: Tensor, values: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `num` best scores [B, n], or all there are, their values, and where they were; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :num]
    return scores.gather(1, order), values.gather(1, order), order
