"""Fine-tuning: a new training takes the weights of a trained model, also where users, items or categories are others.

Rows of tables are matched by raw id, those of attributes by label; what the trained model has not seen keeps its
initial values, so that the start is the same at any number of ranks.
"""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.pieces import BLOCK_BYTES, Piece, as_numbers, read_pieces, shape_of, stored_blocks
from eupmim_dist.checkpoint.state import model_tensors, not_finite
from eupmim_dist.config.registry import build
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.export.matching import NEW, matches_by_raw_id, matches_of_feature, matches_of_values
from eupmim_dist.hashing import OnBytes, ignore_bytes
from eupmim_dist.models.interface import ITEM_TABLE, DataShape, Model
from eupmim_dist.parallel.agreement import agreed, at_work, everywhere
from eupmim_dist.parallel.placement import RowOrder, owner_of
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.train.state import Assembled

INIT_FILE = "init_from.txt"
"""Of a run directory: what was taken from where, in words."""
_DENSE, _TABLE = "dense.", "table."

Pieces = Mapping[str, list[Piece]]


def take_weights(assembled: Assembled, source: Checkpoint, on_bytes: OnBytes = ignore_bytes) -> list[str]:
    """Sets the weights, dense and tables, to those of a trained model; collective.

    With `train.init_only_rows` those of the tables of users and items alone, where both models have them.

    A rank needs three times BLOCK_BYTES and, while raw ids are matched, 150 to 350 bytes for each row that it holds,
    more the smaller its share. `on_bytes` is called with the number of bytes of each block read.

    Returns what was taken, in lines for people. Raises UserError, on all ranks, if the network is another one, or if
    neither the source nor the store it was trained on tells what its rows stand for.
    """
    world, store = assembled.world, assembled.store
    if source.config.model.leaky and not assembled.config.model.leaky:
        raise UserError(
            f"train.init_from: {source.path} ({source.config.model.label}) was given what is held out, so figures made "
            "with its weights are those of a leak; start from another model, or say so here too (model.graph=published)"
        )
    everything = not assembled.config.train.init_only_rows
    rows_of = {name: rows for name, (rows, _) in source.tables.items()}
    taken = {}
    with agreed(world):
        pieces = read_pieces(source.path)
        trained_on = _trained_on(source, assembled, world)
        of_attributes: dict[str, str] = {}
        if everything:
            of_users = [spec.name for spec in assembled.model.tables() if spec.id_map == "users"]
            of_attributes = _attribute_weights(source, _attributes(source, trained_on), of_users)
            _check_network(assembled, source, pieces, of_attributes)
        else:
            rows_of = _common(assembled, source, pieces)
        for name, shard in assembled.tables.shards.items():
            id_map = shard.spec.id_map
            if not shard.spec.trained or name not in rows_of:  # what is frozen is as this store has it
                matches = np.full(len(shard.weight), NEW)
            elif owner_of(name) is not None:  # which rows there are, the configuration says, too
                matches = matches_of_feature(shard, rows_of[name], assembled, source, trained_on)
            elif trained_on is store or id_map is None:
                matches = shard.ids().numpy()
                matches[matches >= rows_of[name]] = NEW
            else:
                before = (source.path if trained_on is None else trained_on.path) / f"{id_map}.parquet"
                matches = matches_by_raw_id(shard, store.path / before.name, before, rows_of[name])
            taken[name] = int(np.count_nonzero(matches != NEW))
            if taken[name]:
                _copy_rows(shard.weight, matches, pieces[_TABLE + name], rows_of[name], source.is_model, on_bytes)
        told: list[str] = []
        if everything:
            for name, parameter in assembled.model.named_parameters():
                if name not in assembled.model.attribute_weights().values():
                    parameter.data.copy_(_whole(pieces[_DENSE + name]))
            told = _take_attributes(assembled, source, trained_on, of_attributes, pieces)
        if strange := not_finite(model_tensors(assembled.model, assembled.tables)):
            raise Damaged(f"{source.path}: {strange} holds numbers that are not finite; use another checkpoint")
    what = "" if everything else " with its rows of users and items alone, all else is new"
    lines = [f"starting from {source.path}, step {source.step}{what}"]
    for name, shard in assembled.tables.shards.items():
        total = taken[name] if shard.replicated else sum(everywhere(taken[name], world))
        if not shard.spec.trained:
            lines.append(f"{shard.spec.id_map or name}: rows are frozen, so they are those of {store.path}")
            continue
        padding = int(shard.spec.padding_row is not None)
        if name not in rows_of:
            lines.append(f"{name}: new")
            continue
        counts = total - padding, shard.spec.rows - padding, rows_of[name] - padding
        lines.append(_line(shard.spec.id_map or name, "rows", source, *counts))
    lines += [f"{name} of {source.path} dropped" for name in rows_of if name not in assembled.tables.shards]
    return lines + told


