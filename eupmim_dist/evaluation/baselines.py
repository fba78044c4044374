"""Baselines as they are compared with: each reads as much of a history as suits it."""

from collections.abc import Mapping

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.protocols import EXPLANATION, PROTOCOLS
from eupmim_dist.evaluation.runner import evaluate_scorer, held_out_users
from eupmim_dist.evaluation.scorers.interface import Scorer
from eupmim_dist.train.state import Setup

CUTOFF = 10
"""The N that is looked at where none is asked for."""
HISTORIES = (1, 2, 3, 5, 10, 20, 50)
"""Numbers of items that a baseline is tried with."""
MOST_USERS = 10_000
"""Valid users that it is tried on, evenly from all: more would only make a rough choice slower."""
EASE_ITEMS = 5000
"""Of more items, whose matrix it inverts, EASE is no quick baseline."""
FEW_INTERACTIONS, FEW_SCORES = 2_000_000, 50_000_000
"""Up to which counting what follows what, and scoring items for users, needs seconds."""


def quick_baselines(store: InteractionStore) -> list[str]:
    """Those that show by themselves what a model is worth, without that of a matrix which would be large."""
    return ["popularity", "association", *(["ease"] if store.num_item_rows - 1 <= EASE_ITEMS else [])]


def cheap_baselines(store: InteractionStore) -> list[str]:
    """Those that need seconds here: what there is beside a result without being asked for."""
    scores = len(store.users("test")) * store.num_item_rows
    trials = len(HISTORIES) * min(len(store.users("valid")), MOST_USERS) * store.num_item_rows
    counted = len(store.items) <= FEW_INTERACTIONS and scores + trials <= FEW_SCORES
    return [*(["popularity"] if scores <= FEW_SCORES else []), *(["association"] if counted else [])]


def judge_of(protocol: str) -> str:
    """The protocol by which a finished training is tested, and by which it is chosen how much of a history is read,
    where it is judged by another one: among given negatives that one, else all items, whatever is easier."""
    return protocol if protocol == EXPLANATION or PROTOCOLS[protocol].candidates == "negatives" else "strict"


def lists_of(protocol: str) -> list[str]:
    """By which protocol baselines are tested beside a training that this one judged: by none beside what is written."""
    return [] if protocol == EXPLANATION else [judge_of(protocol)]


def choose_history(scorer: Scorer, name: str, setup: Setup, top_n: int, protocol: str = "strict") -> None:
    """Has a baseline read as much of a history as gives it the best recall@top_n on valid users; collective.

    How much that is differs much between data sets, and one that reads too much or too little is no rival. Without
    valid users, or if it reads no history, it stays as it is.
    """
    users = held_out_users(setup, "valid")
    if scorer.history is None or not len(users.users):
        return
    users.users = users.users[:: -(-len(users.users) // MOST_USERS)]
    recalls = {}
    for scorer.history in HISTORIES:
        read = f"{name} by the last {scorer.history} item{'s' * (scorer.history != 1)}"
        judge, excluded = PROTOCOLS[judge_of(protocol)], setup.config.evaluation.exclude_seen
        result = evaluate_scorer(scorer, read, users, judge, [top_n], setup.world, exclude_seen=excluded, progress=True)
        recalls[scorer.history] = result.metrics[f"recall@{top_n}"]
    scorer.history = max(recalls, key=recalls.__getitem__)


def histories_read(histories: Mapping[str, int | None]) -> str:
    """A sentence on what baselines read, by their names; empty if none reads a history."""
    read = ", ".join(f"{name} {history}" for name, history in histories.items() if history is not None)
    any_of = f"{', '.join(map(str, HISTORIES[:-1]))} or {HISTORIES[-1]}"
    return read and (
        f"Last items of a history that baselines read, of {any_of} those with the best recall on valid users: {read}."
    )
