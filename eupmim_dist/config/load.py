"""YAML file + `--set a.b=value` -> Config; every mistake names its key and the mend."""

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from eupmim_dist import metadata
from eupmim_dist.config import plain_yaml
from eupmim_dist.config.migrate import REPLACED, migrated
from eupmim_dist.config.registry import built_in, find, origin
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import LONGEST_VALUE, UserError, listed, short, shown
from eupmim_dist.files import read_text

Overrides = Mapping[str, Any] | Sequence[str]
"""Settings that come before those of a configuration: by dotted key, or as `a.b=value` with the value in YAML."""
LARGEST = 1 << 18
"""Bytes of a configuration; a larger file is another one, and PyYAML would read it for minutes."""
ELSEWHERE = {
    "loss": "objective.name, such as objective.name=full_softmax",
    "lr": "train.learning_rate",
    "batch_size": "train.global_batch_size",
    "epochs": "train.max_steps, which counts steps",
    "num_epochs": "train.max_steps, which counts steps",
    "embedding_dim": "model.dim",
    "embedding_size": "model.dim",
    "hidden_size": "model.dim",
    "max_length": "task.history_length",
    "max_seq_length": "task.history_length",
    "early_stopping": "evaluation.patience",
}
"""What other trainers call it -> the key here."""


def load_config(
    file: Path | None = None, overrides: Overrides = (), beneath: Mapping[str, Any] | None = None
) -> Config:
    """Reads a YAML file (defaults where there is none) and applies the overrides in order.

    The `config.json` of a model and the manifest of a checkpoint are read as the configuration in them. `beneath` has
    sections for what neither file nor overrides say (`fill`).

    Raises UserError for a missing or malformed file, an unknown key (with the nearest name) or a bad value.
    """
    values = _read(file) if file else {}
    alone = copy.deepcopy(values)
    apply_overrides(values, overrides)
    for each in (values, alone):
        fill(each, beneath or {})
    sources = [*([str(file)] if file else []), *(["--set"] if overrides else [])]
    try:
        return parse_config(values, source=" with ".join(sources) or "configuration")
    except UserError:
        parse_config(alone, source=str(file))  # the file's own mistake is told without --set
        raise


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validates a nested mapping; `source` names it in errors."""
    try:
        if strangers := [key for key in values if not isinstance(key, str)]:
            raise UserError(f"unknown key {short(strangers[0])}; `eupmim-dist config show` lists the keys")
        return Config(**values)
    except UserError as error:
        raise UserError(f"{source}: {error.as_typed}") from None


def apply_overrides(values: dict[str, Any], overrides: Overrides, option: str = "--set") -> None:
    """Sets them in a nested mapping, in order; `option` is what errors call them."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(values, str(key), value, f"{option} {short(key)}")
    else:
        for override in overrides:
            _apply_override(values, override, f"{option} {short(override)}")


def fill(values: dict[str, Any], beneath: Mapping[str, Any]) -> None:
    """Sets what a nested mapping leaves open, by section; nothing in one whose `name` is another than it has there."""
    for section, settings in beneath.items():
        given = values.get(section, {})
        if isinstance(given, dict) and (
            "name" not in settings or given.get("name", settings["name"]) == settings["name"]
        ):
            values[section] = {**settings, **given}


def dump_config(config: Config) -> str:
    """The configuration as YAML; `load_config` of it gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fields(config: Config) -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field, in order, with the keys of the implementations that this configuration chooses."""
    return _fields({kind: type(getattr(config, kind)) for kind in CHOICES})


def origins(config: Config) -> dict[str, str]:
    """The other packages that the implementations it chooses are of, with their versions."""
    return dict(found for kind in CHOICES if (found := origin(kind, getattr(config, kind).name)))


