"""What a language model is fed: prompts as tokens, and the answers to them where these are to be learned.

B samples of this rank, S tokens of a prompt, n items that it names, T tokens of an answer.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, Batch


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Prompts of one kind. Int64 tensors; `num_predictions` counts the tokens that are learned."""

    kind: int
    """The place of their kind in templates.KINDS."""
    tokens: Tensor  # [B, S], NO_ROW past the end
    word: Tensor  # [B, S], what each token is of: prompt.NO_WORD, USER_WORD, FIRST_ITEM_WORD + k
    user: Tensor  # [B]
    items: Tensor  # [B, n], NO_ROW past the end
    answer: Tensor | None = None  # [B, T], NO_ROW for what is not learned; None where answers are asked for

    def __len__(self) -> int:
        return len(self.user)

    def trimmed(self) -> Self:
        """Without the columns in which nothing but padding is left."""
        longest = int((self.tokens != NO_ROW).sum(1).max()) if len(self) else 0
        return replace(self, tokens=self.tokens[:, :longest], word=self.word[:, :longest])
