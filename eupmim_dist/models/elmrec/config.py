"""Settings of ELMRec."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from eupmim_dist.config.schema import Depth, Probability
from eupmim_dist.data.prompts.vocabulary import import_transformers, unavailable, where
from eupmim_dist.errors import UserError
from eupmim_dist.models.propagation import PropagationSection

T5_DIR = "t5"


def sizes_of(name: str) -> Any:
    """The configuration of transformers in a directory, or that the hub has by that name. Raises UserError without."""
    try:
        return import_transformers("model.t5").AutoConfig.from_pretrained(name, **where(name))
    except UserError:
        raise
    except Exception as error:  # of many kinds, whatever is in the files
        raise unavailable("model.t5", name, error) from None


class ElmrecConfig(PropagationSection):
    name: Literal["elmrec"] = "elmrec"
    """T5 with whole-word embeddings of users and items (ELMRec)."""
    dim: int = Field(64, ge=2)
    """D: width of the T5, its d_model."""
    row_dim: int | None = Field(None, ge=1)
    """R: width of the rows of users and items, which a learned matrix then brings to D; not given: D, without one, as
    published. A T5 of random weights tells its tokens and the rows apart sooner where these take few of D dimensions,
    and tables, their exchange and their propagation are the smaller."""
    num_interests: Literal[1] = 1
    """It answers in words, and has no interests."""
    t5: str | None = None
    """A directory with a config.json, or a name of the hub such as google-t5/t5-small or t5-11b: the T5 to take.
    Without it one of the sizes below starts with random weights."""
    pretrained: bool = True
    """Take the weights of that T5 too; false: its sizes alone, with random weights."""
    num_blocks: Depth = 2
    """Blocks of the encoder, and of the decoder; a T5 that is taken has its own number, as all of the next three."""
    num_heads: int = Field(4, ge=1)
    """Heads of each attention."""
    head_dim: int | None = Field(None, ge=1)
    """Width of each, T5's d_kv; not given: the heads share D."""
    feed_forward: int = Field(256, ge=1)
    """Width of the layers between attentions."""
    dropout: Probability = 0.1
    """Dropout of the T5, one that is taken included."""
    num_prompts: int = Field(3, ge=1, le=512)
    """Vectors that are learned for each kind of prompt, and read before it."""
    alpha: float = Field(1.0, ge=0)
    """Factor of what is added to the embedding of each token of a user's or item's name; 0: nothing is added."""
    words: Literal["rows", "places"] = "rows"
    """What is added in direct and explanation prompts: the rows of users and items, or, as in POD, the vector of the
    place among the names of the prompt, which is what sequential prompts have; then there are no rows and no graph."""
    sigma: float = Field(1.0, gt=0)
    """Standard deviation of the initial rows of users and items. The authors have 5 or 6, and alpha 5 to 11, beside a
    pretrained T5; one of random weights does not find its own tokens beside so much."""
    position_std: float = Field(0.25, gt=0)
    """Standard deviation of the initial vectors for the places of items in a history; 1 in the authors' code."""
    rows_in_sequential: bool = False
    """Add the rows of users and items in sequential prompts too, not only the vectors of their places."""
    mask_padding: bool = True
    """Keep the decoder from looking at the padding of a prompt; the authors' does, so that what it writes depends on
    the prompts of its batch."""
    bias_rate: float = Field(1.0, gt=0)
    """Learning rate of T5's biases for relative places, in multiples of train.learning_rate. To look one token back, as
    copying takes, a bias has to come to 5 or so, which takes steps of the size of the learning rate long: from random
    weights 30 is better."""
    gradient_checkpointing: bool = False
    """Compute the blocks of the T5 again in the backward pass, to need less memory."""

    @model_validator(mode="after")
    def _heads_share(self) -> "ElmrecConfig":
        if self.t5 is None and self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} cannot be shared by num_heads {self.num_heads}; use a multiple")
        if self.row_dim is not None and 2 * self.row_dim > self.dim:
            raise ValueError(f"row_dim {self.row_dim}: give at most half of dim {self.dim}, or leave it out")
        for name in ("rows_in_sequential", "row_dim"):
            if getattr(self, name) and not self.has_rows:
                raise ValueError(f"{name}: there are no rows with alpha 0 or words places; leave it out")
        return self

    @property
    def has_rows(self) -> bool:
        """Whether there are rows of users and items, propagated or not."""
        return self.alpha > 0 and self.words == "rows"

    @property
    def propagates(self) -> bool:
        return self.has_rows and super().propagates

    def summary(self) -> str:
        return f"an answer in words, by a T5 of width {self.dim}{self.told()}"

    def bundle(self, directory: Path) -> None:
        if self.t5 is not None:
            sizes_of(self.t5).save_pretrained(directory / T5_DIR)

    def bundled(self, directory: Path) -> Self:
        place = directory / T5_DIR
        return self.model_copy(update={"t5": str(place), "pretrained": False}) if place.is_dir() else self

    def ranks(self) -> str:
        return "an item is as good as the probability of its number"

    @property
    def exports_vectors(self) -> bool:
        return False
