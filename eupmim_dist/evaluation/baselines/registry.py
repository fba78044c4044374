"""Baseline name -> class. Each learns from the training split alone and is ranked as a model is."""

from collections.abc import Callable, Sequence

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.baselines.cooccurrence import Cooccurrence
from eupmim_dist.evaluation.baselines.ease import EASE
from eupmim_dist.evaluation.baselines.popularity import Popularity
from eupmim_dist.evaluation.topn import Scorer
from eupmim_dist.parallel.world import World

BASELINES: dict[str, Callable[[InteractionStore, int, World], Scorer]] = {
    "popularity": Popularity,
    "ease": EASE,
    "cooccurrence": Cooccurrence,
}


def check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in BASELINES:
            raise UserError(f"--baseline {name}: choose from {', '.join(BASELINES)}")
