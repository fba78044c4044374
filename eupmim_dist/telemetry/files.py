"""The small files that a run writes beside its checkpoints; a full disk is a UserError that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eupmim_dist.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`: an OSError becomes a UserError with the path and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole, or leaves what was there. Raises UserError where it cannot be written."""
    staging = path.with_name(f".{path.name}.incomplete")
    with writing(path):
        try:
            staging.write_text(text, encoding="utf-8")
            staging.replace(path)
        except OSError:
            with suppress(OSError):
                staging.unlink(missing_ok=True)
            raise
