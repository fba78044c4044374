"""E-UPMiM's configuration."""

from typing import Literal

from pydantic import Field, model_validator

from eupmim_dist.config.schema import Depth, ModelSection, Probability


class EUPMiMConfig(ModelSection):
    """E-UPMiM; the defaults are the authors' for MovieLens-1M."""

    name: Literal["eupmim"] = "eupmim"
    """Which model; each has keys of its own."""
    extractor: Literal["transformer", "linear", "capsule", "causal"] = "transformer"
    """What turns a level into interests: ARMIENet over a Transformer or a linear encoder, or capsule routing; `causal`:
    ARMIENet over a causal Transformer of the levels' mean, which answers at every place of a history in one pass."""
    num_levels: Depth = 3
    """P: propagation levels over the user-aware graph (the authors' num_layer minus 1)."""
    num_encoder_layers: Depth = 4
    """Layers of the Transformer encoder, causal or not."""
    num_heads: int = Field(4, ge=1)
    """Attention heads of the Transformer encoder; divides dim, and dim / num_heads is even where it is causal."""
    dropout: Probability = 0.1
    """Dropout inside the Transformer encoder; where it is causal, on what it reads too."""
    profile_attention: Literal["seed", "full", "none"] = "seed"
    """`seed`: weights for the profile's first three coordinates, as released; `full`: for all; `none`: off."""
    attention_dropout: Probability = 0.3
    """Dropout after each layer of the profile attention."""
    graph: bool = True
    """Propagate over the user-aware graph; off: the extractor reads the item embeddings themselves."""
    profile: bool = True
    """Use the user id and attributes; off: the graph weighs coordinates equally, profile_attention is none."""
    orthogonal: bool = True
    """Gram-Schmidt the interests of ARMIENet against the earlier ones."""
    adjacency_l1: float = Field(1e-5, ge=0)
    """Weight of the adjacency's sum over the global batch."""
    unseen_users: Literal["zero", "table"] = "zero"
    """Id row of a user never seen in training: `zero`, or what the table holds."""
    user_dropout: Probability = 0.0
    """Share of the samples of a training step whose user counts as never seen: his id row is zero."""

    def against_collapse(self) -> list[str]:
        helps = {"model.extractor=causal": self.extractor != "causal", "model.orthogonal=false": self.orthogonal}
        return [setting for setting, would in helps.items() if would]

    @model_validator(mode="after")
    def _consistent(self) -> "EUPMiMConfig":
        if self.extractor in ("transformer", "causal") and self.dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide dim {self.dim}")
        if self.extractor == "causal" and self.dim // self.num_heads % 2:
            raise ValueError(f"extractor causal needs an even dim / num_heads, not {self.dim // self.num_heads}")
        if not self.profile and self.profile_attention != "none":
            raise ValueError("profile_attention needs the profile: set model.profile_attention=none too")
        if self.user_dropout and not self.profile:
            raise ValueError("user_dropout needs the profile: set model.user_dropout=0 too")
        if self.profile_attention == "seed" and self.dim < 3:
            raise ValueError("profile_attention seed needs dim >= 3")
        return self
