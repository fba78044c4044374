"""Values that nobody would give on purpose: as YAML, as JSON, and as numbers on the command line."""

import copy
import json
import math
from random import Random
from typing import Any

FLOATS = [".inf", "-.inf", ".nan", "1.0e+38", "-1.0e+38", "1.0e-45", "1.0e+308", "0.999999", "1.0e-300", "0.5", "1e38"]
INTEGERS = [
    "0",
    "-1",
    "1",
    "3",
    "1000000",
    "5000000",
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(10**20),
    "-" + "9" * 20,
]
OTHERS = [
    "true", "null", "''", "~", "[]", "[1, 2, 3]", "[0]", "[.nan]", f"[{', '.join(map(str, range(1, 3000)))}]",
    "[[[[1]]]]", "{}", "{a: {b: {c: 1}}}", "{1: 2}", "{null: 1}", "2001-01-01", "0x10", "1_000", "'1'", "1:30",
    "x" * 3000, "9" * 5000, '"\\0"', '"\\ud800"', '"a\\nb"', "&a [*a]", "&a {x: *a}", "!!binary aGk=", "!!set {a, b}",
    "!!python/object/apply:os.getcwd []", "*missing", "- 1", "a: b: c", "[" * 200, "[" * 2000 + "]" * 2000, "\udcff",
    "é",
]  # fmt: skip


def yaml_value(random: Random) -> str:
    return random.choice(random.choice([FLOATS, INTEGERS, INTEGERS, OTHERS]))


NUMBERS = [
    "-1", "0", "1", "2", "7", "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808",
    str(10**20), str(-(10**20)), "9" * 5000, "1e3", "1.5", "nan", "inf", "-inf", "1e308", "1e400", "", " ", " 5",
    "+5", "x", "٣", "\uff15", "1_000", "0x10", "007", "-0", "1,2", "5,", "1,,2", "10,10", "²", "1\n", "\udcff", "--",
    "-",
]  # fmt: skip
"""What may be legitimate and long, such as ten million users, is left out."""

JSON_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 0.5, 1e308, -1e308, 1e-320, 2**31, 2**63, -(2**63), 10**20, float("nan"),
    float("inf"), "", "x", "x" * 5000, "../x", "/dev/null", "a\0b", "\ud800", "1", "é\n", [], [[]], [0], [-1], [None],
    [1, "a"], {}, {"a": 1}, {"": {}}, [1] * 2000, 10**400,
]  # fmt: skip


def json_value(random: Random) -> Any:
    """One of them, as new: it may be changed in turn."""
    return copy.deepcopy(random.choice(JSON_VALUES))


class Doubled(dict):
    """A mapping that JSON writes with one of its keys twice."""

    def __init__(self, content: dict, key: str, second: Any) -> None:
        super().__init__(content)
        self.key, self.second = key, second

    def items(self) -> Any:
        return [*super().items(), (self.key, self.second)]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def changed_json(tree: Any, random: Random) -> str:
    """The text of a JSON tree in which something is not as it was."""
    if random.random() < 0.03:
        return random.choice([json.dumps(value) for value in JSON_VALUES])
    if random.random() < 0.03:
        text = json.dumps(tree)
        at = random.randrange(len(text))
        return text[:at] + random.choice(["", deep(3000), "{", ";"]) + text[at + 1 :]
    before, holder = json.dumps(tree), _Holder(tree)
    for _ in range(random.choice([1, 1, 1, 2])):
        _change(holder, random)
    while json.dumps(holder.tree) == before:
        _change(holder, random)
    return json.dumps(holder.tree, indent=random.choice([None, 1]))


class _Holder:
    """The root, so that it can be replaced as any other."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree


def _change(holder: _Holder, random: Random) -> None:
    parent: Any = holder.__dict__
    key: Any = "tree"
    while (
        isinstance(parent[key], dict | list)
        and len(parent[key])
        and (parent is holder.__dict__ or random.random() < 0.75)
    ):
        parent = parent[key]
        key = random.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    value = parent[key]
    if parent is holder.__dict__:
        parent[key] = json_value(random)
        return
    siblings = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    match random.choice(
        ["value", "value", "value", "nudge", "nudge", "delete", "rename", "swap", "copy", "wrap", "add", "double"]
    ):
        case "value":
            parent[key] = json_value(random)
        case "nudge":
            parent[key] = _nudged(value, random)
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[random.choice([key + "x", key.upper(), "../" + key, "", "a\0", "é", key[:-1]])] = parent.pop(key)
        case "swap":
            other = random.choice(siblings)
            parent[key], parent[other] = parent[other], parent[key]
        case "copy":
            parent[random.choice(siblings)] = value
        case "wrap":
            parent[key] = random.choice([[value], {"value": value}, [value, value], str(value)])
        case "add" if isinstance(parent, dict):
            parent[random.choice(["x", "", "../x", "__class__", "a" * 2000])] = json_value(random)
        case "double" if isinstance(value, dict) and value:
            twice = random.choice(list(value))
            parent[key] = Doubled(value, twice, random.choice([value[twice], json_value(random)]))
        case _:
            parent[key] = json_value(random)


def _nudged(value: Any, random: Random) -> Any:
    """Something near it of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and abs(value) < 1e300:
        return random.choice([value + 1, value - 1, -value, value * 1000, value * 10**9, float(value), value + 0.5])
    if isinstance(value, float) and math.isfinite(value):
        return random.choice([-value, value * 1e300, value + 1, round(value)])
    if isinstance(value, str):
        cut = value[: random.randrange(len(value))] if value else ""
        return random.choice(
            [value + "x", value.upper(), "../" + value, " " + value, cut, value + "\0", value * 50, value[::-1]]
        )
    if isinstance(value, list):
        return random.choice(
            [value[:-1], [*value, *value[:1]], value[::-1], value * 3, [[v] for v in value], [*value, None]]
        )
    if isinstance(value, dict):
        return random.choice([dict(list(value.items())[1:]), list(value.items()), list(value), {**value, "x": 1}])
    return random.choice([0, "", [], {}])
