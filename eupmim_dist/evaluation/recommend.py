"""Recommendations, a block of users at a time, as arrays of numbers; and as objects, for people.

b users of a block, S lists each (1, or one for each of K interests), N items of a list, M reasons.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from eupmim_dist.data.audience import Audience
from eupmim_dist.data.batch import UserBatch
from eupmim_dist.data.graph import Known
from eupmim_dist.data.heldout import HeldOut, Ragged, grouped_range, held_out
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.tables import has_titles, read_table
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.interest_lists import InterestListScorer
from eupmim_dist.evaluation.runner import (
    check_cutoffs,
    excluded_items,
    ranking_mode,
    ranking_of,
    scorer_of,
    varied_top_n,
)
from eupmim_dist.evaluation.scorers.interests import InterestsConfig, InterestScorer
from eupmim_dist.evaluation.scorers.interface import ListScorer, recommends
from eupmim_dist.evaluation.topn import NO_ITEM, gather_rows
from eupmim_dist.evaluation.why import Reasons, left_out, nearest
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.train.state import Assembled

NUM_RECENT = 3


@dataclass(frozen=True)
class Wanted:
    """What is to be recommended to each user."""

    num: int
    exclude_seen: bool = True
    variety: Variety | None = None
    only: np.ndarray | None = None
    """Items, int64; None for all."""
    why: bool = False
    """Which of his own items speak for each."""
    per_interest: bool = False
    """The best `num` for each interest, and which of his own items are nearest to it."""


@dataclass(frozen=True)
class Block:
    """What users first..first + b - 1 of an audience get."""

    first: int
    items: np.ndarray  # int64 [b, S, N], best first, NO_ITEM past the end
    scores: np.ndarray  # float32 [b, S, N]
    interests: np.ndarray  # int64 [b, S, N], from 0
    reasons: Reasons | None = None
    """[b, 1, N, M] of each item where it is asked why, [b, K, M] of each interest where each has a list."""


def check_wanted(trained: Assembled, wanted: Wanted) -> None:
    """Raises UserError for a model whose scorer gives neither interests nor lists, a list longer than the catalogue, or
    for what does not go together."""
    if not ranked_by_interests(trained):
        name = trained.config.model.name
        if not recommends(trained.model.scorer):
            # another list than `evaluate` judges would be recommended
            raise UserError(
                f"model {name}: is ranked by {trained.model.scorer}, and items are recommended by interests or lists"
            )
        diverse = wanted.variety is not None and wanted.variety.strength
        asked = {"--why": wanted.why, "--per-interest": wanted.per_interest, "--diversity": diverse}
        for option in (option for option, given in asked.items() if given):
            raise UserError(f"{option}: is of a model that ranks by interests, and {name} writes lists; leave it out")
    check_cutoffs([wanted.num], trained.store.num_item_rows)
    if wanted.why and trained.model.only_known_users:
        raise UserError(
            f"--why: goes by what a history tells, and model {trained.config.model.name} reads none; leave it out"
        )
    if wanted.per_interest and wanted.why:
        raise UserError(
            "--why: explains one list, and --per-interest gives several, with what is near to each; give one"
        )
    if wanted.per_interest and wanted.variety is not None and wanted.variety.strength:
        raise UserError("--diversity: re-ranks one list, and --per-interest gives several; leave one of them out")


def ranked_blocks(trained: Assembled, audience: Audience, wanted: Wanted) -> Generator[Block]:
    """The best items for each user, from the whole history, `evaluation.batch_size` users at a time; collective.

    Raises UserError if the model's vectors are not finite.
    """
    known = "all" if audience.given is None else "train"  # given histories may leave out what they are judged by
    scorer, size = _scorer(trained, wanted, known), trained.config.evaluation.batch_size
    if wanted.only is not None:
        scorer.only(torch.from_numpy(wanted.only))
    with task_progress("recommending", len(audience), trained.world.is_main) as advance:
        for first in range(0, len(audience), size):
            with agreed(trained.world), ranking_mode(trained.model):
                block = _ranked(trained, scorer, audience, first, min(first + size, len(audience)), wanted)
            yield block
            advance(len(block.items))


def ranked_by_interests(trained: Assembled) -> bool:
    return trained.model.scorer == "interests"


def _scorer(trained: Assembled, wanted: Wanted, known: Known) -> InterestScorer | ListScorer:
    if ranked_by_interests(trained):
        kind = InterestListScorer if wanted.per_interest else InterestScorer
        return kind(InterestsConfig(), ranking_of(trained, known))
    scorer = scorer_of(trained, known)
    assert isinstance(scorer, ListScorer), "check_wanted makes sure"
    return scorer


def _ranked(
    trained: Assembled, scorer: InterestScorer | ListScorer, audience: Audience, first: int, stop: int, wanted: Wanted
) -> Block:
    if isinstance(scorer, ListScorer):
        return _listed(trained, scorer, audience, first, stop, wanted)
    users, number = _histories(trained, audience, first, stop), stop - first
    excluded = excluded_items(users.seen, number, wanted.exclude_seen, exclude_padding=True)
    ranked = varied_top_n(scorer, users, excluded, wanted.num, number, trained.world, wanted.variety)
    reasons, batch = None, users.batch
    assert isinstance(batch, UserBatch), "interests are of a history"
    if wanted.per_interest:
        scores, interests = scorer.served(ranked)
        reasons = nearest(scorer, batch).cpu()
    else:
        scores, interests = (part[:, None] for part in scorer.served(ranked[:, 0]))
        if wanted.why:
            found = left_out(scorer, batch, ranked[:, 0], scores[:, 0]).cpu()
            reasons = Reasons(found.items[:, None], found.weights[:, None])
    return Block(first, ranked.cpu().numpy(), scores.cpu().numpy(), interests.cpu().numpy(), reasons)


def _listed(trained: Assembled, scorer: ListScorer, audience: Audience, first: int, stop: int, wanted: Wanted) -> Block:
    """Each rank has its own users listed, and all get all lists: no item is needed of another rank."""
    world, number = trained.world, stop - first
    begin, end = grouped_range(number, scorer.group, world.rank, world.size)
    users = _histories(trained, audience, first + begin, first + end)
    excluded = excluded_items(users.seen, end - begin, wanted.exclude_seen, exclude_padding=True)
    most = grouped_range(number, scorer.group, 0, world.size)[1]
    scores, ranked = (gather_rows(part, most, world).cpu() for part in scorer.scored_lists(users, excluded, wanted.num))
    return Block(first, ranked.numpy(), scores.numpy(), torch.zeros_like(ranked).numpy())


def _histories(trained: Assembled, audience: Audience, first: int, stop: int) -> HeldOut:
    users, given = audience.users[first:stop], audience.given
    if given is None:
        return whole_histories(trained, users)
    starts, stops = given.offsets[first:stop], given.offsets[first + 1 : stop + 1]
    attributes = torch.from_numpy(given.attributes[first:stop])
    items = given.items if len(given.items) else np.zeros(1, dtype=np.int64)  # where nobody had anything
    nothing = torch.zeros(0, dtype=torch.int64)
    return HeldOut(
        users=users,
        ask=partial(trained.task.to_rank_by, items, starts, stops - starts, users, attributes),
        seen=Ragged.of(items, starts, stops),
        targets=Ragged(nothing, nothing),
    )


def whole_histories(trained: Assembled, users: np.ndarray) -> HeldOut:
    """Users [B] with all that they had as their history, and no targets."""
    lengths = trained.store.lengths(users)
    return held_out(trained.store, users, lengths, lengths, trained.task.to_rank)


@dataclass(frozen=True)
class Item:
    raw_id: str
    title: str | None

    @property
    def label(self) -> str:
        return self.title or f"item {self.raw_id}"

    def as_dict(self) -> dict[str, Any]:
        return {"item": self.raw_id, "title": self.title}


@dataclass(frozen=True)
class Reason(Item):
    weight: float

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "weight": self.weight}


@dataclass(frozen=True)
class ItemLabels:
    """By item id; String [item rows] each."""

    raw: pl.Series
    titles: pl.Series

    def items(self, numbers: np.ndarray) -> list[Item]:
        """Those of some numbers that are items."""
        return [Item(self.raw[number], self.titles[number]) for number in numbers.tolist() if number != NO_ITEM]


def item_labels(store: InteractionStore) -> ItemLabels:
    """What a store's items are called: their number where no raw id is known, null where no title is."""
    file = store.path / "items.parquet"
    table = read_table(file, ["id", "raw_id", *(["title"] if has_titles(file) else [])])
    rows = pl.DataFrame({"id": np.arange(store.num_item_rows)})
    found = rows.join(table, on="id", how="left", maintain_order="left")
    raw = found.select(pl.col("raw_id").fill_null(pl.col("id").cast(pl.String))).to_series()
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(found))
    return ItemLabels(raw, found["title"] if "title" in found.columns else nothing)


