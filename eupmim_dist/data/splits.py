"""How the interactions of a store are split: what training may see, and what is held out for valid and test.

A store has one rule, named in its manifest, and a code for each user in `split.npy`: his split, or NO_SPLIT where he
takes part in none. Shapes: `codes` uint8 [users], `offsets` int64 [users + 1], `lengths` int64 [any], one a user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "valid", "test")  # codes 0, 1, 2
TRAIN, VALID, TEST = range(3)
NO_SPLIT = 255
HISTORY_SHARE = 0.8
"""Of the sequence of a user who is held out, where users are."""


class SplitRule(ABC):
    """One way to split. The names of splits are those of SPLITS; another raises ValueError."""

    name: str
    draws: bool
    """Whether chance decides who is where, so that users are to be shuffled before they get their codes."""

    @abstractmethod
    def codes(self, num_users: int) -> np.ndarray:
        """Of users whose source says nothing of splits."""

    @abstractmethod
    def users(self, split: str, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Ascending int64 ids of the users that `split` trains on or evaluates."""

    @abstractmethod
    def train_lengths(self, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """How many leading interactions of each user may be trained on; `codes` and `lengths` of the same users."""

    @abstractmethod
    def evaluation_window(self, lengths: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`(cut, end)` of each user: history is items[:cut], targets are items[cut:end].

        Raises ValueError if the split has none.
        """

    @abstractmethod
    def split_of_interactions(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The code of the split that each interaction belongs to, NO_SPLIT for none; uint8 [interactions]."""

    @abstractmethod
    def sizes(self, codes: np.ndarray) -> dict[str, int]:
        """Users by split, as the manifest counts them."""

    @abstractmethod
    def lack(self, codes: np.ndarray) -> str | None:
        """What a split needs and has not, with the mend, for people; None if nothing."""

    @abstractmethod
    def rows(self, sizes: dict[str, int]) -> dict[str, str]:
        """What is held out, for people: what -> how much."""

    @abstractmethod
    def sentence(self, sizes: dict[str, int]) -> str:
        """The same in words, to go on from a semicolon."""


@dataclass(frozen=True)
class ByUser(SplitRule):
    """A user is in one split; of one held out, the first 80 % are his history and the rest are his targets."""

    name: str
    draws: bool
    mend: str
    """Of a split without users."""

    def codes(self, num_users: int) -> np.ndarray:
        """Train up to int(0.8 n), valid up to int(0.9 n), then test, as the authors of E-UPMiM cut."""
        codes = np.full(num_users, TEST, np.uint8)
        codes[: int(num_users * 0.9)] = VALID
        codes[: int(num_users * 0.8)] = TRAIN
        return codes

    def users(self, split: str, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return np.flatnonzero(codes == _code(split))

    def train_lengths(self, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The whole sequence of a user of the train split; nothing of any other."""
        return np.where(codes == TRAIN, lengths, 0)

    def evaluation_window(self, lengths: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """cut = int(0.8 * length) in float64, end = length."""
        _code(split)
        return (HISTORY_SHARE * lengths).astype(np.int64), lengths

    def split_of_interactions(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return np.repeat(codes, np.diff(offsets))

    def sizes(self, codes: np.ndarray) -> dict[str, int]:
        return {split: int(np.count_nonzero(codes == code)) for code, split in enumerate(SPLITS)}

    def lack(self, codes: np.ndarray) -> str | None:
        sizes = self.sizes(codes)
        empty = next((split for split, users in sizes.items() if not users), None)
        return empty and f"the {empty} split has no user ({sum(sizes.values())} users are left); {self.mend}"

    def rows(self, sizes: dict[str, int]) -> dict[str, str]:
        return {f"{split} users": f"{users:,}" for split, users in sizes.items()}

    def sentence(self, sizes: dict[str, int]) -> str:
        return f"split by user ({', '.join(f'{users:,} {split}' for split, users in sizes.items())})"


class LeaveOneOut(SplitRule):
    """Every user is in all splits: the last item is for test, the one before it for valid, the others for training."""

    name = "leave_one_out"
    draws = False

    def codes(self, num_users: int) -> np.ndarray:
        """Of users who take part: any but NO_SPLIT would do."""
        return np.full(num_users, TRAIN, np.uint8)

    def users(self, split: str, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Those with an interaction before the one held out for the split; training leaves out the last two."""
        least = (3, 3, 2)[_code(split)]
        return np.flatnonzero((np.diff(offsets) >= least) & (codes != NO_SPLIT))

    def train_lengths(self, codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """All but the last two."""
        return np.where(codes != NO_SPLIT, np.maximum(lengths - 2, 0), 0)

    def evaluation_window(self, lengths: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(length - 2, length - 1) for valid, (length - 1, length) for test; none for train."""
        if _code(split) == TRAIN:
            raise ValueError(f"{self.name} holds out no item for split 'train'; evaluate 'valid' or 'test'")
        end = lengths - 1 if _code(split) == VALID else lengths
        return end - 1, end

    def split_of_interactions(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        split_of = np.repeat(codes, np.diff(offsets))
        ends = offsets[1:][codes != NO_SPLIT]
        split_of[ends - 1] = TEST
        split_of[ends - 2] = VALID
        return split_of

    def sizes(self, codes: np.ndarray) -> dict[str, int]:
        return dict.fromkeys(SPLITS, int(np.count_nonzero(codes != NO_SPLIT)))

    def lack(self, codes: np.ndarray) -> str | None:
        return None

    def rows(self, sizes: dict[str, int]) -> dict[str, str]:
        return {"held out per user": "last: test, second last: valid"}

    def sentence(self, sizes: dict[str, int]) -> str:
        return "the last item of each user for test, the one before it for valid"


BY_USER = ByUser("by_user", draws=True, mend="10 are enough for 80/10/10")
GIVEN = ByUser("given", draws=False, mend="put some there")
LEAVE_ONE_OUT = LeaveOneOut()
SPLIT_RULES: dict[str, SplitRule] = {rule.name: rule for rule in (BY_USER, GIVEN, LEAVE_ONE_OUT)}


def _code(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    return SPLITS.index(split)
