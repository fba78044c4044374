"""The one error a user's mistake becomes."""

import re


class UserError(Exception):
    """A mistake of the user, with a one-line message that names the file, line, option or key and the mend.

    Messages write an option as it is typed, `--min-count 0: ...`. So the command line prints them, as `error: ...`, and
    exits with code 2. In Python, where they are read as `str(error)`, it is the argument: `min_count 0: ...`.
    """

    def __str__(self) -> str:
        return _OPTION.sub(_argument, super().__str__())

    @property
    def as_typed(self) -> str:
        """The message in the words of the command line."""
        return super().__str__()


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
