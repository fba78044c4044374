"""Every setting of a run: type, default and a one-line docstring each. Unknown keys are errors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Protocol = Literal["strict", "comirec", "seed"]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


class DataConfig(Section):
    dir: Path = Path("data/example")
    """Interaction store, as written by `prepare` or `synth`."""
    history_length: int = Field(10, ge=1)
    """L: the last so many items before the target are the model's input."""
    min_history: int = Field(4, ge=1)
    """Smallest number of items before a training target; users with fewer are dropped and counted."""


class ModelConfig(Section):
    """What every model has."""

    dim: int = Field(32, ge=2)
    """D: width of the embeddings."""
    num_interests: int = Field(3, ge=1)
    """K: interest vectors per user."""


class EUPMiMConfig(ModelConfig):
    """E-UPMiM; the defaults are the authors' for MovieLens-1M."""

    name: Literal["eupmim"] = "eupmim"
    """Which model: eupmim or comirec; each has keys of its own."""
    extractor: Literal["transformer", "linear", "capsule"] = "transformer"
    """What turns a level into interests: ARMIENet over a Transformer or a linear encoder, or capsule routing."""
    num_levels: int = Field(3, ge=1)
    """P: propagation levels over the user-aware graph (the authors' num_layer minus 1)."""
    num_encoder_layers: int = Field(4, ge=1)
    """Layers of the Transformer encoder."""
    num_heads: int = Field(4, ge=1)
    """Attention heads of the Transformer encoder; divides dim."""
    dropout: Probability = 0.1
    """Dropout inside the Transformer encoder."""
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
    hard_readout: bool = True
    """Score a candidate in training with the interest that scores it highest; off: with the mean over them."""
    adjacency_l1: float = Field(1e-5, ge=0)
    """Weight of the adjacency's sum over the global batch."""
    unseen_users: Literal["zero", "table"] = "zero"
    """Id row of a user never seen in training: `zero`, or what the table holds."""

    @model_validator(mode="after")
    def _consistent(self) -> "EUPMiMConfig":
        if self.extractor == "transformer" and self.dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide dim {self.dim}")
        if not self.profile and self.profile_attention != "none":
            raise ValueError("profile_attention needs the profile: set model.profile_attention=none too")
        if self.profile_attention == "seed" and self.dim < 3:
            raise ValueError("profile_attention seed needs dim >= 3")
        return self


class ComiRecConfig(ModelConfig):
    """ComiRec-DR as the authors of E-UPMiM ported it, with the loss written right."""

    name: Literal["comirec"] = "comirec"
    """Which model: eupmim or comirec; each has keys of its own."""
    dim: int = Field(64, ge=2)
    """D: width of the embeddings."""
    num_interests: int = Field(4, ge=1)
    """K: interest vectors per user."""
    projection: bool = True
    """comirec: relu(Linear(D, D)) after the capsules; off for the authors' released weights, evaluated without it."""


WireFormat = Literal["float32", "bfloat16", "float16"]


class TablesConfig(Section):
    """The tables of items and users; where rows are and how they travel as float32 changes no result."""

    optimizer: Literal["exact", "lazy_adam", "rowwise_adagrad", "sgd"] = "exact"
    """`exact`: dense Adam + L2 over each shard; the others move only the touched rows."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the tables; train.learning_rate if not given."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of the touched rows (AdamW's), for lazy_adam."""
    replicate_below: int = Field(2048, ge=0)
    """Tables with fewer rows than this are held whole by every rank, which then exchange gradients only."""
    row_format: WireFormat = "float32"
    """How rows travel between ranks; float32 is exact, the others halve the bytes."""
    gradient_format: WireFormat = "float32"
    """How gradients of rows travel between ranks; bfloat16 has the range of float32, float16 has not."""
    memory: Literal["device", "host"] = "device"
    """`host`: rows and optimizer state stay in host memory and a GPU fetches what a step needs; no change on CPUs."""

    @model_validator(mode="after")
    def _served(self) -> "TablesConfig":
        if self.weight_decay and self.optimizer != "lazy_adam":
            raise ValueError(f"weight_decay is served by optimizer lazy_adam only, not by {self.optimizer}")
        if self.memory == "host" and self.optimizer == "exact":
            raise ValueError("memory host cannot serve exact, which moves every row every step: use another optimizer")
        return self


class TrainConfig(Section):
    global_batch_size: int = Field(128, ge=1)
    """B: samples a step over all ranks together; results do not depend on the number of ranks."""
    num_negatives: int = Field(10, ge=1)
    """N: sampled negatives per target."""
    max_steps: int = Field(8000, ge=1)
    """Steps after which training ends, if early stopping does not end it before."""
    accumulation: int = Field(1, ge=1)
    """Parts that a rank computes its share of a batch in, to need less memory; but for dropout the same results."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's learning rate, for the dense network and, unless tables.learning_rate is given, the tables."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How both learning rates go from their value, after warm-up, to zero at max_steps; or stay."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which both learning rates rise linearly at the start."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the global gradient, dense network and tables together; larger ones are scaled down."""
    prefetch: bool = True
    """Sample the next batch and exchange its ids while a step computes; results are the same without."""
    l2: float = Field(1e-5, ge=0)
    """Adds l2/2 times the sum of squares of every parameter to the loss; lazy table optimizers: of touched rows."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines of the log."""
    init_from: Path | None = None
    """Run, checkpoint or model that a new training takes its weights from, rows by raw id; random ones if not given."""

    @model_validator(mode="after")
    def _warm(self) -> "TrainConfig":
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than max_steps {self.max_steps}")
        if self.accumulation > self.global_batch_size:
            raise ValueError(f"accumulation {self.accumulation} exceeds global_batch_size {self.global_batch_size}")
        return self


class EvaluationConfig(Section):
    every: int = Field(50, ge=1)
    """Steps between two evaluations of the valid split."""
    protocol: Protocol = "strict"
    """Protocol that early stopping and `best` go by."""
    metric: str = Field("recall@10", pattern=r"^(recall|hit_rate|precision|ndcg)@[1-9]\d*$")
    """Metric that early stopping and `best` go by: recall, hit_rate, precision or ndcg at a top-N, as recall@10."""
    patience: int = Field(20, ge=0)
    """Evaluations without a better value after which training stops; 0 never stops."""
    top_n: list[Annotated[int, Field(ge=1)]] = Field([10, 20, 50], min_length=1)
    """Cut-offs of the reported metrics."""
    exclude_seen: bool = True
    """Under `strict`, leave out what the user had before the cut; off where people buy a thing twice."""
    batch_size: int = Field(1024, ge=1)
    """Users ranked at a time over all ranks together."""

    @property
    def cutoff(self) -> int:
        """The N of `metric`."""
        return int(self.metric.partition("@")[2])


class CheckpointConfig(Section):
    every: int = Field(1000, ge=1)
    """Steps between two checkpoints; the end of training writes one too, and so does a new best."""
    keep: int = Field(2, ge=1)
    """How many of the last checkpoints are kept, and the best one; with 1, damage to it leaves none to go back to."""
    asynchronous: bool = False
    """Write checkpoints while training goes on, of a copy in host memory as large as a rank's part of them."""


class Config(Section):
    seed: int = Field(321, ge=0, lt=2**63)
    """Fixes sampling and initial weights."""
    world_size: int | None = Field(None, ge=1)
    """Number of ranks that the run is meant for; it refuses to start with another. Any if not given."""
    data: DataConfig = DataConfig()
    model: Annotated[EUPMiMConfig | ComiRecConfig, Field(discriminator="name")] = EUPMiMConfig()
    tables: TablesConfig = TablesConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
