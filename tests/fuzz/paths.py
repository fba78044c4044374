"""(b) Paths: names that are a name and nothing else, though shells, polars or YAML read more into them."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.roles import READ, WRITTEN, Role

PATTERNS = {
    "x[1]": "x1",
    "[x]": "x",
    "x[a-z]": "xa",
    "x*": "xy",
    "*": "z",
    "**": "z",
    "x?": "xz",
    "?": "z",
    "{a,b}": "a",
}
"""With a name that each would match as a pattern."""
NAMES = [
    "plain", "a b", " a", "a ", "~x", "~root", "it's", '"q"', "`x`", "$HOME", "a;b", "a&b", "(x)", "<x>", "a|b",
    "#x", "x#y", "%20", "a%b", "a:b", "file:x", "s3:x", "a=b", "a,b", "!x", "@x", "+x", "^x", "é", "日本", "🙂",
    "e\u0301", "..x", "...", ".hidden", "x.", "a\\b", "null", "true", "1", "1e3", "-x", "--out", "-", "x" * 100,
]  # fmt: skip
EITHER = ["~", "a\nb", "a\tb", "\x1b[31m", "\x7f", "\u2028", "x" * 230, "\u202e", "a\rb"]
"""That may also be refused; the first one is the home directory."""
HOW = ("itself", "itself", "inside", "absolute", "dot")


def draw(place: Place, random: Random) -> Plan:
    role = random.choice(random.choice([READ, WRITTEN]))
    return plan_of(place, role, random.choice([*NAMES, *PATTERNS, *PATTERNS, *EITHER]), random.choice(HOW))


def plan_of(place: Place, role: Role, name: str, how: str = "itself") -> Plan:
    """The artifact of the role (or what is written) gets this name, or lies in a directory of this name."""
    for needed in role.needs:
        place.take(needed)
    own = role.artifact or "new"
    path = Path(name, own) if how == "inside" else Path(name + role.suffix)
    if how == "inside":
        (place.here / path.parent).mkdir()
    if role.artifact:
        place.take(role.artifact).rename(place.here / path)
    if name in PATTERNS:
        _write_decoy(place.here / PATTERNS[name], path)
    typed = {"absolute": str(place.here / path), "dot": f"./{path}"}.get(how, str(path))
    if typed.startswith("-"):
        typed = f"./{typed}"
    must = None if name in EITHER else 0
    if "={path}" in role.line:  # in YAML
        must = None
    if '"{path}"' in role.line:
        typed = typed.replace("\\", "\\\\").replace('"', '\\"')
    return Plan(f"path {name!r} {how}: {role.line}", [words(role.line, path=typed)], must)


def _write_decoy(place: Path, path: Path) -> None:
    """Something else where a pattern would find it: a file, or files of the names in a store."""
    if len(path.parts) > 1:
        decoys = [place / path.name]
    elif path.suffix:
        decoys = [place.with_name(place.name + "".join(path.suffixes))]
    else:
        decoys = [place / "items.parquet", place / "users.parquet"]
    for decoy in decoys:
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_text("something else\n")


def _named(role: Role, name: str, how: str = "itself") -> Callable[[Place], Plan]:
    return lambda place: plan_of(place, role, name, how)


CHOSEN: Chosen = {
    "out": _named(WRITTEN[0], "x[1]"),
    "csv": _named(READ[0], "log[1]"),
    "parquet": _named(READ[2], "log*"),
    "store": _named(next(role for role in READ if role.artifact == "held"), "x?"),
    "exported": _named(next(role for role in WRITTEN if "parquet" in role.line), "{a,b}"),
}
