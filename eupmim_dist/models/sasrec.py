"""SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018).

A causal Transformer over the history, whose output at a position is the query for what comes next. As in the paper or
its code: item rows scaled by sqrt(D), learned positions, x + dropout(g(norm(x))) for both sublayers, dropout on the
embeddings too, a last LayerNorm, scores with the same rows, and the dropout rate of MovieLens-1M. Otherwise: attention
ends in a projection, the feed-forward is 4D wide with GELU and no inner dropout, and there are two heads, as in
RecBole's SASRec; the paper has D, ReLU and one head, and its code adds to norm(x) where the paper adds to x. The loss
is an objective's matter. With K > 1 interests a linear layer D -> K * D, without a residual, ends the network; its
slices are the K queries.

Positions are counted from the start of the window. A query then depends on what stands before it and on nothing else,
so one pass serves every position; counted from the end, an item's embedding would differ from prediction to prediction.

B samples of this rank, P predictions per sample, L history, K interests, D dim.
"""

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import Depth, Interests, ModelSection, Probability
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows
from eupmim_dist.models.layers.causal import CausalTransformer
from eupmim_dist.models.layers.dropout import Dropout


class SASRecConfig(ModelSection):
    name: Literal["sasrec"] = "sasrec"
    """Self-attention over the history."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings and of the Transformer."""
    num_interests: Interests = 1
    """K: queries per prediction, linear in what the Transformer gives."""
    num_layers: Depth = 2
    """Transformer blocks."""
    num_heads: int = Field(2, ge=1)
    """Attention heads; they share dim."""
    dropout: Probability = 0.2
    """On the embeddings, the attention weights and the output of each sublayer."""

    @model_validator(mode="after")
    def _heads_share_dim(self) -> "SASRecConfig":
        if self.dim % self.num_heads:
            fitting = ", ".join(str(n) for n in range(1, self.dim + 1) if self.dim % n == 0)
            raise ValueError(f"num_heads {self.num_heads} must divide dim {self.dim}: use one of {fitting}")
        return self


class SASRec(Model):
    causal = True

    def __init__(self, config: SASRecConfig, shape: DataShape) -> None:
        super().__init__()
        self.dim, self.num_interests, self.shape = config.dim, config.num_interests, shape
        self.positions = nn.Embedding(shape.history_length, config.dim)
        nn.init.normal_(self.positions.weight, std=0.02)  # small beside the scaled rows
        self.dropout = Dropout(config.dropout)
        self.transformer = CausalTransformer(config.dim, config.num_layers, config.num_heads, config.dropout)
        self.interests = nn.Linear(config.dim, config.num_interests * config.dim) if config.num_interests > 1 else None

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        x = rows["history"] * math.sqrt(self.dim) + self.positions.weight[: batch.history.shape[1]]
        hidden = self.transformer(self.dropout(x), batch.position)
        if self.interests is not None:
            hidden = self.interests(hidden)
        known = batch.history[:, :1, None] != NO_ROW  # a history of padding alone teaches nothing
        return Encoded((hidden * known).view(-1, self.num_interests, self.dim))


MODEL = Registered(SASRecConfig, SASRec)
