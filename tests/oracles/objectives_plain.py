"""The objectives, one prediction and one candidate at a time, from their docstrings and the papers that these name.

An oracle: no batching, no helper shared with the package. It works on tensors of whatever float type they have and is
differentiable. A prediction is K query vectors; an item is a row of the item table; -1 stands for no item.
Q predictions of this call, n of the whole batch, G shared candidates, N own ones, R item rows, K interests, L history,
D dim, T temperature.
"""

import torch
from torch import Tensor

NOTHING = -1


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def log_sum_exp(values: list[Tensor]) -> Tensor:
    return torch.stack([value.exp() for value in values]).sum().log()


def score(query: Tensor, row: Tensor, target: Tensor, readout: str) -> Tensor:
    """Of a candidate's row [D] for a query [K, D]; the target's row [D] has a say in two of the read-outs."""
    dots = [dot(vector, row) for vector in query]
    matches = [dot(vector, target) for vector in query]
    if readout == "hard":
        return dots[max(range(len(dots)), key=lambda k: dots[k].item())]
    if readout == "mean":
        return torch.stack(dots).sum() / len(dots)
    if readout == "logsumexp":
        return log_sum_exp(dots)
    if readout == "target":
        return dots[max(range(len(dots)), key=lambda k: matches[k].item())]
    assert readout == "attention"
    weights = [(match - log_sum_exp(matches)).exp() for match in matches]
    return torch.stack([weight * one for weight, one in zip(weights, dots, strict=True)]).sum()


def plain_full_softmax(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    num_predictions: int,
    *,
    readout: str,
    temperature: float = 1.0,
    discount: float = 0.0,
    places: Tensor | None = None,
) -> Tensor:
    """queries [Q, K, D], items [R, D], targets [Q]: sum of -log softmax over the items 1..R-1, divided by n.

    With places [N, P], Q = N * P, each has a mean over the targets of its window from its own on, of weight
    discount^(places later).
    """
    total = torch.zeros((), dtype=items.dtype)
    for number, (query, target) in enumerate(zip(queries, targets.tolist(), strict=True)):
        if target == NOTHING:
            continue
        scores = [score(query, items[item], items[target], readout) / temperature for item in range(1, len(items))]
        weights = {number: 1.0}
        if discount:
            assert places is not None
            window = number // places.shape[1]
            for other in range(window * places.shape[1], (window + 1) * places.shape[1]):
                later = int(places.flatten()[other] - places.flatten()[number])
                if later > 0 and int(targets[other]) != NOTHING:
                    weights[other] = discount**later
        mean = sum(weight * scores[int(targets[other]) - 1] for other, weight in weights.items()) / sum(
            weights.values()
        )
        total = total + log_sum_exp(scores) - mean
    return total / num_predictions


def plain_sampled_softmax(
    queries: Tensor,
    items: Tensor,
    own: Tensor,
    shared: list[int],
    num_predictions: int,
    *,
    readout: str,
    temperature: float = 1.0,
    hard_negatives: float = 0.0,
    q: dict[int, float] | None = None,
) -> Tensor:
    """own [Q, 1 + N], the target first; `q`: how likely each item is drawn, where that is to be corrected.

    Of the shared candidates, -1 and the prediction's own target do not count. A candidate stands for 1 / q items of the
    catalogue, and so it counts; the target as well (Yi et al., 2019). Hard negatives: a negative of score s counts
    exp(beta * s) / m times as much, m being the mean of these factors over what the negatives stand for.
    """
    total = torch.zeros((), dtype=items.dtype)
    for query, (target, *negatives) in zip(queries, own.tolist(), strict=True):
        if target == NOTHING:
            continue
        drawn = negatives + [item for item in shared if item not in (NOTHING, target)]
        scores = [score(query, items[item], items[target], readout) / temperature for item in drawn]
        counts = [1.0 if q is None else 1.0 / q[item] for item in drawn]
        factors = [(hard_negatives * s).exp() for s in scores]
        positive = (score(query, items[target], items[target], readout) / temperature).exp()
        positive = positive if q is None else positive / q[target]
        negative = torch.zeros((), dtype=items.dtype)
        if drawn:
            mean = sum(c * f for c, f in zip(counts, factors, strict=True)) / sum(counts)
            for s, c, f in zip(scores, counts, factors, strict=True):
                negative = negative + c * f / mean * s.exp()
        total = total - (positive / (positive + negative)).log()
    return total / num_predictions


def plain_q(item: int, counts: list[float], *, batch_size: int, num_drawn: int = 0) -> float:
    """Share of an item among `batch_size` candidates drawn as often as training meets them (`counts`, by item) and
    `num_drawn` drawn evenly from all items but the padding."""
    popular = counts[item] / sum(counts)
    return (batch_size * popular + num_drawn / (len(counts) - 1)) / (batch_size + num_drawn)


def plain_routing(routing: Tensor, targets: Tensor, num_predictions: int) -> Tensor:
    """routing [Q, K, L] -> the sum over predictions and interests of the squared spread of an interest's weights over
    the history (the diagonal of A's covariance, not divided by L), divided by n."""
    total = torch.zeros((), dtype=routing.dtype)
    for of_prediction, target in zip(routing, targets.tolist(), strict=True):
        if target == NOTHING:
            continue
        for weights in of_prediction:
            mean = sum(weights) / len(weights)
            total = total + sum((weight - mean) ** 2 for weight in weights) ** 2
    return total / num_predictions
