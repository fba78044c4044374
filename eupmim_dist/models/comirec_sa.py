"""ComiRec-SA (Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020).

Self-attentive extraction: K heads over the history, each a weighted sum of its item rows. B users, L history,
K interests, D dim.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import Interests, ModelSection
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import (
    DataShape,
    Encoded,
    Model,
    Rows,
    xavier_embedding,
)
from eupmim_dist.models.layers.attention import MASKED


class ComiRecSAConfig(ModelSection):
    name: Literal["comirec_sa"] = "comirec_sa"
    """ComiRec with self-attentive extraction."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: Interests = 4
    """K: interest vectors per user, one of each attention head."""


class ComiRecSA(Model):
    """V = softmax(W2 tanh(W1 (H + P))) H, the softmax over the history; H are its item rows, P positional embeddings.

    P takes part in the weights but not in the sum, as in the authors' code, so interests stay among the items. The
    paper has no biases, and none are missed: P stands in for that of W1, and the softmax takes no notice of W2's.
    """

    readout = "target"
    tells_routing = True

    def __init__(self, config: ComiRecSAConfig, shape: DataShape) -> None:
        super().__init__()
        self.shape = shape
        self.dim, self.num_interests = config.dim, config.num_interests
        self.positions = xavier_embedding(shape.history_length, config.dim)
        self.hidden = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.heads = nn.Linear(4 * config.dim, config.num_interests, bias=False)

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        """rows["history"] [B, L, D] -> queries [B, K, D] and routing [B, K, L], A; zeros where all is padding."""
        items = rows["history"]
        padding = (batch.history == NO_ROW)[:, None]
        scores = self.heads(torch.tanh(self.hidden(items + self.positions.weight))).transpose(1, 2)
        # Masked again after the softmax, which spreads the weight over the padding where there is nothing else.
        routing = scores.masked_fill(padding, MASKED).softmax(-1).masked_fill(padding, 0.0)
        return Encoded(routing @ items, routing=routing)


MODEL = Registered(ComiRecSAConfig, ComiRecSA)
