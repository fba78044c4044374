"""What is searched: ranges and choices of settings, written as text, checked against the configuration's fields."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from eupmim_dist.arguments import config_of
from eupmim_dist.config import plain_yaml
from eupmim_dist.config.load import CHOICES, Overrides, apply_overrides, fields
from eupmim_dist.config.registry import find
from eupmim_dist.config.schema import Config
from eupmim_dist.config.section import Choice, kinds_of
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import read_text

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\s+(log)|\s+step\s+({NUMBER}))?")
JUDGES = ("data.", "evaluation.", "checkpoint.", "world_size", "seed")
"""Settings that all trials have in common, or they could not be compared."""
HOW = "write a range as 1..3, 1e-4..1e-2 log or 0..1 step 0.1, and choices as 32,64,96"


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones if `low` is."""

    key: str
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __str__(self) -> str:
        more = " log" if self.log else "" if self.step is None else f" step {self.step}"
        return f"{self.low}..{self.high}{more}"


@dataclass(frozen=True)
class Choices:
    """Some values."""

    key: str
    values: tuple[bool | int | float | str | None, ...]

    def __str__(self) -> str:
        return ",".join("null" if value is None else str(value) for value in self.values)


Knob = Range | Choices
"""A setting that is searched."""


def read_space(options: list[str], file: Path | None) -> dict[str, Any]:
    """`--search` and `--space`: texts by key. Raises UserError for what is no such text, and a key that comes twice."""
    space = {} if file is None else _of_file(file)
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--search {short(option)}: write it as key=values, such as model.dim=32,64")
        if key.strip() in space:
            raise UserError(f"--search {short(key.strip())}: is given twice; give it once")
        space[key.strip()] = text
    return space


def _of_file(file: Path) -> dict[str, Any]:
    try:
        content = plain_yaml.parse(read_text(file))
    except (OSError, ValueError) as error:
        raise UserError(f"--space {file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        line, reason = plain_yaml.where_and_why(error)
        raise UserError(f"--space {file}{f':{line}' if line else ''}: not valid YAML: {short(reason)}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"--space {file}: holds no mapping of settings to what is searched; {HOW}")
    space: dict[str, Any] = {}
    for key, text in _flat(content):
        if key in space:
            raise UserError(f"--space {file}: {short(key)} is given twice; give it once")
        space[key] = text
    return space


def _flat(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def knobs_of(space: Any, config: Config, overrides: str | Overrides = ()) -> list[Knob]:
    """What is searched around a configuration, in the order given.

    Args:
        space: by key a text, as after `--search key=`, or a list of values.
        config: with the overrides applied.
        overrides: none of them may be searched too.

    Raises UserError for an unknown key, a value that the setting cannot have, and what needs no search.
    """
    if not isinstance(space, Mapping) or not space:
        raise UserError("--search: say what to search, such as --search 'train.learning_rate=1e-4..1e-2 log'")
    fixed: dict[str, Any] = {}
    apply_overrides(fixed, [overrides] if isinstance(overrides, str) else overrides)
    known = dict(fields(config))
    for kind in CHOICES:  # keys of what a trial may choose, too
        if isinstance(space.get(f"{kind}.name"), str | list | tuple):
            names = _values(f"{kind}.name", space[f"{kind}.name"])
            of_names = [find(kind, name).config.model_fields for name in names]
            known = {f"{kind}.{key}": field for of_name in of_names for key, field in of_name.items()} | known
            known[f"{kind}.name"] = Choice.model_fields["name"]
    knobs = []
    for key, text in space.items():
        if not isinstance(key, str) or key not in known:
            raise UserError(f"--search {short(key)}: {_why_unknown(str(key), config)}")
        if key.startswith(JUDGES):
            raise UserError(f"--search {key}: is the same for all trials, or they could not be compared; use --set")
        if _holds(fixed, key):
            raise UserError(f"--search {key}: is given by --set too; leave one of them out")
        knobs.append(_knob(key, text, known[key], config))
    return knobs


def _why_unknown(key: str, config: Config) -> str:
    if key in Config.model_fields:
        return f"is a section; search a key of it, such as {next(name for name in dict(fields(config)) if key in name)}"
    try:
        config_of(config, {key: 0})
    except UserError as error:
        return error.as_typed.removeprefix("configuration: ")
    return "unknown key; `eupmim-dist config show` lists the keys"


def _holds(values: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _knob(key: str, text: Any, field: FieldInfo, config: Config) -> Knob:
    knob: Knob | None = _range(key, text, field) if isinstance(text, str) and ".." in text else None
    if knob is None:
        values = tuple(_fitting(key, value, field) for value in _values(key, text))
        if len({(type(value), value) for value in values}) < len(values):
            raise UserError(f"--search {key}: {short(text)} holds a value twice; give each once")
        if len(values) < 2:
            raise UserError(f"--search {key}: {shown(text)} leaves no choice; use --set, or {HOW}")
        knob = Choices(key, values)
    for value in (knob.low, knob.high) if isinstance(knob, Range) else knob.values:
        try:
            config_of(config, {key: value})
        except UserError as error:  # a mistake of other keys is one of the combination: others may be right
            told = error.as_typed.removeprefix("configuration: ")
            if told.startswith(f"{key}:"):
                raise UserError(f"--search {told}") from None
    return knob


def _range(key: str, text: str, field: FieldInfo) -> Range:
    found = RANGE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--search {key}: {shown(text)} is no range; {HOW}")
    numbers = {number for number in kinds_of(field.annotation) if number in (int, float)}
    if not numbers:
        raise UserError(f"--search {key}: is no number, so it has no range; list its values, separated by commas")
    low, high = (_fitting(key, _number(part), field) for part in found.group(1, 2))
    log, step = found[3] is not None, None if found[4] is None else _number(found[4])
    if low >= high:
        raise UserError(f"--search {key}: {shown(text)} does not rise; give the lower end first")
    if log and low <= 0:
        raise UserError(f"--search {key}: {shown(text)} cannot be on a log scale, which begins above 0")
    if step is not None:
        if step <= 0 or (numbers == {int} and step != int(step)):
            raise UserError(f"--search {key}: step {found[4]} is no {'whole ' * (numbers == {int})}number above 0")
        count = (high - low) / step
        if abs(count - round(count)) > 1e-8 or count < 0.5:
            raise UserError(f"--search {key}: steps of {found[4]} do not lead from {low} to {high}; choose another end")
        step = int(step) if numbers == {int} else float(step)
    return Range(key, low, high, log, step)


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _values(key: str, text: Any) -> list[Any]:
    if isinstance(text, list | tuple):
        return list(text)
    if not isinstance(text, str):
        return [text]
    try:
        values = plain_yaml.parse(f"[{text}]")
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list) or any(not part.strip() for part in text.split(",")):
        raise UserError(f"--search {key}: {shown(text)} is no list of values; {HOW}")
    return values


def _fitting(key: str, value: Any, field: FieldInfo) -> Any:
    """The value as the field has it. Raises UserError where that cannot have it."""
    if isinstance(value, list | Mapping):
        raise UserError(f"--search {key}: {shown(value)} is no single value; {HOW}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--search {key}: {value} is no finite number")
    kind: Any = Annotated[field.annotation, field]
    try:
        found = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        mend = f"; {HOW}" if isinstance(value, str) and {int, float} & set(kinds_of(field.annotation)) else ""
        raise UserError(f"--search {key}: {shown(value)}: {reason[:1].lower()}{reason[1:]}{mend}") from None
    return found if found is None or isinstance(found, bool | int | float | str) else str(found)