@dataclass(frozen=True)
class Recommended(Item):
    rank: int
    """From 1, in its list."""
    score: float
    interest: int
    """1..K: the user's interest vector that scores it highest."""
    because: list[Reason] | None = None
    """His own items whose absence would lower the score most, if it was asked why."""


@dataclass(frozen=True)
class Recommendations:
    user: str
    recent: list[Item]
    items: list[Recommended]
    nearest: list[list[Reason]] | None = None
    """Where each interest has a list: his own items that are nearest to each."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a line of a JSONL file of recommendations, and what the user had last."""
        recent = [item.as_dict() for item in self.recent]
        return {"user": self.user, "recent": recent, "items": [self._of_item(item) for item in self.items]}

    def _of_item(self, item: Recommended) -> dict[str, Any]:
        content = {"rank": item.rank, **item.as_dict(), "score": item.score, "interest": item.interest}
        if item.because is not None:
            content["because"] = [reason.as_dict() for reason in item.because]
        if self.nearest is not None:
            content["nearest"] = [reason.as_dict() for reason in self.nearest[item.interest - 1]]
        return content


def recommendations(trained: Assembled, audience: Audience, wanted: Wanted) -> Generator[Recommendations]:
    """What `ranked_blocks` gives, as objects, with what each user had last; one after another."""
    labels = item_labels(trained.store)
    with closing(ranked_blocks(trained, audience, wanted)) as blocks:
        for block in blocks:
            names = audience.names[block.first : block.first + len(block.items)]
            for row, name in enumerate(names):
                recent = labels.items(_recent(trained, audience, block.first + row))
                near = None
                if wanted.per_interest and block.reasons is not None:
                    near = [_reasons(labels, block.reasons, (row, number)) for number in range(block.items.shape[1])]
                yield Recommendations(name, recent, _best(block, row, labels, wanted), near)


