"""A few users of the split, and what each run recommends them.

n example users, K interests, N items of a list, D dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eupmim_dist.data.audience import names_of
from eupmim_dist.data.heldout import HeldOut, Ragged, held_out
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.interest_lists import InterestListScorer
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.recommend import ItemLabels
from eupmim_dist.evaluation.runner import Result, excluded_items, negatives_and_target, ranking_mode, ranking_of
from eupmim_dist.evaluation.scorers.interests import InterestsConfig, InterestScorer
from eupmim_dist.evaluation.topn import NO_ITEM, top_n
from eupmim_dist.train.state import Assembled

SHOWN_HISTORY, SHOWN_TARGETS, PER_INTEREST = 10, 10, 5
MAP_HISTORY = 50
"""Of a user's last items, those on the map."""
LONGEST_LABEL = 90
"""Characters of a title."""


@dataclass(frozen=True)
class Shown:
    """An item."""

    label: str
    hit: bool
    """It is one that the user took afterwards."""
    interest: int = 0
    """1..K: the one that scores it highest."""
    place: int = 0
    """1..N in the user's list; 0 if it is not there."""


@dataclass(frozen=True)
class Example:
    """A user, whatever the model."""

    name: str
    had: int
    """Items before the cut."""
    recent: list[str]
    """The last ones, the last first."""
    recent_ids: list[int]
    """The last MAP_HISTORY of them, the last first."""
    num_targets: int
    targets: list[str]
    """The first of what came then."""


@dataclass(frozen=True)
class Served:
    """What a run has for an example user."""

    best: list[Shown]
    by_interest: list[list[Shown]]
    """None but its best list where it has one interest, or none."""
    interests: np.ndarray  # float32 [K, D]
    ids: list[int]
    """The items of `best`."""

    @property
    def hits(self) -> int:
        return sum(item.hit for item in self.best)


def chosen_users(store: InteractionStore, split: str, number: int, seed: int = 0) -> np.ndarray:
    """Users of a split, spread over the lengths of their histories, the shortest first: int64, as in the store."""
    users = store.users(split)
    cuts, _ = store.evaluation_window(users, split)
    by_length = users[np.argsort(cuts, kind="stable")]
    random = np.random.default_rng(seed)
    parts = np.array_split(by_length, min(number, len(users))) if number and len(users) else []
    return np.array([random.choice(part) for part in parts], dtype=np.int64)


def examples_of(store: InteractionStore, split: str, users: np.ndarray, labels: ItemLabels) -> list[Example]:
    """What is known of users [n]."""
    cuts, ends = store.evaluation_window(users, split)
    found = []
    for user, name, cut, end in zip(users.tolist(), names_of(store, "users", users), cuts, ends, strict=True):
        first = int(store.offsets[user])
        had = store.items[first : first + int(cut)].astype(np.int64)[::-1]
        targets = list(dict.fromkeys(store.items[first + int(cut) : first + int(end)].tolist()))
        found.append(
            Example(
                shortened(name),
                len(had),
                [label_of(labels, item) for item in had[:SHOWN_HISTORY].tolist()],
                had[:MAP_HISTORY].tolist(),
                len(targets),
                [label_of(labels, item) for item in targets[:SHOWN_TARGETS]],
            )
        )
    return found


@torch.no_grad()
def served(
    trained: Assembled, split: str, users: np.ndarray, protocol: str, num: int, labels: ItemLabels
) -> list[Served]:
    """The lists of users [n] by a model that is ranked by interests: what `evaluate` judges, and each interest's."""
    with ranking_mode(trained.model):
        store = trained.store
        cuts, ends = store.evaluation_window(users, split)
        chunk = held_out(store, users, cuts, ends, trained.task.to_rank)
        scorer = InterestScorer(InterestsConfig(), ranking_of(trained, split))
        among = PROTOCOLS[protocol].candidates == "negatives"
        candidates = negatives_and_target(chunk, store.num_item_rows) if among else None
        ranked = _ranked(trained, scorer, chunk, num, candidates)[:, 0]
        _, of_interest = scorer.served(ranked)
        own = _ranked(
            trained, InterestListScorer(InterestsConfig(), ranking_of(trained, split)), chunk, PER_INTEREST, candidates
        )
        interests = scorer.interests.float().cpu().numpy()
    targets = chunk.targets
    return [
        _served(
            ranked[n].tolist(),
            of_interest[n].tolist(),
            own[n].tolist() if trained.model.num_interests > 1 else [],
            set(targets.item[targets.user == n].tolist()),
            interests[n],
            labels,
        )
        for n in range(len(users))
    ]


def served_lists(result: Result, store: InteractionStore, users: np.ndarray, labels: ItemLabels) -> list[Served]:
    """The lists of users [n] that an evaluation with one list each was judged by: of models without interests."""
    assert result.per_user is not None
    places = np.searchsorted(result.per_user.users, users)
    cuts, ends = store.evaluation_window(users, result.split)
    found = []
    for user, place, cut, end in zip(users.tolist(), places.tolist(), cuts.tolist(), ends.tolist(), strict=True):
        ranked, first = result.per_user.ranked[place, 0].tolist(), int(store.offsets[user])
        targets = set(store.items[first + cut : first + end].tolist())
        found.append(_served(ranked, [0] * len(ranked), [], targets, np.empty((0, 0), np.float32), labels))
    return found


def _ranked(
    trained: Assembled, scorer: InterestScorer, chunk: HeldOut, num: int, candidates: Ragged | None
) -> torch.Tensor:
    """Int64 [n, lists, num]."""
    number, exclude_seen = len(chunk), trained.config.evaluation.exclude_seen
    excluded = excluded_items(chunk.seen, number, exclude_seen, exclude_padding=True)
    num = min(num, trained.store.num_item_rows - 1)
    return top_n(scorer, chunk, excluded, num, number, trained.world, candidates)[1].cpu()


def _served(
    ranked: Sequence[int],
    of_interest: Sequence[int],
    own: Sequence[Sequence[int]],
    targets: set[int],
    interests: np.ndarray,
    labels: ItemLabels,
) -> Served:
    ids = [item for item in ranked if item != NO_ITEM]
    place = {item: number for number, item in enumerate(ids, start=1)}
    best = [
        Shown(label_of(labels, item), item in targets, interest + 1, place[item])
        for item, interest in zip(ids, of_interest, strict=False)
    ]
    by_interest = [
        [
            Shown(label_of(labels, item), item in targets, number, place.get(item, 0))
            for item in items
            if item != NO_ITEM
        ]
        for number, items in enumerate(own, start=1)
    ]
    return Served(best, by_interest, interests, ids)


def label_of(labels: ItemLabels, item: int) -> str:
    return shortened(labels.titles[item] or f"item {labels.raw[item]}")


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
