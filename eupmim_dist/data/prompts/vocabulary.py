"""The tokens that texts are cut into: a fast tokenizer of transformers, from a directory or by its name."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from eupmim_dist.data.prompts.plain import plain_tokenizer
from eupmim_dist.errors import UserError, short

PLAIN = "plain"
DIGITS = "0123456789"
MOST_PARTS = 1 << 17
"""Of texts, kept with their tokens."""
SAMPLE = "Which item would user_12 take ? item_3456 , item_7 ."
INSTALL = 'pip install "eupmim-dist[elmrec]"'
"""What installs the packages that models in words need."""


class Vocabulary:
    """Texts -> tokens that end with the token for the end of a text.

    A text is cut at spaces and each part is cut into tokens on its own, as T5's tokenizers do by themselves: names come
    again and again, and their tokens are looked up. A tokenizer that does otherwise is refused.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        """`tokenizer` is transformers' PreTrainedTokenizerFast. Raises UserError for one that cannot write ids."""
        self.name, self.tokenizer = name, tokenizer
        if not tokenizer.is_fast:
            raise UserError(f"task.tokenizer: {name}: is no fast tokenizer, which has a tokenizer.json; use one")
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"task.tokenizer: {name}: has no token for the end of a text (eos_token in its tokenizer_config.json); "
                "use one that has"
            )
        self.end: int = tokenizer.eos_token_id
        self.padding: int | None = tokenizer.pad_token_id
        self._parts: dict[str, Part] = {}
        for digit in DIGITS:
            if not (tokens := self.part(digit).tokens) or tokenizer.unk_token_id in tokens:
                raise UserError(
                    f"task.tokenizer: {name}: has no token for the digit {digit}, and ids are written in digits; use "
                    "one that has, such as t5-small's"
                )
        whole = tokenizer.backend_tokenizer.encode(SAMPLE, add_special_tokens=False).ids
        if [token for text in SAMPLE.split() for token in self.part(text).tokens] != whole:
            raise UserError(
                f"task.tokenizer: {name}: cuts words otherwise within a text than alone, as those do whose tokens hold "
                "the space before a word (GPT's); use one such as t5-small's"
            )

    def __len__(self) -> int:
        """One more than the largest token."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def content(self) -> str:
        """All that decides how it cuts, wherever it lies."""
        return str(self.tokenizer.backend_tokenizer.to_str())

    def part(self, text: str) -> "Part":
        """The tokens of a text without spaces, without an end."""
        if (part := self._parts.get(text)) is None:
            if len(self._parts) >= MOST_PARTS:
                self._parts = {}
            part = Part(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
            self._parts[text] = part
        return part

    def tokens(self, text: str) -> list[int]:
        """Of a text, with the end."""
        return [*(token for part in text.split() for token in self.part(part).tokens), self.end]

    def check_words(self) -> None:
        """Raises UserError for a vocabulary that cannot write what people write."""
        if self.name == PLAIN:
            raise UserError(
                "task.tokenizer: plain knows no words but those of the prompts, and explanations need others; use one "
                "such as t5-small's"
            )

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,  # words stay apart from what people wrote apart from them
        )
        return text.strip()


class Part:
    """A text without spaces as tokens."""

    def __init__(self, encoding: Any) -> None:
        self.tokens: list[int] = encoding.ids
        self._at = [
            encoding.char_to_token(place) for place in range(max((to for _, to in encoding.offsets), default=0))
        ]

    def tokens_of(self, start: int, stop: int) -> slice | None:
        """The tokens that have the characters start..stop-1, if there are any."""
        at = self._at[start:stop]
        return slice(at[0], at[-1] + 1) if at and at[0] is not None and at[-1] is not None else None


@lru_cache(maxsize=4)
def load_vocabulary(name: str) -> Vocabulary:
    """PLAIN, what is in a directory, or what the hub has by that name. Raises UserError if there is none."""
    transformers = import_transformers("task.tokenizer")
    if name == PLAIN:
        return Vocabulary(name, plain_tokenizer(transformers))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, **where(name))
    except Exception as error:  # of many kinds, whatever is in the files
        raise unavailable("task.tokenizer", name, error) from None
    return Vocabulary(name, tokenizer)


def where(name: str) -> dict[str, bool]:
    """What has transformers look for a directory alone, where that is meant: the hub would be asked for a minute.

    A name of the hub has one slash at the most, and not a directory of ours before it.
    """
    path = Path(name)
    named_here = path.is_absolute() or name.startswith(".") or len(path.parts) > 2
    within = len(path.parts) == 2 and path.parent.is_dir()
    return {"local_files_only": path.exists() or named_here or within}


def unavailable(key: str, name: str, error: Exception) -> UserError:
    """Of what the setting `key` names."""
    mend = "give a directory that `save_pretrained` has written, or a name that the hub has"
    if Path(name).is_dir():
        return UserError(f"{key}: {name}: is not what transformers writes ({short(error)}); {mend}")
    return UserError(f"{key}: {name}: there is no such directory here, and the hub gives none ({short(error)}); {mend}")


def import_transformers(key: str) -> Any:
    """The package transformers; `key` is the setting that needs it. Raises UserError if it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a rank has few cores, and samples beside its steps
    try:
        import transformers
    except ImportError:
        raise UserError(f"{key}: transformers is not installed; `{INSTALL}`") from None
    return transformers
