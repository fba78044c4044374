"""YouTube DNN (Covington et al., "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 3).

The reference with one vector: the mean of the history through a ReLU network. B users, L history, A attributes, D dim.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ModelSection
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows
from eupmim_dist.models.layers.attributes import AttributeEmbeddings


class YouTubeDNNConfig(ModelSection):
    name: Literal["youtube_dnn"] = "youtube_dnn"
    """Mean-pooled history through a ReLU network."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: int = 1
    """K: this model makes one vector per user."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field([128], max_length=100)
    """Widths of the ReLU layers before the last, linear one; none of them is the DNN that ComiRec compares with."""
    attributes: bool = False
    """Join the user's attributes to the mean of the history."""

    @field_validator("num_interests")
    @classmethod
    def _one(cls, value: int) -> int:
        if value != 1:
            raise ValueError("youtube_dnn makes one vector per user: leave it at 1, or choose another model.name")
        return value


class YouTubeDNN(Model):
    """The paper's candidate generation, but for a last layer that is linear.

    The paper's user vectors are those of a ReLU layer and meet a softmax layer with weights of its own; here one table
    serves both ends, whose rows have either sign.
    """

    def __init__(self, config: YouTubeDNNConfig, shape: DataShape) -> None:
        super().__init__()
        self.shape = shape
        self.dim, self.num_interests = config.dim, 1
        self.attributes = AttributeEmbeddings(shape.attributes, config.dim) if config.attributes else None
        width = config.dim + (self.attributes.width if self.attributes is not None else 0)
        layers: list[nn.Module] = []
        for before, after in pairwise([width, *config.hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear([width, *config.hidden][-1], config.dim))

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        """rows["history"] [B, L, D] -> queries [B, 1, D]; zeros where a history is all padding."""
        mask = (batch.history != NO_ROW).to(rows["history"].dtype)[:, None]  # [B, 1, L]
        pooled = (mask @ rows["history"] / mask.sum(-1, keepdim=True).clamp(min=1))[:, 0]
        if self.attributes is not None:
            pooled = torch.cat([pooled, self.attributes(batch.attributes)], dim=-1)
        # A history has a first item or none at all; of none, the biases and the attributes learn nothing.
        return Encoded((self.layers(pooled) * mask[:, :, 0])[:, None])

    def attribute_weights(self) -> dict[str, str]:
        return self.attributes.weights("attributes") if self.attributes is not None else {}


MODEL = Registered(YouTubeDNNConfig, YouTubeDNN)
