"""explanation.json: what users wrote of items, split beforehand."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from eupmim_dist.data.explanations import SCHEMA
from eupmim_dist.data.formats.sequential import read_json
from eupmim_dist.errors import UserError, short, shown

SPLIT_OF = {"train": "train", "val": "valid", "test": "test"}
TEXTS = ("feature", "explanation")


def read_explanations(path: Path, num_users: int, num_items: int) -> pl.DataFrame:
    """A row for each record, with ids of a store: user u of the file is u - 1.

    Raises UserError, which names the record, for one that is none, or of a user or item that there is not.
    """
    content = read_json(path, "no explanations")
    if not isinstance(content, dict) or not content or (others := content.keys() - SPLIT_OF):
        there = f" (there is {shown(min(others))})" if isinstance(content, dict) and content else ""
        raise UserError(f"{path}: no lists of records under train, val and test{there}; mend or remove it")
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA}
    most = {"user": num_users, "item": num_items}
    for key, records in content.items():
        if not isinstance(records, list):
            raise UserError(f"{path}: {key} is {shown(records)}, expected a list of records; mend or remove it")
        for number, record in enumerate(records, 1):
            if problem := _problem(record, most):
                raise UserError(f"{path}: record {number} of {key}: {problem}; mend or remove it")
            for name in ("user", "item", *TEXTS):
                columns[name].append(record[name])
        columns["split"] += [SPLIT_OF[key]] * len(records)
    return pl.DataFrame(columns, schema=SCHEMA).with_columns(pl.col("user") - 1)


def _problem(record: object, most: dict[str, int]) -> str | None:
    if not isinstance(record, dict):
        return f"{shown(record)} is none"
    of_user = f" (user {short(record['user'])})" if "user" in record else ""
    for name, largest in most.items():
        if name not in record:
            return f"has no {name}{of_user}"
        if type(number := record[name]) is not int or not 1 <= number <= largest:
            return f"{name} is {shown(number)}, which is not in sequential.txt (1..{largest}){of_user}"
    for name in TEXTS:
        if not isinstance(text := record.get(name), str) or not text.strip():
            return f"{name} is {shown(text)}, expected text{of_user}"
    return None
