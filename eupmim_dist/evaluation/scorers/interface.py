"""What a scorer is (design 1.2): what the catalogue is ranked by. Protocols and metrics know nothing of models.

A new scorer is one module here: a configuration, the class, and `SCORER = Registered(Configuration, Class)`.

b users of this rank, G of all ranks, S lists per user.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eupmim_dist.config.registry import build, find, names
from eupmim_dist.config.schema import EvaluationConfig
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Model
from eupmim_dist.parallel.sharded import RankedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.interface import Task

ITEM_BLOCK = 8192
"""Items scored at a time on a CPU, in whose cache their scores stay."""
GPU_ITEMS, GPU_SCORES = 1 << 18, 1 << 26
"""Items and scores that a GPU is given at a time at the most: it is launching kernels that takes it long."""


def item_block(query: Tensor) -> int:
    """Items scored at a time for queries [G, ...], or [G, K, D] that may have K lists each."""
    if query.device.type == "cpu":
        return ITEM_BLOCK
    lists = query.shape[:2].numel() if query.dim() > 2 else len(query)
    return max(ITEM_BLOCK, min(GPU_ITEMS, GPU_SCORES // max(lists, 1)))


def users_at_a_time(device: torch.device) -> int:
    """That a forward pass takes: the activations of more fall out of a CPU's cache, those of fewer leave a GPU idle."""
    return 256 if device.type == "cpu" else 2048


@dataclass(frozen=True)
class Ranking:
    """What a scorer is made for."""

    store: InteractionStore
    world: World
    per_interest: bool = False
    """The protocol's: a list per interest, by cosine."""
    model: Model | None = None
    tables: RankedTables | None = None
    task: Task | None = None
    """What the users to rank for come from."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


class Scorer(ABC):
    """Scores this rank's items for queries of any rank; an item's position is that in `item_ids`."""

    item_ids: Tensor
    """Int64, ascending; every item is one rank's."""

    group = 1
    """Users of a chunk that one rank has to have together."""
    history: int | None = None
    """Of a baseline that may read more or less of a history: how many of its last items (evaluation/baselines.py)."""

    @classmethod  # noqa: B027
    def check_room(cls, store: InteractionStore, world: World) -> None:
        """Raises UserError, on all ranks, where the memory is not there that making one takes; collective."""

    @abstractmethod
    def query(self, users: HeldOut) -> Tensor:
        """What the shards need to score for these users: [b, ...], the same trailing shape on every rank."""

    @abstractmethod
    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        """Finite scores [G, S, stop - start] of the items at positions start..stop-1, higher is better.

        In float64 they are final; in float32 they choose the candidates that `exact` scores again.
        """

    def exact(self, query: Tensor, positions: Tensor) -> Tensor:
        """The scores of chosen items in float64: positions [G, S, n] -> [G, S, n].

        So the order of two items does not depend on how a matrix product was blocked, which differs with the
        number of ranks. Here they are taken from those of all items, which have to be in float64.
        """
        found = torch.zeros(positions.shape, dtype=torch.float64, device=positions.device)
        block = item_block(query)
        for start in range(0, len(self.item_ids), block):
            scores = self.scores(query, start, min(start + block, len(self.item_ids)))
            if scores.dtype != torch.float64:
                raise NotImplementedError("a scorer with float32 scores has exact ones too")
            place = positions - start
            here = (place >= 0) & (place < scores.shape[-1])
            found = torch.where(here, scores.gather(-1, place.clamp(0, scores.shape[-1] - 1)), found)
        return found


class ListScorer(Scorer):
    """Gives each user a list by itself, without scores for the catalogue."""

    @abstractmethod
    def scored_lists(
        self, users: HeldOut, excluded: Ragged, num: int, candidates: Ragged | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best `num` items for this rank's users, without the excluded ones or of the candidates alone, best first:
        scores float32 [b, 1, N], minus infinity past the end, and items int64 [b, 1, N], NO_ROW there. Collective."""

    @abstractmethod
    def only(self, items: Tensor) -> None:
        """Ranks none but these items, int64."""

    def query(self, users: HeldOut) -> Tensor:
        raise NotImplementedError("it gives lists")

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        raise NotImplementedError("it gives lists")


def make_scorer(name: str, ranking: Ranking) -> Scorer:
    """The scorer of that name. Raises UserError for an unknown name."""
    scorer: Scorer = build("scorer", name, Scorer, find("scorer", name).config(), ranking)
    return scorer


def baselines() -> list[str]:
    """The scorers that need no trained model; without those of other packages that cannot be imported."""
    found = []
    for name in names("scorer"):
        with suppress(UserError):
            if not find("scorer", name).config.trained:
                found.append(name)
    return found


def recommends(name: str) -> bool:
    """Whether items are recommended by a scorer: by interests, or by the lists that it gives. Raises UserError for an
    unknown name."""
    scorer = find("scorer", name).build
    return name == "interests" or (isinstance(scorer, type) and issubclass(scorer, ListScorer))


def check_baselines(chosen: Sequence[str]) -> None:
    """Raises UserError for a name that is no baseline."""
    for name in chosen:
        if name not in names("scorer") or find("scorer", name).config.trained:
            raise UserError(f"--baseline {name}: choose from {', '.join(baselines())}")


def check_room(chosen: Sequence[str], store: InteractionStore, world: World) -> None:
    """Raises UserError, on all ranks, where the memory is not there that one of these baselines takes; collective."""
    for name in chosen:
        scorer = find("scorer", name).build
        if isinstance(scorer, type) and issubclass(scorer, Scorer):  # a plug-in's may be any function
            scorer.check_room(store, world)
