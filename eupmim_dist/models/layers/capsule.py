"""Dynamic-routing capsules (ComiRec-DR, Cen et al., KDD 2020; reference, "The authors' ComiRec port").

M sequences, L positions, K interests, D dim.
"""

import torch
from torch import Tensor, nn


class CapsuleRouting(nn.Module):
    """Routes the positions of a history to K interest capsules; no gradient passes the first iterations."""

    num_iterations = 3

    def __init__(self, length: int, num_interests: int, dim: int) -> None:
        super().__init__()
        self.num_interests = num_interests
        self.weights = nn.Parameter(torch.randn(1, length, num_interests * dim, dim) / dim**0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [M, L, D], mask [M, L] -> capsules [M, K, D]."""
        num, length, dim = x.shape
        votes = torch.einsum("mld,led->mle", x, self.weights[0])
        votes = votes.view(num, length, self.num_interests, dim).transpose(1, 2)  # [M, K, L, D]
        constant = votes.detach()
        logits = votes.new_zeros(num, self.num_interests, length)
        for _ in range(self.num_iterations - 1):
            capsule = self._gather(logits, constant, mask)
            logits = logits + (constant @ capsule[..., None])[..., 0]
        return self._gather(logits, votes, mask)

    @staticmethod
    def _gather(logits: Tensor, votes: Tensor, mask: Tensor) -> Tensor:
        weights = logits.softmax(1) * mask[:, None, :]  # over the interests
        summed = (weights[:, :, None, :] @ votes)[:, :, 0]
        square = summed.square().sum(-1, keepdim=True)
        return square / (1 + square) / (square + 1e-9).sqrt() * summed
