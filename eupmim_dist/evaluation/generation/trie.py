"""The tokens that items are answered with, as a trie, and where in it a user's answers may lead.

I item rows, D tokens of the longest answer, N nodes: the root 0, then level by level, the children of a node together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import Ragged
from eupmim_dist.data.prompts.prompt import padded
from eupmim_dist.errors import UserError

ROOT = 0
NO_NODE = -1


@dataclass(frozen=True)
class Trie:
    """Int64 tensors on the device of the model."""

    path: Tensor  # [I, D], the nodes of an item's answer, its last token's being a leaf; NO_NODE past the end
    token: Tensor  # [N], that of the root is of no meaning
    parent: Tensor  # [N], NO_NODE of the root
    depth: Tensor  # [N], 0 of the root
    item: Tensor  # [N], of a leaf, else NO_ROW
    first_child: Tensor  # [N]
    num_children: Tensor  # [N]
    num_items: Tensor  # [N], leaves that it leads to

    def __len__(self) -> int:
        return len(self.token)

    @cached_property
    def line(self) -> Tensor:
        """The nodes from the root to each node, itself included, NO_NODE past the end: int64 [N, D + 1]."""
        line = torch.full((len(self), self.path.shape[1] + 1), NO_NODE, device=self.token.device)
        node, row = torch.arange(len(self), device=self.token.device), torch.arange(len(self), device=self.token.device)
        while len(row):
            line[row, self.depth[node]] = node
            node = self.parent[node]
            row, node = row[node != NO_NODE], node[node != NO_NODE]
        return line


def make_trie(answers: Sequence[Sequence[int]], device: torch.device) -> Trie:
    """Of the tokens of items 1, 2, ..., by id; what is at 0 is no item's. Each ends with the token for the end.

    Raises UserError where two items have the same.
    """
    tokens = padded([[], *answers[1:]])
    if not len(answers) > 1:
        raise UserError("there are no items to be answered with; prepare a store that has some")
    path = torch.full_like(tokens, NO_NODE)
    node = torch.zeros(len(tokens), dtype=torch.int64)
    size = int(tokens.max()) + 1
    of_nodes: list[tuple[Tensor, Tensor]] = [(torch.tensor([NO_NODE]), torch.tensor([NO_NODE]))]
    count = 1
    for column in range(tokens.shape[1]):
        goes_on = tokens[:, column] != NO_ROW
        keys, place = (node[goes_on] * size + tokens[goes_on, column]).unique(return_inverse=True)
        of_nodes.append((keys // size, keys % size))
        node[goes_on] = path[goes_on, column] = count + place
        count += len(keys)
    parent, token = (torch.cat(parts) for parts in zip(*of_nodes, strict=True))
    item = torch.full((count,), NO_ROW)
    item[node[1:]] = torch.arange(1, len(tokens))
    if (twice := item[node[1:]] != torch.arange(1, len(tokens))).any():
        one = int(twice.nonzero()[0]) + 1
        raise UserError(
            f"task.tokenizer: gives items {one} and {int(item[node[one]])} the same tokens; use another one"
        )
    num_children = torch.bincount(parent[1:], minlength=count)
    first_child = torch.searchsorted(parent[1:], torch.arange(count)) + 1
    num_items = torch.bincount(path[path != NO_NODE], minlength=count)
    num_items[ROOT] = len(tokens) - 1
    depth = torch.zeros(count, dtype=torch.int64)
    for column in range(tokens.shape[1]):
        depth[path[path[:, column] != NO_NODE, column]] = column + 1
    made = (path, token, parent, depth, item, first_child, num_children, num_items)
    return Trie(*(tensor.to(device) for tensor in made))


class Allowed:
    """Which nodes lead to an answer that a user may be given."""

    def __init__(self, trie: Trie, items: Ragged, *, these: bool) -> None:
        """`items`, distinct pairs of user and item, are the answers that may be given, or (`these` false) may not."""
        self.num_nodes, self.these = len(trie), these
        device = trie.token.device
        path = trie.path[items.item.to(device)]
        keys = items.user.to(device)[:, None] * self.num_nodes + path
        if these:
            self.keys = keys[path != NO_NODE].unique()  # ascending
        else:
            found, counts = keys[path != NO_NODE].unique(return_counts=True)
            self.keys = found[counts == trie.num_items[found % self.num_nodes]]

    def __call__(self, user: Tensor, node: Tensor) -> Tensor:
        """Of int64 [...] each: bool [...]."""
        wanted = user * self.num_nodes + node
        if not len(self.keys):
            return torch.full_like(wanted, not self.these, dtype=torch.bool)
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return (self.keys[place] == wanted) == self.these
