"""ComiRec-DR (Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020).

The architecture is the E-UPMiM authors' port of it (reference, "The authors' ComiRec port"), the loss the paper's:
the capsule that best matches the target against sampled negatives. B users, L history, K interests, D dim.
"""

import torch
from torch import Tensor, nn

from eupmim_dist.config.schema import ComiRecConfig
from eupmim_dist.data.batch import NO_ROW, Batch
from eupmim_dist.models.interface import DataShape, Recommender, Rows, TableSpec
from eupmim_dist.models.layers.capsule import CapsuleRouting
from eupmim_dist.models.layers.readout import cross_entropy_share


class ComiRec(Recommender):
    def __init__(self, config: ComiRecConfig, shape: DataShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.capsules = CapsuleRouting(shape.history_length, config.num_interests, config.dim)
        self.projection = nn.Sequential(nn.Linear(config.dim, config.dim), nn.ReLU()) if config.projection else None

    def tables(self) -> list[TableSpec]:
        return [TableSpec("item", self.shape.num_item_rows, self.config.dim)]

    def ids(self, batch: Batch) -> dict[str, Tensor]:
        item_ids = [batch.history]
        if batch.target is not None and batch.negatives is not None:
            item_ids += [batch.target[:, None], batch.negatives]
        return {"item": torch.cat(item_ids, dim=1)}

    def forward(self, rows: Rows, batch: Batch) -> dict[str, Tensor]:
        interests = self.interests(rows, batch)
        candidates = rows["item"][:, batch.history.shape[1] :]
        best = (interests @ candidates[:, 0, :, None])[..., 0].argmax(1)
        chosen = interests[torch.arange(len(best), device=best.device), best]
        scores = (candidates @ chosen[..., None])[..., 0]
        return {"cross_entropy": cross_entropy_share(scores, batch.global_size)}

    def interests(self, rows: Rows, batch: Batch) -> Tensor:
        length = batch.history.shape[1]
        mask = (batch.history != NO_ROW).to(rows["item"].dtype)
        capsules = self.capsules(rows["item"][:, :length], mask)
        return capsules if self.projection is None else self.projection(capsules)
