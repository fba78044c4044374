"""JSON files that this program writes and people may edit: each a model of pydantic, checked whole when it is read."""

from pathlib import PurePath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from eupmim_dist.errors import as_set, short

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _plain(name: str) -> str:
    if name in ("", ".", "..") or PurePath(name).name != name or "\0" in name:
        raise ValueError("is no plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain)]
"""Of a file in the directory of the file that names it."""


def _near(path: str) -> str:
    parts = path.split("/")
    if len(parts) > 2:
        raise ValueError("lies deeper than a directory in that of the file that names it")
    return "/".join(_plain(part) for part in parts)


FilePath = Annotated[str, AfterValidator(_near)]
"""Of a file in the directory of the file that names it, or in one that lies there."""

STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""Nothing is converted; what later versions may write beside it is not looked at."""


class Metadata(BaseModel):
    model_config = ConfigDict(**STRICT, frozen=True)


M = TypeVar("M", bound=BaseModel)


def parse(kind: type[M], text: str | bytes) -> M:
    """What a file holds. Raises ValueError, whose message is one line that names the key."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first of what is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"no key {short(key)}"
    if not key:
        return short(message)
    got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {as_set(first['input'])})"
    told = message[1:] if first["type"] == "literal_error" else short(message[1:])  # what there is to choose from
    return f"{short(key)}: {message[:1].lower()}{told}{got}"
