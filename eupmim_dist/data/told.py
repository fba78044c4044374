"""What `prepare` says of a dataset before it is a store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eupmim_dist.data.splits import SPLIT_RULES
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import short

MANY_VALUES, FEW_VALUES = 100_000, 100
"""Of an attribute: what its table costs is said above so many, or above half of the users, but not for a few."""
EXAMPLE_DIM = 64
COMMONEST, FIRST_USERS, FIRST_ITEMS = 3, 3, 5

Tell = Callable[[str, str], None]
"""Called with a word and what there is to say under it."""


def tell_attributes(dataset: Dataset, tell: Tell) -> None:
    """Of each the number of values and the commonest; what a table of very many costs."""
    num_users = len(dataset.raw_users)
    for column, attribute in enumerate(dataset.attributes):
        counts = np.bincount(dataset.attribute_values[:, column], minlength=attribute.cardinality)
        labels = attribute.labels or tuple(map(str, range(attribute.cardinality)))
        common = [
            f"{short(labels[code])} {counts[code] / num_users:.1%}"
            for code in np.argsort(-counts, kind="stable")[:COMMONEST]
        ]
        values = f"{attribute.cardinality:,} value{'s' * (attribute.cardinality != 1)}"
        tell("attribute", f"{short(attribute.name)}: {values}, most often {', '.join(common)}")
        if attribute.cardinality > max(FEW_VALUES, min(MANY_VALUES, num_users // 2)):
            tell("note", cost_of_many(attribute.name, attribute.cardinality))


def cost_of_many(name: str, cardinality: int) -> str:
    """What a table of very many values costs."""
    megabytes = cardinality * EXAMPLE_DIM * 4 / 1e6
    return (
        f"{short(name)} has very many values: a model that reads it has a table of {cardinality:,} values x model.dim "
        f"numbers on every rank, {megabytes:,.1f} MB at dim {EXAMPLE_DIM}, and as much again for each moment of its "
        "optimizer; a value that few have teaches little"
    )


def tell_store(dataset: Dataset, tell: Tell) -> None:
    """What a store of it would hold."""
    rule = SPLIT_RULES[dataset.split_rule]
    counts = f"{len(dataset.raw_users):,} users, {len(dataset.raw_items):,} items, {len(dataset.items):,} interactions"
    tell("store", f"{counts}; {rule.sentence(rule.sizes(dataset.split))}")
    dropped = {what.removeprefix("dropped_"): n for what, n in dataset.report.items() if what.startswith("dropped_")}
    if dropped:
        tell("too rare", ", ".join(f"{count:,} {what}" for what, count in dropped.items()) + " dropped (--min-count)")


def tell_users(dataset: Dataset, tell: Tell) -> None:
    """The first users with their first items, oldest first."""
    labels = [attribute.labels for attribute in dataset.attributes]
    for user in range(min(FIRST_USERS, len(dataset.raw_users))):
        start, end = dataset.offsets[user : user + 2]
        own = [int(item) - 1 for item in dataset.items[start : min(end, start + FIRST_ITEMS)]]
        titles = [None if dataset.titles is None else dataset.titles[item] for item in own]
        items = [short(title or dataset.raw_items[item]) for item, title in zip(own, titles, strict=True)]
        codes = dataset.attribute_values[user]
        profile = [
            f"{short(attribute.name)} {short(known[code] if known else code)}"
            for attribute, known, code in zip(dataset.attributes, labels, codes, strict=True)
        ]
        about = f" ({', '.join(profile)})" if profile else ""
        more = f", ... {end - start - len(own):,} more" if end - start > len(own) else ""
        tell("first users", f"{short(dataset.raw_users[user])}{about}: {', '.join(items)}{more}")
