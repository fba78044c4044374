"""The E-UPMiM authors' released `model.pt` -> our tensors. Which model it is is read from its tensors."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eupmim_dist.config.registry import built_in, find
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, short
from eupmim_dist.files import regular_file
from eupmim_dist.models.release import Release, item_width, their_name

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_release(file: Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint as float32; nothing but tensors is ever unpickled.

    Raises UserError for a file that is none, and for a tensor that is not of floats or not finite.
    """
    if file.is_dir():
        raise UserError(f"{file}: is a directory; give the file in it, such as {file / 'model.pt'}")
    regular_file(file, "give a released model.pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, which are refused below
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever the unpickler meets; its text may advise to unpickle code, so it is not shown
        raise UserError(f"{file}: is not a checkpoint of tensors alone, so it is not loaded") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{file}: does not hold a state_dict of tensors; import the authors' released model.pt")
    return {str(name): _sound(tensor.detach(), f"{file}: {short(name)}") for name, tensor in tensors.items()}


def _sound(tensor: Tensor, what: str) -> Tensor:
    """A float32 copy, in memory that no other tensor shares, as safetensors want it."""
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(
            f"{what} is {str(tensor.dtype).removeprefix('torch.')}; only plain tensors of floats are imported"
        )
    if not 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        held = "more numbers than the file holds" if tensor.numel() else "no number"
        raise UserError(f"{what} is {tuple(tensor.shape)}, {held}; export it again")
    copy = tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not copy.isfinite().all():
        raise UserError(f"{what} holds NaN or infinite values; import a checkpoint from before training went wrong")
    return copy


def model_settings(tensors: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """The sections of a configuration that the tensors tell: the model's and, where known, the history length."""
    item_width(tensors, file)
    for release in _releases().values():
        if (found := release.settings(tensors, file)) is not None:
            return found
    raise UserError(f"{file}: its tensors are neither those of E-UPMiM nor of ComiRec as released")


def release_of(model_name: str) -> Release:
    """Raises UserError for a model whose authors have released none."""
    known = _releases()
    if model_name not in known:
        raise UserError(f"{model_name}: its authors have released no weights; only of {', '.join(known)} are there any")
    return known[model_name]


def release_names(model_name: str, dense: list[str], store: InteractionStore) -> dict[str, str]:
    """Our tensor names (`dense.`, `table.`) -> the released ones; `dense` names the dense parameters.

    Raises UserError if the store has other attributes than the released model.
    """
    release, attributes = release_of(model_name), [attribute.name for attribute in store.attributes]
    try:
        tables = release.tables(attributes)
    except UserError as error:
        raise UserError(f"{store.path}: {error.as_typed}") from None
    names = release.names(attributes)
    return {f"table.{ours}": theirs for ours, theirs in tables.items()} | {
        f"dense.{name}": their_name(name, names) for name in dense
    }


def renamed(tensors: dict[str, Tensor], model_name: str, ours: list[str], store: InteractionStore) -> dict[str, Tensor]:
    """Our tensor names (`dense.`, `table.`) -> the released tensors. `ours` names the dense parameters."""
    found = {}
    for name, theirs in release_names(model_name, ours, store).items():
        if theirs not in tensors:
            raise UserError(f"the release has no tensor {theirs} for {name}; is it another version of the model?")
        found[name] = tensors[theirs]
    return found


def _releases() -> dict[str, Release]:
    registered = {name: find("model", name) for name in built_in("model")}
    return {name: entry.release for name, entry in registered.items() if entry.release is not None}
