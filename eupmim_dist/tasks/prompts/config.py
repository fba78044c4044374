"""Settings of the task prompts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from eupmim_dist.config.schema import TaskSection
from eupmim_dist.data.prompts.prompt import FIRST_ITEM_WORD
from eupmim_dist.data.prompts.templates import PromptKind
from eupmim_dist.data.prompts.vocabulary import PLAIN, load_vocabulary

TOKENIZER_DIR = "tokenizer"


class PromptsConfig(TaskSection):
    name: Literal["prompts"] = "prompts"
    """What is predicted: next_item, every_position, or prompts (the answer to a question, in words)."""
    history_length: int = Field(20, ge=1)
    """L: the last so many items before the target are in a sequential prompt."""
    tokenizer: str = PLAIN
    """A directory with a tokenizer as transformers saves it (tokenizer.json, tokenizer_config.json), or a name of the
    hub such as google-t5/t5-small; plain: numbers and the words of the prompts alone, which suits a T5 of random
    weights."""
    mix: list[PromptKind] = Field(["sequential", "direct"], min_length=1)
    """Kinds of the steps, in turn: sequential (what follows a history), direct (which of a list) or explanation (why an
    item, where the store has explanations). One that is named twice has twice as many steps."""
    wordings: Literal["many", "short"] = "many"
    """How training asks: in one of 5 to 9 wordings that is drawn, as the authors do, or as where a model is judged,
    which is user_12 item_3 item_4 alone and leaves a T5 of random weights nothing else to learn."""
    num_negatives: int = Field(99, ge=1)
    """Items in a direct prompt beside the user's."""
    max_tokens: int = Field(512, ge=8)
    """Most tokens that a prompt may have."""
    max_answer_tokens: int = Field(20, ge=2)
    """Tokens at which an explanation is cut."""
    learn_padding: bool = False
    """Learn to write padding after the end of an answer, as the authors of ELMRec do."""

    def bundle(self, directory: Path) -> None:
        if self.tokenizer != PLAIN:
            load_vocabulary(self.tokenizer).tokenizer.save_pretrained(directory / TOKENIZER_DIR)

    def bundled(self, directory: Path) -> Self:
        place = directory / TOKENIZER_DIR
        return self.model_copy(update={"tokenizer": str(place)}) if place.is_dir() else self

    def num_tokens(self) -> int:
        return len(load_vocabulary(self.tokenizer))

    def num_words(self) -> int:
        return FIRST_ITEM_WORD + self.max_tokens  # a name has a token of its own
