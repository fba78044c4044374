"""Propagation: a model whose rows of users and items are those of G, and not of the tables E that are learnt.

    G  =  mean over k = 0..num_layers of A^k E,    A = D^-1/2 (edges of users and items) D^-1/2

as LightGCN and ELMRec have it (parallel/propagation.py computes it over the shards). What a model looks up, and the
catalogue that is scored, are rows of G alike; gradients arrive at the rows of E.
"""

from dataclasses import dataclass

from pydantic import Field

from eupmim_dist.config.schema import ModelSection
from eupmim_dist.data.graph import GraphChoice, GraphSource


class PropagationSection(ModelSection):
    """What every model that may propagate has."""

    num_layers: int = Field(4, ge=0, le=256)
    """Of propagation: a row is the mean of what comes from 0 to so many edges away. 0: no graph, rows as they are
    learnt, which makes LightGCN matrix factorisation."""
    graph: GraphSource = "clean"
    """Edges of users and items: clean, what training may see; history, the same while training, and all that users had
    before what is asked for where the model ranks; published, ELMRec's random split, whose scores are those of a leak:
    it holds about half of what is held out."""
    graph_seed: int = 0
    """Of the published graph, where the store has no explanations to take it from."""
    graph_explained: float = Field(2 / 3, gt=0, le=1)
    """Share of interactions with an explanation, which alone are in the published graph, likewise."""
    mask_targets: bool = True
    """Leave the edges that a training step predicts out of its propagation, or it learns to pick neighbours, which what
    is held out never is."""

    @property
    def propagates(self) -> bool:
        """Whether there is a graph, and rows are propagated over it."""
        return self.num_layers > 0

    @property
    def remark(self) -> str:
        if not self.propagates or self.graph == "clean":
            return ""
        return f" ({'leaky graph' if self.leaky else 'graph of histories'})"

    @property
    def leaky(self) -> bool:
        return self.propagates and self.graph == "published"

    def summary(self) -> str:
        return super().summary() + self.told()

    def told(self) -> str:
        """Of a summary, the word on the graph."""
        if not self.propagates:
            return ""
        leak = " that knows what is held out: its figures are those of a leak" if self.leaky else ""
        return f", propagated over a graph{leak}"

    def propagation(self) -> "Propagation | None":
        if not self.propagates:
            return None
        choice = GraphChoice(self.graph, self.graph_seed, self.graph_explained)
        return Propagation(self.num_layers, choice, self.mask_targets)


@dataclass(frozen=True)
class Propagation:
    """What a model asks for (`Model.propagation`), of a table with a row for each user and of the table of items."""

    num_layers: int
    graph: GraphChoice
    mask_targets: bool
