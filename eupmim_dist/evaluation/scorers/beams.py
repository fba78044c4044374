"""beams: the items that a model writes: by beam search over all of them, or each of a user's candidates exactly.

b users of this rank, N length of a list, C candidates.
"""

from typing import Literal

import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.evaluation.generation.search import answer_scores, beam_search
from eupmim_dist.evaluation.generation.trie import Allowed, make_trie
from eupmim_dist.evaluation.scorers.interface import ListScorer, Ranking
from eupmim_dist.models.interface import Rows
from eupmim_dist.models.writing import Writer
from eupmim_dist.tasks.prompts.task import Prompts

USERS_AT_A_TIME = 16
"""Prompts that are written for together: each has scores of all tokens at every beam or node."""
MORE_BEAMS = 10
"""Beams beyond the items that are asked for, of which the best are taken."""


class BeamsConfig(ScorerSection):
    trained = True
    name: Literal["beams"] = "beams"
    """What ranks the catalogue."""


class BeamScorer(ListScorer):
    def __init__(self, config: BeamsConfig, ranking: Ranking) -> None:
        assert isinstance(ranking.model, Writer), "what is written is a model's"
        assert isinstance(ranking.task, Prompts), "a model that writes is fed with prompts"
        assert ranking.tables is not None
        self.model, self.task, self.tables, self.world = ranking.model, ranking.task, ranking.tables, ranking.world
        self.trie = make_trie(self.task.item_answers, self.world.device)

    def lists(self, users: HeldOut, excluded: Ragged, num: int, candidates: Ragged | None = None) -> Tensor:
        assert isinstance(users.batch, PromptBatch)
        if candidates is not None:
            return self._chosen(users.batch, candidates, num)[:, None]
        rows, parts = self._rows(users.batch), [torch.zeros(0, num, dtype=torch.int64, device=self.world.device)]
        items = excluded.distinct(len(self.trie.path))
        items = Ragged(items.user[items.item > 0], items.item[items.item > 0])  # padding is never written
        for start in range(0, len(users.batch), USERS_AT_A_TIME):
            batch, own_rows = self._part(users.batch, rows, start)
            here = (items.user >= start) & (items.user < start + USERS_AT_A_TIME)
            allowed = Allowed(self.trie, Ragged(items.user[here] - start, items.item[here]), these=False)
            draft = self.model.read(own_rows, batch)
            found = beam_search(self.model, draft, len(batch), self.trie, num + MORE_BEAMS, allowed)[1]
            parts.append(found[:, :num])
        return torch.cat(parts)[:, None]

    def _chosen(self, asked: PromptBatch, candidates: Ragged, num: int) -> Tensor:
        """The best `num` candidates by exact score, ties by smaller id: int64 [b, N], NO_ROW past the end."""
        counts = torch.bincount(candidates.user, minlength=len(asked))
        order = (candidates.user * len(self.trie.path) + candidates.item).argsort()
        user, item = candidates.user[order], candidates.item[order]
        table = torch.full((len(asked), max(1, int(counts.max())) if len(asked) else 1), NO_ROW)
        table[user, torch.arange(len(user)) - (counts.cumsum(0) - counts)[user]] = item
        prompts = self.task.to_choose(asked.user.numpy(), table)
        width = min(num, table.shape[1])
        rows, parts = self._rows(prompts), [torch.zeros(0, width, dtype=torch.int64, device=self.world.device)]
        for start in range(0, len(prompts), USERS_AT_A_TIME):
            batch, own_rows = self._part(prompts, rows, start)
            of_part = table[start : start + USERS_AT_A_TIME].to(self.world.device)
            scores = answer_scores(self.model, self.model.read(own_rows, batch), self.trie, of_part)
            best = scores.argsort(dim=1, descending=True, stable=True)[:, :width]
            parts.append(of_part.gather(1, best))
        found = torch.cat(parts)
        return torch.nn.functional.pad(found, (0, num - found.shape[1]), value=NO_ROW)

    def _rows(self, batch: PromptBatch) -> Rows:
        """Collective."""
        return self.tables.lookup(self.model.uses(batch)).rows[0]

    def _part(self, batch: PromptBatch, rows: Rows, start: int) -> tuple[PromptBatch, Rows]:
        stop = start + USERS_AT_A_TIME
        part = batch.samples(start, stop).to(self.world.device)
        return part, {name: values[start:stop] for name, values in rows.items()}


SCORER = Registered(BeamsConfig, BeamScorer)
