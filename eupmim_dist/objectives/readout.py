"""How scores are read out of the K interests of a query.

The model's own (`Model.readout`), or by configuration:

hard        each candidate by the interest that scores it highest (E-UPMiM, "Loss")
mean        by the mean over the interests
logsumexp   by the soft maximum over the interests
target      every candidate by the interest that scores the target highest (ComiRec, KDD 2020)
attention   every candidate by the sum of the interests, weighted by a softmax of their scores of the target (MIND's
            label-aware attention, CIKM 2019, with power 1)

Q queries, C candidates of each, K interests, D dim. The first three also rank; the others need a target to train.
"""

from typing import Literal

import torch
from torch import Tensor

from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Model

Readout = Literal["model", "hard", "mean", "logsumexp", "target", "attention"]
READOUTS = ("hard", "mean", "logsumexp", "target", "attention")
BY_TARGET = ("target", "attention")
"""Read-outs that have chosen a single vector before a candidate is scored, and need the target's row for it."""


def readout_of(model: Model, asked: Readout) -> str:
    """The one that is asked for, or the model's own. Raises UserError for a model whose own there is not."""
    found = model.readout if asked == "model" else asked
    if found not in READOUTS:
        raise UserError(
            f"objective.readout: {type(model).__name__} is read out by {found!r}, which there is not; choose from "
            f"{', '.join(READOUTS)}"
        )
    return found


def narrowed(queries: Tensor, target: Tensor | None, readout: str) -> Tensor:
    """Queries [Q, K, D] -> [Q, K', D], with K' = 1 wherever one vector does for all candidates.

    `target` [Q, D], the targets' rows, is needed by the read-outs BY_TARGET.
    """
    if queries.shape[1] == 1:
        return queries
    if readout == "mean":  # a dot product is linear
        return queries.mean(1, keepdim=True)
    if readout in BY_TARGET:
        assert target is not None, "this read-out goes by the target"
        match = (queries @ target[..., None])[..., 0]  # [Q, K]
        if readout == "target":
            return queries[torch.arange(len(queries), device=queries.device), match.argmax(1)][:, None]
        return (match.softmax(1)[..., None] * queries).sum(1, keepdim=True)
    return queries


def window_scores(queries: Tensor, rows: Tensor, readout: str, temperature: float = 1.0) -> Tensor:
    """Scores [N, P, P] by the P narrowed queries of each of N windows, [N, P, K, D], of its P targets, [N, P, D]."""
    windows, places, interests, _ = queries.shape
    of_interests = (queries.flatten(1, 2) @ rows.mT).view(windows, places, interests, places)
    scores = of_interests.logsumexp(2) if readout == "logsumexp" and interests > 1 else of_interests.amax(2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores if temperature == 1 else scores / temperature


def scores_of(queries: Tensor, candidates: Tensor, readout: str, temperature: float = 1.0) -> Tensor:
    """Scores [Q, C] of candidates [Q, C, D], each query's own, or [C, D], shared by all, for narrowed queries; divided
    by the temperature, in float32 at least."""
    if queries.shape[1] > 1:
        of_interests = queries @ candidates.transpose(-1, -2)  # [Q, K, C]
        scores = of_interests.logsumexp(1) if readout == "logsumexp" else of_interests.amax(1)
    elif candidates.dim() == 2:
        scores = queries[:, 0] @ candidates.T
    else:
        scores = (candidates @ queries[:, 0, :, None])[..., 0]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores if temperature == 1 else scores / temperature
