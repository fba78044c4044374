"""The one seam (design 1): a model declares its tables, names the ids it needs and gets rows back.

A model never owns a table of items or users, so its code is the same on one rank and on many.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from eupmim_dist.data.batch import Batch

Rows = dict[str, Tensor]
"""Float rows by table name: the shape of the ids asked for, plus the table's width."""


@dataclass(frozen=True)
class DataShape:
    """What a model needs to know of the data: sizes, never the data."""

    num_users: int
    num_item_rows: int  # the padding row 0 included
    attributes: dict[str, int]  # cardinality by name
    history_length: int


@dataclass(frozen=True)
class TableSpec:
    """A table to be sharded. Rows start as Xavier normal, each a function of (seed, name, row id)."""

    name: str
    rows: int
    dim: int

    @property
    def init_std(self) -> float:
        return math.sqrt(2.0 / (self.rows + self.dim))


class Recommender(nn.Module, ABC):
    """A model that scores an item by the largest dot product with the user's interest vectors."""

    item_table = "item"

    @abstractmethod
    def tables(self) -> list[TableSpec]: ...

    @abstractmethod
    def ids(self, batch: Batch) -> dict[str, Tensor]:
        """Table name -> int64 ids of any shape (NO_ROW for none), for training or, without targets, ranking."""

    @abstractmethod
    def forward(self, rows: Rows, batch: Batch) -> dict[str, Tensor]:
        """This rank's share of each part of the global loss; their sum over parts and ranks is the loss."""

    @abstractmethod
    def interests(self, rows: Rows, batch: Batch) -> Tensor:
        """Interest vectors [B, K, D] to rank the catalogue by."""


def xavier_embedding(rows: int, dim: int) -> nn.Embedding:
    """A small replicated table, initialised as the large ones are."""
    embedding = nn.Embedding(rows, dim)
    nn.init.xavier_normal_(embedding.weight)
    return embedding
