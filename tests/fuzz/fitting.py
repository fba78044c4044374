"""Hashes and sizes made to fit what was changed, so that only what reads the content can find it.

A second implementation of what eupmim_dist writes: it must take whatever mutations have left.
"""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

WRONG = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())


def change_json(file: Path, change: Callable[[Any], None]) -> None:
    """Does nothing where it is no JSON or not what `change` expects."""
    with suppress(*WRONG):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content, indent=1))


def fit_store(store: Path) -> str | None:
    """Sizes and hashes of a store's files in its dataset.json; its fingerprint, if it has one still."""

    def fit(manifest: Any) -> None:
        for name, entry in manifest["files"].items():
            with suppress(*WRONG):
                content = (store / name).read_bytes()
                entry.update(bytes=len(content), sha256=sha256(content))

    change_json(store / "dataset.json", fit)
    with suppress(*WRONG):
        manifest = json.loads((store / "dataset.json").read_text())
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        attributes = [[a["name"], a["cardinality"]] for a in manifest["attributes"]]
        return sha256_of_json([hashes, manifest["split_rule"], attributes])
    return None


def fit_checkpoint(directory: Path) -> None:
    """Sizes, hashes and the checksum in the manifest of a step or the config.json of a model."""
    for name in ("manifest.json", "config.json"):
        change_json(directory / name, lambda manifest: _fit_files(directory, manifest))
    fit_checksum(directory / "manifest.json")


def _fit_files(directory: Path, manifest: Any) -> None:
    for name, entry in manifest["files"].items():
        with suppress(*WRONG):
            content = (directory / name).read_bytes()
            entry.update(size=len(content), sha256=sha256(content))


def fit_checksum(manifest: Path) -> None:
    """In the text, which may hold what a parser would not give back, such as a key twice."""
    with suppress(*WRONG):
        text = manifest.read_text()
        content = json.loads(text)
        content.pop("checksum")
        manifest.write_text(re.sub(r'("checksum": *")[^"]*"', rf'\g<1>{sha256_of_json(content)}"', text))


def checkpoints(here: Path) -> list[Path]:
    """Every step and model below a directory."""
    found = [*here.rglob("manifest.json"), *here.rglob("config.json")]
    return sorted(file.parent for file in found if file.is_file())


def adopt_store(here: Path, store: Path) -> None:
    """Makes every checkpoint below one that was trained on this store as it is now, raw ids of models too."""
    fingerprint = fit_store(store)
    for directory in checkpoints(here):
        for name in ("users.parquet", "items.parquet"):
            if (directory / name).is_file() and (store / name).is_file():
                (directory / name).write_bytes((store / name).read_bytes())
        for name in ("manifest.json", "config.json"):
            change_json(directory / name, lambda manifest: manifest["data"].update(fingerprint=fingerprint))
        fit_checkpoint(directory)
