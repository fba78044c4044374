"""beams: the items that a model writes: by beam search over all of them, or each of a user's candidates exactly.

Users are written for in groups of 16, counted from the first of a chunk, and a group is one rank's. So what shares a
batch, and with it how sums are rounded, is the same at any number of ranks.

b users of this rank, N length of a list, C candidates, V tokens there are.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.generation.search import answer_scores, beam_search
from eupmim_dist.evaluation.generation.trie import Allowed, make_trie
from eupmim_dist.evaluation.scorers.interface import ListScorer, Ranking
from eupmim_dist.models.interface import Rows
from eupmim_dist.models.writing import Draft, Writer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.sharded import RankedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.train.skipped import Diverged

GROUP = 16
"""Users that are written for together at most."""
MOST_SCORES = 1 << 26
"""Scores of tokens that are there at a time, unless one user has more: users x beams or nodes x V, float32, and once
more while they are normalised."""


class BeamsConfig(ScorerSection):
    trained = True
    name: Literal["beams"] = "beams"
    """What ranks the catalogue."""


class BeamScorer(ListScorer):
    group = GROUP

    def __init__(self, config: BeamsConfig, ranking: Ranking) -> None:
        """Raises UserError for a model that does not write, or a task that does not ask."""
        self.model, self.task, self.tables, self.world = writing(ranking)
        self.more, self.choose = ranking.evaluation.more_beams, ranking.evaluation.choose
        self.trie = make_trie(self.task.item_answers, self.world.device)
        self.these: Tensor | None = None

    def only(self, items: Tensor) -> None:
        """Ranks none but these items, int64."""
        self.these = items.unique()

    def scored_lists(
        self, users: HeldOut, excluded: Ragged, num: int, candidates: Ragged | None = None
    ) -> tuple[Tensor, Tensor]:
        found = self._written(users, excluded, num) if candidates is None else self._chosen(users, candidates, num)
        parts = [(torch.zeros(0, num, device=self.world.device), torch.zeros(0, num, dtype=torch.int64)), *found]
        scores, items = (torch.cat([part[n].to(self.world.device) for part in parts])[:, None] for n in range(2))
        check_sound(not bool(scores.isnan().any()), self.model, self.world)
        return scores, items

    def _written(self, users: HeldOut, excluded: Ragged, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The best of all items, by beam search."""
        assert isinstance(users.batch, PromptBatch)
        pairs, these = excluded.distinct(len(self.trie.path)), self.these
        pairs = Ragged(pairs.user[pairs.item > 0], pairs.item[pairs.item > 0])  # padding is never written
        beams = num + self.more
        for first, stop, draft in drafts(self.model, self.tables, users.batch, lambda *_: beams):
            of_users = _between(pairs, first, stop)
            if these is not None:
                of_users = _without(Ragged(*torch.cartesian_prod(torch.arange(stop - first), these).T), of_users)
            allowed = Allowed(self.trie, of_users, these=these is not None)
            scores, items = beam_search(self.model, draft, stop - first, self.trie, beams, allowed)
            yield scores[:, :num], items[:, :num]

    def _chosen(self, users: HeldOut, candidates: Ragged, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The best of some candidates, ties by smaller id."""
        table = _table(candidates.distinct(len(self.trie.path)), len(users))
        prompts = self.task.to_choose(users.users, table)
        beams, depth = num + self.more, self.trie.path.shape[1]

        def most_nodes(first: int, stop: int) -> int:
            return beams if self.choose == "beams" else int((table[first:stop] != NO_ROW).sum(1).max()) * depth + 1

        for first, stop, draft in drafts(self.model, self.tables, prompts, most_nodes):
            if self.choose == "beams":
                allowed = Allowed(self.trie, _between(candidates, first, stop), these=True)
                scores, items = beam_search(self.model, draft, stop - first, self.trie, beams, allowed)
            else:
                items = table[first:stop].to(self.world.device)
                scores = answer_scores(self.model, draft, self.trie, items)
                order = scores.argsort(dim=1, descending=True, stable=True)
                scores, items = scores.gather(1, order), items.gather(1, order)
            missing = max(0, num - scores.shape[1])
            yield (
                F.pad(scores, (0, missing), value=-torch.inf)[:, :num],
                F.pad(items, (0, missing), value=NO_ROW)[:, :num],
            )


def writing(ranking: Ranking) -> tuple[Writer, AskingTask, RankedTables, World]:
    """What writes, and what asks it. Raises UserError where these are not there."""
    model, task = ranking.model, ranking.task
    if not isinstance(model, Writer) or not isinstance(task, AskingTask):
        what = "no trained model" if model is None else f"{type(model).__name__} fed by {type(task).__name__}"
        raise UserError(
            f"scorer beams: is of a model that writes (models/writing.py), asked by a task in words "
            f"(tasks/asking.py), and here is {what}; choose another Model.scorer or another task.name"
        )
    assert ranking.tables is not None, "it has a model"
    return model, task, ranking.tables, ranking.world


def check_sound(sound: bool, model: Writer, world: World) -> None:
    """Raises Diverged, on all ranks, where what the model wrote on one is not; collective."""
    if not all(everywhere(sound, world)):  # one rank that raised alone would leave the others waiting
        raise Diverged(
            f"{type(model).__name__}: what it writes has scores that are no numbers; its training has diverged or its "
            "weights were damaged: train again with a lower train.learning_rate"
        )


def drafts(
    model: Writer, tables: RankedTables, prompts: PromptBatch, most_nodes: Callable[[int, int], int]
) -> Iterator[tuple[int, int, Draft]]:
    """The prompts that are written for together, first..stop-1, read; `most_nodes` of such a range says how many nodes
    each is scored at. Collective when the first one is asked for.
    """
    rows: Rows = tables.lookup(model.uses(prompts)).rows[0]
    for start in range(0, len(prompts), GROUP):
        end = min(start + GROUP, len(prompts))
        together = max(1, min(GROUP, MOST_SCORES // (most_nodes(start, end) * model.num_tokens)))
        for first in range(start, end, together):
            stop = min(first + together, end)
            part = prompts.samples(first, stop).trimmed().to(tables.world.device)
            yield first, stop, model.read({name: values[first:stop] for name, values in rows.items()}, part)


def _table(pairs: Ragged, number: int) -> Tensor:
    """Distinct pairs as [b, C], NO_ROW past the end."""
    counts = torch.bincount(pairs.user, minlength=number)
    table = torch.full((number, max(1, int(counts.max())) if number else 1), NO_ROW)
    table[pairs.user, torch.arange(len(pairs.user)) - (counts.cumsum(0) - counts)[pairs.user]] = pairs.item
    return table


def _between(pairs: Ragged, first: int, stop: int) -> Ragged:
    here = (pairs.user >= first) & (pairs.user < stop)
    return Ragged(pairs.user[here] - first, pairs.item[here])


def _without(pairs: Ragged, others: Ragged) -> Ragged:
    rows = int(torch.cat([pairs.item, others.item, torch.zeros(1, dtype=torch.int64)]).max()) + 1
    kept = ~torch.isin(pairs.keys(rows), others.keys(rows))
    return Ragged(pairs.user[kept], pairs.item[kept])


SCORER = Registered(BeamsConfig, BeamScorer)