def _common(assembled: Assembled, source: Checkpoint, pieces: Pieces) -> dict[str, int]:
    """Tables with a row for each user or item that both have, and the source's rows. Raises UserError without any, or
    if they are not as wide."""
    here = {name: shard.spec for name, shard in assembled.tables.shards.items() if shard.spec.id_map is not None}
    common = [name for name in here if name in source.tables]
    if not common:
        there = source.config.model.name
        raise UserError(
            f"train.init_only_rows: {source.path} ({there}) has no table that {assembled.config.model.name} has "
            f"({', '.join(here) or 'none'}); start from a model that has"
        )
    for name in common:
        _check_table(source, pieces, name)
        if (dim := source.tables[name][1]) != here[name].dim:
            raise UserError(
                f"train.init_only_rows: rows of {source.path} are {dim} wide and here {here[name].dim}; set "
                f"model.dim={dim}, or model.row_dim where a model has it"
            )
    return {name: source.tables[name][0] for name in common}


def _trained_on(source: Checkpoint, assembled: Assembled, world: World) -> InteractionStore | None:
    """The store that a model was trained on: this one, if it is the same; none if the model itself tells enough."""
    if assembled.store.is_that_of(source.data.fingerprint):
        return assembled.store
    maps = {shard.spec.id_map for shard in assembled.tables.shards.values()} - {None}
    if source.data.attributes is not None and all((source.path / f"{name}.parquet").is_file() for name in maps):
        return None
    directory = source.config.data.dir
    with suppress(UserError):
        found = InteractionStore.open(directory, verify=world.local_rank == 0, on_bytes=at_work(world))
        if found.is_that_of(source.data.fingerprint):
            return found
    raise UserError(
        f"{source.path}: has no id maps, and {directory} does not hold the store it was trained on "
        f"({source.data.name}); run `eupmim-dist consolidate` where that is and start from the model it writes"
    )


def _attribute_weights(source: Checkpoint, attributes: list[Attribute], of_users: list[str]) -> dict[str, str]:
    """As `Model.attribute_weights` of the source; `of_users` are the tables with a row for each user."""
    sizes = {name: rows for name, (rows, _) in source.tables.items()}
    shape = DataShape(
        num_users=max((sizes[name] for name in of_users if name in sizes), default=1),
        num_item_rows=sizes.get(ITEM_TABLE, 1),
        attributes={attribute.name: attribute.cardinality for attribute in attributes},
        history_length=source.config.task.history_length,
        num_tokens=source.config.task.num_tokens(),
        num_words=source.config.task.num_words(),
    )
    with torch.device("meta"):
        model: Model = build("model", source.config.model.name, Model, source.config.model, shape)
    if ITEM_TABLE not in sizes and any(spec.name == ITEM_TABLE for spec in model.tables()):
        raise Damaged(f"{source.path}: its manifest tells of no table {ITEM_TABLE}; use another checkpoint")
    return model.attribute_weights()


def _check_network(assembled: Assembled, source: Checkpoint, pieces: Pieces, of_attributes: Mapping[str, str]) -> None:
    """Raises UserError unless both have the same tables, dense parameters and widths, attributes and features aside."""
    aside = {_DENSE + name for name in (*of_attributes.values(), *assembled.model.attribute_weights().values())}
    here: dict[str, tuple[int, ...]] = {_DENSE + name: tuple(p.shape) for name, p in assembled.model.named_parameters()}
    here |= {_TABLE + name: (shard.spec.dim,) for name, shard in assembled.tables.shards.items()}
    there = {name: shape_of(of_tensor) for name, of_tensor in pieces.items() if name.startswith(_DENSE)}
    for name, (_, dim) in source.tables.items():
        _check_table(source, pieces, name)
        there[_TABLE + name] = (dim,)
    # A feature that only one of them has is new, or dropped, as an attribute of users is.
    aside |= {name for name in here.keys() ^ there.keys() if owner_of(name.removeprefix(_TABLE)) is not None}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name) and name not in aside:
            shapes = [
                f"of shape {shape}" if shape is not None else "none" for shape in (there.get(name), here.get(name))
            ]
            raise UserError(
                f"{source.path}: is of another network: {name} is {shapes[0]} there and {shapes[1]} here; "
                f"set what shapes it as it was there: {_differences(assembled, source)}"
            )


def _check_table(source: Checkpoint, pieces: Pieces, name: str) -> None:
    if _TABLE + name not in pieces or shape_of(pieces[_TABLE + name]) != source.tables[name]:
        raise Damaged(f"{source.path}: table {name} is not as its manifest says; use another checkpoint")


