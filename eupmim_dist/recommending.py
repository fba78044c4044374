"""Recommendations from Python and for the command line: as a frame, as frames, as a file, as objects.

All of them take what `recommend` takes, in one process and on every rank alike (api.py).
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.api import Fitted, loaded, variety_of
from eupmim_dist.arguments import StoreLike, cutoffs_of, path_of, raw_ids, requests_of
from eupmim_dist.data.audience import Audience, asked, known_items, whole_split
from eupmim_dist.data.requests import HISTORY, Requests, read_requests
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.frames import by_user, recommended_columns, recommended_frame, with_text
from eupmim_dist.evaluation.protocols import SEEN_INCLUDED
from eupmim_dist.evaluation.recommend import (
    Block,
    Recommendations,
    Wanted,
    check_wanted,
    item_labels,
    ranked_blocks,
)
from eupmim_dist.evaluation.recommend import recommendations as as_objects
from eupmim_dist.export.frame_files import check_file, frame_file
from eupmim_dist.models.interface import Model
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.train.state import Assembled

Ids = str | int | Iterable[str | int]


def recommend(
    model: Assembled | Fitted | Path | str,
    users: Ids | Path | None = None,
    top_n: int = 10,
    *,
    histories: Sequence[Ids | None] | None = None,
    attributes: Any = None,
    all_users: bool = False,
    split: str | None = None,
    items: Ids | Path | None = None,
    exclude_seen: bool = True,
    diversity: float = 0.0,
    categories: Any = None,
    why: bool = False,
    per_interest: bool = False,
    data: StoreLike | None = None,
    which: str = "best",
) -> pl.DataFrame:
    """The best items for users, from their whole history; collective, each rank gives the same users.

    Args:
        model: what `fit` or `load` gave; or a path as for `load`, which is then loaded on the CPU.
        users: raw ids, as in the source data: one, or a list or column of them; or the `pathlib.Path` of a file of them
            (docs/recommending.md), of which those that are unknown are skipped with a warning.
        top_n: items per user.
        histories: for each user his items (raw ids, oldest first) in place of the store's, or None for those. Users
            need not be in the store; without `users` they are called 1, 2, ...
        attributes: values of the store's attributes in place of the store's: a data frame or a mapping with a column
            for each, a value for each user. Who is not in the store needs those that the model reads.
        all_users, split: in place of users: all who have a history; all of `train`, `valid` or `test`.
        items: nothing but these is recommended: raw ids, or the `pathlib.Path` of a file of them.
        exclude_seen: leave out what a user had already.
        diversity, categories: re-rank for variety, as for `evaluate`.
        why: a column `because`: up to 3 of the user's own items without which the score would be lower.
        per_interest: the best `top_n` for each interest, and a column `nearest`: the user's own items near to it.
        data, which: of a path, as for `load`.

    Returns a data frame of polars with a row for each recommended item, users in the order given, best first: user
    (String), rank (Int64, from 1), item (String, raw id), title (String, null where unknown), score (Float64),
    interest (Int64, from 1: the one of the user's interest vectors that scores it highest).

    Raises UserError for an unknown user without a history, for an unknown value of an attribute, or for more items than
    there are.
    """
    options = {name: value for name, value in locals().items() if name not in ("model", "users", "top_n")}
    with closing(_frames(_prepared(model, users, top_n, **options))) as frames:
        return pl.concat(frame for _, frame in frames)


def recommend_batches(
    model: Assembled | Fitted | Path | str, users: Ids | Path | None = None, top_n: int = 10, **options: Any
) -> Generator[pl.DataFrame]:
    """As `recommend`, a frame for each `evaluation.batch_size` users: for more than memory holds at a time."""
    prepared = _prepared(model, users, top_n, **options)  # which raises here and not when the first one is asked for
    return (frame for _, frame in _frames(prepared))


def recommendations(
    model: Assembled | Fitted | Path | str,
    users: Ids | Path | None = None,
    top_n: int = 10,
    *,
    most: int | None = None,
    **options: Any,
) -> Generator[Recommendations]:
    """As `recommend`, as objects, with what each user had last; where `most` is given, of so many users alone."""
    prepared = _prepared(model, users, top_n, **options)
    audience = prepared.audience
    if most is not None and len(audience) > most:
        told = f"these are the first {most} of {len(audience):,} users: --out FILE takes all of them"
        get_logger(prepared.trained.world.rank).warning(told)
        audience = replace(audience, names=audience.names[:most], users=audience.users[:most])
    return as_objects(prepared.trained, audience, prepared.wanted)


@dataclass(frozen=True)
class Written:
    users: int
    items: int
    seconds: float
    """Without loading the model."""

    def __str__(self) -> str:
        speed = self.users / max(self.seconds, 1e-9)
        return f"{self.users:,} users, {self.items:,} items, {self.seconds:.1f} s, {speed:,.0f} users/s"


def write_recommendations(
    model: Assembled | Fitted | Path | str,
    out: Path | str,
    users: Ids | Path | None = None,
    top_n: int = 10,
    **options: Any,
) -> Written:
    """As `recommend`, into a .parquet, .csv or .jsonl file, block by block; rank 0 writes it.

    In CSV `because` and `nearest` are raw ids with blanks between them; JSONL has a line for each user.
    """
    file = path_of("out", out)
    check_file(file)
    prepared = _prepared(model, users, top_n, **options)
    world, wanted, names = prepared.trained.world, prepared.wanted, prepared.audience.names
    num_items, started = 0, time.perf_counter()
    place = frame_file(file, recommended_columns(wanted)) if world.is_main else nullcontext(lambda frame: None)
    with agreed(world), place as write, closing(_frames(prepared)) as frames:
        for block, frame in frames:
            num_items += len(frame)
            if file.suffix == ".jsonl":
                frame = by_user(names[block.first : block.first + len(block.items)], block, frame)
            write(with_text(frame) if file.suffix == ".csv" else frame)
    return Written(len(names), num_items, time.perf_counter() - started)


@dataclass(frozen=True)
class _Prepared:
    trained: Assembled
    audience: Audience
    wanted: Wanted


def _frames(prepared: _Prepared) -> Generator[tuple[Block, pl.DataFrame]]:
    labels, names = item_labels(prepared.trained.store), prepared.audience.names
    with closing(ranked_blocks(prepared.trained, prepared.audience, prepared.wanted)) as blocks:
        for block in blocks:
            some = names[block.first : block.first + len(block.items)]
            yield block, recommended_frame(some, block, labels, prepared.wanted)


def _prepared(
    model: Assembled | Fitted | Path | str,
    users: Any,
    top_n: int,
    *,
    histories: Any = None,
    attributes: Any = None,
    all_users: bool = False,
    split: str | None = None,
    items: Any = None,
    exclude_seen: bool = True,
    diversity: float = 0.0,
    categories: Any = None,
    why: bool = False,
    per_interest: bool = False,
    data: StoreLike | None = None,
    which: str = "best",
) -> _Prepared:
    trained = loaded(model, data, which, cpu=True)
    store = trained.store
    with agreed(trained.world):
        [num] = cutoffs_of(top_n)
        only, notes = (None, []) if items is None else _only(store, items)
        if categories is not None and not diversity:
            raise UserError("--categories: are for --diversity STRENGTH, such as 0.5; give both or neither")
        variety = variety_of(diversity, categories, store, trained.world)
        wanted = Wanted(num, exclude_seen, variety, only, why, per_interest)
        check_wanted(trained, wanted)
        audience = _audience(store, trained.model, users, histories, attributes, all_users, split)
        if trained.model.only_known_users and audience.given is not None:
            raise UserError(
                f"--history: model {trained.config.model.name} knows a user by his row alone, and reads no history and "
                "no attributes that are given; name users of the store, or use another model"
            )
        if exclude_seen and not trained.config.evaluation.exclude_seen:
            notes.append(f"the model is judged with {SEEN_INCLUDED}, and here it is left out unless it is asked for")
        for note in (*notes, *audience.notes):
            get_logger(trained.world.rank).warning(note)
    return _Prepared(trained, audience, wanted)


def _only(store: InteractionStore, items: Any) -> tuple[np.ndarray, list[str]]:
    if isinstance(items, Path):
        return known_items(store, read_requests(items, "item"), str(items))
    ids = pl.DataFrame({"item": raw_ids(items, "items")}, schema={"item": pl.String})
    return known_items(store, Requests(ids, str), "--items")


def _audience(
    store: InteractionStore,
    model: Model,
    users: Any,
    histories: Any,
    attributes: Any,
    all_users: bool,
    split: str | None,
) -> Audience:
    """Whom the arguments mean. Raises UserError."""
    if all_users or split is not None:
        which = "--split" if split is not None else "--all-users"
        if users is not None or histories is not None or attributes is not None or (all_users and split is not None):
            raise UserError(f"{which}: is for users as the store has them; give it without other users")
        return whole_split(store, split)
    names = [attribute.name for attribute in store.attributes]
    read = [name for name in names if name in model.attribute_weights()]
    if isinstance(users, Path):
        if histories is not None or attributes is not None:
            raise UserError(f"users {users}: histories and attributes are columns of the file; leave the arguments out")
        return asked(store, read_requests(users, "user", (HISTORY, *names)), read, source=str(users), skip=True)
    if users is None and histories is None:
        raise UserError("recommend: give --user ID, --users FILE, --all-users, --split NAME or --history")
    return asked(store, requests_of(users, histories, attributes, names), read, source="recommend", skip=False)
