"""From a source in one of the formats to an interaction store: checks, counts, writing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.formats import FORMATS, OF_ELMREC, TABLES, WITH_OPTIONS, OnStage, Options, Tell, parquet
from eupmim_dist.data.formats.parts import name_of
from eupmim_dist.data.item_features import Known
from eupmim_dist.data.known import add_known, check_known
from eupmim_dist.data.manifest import StoreManifest
from eupmim_dist.data.permute import PERMUTE, permuting_seeds
from eupmim_dist.data.splits import NO_SPLIT, SPLIT_RULES, SPLITS
from eupmim_dist.data.told import tell_attributes, tell_store, tell_users
from eupmim_dist.data.writer import Dataset, check_replaceable, write_dataset
from eupmim_dist.errors import UserError, short
from eupmim_dist.files import check_out, unnameable

NOTHING = Known()


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def untold(what: str, told: str) -> None:
    """Say nothing."""


def prepare_store(
    source: Path | Sequence[Path],
    out: Path,
    format_name: str,
    options: Options | None = None,
    *,
    name: str | None = None,
    permute_users: int | None = None,
    permute_items: int | None = None,
    keep_ids: bool = False,
    force: bool = False,
    known: Known = NOTHING,
    progress: OnStage = no_progress,
    tell: Tell = untold,
) -> StoreManifest:
    """Read `source` and write the store `out` (named `name`, else as its directory); return its manifest.

    `source`: of some formats several files and folders of parts. `permute_users` and `permute_items` are seeds of a
    random numbering of them; those of elmrec have one unless `keep_ids` is set. `force` replaces an earlier store at
    `out`. `known`: files that tell more of items and users. On any failure `out` is as it was before. `tell` is called
    with what was taken for what.

    Raises:
        UserError: a wrong option, a bad source (names file and line) or an `out` that is in use.
    """
    sources = _checked(source, format_name, options := options or Options())
    check_known(known)
    seeds = permuting_seeds(permute_users, permute_items, format_name, keep_ids=keep_ids)
    check_out(out)
    check_replaceable(out, force=force)
    with _workspace(out) as workspace:
        dataset = _read(sources, format_name, options, workspace, progress, tell)
    add_known(dataset, known, tell)
    origin = f"{format_name} {name_of([Path(path.name) for path in sources])}"
    return _written(dataset, out, origin, Path(name_of(sources)), name, seeds, force, progress)


def prepare_frame(
    frame: pl.LazyFrame,
    out: Path,
    options: Options,
    *,
    name: str | None = None,
    permute_users: int | None = None,
    permute_items: int | None = None,
    force: bool = False,
    known: Known = NOTHING,
    progress: OnStage = no_progress,
    tell: Tell = untold,
) -> StoreManifest:
    """As `prepare_store`, of a data frame with a row for each interaction; messages count rows from 0, as frames do."""
    seeds = permuting_seeds(permute_users, permute_items)
    _check_apply(options)
    check_known(known)
    check_out(out)
    check_replaceable(out, force=force)
    with _workspace(out) as workspace:
        dataset = parquet.read_frame(frame, options, workspace, progress, tell)
    tell_attributes(dataset, tell)
    add_known(dataset, known, tell)
    return _written(dataset, out, "data frame", Path("data frame"), name, seeds, force, progress)


def look_at(
    source: Path | Sequence[Path],
    format_name: str,
    options: Options,
    *,
    beside: Path,
    known: Known = NOTHING,
    progress: OnStage = no_progress,
    tell: Tell = untold,
) -> None:
    """Tell what a store of `source` would hold, and write none; for a while there are files in a directory `beside`.

    Raises UserError as `prepare_store`.
    """
    sources = _checked(source, format_name, options)
    check_known(known)
    with _workspace(beside) as workspace:
        dataset = _read(sources, format_name, options, workspace, progress, tell)
    _tell_all(dataset, Path(name_of(sources)), known, tell)


def look_at_frame(frame: pl.LazyFrame, options: Options, *, beside: Path, known: Known, tell: Tell) -> None:
    """As `look_at`, of a data frame with a row for each interaction."""
    _check_apply(options)
    check_known(known)
    with _workspace(beside) as workspace:
        dataset = parquet.read_frame(frame, options, workspace, no_progress, tell)
    tell_attributes(dataset, tell)
    _tell_all(dataset, Path("data frame"), known, tell)


def _tell_all(dataset: Dataset, source: Path, known: Known, tell: Tell) -> None:
    add_known(dataset, known, tell)
    _check_splits(source, dataset)
    tell_store(dataset, tell)
    tell_users(dataset, tell)


def _checked(source: Path | Sequence[Path], format_name: str, options: Options) -> list[Path]:
    sources = [source] if isinstance(source, Path) else list(source)
    every = [*FORMATS, *WITH_OPTIONS, *TABLES]
    if format_name not in every:
        raise UserError(f"--format {short(format_name)}: unknown; one of {', '.join(every)}")
    _check_apply(options, format_name)
    if format_name not in TABLES and len(sources) > 1:
        raise UserError(f"{sources[1]}: --format {format_name} takes one directory; leave out all but one")
    for each in sources:
        _check_source(each)
    return sources


def _read(
    sources: list[Path], format_name: str, options: Options, workspace: Path, progress: OnStage, tell: Tell
) -> Dataset:
    if format_name in FORMATS:
        return FORMATS[format_name](sources[0], progress)
    if format_name in WITH_OPTIONS:
        return WITH_OPTIONS[format_name](sources[0], options, progress)
    dataset = TABLES[format_name](sources, options, workspace, progress, tell)
    tell_attributes(dataset, tell)
    return dataset


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """Beside the output, because that is where room for the data was made; the system's /tmp may be small."""
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        workspace = tempfile.TemporaryDirectory(prefix=f".{out.name}.work-", dir=existing)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    with workspace:
        yield Path(workspace.name)


