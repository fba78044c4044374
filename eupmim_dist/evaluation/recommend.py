"""Recommendations for people: raw ids, titles, and which interest an item answers to.

B users, K interests, N items each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from eupmim_dist.data.heldout import HeldOut, held_out
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.runner import check_cutoffs, excluded_items, ranking_mode, ranking_of, varied_top_n
from eupmim_dist.evaluation.scorers.interests import InterestsConfig, InterestScorer
from eupmim_dist.evaluation.topn import NO_ITEM
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.train.state import Assembled

NUM_RECENT = 3


@dataclass(frozen=True)
class Item:
    raw_id: str
    title: str | None

    @property
    def label(self) -> str:
        return self.title or f"item {self.raw_id}"


@dataclass(frozen=True)
class Recommended(Item):
    score: float
    interest: int
    """1..K: the user's interest vector that scores it highest."""


@dataclass(frozen=True)
class Recommendations:
    user: str
    recent: list[Item]
    items: list[Recommended]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def recommend_items(
    trained: Assembled,
    raw_users: Sequence[str],
    num: int,
    *,
    exclude_seen: bool,
    variety: Variety | None = None,
) -> list[Recommendations]:
    """The best `num` items for each user, from the whole history; re-ranked where variety is wanted.

    `evaluation.batch_size` users are ranked at a time. Raises UserError for an unknown user, a `num` larger than the
    catalogue, or a model that is not ranked by interests.
    """
    store, model, world = trained.store, trained.model, trained.world
    if model.scorer != "interests":  # another list than `evaluate` judges would be recommended
        name = trained.config.model.name
        raise UserError(f"model {name}: is ranked by {model.scorer}, and items are recommended by interests only")
    check_cutoffs([num], store.num_item_rows)
    users = _found(store, raw_users)
    scorer, titles = InterestScorer(InterestsConfig(), ranking_of(trained)), store.item_titles()
    size, found = trained.config.evaluation.batch_size, list[Recommendations]()
    with task_progress("recommending", len(users), world.is_main) as advance:
        for first in range(0, len(users), size):
            some = users[first : first + size]
            found += _best(trained, scorer, some, raw_users[first : first + size], num, exclude_seen, variety, titles)
            advance(len(some))
    return found


def _best(
    trained: Assembled,
    scorer: InterestScorer,
    users: np.ndarray,
    raw_users: Sequence[str],
    num: int,
    exclude_seen: bool,
    variety: Variety | None,
    titles: list[str | None] | None,
) -> list[Recommendations]:
    store, world = trained.store, trained.world
    held_out = whole_histories(trained, users)
    excluded = excluded_items(held_out.seen, len(users), exclude_seen, exclude_padding=True)
    with ranking_mode(trained.model):
        ranked = varied_top_n(scorer, held_out, excluded, num, len(users), world, variety)[:, 0]
        scores, interest = scorer.served(ranked)
    lists = zip(ranked.tolist(), scores.tolist(), interest.tolist(), strict=True)
    recent = _recent(store, users)
    item = _labelled(store, [*ranked.flatten().tolist(), *chain.from_iterable(recent)], titles)
    found = []
    for raw_user, last, of_user in zip(raw_users, recent, lists, strict=True):
        best = [
            Recommended(item[i].raw_id, item[i].title, score, which + 1)
            for i, score, which in zip(*of_user, strict=True)
            if i != NO_ITEM
        ]
        found.append(Recommendations(raw_user, [item[i] for i in last], best))
    return found


def whole_histories(trained: Assembled, users: np.ndarray) -> HeldOut:
    """Users [B] with all that they had as their history, and no targets."""
    lengths = trained.store.lengths(users)
    return held_out(trained.store, users, lengths, lengths, trained.task.to_rank)


def _found(store: InteractionStore, raw_users: Sequence[str]) -> np.ndarray:
    users = store.users_of_raw_ids(raw_users)
    for raw, user in zip(raw_users, users, strict=True):
        if user is None:
            raise UserError(f"--user {raw}: no such user in {store.path}; `users.parquet` there lists the raw ids")
    return np.array(users, dtype=np.int64)


def _recent(store: InteractionStore, users: np.ndarray) -> list[list[int]]:
    """What each user had last, the last first."""
    spans = zip(store.offsets[users].tolist(), store.offsets[users + 1].tolist(), strict=True)
    return [store.items[max(start, stop - NUM_RECENT) : stop][::-1].tolist() for start, stop in spans]


def _labelled(store: InteractionStore, ids: Sequence[int], titles: list[str | None] | None) -> dict[int, Item]:
    distinct = sorted(set(ids) - {NO_ITEM})
    raw = store.raw_item_ids(np.array(distinct, dtype=np.int64))
    return {i: Item(r or str(i), titles[i] if titles else None) for i, r in zip(distinct, raw, strict=True)}
