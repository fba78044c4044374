"""Every setting of a run: type, default and a one-line docstring each. Unknown keys are errors."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from eupmim_dist.config.registry import find, reason
from eupmim_dist.config.section import Choice, Section
from eupmim_dist.errors import UserError

Protocol = Literal["strict", "comirec", "seed", "elmrec_sequential", "elmrec_direct", "elmrec_explanation"]
Probability = Annotated[float, Field(ge=0.0, le=0.99)]
Depth = Annotated[int, Field(ge=1, le=256)]
"""Of what is done one after another, such as layers."""
Names = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
VectorUse = Literal["none", "frozen", "finetuned", "projected"]
Interests = Annotated[int, Field(ge=1, le=100)]


class DataConfig(Section):
    dir: Path = Path("data/example")
    """Interaction store, as written by `prepare` or `synth`."""


class TaskSection(Choice):
    """What every task over interaction histories has."""

    history_length: int = Field(10, ge=1)
    """L: the last so many items before the target are the model's input."""

    def num_tokens(self) -> int:
        """How many tokens there are of a task in words; 0 of one in ids."""
        return 0

    def num_words(self) -> int:
        """More than a text of such a task can tell apart of its users and items."""
        return 0


class ModelSection(Choice):
    """What every model of the family has."""

    dim: int = Field(32, ge=2)
    """D: width of the embeddings."""
    num_interests: Interests = 3
    """K: interest vectors per user."""
    item_attributes: Names = Field([])
    """What the store knows of items that is added to their rows: names of its attributes and numbers, or all."""
    item_vectors: VectorUse = "none"
    """The store's vectors of items: frozen or finetuned as the rows of the items, projected by a map that is learnt and
    added to the rows, or none."""
    user_vectors: VectorUse = "none"
    """The store's vectors of users, likewise, for a model with a table of users."""

    @property
    def label(self) -> str:
        """What it is called beside its figures."""
        return self.name + self.remark

    @property
    def remark(self) -> str:
        """What must be said wherever its figures are, after its name."""
        return ""

    @property
    def leaky(self) -> bool:
        """Whether it is given what is held out."""
        return False

    def summary(self) -> str:
        """What the model makes of a user, in a few words."""
        vectors = f"{self.num_interests} interest vectors" if self.num_interests > 1 else "one interest vector"
        return f"{vectors} of {self.dim} numbers per user"

    def ranks(self) -> str:
        """How it ranks, in a few words."""
        return "an item is as good as its largest dot product with them"

    @property
    def exports_vectors(self) -> bool:
        """Whether what it recommends is told by products of vectors."""
        return True

    def against_collapse(self) -> list[str]:
        """Settings, as `--set` takes them, that may keep interests apart and are otherwise here."""
        return []


class ObjectiveSection(Choice):
    """What every objective has: nothing in common so far."""


class ScorerSection(Choice):
    """What every scorer has; no run has such a section, `make_scorer` makes them."""

    trained: ClassVar[bool] = False
    """Whether it ranks by a trained model; a baseline learns from the training split when it is made."""


def _chosen(kind: str, default: str, value: Any) -> Any:
    """A mapping of a section -> the configuration that its `name` stands for, with that one's own keys."""
    if isinstance(value, Choice) and type(value) is not find(kind, value.name).config:
        value = value.model_dump()
    if not isinstance(value, dict):
        return value
    section = find(kind, value.get("name", default)).config
    try:
        return section.model_validate({"name": section.model_fields["name"].default, **value})
    except (ValidationError, UserError):
        raise
    except Exception as error:  # of a validator of another package, which pydantic lets through
        raise UserError(f"{kind}: {section.__name__} cannot check its settings ({reason(error)})") from error


def _choice(kind: str, default: str) -> tuple[Any, Any]:
    """Of a field: what validates it and what it is if not given."""
    return BeforeValidator(partial(_chosen, kind, default)), lambda: find(kind, default).config()


_MODEL, _default_model = _choice("model", "eupmim")
_TASK, _default_task = _choice("task", "next_item")
_OBJECTIVE, _default_objective = _choice("objective", "sampled_softmax")


WireFormat = Literal["float32", "bfloat16", "float16"]


