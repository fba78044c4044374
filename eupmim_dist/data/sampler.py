"""Training samples as a pure function of (seed, step, slot in the global batch).

Every rank computes its own slots; no rank, worker or earlier step matters (design 3.1). B slots of this rank,
G of the global batch, L history, N negatives.
"""

import torch
from torch import Tensor

from eupmim_dist.data.batch import Batch, histories
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.counter import permute, random_integers, stream_key
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

STEPS_AT_A_TIME = 64
"""Steps whose users are permuted together."""


class TrainingSampler:
    """Draws a user, a target position in [min_history, length-1], its history and distinct negatives per slot.

    A global batch holds distinct users wherever the store has at least G of them: an epoch is a permutation
    of the users, cut into whole global batches.
    """

    def __init__(
        self,
        store: InteractionStore,
        *,
        seed: int,
        global_batch_size: int,
        history_length: int,
        min_history: int,
        num_negatives: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        users = torch.from_numpy(store.users("train"))
        lengths = torch.from_numpy(store.train_lengths(users.numpy()))
        enough = lengths > min_history
        self.users, self.lengths = users[enough], lengths[enough]
        self.num_dropped = len(users) - len(self.users)
        if not len(self.users):
            raise UserError(
                f"{store.path}: no training user has more than data.min_history={min_history} items; lower it"
            )
        if num_negatives > (room := store.num_item_rows - history_length - 1):
            raise UserError(
                f"train.num_negatives: {num_negatives} distinct negatives cannot be drawn from "
                f"{store.num_item_rows} item rows; use at most {max(room, 0)}"
            )
        self.store = store
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.history_length, self.min_history, self.num_negatives = history_length, min_history, num_negatives
        self.first_slot, self.last_slot = block_range(global_batch_size, rank, world_size)
        self._permuted_block: tuple[int, int] | None = None
        self.steps_per_epoch = max(1, len(self.users) // global_batch_size)

    def sample(self, step: int) -> Batch:
        """This rank's part of the global batch of a step (counted from 0)."""
        slot = torch.arange(self.first_slot, self.last_slot)
        counter = slot + step * self.global_batch_size
        chosen = self._users(step)
        user, length = self.users[chosen], self.lengths[chosen]
        start = torch.from_numpy(self.store.offsets[user.numpy()].astype("int64"))

        positions = length - self.min_history
        cut = self.min_history + random_integers(stream_key(self.seed, "target"), counter, positions)
        target = torch.from_numpy(self.store.items[(start + cut).numpy()].astype("int64"))
        history = histories(self.store.items, start, cut, self.history_length)
        return Batch(
            user=user,
            attributes=torch.from_numpy(self.store.attribute_values[user.numpy()].astype("int64")),
            history=history,
            target=target,
            negatives=self._negatives(counter, torch.cat([history, target[:, None]], dim=1)),
            global_size=self.global_batch_size,
        )

    def _users(self, step: int) -> Tensor:
        """Indices into self.users for this rank's slots; permuted for some steps at a time, which is cheaper."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        block = batch // STEPS_AT_A_TIME
        if self._permuted_block != (epoch, block):
            batches = torch.arange(block * STEPS_AT_A_TIME, min((block + 1) * STEPS_AT_A_TIME, self.steps_per_epoch))
            slot = torch.arange(self.first_slot, self.last_slot)
            self._permuted = self._permute(epoch, batches[:, None] * self.global_batch_size + slot)
            self._permuted_block = epoch, block
        return self._permuted[batch % STEPS_AT_A_TIME]

    def _permute(self, epoch: int, position: Tensor) -> Tensor:
        """Indices into self.users for positions in an epoch.

        A batch larger than the set of users goes through the set several times, each time in another order.
        """
        count = len(self.users)
        chosen = torch.empty_like(position)
        for lap in range((self.global_batch_size - 1) // count + 1):
            inside = position // count == lap
            chosen[inside] = permute(stream_key(self.seed, "users", epoch, lap), position[inside] % count, count)
        return chosen

    def _negatives(self, counter: Tensor, excluded: Tensor) -> Tensor:
        """N distinct rows per slot, uniform over all item rows (0 too) but the excluded [B, L+1]: int64 [B, N].

        Those that collide are drawn again, which leaves every set of allowed rows equally likely.
        """
        num, rows = self.num_negatives, self.store.num_item_rows
        counters = counter[:, None] * num + torch.arange(num)
        earlier = torch.ones(num, num, dtype=torch.bool).tril(-1)
        drawn = random_integers(stream_key(self.seed, "negatives", 0), counters, rows)
        attempt = 0
        while True:
            collides = (drawn[:, :, None] == excluded[:, None, :]).any(-1)
            collides |= ((drawn[:, :, None] == drawn[:, None, :]) & earlier).any(-1)
            if not collides.any():
                return drawn
            attempt += 1
            again = random_integers(stream_key(self.seed, "negatives", attempt), counters, rows)
            drawn = torch.where(collides, again, drawn)
