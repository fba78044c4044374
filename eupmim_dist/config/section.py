"""What all sections of a configuration have in common."""

from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 10**15


def _leaves(kind: Any) -> list[Any]:
    """What a type is made of: int and None of `Annotated[int, ...] | None`."""
    parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [kind]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, field: ValidationInfo) -> Any:
        """Python takes true for the number 1."""
        if cls.__module__.startswith("eupmim_dist."):
            kinds = _leaves(cls.model_fields[str(field.field_name)].annotation)
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
