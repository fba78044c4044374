"""What all sections of a configuration have in common."""

import types
from pathlib import Path
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 10**15


def kinds_of(annotation: Any) -> list[Any]:
    """The types that a field takes, out of unions and what is annotated."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in kinds_of(part)]
    return [annotation]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, field: ValidationInfo) -> Any:
        """Python takes true for the number 1."""
        if cls.__module__.startswith("eupmim_dist."):
            kinds = kinds_of(cls.model_fields[str(field.field_name)].annotation)
            kinds += [of_each for kind in kinds if get_origin(kind) is list for of_each in kinds_of(get_args(kind)[0])]
            given = value if isinstance(value, list) else [value]
            if any(isinstance(each, bool) for each in given) and bool not in kinds and (int in kinds or float in kinds):
                raise ValueError("it is a number, not switched on or off")
        return value

    @field_validator("*")
    @classmethod
    def _can_be(cls, value: Any, field: ValidationInfo) -> Any:
        if field.field_name == "seed" or not cls.__module__.startswith("eupmim_dist."):  # another package has its own
            return value
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, int) and abs(n) > LARGEST for n in numbers):
            raise ValueError(f"no number here is larger than {LARGEST:,}")
        return value

    def bundle(self, directory: Path) -> None:
        """Writes what it names elsewhere, and a model cannot do without, into directories in that of the model."""
        for _, part in self:
            if isinstance(part, Section):
                part.bundle(directory)

    def bundled(self, directory: Path) -> Self:
        """The same of what `bundle` has written into a model's directory, where it has."""
        own = {name: part.bundled(directory) for name, part in self if isinstance(part, Section)}
        return self.model_copy(update=own)


class Choice(Section):
    """A section whose `name` picks an implementation (config/registry.py), which has keys of its own."""

    name: str
