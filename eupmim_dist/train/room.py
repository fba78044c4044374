"""Whether there is memory for what a run takes at the least: asked before any of it is taken.

The network, the tables with their optimizer's state, and the rows of a batch: activations come on top. B samples, L
history, D dim.
"""

import torch

from eupmim_dist.config.registry import build
from eupmim_dist.config.schema import Config
from eupmim_dist.data.graph import InteractionGraph
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.models.features import Feature, features_of, trained_or_not
from eupmim_dist.models.interface import DataShape, Model, TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.memory import lack_of_memory
from eupmim_dist.parallel.placement import is_replicated
from eupmim_dist.parallel.propagation import TABLES as PROPAGATED
from eupmim_dist.parallel.world import World

FLOAT, KEY = 4, 8
EDGE = 32
"""Bytes of an edge, held from either side."""
TABLES = "the tables"


def check_room(
    config: Config, shape: DataShape, store: InteractionStore, ranked: tuple[int, int], world: World, *, training: bool
) -> None:
    """Raises UserError, on all ranks, if it cannot be; collective. Arguments as of `room_of`."""
    here = room_of(config, shape, store, ranked, world, training=training)
    if config.tables.memory == "host" and world.device.type == "cuda":
        _check({TABLES: here.pop(TABLES)}, torch.device("cpu"), world)
    _check(here, world.device, world)


def room_of(
    config: Config, shape: DataShape, store: InteractionStore, ranked: tuple[int, int], world: World, *, training: bool
) -> dict[str, int]:
    """Bytes that each rank needs at the least, by what for; without `training` to rank only.

    `ranked`: users that there are to rank for, and items of a rank's that are scored at a time.
    """
    network = without_memory(config, shape)
    specs = trained_or_not(config.model, store, network.tables()) if network else []
    tables = sum(table_bytes(spec, config, world, training) for spec in specs)
    for feature in features_of(config.model, store, specs) if network else []:
        tables += table_bytes(feature.spec, config, world, training) + _feature_bytes(feature, config, world)
    if network and (propagation := network.propagation()) is not None:
        of_both = [spec for spec in specs if spec.name in PROPAGATED]
        tables += _propagation_bytes(of_both, InteractionGraph(store, propagation.graph), world)
    dense = sum(p.numel() for p in network.parameters()) * FLOAT * (4 if training else 1) if network else 0
    users, items = min(config.evaluation.batch_size, ranked[0]), min(ranked[1], -(-shape.num_item_rows // world.size))
    width = config.task.history_length * (network.dim if network else config.model.dim) * FLOAT
    batch = max(-(-users // world.size) * width, users * items * FLOAT)  # each rank scores for the users of all
    if training:
        samples = -(-config.train.global_batch_size // (world.size * config.train.accumulation))
        batch = max(batch, 2 * samples * width)  # rows and their gradients
    return {"the network": dense, TABLES: tables, "a batch": batch}


def _check(needed: dict[str, int], device: torch.device, world: World) -> None:
    if lack := lack_of_memory(sum(needed.values()), device, world):
        large = {what: size for what, size in needed.items() if size > sum(needed.values()) / 100}
        told = ", ".join(f"{size / 1e9:,.1f} GB for {what}" for what, size in large.items())
        raise UserError(
            f"this run {lack} ({told}, at the least); lower model.dim, task.history_length or "
            "train.global_batch_size, raise train.accumulation, or use more ranks"
        )


def without_memory(config: Config, shape: DataShape) -> Model | None:
    """The model with parameters that hold nothing; None of another package's that cannot be built so."""
    try:
        with torch.device("meta"):
            model: Model = build("model", config.model.name, Model, config.model, shape)
            return model
    except Exception as error:
        if "overflow" in str(error):  # of a tensor's size
            raise UserError(f"model {config.model.name}: no memory could hold it; lower its sizes") from None
        return None  # what is wrong with it, building it in earnest tells


def _propagation_bytes(specs: list[TableSpec], graph: InteractionGraph, world: World) -> int:
    """The graphs of training and of the test split; beside a rank's rows those of layers and the ones of others that
    its edges reach (docs/tables.md)."""
    graphs = [graph, other] if (other := graph.where_known("test")) is not graph else [graph]
    edges = [-(-int(each.lengths().sum()) // world.size) for each in graphs]
    own = sum(-(-spec.rows // world.size) for spec in specs)
    others = min(sum(spec.rows for spec in specs) - own, 2 * max(edges))
    return EDGE * sum(edges) + max((spec.dim for spec in specs), default=0) * FLOAT * (3 * own + max(others, 0))


def _feature_bytes(feature: Feature, config: Config, world: World) -> int:
    """What a rank holds of what is known of its rows."""
    known = feature.values if feature.values is not None else feature.numbers
    assert known is not None, "a feature has values or numbers"
    rows, columns = known.shape
    own = rows if is_replicated(feature.table, rows, world.size, config.tables) else -(-rows // world.size)
    return own * columns * (KEY if feature.values is not None else FLOAT)


def table_bytes(spec: TableSpec, config: Config, world: World, training: bool) -> int:
    """Of a rank's rows of a table, with the state of their optimizer where they are trained."""
    whole = is_replicated(spec.name, spec.rows, world.size, config.tables)
    rows = spec.rows if whole else -(-spec.rows // world.size)
    held = TABLE_OPTIMIZERS[config.tables.optimizer].held if training and spec.trained else 0
    return rows * spec.dim * FLOAT * (1 + held)
