"""Softmax cross entropy of the target against the whole catalogue, each rank scoring the rows it holds.

Q queries of this rank, R of all ranks, K interests, D dim. No rank holds scores of all items: beyond the queries of all
ranks and the gradients of both those and its own rows it needs a few tiles (log_total.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ObjectiveSection
from eupmim_dist.data.batch import UserBatch
from eupmim_dist.models.interface import ITEM_TABLE, Encoded, Model, Rows, Uses
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective
from eupmim_dist.objectives.log_total import log_total, tile_of
from eupmim_dist.objectives.readout import BY_TARGET, Readout, narrowed, readout_of, scores_of
from eupmim_dist.tasks.interface import Task


class FullSoftmaxConfig(ObjectiveSection):
    name: Literal["full_softmax"] = "full_softmax"
    """What is minimised: sampled_softmax or full_softmax."""
    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it."""
    readout: Readout = "model"
    """How scores come out of K interests: hard, mean, logsumexp, target or attention; model: as its paper trains it."""


@dataclass(frozen=True)
class Targets(Candidates):
    target: Tensor  # int64 [Q]
    look_up: bool = False

    def uses(self) -> Uses:
        return {"target": (ITEM_TABLE, self.target)} if self.look_up else {}


class FullSoftmax(Objective):
    """Exact cross entropy over all items (padding left out). Every row has a gradient in every step, so the lazy table
    optimizers move all rows of the item table too."""

    whole_catalogue = True

    def __init__(self, config: FullSoftmaxConfig, model: Model, task: Task) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.readout = readout_of(model, config.readout)

    def draw(self, batch: UserBatch, step: int) -> Targets:
        assert batch.target is not None, "a training batch has targets"
        return Targets(batch.target.flatten(), look_up=self.readout in BY_TARGET)

    def forward(
        self, encoded: Encoded, rows: Rows, batch: UserBatch, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        assert isinstance(candidates, Targets)
        assert catalogue is not None
        assert batch.target is not None
        capacity, number = batch.capacity * batch.target.shape[1], len(encoded.queries)
        queries = catalogue.gather(narrowed(encoded.queries, rows.get("target"), self.readout), capacity)
        # Their gradients are summed over the blocks: in bfloat16 a sum of some hundreds would not grow any further.
        queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
        targets = catalogue.gather(candidates.target, capacity)
        # NO_ROW predicts nothing and 0 fills up a rank's queries: they may be half of all, and are not scored.
        asked = targets > 0
        queries, targets = queries[asked], targets[asked]
        row, here = catalogue.rows_of(targets)
        score = catalogue.sum(torch.where(here, self._scores(queries, row[:, None])[:, 0], 0.0))
        total = catalogue.logsumexp(self._log_total(queries, catalogue))
        losses = catalogue.own(total.new_zeros(len(asked)).masked_scatter(asked, total - score), number)
        share = losses.sum() / batch.num_predictions
        return {"cross_entropy": share, **encoded.penalties}

    def _log_total(self, queries: Tensor, catalogue: Catalogue) -> Tensor:
        """Over this rank's items, [R]; minus infinity where it has none."""
        _, items = tile_of(queries)
        return log_total(queries, catalogue.blocks(items), self.readout, self.temperature)

    def _scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        return scores_of(queries, rows, self.readout, self.temperature)


OBJECTIVE = Registered(FullSoftmaxConfig, FullSoftmax)
