"""Features added to rows (models/features.py says what they are) and their gradients.

The rank that holds a row adds them: it alone needs to know what the row is of, and what ranks exchange stays the same.
By the chain rule the gradient of a feature's row is a sum over the gradients of the rows that have it, so it follows
from what their ranks have in hand after a backward pass. Tables of features are held whole by every rank.

n rows of this rank, m of them looked up, k of them with a gradient, C values of an attribute at most, V numbers, D dim.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.merge import merge_rows
from eupmim_dist.parallel.placement import Shard, TableGroup


class RowFeatures:
    """The features of the rows that this rank holds of a table; `group`, the `number`th, has the features' own rows."""

    def __init__(
        self, features: Sequence[Feature], shard: Shard, group: TableGroup, number: int, device: torch.device
    ) -> None:
        ids = shard.ids().numpy()
        self.group, self.number, self.device = group, number, device
        self.parts = [
            _Numbers(feature.numbers[ids], _keys(group, feature.spec, np.arange(feature.spec.rows)), device)
            if feature.numbers is not None
            else _Values(_keys(group, feature.spec, _values_of(feature)[ids]), feature.spec, group, device)
            for feature in features
        ]

    def add_to(self, rows: Tensor, places: Tensor) -> None:
        """Adds to rows [m, D], which are those at `places`, int64 [m], of this rank's, what their features add."""
        weight, places = self.group.weight.to(self.device), places.to(self.device, non_blocking=True).long()
        for part in self.parts:
            rows += part.of(weight, places)

    def gradient(self, places: Tensor, values: Tensor) -> Tensor:
        """The gradient of all rows of `group`, by that of rows at distinct `places`: int64 [k] ascending, [k, D]."""
        found = values.new_zeros(len(self.group.weight), values.shape[1])
        for part in self.parts:
            part.add_gradient(found, places.to(self.device), values)
        return found


class _Values:
    """Of an attribute: int64 keys [n, C] of the rows of its values in their group's tensor."""

    def __init__(self, keys: Tensor, spec: TableSpec, group: TableGroup, device: torch.device) -> None:
        self.keys = keys.to(device)
        self.none = int(_keys(group, spec, np.zeros(1, np.int64)))
        number = (self.keys != self.none).sum(1)
        self.share = 1.0 / number.clamp(min=1)[:, None]  # [n, 1]
        first = group.members[spec.name].offset
        self.all = torch.arange(first, first + spec.rows, device=device)
        self.none_of_all = self.none - first
        self.of_all_rows: tuple[Tensor, Tensor] | None = None

    def of(self, weight: Tensor, places: Tensor) -> Tensor:
        return F.embedding_bag(self.keys[places], weight, mode="mean", padding_idx=self.none)

    def add_gradient(self, out: Tensor, places: Tensor, values: Tensor) -> None:
        order, starts = self._by_value(places)
        found = merge_rows(values * self.share[places], order, starts)
        found[self.none_of_all] = 0.0
        out[self.all] = found

    def _by_value(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the k rows have each value, as `merge_rows` takes it."""
        every = len(places) == len(self.keys)  # as a loss over the whole catalogue has it, in each step
        if every and self.of_all_rows is not None:
            return self.of_all_rows
        keys, order = self.keys[places].flatten().sort(stable=True)
        starts = torch.searchsorted(keys, self.all)
        found = (order // self.keys.shape[1]).int(), starts.int()
        if every:
            self.of_all_rows = found
        return found


class _Numbers:
    """Numbers [n, V], and the keys of their rows in their group's tensor."""

    def __init__(self, numbers: np.ndarray, keys: Tensor, device: torch.device) -> None:
        self.numbers, self.keys = torch.from_numpy(np.ascontiguousarray(numbers)).to(device), keys.to(device)

    def of(self, weight: Tensor, places: Tensor) -> Tensor:
        return self.numbers[places] @ weight[self.keys]

    def add_gradient(self, out: Tensor, places: Tensor, values: Tensor) -> None:
        out[self.keys] = self.numbers[places].T @ values


def _values_of(feature: Feature) -> np.ndarray:
    assert feature.values is not None, "a feature has values or numbers"
    return feature.values


def _keys(group: TableGroup, spec: TableSpec, ids: np.ndarray) -> Tensor:
    """Where rows `ids` of a feature's table stand in the group's tensor."""
    return torch.from_numpy(group.keys(spec.name, ids.astype(np.int64)))
