"""Audits a store: opens it, goes through it once, and collects what the groups found."""

from __future__ import annotations

from eupmim_dist.arguments import StoreLike, store_dir
from eupmim_dist.auditing.attributes import Attributes
from eupmim_dist.auditing.findings import Audit
from eupmim_dist.auditing.graph import Graph
from eupmim_dist.auditing.id_rules import IdRules
from eupmim_dist.auditing.reading import Findings, ItemCounts, Targets, blocks
from eupmim_dist.auditing.shape import Shape
from eupmim_dist.auditing.splits import Splits
from eupmim_dist.auditing.times import Times
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, short
from eupmim_dist.telemetry.progress import task_progress


def audit(store: StoreLike, *, split: str = "test") -> Audit:
    """Looks for leaks in a store and describes its data: what to know before believing a figure measured on it.

    Args:
        store: what `prepare` or `synthesize` gave, or its directory, whose files are then checked first.
        split: `valid` or `test`, whose held-out interactions are looked at.

    What it returns shows as a table and has `.frame()`, a row for each finding; `["next_ids"].value` is one figure. A
    verdict is `ok`, `look` or `bad`: thresholds stand beside the code, each with its reason. Everything is counted
    exactly but for rules on ids, which are judged on 100,000 users where more are held out, always the same ones.

    Raises UserError for another split, and for a store that cannot be read or is damaged.
    """
    if split not in ("valid", "test"):
        raise UserError(f"--split {short(split)}: choose valid or test")
    opened = store if isinstance(store, InteractionStore) else InteractionStore.open(store_dir(store))
    targets, counts = Targets.of(opened, split), ItemCounts(opened.num_item_rows)
    groups: list[Findings] = [
        IdRules(opened, targets, counts),
        Splits(opened, targets, counts),
        Times(opened, targets, counts),
        Graph(targets),
        Shape(opened, counts),
        Attributes(opened),
    ]
    with task_progress(f"auditing {opened.name}", total=len(opened.items)) as advance:
        for block in blocks(opened, targets):
            counts.see(block)
            for group in groups:
                group.see(block)
            advance(len(block.items))
        found = [group.group() for group in groups]
    return Audit(opened.name, opened.fingerprint, opened.split_rule, split, found)
