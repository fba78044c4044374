"""Association: co-occurrence in relation to how common both items are.

The conditional probability of Deshpande and Karypis ("Item-Based Top-N Recommendation Algorithms", TOIS 2004), alpha
1/2, of items within a window; damped, as items that were seldom taken say little.
"""

from typing import Literal

import numpy as np

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.evaluation.scorers.cooccurrence import Cooccurrence

EARLIER_DAMPING, LATER_DAMPING = 10, 50
"""Added to the training interactions of an item of the history, and of one that is scored."""


class AssociationConfig(ScorerSection):
    name: Literal["association"] = "association"
    """What ranks the catalogue."""


class Association(Cooccurrence):
    """How often b followed a, by (count of a + 10) and by the square root of (count of b + 50)."""

    def weights_of(self, keys: np.ndarray, counts: np.ndarray, items: np.ndarray) -> np.ndarray:
        taken = np.bincount(items, minlength=self.rows)
        earlier, later = np.divmod(keys, self.rows)
        return counts / (taken[earlier] + EARLIER_DAMPING) / np.sqrt(taken[later] + LATER_DAMPING)


SCORER = Registered(AssociationConfig, Association)
