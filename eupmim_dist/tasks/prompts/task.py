"""The task prompts: batches of one kind each, in turn, and prompts for users to answer.

B samples of this rank, G of the global batch, L history, T tokens of an answer.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, histories
from eupmim_dist.data.counter import stream_key
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.prompt import fill, padded, tokenise
from eupmim_dist.data.prompts.templates import KINDS, SHORT, TEMPLATES, PromptKind
from eupmim_dist.data.prompts.vocabulary import load_vocabulary
from eupmim_dist.tasks.interface import Setting, Task
from eupmim_dist.tasks.prompts.config import PromptsConfig
from eupmim_dist.tasks.prompts.samplers import Asked, Direct, Explanation, OfUsers, Sampler, Sequential, shuffled


class Prompts(Task):
    """Each step is of one kind, by its number alone; sampling within it is a pure function of (seed, step, slot)."""

    least = 1

    def __init__(self, config: PromptsConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.config = config
        self.vocabulary = load_vocabulary(config.tokenizer)

    @cached_property
    def samplers(self) -> dict[PromptKind, Sampler]:
        """Of the kinds in the mix. Raises UserError where the store has not what one needs."""
        self.training  # noqa: B018 (raises where there is nobody)
        config, common = self.config, (self.store, self.seed, self.global_batch_size)
        made: dict[PromptKind, Sampler] = {}
        if "explanation" in config.mix:
            made["explanation"] = Explanation(*common)
        if "sequential" in config.mix:
            made["sequential"] = Sequential(*common, self.history_length)
        if "direct" in config.mix:
            made["direct"] = Direct(*common, config.num_negatives)
        return made

    def kind_of(self, step: int) -> tuple[PromptKind, int]:
        """The kind of a step, and which of the steps of that kind it is."""
        mix = self.config.mix
        kind = mix[step % len(mix)]
        return kind, step // len(mix) * mix.count(kind) + mix[: step % len(mix)].count(kind)

    def sample(self, step: int) -> PromptBatch:
        kind, turn = self.kind_of(step)
        sampler = self.samplers[kind]
        asked = sampler.ask(turn, self.first_slot, self.last_slot)
        answers = self._answers(kind, sampler.answers(turn))
        width = max(len(tokens) for tokens in answers)
        answer = padded(answers[self.first_slot : self.last_slot], width)
        if self.config.learn_padding:
            answer = torch.where(answer == NO_ROW, self.vocabulary.padding, answer)
        learned = len(answers) * width if self.config.learn_padding else sum(len(tokens) for tokens in answers)
        return self._batch(kind, asked, learned, self.capacity, answer)

    def targets(self, step: int) -> Tensor:
        return self.predicted(step)[1]

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        """The users and items of `targets`, int64 [G] each; an explanation predicts no item: NO_ROW."""
        kind, turn = self.kind_of(step)
        sampler = self.samplers[kind]
        answers = sampler.answers(turn)
        if not isinstance(sampler, OfUsers):
            return (torch.full_like(answers, NO_ROW),) * 2
        return sampler.users(turn, 0, self.global_batch_size)[0], answers

    def to_rank(self, users: np.ndarray, cuts: np.ndarray) -> PromptBatch:
        """Sequential prompts in the short wording: what comes after what users [B] had before the cuts [B]?"""
        starts = torch.from_numpy(self.store.offsets[users].astype(np.int64))
        history = histories(self.store.items, starts, torch.from_numpy(cuts), self.history_length)
        return self._short("sequential", users, history)

    def to_choose(self, users: np.ndarray, candidates: Tensor) -> PromptBatch:
        """Direct prompts in the short wording: which of the candidates [B, C], NO_ROW for none, in an order that does
        not say which one is meant."""
        keys = torch.from_numpy(users.astype(np.int64)) + stream_key(self.seed, "choose")
        return self._short("direct", users, shuffled(candidates, keys))

    def to_explain(self, users: np.ndarray, items: Tensor) -> PromptBatch:
        """Explanation prompts in the short wording, of an item [B] each."""
        return self._short("explanation", users, items[:, None])

    @cached_property
    def item_answers(self) -> list[list[int]]:
        """The tokens that an item is answered with, by its id; the first of them, of padding, is never the answer."""
        return [self.vocabulary.tokens(str(item)) for item in range(self.store.num_item_rows)]

    @cached_property
    def _explanations(self) -> list[list[int]]:
        sampler, most = self.samplers["explanation"], self.config.max_answer_tokens
        assert isinstance(sampler, Explanation)
        end = self.vocabulary.end
        tokens = [self.vocabulary.tokens(text) for text in sampler.texts]
        return [each if len(each) <= most else [*each[: most - 1], end] for each in tokens]

    def _answers(self, kind: PromptKind, answers: Tensor) -> Sequence[list[int]]:
        tokens = self._explanations if kind == "explanation" else self.item_answers
        return [tokens[answer] for answer in answers.tolist()]

    def _short(self, kind: PromptKind, users: np.ndarray, items: Tensor) -> PromptBatch:
        user = torch.from_numpy(users.astype(np.int64))
        return self._batch(kind, Asked(user, items, torch.full_like(user, NO_ROW)), len(users), len(users), None)

    def _batch(
        self, kind: PromptKind, asked: Asked, num_predictions: int, capacity: int, answer: Tensor | None
    ) -> PromptBatch:
        users = asked.user.tolist()
        prompts = [
            fill(SHORT if template == NO_ROW else TEMPLATES[kind][template], user, [i for i in items if i != NO_ROW])
            for user, items, template in zip(users, asked.items.tolist(), asked.template.tolist(), strict=True)
        ]
        of_user = f"{self.store.path}: user "
        tokens, word = tokenise(
            self.vocabulary, prompts, self.config.max_tokens, lambda place: f"{of_user}{users[place]}"
        )
        return PromptBatch(
            num_predictions=num_predictions,
            capacity=capacity,
            kind=KINDS.index(kind),
            tokens=tokens,
            word=word,
            user=asked.user,
            items=asked.items,
            answer=answer,
        )

    def nobody(self) -> str:
        return f"{self.store.path}: no training user has two items, of which one could be predicted from the other"
