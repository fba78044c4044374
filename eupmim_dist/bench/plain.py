"""The authors' training step, plainly: what the step of this package is measured against.

Tables are whole and dense, under torch's Adam with the L2 term in the loss; the encoder is torch's own, level by level,
with torch's dropout. Batches are given, made ahead by somebody else.

B samples, L history, D dim.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.config.section import Section
from eupmim_dist.data.batch import NO_ROW, Batch, UserBatch
from eupmim_dist.errors import UserError
from eupmim_dist.models.eupmim.extractor import ARMIENet
from eupmim_dist.models.eupmim.graph import propagate, user_aware_adjacency
from eupmim_dist.models.eupmim.model import EUPMiM
from eupmim_dist.models.interface import ITEM_TABLE, USER_TABLE
from eupmim_dist.models.layers.dropout import Dropout
from eupmim_dist.models.layers.transformer import EncoderLayer, TransformerEncoder
from eupmim_dist.objectives.interface import Candidates
from eupmim_dist.objectives.sampled_softmax import Sampled, SampledSoftmax
from eupmim_dist.train.state import Run

SIZES = ("dim", "num_interests", "num_levels", "num_encoder_layers", "num_heads")
FREE_OF_TRAINING = (
    *("global_batch_size", "max_steps", "learning_rate", "l2", "schedule", "warmup_steps"),
    *("compile", "prefetch", "threads", "log_every", "init_from", "init_only_rows"),
)
"""Settings that the authors' step has too, or that change nothing in what a step computes."""


def _other(section: Section, *free: str) -> list[str]:
    """Keys, beside those, that are not as they are left alone."""
    own = section.model_dump()
    usual = type(section)().model_dump()
    return [key for key in own if key not in free and own[key] != usual[key]]


class TorchEncoder(nn.Module):
    """`TransformerEncoder` by torch.nn.TransformerEncoder, with its weights."""

    def __init__(self, ours: TransformerEncoder, num_heads: int, dropout: float) -> None:
        super().__init__()
        layers = [layer for layer in ours.layers if isinstance(layer, EncoderLayer)]
        dim = layers[0].linear1.in_features
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, len(layers), enable_nested_tensor=False)
        for theirs, own in zip(self.encoder.layers, layers, strict=True):
            weights = {f"self_attn.in_proj_{kind}": getattr(own.attention.qkv, kind) for kind in ("weight", "bias")}
            weights |= {f"self_attn.out_proj.{kind}": getattr(own.attention.out, kind) for kind in ("weight", "bias")}
            for part in ("linear1", "linear2", "norm1", "norm2"):
                weights |= {f"{part}.{kind}": getattr(getattr(own, part), kind) for kind in ("weight", "bias")}
            theirs.load_state_dict(weights)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask == 0)


class PlainStep:
    """A run's E-UPMiM, copied, and its training step."""

    def __init__(self, run: Run) -> None:
        """Raises UserError for a configuration that the authors' code does not have."""
        model, objective, config = run.model, run.objective, run.config
        if not (isinstance(model, EUPMiM) and isinstance(model.extractor, ARMIENet)):
            raise UserError("--plain: is the authors' E-UPMiM: use model.name=eupmim, model.extractor=transformer")
        other = [f"objective.{key}" for key in _other(config.objective, "name", "num_negatives")]
        other += [f"model.{key}" for key in _other(model.config, *SIZES, "dropout", "attention_dropout")]
        other += [f"train.{key}" for key in _other(config.train, *FREE_OF_TRAINING)]
        if not isinstance(objective, SampledSoftmax) or other or run.world.size > 1:
            told = f"without {', '.join(other)}" if other else "with objective.name=sampled_softmax on one rank"
            raise UserError(f"--plain: is the authors' step: measure it {told}")
        self.model = copy.deepcopy(model)
        self.extractor = self.model.extractor
        assert isinstance(self.extractor.encoder, TransformerEncoder), "its extractor is the usual one"
        self.extractor.encoder = TorchEncoder(self.extractor.encoder, model.config.num_heads, model.config.dropout)
        for module in list(self.model.modules()):
            for name, part in module.named_children():
                if isinstance(part, Dropout):
                    setattr(module, name, nn.Dropout(part.p))
        self.tables = nn.ModuleDict()
        for name in (ITEM_TABLE, USER_TABLE):
            shard = run.tables.shards[name]
            rows = shard.weight[shard.ids().argsort()].detach().clone()
            self.tables[name] = nn.Embedding.from_pretrained(rows, freeze=False)
        self.parameters = [*self.model.parameters(), *self.tables.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=config.train.learning_rate)
        self.l2 = config.train.l2
        self.model.train()

    def loss(self, batch: Batch, candidates: Candidates) -> Tensor:
        """The mean of the cross entropies, and the weighted sum of the adjacency."""
        assert isinstance(batch, UserBatch)
        assert isinstance(candidates, Sampled)
        model, items = self.model, self.tables[ITEM_TABLE]
        mask = (batch.history != NO_ROW).float()
        history = items(batch.history.clamp(min=0)) * mask[..., None]
        assert model.profile is not None
        assert model.attention is not None
        profile = model.profile(self.tables[USER_TABLE](batch.user.clamp(min=0)), batch.attributes)
        adjacency = user_aware_adjacency(history, profile, mask)
        levels = propagate(history, adjacency, model.config.num_levels)
        interests = torch.stack([self.extractor(level, mask) for level in levels]).mean(0)
        queries = model.attention(profile, interests)
        scores = (items(candidates.own) @ queries.transpose(1, 2)).amax(2)  # [B, 1 + N]
        entropy = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
        return entropy + model.config.adjacency_l1 * adjacency.sum()

    def step(self, batch: Batch, candidates: Candidates) -> None:
        self.adam.zero_grad()
        squares = torch.stack([parameter.square().sum() for parameter in self.parameters]).sum()
        (self.loss(batch, candidates) + self.l2 / 2 * squares).backward()
        self.adam.step()
