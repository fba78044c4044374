"""Baselines as they are compared with: each reads as much of a history as suits it."""

from collections.abc import Mapping

from eupmim_dist.evaluation.runner import evaluate_by, ranking_of
from eupmim_dist.evaluation.scorers.interface import Scorer, make_scorer
from eupmim_dist.train.state import Setup

HISTORIES = (5, 10, 20, 50)
"""Numbers of items that a baseline is tried with."""


def make_baseline(name: str, setup: Setup, top_n: int) -> Scorer:
    """A baseline that reads as much of a history as gives it the best strict recall@top_n on valid users; collective.

    How much that is differs much between data sets, and one that reads too much or too little is no rival. Without
    valid users it reads what it does by default.
    """
    scorer = make_scorer(name, ranking_of(setup))
    if scorer.history is not None and len(setup.store.users("valid")):
        recalls = {}
        for scorer.history in HISTORIES:
            read = f"{name} by the last {scorer.history} items"
            result = evaluate_by(scorer, read, setup, "valid", "strict", [top_n], progress=True)
            recalls[scorer.history] = result.metrics[f"recall@{top_n}"]
        scorer.history = max(recalls, key=recalls.__getitem__)
    return scorer


def histories_read(histories: Mapping[str, int | None]) -> str:
    """A sentence on what baselines read, by their names; empty if none reads a history."""
    read = ", ".join(f"{name} {history}" for name, history in histories.items() if history is not None)
    any_of = f"{', '.join(map(str, HISTORIES[:-1]))} or {HISTORIES[-1]}"
    return read and f"Last items of a history that baselines read, of {any_of} the best on valid users: {read}."
