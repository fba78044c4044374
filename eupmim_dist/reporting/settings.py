"""The settings in which runs differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from eupmim_dist.config.load import flat
from eupmim_dist.config.schema import Config

ABSENT = "—"
"""For a setting that the chosen model, task or objective does not have."""


@dataclass(frozen=True)
class Difference:
    key: str
    values: list[str]
    """Of each run."""


def differences(configs: Sequence[Config]) -> list[Difference]:
    """By key, in the order of a configuration."""
    settings = [{key: _shown(value) for key, value in flat(config).items()} for config in configs]
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    rows = [Difference(key, [of_run.get(key, ABSENT) for of_run in settings]) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def _shown(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