def _fields(chosen: Mapping[str, type[BaseModel]]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Config.model_fields.items():
        section = chosen.get(name, field.annotation)
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from ((f"{name}.{key}", inner) for key, inner in section.model_fields.items())
        else:
            yield name, field


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".json":
            values = json.loads(read_text(file))
        elif file.stat().st_size > LARGEST:
            raise UserError(f"{file}: is larger than {LARGEST >> 10} kB, so it is no configuration")
        else:
            values = plain_yaml.parse(read_text(file))
    except FileNotFoundError:
        mend = "`eupmim-dist config show` prints one with every default"
        if Path("configs").is_dir():
            mend = "`ls configs` shows those shipped"
        raise UserError(f"{file}: no such configuration file; {mend}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {_shortened(str(error))}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text; convert the file to it"
        raise UserError(f"{file}: cannot be read as a configuration: {reason}") from None
    except yaml.YAMLError as error:
        line, reason = plain_yaml.where_and_why(error)
        raise UserError(f"{file}{f':{line}' if line else ''}: not valid YAML: {_shortened(reason)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: a configuration is a mapping of sections, not a {type(values).__name__}")
    return _of_manifest(file, values) if "format_version" in values else values


def _of_manifest(file: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The configuration that a checkpoint's or model's manifest holds."""
    try:
        values = migrated(dict(manifest["config"]), int(manifest["format_version"]))
        config = parse_config(values, source=str(file)).bundled(file.parent)
        return values | {kind: getattr(config, kind).model_dump(mode="json") for kind in CHOICES}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file}: holds no configuration; give a YAML file, or the config.json of a model") from None


def _apply_override(values: dict[str, Any], override: str, what: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{what}: write it as key=value, for example train.learning_rate=0.001")
    try:
        value = plain_yaml.parse(text)
    except yaml.YAMLError as error:
        _, reason = plain_yaml.where_and_why(error)
        raise UserError(f"{what}: the value is not valid YAML: {_shortened(reason)}") from None
    _set(values, key, value, what)


def _shortened(reason: str) -> str:
    """What PyYAML says, which may hold what it was given."""
    return reason if len(reason) < 2 * LONGEST_VALUE else short(reason)


def _set(values: dict[str, Any], key: str, value: Any, what: str) -> None:
    *sections, last = key.strip().split(".")
    target = values
    for name in sections:
        inner = target.setdefault(name, {})
        if inner is None:
            inner = target[name] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{what}: {short(name)} is a value, not a section")
        target = inner
    if isinstance(value, Mapping) and isinstance(target.get(last), dict):  # the rest of the section stays
        for inner_key, inner_value in value.items():
            _set(target[last], str(inner_key), inner_value, what)
    else:
        target[last] = value


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its whole key, such as `train.l2`, in plain values."""
    found: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


def explain(error: ValidationError, values: dict[str, Any]) -> str:
    """The first mistake, in one line that names its key and the mend."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key, values)
    known = dict(_known_fields(values))
    if first["type"] == "string_pattern_mismatch" and key in known:
        described = known[key].description or ""
        return f"{key}: {shown(first['input'])} does not fit: {described[:1].lower()}{described[1:]}"
    none = first["type"] == "finite_number" and key in known and known[key].default is None
    return metadata.explain(error) + ("; null is for none" if none else "")


def _unknown(key: str, values: dict[str, Any]) -> str:
    """What to say of a key that does not exist."""
    if key in REPLACED:
        return f"{key} is now called {REPLACED[key]}"
    kind, _, name = key.partition(".")
    if name and key in values:  # as one word, not as a key of a section
        return f"unknown key {short(key)}; in a file write {short(name)} below its section, {short(kind)}:"
    if kind in CHOICES and (owners := _owners(kind, name)):
        return f"{short(key)} {_belonging(kind, owners)}, or leave it out"
    word = name or kind
    if word in ELSEWHERE:
        return f"unknown key {short(key)}; it is set by {ELSEWHERE[word]}"
    known = [key for key, _ in _known_fields(values)]
    if places := [place for place in known if place.endswith(f".{word}")]:
        return f"unknown key {short(key)}; it is {' or '.join(places)}"
    for other in CHOICES:
        if owners := _owners(other, word):
            return f"unknown key {short(key)}; {other}.{word} {_belonging(other, owners)} too"
    if not name and (section := difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0.7)):
        return f"unknown key {short(key)}; did you mean {section[0]}?"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; `eupmim-dist config show` lists the keys"
    return f"unknown key {short(key)}{hint}"


def _owners(kind: str, name: str) -> list[str]:
    """The implementations that have a key; not those of other packages, which would be imported for it."""
    return [known for known in built_in(kind) if name in find(kind, known).config.model_fields]


def _belonging(kind: str, owners: list[str]) -> str:
    """That a key is of these, and how one of them is chosen."""
    which = owners[0] if len(owners) == 1 else "NAME"
    return f"belongs to {kind} {listed(owners)}: set {kind}.name={which}"


def _known_fields(values: dict[str, Any]) -> Iterator[tuple[str, FieldInfo]]:
    """As `fields` of the implementations that some values choose, whatever else is wrong with these."""
    chosen: dict[str, type[BaseModel]] = {kind: type(section) for kind, section in Config() if kind in CHOICES}
    for kind in CHOICES:
        given = values.get(kind)
        if isinstance(given, BaseModel):
            chosen[kind] = type(given)
        elif isinstance(given, dict) and "name" in given:
            chosen[kind] = find(kind, given["name"]).config
    return _fields(chosen)


CHOICES = ("task", "model", "objective")
"""The sections whose `name` picks an implementation."""
