"""What a model is that answers in words: it reads a prompt once, and scores tokens that an answer could go on with.

Several beginnings of an answer to one prompt are written at a time, as a tree: a node is a token and knows the nodes
that it follows. So beams and candidates that begin alike share what is computed, and none is copied when a beam ends.

B prompts, M nodes of each so far, K new ones, V tokens.
"""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from eupmim_dist.models.interface import Model, Rows

Draft = Any
"""Prompts that were read, with the nodes that were written so far; a model's own."""


class Writer(Model):
    start_token: int
    """What every answer begins with, before its first token."""
    num_tokens: int
    """V."""

    @abstractmethod
    def read(self, rows: Rows, batch: Any) -> Draft:
        """The prompts of a batch, and no nodes."""

    @abstractmethod
    def write(self, draft: Draft, tokens: Tensor, depth: Tensor, follows: Tensor) -> tuple[Tensor, Draft]:
        """Adds nodes: int64 tokens [B, K], how many nodes each follows, int64 [B, K], and which, bool [B, K, M + K], by
        their place, itself among them. Gives the scores of what comes after each, [B, K, V], and the draft with them.
        """
