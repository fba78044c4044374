"""Evaluation protocols as data (design 3.3). Every reported number names the protocol it was measured by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

IdealHits = Literal["targets", "hits"]
Candidates = Literal["all", "negatives"]
SEEN_INCLUDED = "what a user had before among the candidates"
"""Told beside a protocol that would leave it out, where evaluation.exclude_seen is off."""


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
    candidates: Candidates = "all"
    """What is ranked for each user: all items, or the store's negatives of his and his targets."""
    top_n: tuple[int, ...] = (10, 20, 50)
    """Cut-offs that it is usually told at."""


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
        Protocol(
            "elmrec_sequential",
            "ELMRec's next item: as strict, told at shorter lists",
            per_interest=False,
            exclude_padding=True,
            exclude_history=True,
            ideal="targets",
            top_n=(1, 5, 10),
        ),
        Protocol(
            "elmrec_direct",
            "ELMRec's direct recommendation: the target among the user's 99 negatives of the store",
            per_interest=False,
            exclude_padding=True,
            exclude_history=False,
            ideal="targets",
            candidates="negatives",
            top_n=(1, 5, 10),
        ),
    )
}


EXPLANATION = "elmrec_explanation"
"""Beside these: what a model writes of items, which is no ranking (explanations.py)."""


def check_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises UserError for a name that is none of a protocol, nor of `others`."""
    every = [*PROTOCOLS, *others]
    for name in names:
        if name not in every:
            raise UserError(f"--protocol {name}: choose from {', '.join(every)}")


def check_protocols(names: Sequence[str], store: InteractionStore, where: str = "--protocol ") -> None:
    """Raises UserError where the store lacks what is ranked; `where` says who asks."""
    for name in names:
        if PROTOCOLS[name].candidates == "negatives" and store.negatives is None:
            raise UserError(
                f"{where}{name}: {store.path} has no negatives to rank; prepare it with --format elmrec, or choose "
                "elmrec_sequential"
            )


METRICS = ("recall", "hit_rate", "ndcg", "precision")
