"""Models to and from what other programs read: vectors and indexes, and the authors' own files. One rank."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from eupmim_dist import assemble
from eupmim_dist.checkpoint.layout import Checkpoint
from eupmim_dist.checkpoint.load import check_hashes
from eupmim_dist.checkpoint.origin import store_of
from eupmim_dist.checkpoint.save import describe
from eupmim_dist.checkpoint.state import model_tensors
from eupmim_dist.config.load import apply_overrides, parse_config
from eupmim_dist.config.registry import find
from eupmim_dist.data.permute import PERMUTED
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.export.exported import check_authors, item_vectors, write_authors
from eupmim_dist.export.imported import model_settings, read_release, renamed
from eupmim_dist.export.model_dir import write_model
from eupmim_dist.export.vector_files import Block, Vectors, import_faiss, write_faiss, write_npy, write_parquet
from eupmim_dist.export.vectors import scored_vectors, user_vectors
from eupmim_dist.files import out_directory, real
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.parallel.placement import owner_of
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import console
from eupmim_dist.train.room import without_memory

WRITERS = {
    "npy": {"items": write_npy, "users": write_npy},
    "parquet": {"items": write_parquet, "users": write_parquet},
    "faiss": {"items": write_faiss, "users": write_npy},
}
"""Format -> what writes the vectors of a kind."""
KINDS = ("items", "users")
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def export_vectors(
    checkpoint: Checkpoint, out: Path, kinds: Sequence[str] = KINDS, format: str = "npy", data: Path | None = None
) -> None:
    """Writes the vectors of items, of users or of both into a new directory (export/vector_files.py).

    `data` is the store's place, if it is no longer where the run found it. Raises UserError for an unknown format or
    kind, for a damaged checkpoint, and where faiss is asked for and missing.
    """
    if format not in WRITERS:
        raise UserError(f"--format {format}: choose from {', '.join(WRITERS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--what {kind}: choose from {', '.join(KINDS)}")
    name = checkpoint.config.model.name
    if (scorer := getattr(find("model", name).build, "scorer", "interests")) != "interests":
        raise UserError(
            f"model {name}: is ranked by {scorer}: no product of vectors says what it recommends, and there are none "
            "to export; `recommend --all-users --out FILE` writes its lists"
        )
    if format == "faiss":
        import_faiss()  # fails before the work that it would end
    store = store_of(checkpoint, data)
    terminal = console(stderr=True)
    with out_directory(out) as staging:
        found = {"items": lambda: item_vectors(checkpoint)}
        made = any(owner_of(table) == ITEM_TABLE for table in checkpoint.tables) or _propagates(checkpoint, store)
        if "users" in kinds or made:
            trained = assemble.load_trained(checkpoint.path, WORLD, store.path)
            found["users"] = lambda: user_vectors(trained)
            if made:
                found["items"] = lambda: scored_vectors(trained)
        else:
            _check(checkpoint, store)  # the table is read from the files, not loaded
        with Progress(transient=True, console=terminal, disable=not terminal.is_terminal) as progress:
            for kind in kinds:
                vectors = found[kind]()
                WRITERS[format][kind](replace(vectors, blocks=_shown(vectors, progress)), store.path, staging)


def export_authors(checkpoint: Checkpoint, out: Path, data: Path | None = None) -> tuple[Path, list[str]]:
    """Writes `model.pt` into a new directory, as the model's authors save it; the store's place, and the settings that
    the file does not tell, as KEY=VALUE. Raises UserError for a model that they have not."""
    store = store_of(checkpoint, data)
    check_authors(checkpoint, store)
    with out_directory(out) as staging:
        _check(checkpoint, store)
        return store.path, write_authors(checkpoint, store, staging / "model.pt")


def import_release(file: Path, data: Path, out: Path, overrides: Sequence[str] = ()) -> tuple[str, int]:
    """Writes a released `model.pt` as a model directory; the model's name and the number of its tensors.

    `overrides` are `a.b=value` for what the tensors do not tell. Raises UserError for a file that is no release, and
    where store and settings ask for tensors of other shapes.
    """
    released = read_release(file)
    settings = model_settings(released, file)
    settings.setdefault("data", {})["dir"] = str(real(data))
    apply_overrides(settings, overrides)
    store = assemble.open_store(data, WORLD)
    if permuted := next((what for what, told in PERMUTED.items() if told in store.manifest.report), None):
        raise UserError(
            f"{data}: its {permuted} ids are permuted, and a release goes by the source's; prepare it as it is"
        )
    assembled = assemble.assemble(parse_config(settings, source="--set"), WORLD, store)
    name = assembled.config.model.name
    expected = model_tensors(assembled.model, assembled.tables)
    tensors = renamed(released, name, [p for p, _ in assembled.model.named_parameters()], assembled.store)
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{file}: {key} is {tuple(tensor.shape)}, but {data} and the settings ask for "
                f"{tuple(expected[key].shape)}; use the store with the users and items it was trained on"
            )
    write_model(tensors, {**describe(assembled, 0, {}), "imported_from": file.name}, out, assembled.store)
    return name, len(tensors)


def _propagates(checkpoint: Checkpoint, store: InteractionStore) -> bool:
    model = without_memory(checkpoint.config, assemble.shape_of_data(checkpoint.config, store))
    return model is not None and model.propagation() is not None


def _check(checkpoint: Checkpoint, store: InteractionStore) -> None:
    """Of what is read without being loaded."""
    check_hashes(checkpoint.path, WORLD)
    assemble.open_store(store.path, WORLD)


def _shown(vectors: Vectors, progress: Progress) -> Iterator[Block]:
    """The blocks, with the progress through them."""
    task = progress.add_task(vectors.kind, total=vectors.shape[0])
    for ids, block in vectors.blocks:
        yield ids, block
        progress.advance(task, len(ids))
