"""EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019), in closed form.

G queries, L = `history`, R item rows.
"""

import time
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.training_data import training_interactions
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer
from eupmim_dist.parallel.memory import lack_of_memory
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.progress import QUICK_SECONDS, task_progress

REGULARISATION = 1000.0
"""lambda: added to the diagonal of the items' Gram matrix."""
TRIAL_ROWS, TRIALS = 1024, 5
"""Of the matrix whose inverse is timed to know how long the one that is wanted will take."""
INTERACTION_SECONDS, PAIR_SECONDS, ENTRY_SECONDS = 8e-7, 1.5e-9, 7e-9
"""Rough cost of counting: of an interaction, of two items that a user had, and of an entry of the Gram matrix."""
INTERACTION_BYTES = 100
"""Needed to count, at the most."""


class EASEConfig(ScorerSection):
    name: Literal["ease"] = "ease"
    """What ranks the catalogue."""


class EASE(Scorer):
    """Item-item weights from all training histories, applied to the last items of a user.

    Each rank solves for all the weights and keeps the columns of its own items. At its peak it holds one R x R matrix
    in float64, and its own columns once more where there are several ranks.
    """

    history: int = 10

    def __init__(self, config: EASEConfig, ranking: Ranking) -> None:
        store, world = ranking.store, ranking.world
        rows = store.num_item_rows
        first, last = block_range(rows, world.rank, world.size)
        self.item_ids = torch.arange(first, last, device=world.device)
        self.check_room(store, world)
        user, items = training_interactions(store)
        _state_cost(rows, np.bincount(user), last - first, world)
        gram = gram_matrix(user, items, rows, world.is_main)
        gram.diagonal().add_(REGULARISATION)
        with task_progress(f"ease: inverting a matrix of {rows:,} x {rows:,}", is_main=world.is_main):
            invert(gram)
        weights = gram if world.size == 1 else gram[:, first:last].clone()
        weights /= -gram.diagonal()[first:last].clone()
        weights[first:last].fill_diagonal_(0.0)
        self.weights = weights.to(world.device)  # float64

    @classmethod
    def check_room(cls, store: InteractionStore, world: World) -> None:
        rows = store.num_item_rows
        first, last = block_range(rows, world.rank, world.size)
        matrix, own = f"a matrix of {rows:,} x {rows:,} items", last - first
        needed = _bytes(rows, own, len(training_interactions(store)[0]), world)
        if lack := lack_of_memory(needed, torch.device("cpu"), world):
            raise UserError(f"--baseline ease: {matrix} {lack}; choose another baseline, or a machine with more")
        if world.device.type != "cpu" and (lack := lack_of_memory(8 * rows * own, world.device, world)):
            raise UserError(f"--baseline ease: its weights of {own:,} items: {world.device.type} {lack}; use --cpu")

    def query(self, users: HeldOut) -> Tensor:
        """Each user's items once, ascending, among zeros."""
        items = users.last_seen(self.history).clamp(min=0).sort(dim=1).values
        again = items[:, 1:] == items[:, :-1]
        items[:, 1:].masked_fill_(again, 0)
        return items.to(self.weights.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        # Adds up one row after another, so a sum does not depend on which columns there are.
        return F.embedding_bag(query, self.weights[:, start:stop], mode="sum", padding_idx=0)[:, None]


def gram_matrix(user: np.ndarray, items: np.ndarray, rows: int, is_main: bool = True) -> Tensor:
    """Float64 [R, R]: how many users had both of two items; counts, and so exact. `user` ascends.

    Row by row, from the histories of those who had the item: a row stays in the cache, which the matrix does not.
    """
    distinct = Ragged(torch.from_numpy(user), torch.from_numpy(items)).distinct(rows)
    user, items = distinct.user.numpy(), distinct.item.numpy()
    histories = np.split(items, np.searchsorted(user, np.arange(1, user.max(initial=0) + 1)))
    by_item = np.argsort(items, kind="stable")
    takers = np.split(user[by_item], np.searchsorted(items[by_item], np.arange(1, rows)))
    gram = np.zeros((rows, rows))
    with task_progress("ease: counting which items were taken together", rows, is_main) as advance:
        for item, users in enumerate(takers):
            if len(users):
                together = np.concatenate([histories[user] for user in users.tolist()])
                gram[item] = np.bincount(together, minlength=rows)
            advance(1)
    return torch.from_numpy(gram)


def invert(matrix: Tensor) -> None:
    """Inverts a symmetric positive definite matrix where it lies; LAPACK needs no more than a few columns beside it."""
    by_columns = matrix.mT  # the same matrix, laid out as LAPACK has them, so that nothing is copied
    torch.linalg.cholesky(by_columns, out=by_columns)
    torch.cholesky_inverse(by_columns, out=by_columns)


def _state_cost(rows: int, lengths: np.ndarray, own: int, world: World) -> None:
    """Logs the memory and time it will take, if more than a moment."""
    interactions, pairs = int(lengths.sum()), int((lengths**2).sum())
    seconds = INTERACTION_SECONDS * interactions + PAIR_SECONDS * pairs + ENTRY_SECONDS * rows**2
    if rows > TRIAL_ROWS:
        seconds += _seconds_to_invert(TRIAL_ROWS) * (rows / TRIAL_ROWS) ** 3
    if seconds > QUICK_SECONDS:
        each = f", on each of {world.size} ranks" if world.size > 1 else ""
        memory = _bytes(rows, own, interactions, world) / 1e9
        cost = f"{memory:,.1f} GB of memory and about {seconds:,.0f} s to count and invert{each}"
        get_logger(world.rank).info(f"ease: a matrix of {rows:,} x {rows:,} items takes {cost}")


def _bytes(rows: int, own: int, interactions: int, world: World) -> int:
    """That a rank takes at its peak."""
    return 8 * rows * (rows if world.size == 1 else rows + own) + INTERACTION_BYTES * interactions


def _seconds_to_invert(rows: int) -> float:
    """The least of some: the first may start threads, and others may be disturbed."""
    taken = []
    for _ in range(TRIALS):
        matrix = torch.eye(rows, dtype=torch.float64)
        started = time.perf_counter()
        invert(matrix)
        taken.append(time.perf_counter() - started)
    return min(taken)


SCORER = Registered(EASEConfig, EASE)
