"""What a graph of users and items would tell a model of what is held out."""

from __future__ import annotations

from eupmim_dist.auditing.findings import Finding, Group, graded, how_many, percent, share_of
from eupmim_dist.auditing.reading import Block, Targets, among, distinct

LOOK_EDGES, BAD_EDGES = 0.01, 0.1
"""Of targets that are edges of the graph of training: an untrained graph model finds nearly all of those first."""


class Graph:
    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._trained = self._edges = 0

    def see(self, block: Block) -> None:
        targets = distinct(block.keys[block.target])
        self._edges += len(targets)
        self._trained += how_many(among(targets, block.keys[block.train]))

    def group(self) -> Group:
        split, edges = self._targets.split, self._edges
        share = share_of(self._trained, edges)
        everything = 1.0 if edges else 0.0
        found = [
            Finding(
                *("edges_of_all", f"{split} edges in a full graph", percent(everything), everything, "look"),
                "by definition: build no graph of all interactions",
                {"edges": edges},
            ),
            Finding(
                *("edges_of_training", "... in one of training", percent(share), share),
                graded(share, LOOK_EDGES, BAD_EDGES),
                "pairs of user and item that training has too"
                if self._trained
                else "clean; but training targets are edges and these are not: mask the edge to be predicted",
                {"edges": self._trained},
            ),
        ]
        return Group("graph", "Would a graph of users and items leak?", found)
