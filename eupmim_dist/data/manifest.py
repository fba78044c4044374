"""`dataset.json`, which says what an interaction store holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_serializer, model_validator
from pydantic.dataclasses import dataclass

from eupmim_dist.data.splits import SPLIT_RULES
from eupmim_dist.errors import UserError, shown
from eupmim_dist.files import read_text
from eupmim_dist.hashing import sha256_of_json
from eupmim_dist.metadata import STRICT, Count, FileName, Metadata, Sha256, parse

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
FEATURES = ("item_values", "item_numbers", "item_vectors", "user_vectors")
"""What is known of items and users besides who had what."""
OPTIONAL_ARRAYS = ("timestamps", *FEATURES, "negatives")
ARRAYS = ("offsets", "items", "attributes", "split", *OPTIONAL_ARRAYS)
TABLES = ("users.parquet", "items.parquet")
EXPLANATIONS = "explanations.parquet"
OPTIONAL_TABLES = (EXPLANATIONS,)


@dataclass(frozen=True, config=STRICT)
class Attribute:
    """A categorical attribute of every user; its values are 0..cardinality-1."""

    name: str
    cardinality: Annotated[int, Field(ge=0, lt=2**31)]
    labels: tuple[str, ...] | None = None
    """What each value is called in the source, where it is known there."""

    @model_validator(mode="after")
    def _labelled(self) -> Attribute:
        if self.labels is not None and not len(set(self.labels)) == len(self.labels) == self.cardinality:
            raise ValueError(f"attribute {self.name} has {self.cardinality} values and not as many labels")
        return self

    @model_serializer
    def as_manifest(self) -> dict[str, Any]:
        """For JSON; without labels where none are known."""
        known = {} if self.labels is None else {"labels": list(self.labels)}
        return {"name": self.name, "cardinality": self.cardinality, **known}


@dataclass(frozen=True, config=STRICT)
class ItemAttribute:
    """A categorical attribute of items, of which an item has any number of values: 1..len(labels)."""

    name: str
    labels: tuple[str, ...]
    columns: Annotated[int, Field(ge=1, lt=2**31)]
    """Of `item_values.npy`: as many as the item with the most values has."""

    @model_validator(mode="after")
    def _labelled(self) -> ItemAttribute:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"item attribute {self.name} has a label twice")
        return self


class Counts(Metadata):
    users: Count
    items: Count
    item_rows: Annotated[int, Field(ge=1, lt=2**63)]
    interactions: Count
    users_in_a_split: Count = 0


class StoreFile(Metadata):
    bytes: Count
    sha256: Sha256


class StoreManifest(Metadata):
    format_version: Literal[1] = 1
    name: str
    source: str = ""
    """What it was made from."""
    counts: Counts
    split_rule: str
    split_users: dict[str, Count] = Field(default_factory=dict)
    attributes: tuple[Attribute, ...]
    item_attributes: tuple[ItemAttribute, ...] = ()
    item_numbers: tuple[str, ...] = ()
    """What the columns of `item_numbers.npy` are."""
    timestamp_ties: Count | None = None
    """Interactions with the time of the one before; None without times."""
    report: dict[str, Count] = Field(default_factory=dict)
    """Counts of what was dropped."""
    files: dict[FileName, StoreFile]

    @model_validator(mode="after")
    def _whole(self) -> StoreManifest:
        if self.split_rule not in SPLIT_RULES:
            raise ValueError(f"unknown split rule {shown(self.split_rule)}")
        required = {f"{name}.npy" for name in ARRAYS if name not in OPTIONAL_ARRAYS} | set(TABLES)
        if missing := sorted(required - self.files.keys()):
            raise ValueError(f"files lists no {missing[0]}")
        if self.counts.items != self.counts.item_rows - 1:
            raise ValueError(f"counts: {self.counts.items} items and {self.counts.item_rows} item rows")
        of_items = [*(attribute.name for attribute in self.item_attributes), *self.item_numbers]
        for what, names in (
            ("attributes", [attribute.name for attribute in self.attributes]),
            ("attributes of items", of_items),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: two have the same name")
        return self

    @property
    def fingerprint(self) -> str:
        """Of the content, wherever the store lies."""
        of_items = [[a.name, a.labels, a.columns] for a in self.item_attributes], self.item_numbers
        told = self._told(self.files)
        return sha256_of_json([*told, *of_items] if any(of_items) else told)

    @property
    def bare_fingerprint(self) -> str:
        """That of a store which has the same, and knows nothing more of items and users."""
        return sha256_of_json(self._told(self.files.keys() - {f"{name}.npy" for name in FEATURES}))

    def _told(self, names: Iterable[str]) -> list[object]:
        hashes = {name: self.files[name].sha256 for name in names}
        return [hashes, self.split_rule, [[a.name, a.cardinality] for a in self.attributes]]


class _Version(BaseModel):
    format_version: Any = None


def read_manifest(path: Path) -> StoreManifest:
    """The manifest of the store at `path`. Raises UserError if there is none, a damaged one or another version's."""
    file = path / MANIFEST
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; make a store with `eupmim-dist prepare` or `synth`")
    try:
        text = read_text(file)
        version = parse(_Version, text).format_version
    except FileNotFoundError:
        raise UserError(
            f"{file}: not found, so this is no interaction store; make one with `eupmim-dist prepare`"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read ({reason}); prepare the store again") from error
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(
            f"{file}: format_version is {shown(version)}, this program reads {FORMAT_VERSION}; prepare the store again"
        )
    try:
        return parse(StoreManifest, text)
    except ValueError as error:
        raise UserError(f"{file}: damaged store ({error}); prepare it again") from None
