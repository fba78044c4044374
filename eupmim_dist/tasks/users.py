"""Which users a training step samples: a pure function of (seed, step, slot in the global batch).

Every rank computes its own slots and can compute another's; no rank, worker or earlier step matters (design 3.1).
S slots.
"""

import torch
from torch import Tensor

from eupmim_dist.data.counter import permute, random_integers, stream_key
from eupmim_dist.data.store import InteractionStore

POSITIONS_AT_A_TIME = 1 << 13
"""About so many positions are permuted together: fewer cost more each, and many at once would hold up a step."""


class TrainingUsers:
    """The users that training draws from, those with more than `least` items, and their order.

    A global batch holds distinct users wherever there are at least as many: an epoch is a permutation of the users,
    cut into whole global batches.
    """

    def __init__(self, store: InteractionStore, seed: int, global_batch_size: int, least: int) -> None:
        users = torch.from_numpy(store.users("train"))
        lengths = torch.from_numpy(store.train_lengths(users.numpy()))
        enough = lengths > least
        self.users, self.lengths = users[enough], lengths[enough]
        self.num_dropped = len(users) - len(self.users)
        self.seed, self.global_batch_size = seed, global_batch_size
        self.steps_per_epoch = max(1, len(self.users) // global_batch_size)
        self._permuted: dict[tuple[int, int], tuple[int, int, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.users)

    def chosen(self, step: int, first: int, stop: int) -> Tensor:
        """Indices into `users` of the slots first..stop-1 of a step; permuted for some steps at a time."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        together = max(1, POSITIONS_AT_A_TIME // max(1, stop - first))
        block = batch // together
        if self._permuted.get((first, stop), (-1, -1))[:2] != (epoch, block):
            batches = torch.arange(block * together, min((block + 1) * together, self.steps_per_epoch))
            slots = torch.arange(first, stop)
            permuted = self._permute(epoch, batches[:, None] * self.global_batch_size + slots)
            self._permuted[first, stop] = epoch, block, permuted
        return self._permuted[first, stop][2][batch % together]

    def _permute(self, epoch: int, position: Tensor) -> Tensor:
        """Indices into `users` for positions in an epoch.

        A batch larger than the set of users goes through the set several times, each time in another order.
        """
        if not position.numel():  # a rank without slots
            return position
        lap, inside = position // len(self.users), position % len(self.users)
        first, last = int(lap.min()), int(lap.max())
        keys = [stream_key(self.seed, "users", epoch, number) for number in range(first, last + 1)]
        key = keys[0] if first == last else torch.tensor(keys)[lap - first]
        return permute(key, inside, len(self.users))


def draw_cuts(seed: int, counter: Tensor, least: Tensor | int, lengths: Tensor) -> Tensor:
    """How many items come before the target of each counter: uniform in [least, length - 1], int64 [S]."""
    return least + random_integers(stream_key(seed, "target"), counter, lengths - least)
