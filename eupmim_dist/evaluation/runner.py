"""Evaluates a scorer under protocols: every user of the split exactly once, at any number of ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from eupmim_dist.data.counter import random_bits, stream_key
from eupmim_dist.data.graph import Known
from eupmim_dist.data.heldout import HeldOut, HeldOutUsers, Ragged
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import CANDIDATES, Variety, diversify
from eupmim_dist.evaluation.interest_use import InterestSums, InterestUse
from eupmim_dist.evaluation.metrics import MetricSums
from eupmim_dist.evaluation.protocols import PROTOCOLS, SEEN_INCLUDED, Protocol
from eupmim_dist.evaluation.scorers.interests import InterestScorer
from eupmim_dist.evaluation.scorers.interface import ListScorer, Ranking, Scorer, make_scorer
from eupmim_dist.evaluation.topn import gather_rows, top_n
from eupmim_dist.models.interface import Model
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.train.state import Assembled, Setup


@dataclass(frozen=True)
class PerUser:
    """What each user got, in the order of the split's users; the same on all ranks."""

    users: np.ndarray  # int64 [n], as in the store
    metrics: dict[str, np.ndarray]  # float64 [n] each, by the names of Result.metrics
    ranked: np.ndarray  # int64 [n, S, N], best first, NO_ITEM past the end


