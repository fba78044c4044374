"""How the weights that a model's authors have released are told apart and renamed, both ways."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor

from eupmim_dist.errors import UserError

ITEMS, USERS = "mid_embeddings_var.weight", "user_embeddings_var.weight"
ITEM_BIASES = "mid_embeddings_bias.weight"
"""That nothing reads."""


class Release(ABC):
    """One model's release by the authors of E-UPMiM, whose tables have the same names in all of theirs."""

    always: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    """Settings of the model that its tensors cannot say otherwise, and that are taken for granted."""

    @abstractmethod
    def settings(self, tensors: dict[str, Tensor], file: Path) -> dict[str, Any] | None:
        """Sections of a configuration as the tensors tell them; None for another model's.

        Raises UserError for this model's that is not as released.
        """

    @abstractmethod
    def tables(self, attributes: list[str]) -> dict[str, str]:
        """Our tables -> the released tensors, for data with these attributes. Raises UserError for others than its."""

    @abstractmethod
    def names(self, attributes: list[str]) -> dict[str, str]:
        """Ours <- theirs, by whole name or prefix, of dense parameters; {} is a number that both have."""

    def unused(self, dim: int, num_users: int) -> dict[str, tuple[int, ...]]:
        """Tensors that the authors' class has and nothing reads, beside the biases of items."""
        return {}


def their_name(name: str, names: dict[str, str]) -> str:
    """The released name of our parameter `name`; its own where `names` has none for it."""
    for ours, theirs in names.items():
        pattern = re.escape(ours).replace(r"\{\}", r"(\d+)")
        if match := re.match(pattern, name):
            return theirs.format(*match.groups()) + name[match.end() :]
    return name


def item_width(tensors: dict[str, Tensor], file: Path) -> int:
    """D. Raises UserError where there is no table of items."""
    if ITEMS not in tensors or tensors[ITEMS].ndim != 2:
        raise UserError(f"{file}: holds no {ITEMS}, so it is neither E-UPMiM nor ComiRec as released")
    return tensors[ITEMS].shape[1]
