"""Names of a configuration -> their implementations: models, tasks, objectives, scorers.

An implementation of this package is the module of its name beside its kind's interface, such as `models/sasrec.py`;
another package gives one by an entry point of its name in the group of the kind, such as `eupmim_dist.models`. Either
holds a `Registered`: the module as MODEL, TASK, OBJECTIVE or SCORER, the entry point by naming it (docs/plugins.md).
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from eupmim_dist.config.migrate import RENAMED
from eupmim_dist.errors import UserError, shown


@dataclass(frozen=True)
class Registered:
    """What a name stands for."""

    config: type[Any]
    """Its section of the configuration (config/schema.py), whose default `name` is the registered one."""
    build: Callable[..., Any]
    """Section, and what the kind's interface says -> the implementation."""
    release: Any = None
    """Of a model here whose authors have released weights: how theirs and ours are told apart and renamed."""


@dataclass(frozen=True)
class Kind:
    package: str
    """Where this package's implementations are modules."""
    attribute: str
    """What each of them calls its `Registered`."""
    others: tuple[str, ...] = ()
    """Modules there that are none."""

    @property
    def group(self) -> str:
        """Of the entry points of other packages."""
        return f"eupmim_dist.{self.package.rpartition('.')[2]}"


KINDS = {
    "model": Kind(
        "eupmim_dist.models",
        "MODEL",
        ("conformance", "features", "interface", "layers", "propagation", "release", "writing"),
    ),
    "task": Kind("eupmim_dist.tasks", "TASK", ("asking", "interface", "users")),
    "objective": Kind("eupmim_dist.objectives", "OBJECTIVE", ("interface", "log_total", "negatives", "readout")),
    "scorer": Kind("eupmim_dist.evaluation.scorers", "SCORER", ("interface",)),
}


def names(kind: str) -> list[str]:
    """Every name of a kind, this package's and those of others; nothing is imported to find them.

    Raises UserError if a plug-in takes a name that is taken.
    """
    return [*built_in(kind), *_plugins(kind)]


def find(kind: str, name: str) -> Registered:
    """The implementation of that name, imported.

    Raises UserError if there is none, or if a plug-in cannot be imported or is none of this kind.
    """
    if not isinstance(name, str):  # YAML reads 1, null and on as something else
        raise UserError(
            f"{kind}.name: {shown(name)} is no name; put one into quotes that YAML takes for something else"
        )
    plugins = _plugins(kind)
    if name in plugins:
        return _load(kind, plugins[name])
    if name not in built_in(kind):
        if (kind, name) in RENAMED:
            raise UserError(f"{kind}.name: {name} is now called {RENAMED[kind, name]}")
        nearest = difflib.get_close_matches(name.lower().replace("-", "_"), names(kind), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        known = ", ".join(names(kind))
        raise UserError(
            f"{kind}.name: {shown(name)} is no {kind}{hint}; choose from {known}, or install the package that has it "
            f"(as an entry point of the group {KINDS[kind].group})"
        )
    found: Registered = getattr(import_module(f"{KINDS[kind].package}.{name}"), KINDS[kind].attribute)
    return found


def build(kind: str, name: str, expected: type[Any], *arguments: Any) -> Any:
    """What the implementation of that name is, built of its section and what the kind's interface says.

    Raises UserError as `find`, and if a plug-in's builder raises or gives something else than the `expected`.
    """
    registered = find(kind, name)
    if name in built_in(kind):
        return registered.build(*arguments)
    where = _told(kind, _plugins(kind)[name])
    try:
        made = registered.build(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be built ({reason(error)}); `eupmim-dist --debug` shows where") from error
    if not isinstance(made, expected):
        raise UserError(f"{where} builds {type(made).__name__}, which is no {expected.__name__}")
    return made


def origin(kind: str, name: str) -> tuple[str, str] | None:
    """The package, and its version, that an implementation of that name is of, if it is another than this one."""
    point = _plugins(kind).get(name)
    if point is None:
        return None
    return _package_of(point), (point.dist and point.dist.version) or "of unknown version"


def reason(error: BaseException) -> str:
    """An exception of somebody else's code, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@cache
def built_in(kind: str) -> tuple[str, ...]:
    """The names of this package's own."""
    # By the directory: importing them all would take seconds.
    package = Path(__file__).parents[1].joinpath(*KINDS[kind].package.split(".")[1:])
    return tuple(sorted(m.name for m in iter_modules([str(package)]) if m.name not in KINDS[kind].others))


@cache
def _plugins(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=KINDS[kind].group):
        taken = f"by {_package_of(found[point.name])} too" if point.name in found else "by eupmim_dist itself"
        if point.name in found or point.name in built_in(kind):
            raise UserError(
                f"{_told(kind, point)} has a name that is taken {taken}; rename it in its entry points ({point.group}) "
                "or uninstall the package"
            )
        found[point.name] = point
    return found


def _load(kind: str, point: EntryPoint) -> Registered:
    from eupmim_dist.config import schema  # which imports this module

    where = _told(kind, point)
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # whatever another package's import raises
        raise UserError(f"{where} cannot be imported ({reason(error)}); mend or uninstall it") from error
    if not isinstance(found, Registered):
        what = f"class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise UserError(f"{where} is a {what}; its entry point must name a Registered")
    section = getattr(schema, f"{kind.capitalize()}Section")
    if not isinstance(found.config, type) or not issubclass(found.config, section):
        raise UserError(f"{where} has a configuration that is no {section.__name__}; derive it from that")
    if (name := found.config.model_fields["name"].default) != point.name:
        told = f"is {name!r}" if isinstance(name, str) else "has no default"
        raise UserError(f"{where}: the `name` of its {found.config.__name__} {told}; it must be {point.name!r} too")
    return found


def _told(kind: str, point: EntryPoint) -> str:
    """How errors begin that are of a plug-in."""
    return f"plug-in {_package_of(point)}: its {kind} {point.name!r} ({point.value})"


def _package_of(point: EntryPoint) -> str:
    return (point.dist and point.dist.name) or f"of module {point.value.partition(':')[0]}"
