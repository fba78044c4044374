"""EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019), in closed form.

R item rows.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.data.training_data import training_interactions
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer

REGULARISATION = 1000.0
"""lambda: added to the diagonal of the items' Gram matrix."""
MOST_ITEMS = 30_000
"""The closed form inverts an R x R matrix in float64, 7 GB here; at its peak it holds some three of them."""
USERS_AT_A_TIME = 4096


class EASEConfig(ScorerSection):
    name: Literal["ease"] = "ease"
    """What ranks the catalogue."""


class EASE(Scorer):
    """Item-item weights from all training histories, applied to the last L items of a user.

    Each rank solves for all the weights and keeps the columns of its own items.
    """

    def __init__(self, config: EASEConfig, ranking: Ranking) -> None:
        store, world = ranking.store, ranking.world
        rows = store.num_item_rows
        if rows > MOST_ITEMS:
            raise UserError(f"--baseline ease: needs an R x R matrix; {rows} item rows are more than {MOST_ITEMS}")
        user, items = training_interactions(store)
        gram = torch.zeros(rows, rows, dtype=torch.float64)
        for first in range(0, int(user[-1]) + 1 if len(user) else 0, USERS_AT_A_TIME):
            low, high = np.searchsorted(user, [first, first + USERS_AT_A_TIME])
            took = torch.zeros(USERS_AT_A_TIME, rows)
            took[user[low:high] - first, items[low:high]] = 1.0
            gram += (took.T @ took).double()  # at most USERS_AT_A_TIME: exact in float32
        gram.diagonal().add_(REGULARISATION)
        inverse = torch.linalg.inv(gram)
        weights = inverse / -inverse.diagonal()
        weights.fill_diagonal_(0.0)
        first, last = block_range(rows, world.rank, world.size)
        self.item_ids = torch.arange(first, last, device=world.device)
        self.weights = weights[:, first:last].clone().to(world.device)  # float64

    def query(self, users: HeldOut) -> Tensor:
        return users.batch.history.to(self.weights.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        columns = self.weights[:, start:stop]
        took = query.new_zeros(len(query), len(columns), dtype=columns.dtype)
        took.scatter_(1, query.clamp(min=0), 1.0)
        took[:, 0] = 0.0  # where padding went
        return (took @ columns)[:, None]


SCORER = Registered(EASEConfig, EASE)
