"""ComiRec-DR (Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020).

The architecture is the E-UPMiM authors' port of it (reference, "The authors' ComiRec port"), trained as the paper says:
the capsule that best matches the target against the candidates. B users, L history, K interests, D dim.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import Interests, ModelSection
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import DataShape, Encoded, Model, Rows
from eupmim_dist.models.layers.capsule import CapsuleRouting
from eupmim_dist.models.release import ITEMS, USERS, Release, item_width


class ComiRecDRConfig(ModelSection):
    """ComiRec-DR as the authors of E-UPMiM ported it, with the loss written right."""

    name: Literal["comirec_dr"] = "comirec_dr"
    """Which model; each has keys of its own."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: Interests = 4
    """K: interest vectors per user."""
    projection: bool = True
    """relu(Linear(D, D)) after the capsules; off for the authors' released weights, evaluated without it."""


class ComiRecDR(Model):
    readout = "target"

    def __init__(self, config: ComiRecDRConfig, shape: DataShape) -> None:
        super().__init__()
        self.shape, self.num_interests, self.dim = shape, config.num_interests, config.dim
        self.capsules = CapsuleRouting(shape.history_length, config.num_interests, config.dim)
        self.projection = nn.Sequential(nn.Linear(config.dim, config.dim), nn.ReLU()) if config.projection else None

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        mask = (batch.history != NO_ROW).to(rows["history"].dtype)
        capsules = self.capsules(rows["history"], mask)
        return Encoded(capsules if self.projection is None else self.projection(capsules))


class ComiRecRelease(Release):
    """The port's weights. It ranks by the raw capsules, before the projection that it trains."""

    def settings(self, tensors: dict[str, Tensor], file: Path) -> dict[str, Any] | None:
        if "capsule_network.weights" not in tensors:
            return None
        dim, weights = item_width(tensors, file), tensors["capsule_network.weights"]
        if weights.ndim != 4:
            raise UserError(
                f"{file}: capsule_network.weights is {tuple(weights.shape)}, the release's has 4 dimensions"
            )
        model = {"name": "comirec_dr", "dim": dim, "num_interests": weights.shape[2] // dim, "projection": False}
        return {"model": model, "task": {"history_length": weights.shape[1]}}

    def tables(self, attributes: list[str]) -> dict[str, str]:
        return {"item": ITEMS}

    def names(self, attributes: list[str]) -> dict[str, str]:
        return {"capsules.weights": "capsule_network.weights", "projection.0.": "capsule_network.proj."}

    def unused(self, dim: int, num_users: int) -> dict[str, tuple[int, ...]]:
        projection = {"capsule_network.proj.weight": (dim, dim), "capsule_network.proj.bias": (dim,)}
        return {USERS: (num_users, dim), **projection}


MODEL = Registered(ComiRecDRConfig, ComiRecDR, ComiRecRelease())
