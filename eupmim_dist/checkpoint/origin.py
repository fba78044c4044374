"""The store that a checkpoint was trained on: found again, and its tables of raw ids taken along."""

import shutil
from pathlib import Path
from typing import Any

from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.config.schema import Config
from eupmim_dist.data.manifest import TABLES
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.hashing import file_entry


def check_same_data(checkpoint: Checkpoint, store: InteractionStore) -> None:
    """Raises UserError if `store` has another content than the one that the checkpoint was trained on."""
    if store.is_that_of(checkpoint.data.fingerprint):
        return
    if store.path.resolve() == checkpoint.config.data.dir.resolve():
        start = f", by `train --init-from {checkpoint.path}`" if checkpoint.is_model else ""
        raise UserError(
            f"{store.path}: was made anew since {checkpoint.path} was trained on it, and holds other data; make it as "
            f"it was, or train anew on it in another --run-dir{start}"
        )
    raise UserError(
        f"{store.path}: is another store than {checkpoint.path} was trained on ({checkpoint.data.name}); "
        "give that one with --data (for train: --set data.dir=...)"
    )


def data_dir_of(config: Config, trained: Path) -> Path:
    """Where what was trained by `config`, and lies at `trained`, found its store. Raises UserError if none is there."""
    place = config.data.dir
    if not place.is_dir():
        raise UserError(f"{place}: the store that {trained} was trained on is not there; name it with --data")
    return place


def store_of(checkpoint: Checkpoint, data: Path | None = None) -> InteractionStore:
    """Opens the store that a checkpoint was trained on: where the run found it, or at `data`.

    Raises UserError if there is none, or another one.
    """
    path = data or data_dir_of(checkpoint.config, checkpoint.path)
    store = InteractionStore.open(path, verify=False)
    check_same_data(checkpoint, store)
    return store


def copy_id_maps(store: InteractionStore, directory: Path) -> dict[str, dict[str, Any]]:
    """Copies `users.parquet` and `items.parquet` (columns id, raw_id, title where known) into a model directory.

    Returns their entries in its manifest. Raises UserError if the store's are not what they were.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name in TABLES:
        shutil.copyfile(store.path / name, directory / name)
        entries[name] = file_entry(directory / name)
        if entries[name]["sha256"] != store.manifest.files[name].sha256:
            raise UserError(f"{store.path / name}: content does not match its SHA-256; prepare the store again")
    return entries
