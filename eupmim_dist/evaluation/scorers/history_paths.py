"""The paths of `paths`, begun at all that a user had before the cut: on test users of leave-one-out stores also at the
item that was held out for valid, which the other baselines and the models read too."""

from typing import Literal

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.evaluation.scorers.paths import Paths


class HistoryPathsConfig(ScorerSection):
    name: Literal["history_paths"] = "history_paths"
    """What ranks the catalogue."""


class HistoryPaths(Paths):
    name = "history_paths"

    def starts(self, users: HeldOut) -> Ragged:
        return users.seen


SCORER = Registered(HistoryPathsConfig, HistoryPaths)
