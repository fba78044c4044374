"""The one error a user's mistake becomes, and how messages show what is the user's."""

import errno
import json
import os
import re
from collections.abc import Iterable

LONGEST_VALUE, LONGEST_MESSAGE = 80, 700
"""Characters; what is longer is cut in the middle, as a message begins with the place and ends with the mend."""
MOST_NAMES = 12

_OF_THE_SYSTEM = (
    *(errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),  # of a disk or a server
)
"""What may be said where a path is all right, and another attempt may go well."""


class UserError(Exception):
    """A mistake of the user, with a one-line message that names the file, line, option or key and the mend.

    Messages write an option as it is typed, `--min-count 0: ...`. So the command line prints them, as `error: ...`, and
    exits with code 2. In Python, where they are read as `str(error)`, it is the argument: `min_count 0: ...`.

    Of a source with many mistakes there are further lines, each an argument of its own.
    """

    def __str__(self) -> str:
        return _OPTION.sub(_argument, self.as_typed)

    @property
    def as_typed(self) -> str:
        """The message in the words of the command line."""
        return "\n".join(_cut(_printable(str(line).replace("\n", " ")), LONGEST_MESSAGE) for line in self.args)


def mistake_of(error: BaseException) -> UserError | None:
    """The user's mistake that an exception is: itself, or a path that cannot be read or written; None for others."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and error.errno not in _OF_THE_SYSTEM:
        return UserError(f"{os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}")
    return None


def shown(value: object) -> str:
    """A value from a user's file or option, for a message: its repr, the middle left out if it is long."""
    try:
        text = repr(value)
    except Exception:  # of a number with thousands of digits, of what is nested too deep
        text = f"<{type(value).__name__}>"
    return _cut(text, LONGEST_VALUE)


def as_set(value: object) -> str:
    """The same of a setting, as a configuration has it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


def short(text: object) -> str:
    """The same without quotes, for ids and names."""
    return _cut(_printable(str(text)), LONGEST_VALUE)


def listed(names: Iterable[object]) -> str:
    """Names one after another, the first ones of many."""
    first, rest = (every := list(names))[:MOST_NAMES], len(every) - MOST_NAMES
    return ", ".join([*map(short, first), *([f"and {rest:,} more"] if rest > 0 else [])]) or "none"


def _printable(text: str) -> str:
    """With what would not be seen: `\\n` of a line end, `\\ufeff` of a byte-order mark."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} [... {len(text):,} characters ...] {text[-most // 3 :]}"


_OPTION = re.compile(r"`[^`]*`|(?<![\w-])--([a-z][a-z-]*)")  # what is quoted is a command, in Python too
_ARGUMENTS = {
    "attribute": "attributes",
    "baseline": "baselines",
    "history": "histories",
    "profile": "attributes",
    "protocol": "protocols",
    "set": "overrides",
    "user": "users",
}
"""Arguments that are not called as their options, which are given once for each value."""


def _argument(found: re.Match[str]) -> str:
    option = found[1]
    return found[0] if option is None else _ARGUMENTS.get(option, option.replace("-", "_"))
