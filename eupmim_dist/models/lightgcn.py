"""LightGCN (He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020).

Rows of users and items are propagated over the graph of who took what, without weights; a user's row is his query. The
paper's loss, BPR, is `sampled_softmax` with one negative. B users, D dim.
"""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.data.batch import UserBatch
from eupmim_dist.models.interface import USER_TABLE, DataShape, Encoded, Model, Rows, TableSpec, Uses, item_table
from eupmim_dist.models.propagation import Propagation, PropagationSection


class LightGCNConfig(PropagationSection):
    name: Literal["lightgcn"] = "lightgcn"
    """Dot products of rows that are propagated over the graph of users and items."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: int = 1
    """K: this model makes one vector per user."""
    init_std: float = Field(0.1, gt=0, le=1e4)
    """Standard deviation of the rows that training begins with."""

    @field_validator("num_interests")
    @classmethod
    def _one(cls, value: int) -> int:
        if value != 1:
            raise ValueError("lightgcn makes one vector per user: leave it at 1, or choose another model.name")
        return value


class LightGCN(Model):
    only_known_users = True

    def __init__(self, config: LightGCNConfig, shape: DataShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.dim, self.num_interests = config.dim, 1
        self.scale = nn.Parameter(torch.ones(1))  # of the scores in a softmax; no matter to their order

    def tables(self) -> list[TableSpec]:
        std = self.config.init_std
        return [
            item_table(self.shape, self.dim, init_std=std),
            TableSpec(USER_TABLE, self.shape.num_users, self.dim, id_map="users", init_std=std),
        ]

    def propagation(self) -> Propagation | None:
        return self.config.propagation()

    def uses(self, batch: UserBatch) -> Uses:
        return {"user": (USER_TABLE, batch.user)}

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        """rows["user"] [B, D] -> queries [B, 1, D]."""
        return Encoded(rows["user"][:, None] * self.scale)


MODEL = Registered(LightGCNConfig, LightGCN)
