"""Interaction stores made in Python: what `from eupmim_dist import prepare, synthesize` offers."""

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

from eupmim_dist.arguments import path_of
from eupmim_dist.data.formats import Options
from eupmim_dist.data.frames import lazy_frame
from eupmim_dist.data.prepare import no_progress, prepare_frame, prepare_store
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.synth import synthesize as synthesize_store
from eupmim_dist.errors import UserError, short, shown


def prepare(
    source: Any,
    out: Path | str,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    attributes: Sequence[str] = (),
    title_column: str | None = None,
    min_count: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    format: str | None = None,
    name: str | None = None,
    permute_items: int | None = None,
    force: bool = False,
    cpu: bool = False,
    **misspelt: Never,
) -> InteractionStore:
    """Makes an interaction store of a data frame or of files, and opens it; collective, rank 0 makes it.

    Args:
        source: a data frame of polars (lazy, too), pandas or another library with the Arrow interface, with a row for
            each interaction; or the path of a file or directory, whose `format` is then to be given.
        out: the directory of the new store.
        user_column, item_column: of the ids, integers or text.
        time_column: of an integer, date or time to order a user's interactions by; the order of rows if not given.
        attributes: columns of user attributes, categories of any type. A user has one value of each.
        title_column: of what items are called.
        min_count: drops items and users with fewer interactions, until all have as many; 5 if not given.
        split: `by_user` (8 of 10 users train, 1 validates, 1 tests; the default) or `leave_one_out` (of each user the
            last interaction but one, and the last).
        seed: of the split by user.
        format: of a path, as `eupmim-dist prepare --format`: csv, parquet, movielens and others (docs/data.md).
        name: of the data set; that of `out` if not given.
        permute_items: seed of a random numbering of the items, so that their ids tell nothing (see `audit`).
        force: replace the store that `out` holds.
        cpu: on several ranks, that they use the CPU, as for `fit`.

    What was dropped is in `store.manifest.report`. Raises UserError, with nothing half-written, for what is wrong
    with the source or the options: a column that is not there, an id that is missing, too little data.
    """
    if misspelt:
        raise _misspelt(min(misspelt))
    attributes = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    chosen = Options(user_column, item_column, time_column, attributes, title_column, min_count, split, seed)
    place = path_of("out", out)

    columns = (user_column, item_column, time_column, title_column, *attributes)

    def make() -> None:
        if isinstance(source, str | Path):
            if format is None:
                raise UserError(f"prepare: say which format {short(source)} has, such as format='csv'")
            path = path_of("source", source)
            prepare_store(path, place, format, chosen, name=name, permute_items=permute_items, force=force)
        else:
            if format is not None:
                raise UserError(f"prepare: a data frame has no format; leave out format={shown(format)}")
            frame = lazy_frame(source, columns)
            prepare_frame(frame, place, chosen, name=name, permute_items=permute_items, force=force)

    return _made(make, place, cpu)


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

    return _made(make, place, cpu)


def _made(make: Callable[[], None], out: Path, cpu: bool) -> InteractionStore:
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and "ACCELERATE_MIXED_PRECISION" not in os.environ
    if alone:  # no rank to wait for, so no need of torch
        make()
    else:
        from eupmim_dist.parallel.agreement import decided_by_main
        from eupmim_dist.parallel.world import init_world

        decided_by_main(init_world(cpu), make)
    return InteractionStore.open(out, verify=False)  # it has just been written


def _misspelt(name: str) -> UserError:
    known = [argument for argument in prepare.__annotations__ if argument not in ("misspelt", "return")]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return UserError(f"prepare: unknown option {short(name)}; {hint}")
