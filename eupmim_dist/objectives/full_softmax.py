"""Softmax cross entropy of the target against the whole catalogue, each rank scoring the rows it holds.

Q queries of this rank, R of all ranks, N windows of P of these, K interests, D dim. No rank holds scores of all items:
beyond the queries of all ranks and the gradients of both those and its own rows it needs a few tiles (log_total.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ObjectiveSection
from eupmim_dist.data.batch import UserBatch
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import ITEM_TABLE, Encoded, Model, Rows, Uses
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective
from eupmim_dist.objectives.log_total import log_total, tile_of
from eupmim_dist.objectives.readout import BY_TARGET, Readout, narrowed, readout_of, scores_of, window_scores
from eupmim_dist.tasks.interface import Task


class FullSoftmaxConfig(ObjectiveSection):
    name: Literal["full_softmax"] = "full_softmax"
    """What is minimised: sampled_softmax or full_softmax."""
    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it."""
    readout: Readout = "model"
    """How scores come out of K interests: hard, mean, logsumexp, target or attention; model: as its paper trains it."""
    discount: float = Field(0.0, ge=0, lt=1)
    """Above 0 a place of a window is trained on all items after it: the n-th after the next one with weight
    discount^n, the weights of a place being 1 in all. 0: on the next one alone."""


@dataclass(frozen=True)
class Targets(Candidates):
    target: Tensor  # int64 [Q]
    place: Tensor | None = None  # int64 [Q], in the window, where later targets count
    look_up: bool = False

    def uses(self) -> Uses:
        return {"target": (ITEM_TABLE, self.target)} if self.look_up else {}


class FullSoftmax(Objective):
    """Exact cross entropy over all items (padding left out). Every row has a gradient in every step, so the lazy table
    optimizers move all rows of the item table too.

    With a discount the targets of a place are a distribution over what its user took later, as in the dense all action
    loss of PinnerFormer (KDD 2022): lists are judged by all that a user takes, of which the next item is one.
    """

    whole_catalogue = True

    def __init__(self, config: FullSoftmaxConfig, model: Model, task: Task) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.readout = readout_of(model, config.readout)
        self.discount = config.discount
        if self.discount and not task.one_window:
            raise UserError(
                f"objective.discount: {self.discount}: needs several places of a window, which task every_position has "
                "with a causal model (model.extractor causal, sasrec, gru4rec)"
            )

    def draw(self, batch: UserBatch, step: int) -> Targets:
        assert batch.target is not None, "a training batch has targets"
        place = batch.position.flatten() if self.discount else None
        return Targets(batch.target.flatten(), place, look_up=self.readout in BY_TARGET)

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
        asked, counts = _asked(targets, batch.num_predictions)
        some = queries.index_select(0, asked)
        if candidates.place is None:
            row, here = catalogue.rows_of(targets[asked])
            score = torch.where(here, self._scores(some, row[:, None])[:, 0], 0.0)
        else:
            places = catalogue.gather(candidates.place, capacity)
            score = self._later_scores(queries, targets, places, batch.target.shape[1], catalogue)[asked]
        score = catalogue.sum(score)
        total = catalogue.logsumexp(self._log_total(some, catalogue))
        loss = torch.where(counts, total - score, 0.0)
        losses = catalogue.own(total.new_zeros(len(targets)).index_add(0, asked, loss), number)
        share = losses.sum() / batch.num_predictions
        return {"cross_entropy": share, **encoded.penalties}

    def _later_scores(
        self, queries: Tensor, targets: Tensor, places: Tensor, num_places: int, catalogue: Catalogue
    ) -> Tensor:
        """What of the mean score of a query's targets, the next item and the later ones of its window, this rank's
        rows make: queries [R, K, D], targets and places [R] -> [R]."""
        row, here = catalogue.rows_of(targets)
        scores = window_scores(
            queries.view(-1, num_places, *queries.shape[1:]),
            row.view(-1, num_places, row.shape[1]),
            self.readout,
            self.temperature,
        )
        target, place = targets.view(-1, 1, num_places), places.view(-1, num_places)
        distance = (place[:, None, :] - place[:, :, None]).to(scores.dtype)
        weight = torch.where((distance >= 0) & (target > 0), self.discount ** distance.clamp(min=0), 0.0)
        weight = weight / weight.sum(2, keepdim=True).clamp(min=1.0)  # a place that predicts has its own, of weight 1
        return (weight * scores * here.view(-1, 1, num_places)).sum(2).flatten()

    def _log_total(self, queries: Tensor, catalogue: Catalogue) -> Tensor:
        """Over this rank's items, [R]; minus infinity where it has none."""
        _, items = tile_of(queries)
        return log_total(queries, catalogue.blocks(items), self.readout, self.temperature)

    def _scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        return scores_of(queries, rows, self.readout, self.temperature)


def _asked(targets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Of targets [R] the indices of those that are one, and which of these count. NO_ROW predicts nothing and 0 fills
    up a rank's queries: as they may be half of all, they are not scored. Where fewer predict than `_room` has, index 0
    fills up and does not count."""
    predicts = targets > 0
    size = _room(predicts, most)
    asked = torch.nonzero_static(predicts, size=size, fill_value=0).flatten()
    return asked, torch.arange(size, device=targets.device) < predicts.sum()


def _room(predicts: Tensor, most: int) -> int:
    """How many queries are scored. How many predict something a GPU's host could learn only by waiting for it, so there
    it is as many as can be: `most`, of the global batch, of which a micro-batch is a part."""
    return int(predicts.sum()) if predicts.device.type == "cpu" else min(most, len(predicts))


OBJECTIVE = Registered(FullSoftmaxConfig, FullSoftmax)