@dataclass(frozen=True)
class Result:
    """Metrics of one model by one protocol on one split, e.g. `metrics["recall@10"]`."""

    model: str
    protocol: str
    split: str
    users: int
    metrics: dict[str, float]
    interests: InterestUse | None = None
    """How a model with several interests uses them; None for others."""
    history: int | None = None
    """How many of a history's last items a baseline read; None for others."""
    per_user: PerUser | None = field(default=None, repr=False, compare=False)
    """If asked for."""
    seen_included: bool = False
    """Whether what users had before was among the candidates, of a protocol that else leaves it out."""
    texts: pl.DataFrame | None = field(default=None, repr=False, compare=False)
    """Of what was written (explanations.py): `users` counts these then."""

    @property
    def counted(self) -> str:
        """What `users` counts."""
        return "users" if self.texts is None else "explanations"

    @property
    def title(self) -> str:
        """What it is of, but for the model."""
        seen = f", {SEEN_INCLUDED}" if self.seen_included else ""
        return f"{self.split} split, protocol {self.protocol}{seen}, {self.users:,} {self.counted}"

    def tags(self) -> dict[str, float]:
        """The metrics by names for a log, such as `valid/strict/recall@10`."""
        return {f"{self.split}/{self.protocol}/{name}": value for name, value in self.metrics.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all but `per_user` and `texts`; `interests`, `history` and `seen_included` where there are any."""
        content: dict[str, Any] = {name: getattr(self, name) for name in ("model", "protocol", "split")}
        content |= {self.counted: self.users, "metrics": self.metrics}
        content |= {} if self.history is None else {"history": self.history}
        content |= {"seen_included": True} if self.seen_included else {}
        return content | ({} if self.interests is None else {"interests": asdict(self.interests)})


@torch.no_grad()
def evaluate_scorer(
    scorer: Scorer,
    name: str,
    users: HeldOutUsers,
    protocol: Protocol,
    cutoffs: Sequence[int],
    world: World,
    *,
    exclude_seen: bool = True,
    variety: Variety | None = None,
    progress: bool = False,
    per_user: bool = False,
) -> Result:
    """Ranks the catalogue for every user of the split and averages the metrics; collective.

    With `variety` lists are re-ranked for it, and their Diversity@N is one of the metrics. `per_user` keeps what each
    user got, on every rank.

    Raises UserError if the split has no users or an N is larger than the catalogue.
    """
    store = users.store
    check_cutoffs(cutoffs, store.num_item_rows)
    if not len(users.users):
        raise UserError(f"{store.path}: split {users.split} has no users")
    if variety is not None and protocol.per_interest:
        raise UserError(f"--categories: protocol {protocol.name} has a list for each interest; use strict or comirec")
    if protocol.per_interest and isinstance(scorer, ListScorer):
        raise UserError(f"protocol {protocol.name}: has a list for each interest, and {name} has none; use strict")
    sums = MetricSums(protocol, cutoffs, store.num_item_rows, None if variety is None else variety.categories)
    used = (
        InterestSums(scorer, max(cutoffs)) if isinstance(scorer, InterestScorer) and not protocol.per_interest else None
    )
    kept: list[tuple[Tensor, Tensor]] = []
    description = f"{name}: {users.split} split, protocol {protocol.name}"
    with task_progress(description, len(users), progress and world.is_main) as advance:
        for index in range(len(users)):
            chunk = users.chunk(index)
            block = users.block(index)
            excluded = excluded_items(
                chunk.seen,
                len(chunk),
                protocol.exclude_history and exclude_seen,
                protocol.exclude_padding,
            )
            among = protocol.candidates == "negatives"
            candidates = negatives_and_target(chunk, store.num_item_rows) if among else None
            ranked = varied_top_n(scorer, chunk, excluded, max(cutoffs), block, world, variety, candidates)
            of_users = sums.add(ranked, chunk.targets)
            if used is not None:
                used.add(ranked[:, 0])
            if per_user:
                kept.append((gather_rows(of_users, block, world), gather_rows(ranked, block, world)))
            advance(1)
    metrics, num_users = sums.reduce(world)
    assert num_users == len(users.users), f"{num_users} users evaluated, the split has {len(users.users)}"
    return Result(
        name,
        protocol.name,
        users.split,
        num_users,
        metrics,
        None if used is None else used.reduce(world),
        scorer.history,
        _per_user(users.users, sums.names, kept) if per_user else None,
        seen_included=protocol.exclude_history and not exclude_seen,
    )


def _per_user(users: np.ndarray, names: Sequence[str], kept: Sequence[tuple[Tensor, Tensor]]) -> PerUser:
    values, ranked = (torch.cat(parts).cpu().numpy() for parts in zip(*kept, strict=True))
    return PerUser(users, dict(zip(names, values.T, strict=True)), ranked)


def varied_top_n(
    scorer: Scorer,
    users: HeldOut,
    excluded: Ragged,
    num: int,
    block: int,
    world: World,
    variety: Variety | None,
    candidates: Ragged | None = None,
) -> Tensor:
    """As `top_n`, of more candidates and re-ranked where variety is wanted; collective."""
    if isinstance(scorer, ListScorer):
        if variety is not None and variety.strength:
            raise UserError("--diversity: re-ranks by scores, and this model gives lists; leave it out")
        return scorer.scored_lists(users, excluded, num, candidates)[1]
    if variety is None or not variety.strength:
        return top_n(scorer, users, excluded, num, block, world, candidates)[1]
    wanted = min(CANDIDATES * num, len(variety.categories) - 1)
    scores, ids = top_n(scorer, users, excluded, wanted, block, world, candidates)
    categories = variety.categories.to(ids.device)
    return diversify(scores[:, 0], ids[:, 0], categories, variety.strength, num)[:, None]


def negatives_and_target(users: HeldOut, num_item_rows: int) -> Ragged:
    """The negatives of each user and his targets."""
    assert users.negatives is not None, "check_protocols makes sure"
    both = (users.negatives, users.targets)
    every = Ragged(torch.cat([each.user for each in both]), torch.cat([each.item for each in both]))
    return every.distinct(num_item_rows)


def excluded_items(seen: Ragged, num_users: int, exclude_seen: bool, exclude_padding: bool) -> Ragged:
    """What may not be recommended to each of `num_users` users."""
    user, item = [], []
    if exclude_seen:
        user.append(seen.user)
        item.append(seen.item)
    if exclude_padding:
        user.append(torch.arange(num_users))
        item.append(torch.zeros(num_users, dtype=torch.int64))
    empty = torch.zeros(0, dtype=torch.int64)
    return Ragged(torch.cat([*user, empty]), torch.cat([*item, empty]))


def check_cutoffs(cutoffs: Sequence[int], num_item_rows: int, where: str = "") -> None:
    """Raises UserError if a list longer than the catalogue is asked for; `where` says by what."""
    if max(cutoffs) > num_item_rows - 1:
        raise UserError(
            f"{where}top-N {max(cutoffs)} is larger than the catalogue of {num_item_rows - 1} items; ask for fewer"
        )


def evaluate_by(
    scorer: Scorer,
    name: str,
    setup: Setup,
    split: str,
    protocol: str,
    cutoffs: Sequence[int],
    *,
    variety: Variety | None = None,
    progress: bool = False,
    per_user: bool = False,
    sample: int | None = None,
) -> Result:
    """`evaluate_scorer` for the users of a split, or `sample` of them, as the setup's task and configuration have them;
    collective."""
    return evaluate_scorer(
        scorer,
        name,
        held_out_users(setup, split, scorer.group, sample),
        PROTOCOLS[protocol],
        cutoffs,
        setup.world,
        exclude_seen=setup.config.evaluation.exclude_seen,
        variety=variety,
        progress=progress,
        per_user=per_user,
    )


def evaluate_model(assembled: Assembled, split: str, protocol: str, cutoffs: Sequence[int], **options: Any) -> Result:
    """`evaluate_by` a model's current weights, with the same options; collective. Its mode is left as it was."""
    with ranking_mode(assembled.model):
        scorer = scorer_of(assembled, split, PROTOCOLS[protocol].per_interest)
        return evaluate_by(scorer, assembled.config.model.label, assembled, split, protocol, cutoffs, **options)


@contextmanager
def ranking_mode(model: Model) -> Iterator[None]:
    """A model without dropout and gradients, and in the end in the mode it was in: it may be in training."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def scorer_of(assembled: Assembled, known: Known, per_interest: bool = False) -> Scorer:
    """What ranks by a model's current weights, where so much of users is known."""
    return make_scorer(assembled.model.scorer, ranking_of(assembled, known, per_interest))


def ranking_of(setup: Setup, known: Known = "train", per_interest: bool = False) -> Ranking:
    """What a scorer is made for; of a model if there is one, with its current weights."""
    assembled = setup if isinstance(setup, Assembled) else None
    return Ranking(
        store=setup.store,
        world=setup.world,
        per_interest=per_interest,
        model=None if assembled is None else assembled.model,
        tables=None if assembled is None else assembled.tables.to_rank(known),
        task=setup.task,
        evaluation=setup.config.evaluation,
    )


def held_out_users(setup: Setup, split: str, group: int = 1, sample: int | None = None) -> HeldOutUsers:
    """The split's users, or `sample` of them, as the task has them, in groups that one rank has together."""
    users = setup.store.users(split)
    if sample is not None and sample < len(users):
        drawn = random_bits(stream_key(setup.config.seed, "evaluated users", split), torch.from_numpy(users))
        users = np.sort(users[drawn.numpy().argsort(kind="stable")[:sample]])
    return HeldOutUsers(
        setup.store,
        split,
        users,
        setup.task.to_rank,
        chunk_size=setup.config.evaluation.batch_size,
        rank=setup.world.rank,
        world_size=setup.world.size,
        group=group,
    )
