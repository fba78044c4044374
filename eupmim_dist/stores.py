"""Interaction stores made in Python: what `from eupmim_dist import prepare, synthesize` offers."""

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

from eupmim_dist.arguments import path_of
from eupmim_dist.data.formats import Options
from eupmim_dist.data.formats.where import conditions
from eupmim_dist.data.frames import lazy_frame
from eupmim_dist.data.item_features import Known
from eupmim_dist.data.permute import permuting_seeds
from eupmim_dist.data.prepare import look_at, look_at_frame, no_progress, prepare_frame, prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.synth import synthesize as synthesize_store
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.telemetry.log import get_logger


def prepare(
    source: Any,
    out: Path | str | None = None,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    attributes: Sequence[str] = (),
    title_column: str | None = None,
    min_count: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    time_format: str | None = None,
    trim: bool = False,
    where: str | Sequence[str] = (),
    skip_bad: bool = False,
    items: Path | str | None = None,
    items_separator: str | None = None,
    items_encoding: str | None = None,
    item_attributes: str | Sequence[str] = (),
    item_numbers: str | Sequence[str] = (),
    item_vectors: Path | str | None = None,
    user_vectors: Path | str | None = None,
    format: str | None = None,
    name: str | None = None,
    permute_users: int | None = None,
    permute_items: int | None = None,
    keep_ids: bool = False,
    negatives_seed: int | None = None,
    negatives_rule: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    cpu: bool = False,
    **misspelt: Never,
) -> InteractionStore | None:
    """Makes an interaction store of a data frame or of files, and opens it; collective, rank 0 makes it.

    Args:
        source: a data frame of polars (lazy, too), pandas or another library with the Arrow interface, with a row for
            each interaction; or the path of a file or directory, or a list of them, whose `format` is then to be given.
        out: the directory of the new store; a `dry_run` needs none.
        user_column, item_column: of the ids, integers or text.
        time_column: of an integer, date or time (or text of one, ISO 8601) to order a user's interactions by; the order
            of rows if not given.
        attributes: columns of user attributes, categories of any type. A user has one value of each; of one who has
            none it is `unknown`.
        title_column: of what items are called.
        min_count: drops items and users with fewer interactions, until all have as many; 5 if not given.
        split: `by_user` (8 of 10 users train, 1 validates, 1 tests; the default) or `leave_one_out` (of each user the
            last interaction but one, and the last).
        seed: of the split by user.
        separator: of csv files, such as `;` or `tab`; found if not given.
        encoding: of csv files, such as `cp1252`; by a byte-order mark or UTF-8 if not given.
        time_format: how times are written that are no ISO 8601, such as `%d.%m.%Y %H:%M`.
        trim: drop blanks around values.
        where: conditions on the rows to take, such as `event=view,cart`, `event!=refund` or `rating>=4`.
        skip_bad: leave bad rows out, and count them, in place of an error that names the first ones.
        items: a CSV, Parquet or JSONL file with a column `item`, of the ids, and what is known of each.
        items_separator, items_encoding: of that file, as `separator` and `encoding` of the log.
        item_attributes, item_numbers: columns of it with categories (`genres:|` where a field holds several), numbers.
        item_vectors, user_vectors: Parquet files with the columns `item` (or `user`) and `vector`, or .npy files beside
            Parquet files that say whose their rows are, as `eupmim-dist export` writes: a vector for each, or K.
        format: of a path, as `eupmim-dist prepare --format`: csv, parquet, movielens and others (docs/data.md).
        name: of the data set; that of `out` if not given.
        permute_users, permute_items: seeds of a random numbering of users and items, so that their ids tell nothing
            (see `audit`); of elmrec both are 1 if not given.
        keep_ids: of elmrec, that users and items keep their numbers.
        negatives_seed, negatives_rule: of elmrec without a negative.txt, how negatives are drawn: 12345, and `distinct`
            or `repeats`.
        force: replace the store that `out` holds.
        dry_run: log what is taken for what, what would be kept and the first users; write nothing, and return None.
        cpu: on several ranks, that they use the CPU, as for `fit`.

    What was taken for what is logged, what was dropped is in `store.manifest.report`. Raises UserError, with nothing
    half-written, for what is wrong with the source or the options: a column that is not there, an id that is missing,
    too little data.
    """
    if misspelt:
        raise _misspelt(min(misspelt))
    attributes, where = _texts(attributes), _texts(where)
    chosen = Options(
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        attributes=attributes,
        title_column=title_column,
        min_count=min_count,
        split=split,
        seed=seed,
        separator=separator,
        encoding=encoding,
        time_format=time_format,
        trim=trim,
        where=where,
        skip_bad=skip_bad,
        negatives_seed=negatives_seed,
        negatives_rule=negatives_rule,
    )
    if out is None and not dry_run:
        raise UserError("prepare: name the directory of the new store, as out=..., or look at it with dry_run=True")
    place = Path("store") if out is None else path_of("out", out)
    paths = [source] if isinstance(source, str | Path) else source
    is_paths = isinstance(paths, list | tuple) and bool(paths) and all(isinstance(path, str | Path) for path in paths)
    known = Known(
        items=None if items is None else path_of("items", items),
        items_separator=items_separator,
        items_encoding=items_encoding,
        attributes=_texts(item_attributes),
        numbers=_texts(item_numbers),
        item_vectors=None if item_vectors is None else path_of("item_vectors", item_vectors),
        user_vectors=None if user_vectors is None else path_of("user_vectors", user_vectors),
    )
    given: dict[str, Any] = {"known": known, "tell": _log}
    given |= (
        {"beside": place}
        if dry_run
        else {"name": name, "permute_users": permute_users, "permute_items": permute_items, "force": force}
    )

    def make() -> None:
        permuting_seeds(permute_users, permute_items, format or "", keep_ids=keep_ids)
        if is_paths:
            if format is None:
                raise UserError(f"prepare: say which format {short(paths[0])} has, such as format='csv'")
            files = [path_of("source", path) for path in paths]
            if dry_run:
                look_at(files, format, chosen, **given)
            else:
                prepare_store(files, place, format, chosen, keep_ids=keep_ids, **given)
        else:
            if format is not None:
                raise UserError(f"prepare: a data frame has no format; leave out format={shown(format)}")
            wanted = (user_column, item_column, time_column, title_column, *attributes)
            frame = lazy_frame(source, {*wanted, *(each.column for each in conditions(where))})
            if dry_run:
                look_at_frame(frame, chosen, **given)
            else:
                prepare_frame(frame, place, chosen, **given)

    _by_main(make, cpu)
    return None if dry_run else InteractionStore.open(place, verify=False)  # it has just been written


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def synthesize(
    out: Path | str,
    users: int = 4000,
    items: int = 1000,
    *,
    seed: int = 1,
    mean_length: int = 40,
    force: bool = False,
    cpu: bool = False,
) -> InteractionStore:
    """Makes a store of example data, with planted interests and profiles, and opens it; collective, rank 0 makes it.

    `mean_length`: interactions per user. The same arguments give the same data. `force` replaces the store that `out`
    holds; `cpu` as for `prepare`. Raises UserError for sizes that cannot be met.
    """
    place = path_of("out", out)

    def make() -> None:
        synthesize_store(place, users, items, seed=seed, mean_length=mean_length, force=force, progress=no_progress)

    _by_main(make, cpu)
    return InteractionStore.open(place, verify=False)


def _by_main(make: Callable[[], None], cpu: bool) -> None:
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and "ACCELERATE_MIXED_PRECISION" not in os.environ
    if alone:  # no rank to wait for, so no need of torch
        make()
    else:
        from eupmim_dist.parallel.agreement import decided_by_main
        from eupmim_dist.parallel.world import init_world

        decided_by_main(init_world(cpu), make)


def _log(what: str, told: str) -> None:
    get_logger().info("%s: %s", what, told)


def _misspelt(name: str) -> UserError:
    known = [argument for argument in prepare.__annotations__ if argument not in ("misspelt", "return")]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return UserError(f"prepare: unknown option {short(name)}; {hint}")
