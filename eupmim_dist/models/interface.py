"""What a model is (design 1.1): it declares its tables, names the rows it looks up, and turns them into queries.

A model never owns a table of items or users, knows no loss and no rank, so its code is the same on one rank and on
many. A new model is one module here: a configuration, the class, and `MODEL = Registered(Configuration, Class)`. What
every model keeps to is checked by conformance.py.

B samples of this rank, P predictions per sample, Q = B * P queries, L history, K interests, D dim.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from eupmim_dist.data.batch import Batch, UserBatch
from eupmim_dist.models.propagation import Propagation

Uses = dict[str, tuple[str, Tensor]]
"""Name of a use -> the table, and int64 ids of any shape with the samples first, NO_ROW for none."""
Rows = dict[str, Tensor]
"""Name of a use -> float rows: the shape of its ids, plus the table's width; zeros for NO_ROW."""
ITEM_TABLE = "item"
"""The table that is ranked, whose row i is that of item i."""
USER_TABLE = "user"
"""Of a model that has one: row i is that of user i."""


@dataclass(frozen=True)
class DataShape:
    """What a model needs to know of the data: sizes, never the data."""

    num_users: int
    num_item_rows: int  # the padding row 0 included
    attributes: dict[str, int]  # cardinality by name
    history_length: int
    num_tokens: int = 0
    """Of the vocabulary of a task in words; 0 of one in ids."""
    num_words: int = 0
    """More than a text of such a task can tell apart of its users and items (data/prompts/prompt.py)."""


@dataclass(frozen=True)
class TableSpec:
    """A table to be sharded. Its rows start as normal numbers, each a function of (seed, name, row id)."""

    name: str
    rows: int
    dim: int
    id_map: Literal["items", "users"] | None = None
    """Whose ids its rows have; None for ids of the model's own."""
    padding_row: int | None = None
    """A row that stands for nothing, whatever the data."""
    init_std: float = field(default=-1.0)
    """Standard deviation of the initial rows; Xavier's, sqrt(2 / (rows + dim)), if not given."""
    untrained: Literal["table", "zero"] = "table"
    """What a user who is never trained on is ranked with: what the row holds, or zeros."""
    trained: bool = True
    """Whether its rows are ever moved."""

    def __post_init__(self) -> None:
        if self.init_std < 0:
            object.__setattr__(self, "init_std", math.sqrt(2.0 / (self.rows + self.dim)))


class Encoded(NamedTuple):
    """What a model makes of a batch."""

    queries: Tensor
    """[Q, K, D], sample by sample: an item's score is read out of its dot products with the K vectors."""
    penalties: dict[str, Tensor] = {}  # noqa: RUF012 (of a NamedTuple, never written to)
    """This rank's share of further parts of the global loss, a number each, by names that no other part has."""
    routing: Tensor | None = None
    """[Q, K, L], how much each interest took of each place of the history, for objectives that regularise it."""
    logits: Tensor | None = None
    """[B, T, V], of a model that answers in words, whose Q is 0: scores of all tokens at each place of an answer."""


class Model(nn.Module, ABC):
    """A network that turns a user's history into queries for the item table."""

    num_interests: int
    """K."""
    dim: int
    """D."""
    batch_type: type[Batch] = UserBatch
    """What it is fed: a task that gives other batches is refused."""
    causal = False
    """Whether one pass over a history gives a query for each of its places, from what came until then. If not, a batch
    has P = 1, and every prediction a history of its own."""
    readout = "hard"
    """How an objective reads scores out of K interests (objectives/readout.py), unless it is told otherwise."""
    tells_routing = False
    """Whether `encode` gives `Encoded.routing`."""
    scorer = "interests"
    """What evaluations rank by (evaluation/scorers)."""
    only_known_users = False
    """Whether it knows a user by his row alone, so that it ranks for nobody that it was not trained on."""

    shape: DataShape

    def tables(self) -> list[TableSpec]:
        """The catalogue alone, unless a model has more."""
        return [item_table(self.shape, self.dim)]

    def propagation(self) -> Propagation | None:
        """Of a model whose rows are propagated over the graph of users and items (models/propagation.py): how."""
        return None

    def uses(self, batch: Any) -> Uses:
        """What `encode` looks up for a batch, training and ranking alike: the history, unless a model needs more."""
        return {"history": (ITEM_TABLE, batch.history)}

    @abstractmethod
    def encode(self, rows: Rows, batch: Any) -> Encoded:
        """Queries for `batch.position`, in its order; without gradient where a history is all padding, but finite."""

    def learning_rates(self) -> dict[str, float]:
        """Parameters of the network whose learning rate is a multiple of train.learning_rate, by name."""
        return {}

    def attribute_weights(self) -> dict[str, str]:
        """Attribute -> the parameter whose row v stands for its value v, for data that numbers its values otherwise."""
        return {}

    def forward(self, rows: Rows, batch: Any) -> Encoded:
        return self.encode(rows, batch)


def item_table(shape: DataShape, dim: int, init_std: float = -1.0) -> TableSpec:
    """The catalogue, as every model of the family has it."""
    return TableSpec(ITEM_TABLE, shape.num_item_rows, dim, id_map="items", padding_row=0, init_std=init_std)


def xavier_embedding(rows: int, dim: int) -> nn.Embedding:
    """A small replicated table, initialised as the large ones are."""
    embedding = nn.Embedding(rows, dim)
    nn.init.xavier_normal_(embedding.weight)
    return embedding
