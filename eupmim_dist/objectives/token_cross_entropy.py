"""Cross entropy of the tokens of answers, for models that write."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ObjectiveSection
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Encoded, Model, Rows
from eupmim_dist.models.writing import Writer
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective
from eupmim_dist.tasks.interface import Task


class TokenCrossEntropyConfig(ObjectiveSection):
    name: Literal["token_cross_entropy"] = "token_cross_entropy"
    """What is minimised: sampled_softmax, full_softmax, or token_cross_entropy (of answers in words)."""


class TokenCrossEntropy(Objective):
    """The mean over all tokens of the answers of a global batch."""

    batch_type = PromptBatch

    def __init__(self, config: TokenCrossEntropyConfig, model: Model, task: Task) -> None:
        super().__init__()
        if not isinstance(model, Writer):
            raise UserError(
                "objective.name: token_cross_entropy is of a model that writes; choose sampled_softmax or full_softmax"
            )

    def draw(self, batch: PromptBatch, step: int) -> Candidates:
        return Candidates()

    def forward(
        self, encoded: Encoded, rows: Rows, batch: PromptBatch, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        assert encoded.logits is not None, "a training batch has answers"
        assert batch.answer is not None
        logits, answer = encoded.logits.flatten(0, 1).float(), batch.answer.flatten()
        loss = F.cross_entropy(logits, answer, ignore_index=NO_ROW, reduction="sum")
        return {"cross_entropy": loss / batch.num_predictions, **encoded.penalties}


OBJECTIVE = Registered(TokenCrossEntropyConfig, TokenCrossEntropy)
