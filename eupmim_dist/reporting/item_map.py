"""Items and the interests of example users in two dimensions.

n items, K interests, D dim. Vectors are brought to unit length first: of what is left, items for one taste are near to
each other however popular they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eupmim_dist.evaluation.recommend import ItemLabels
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.reporting.charts import scale_of
from eupmim_dist.reporting.examples import Example, Served, label_of
from eupmim_dist.train.state import Assembled

MOST_ITEMS = 1500
SIZE, EDGE = 420, 16
"""Of the map, and of the room about it, in the units of its viewBox."""
DISC = 20
"""The width of an interest's."""

Place = tuple[float, float]


@dataclass(frozen=True)
class Marked:
    at: Place
    label: str
    hit: bool = False
    """Recommended, and taken afterwards."""


@dataclass(frozen=True)
class OnMap:
    """An example user."""

    history: list[Marked]
    recommended: list[Marked]
    interests: list[Marked]


@dataclass(frozen=True)
class ItemMap:
    run: str
    items: list[Place]
    users: list[OnMap]
    explained: float
    """The part of the items' variance that the two dimensions show."""


def map_of(
    name: str,
    trained: Assembled,
    popular: np.ndarray,
    examples: Sequence[Example],
    served: Sequence[Served],
    labels: ItemLabels,
) -> ItemMap | None:
    """The map of one run; None where there are too few items to make one of."""
    if len(popular) < 3:
        return None
    vectors = unit(vectors_of(trained, popular))
    mean = vectors.mean(0)
    axes, explained = principal_axes(vectors - mean)

    def placed(some: np.ndarray) -> np.ndarray:
        return (unit(some) - mean) @ axes

    places = placed(vectors)
    of_users = []
    for example, lists in zip(examples, served, strict=True):
        parts = (vectors_of(trained, np.array(ids, dtype=np.int64)) for ids in (example.recent_ids, lists.ids))
        of_users.append([placed(part) for part in (*parts, lists.interests.astype(np.float64))])
    everything = np.concatenate([places, *(part for parts in of_users for part in parts)])
    room = (float(np.ptp(everything, axis=0).max()) or 1.0) / 2  # one scale for both directions
    middle = (everything.min(0) + everything.max(0)) / 2
    across, up = (
        scale_of([middle[axis] - room, middle[axis] + room], *ends, margin=0.0)
        for axis, ends in enumerate([(EDGE, SIZE - EDGE), (SIZE - EDGE, EDGE)])
    )

    def points(some: np.ndarray) -> list[Place]:
        return [(across.at(x), up.at(y)) for x, y in some.tolist()]

    def of_user(example: Example, lists: Served, parts: Sequence[np.ndarray]) -> OnMap:
        history, recommended, interests = map(points, parts)
        return OnMap(
            [Marked(at, label_of(labels, item)) for at, item in zip(history, example.recent_ids, strict=True)],
            [Marked(at, item.label, item.hit) for at, item in zip(recommended, lists.best, strict=True)],
            [Marked(at, str(k)) for k, at in enumerate(apart(interests), start=1)],
        )

    users = [of_user(*one) for one in zip(examples, served, of_users, strict=True)]
    return ItemMap(name, points(places), users, explained)


def apart(places: Sequence[Place]) -> list[Place]:
    """Discs that would hide each other beside each other, towards the middle of the map."""
    found: list[Place] = []
    for x, y in places:
        step = DISC if x < SIZE / 2 else -DISC
        while any(abs(x - other[0]) < DISC and abs(y - other[1]) < DISC for other in found):
            x += step
        found.append((round(x, 1), y))
    return found


def vectors_of(trained: Assembled, items: np.ndarray) -> np.ndarray:
    """Float64 [n, D] of items that one rank holds."""
    part = trained.tables.scored(ITEM_TABLE)
    places = part.places[torch.searchsorted(part.ids, torch.from_numpy(items).to(part.ids.device))]
    vectors: np.ndarray = part.rows().detach()[places].double().cpu().numpy()
    return vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    """At length 1, but for those without a direction."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def principal_axes(centred: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions of the largest variance of float64 [n, D], as [D, 2], and its share in all of it.

    Each axis has its largest entry positive, so that the same vectors always give the same map.
    """
    variances, directions = np.linalg.eigh(centred.T @ centred)
    best = directions[:, ::-1][:, :2]
    best = best * np.where(np.take_along_axis(best, np.abs(best).argmax(0)[None], 0) < 0, -1.0, 1.0)
    if best.shape[1] < 2:
        best = np.pad(best, ((0, 0), (0, 1)))
    total = float(variances.sum())
    return best, float(variances[::-1][:2].sum()) / total if total > 0 else 0.0
