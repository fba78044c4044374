"""The E-UPMiM authors' released `model.pt` -> our tensors. Which model it is is read from its tensors."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

ATTRIBUTE_NAMES = {"age": "user_age_embedding_matrix", "gender": "user_gender_embedding_matrix"}
ATTRIBUTE_NAMES["occupation"] = "user_occup_embedding_matrix"

# Ours <- theirs, by whole name or prefix; {} is a number that both have.
_NET = "multi_interest_network."
EUPMIM_NAMES = {
    "extractor.encoder.layers.{}.attention.qkv.weight": _NET + "encoder.layers.{}.self_attn.in_proj_weight",
    "extractor.encoder.layers.{}.attention.qkv.bias": _NET + "encoder.layers.{}.self_attn.in_proj_bias",
    "extractor.encoder.layers.{}.attention.out.": _NET + "encoder.layers.{}.self_attn.out_proj.",
    "extractor.encoder.layers.{}.": _NET + "encoder.layers.{}.",
    "extractor.query.": _NET + "W_q.",
    "extractor.key.": _NET + "W_h.",
    "extractor.score.": _NET + "W_a.",
    "extractor.next_query.": _NET + "query_mlps.",
    "attention.weights1.": "_user_profile_interest_attention.fc_layers.0.",
    "attention.weights2.": "_user_profile_interest_attention.fc_layers.2.",
    "attention.mix1.": "fc_layers.0.",
    "attention.mix2.": "fc_layers.1.",
}
COMIREC_PROJECTION = "capsule_network.proj."
COMIREC_NAMES = {"capsules.weights": "capsule_network.weights", "projection.0.": COMIREC_PROJECTION}
ITEMS, USERS = "mid_embeddings_var.weight", "user_embeddings_var.weight"
ITEM_BIASES = "mid_embeddings_bias.weight"
"""That nothing reads."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_release(file: Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint as float32; nothing but tensors is ever unpickled.

    Raises UserError for a file that is none, and for a tensor that is not of floats or not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, which are refused below
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{file}: is a directory; give the file in it, such as {file / 'model.pt'}") from None
    except Exception:  # whatever the unpickler meets; its text may advise to unpickle code, so it is not shown
        raise UserError(f"{file}: is not a checkpoint of tensors alone, so it is not loaded") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{file}: does not hold a state_dict of tensors; import the authors' released model.pt")
    return {str(name): _sound(tensor.detach(), f"{file}: {name}") for name, tensor in tensors.items()}


def _sound(tensor: Tensor, what: str) -> Tensor:
    """A float32 copy, in memory that no other tensor shares, as safetensors want it."""
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(
            f"{what} is {str(tensor.dtype).removeprefix('torch.')}; only plain tensors of floats are imported"
        )
    copy = tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not copy.isfinite().all():
        raise UserError(f"{what} holds NaN or infinite values; import a checkpoint from before training went wrong")
    return copy


def model_settings(tensors: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """The configuration that the tensors tell: the model's section and, where known, the history length."""
    if ITEMS not in tensors or tensors[ITEMS].ndim != 2:
        raise UserError(f"{file}: holds no {ITEMS}, so it is neither E-UPMiM nor ComiRec as released")
    dim = tensors[ITEMS].shape[1]
    if "capsule_network.weights" in tensors:
        weights = tensors["capsule_network.weights"]
        if weights.ndim != 4:
            raise UserError(
                f"{file}: capsule_network.weights is {tuple(weights.shape)}, the release's has 4 dimensions"
            )
        model: dict[str, Any] = {"name": "comirec", "dim": dim, "num_interests": weights.shape[2] // dim}
        # The release ranks by the raw capsules, before its projection (reference, "The authors' ComiRec port").
        return {"model": {**model, "projection": False}, "data": {"history_length": weights.shape[1]}}
    prefix = r"multi_interest_network\."
    queries = _count(tensors, prefix + r"query_mlps\.(\d+)\.")
    layers = _count(tensors, prefix + r"encoder\.layers\.(\d+)\.")
    if not layers or "fc_layers.0.weight" not in tensors:
        raise UserError(f"{file}: its tensors are neither those of E-UPMiM nor of ComiRec as released")
    model = {"name": "eupmim", "dim": dim, "num_interests": queries + 1, "num_encoder_layers": layers}
    return {"model": {**model, "unseen_users": "table"}}


def renamed(tensors: dict[str, Tensor], model_name: str, ours: list[str], store: InteractionStore) -> dict[str, Tensor]:
    """Our tensor names (`dense.`, `table.`) -> the released tensors. `ours` names the dense parameters."""
    found = {}
    for name, theirs in release_names(model_name, ours, store).items():
        if theirs not in tensors:
            raise UserError(f"the release has no tensor {theirs} for {name}; is it another version of the model?")
        found[name] = tensors[theirs]
    return found


def release_names(model_name: str, dense: list[str], store: InteractionStore) -> dict[str, str]:
    """Our tensor names (`dense.`, `table.`) -> the released ones; `dense` names the dense parameters.

    Raises UserError if the store has other attributes than the released model.
    """
    tables = {"table.item": ITEMS}
    if model_name == "eupmim":
        names_here = {attribute.name for attribute in store.attributes}
        if names_here != set(ATTRIBUTE_NAMES):
            raise UserError(
                f"{store.path}: has the attributes {', '.join(sorted(names_here)) or 'none'}; the released model has "
                f"{', '.join(ATTRIBUTE_NAMES)}"
            )
        tables["table.user"] = USERS
    names = COMIREC_NAMES if model_name == "comirec" else {**EUPMIM_NAMES, **_attribute_names(store)}
    return tables | {f"dense.{name}": their_name(name, names) for name in dense}


def _attribute_names(store: InteractionStore) -> dict[str, str]:
    return {
        f"profile.attributes.{position}.": f"{ATTRIBUTE_NAMES[attribute.name]}."
        for position, attribute in enumerate(store.attributes)
    }


def their_name(name: str, names: dict[str, str]) -> str:
    """The released name of our parameter `name`."""
    for ours, theirs in names.items():
        pattern = re.escape(ours).replace(r"\{\}", r"(\d+)")
        if match := re.match(pattern, name):
            return theirs.format(*match.groups()) + name[match.end() :]
    return name


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    numbers = {int(match[1]) for name in tensors if (match := re.match(pattern, name))}
    return len(numbers)
