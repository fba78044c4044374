"""Softmax cross entropy of the target against sampled candidates.

Q predictions of this rank, N negatives, G predictions of the global batch, K interests, D dim.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ObjectiveSection
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.data.counter import random_integers, stream_key
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import ITEM_TABLE, Encoded, Model, Rows, Uses
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective
from eupmim_dist.objectives.negatives import draw_negatives
from eupmim_dist.objectives.readout import BY_TARGET, Readout, narrowed, readout_of, scores_of
from eupmim_dist.tasks.interface import Task


class SampledSoftmaxConfig(ObjectiveSection):
    name: Literal["sampled_softmax"] = "sampled_softmax"
    """What is minimised: sampled_softmax or full_softmax."""
    candidates: Literal["uniform", "in_batch", "mixed"] = "uniform"
    """`uniform`: num_negatives per target; `in_batch`: the global batch's other targets; `mixed`: these and
    num_negatives uniform ones that the batch shares."""
    num_negatives: int = Field(10, ge=1)
    """N: negatives drawn uniformly, per target or, under mixed, for the whole global batch; none under in_batch."""
    log_q: bool = True
    """in_batch, mixed: subtract the log of how likely a candidate is drawn, or popular items are punished."""
    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it."""
    readout: Readout = "model"
    """How scores come out of K interests: hard, mean, logsumexp, target or attention; model: as its paper trains it."""
    hard_negatives: float = Field(0.0, ge=0)
    """beta of REMI: negatives weigh as exp(beta * score), so that hard ones count more; 0: all alike."""
    routing_regulariser: float = Field(0.0, ge=0)
    """Weight of REMI's penalty on interests that take a few places of the history only; 0: none."""

    @model_validator(mode="after")
    def _served(self) -> "SampledSoftmaxConfig":
        default = SampledSoftmaxConfig.model_fields["num_negatives"].default
        if self.candidates == "in_batch" and self.num_negatives != default:
            raise ValueError(f"num_negatives is served by candidates uniform and mixed, not by in_batch; set {default}")
        if self.candidates == "uniform" and not self.log_q:
            raise ValueError("log_q false is served by candidates in_batch and mixed, uniform has none; set true")
        return self


@dataclass(frozen=True)
class Sampled(Candidates):
    """`own` holds ids of each prediction, the target first; `shared` those that all predictions share."""

    own: Tensor  # int64 [Q, 1 + N], or [Q, 1]
    shared: Tensor | None = None  # int64 [G] or [G + N]
    own_log_q: Tensor | None = None  # float32, of the same shapes; None without correction
    shared_log_q: Tensor | None = None

    def uses(self) -> Uses:
        found = {"candidates": (ITEM_TABLE, self.own)}
        return found if self.shared is None else {**found, "shared candidates": (ITEM_TABLE, self.shared)}


