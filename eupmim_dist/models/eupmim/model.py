"""E-UPMiM ("Beyond Preferences", ISCAS 2025): profile, user-aware graph, autoregressive interests.

B users of this rank, L history, N negatives, K interests, D dim, P levels.
"""

import torch
from torch import Tensor, nn

from eupmim_dist.config.schema import EUPMiMConfig
from eupmim_dist.data.batch import NO_ROW, Batch
from eupmim_dist.models.eupmim.extractor import ARMIENet
from eupmim_dist.models.eupmim.graph import propagate, user_aware_adjacency
from eupmim_dist.models.eupmim.profile import Profile, ProfileAttention
from eupmim_dist.models.interface import DataShape, Recommender, Rows, TableSpec
from eupmim_dist.models.layers.capsule import CapsuleRouting
from eupmim_dist.models.layers.readout import cross_entropy_share, read_out
from eupmim_dist.models.layers.transformer import LinearEncoder, TransformerEncoder


class EUPMiM(Recommender):
    def __init__(self, config: EUPMiMConfig, shape: DataShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
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
        specs = [TableSpec("item", self.shape.num_item_rows, self.config.dim)]
        if self.profile is not None:
            specs.append(TableSpec("user", self.shape.num_users, self.config.dim))
        return specs

    def ids(self, batch: Batch) -> dict[str, Tensor]:
        item_ids = [batch.history]
        if batch.target is not None and batch.negatives is not None:
            item_ids += [batch.target[:, None], batch.negatives]
        ids = {"item": torch.cat(item_ids, dim=1)}
        if self.profile is not None:
            ids["user"] = batch.user
        return ids

    def forward(self, rows: Rows, batch: Batch) -> dict[str, Tensor]:
        length = batch.history.shape[1]
        interests, adjacency = self._extract(rows, batch)
        scores = read_out(interests, rows["item"][:, length:], self.config.hard_readout)
        parts = {"cross_entropy": cross_entropy_share(scores, batch.global_size)}
        if adjacency is not None:
            parts["adjacency"] = self.config.adjacency_l1 * adjacency.sum()
        return parts

    def interests(self, rows: Rows, batch: Batch) -> Tensor:
        return self._extract(rows, batch)[0]

    def _extract(self, rows: Rows, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Interests [B, K, D] and the adjacency [B, L, L], if there is a graph."""
        config = self.config
        num, length = batch.history.shape
        mask = (batch.history != NO_ROW).to(rows["item"].dtype)
        items = rows["item"][:, :length]  # zero where padded: a lookup of NO_ROW gives zeros
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