def _written(
    dataset: Dataset,
    out: Path,
    origin: str,
    source: Path,
    name: str | None,
    seeds: dict[str, int],
    force: bool,
    progress: OnStage,
) -> StoreManifest:
    _check_splits(source, dataset)
    for what, seed in seeds.items():
        PERMUTE[what](dataset, seed)
    dataset.report |= unseen_items(dataset)
    progress("writing", 0, 0)
    return write_dataset(dataset, out, name=name or out.absolute().name, source=origin, force=force)


def unseen_items(dataset: Dataset) -> dict[str, int]:
    """Distinct items in the interactions of valid and of test that training never sees."""
    split_of = SPLIT_RULES[dataset.split_rule].split_of_interactions(dataset.split, dataset.offsets)
    seen = np.zeros((len(SPLITS), len(dataset.raw_items) + 1), bool)
    for code in range(len(SPLITS)):
        seen[code, dataset.items[split_of == code]] = True
    return {
        f"{name}_items_unseen_in_training": int(np.count_nonzero(seen[code] & ~seen[0]))
        for code, name in enumerate(SPLITS)
        if code
    }


def _check_source(source: Path) -> None:
    if problem := unnameable(source):
        raise UserError(f"{source}: {problem}")
    try:
        source.stat()
    except FileNotFoundError:
        raise UserError(f"{source}: no such file or directory") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _check_splits(source: Path, dataset: Dataset) -> None:
    if (dataset.split == NO_SPLIT).all():
        raise UserError(f"{source}: no user has 5 interactions or more; bring longer histories")
    if lack := SPLIT_RULES[dataset.split_rule].lack(dataset.split):
        raise UserError(f"{source}: {lack}")


def _check_apply(options: Options, format_name: str | None = None) -> None:
    """Raises UserError for the first option that is set and is not this format's; None: a data frame, as tables are."""
    for option in fields(options):
        takers = list(WITH_OPTIONS if option.name in OF_ELMREC else TABLES)
        applies = format_name in takers or (format_name is None and option.name not in OF_ELMREC)
        if getattr(options, option.name) != option.default and not applies:
            flag = "--" + option.name.replace("_", "-").removesuffix("s" if option.name == "attributes" else "")
            what = "a data frame" if format_name is None else f"--format {format_name}"
            raise UserError(f"{flag}: does not apply to {what}, only to {', '.join(takers)}; leave it out")