class SampledSoftmax(Objective):
    """Correction by log q: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"
    (RecSys 2019). Mixed candidates: Yang et al., "Mixed Negative Sampling for Learning Two-tower Neural Networks in
    Recommendations" (WWW 2020). Hard negatives and routing regulariser: REMI (Xie et al., "Rethinking Multi-Interest
    Learning for Candidate Matching in Recommender Systems", RecSys 2023).
    """

    def __init__(self, config: SampledSoftmaxConfig, model: Model, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.readout = readout_of(model, config.readout)
        self.num_rows = task.store.num_item_rows
        if config.routing_regulariser and not model.tells_routing:
            raise UserError(
                "objective.routing_regulariser: this model does not tell how it routes a history to its interests; "
                "leave it out, or choose a model that does, such as comirec_sa"
            )
        if config.candidates == "mixed" and config.num_negatives > self.num_rows - 1:
            raise UserError(
                f"objective.num_negatives: {config.num_negatives} are more than the {self.num_rows - 1} items; use "
                "fewer, or objective.name=full_softmax, which takes every item"
            )
        if config.candidates == "uniform" and config.num_negatives > (room := self.num_rows - task.history_length - 1):
            raise UserError(
                f"objective.num_negatives: {config.num_negatives} distinct negatives cannot be drawn from "
                f"{self.num_rows} item rows; use at most {max(room, 0)}"
            )

    def draw(self, batch: UserBatch, step: int) -> Sampled:
        assert batch.target is not None, "a training batch has targets"
        assert batch.counter is not None, "a training batch has counters"
        config, target = self.config, batch.target.view(-1, 1)
        if config.candidates == "uniform":
            per_sample = batch.target.shape[1]
            history = batch.history.repeat_interleave(per_sample, 0) if per_sample > 1 else batch.history
            negatives = draw_negatives(
                self.task.seed,
                batch.counter.view(-1),
                torch.cat([history, target], dim=1),
                config.num_negatives,
                self.num_rows,
            )
            negatives = torch.where(target == NO_ROW, NO_ROW, negatives)
            return Sampled(torch.cat([target, negatives], dim=1))
        shared = self.task.targets(step)
        if config.candidates == "mixed":
            counter = step * config.num_negatives + torch.arange(config.num_negatives)
            drawn = random_integers(stream_key(self.task.seed, "shared negatives"), counter, self.num_rows - 1) + 1
            shared = torch.cat([shared, drawn])
        if not config.log_q:
            return Sampled(target, shared)
        return Sampled(target, shared, self._log_q(target, batch), self._log_q(shared, batch))

    def _log_q(self, ids: Tensor, batch: UserBatch) -> Tensor:
        """The log of how likely one of the shared candidates is each of some items; 0 for no row."""
        share = self.task.target_share[ids.clamp(min=0)]
        number, drawn = batch.num_predictions, self.config.num_negatives if self.config.candidates == "mixed" else 0
        q = (number * share + drawn / (self.num_rows - 1)) / (number + drawn)
        return q.masked_fill(ids == NO_ROW, 1.0).log().float()

    def forward(
        self, encoded: Encoded, rows: Rows, batch: UserBatch, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        assert isinstance(candidates, Sampled)
        own = rows["candidates"]
        queries = narrowed(encoded.queries, own[:, 0] if self.readout in BY_TARGET else None, self.readout)
        scores, log_weights = self._scores(queries, own), None
        if candidates.shared is not None:
            scores = torch.cat([scores, self._scores(queries, rows["shared candidates"])], dim=1)
            log_weights = _log_weights(candidates).to(scores.dtype)
        if self.config.hard_negatives:
            scores = harder(scores, log_weights, self.config.hard_negatives)
        elif log_weights is not None:
            scores = scores + log_weights
        nothing = candidates.own[:, 0] == NO_ROW
        label = torch.where(nothing, IGNORED, 0)
        share = F.cross_entropy(scores, label, reduction="sum", ignore_index=IGNORED) / batch.num_predictions
        parts = {"cross_entropy": share, **encoded.penalties}
        if self.config.routing_regulariser:
            parts["routing"] = self.config.routing_regulariser * self._routing(encoded, nothing, batch)
        return parts

    def _scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        return scores_of(queries, rows, self.readout, self.config.temperature)

    def _routing(self, encoded: Encoded, nothing: Tensor, batch: UserBatch) -> Tensor:
        assert encoded.routing is not None, "this model says that it tells its routing"
        # The squared variance of each interest's weights over the history (REMI: the diagonal of their covariance).
        centred = encoded.routing - encoded.routing.mean(-1, keepdim=True)
        variances = centred.square().sum(-1)
        return (variances.square().sum(-1) * ~nothing).sum() / batch.num_predictions


IGNORED = -100


def _log_weights(candidates: Sampled) -> Tensor:
    """[Q, 1 + G], the log of how much the target and each shared candidate count; minus infinity for those that are no
    negatives of a prediction: its target itself, and no row."""
    own, shared = candidates.own, candidates.shared
    assert shared is not None
    found = torch.zeros(len(own), 1 + len(shared), device=own.device)
    if candidates.own_log_q is not None and candidates.shared_log_q is not None:
        found = torch.cat([-candidates.own_log_q, -candidates.shared_log_q.expand(len(own), -1)], dim=1)
    found[:, 1:].masked_fill_((shared == own) | (shared == NO_ROW), -torch.inf)
    return found


def harder(scores: Tensor, log_weights: Tensor | None, beta: float) -> Tensor:
    """[Q, 1 + N], the target first -> [Q, 2]: the target's score, and that of all negatives, each weighted by
    exp(beta * its score) over the mean of these weights, under one logarithm (REMI).

    `log_weights` [Q, 1 + N] are what the scores are corrected by. How hard a negative is, its own score says; a mean
    over the negatives goes by what each of them stands for.
    """
    counts = torch.zeros_like(scores) if log_weights is None else log_weights
    none = counts[:, 1:].isneginf().all(1, keepdim=True)  # a logarithm of nothing would have no gradient
    negatives, counted = scores[:, 1:], counts[:, 1:].masked_fill(none, 0.0)
    weighted = counted + beta * negatives
    mean = weighted.logsumexp(1, keepdim=True) - counted.logsumexp(1, keepdim=True)
    together = (weighted + negatives).logsumexp(1, keepdim=True) - mean
    return torch.cat([scores[:, :1] + counts[:, :1], together.masked_fill(none, -torch.inf)], dim=1)


OBJECTIVE = Registered(SampledSoftmaxConfig, SampledSoftmax)
