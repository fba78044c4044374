"""The settings in which runs differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

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
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [Difference(key, [one.get(key, ABSENT) for one in flat]) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def _flat(config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in config.model_dump(mode="json").items():
        inner = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: _shown(v) for key, v in inner.items()}
    return found


def _shown(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
