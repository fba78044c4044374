"""Fine-tuning: which row of a trained model each row of another begins as, by raw id, by label or by name."""

from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.tables import open_table
from eupmim_dist.errors import UserError
from eupmim_dist.models.features import NUMBERS, numbers_of
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.parallel.placement import FEATURE_MARK, Shard
from eupmim_dist.train.state import Assembled

NEW = -1
"""In place of the source's row: it has none."""


def matches_by_raw_id(shard: Shard, new_map: Path, old_map: Path, source_rows: int) -> np.ndarray:
    """The source's row for each row of a shard, by raw id: int64 [rows held], NEW where there is none."""
    ids = shard.ids().numpy()
    try:
        found = (
            open_table(new_map)
            .select("id", "raw_id")
            .join(pl.LazyFrame({"id": ids}), on="id", how="semi")
            .join(open_table(old_map).select("raw_id", source="id"), on="raw_id")
            .select("id", "source")
            .collect(engine="streaming")
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise Damaged(f"{old_map}: cannot be read as an id map ({reason}); consolidate again") from None
    rows, sources = found["id"].to_numpy(), found["source"].to_numpy()
    if found["id"].n_unique() != len(rows) or (len(rows) and not 0 <= sources.min() <= sources.max() < source_rows):
        raise Damaged(f"{old_map}: does not give each raw id one of {source_rows} rows; consolidate again")
    matches = np.full(len(ids), NEW)
    matches[shard.order.positions(rows) - shard.start] = sources
    if (padding := shard.spec.padding_row) is not None:
        matches[ids == padding] = padding  # which has no raw id
    return matches


def matches_of_feature(
    shard: Shard, source_rows: int, assembled: Assembled, source: Checkpoint, trained_on: InteractionStore | None
) -> np.ndarray:
    """The same of a table of features: by label, by the name of the number, or number by number of vectors."""
    owner, _, name = shard.spec.name.partition(FEATURE_MARK)
    here = assembled.store.manifest
    there = source.data if trained_on is None else trained_on.manifest
    if owner == ITEM_TABLE and name in (by_name := {each.name: each for each in here.item_attributes}):
        before = next((each.labels for each in there.item_attributes if each.name == name), ())
        keys, before = ("", *by_name[name].labels), ("", *before)  # row 0: no value
    elif owner == ITEM_TABLE and name == NUMBERS:
        keys = numbers_of(assembled.config.model, here)
        before = numbers_of(source.config.model, there)
    else:
        keys, before = tuple(map(str, range(shard.spec.rows))), tuple(map(str, range(source_rows)))
        if keys != before:
            raise UserError(
                f"{source.path}: its {owner} vectors have {source_rows} numbers and those of {assembled.store.path} "
                f"{shard.spec.rows}; give it vectors of the same kind"
            )
    if len(before) != source_rows:
        raise Damaged(f"{source.path}: table {shard.spec.name} is not as its manifest says; use another checkpoint")
    row_of = {key: row for row, key in enumerate(before)}
    return np.array([row_of.get(keys[row], NEW) for row in shard.ids().tolist()])


def matches_of_values(attribute: Attribute, before: Attribute) -> np.ndarray:
    """The value that each of an attribute's values was before, NEW for none: int64 [cardinality]."""
    if not (attribute.labels and before.labels):
        return np.arange(attribute.cardinality)
    value_of = {label: value for value, label in enumerate(before.labels)}
    return np.array([value_of.get(label, NEW) for label in attribute.labels])