def _best(block: Block, row: int, labels: ItemLabels, wanted: Wanted) -> list[Recommended]:
    best = []
    for at in zip(*(block.items[row] != NO_ITEM).nonzero(), strict=True):
        [item] = labels.items(block.items[row][at][None])
        because = None
        if wanted.why and block.reasons is not None:
            because = _reasons(labels, block.reasons, (row, *at))
        score, interest = float(block.scores[row][at]), int(block.interests[row][at]) + 1
        best.append(Recommended(item.raw_id, item.title, int(at[1]) + 1, score, interest, because))
    return best


def _reasons(labels: ItemLabels, reasons: Reasons, at: tuple[int, ...]) -> list[Reason]:
    items, weights = reasons.items[at].numpy(), reasons.weights[at].tolist()
    return [Reason(item.raw_id, item.title, weight) for item, weight in zip(labels.items(items), weights, strict=False)]


def _recent(trained: Assembled, audience: Audience, number: int) -> np.ndarray:
    """What a user had last, the last first."""
    given, store, user = audience.given, trained.store, audience.users[number]
    items, offsets, at = (store.items, store.offsets, user) if given is None else (given.items, given.offsets, number)
    start, stop = int(offsets[at]), int(offsets[at + 1])
    return items[max(start, stop - NUM_RECENT) : stop][::-1]
