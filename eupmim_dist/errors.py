"""The one error a user's mistake becomes, and how messages show what is the user's."""

import re

LONGEST_VALUE, LONGEST_MESSAGE = 80, 700
"""Characters; what is longer is cut in the middle, as a message begins with the place and ends with the mend."""


class UserError(Exception):
    """A mistake of the user, with a one-line message that names the file, line, option or key and the mend.

    Messages write an option as it is typed, `--min-count 0: ...`. So the command line prints them, as `error: ...`, and
    exits with code 2. In Python, where they are read as `str(error)`, it is the argument: `min_count 0: ...`.
    """

    def __str__(self) -> str:
        return _OPTION.sub(_argument, self.as_typed)

    @property
    def as_typed(self) -> str:
        """The message in the words of the command line."""
        return _cut(super().__str__(), LONGEST_MESSAGE)


def shown(value: object) -> str:
    """A value from a user's file or option, for a message: its repr, the middle left out if it is long."""
    return _cut(repr(value), LONGEST_VALUE)


def short(text: object) -> str:
    """The same without quotes, for ids and names."""
    return _cut(str(text), LONGEST_VALUE)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} [... {len(text):,} characters ...] {text[-most // 3 :]}"


_OPTION = re.compile(r"`[^`]*`|(?<![\w-])--([a-z][a-z-]*)")  # what is quoted is a command, in Python too
_ARGUMENTS = {
    "attribute": "attributes",
    "baseline": "baselines",
    "protocol": "protocols",
    "set": "overrides",
    "user": "users",
}
"""Arguments that are not called as their options, which are given once for each value."""


def _argument(found: re.Match[str]) -> str:
    option = found[1]
    return found[0] if option is None else _ARGUMENTS.get(option, option.replace("-", "_"))
