"""Recommendations for people: raw ids, titles, and which interest an item answers to.

B users, K interests, N items each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from eupmim_dist.data.heldout import HeldOut, held_out
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.runner import check_cutoffs, excluded_items, ranking_mode, ranking_of, varied_top_n
from eupmim_dist.evaluation.scorers.interests import InterestsConfig, InterestScorer
from eupmim_dist.evaluation.topn import NO_ITEM
from eupmim_dist.models.interface import ITEM_TABLE
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

    Raises UserError for an unknown user, a `num` larger than the catalogue, or a model that is not ranked by interests.
    """
    store, model = trained.store, trained.model
    if model.scorer != "interests":  # another list than `evaluate` judges would be recommended
        name = trained.config.model.name
        raise UserError(f"model {name}: is ranked by {model.scorer}, and items are recommended by interests only")
    check_cutoffs([num], store.num_item_rows)
    users = np.array([_find(store, raw) for raw in raw_users], dtype=np.int64)
    held_out = whole_histories(trained, users)
    scorer = _Remembering(InterestsConfig(), ranking_of(trained))
    excluded = excluded_items(held_out.seen, len(users), exclude_seen, exclude_padding=True)
    with ranking_mode(model):
        ranked = varied_top_n(scorer, held_out, excluded, num, len(users), trained.world, variety)[:, 0]
        rows = trained.tables.lookup({"ranked": (ITEM_TABLE, ranked.clamp(min=0))}).rows[0]["ranked"]  # [B, N, D]
        scores, interest = (scorer.interests @ rows.transpose(1, 2)).max(1)
    ranked, scores, interest = ranked.cpu(), scores.cpu(), interest.cpu()
    titles = store.item_titles()

    def items_of(ids: np.ndarray) -> list[Item]:
        raw = store.raw_item_ids(ids)
        return [Item(r or str(i), titles[i] if titles else None) for r, i in zip(raw, ids.tolist(), strict=True)]

    found = []
    for position, (user, raw_user) in enumerate(zip(users, raw_users, strict=True)):
        stop = store.offsets[user + 1]
        recent = np.asarray(store.items[max(store.offsets[user], stop - NUM_RECENT) : stop])
        kept = ranked[position] != NO_ITEM
        found.append(
            Recommendations(
                raw_user,
                items_of(recent[::-1]),
                [
                    Recommended(item.raw_id, item.title, score, which + 1)
                    for item, score, which in zip(
                        items_of(ranked[position][kept].numpy()),
                        scores[position][kept].tolist(),
                        interest[position][kept].tolist(),
                        strict=True,
                    )
                ],
            )
        )
    return found


def whole_histories(trained: Assembled, users: np.ndarray) -> HeldOut:
    """Users [B] with all that they had as their history, and no targets."""
    lengths = trained.store.lengths(users)
    return held_out(trained.store, users, lengths, lengths, trained.task.to_rank)


class _Remembering(InterestScorer):
    """Keeps the interests that it ranked by."""

    interests: torch.Tensor

    def query(self, users: HeldOut) -> torch.Tensor:
        self.interests = super().query(users)
        return self.interests


def _find(store: InteractionStore, raw: str) -> int:
    user = store.user_of_raw_id(raw)
    if user is None:
        raise UserError(f"--user {raw}: no such user in {store.path}; `users.parquet` there lists the raw ids")
    return user
