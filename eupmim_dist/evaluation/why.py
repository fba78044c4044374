"""Which of a user's own items speak for a recommendation, and which lie near an interest.

b users, L history, N items each, K interests, D dim, M reasons.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, UserBatch, last_position
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.evaluation.scorers.interests import InterestScorer
from eupmim_dist.evaluation.scorers.interface import users_at_a_time
from eupmim_dist.evaluation.topn import NO_ITEM
from eupmim_dist.models.interface import ITEM_TABLE

NUM_REASONS = 3
NOISE = 1e-5
"""Of a score: a smaller change may be rounding, as a batch of another size rounds otherwise."""


@dataclass(frozen=True)
class Reasons:
    """Items of a history, the weightiest first."""

    items: Tensor  # int64 [..., M], NO_ITEM past the end
    weights: Tensor  # float32 [..., M]

    def cpu(self) -> "Reasons":
        return Reasons(self.items.cpu(), self.weights.cpu())


def left_out(scorer: InterestScorer, batch: UserBatch, ranked: Tensor, scores: Tensor) -> Reasons:
    """By how much the score of each ranked item falls when an item is left out of the history that the model reads.

    Deletion, as counterfactual explanations have it (Ghazimatin et al., "PRINCE", WSDM 2020), of one item at a time and
    all of its occurrences: exact, and alike for every model. It takes L passes for each user. Only items whose absence
    lowers the score count. ranked int64 [b, N] and their scores [b, N] -> [b, N, M]; collective.
    """
    length = batch.history.shape[1]
    together = max(1, users_at_a_time(scorer.world.device) // length)
    falls = [
        _falls(scorer, batch.samples(first, first + together), ranked[first : first + together])
        for first in range(0, max(len(batch), 1), together)
    ]
    fall = scores[..., None] - torch.cat(falls).to(scores.device)  # [b, N, L]
    history = batch.history.to(scores.device)
    repeated = (history[:, :, None] == history[:, None]).tril(-1).any(-1)
    counted = (fall > NOISE * scores.abs().clamp(min=1)[..., None]) & (~repeated & (history != NO_ROW))[:, None]
    return _best(history[:, None].expand_as(fall), fall.masked_fill(~counted, -torch.inf))


def _falls(scorer: InterestScorer, batch: UserBatch, ranked: Tensor) -> Tensor:
    """The scores of ranked items [b, N] without each item of the history: [b, N, L]."""
    num, length = batch.history.shape
    history = batch.history[:, None].expand(-1, length, -1)  # [b, L left out, L]
    gone = (history == batch.history[..., None]) | (history == NO_ROW)
    kept = gone.long().argsort(dim=-1, stable=True)  # what is left moves up
    history = history.masked_fill(gone, NO_ROW).gather(-1, kept).flatten(0, 1)
    without = replace(
        batch,
        num_predictions=len(history),
        capacity=len(history),
        user=batch.user.repeat_interleave(length),
        attributes=batch.attributes.repeat_interleave(length, 0),
        history=history,
        position=last_position(history),
    )
    nobody = Ragged(batch.user.new_zeros(0), batch.user.new_zeros(0))
    interests = scorer.query(HeldOut(without.user.numpy(), lambda: without, nobody, nobody))  # [b * L, K, D]
    interests = interests.view(num, length, *interests.shape[1:])
    found = interests.flatten(1, 2) @ _rows(scorer, ranked).transpose(1, 2)  # [b, L * K, N]
    return found.view(num, length, interests.shape[2], ranked.shape[1]).amax(2).transpose(1, 2)


def nearest(scorer: InterestScorer, batch: UserBatch) -> Reasons:
    """Of the history that the model reads, the items with the largest dot products with each interest of the last
    query: [b, K, M]; collective."""
    rows = _rows(scorer, batch.history)  # [b, L, D]
    near = scorer.interests @ rows.transpose(1, 2)  # [b, K, L]
    history = batch.history.to(near.device)
    repeated = (history[:, :, None] == history[:, None]).tril(-1).any(-1)
    near = near.masked_fill((repeated | (history == NO_ROW))[:, None], -torch.inf)
    return _best(history[:, None].expand_as(near), near)


def _rows(scorer: InterestScorer, items: Tensor) -> Tensor:
    return scorer.tables.lookup({"items": (ITEM_TABLE, items.clamp(min=0))}).rows[0]["items"]


def _best(items: Tensor, weights: Tensor) -> Reasons:
    """The NUM_REASONS with the largest weights of the last dimension, those of minus infinity not."""
    weights, places = weights.sort(dim=-1, descending=True, stable=True)
    weights, places = weights[..., :NUM_REASONS], places[..., :NUM_REASONS]
    return Reasons(items.gather(-1, places).masked_fill(weights == -torch.inf, NO_ITEM), weights)
