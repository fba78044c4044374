"""E-UPMiM ("Beyond Preferences", ISCAS 2025): profile, user-aware graph, autoregressive interests.

Its graph and its encoder look both ways along a history, so that under `every_position` each prediction gets a history
of its own; with `extractor: causal` both look back only, and one pass over a window answers at all its places.

B samples of this rank, P predictions of each, Q = B * P, L history, K interests, D dim.
"""

import math

import torch
from torch import Tensor, nn

from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.models.eupmim.config import EUPMiMConfig
from eupmim_dist.models.eupmim.extractor import ARMIENet, CausalARMIENet
from eupmim_dist.models.eupmim.graph import causal_levels, propagate, user_aware_adjacency
from eupmim_dist.models.eupmim.profile import Profile, ProfileAttention
from eupmim_dist.models.interface import (
    ITEM_TABLE,
    USER_TABLE,
    DataShape,
    Encoded,
    Model,
    Rows,
    TableSpec,
    Uses,
    item_table,
)
from eupmim_dist.models.layers.capsule import CapsuleRouting
from eupmim_dist.models.layers.causal import CausalTransformer
from eupmim_dist.models.layers.dropout import Dropout
from eupmim_dist.models.layers.transformer import LinearEncoder, TransformerEncoder


class EUPMiM(Model):
    readout = "hard"

    def __init__(self, config: EUPMiMConfig, shape: DataShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.num_interests, self.dim = config.num_interests, config.dim
        self.causal = config.extractor == "causal"
        self.dropout = Dropout(config.dropout)
        self.extractor = build_extractor(config, shape.history_length)
        # Without the graph and the attention nothing would read a profile, and its weights would get no gradient.
        used = config.profile and (config.graph or config.profile_attention != "none")
        self.profile = Profile(list(shape.attributes.values()), config.dim) if used else None
        self.attention = (
            ProfileAttention(config.dim, config.profile_attention, config.attention_dropout, residual=self.causal)
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
        config = self.config
        mask = (batch.history != NO_ROW).to(rows["history"].dtype)
        items = rows["history"]  # zero where padded: a lookup of NO_ROW gives zeros
        profile = self._profile(rows, batch)
        if self.causal:
            items = items * math.sqrt(self.dim)  # as large as what a Transformer adds to it
        adjacency = None
        if config.graph:
            weights = profile if profile is not None else torch.ones_like(items[:, 0])
            adjacency = user_aware_adjacency(items, weights, mask)
            if self.causal:  # what is behind a place it does not see, and no penalty counts
                adjacency = adjacency.tril(-1)
        extract = self._extract_causal if self.causal else self._extract
        interests = extract(items, adjacency, mask, batch)
        if self.attention is not None and profile is not None:
            places = interests.shape[1]
            interests = self.attention(profile.repeat_interleave(places, 0), interests.flatten(0, 1))
        queries = interests.reshape(-1, config.num_interests, config.dim)
        if self.causal:  # a history of padding alone teaches nothing
            queries = queries * mask[:, :1].repeat_interleave(batch.position.shape[1], 0)[..., None]
        penalties = {} if adjacency is None else {"adjacency": config.adjacency_l1 * adjacency.sum()}
        return Encoded(queries, penalties)

    def _profile(self, rows: Rows, batch: UserBatch) -> Tensor | None:
        """[B, D]."""
        if self.profile is None:
            return None
        user = rows["user"]
        if self.training and self.config.user_dropout:
            user = user * (torch.rand(len(user), 1, device=user.device) >= self.config.user_dropout)
        profile: Tensor = self.profile(user, batch.attributes)
        return profile

    def _extract(self, items: Tensor, adjacency: Tensor | None, mask: Tensor, batch: UserBatch) -> Tensor:
        """Interests [B, 1, K, D] of whole histories."""
        levels = items[None] if adjacency is None else propagate(items, adjacency, self.config.num_levels)
        # The levels share the extractor, so they go through it as one batch.
        extracted = self.extractor(levels.flatten(0, 1), mask.repeat(len(levels), 1))
        return extracted.view(len(levels), len(batch), 1, self.num_interests, self.dim).mean(0)

    def _extract_causal(self, items: Tensor, adjacency: Tensor | None, mask: Tensor, batch: UserBatch) -> Tensor:
        """Interests [B, P, K, D] at the places that are asked for."""
        x = items if adjacency is None else causal_levels(items, adjacency, self.config.num_levels)
        interests: Tensor = self.extractor(self.dropout(x), batch.position)
        return interests


def build_extractor(config: EUPMiMConfig, history_length: int) -> nn.Module:
    """[M, L, D] and mask [M, L] -> interests [M, K, D]; the causal one: [M, L, D] and places [M, P] -> [M, P, K, D]."""
    if config.extractor == "causal":
        layers, heads = config.num_encoder_layers, config.num_heads
        causal = CausalTransformer(config.dim, layers, heads, config.dropout, rotary=True, gated=True)
        return CausalARMIENet(causal, config.dim, config.num_interests, config.orthogonal)
    if config.extractor == "capsule":
        return CapsuleRouting(history_length, config.num_interests, config.dim)
    encoder = (
        TransformerEncoder(config.dim, config.num_encoder_layers, config.num_heads, config.dropout)
        if config.extractor == "transformer"
        else LinearEncoder(config.dim)
    )
    return ARMIENet(encoder, config.dim, config.num_interests, config.orthogonal)
