"""YAML file + `--set a.b=value` -> Config; every mistake names its key and the mend."""

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError


def load_config(file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (defaults where there is none) and applies `a.b=value` overrides in order.

    Raises UserError for a missing or malformed file, an unknown key (with the nearest name) or a bad value.
    """
    values = _read_yaml(file) if file else {}
    alone = copy.deepcopy(values)
    apply_overrides(values, overrides)
    sources = [*([str(file)] if file else []), *(["--set"] if overrides else [])]
    try:
        return parse_config(values, source=" with ".join(sources) or "configuration")
    except UserError:
        parse_config(alone, source=str(file))  # the file's own mistake is told without --set
        raise


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validates a nested mapping; `source` names it in errors."""
    model = values.get("model")
    if isinstance(model, dict):
        model.setdefault("name", "eupmim")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets `a.b=value` in a nested mapping, in order; the values are YAML."""
    for override in overrides:
        _apply_override(values, override)


def dump_config(config: Config) -> str:
    """The configuration as YAML; `load_config` of it gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field, in order; sections themselves are left out."""
    for name, field in section.model_fields.items():
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_section(t)]
        if not inner:
            yield prefix + name, field
        seen: set[str] = set()
        for alternative in inner:
            for key, sub in fields(alternative, f"{prefix}{name}."):
                if key not in seen:
                    seen.add(key)
                    yield key, sub


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key given twice where PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise UserError(f"{file}: no such configuration file; `ls configs` shows those shipped") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as a configuration: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{file}{line}: not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: a configuration is a mapping of sections, not a {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as key=value, for example train.learning_rate=0.001")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    *sections, last = key.strip().split(".")
    target = values
    for name in sections:
        inner = target.setdefault(name, {})
        if inner is None:
            inner = target[name] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: {name} is a value, not a section")
        target = inner
    target[last] = value


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    # The discriminated union puts the model's name into the path; users do not write it.
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["model"] and len(path) > 1 and path[1] in _model_names():
        del path[1]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        if owners := [name for name in _model_names() if key in _keys_of(name)]:
            return f"{key} is a key of model {' and '.join(owners)}, not of the one chosen; leave it out"
        nearest = difflib.get_close_matches(key, [name for name, _ in fields()], n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; `eupmim-dist config show` lists the keys"
        return f"unknown key {key}{hint}"
    if first["type"] == "union_tag_invalid":
        return f"model.name: {first['input'].get('name')!r} is not a model; choose from {', '.join(_model_names())}"
    if first["type"] == "string_pattern_mismatch":
        described = dict(fields())[key].description or ""
        return f"{key}: {first['input']!r} does not fit: {described[:1].lower()}{described[1:]}"
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool | None) else ""
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def _keys_of(model: str) -> set[str]:
    union = get_args(Config.model_fields["model"].annotation)
    option = union[_model_names().index(model)]
    return {f"model.{name}" for name in option.model_fields}


def _model_names() -> list[str]:
    union = get_args(Config.model_fields["model"].annotation)
    return [get_args(option.model_fields["name"].annotation)[0] for option in union]
