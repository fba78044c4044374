"""The encoding of a text file: by its byte-order mark, as it was given, or UTF-8; others are copied into UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

from eupmim_dist.data.formats.lines import BLOCK_BYTES
from eupmim_dist.data.formats.records import opened
from eupmim_dist.errors import UserError, short

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF_8 = ("utf-8", "utf-8-sig")
NOT_TEXT = "eupmim_dist.nul"
"""The error handler that puts a NUL, which no text holds, in the place of what does not decode."""
codecs.register_error(NOT_TEXT, lambda error: ("\0", error.end))  # type: ignore[attr-defined]


def check_encoding(name: str | None, option: str) -> None:
    """Raises UserError for an encoding, given with `option`, that is none."""
    if name is None:
        return
    try:
        "a".encode(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise UserError(f"{option} {short(name)}: unknown; give a name such as utf-8, utf-16 or cp1252") from None


def encoding_of(source: Path, given: str | None) -> tuple[str, bool]:
    """The encoding of a file, and whether a byte-order mark at its start says it, which comes before what is given."""
    with opened(source) as stream:
        begin = stream.read(4)
    for mark, name in MARKS.items():
        if begin.startswith(mark):
            return name, True
    name = "utf-8" if given is None else codecs.lookup(given).name
    return "utf-8" if name in UTF_8 else name, False


def copy_as_utf8(source: Path, encoding: str, copy: Path, mend: str) -> None:
    """Writes the text of `source`, line by line the same, block by block; what does not decode becomes a NUL.

    Raises UserError where nothing decodes.
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors=NOT_TEXT)
    with opened(source) as stream, copy.open("wb") as out:
        block = b"first"
        while block:
            block = stream.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise UserError(f"{source}: not {encoding.upper()} text ({error}); {mend}") from None
            out.write(text.encode("utf-8", NOT_TEXT))