def _differences(assembled: Assembled, source: Checkpoint) -> str:
    there, here = (
        {"task.history_length": config.task.history_length}
        | {f"model.{key}": value for key, value in config.model.model_dump(mode="json").items()}
        for config in (source.config, assembled.config)
    )
    if there["model.name"] != here["model.name"]:
        return f"model.name={there['model.name']} (here {here['model.name']})"
    differ = [f"{key}={there[key]} (here {here[key]})" for key in here if there.get(key) != here[key]]
    return ", ".join(differ) or "no setting differs, so it is of another version of the model"


def _copy_rows(
    weight: Tensor,
    matches: np.ndarray,
    pieces: list[Piece],
    source_rows: int,
    by_id: bool,
    on_bytes: OnBytes,
) -> None:
    """Sets the rows of `weight` that have a match to the source's, which are read in the order they are stored in."""
    rows = np.flatnonzero(matches != NEW)
    stored = matches[rows] if by_id else RowOrder(source_rows).positions(matches[rows])
    order = stored.argsort()
    rows, stored = rows[order], stored[order]
    rows_at_a_time, end = max(1, BLOCK_BYTES // pieces[0].row_bytes), int(stored[-1]) + 1
    for first in range(int(stored[0]), end, rows_at_a_time):
        low, high = np.searchsorted(stored, [first, first + rows_at_a_time])
        block = b"".join(stored_blocks(pieces, first, min(first + rows_at_a_time, end)))
        values = as_numbers(block, pieces[0].dtype).reshape(-1, weight.shape[1])[stored[low:high] - first]
        weight[torch.from_numpy(rows[low:high]).to(weight.device)] = torch.from_numpy(values).to(weight)
        on_bytes(len(block))


def _take_attributes(
    assembled: Assembled,
    source: Checkpoint,
    trained_on: InteractionStore | None,
    of_attributes: Mapping[str, str],
    pieces: Pieces,
) -> list[str]:
    """Sets the attributes' embeddings by name and label; what was taken, a line for each."""
    weights = assembled.model.attribute_weights()
    if not weights and not of_attributes:
        return []
    parameters = dict(assembled.model.named_parameters())
    store, lines, unlabelled = assembled.store, [], []
    known = {attribute.name: attribute for attribute in _attributes(source, trained_on)}
    for attribute in store.attributes:
        if attribute.name not in known:
            lines.append(_line(f"attribute {attribute.name}", "values", source, 0, attribute.cardinality, 0))
            continue
        before = known.pop(attribute.name)
        weight = parameters[weights[attribute.name]]
        of_tensor = pieces.get(_DENSE + of_attributes[attribute.name])
        if of_tensor is None or shape_of(of_tensor) != (before.cardinality, weight.shape[1]):
            raise Damaged(f"{source.path}: attribute {attribute.name} is not as its manifest says")
        if trained_on is not store and not (attribute.labels and before.labels):
            if attribute.cardinality != before.cardinality:
                raise UserError(
                    f"{source.path}: attribute {attribute.name} has {before.cardinality} values there and "
                    f"{attribute.cardinality} in {store.path}, and which is which is not known without labels; "
                    "`eupmim-dist prepare` both stores again, with a format that has labels, such as csv"
                )
            unlabelled.append(attribute.name)
        matches = matches_of_values(attribute, before)
        here = np.flatnonzero(matches != NEW)
        rows = _whole(of_tensor)[torch.from_numpy(matches[here])]
        weight.data[torch.from_numpy(here).to(weight.device)] = rows.to(weight)
        counts = len(here), attribute.cardinality, before.cardinality
        lines.append(_line(f"attribute {attribute.name}", "values", source, *counts))
    if unlabelled:
        get_logger(assembled.world.rank).warning(
            f"{', '.join(unlabelled)}: no labels on both sides, so value n is taken for value n of {source.path}"
        )
    return lines + [f"attribute {name} of {source.path} dropped" for name in known]


def _attributes(source: Checkpoint, trained_on: InteractionStore | None) -> list[Attribute]:
    if trained_on is not None:
        return list(trained_on.attributes)
    if source.data.attributes is None:
        raise Damaged(f"{source.path}: its manifest does not tell the attributes it was trained with")
    return list(source.data.attributes)


def _whole(pieces: list[Piece]) -> Tensor:
    numbers = as_numbers(b"".join(stored_blocks(pieces)), pieces[0].dtype)
    return torch.from_numpy(numbers.copy()).reshape(shape_of(pieces))


def _line(what: str, unit: str, source: Checkpoint, taken: int, here: int, there: int) -> str:
    return (
        f"{what}: {taken:,} of {here:,} {unit} taken from {source.path}, {here - taken:,} new, "
        f"{there - taken:,} of its {there:,} dropped"
    )
