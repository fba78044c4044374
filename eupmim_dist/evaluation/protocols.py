"""Evaluation protocols as data (design 3.3). Every reported number names the protocol it was measured by."""

from dataclasses import dataclass
from typing import Literal

IdealHits = Literal["targets", "hits"]


@dataclass(frozen=True)
class Protocol:
    """How a user's interests rank the catalogue and how the ranking is judged."""

    name: str
    description: str
    per_interest: bool
    """One top-N list per interest by cosine, hits counted in each; else one list by the best dot product."""
    exclude_padding: bool
    """Item 0 cannot be recommended."""
    exclude_history: bool
    """Nothing that the user had before the cut can be recommended."""
    ideal: IdealHits
    """NDCG's ideal ranking holds min(N, |targets|) hits, or as many as were made."""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "strict",
            "one list of distinct items; what the user had before the cut is left out",
            per_interest=False,
            exclude_padding=True,
            exclude_history=True,
            ideal="targets",
        ),
        Protocol(
            "comirec",
            "as strict, but the history stays among the candidates; NDCG's ideal over the hits made",
            per_interest=False,
            exclude_padding=True,
            exclude_history=False,
            ideal="hits",
        ),
        Protocol(
            "seed",
            "what the authors' script measures: a cosine list per interest, an item counts in each list",
            per_interest=True,
            exclude_padding=False,
            exclude_history=False,
            ideal="hits",
        ),
    )
}
METRICS = ("recall", "hit_rate", "ndcg", "precision")
