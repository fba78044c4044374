"""YAML as configurations need it: what else the language has is refused, as it can hang or crash whoever reads it."""

from typing import Any

import yaml

from eupmim_dist.errors import short, shown

DEEPEST = 20
"""Levels of nesting; a configuration has three."""
MOST_ALIASES = 20
"""Of lists and mappings: of more, which stand for each other, a few lines make more than any memory holds."""


def parse(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, which `where_and_why` explains."""
    return yaml.load(text, _PlainLoader)


def where_and_why(error: yaml.YAMLError) -> tuple[int | None, str]:
    """The line of a mistake, from 1, where it is known, and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
    return (mark.line + 1 if mark else None), reason


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without keys given twice, of which PyYAML takes the last, and without what grows."""

    depth = aliases = 0

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.around: list[str | None] = []  # the names of what a node stands in

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.around:
            raise _at(event.start_mark, f"*{short(event.anchor)} stands within itself")
        self.depth += 1
        if self.depth > DEEPEST:
            raise _at(event.start_mark, f"nested more than {DEEPEST} levels deep")
        self.around.append(getattr(event, "anchor", None))
        node = super().compose_node(parent, index)
        self.around.pop()
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise _at(event.start_mark, f"more than {MOST_ALIASES} lists or mappings by *name; write them out")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # of a date with a month 13, of a number with thousands of digits: each kind has its own
            kind = node.tag.rpartition(":")[2]
            raise _at(node.start_mark, f"{shown(node.value)} cannot be read as {kind}; put text into quotes") from None
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise _at(node.start_mark, f"{shown(value)} holds what no text does")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # else it has been tagged as one
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key.start_mark, "a key is a list or mapping, and not a word")
            if key.value in seen:
                raise _at(key.start_mark, f"key {short(key.value)} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _at(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
