"""MIND (Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019).

Capsules routed from the history, each with the user's attributes through two ReLU layers. The paper's label-aware
attention is a read-out, which the objective applies. B users, L history, A attributes, K interests, D dim.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import Interests, ModelSection
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows
from eupmim_dist.models.layers.attributes import AttributeEmbeddings
from eupmim_dist.models.layers.b2i import BehaviourToInterest


class MINDConfig(ModelSection):
    name: Literal["mind"] = "mind"
    """Multi-interest network with dynamic routing."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: Interests = 4
    """K: interest vectors per user."""
    dynamic_interests: bool = False
    """Give a history of n items max(1, min(K, log2 n)) interests instead of K."""
    attributes: bool = False
    """Join the user's attributes to each interest, as the paper does with its user profile."""


class MIND(Model):
    readout = "attention"

    def __init__(self, config: MINDConfig, shape: DataShape) -> None:
        super().__init__()
        self.shape = shape
        self.dim, self.num_interests = config.dim, config.num_interests
        self.routing = BehaviourToInterest(
            shape.history_length, config.num_interests, config.dim, config.dynamic_interests
        )
        self.attributes = AttributeEmbeddings(shape.attributes, config.dim) if config.attributes else None
        width = config.dim + (self.attributes.width if self.attributes is not None else 0)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * config.dim), nn.ReLU(), nn.Linear(4 * config.dim, config.dim), nn.ReLU()
        )

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        """rows["history"] [B, L, D] -> queries [B, K, D], not negative; zeros where a history is all padding."""
        mask = (batch.history != NO_ROW).to(rows["history"].dtype)
        interests = self.routing(rows["history"], mask)
        if self.attributes is not None:
            profile = self.attributes(batch.attributes)[:, None].expand(-1, self.num_interests, -1)
            interests = torch.cat([interests, profile], dim=-1)
        # A history has a first item or none at all; of none, the biases and the attributes learn nothing.
        return Encoded(self.layers(interests) * mask[:, :1, None])

    def attribute_weights(self) -> dict[str, str]:
        return self.attributes.weights("attributes") if self.attributes is not None else {}


MODEL = Registered(MINDConfig, MIND)
