"""What callers from Python may give, made what the layers below take; each function raises UserError for the rest."""

import copy
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import polars as pl

from eupmim_dist.config.load import Overrides, apply_overrides, fill, load_config, parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.config.section import Choice, Section
from eupmim_dist.data.formats.parquet import LABELS, as_text
from eupmim_dist.data.frames import lazy_frame
from eupmim_dist.data.requests import HISTORY, Requests
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, listed, short, shown
from eupmim_dist.files import unnameable

ConfigLike = Config | Mapping[str, Any] | Path | str | None
"""A configuration, its sections as a mapping, a YAML file, or None for the defaults."""
StoreLike = InteractionStore | Path | str
"""A store or its directory."""


def path_of(argument: str, value: Any, wanted: str = "a path") -> Path:
    """A path that was given as `argument`; `wanted` is what may be."""
    if not isinstance(value, str | Path):
        raise UserError(f"{argument}: give {wanted}, not {shown(value)}")
    if problem := unnameable(value):
        raise UserError(f"{argument}: {short(value)}: {problem}")
    path = Path(value)
    at_home = path.parts[:1] == ("~",) and not os.path.lexists("~")
    return Path(os.path.expanduser(path)) if at_home else path


def store_dir(data: Any) -> Path:
    """The directory of a store."""
    if isinstance(data, InteractionStore):
        return data.path
    if not isinstance(data, str | Path):
        raise UserError(f"data: a {type(data).__name__} is no store; make one of it with eupmim_dist.prepare")
    return path_of("data", data)


def config_of(config: ConfigLike, overrides: str | Overrides = (), beneath: Mapping[str, Any] | None = None) -> Config:
    """A configuration of its own, checked; `beneath` has sections for what is not said (config/load.py, `fill`)."""
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if config is None or isinstance(config, str | Path):
        return load_config(None if config is None else path_of("config", config), overrides, beneath)
    if not isinstance(config, Config | Mapping):
        raise UserError(f"config: give a Config, a mapping or a YAML file, not a {type(config).__name__}")
    values = _chosen(config) if isinstance(config, Config) else copy.deepcopy(dict(config))
    apply_overrides(values, overrides)
    fill(values, beneath or {})
    return parse_config(values, source="configuration")


OF_AN_EVALUATION = tuple(f"evaluation.{key}" for key in ("batch_size", "choose", "exclude_seen", "more_beams"))
"""Settings that another evaluation of a model may have otherwise than its training had."""


def evaluated_by(config: Config, overrides: str | Overrides) -> Config:
    """A configuration with other settings of `evaluation`. Raises UserError for one of another section."""
    values: dict[str, Any] = {}
    overrides = [overrides] if isinstance(overrides, str) else overrides
    apply_overrides(values, overrides)
    keys = [
        f"{section}.{key}"
        for section, settings in values.items()
        for key in (settings if isinstance(settings, dict) else [""])
    ]
    for key in keys:
        if key not in OF_AN_EVALUATION:
            raise UserError(
                f"--set {key.rstrip('.')}: is no setting of an evaluation; give one of {', '.join(OF_AN_EVALUATION)}, "
                "or an option such as --protocol or --top-n"
            )
    return config_of(config, overrides) if values else config


def _chosen(config: Config) -> dict[str, Any]:
    """What was set of it or is no default. An override of `model.name` is not to meet defaults of the former model."""
    values: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Choice) and name not in config.model_fields_set and not value.model_fields_set:
            continue
        if isinstance(value, Section):
            # A default list that was appended to counts as not set.
            value = value.model_dump(exclude_defaults=True, warnings=False) | {
                **({"name": value.name} if isinstance(value, Choice) else {}),
                **value.model_dump(exclude_unset=True, warnings=False),
            }
        values[name] = value
    return values


def several(one_or_more: Any) -> list[Any]:
    """A list of what was given; of one text or number, too."""
    if isinstance(one_or_more, Iterable) and not isinstance(one_or_more, str):
        return list(one_or_more)
    return [one_or_more]


def raw_ids(ids: Any, argument: str = "users") -> list[str]:
    """The raw ids of one or more users or items, which were given as `argument`."""
    if len(getattr(ids, "shape", ())) > 1:
        raise UserError(f"{argument}: give a column of the data frame, such as {argument}['customer']")
    found = several(ids)
    for each in found:
        if not isinstance(each, str | Integral):
            raise UserError(f"{argument}: an id is text or an integer, and there is a {type(each).__name__}")
    return [str(each) for each in found]


def requests_of(users: Any, histories: Any, attributes: Any, names: Collection[str]) -> Requests:
    """Users with what is told of them, a row each; `names` are the attributes that there are.

    Without `users` they are called 1, 2, ...
    """
    columns: dict[str, pl.Series] = {}
    if histories is not None:
        told = None if isinstance(histories, str) else several(histories)
        if told is None or any(isinstance(of_user, str | Integral) for of_user in told):
            raise UserError("histories: give a list of lists, the items of each user")
        lists = [None if of_user is None else raw_ids(of_user, "histories") for of_user in told]
        columns[HISTORY] = pl.Series(lists, dtype=pl.List(pl.String))
    ids = [str(n) for n in range(1, len(columns[HISTORY]) + 1)] if users is None else raw_ids(users)
    if attributes is not None:
        table = lazy_frame(attributes).collect()
        for number, (name, dtype) in enumerate(table.schema.items()):
            if name not in names:
                raise UserError(f"--profile {short(name)}: no such attribute; there are {listed(names)}")
            columns[name] = table.select(as_text("attributes", pl.nth(number), name, dtype, LABELS[0])).to_series()
    for name, column in columns.items():
        if len(column) != len(ids):
            raise UserError(f"{name}: there are {len(column):,} of them, and {len(ids):,} users; give one for each")
    rows = pl.DataFrame({"user": ids, **columns}, schema_overrides={"user": pl.String})
    kind = "history" if users is None else "user"
    return Requests(rows, lambda row: f"--profile: {kind} {short(ids[row])}", named=users is not None)


def cutoffs_of(top_n: int | Iterable[int]) -> list[int]:
    """The cut-offs N, each 1 or more."""
    try:
        numbers = [operator.index(number) for number in several(top_n)]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--top-n {short(top_n)}: give whole numbers from 1")
    return numbers
