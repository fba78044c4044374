"""Attributes of users (age, gender, ...) as vectors; the tables are small, so every rank holds them.

B users, A attributes, D dim.
"""

import torch
from torch import Tensor, nn

from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import xavier_embedding


class AttributeEmbeddings(nn.ModuleList):
    """A row for the value of each attribute, side by side; `cardinalities` by name, in the store's order."""

    def __init__(self, cardinalities: dict[str, int], dim: int) -> None:
        if not cardinalities:
            raise UserError("model.attributes: the data has no attributes of users; set it to false")
        super().__init__(xavier_embedding(rows, dim) for rows in cardinalities.values())
        self.names = list(cardinalities)
        self.width = len(cardinalities) * dim

    def forward(self, attributes: Tensor) -> Tensor:
        """Int64 [B, A] -> [B, A * D]."""
        return torch.cat([rows(values) for rows, values in zip(self, attributes.unbind(1), strict=True)], dim=-1)

    def weights(self, prefix: str) -> dict[str, str]:
        """Attribute -> its parameter's name in a model that holds this module as `prefix` (Model.attribute_weights)."""
        return {name: f"{prefix}.{column}.weight" for column, name in enumerate(self.names)}
