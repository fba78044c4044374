"""GRU4Rec (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016).

A GRU over the history, whose state at a position is the query for what comes next, by a linear layer back to the width
of the item rows, which are the input and the output embeddings alike ("constrained embeddings" of Hidasi and
Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based Recommendations", CIKM 2018, whose losses
and negatives are objectives here). Item rows are scaled by sqrt(D), as in SASRec: they start small, and the GRU would
long see nothing but its biases. With K > 1 interests the linear layer is hidden_size -> K * D; its slices are the K
queries.

B samples of this rank, P predictions per sample, L history, K interests, D dim.
"""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import Depth, Interests, ModelSection, Probability
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows
from eupmim_dist.models.layers.causal import at_positions
from eupmim_dist.models.layers.dropout import Dropout


class GRU4RecConfig(ModelSection):
    name: Literal["gru4rec"] = "gru4rec"
    """A recurrent network over the history."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: Interests = 1
    """K: queries per prediction, linear in the state."""
    hidden_size: int = Field(128, ge=1)
    """Width of the state of each GRU layer."""
    num_layers: Depth = 1
    """GRU layers."""
    dropout: Probability = 0.2
    """On the embeddings."""


class GRU4Rec(Model):
    causal = True

    def __init__(self, config: GRU4RecConfig, shape: DataShape) -> None:
        super().__init__()
        self.dim, self.num_interests, self.shape = config.dim, config.num_interests, shape
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(config.dim, config.hidden_size, config.num_layers, batch_first=True)
        self.interests = nn.Linear(config.hidden_size, config.num_interests * config.dim)

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        embedded = self.dropout(rows["history"] * math.sqrt(self.dim))
        # A rank may have no sample, and CUDA's GRU refuses nothing. It is run all the same: its gradients are awaited.
        states, _ = self.gru(embedded if len(embedded) else embedded.new_zeros(1, *embedded.shape[1:]))
        queries = self.interests(at_positions(states[: len(embedded)], batch.position))
        known = batch.history[:, :1, None] != NO_ROW  # a history of padding alone teaches nothing
        return Encoded((queries * known).view(-1, self.num_interests, self.dim))


MODEL = Registered(GRU4RecConfig, GRU4Rec)
