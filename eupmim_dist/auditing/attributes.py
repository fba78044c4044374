"""What the attributes of users are worth, and whether they say who a user is."""

from __future__ import annotations

import numpy as np
import polars as pl

from eupmim_dist.auditing.findings import Finding, Group, Verdict, graded, how_many, percent, share_of
from eupmim_dist.auditing.reading import Block
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.splits import NO_SPLIT
from eupmim_dist.data.store import InteractionStore

MISSING = frozenset(
    ["", "-", "--", "?", ".", "-1", "missing", "n/a", "na", "nan", "nil", "none", "null", "unknown", "undefined"]
)
"""Labels, in small letters, that stand for no answer."""
LOOK_MISSING, BAD_MISSING = 0.05, 0.5
"""Of users. Once most have no answer, the attribute is that of the others."""
LOOK_ALONE, BAD_ALONE = 0.05, 0.5
"""Of users whom a value, or a profile, singles out: it becomes a second user id, which no held-out user shares."""
LOOK_UNUSED = 0.5
"""Of values: a code that is a number (an age in years of seven), whose other rows stay untrained."""
ONE_VALUE = 0.99
"""Of users with the commonest value: nothing to learn from."""


class Attributes:
    def __init__(self, store: InteractionStore) -> None:
        self._store = store

    def see(self, block: Block) -> None:
        """Nothing: attributes are users', of whom the arrays are small."""

    def group(self) -> Group:
        store, title = self._store, "Are the attributes of users of use?"
        if not store.attributes:
            meaning = "models with user profiles have nothing to go by"
            return Group("attributes", title, [Finding("attributes", "attributes", "none", 0, "ok", meaning)])
        values = np.asarray(store.attribute_values[store.split != NO_SPLIT])
        found = [
            finding
            for column, attribute in enumerate(store.attributes)
            for finding in _of(attribute, np.bincount(values[:, column], minlength=attribute.cardinality))
        ]
        return Group("attributes", title, [*found, _profiles(values)])


def _of(attribute: Attribute, counts: np.ndarray) -> list[Finding]:
    """What `counts` [cardinality], users by value, say."""
    name, users = attribute.name, int(counts.sum())
    used, alone = how_many(counts), how_many(counts == 1)
    shares = counts[counts > 0] / max(users, 1)
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
    verdict: Verdict = graded(share_of(alone, users), LOOK_ALONE, BAD_ALONE)
    unused = share_of(len(counts) - used, len(counts))
    meaning = f"{entropy:.1f} bits of {np.log2(max(used, 1)):.1f}"
    if verdict != "ok":
        meaning += f"; {percent(share_of(alone, users))} of users are alone with theirs: it is an id"
    elif shares.max(initial=0.0) >= ONE_VALUE:
        verdict, meaning = "look", f"{percent(shares.max())} of users have the same"
    elif unused >= LOOK_UNUSED:
        verdict, meaning = "look", f"{meaning}; {len(counts) - used:,} values that nobody has"
    details = {"cardinality": len(counts), "entropy_bits": entropy, "users_alone": alone}
    found = [
        Finding(f"values:{name}", f"{name}: values", f"{used:,} of {len(counts):,}", used, verdict, meaning, details)
    ]
    missing = [code for code, label in enumerate(attribute.labels or ()) if label.strip().lower() in MISSING]
    if missing:
        share = share_of(counts[missing].sum(), users)
        labels = ", ".join(repr((attribute.labels or ())[code]) for code in missing)
        found.append(
            Finding(
                *(f"missing:{name}", f"{name}: no answer", percent(share), share),
                graded(share, LOOK_MISSING, BAD_MISSING),
                f"users with {labels}, a value as any other to a model",
            )
        )
    return found


def _profiles(values: np.ndarray) -> Finding:
    """Of all attributes together."""
    frame = pl.DataFrame(values, schema=[str(column) for column in range(values.shape[1])], orient="row")
    sizes = frame.group_by(pl.all()).len()["len"].to_numpy()
    share = share_of(how_many(sizes == 1), len(values))
    return Finding(
        *("profiles", "different profiles", f"{len(sizes):,}", len(sizes), graded(share, LOOK_ALONE, BAD_ALONE)),
        f"{percent(share)} of users are alone with theirs" + (": it tells who they are" if share else ""),
        {"share_of_users_alone": share},
    )
