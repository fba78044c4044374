"""What a step differentiates: a model and an objective as the one module that DDP or DeepSpeed wraps."""

from torch import Tensor, nn

from eupmim_dist.data.batch import Batch
from eupmim_dist.models.interface import Model, Rows
from eupmim_dist.objectives.interface import Candidates, Catalogue, Objective


class Loss(nn.Module):
    """Its parameters are the model's, in their order: an objective has none."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, rows: Rows, batch: Batch, candidates: Candidates, catalogue: Catalogue | None
    ) -> dict[str, Tensor]:
        """This rank's share of each part of the global loss."""
        shares: dict[str, Tensor] = self.objective(self.model(rows, batch), rows, batch, candidates, catalogue)
        return shares
