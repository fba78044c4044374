"""E-UPMiM as its authors released it (reference, "Names in the released checkpoint")."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from eupmim_dist.errors import UserError
from eupmim_dist.models.release import ITEMS, USERS, Release, item_width

ATTRIBUTES = {
    "age": "user_age_embedding_matrix",
    "gender": "user_gender_embedding_matrix",
    "occupation": "user_occup_embedding_matrix",
}
_NET = "multi_interest_network."
NAMES = {
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


class EUPMiMRelease(Release):
    always = {  # noqa: RUF012
        "extractor": "transformer",
        "profile_attention": "seed",
        "graph": True,
        "profile": True,
        "orthogonal": True,
    }

    def settings(self, tensors: dict[str, Tensor], file: Path) -> dict[str, Any] | None:
        queries = _count(tensors, r"multi_interest_network\.query_mlps\.(\d+)\.")
        layers = _count(tensors, r"multi_interest_network\.encoder\.layers\.(\d+)\.")
        if not layers or "fc_layers.0.weight" not in tensors:
            return None
        model = {"dim": item_width(tensors, file), "num_interests": queries + 1, "num_encoder_layers": layers}
        return {"model": {"name": "eupmim", **model, "unseen_users": "table"}}

    def tables(self, attributes: list[str]) -> dict[str, str]:
        if set(attributes) != set(ATTRIBUTES):
            raise UserError(
                f"has the attributes {', '.join(sorted(attributes)) or 'none'}; the released model has "
                f"{', '.join(ATTRIBUTES)}"
            )
        return {"item": ITEMS, "user": USERS}

    def names(self, attributes: list[str]) -> dict[str, str]:
        tables = {f"profile.attributes.{n}.": f"{ATTRIBUTES[name]}." for n, name in enumerate(attributes)}
        return {**NAMES, **tables}


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    return len({int(match[1]) for name in tensors if (match := re.match(pattern, name))})
