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
from eupmim_dist.errors import UserError, shown
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.tasks.interface import Setting
from eupmim_dist.tasks.prompts.config import PromptsConfig
from eupmim_dist.tasks.prompts.samplers import Asked, Direct, Explanation, Sampler, Sequential, shuffled

TOO_LONG: dict[PromptKind, str] = {
    "sequential": "lower task.history_length, or raise it",
    "direct": "lower task.num_negatives, or raise it",
    "explanation": "raise it",
}


class Prompts(AskingTask):
    """Each step is of one kind, by its number alone; sampling within it is a pure function of (seed, step, slot)."""

    least = 1

    def __init__(self, config: PromptsConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.config = config
        self.vocabulary = load_vocabulary(config.tokenizer)
        self.max_answer_tokens = config.max_answer_tokens
        self.explains = "explanation" in config.mix
        self.num_kinds = len(config.mix)
        if config.learn_padding and self.vocabulary.padding is None:
            raise UserError(
                f"task.learn_padding: {config.tokenizer} has no token for padding; use another task.tokenizer"
            )
        if setting.zero_untrained:
            raise UserError("task prompts: names users whose rows the model has not (TableSpec.untrained); use table")

    @cached_property
    def samplers(self) -> dict[PromptKind, Sampler]:
        """Of the kinds in the mix. Raises UserError where the store has not what one needs."""
        made: dict[PromptKind, Sampler] = {}
        short = self.config.wordings == "short"
        if self.explains:
            made["explanation"] = Explanation(self, short)
            self.vocabulary.check_words()
        if len(self.training) and "sequential" in self.config.mix:  # raises where there is nobody
            made["sequential"] = Sequential(self, short)
        if "direct" in self.config.mix:
            made["direct"] = Direct(self, short, self.config.num_negatives)
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
            assert self.vocabulary.padding is not None, "made sure when the task was made"
            answer = torch.where(answer == NO_ROW, self.vocabulary.padding, answer)
        learned = len(answers) * width if self.config.learn_padding else sum(len(tokens) for tokens in answers)
        return self._batch(kind, asked, learned, self.capacity, answer)

    def targets(self, step: int) -> Tensor:
        """The items that are answers; an explanation predicts none: NO_ROW."""
        kind, turn = self.kind_of(step)
        answers = self.samplers[kind].answers(turn)
        return torch.full_like(answers, NO_ROW) if kind == "explanation" else answers

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        """Those of `targets`, and what the user of a sequential prompt had later."""
        kind, turn = self.kind_of(step)
        return self.samplers[kind].predicted(turn)

    def to_rank_by(
        self, items: np.ndarray, starts: np.ndarray, cuts: np.ndarray, users: np.ndarray, attributes: Tensor
    ) -> PromptBatch:
        """Sequential prompts in the short wording: what comes after what users had? Raises UserError for somebody who
        is not in the store: there is no name to ask by."""
        if (users == NO_ROW).any():
            raise UserError(
                "--history: a user is asked for by his name in the store, which somebody new has not; name users of "
                "the store, or use another model"
            )
        history = histories(items, torch.from_numpy(starts), torch.from_numpy(cuts), self.history_length)
        return self._short("sequential", users, history)

    def to_choose(self, users: np.ndarray, candidates: Tensor) -> PromptBatch:
        """Direct prompts in the short wording."""
        keys = torch.from_numpy(users.astype(np.int64)) + stream_key(self.seed, "choose")
        return self._short("direct", users, shuffled(candidates, keys))

    def to_explain(self, users: np.ndarray, items: Tensor) -> PromptBatch:
        """Explanation prompts in the short wording."""
        return self._short("explanation", users, items[:, None])

    @cached_property
    def item_answers(self) -> list[list[int]]:
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

        def told(place: int) -> tuple[str, str]:
            [raw] = self.store.raw_user_ids(asked.user[place : place + 1].numpy())
            mend = TOO_LONG[kind] if answer is not None or kind != "direct" else "raise it"  # or the store's negatives
            return f"the {kind} prompt of user {shown(users[place] if raw is None else raw)} of {self.store.path}", mend

        tokens, word = tokenise(self.vocabulary, prompts, self.config.max_tokens, told)
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
