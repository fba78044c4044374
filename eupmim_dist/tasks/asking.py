"""What a task has that asks a model in words, beside its samples: what else can be asked, and how answers are written.

B users, C candidates.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.vocabulary import Vocabulary
from eupmim_dist.tasks.interface import Task


class AskingTask(Task):
    vocabulary: Vocabulary
    max_answer_tokens: int
    """Tokens at which an answer in free words is cut, its end among them."""
    explains: bool
    """Whether its training asks for explanations."""

    @property
    @abstractmethod
    def item_answers(self) -> Sequence[Sequence[int]]:
        """The tokens that an item is answered with, by its id; the first of them, of padding, is never the answer."""

    @abstractmethod
    def to_choose(self, users: np.ndarray, candidates: Tensor) -> PromptBatch:
        """Which of the candidates, int64 [B, C], NO_ROW for none? In an order that tells nothing."""

    @abstractmethod
    def to_explain(self, users: np.ndarray, items: Tensor) -> PromptBatch:
        """Why an item, int64 [B] each?"""
