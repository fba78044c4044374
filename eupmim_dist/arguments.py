"""What callers from Python may give, made what the layers below take; each function raises UserError for the rest."""

import copy
import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from eupmim_dist.config.load import Overrides, apply_overrides, load_config, parse_config
from eupmim_dist.config.schema import Choice, Config, Section
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, short, shown
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


def config_of(config: ConfigLike, overrides: str | Overrides = ()) -> Config:
    """A configuration of its own, checked."""
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if config is None or isinstance(config, str | Path):
        return load_config(None if config is None else path_of("config", config), overrides)
    if not isinstance(config, Config | Mapping):
        raise UserError(f"config: give a Config, a mapping or a YAML file, not a {type(config).__name__}")
    values = _chosen(config) if isinstance(config, Config) else copy.deepcopy(dict(config))
    apply_overrides(values, overrides)
    return parse_config(values, source="configuration")


def _chosen(config: Config) -> dict[str, Any]:
    """What was set of it or is no default. An override of `model.name` is not to meet defaults of the former model."""
    values: dict[str, Any] = {}
    for name, value in config:
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


def raw_ids(users: Any) -> list[str]:
    """The raw ids of one or more users."""
    if len(getattr(users, "shape", ())) > 1:
        raise UserError("users: give a column of the data frame, such as users['customer']")
    found = several(users)
    for user in found:
        if not isinstance(user, str | Integral):
            raise UserError(f"users: an id is text or an integer, and there is a {type(user).__name__}")
    return [str(user) for user in found]


def cutoffs_of(top_n: int | Iterable[int]) -> list[int]:
    """The cut-offs N, each 1 or more."""
    try:
        numbers = [operator.index(number) for number in several(top_n)]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--top-n {short(top_n)}: give whole numbers from 1")
    return numbers