class TablesConfig(Section):
    """The tables of items and users; where rows are and how they travel as float32 changes no result."""

    optimizer: Literal["exact", "lazy_adam", "rowwise_adagrad", "sgd"] = "exact"
    """`exact`: dense Adam + L2 over each shard; the others move only the touched rows."""
    learning_rate: float | None = Field(None, gt=0, le=1e38)
    """Learning rate of the tables; train.learning_rate if not given."""
    weight_decay: float = Field(0.0, ge=0, le=1e38)
    """Decoupled decay of the touched rows (AdamW's), for lazy_adam."""
    replicate_below: int = Field(2048, ge=0)
    """Tables with fewer rows than this are held whole by every rank, which then exchange gradients only."""
    exchange: Literal["flat", "two_level"] = "flat"
    """`two_level`: what ranks of a node want of another node crosses once for all of them; on one node no change."""
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
    max_steps: int = Field(8000, ge=1)
    """Steps after which training ends, if early stopping does not end it before."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches that a rank cuts its share of a batch into, to need less memory; dropout aside, same results."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Of the dense network: Adam with l2 in the loss, or AdamW, which has weight_decay instead."""
    learning_rate: float = Field(1e-3, gt=0, le=1e38)
    """Learning rate of the dense network and, unless tables.learning_rate is given, of the tables."""
    weight_decay: float = Field(0.0, ge=0, le=1e38)
    """Decoupled decay of the dense network's weights, for adamw."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How both learning rates go from their value, after warm-up, to zero at max_steps; or stay."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which both learning rates rise linearly at the start."""
    clip_norm: float | None = Field(None, gt=0, le=1e19)  # beyond which steps are skipped (parallel/verdict.py)
    """Largest norm of the global gradient, dense network and tables together; scaled down beyond it. null: no limit."""
    compile: Literal["none", "cuda_graphs", "inductor"] = "none"
    """How a GPU is given the network: kernel by kernel; as recorded CUDA graphs, with the same results; or with fused
    kernels too, with sums and dropout in another order. The first steps take seconds, or a minute, longer."""
    prefetch: bool = True
    """Sample the next batches and exchange their ids while a step computes; results are the same without."""
    threads: int | None = Field(None, ge=1, le=256)
    """Threads of a rank. If not given, on CPU ranks: those of the checkpoint that is gone on from, OMP_NUM_THREADS, or
    as many as are measured to be fastest."""
    l2: float = Field(1e-5, ge=0, le=1e38)
    """Adds l2/2 times the sum of squares of every parameter to the loss; lazy table optimizers: of touched rows."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines of the log."""
    init_from: Path | None = None
    """Run, checkpoint or model that a new training takes its weights from, rows by raw id; random ones if not given."""
    init_only_rows: bool = False
    """Take from it the rows of users and items alone, which may be those of another kind of model as wide."""

    @model_validator(mode="after")
    def _warm(self) -> "TrainConfig":
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("weight_decay is served by optimizer adamw only; adam has l2")
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than max_steps {self.max_steps}")
        if self.init_only_rows and self.init_from is None:
            raise ValueError("init_only_rows says what of init_from is taken; set init_from too")
        if self.accumulation > self.global_batch_size:
            raise ValueError(f"accumulation {self.accumulation} exceeds global_batch_size {self.global_batch_size}")
        return self


class EvaluationConfig(Section):
    every: int = Field(50, ge=1)
    """Steps between two evaluations of the valid split."""
    protocol: Protocol = "strict"
    """Protocol that early stopping and `best` go by; the test in the end is elmrec_direct or elmrec_explanation if this
    is, else strict."""
    metric: str = Field("recall@10", pattern=r"^((recall|hit_rate|precision|ndcg)@[1-9]\d*|rouge_[12l]|bleu_[14])$")
    """Metric that early stopping and `best` go by: recall, hit_rate, precision or ndcg at a top-N, as recall@10; of
    elmrec_explanation rouge_1, rouge_2, rouge_l, bleu_1 or bleu_4."""
    patience: int = Field(20, ge=0)
    """Evaluations without a better value after which training stops; 0 never stops."""
    users: int | None = Field(None, ge=1)
    """Users of the valid split that are ranked for while training, or its explanations that are written, drawn by the
    seed, where all would take long; all if not given. The test split is always evaluated whole."""
    top_n: list[Annotated[int, Field(ge=1)]] = Field([10, 20, 50], min_length=1)
    """Cut-offs of the reported metrics; of a large catalogue, long lists take longer at each evaluation."""
    exclude_seen: bool = True
    """Under `strict`, leave out what the user had before the cut; off where people buy a thing twice."""
    batch_size: int = Field(1024, ge=1)
    """Users ranked at a time over all ranks together."""
    more_beams: int = Field(10, ge=0, le=10_000)
    """Of a model that writes its answers: beams beyond the items that are asked for."""
    choose: Literal["exact", "beams"] = "exact"
    """Of such a model, among candidates: the score of each one, exactly, or the best by beam search."""

    @model_validator(mode="after")
    def _of_the_protocol(self) -> "EvaluationConfig":
        if (self.cutoff is None) != (self.protocol == "elmrec_explanation"):
            raise ValueError(
                "metric must be rouge_1, rouge_2, rouge_l, bleu_1 or bleu_4 of elmrec_explanation"
                if self.cutoff is not None
                else f"metric {self.metric} is of protocol elmrec_explanation; set that too"
            )
        return self

    @property
    def cutoff(self) -> int | None:
        """The N of `metric`; None of one that is of no list."""
        return int(number) if (number := self.metric.partition("@")[2]) else None


class CheckpointConfig(Section):
    every: int = Field(1000, ge=1)
    """Steps between two checkpoints; the end of training writes one too, and so does a new best."""
    keep: int = Field(2, ge=1)
    """How many of the last checkpoints are kept, and the best one; with 1, damage to it leaves none to go back to."""
    asynchronous: bool = False
    """Write checkpoints while training goes on, of a copy in host memory as large as a rank's part of them."""


class TelemetryConfig(Section):
    trackers: list[str] = Field([])
    """Where Accelerate logs the run too, such as [wandb, mlflow], each of whose packages must be installed."""


class Config(Section):
    """All settings of a run."""

    seed: int = Field(321, ge=0, lt=2**63)
    """Fixes sampling and initial weights."""
    world_size: int | None = Field(None, ge=1)
    """Number of ranks that the run is meant for; it refuses to start with another. Any if not given."""
    data: DataConfig = DataConfig()
    task: Annotated[SerializeAsAny[TaskSection], _TASK] = Field(default_factory=_default_task)
    model: Annotated[SerializeAsAny[ModelSection], _MODEL] = Field(default_factory=_default_model)
    objective: Annotated[SerializeAsAny[ObjectiveSection], _OBJECTIVE] = Field(default_factory=_default_objective)
    tables: TablesConfig = TablesConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    def __init__(self, **values: Any) -> None:
        """Sections as mappings or objects. Raises UserError, which names the key and the mend, for a mistake."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            from eupmim_dist.config.load import explain

            raise UserError(explain(error, values)) from None
