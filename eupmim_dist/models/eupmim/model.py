"""E-UPMiM ("Beyond Preferences", ISCAS 2025): profile, user-aware graph, autoregressive interests.

B users of this rank, L history, K interests, D dim, P levels. Its graph and its encoder look both ways along a history,
so it is not causal: under `every_position` each prediction gets a history of its own.
"""

import torch
from torch import Tensor, nn

from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.eupmim.config import EUPMiMConfig
from eupmim_dist.models.eupmim.extractor import ARMIENet
from eupmim_dist.models.eupmim.graph import propagate, user_aware_adjacency
from eupmim_dist.models.eupmim.profile import Profile, ProfileAttention
from eupmim_dist.models.interface import ITEM_TABLE, DataShape, Encoded, Model, Rows, TableSpec, Uses, item_table
from eupmim_dist.models.layers.capsule import CapsuleRouting
from eupmim_dist.models.layers.transformer import LinearEncoder, TransformerEncoder

USER_TABLE = "user"


class EUPMiM(Model):
    readout = "hard"

    def __init__(self, config: EUPMiMConfig, shape: DataShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.num_interests, self.dim = config.num_interests, config.dim
        self.extractor = build_extractor(config, shape.history_length)
        # Without the graph and the attention nothing would read a profile, and its weights would get no gradient.
        used = config.profile and (config.graph or config.profile_attention != "none")
        self.profile = Profile(list(shape.attributes.values()), config.dim) if used else None
        self.attention = (
            ProfileAttention(config.dim, config.profile_attention, config.attention_dropout)
            if config.profile_attention != "none"
            else None
        )

    def tables(self) -> list[TableSpec]:
        specs = [item_table(self.shape, self.dim)]
        if self.profile is not None:
            policy = self.config.unseen_users
            specs.append(TableSpec(USER_TABLE, self.shape.num_users, self.dim, id_map="users", untrained=policy))
        return specs

    def uses(self, batch: UserBatch) -> Uses:
        uses = {"history": (ITEM_TABLE, batch.history)}
        if self.profile is not None:
            uses["user"] = (USER_TABLE, batch.user)
        return uses

    def attribute_weights(self) -> dict[str, str]:
        names = list(self.shape.attributes) if self.profile is not None else []
        return {name: f"profile.attributes.{number}.weight" for number, name in enumerate(names)}

    def encode(self, rows: Rows, batch: UserBatch) -> Encoded:
        interests, adjacency = self._extract(rows, batch)
        penalties = {} if adjacency is None else {"adjacency": self.config.adjacency_l1 * adjacency.sum()}
        return Encoded(interests, penalties)

    def _extract(self, rows: Rows, batch: UserBatch) -> tuple[Tensor, Tensor | None]:
        """Interests [B, K, D] and the adjacency [B, L, L], if there is a graph."""
        config = self.config
        num = len(batch)
        mask = (batch.history != NO_ROW).to(rows["history"].dtype)
        items = rows["history"]  # zero where padded: a lookup of NO_ROW gives zeros
        profile = self.profile(rows["user"], batch.attributes) if self.profile is not None else None

        adjacency, levels = None, items[None]
        if config.graph:
            weights = profile if profile is not None else torch.ones_like(items[:, 0])
            adjacency = user_aware_adjacency(items, weights, mask)
            levels = propagate(items, adjacency, config.num_levels)

        # The levels share the extractor, so they go through it as one batch.
        extracted = self.extractor(levels.flatten(0, 1), mask.repeat(len(levels), 1))
        interests = extracted.view(len(levels), num, config.num_interests, config.dim).mean(0)
        if self.attention is not None and profile is not None:
            interests = self.attention(profile, interests)
        return interests, adjacency


def build_extractor(config: EUPMiMConfig, history_length: int) -> nn.Module:
    """[M, L, D] and mask [M, L] -> interests [M, K, D]."""
    if config.extractor == "capsule":
        return CapsuleRouting(history_length, config.num_interests, config.dim)
    encoder = (
        TransformerEncoder(config.dim, config.num_encoder_layers, config.num_heads, config.dropout)
        if config.extractor == "transformer"
        else LinearEncoder(config.dim)
    )
    return ARMIENet(encoder, config.dim, config.num_interests, config.orthogonal)
