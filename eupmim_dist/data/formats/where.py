"""Conditions on rows: `event=view,cart`, `event!=refund`, `rating>=4`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from eupmim_dist.errors import UserError, short, shown

CONDITION = re.compile("(?s)(.+?)(!=|>=|<=|=|>|<)(.*)")
OF_NUMBERS = (">", ">=", "<", "<=")


@dataclass(frozen=True)
class Condition:
    """`values`: texts of which one is to be met, or (`!=`) none; the number to compare with."""

    typed: str
    column: str
    operator: str
    values: tuple[str, ...]

    @property
    def number(self) -> float:
        return float(self.values[0])

    def text(self, value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        """A column of a source as it is compared. Raises UserError for a type that cannot be."""
        as_number = self.operator in OF_NUMBERS
        if (
            dtype.is_nested()
            or dtype in (pl.Binary, pl.Object, pl.Duration)
            or (as_number and not (dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum)))
        ):
            what = "is compared with a number" if as_number else "is compared with text"
            raise UserError(f"--where {short(self.typed)}: column {shown(self.column)} is {short(dtype)}, and {what}")
        if dtype.is_float() and not as_number:  # 4.0 is to be 4
            return (
                pl.when(value == value.floor())
                .then(value.cast(pl.Int64, strict=False))
                .cast(pl.String)
                .fill_null(value.cast(pl.String))
            )
        return value.cast(pl.String)

    def is_no_number(self, text: pl.Expr) -> pl.Expr:
        return ~text.cast(pl.Float64, strict=False).is_finite().fill_null(False)

    def holds(self, text: pl.Expr) -> pl.Expr:
        match self.operator:
            case "=":
                return text.fill_null("").is_in(self.values)
            case "!=":
                return ~text.fill_null("").is_in(self.values)
        number = text.cast(pl.Float64, strict=False)
        return {
            ">": number > self.number,
            ">=": number >= self.number,
            "<": number < self.number,
            "<=": number <= self.number,
        }[self.operator]


def conditions(typed: Sequence[str]) -> list[Condition]:
    """What `--where` says. Raises UserError for what is no condition."""
    return [_condition(text) for text in typed]


def _condition(typed: str) -> Condition:
    found = CONDITION.fullmatch(typed)
    if not found:
        raise UserError(f"--where {short(typed)}: write it as event=purchase, event!=refund or rating>=4")
    column, operator, value = found.groups()
    if operator not in OF_NUMBERS:
        return Condition(typed, column, operator, tuple(part.strip() for part in value.split(",")))
    try:
        is_number = math.isfinite(float(value))
    except ValueError:
        is_number = False
    if not is_number:
        raise UserError(f"--where {short(typed)}: {shown(value)} is no number to compare with")
    return Condition(typed, column, operator, (value,))
