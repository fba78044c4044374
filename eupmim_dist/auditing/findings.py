"""What an audit finds, and how it shows: one row for each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

Verdict = Literal["ok", "look", "bad"]
VERDICTS: tuple[Verdict, ...] = ("ok", "look", "bad")


@dataclass(frozen=True)
class Finding:
    """`key` is its name for programs, `what` for people; `figure` is `value` as people read it."""

    key: str
    what: str
    figure: str
    value: float | int | None
    verdict: Verdict
    meaning: str
    details: dict[str, Any] = field(default_factory=dict)
    """Figures beside `value`, for programs."""


@dataclass(frozen=True)
class Group:
    """Findings of one kind under a title."""

    name: str
    title: str
    findings: Sequence[Finding]


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything that was found in a store; it shows as a table. `audit["next_ids"]` is one finding."""

    store: str
    fingerprint: str
    split_rule: str
    split: str
    """The split whose held-out interactions were looked at."""
    groups: Sequence[Group]

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How many findings there are of each verdict."""
        counts = Counter(finding.verdict for group in self.groups for finding in group.findings)
        return {verdict: counts[verdict] for verdict in VERDICTS}

    def __getitem__(self, key: str) -> Finding:
        return {finding.key: finding for group in self.groups for finding in group.findings}[key]

    def frame(self) -> pl.DataFrame:
        """A row for each finding: group, key, what, figure (String), value (Float64, null where it is no number),
        verdict, meaning."""
        columns = ("key", "what", "figure", "value", "verdict", "meaning")
        schema = {"group": pl.String, **dict.fromkeys(columns, pl.String), "value": pl.Float64}
        rows = [
            (group.name, *(getattr(finding, column) for column in columns))
            for group in self.groups
            for finding in group.findings
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything, details too."""
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "split_rule": self.split_rule,
            "split": self.split,
            "verdicts": self.verdicts,
            "findings": [
                {"group": group.name, **asdict(finding)} for group in self.groups for finding in group.findings
            ],
        }

    def __repr__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160, fmt_str_lengths=200):
            return repr(self._shown())

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=400):
            return self._shown()._repr_html_()

    def _shown(self) -> pl.DataFrame:
        return self.frame().select("group", "what", "figure", "verdict", "meaning")


def percent(share: float) -> str:
    """`12.3 %`; of little two digits, so that something never shows as nothing."""
    return f"{100 * share:.2g} %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def how_many(mask: np.ndarray) -> int:
    """How many of a bool array are true."""
    return int(np.count_nonzero(mask))


def share_of(part: float, whole: float) -> float:
    """A share, 0 of nothing."""
    return float(part) / float(whole) if whole else 0.0


def graded(value: float, look: float, bad: float | None = None) -> Verdict:
    """The verdict on what is the worse the more there is: `look` and `bad` from so much on."""
    if bad is not None and value >= bad:
        return "bad"
    return "look" if value >= look else "ok"
