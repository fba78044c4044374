"""The tokens that texts are cut into: a fast tokenizer of transformers, from a directory or by its name."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from eupmim_dist.data.prompts.plain import plain_tokenizer
from eupmim_dist.errors import UserError, short

PLAIN = "plain"
DIGITS = "0123456789"


class Vocabulary:
    """Texts -> tokens that end with the token for the end of a text."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        """`tokenizer` is transformers' PreTrainedTokenizerFast. Raises UserError for one that cannot write ids."""
        self.name, self._tokenizer = name, tokenizer
        if not tokenizer.is_fast:
            raise UserError(f"task.tokenizer: {name}: is no fast tokenizer, which has a tokenizer.json; use one")
        if tokenizer.eos_token_id is None:
            raise UserError(f"task.tokenizer: {name}: has no token for the end of a text (eos_token); use one that has")
        self.end: int = tokenizer.eos_token_id
        self.padding: int = tokenizer.pad_token_id or 0
        unknown = tokenizer.unk_token_id
        for digit in DIGITS:
            if not (tokens := self.encode([digit])[0].ids[:-1]) or unknown in tokens:
                raise UserError(
                    f"task.tokenizer: {name}: has no token for the digit {digit}, and ids are written in digits; use "
                    "one that has, such as t5-small's"
                )

    def __len__(self) -> int:
        """One more than the largest token."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str]) -> list["Encoding"]:
        return [Encoding(each, self.end) for each in self._tokenizer.backend_tokenizer.encode_batch(list(texts))]

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()


class Encoding:
    """The tokens of a text."""

    def __init__(self, encoding: Any, end: int) -> None:
        self._encoding = encoding
        self.ids: list[int] = encoding.ids if encoding.ids[-1:] == [end] else [*encoding.ids, end]

    def token_at(self, character: int) -> int | None:
        """The place of the token that has a character of the text, if one has it."""
        place: int | None = self._encoding.char_to_token(character)
        return place


@lru_cache(maxsize=4)
def load_vocabulary(name: str) -> Vocabulary:
    """The one of PLAIN, that in a directory, or of that name on the hub or in its cache. Raises UserError if there is none."""
    transformers = import_transformers("task.tokenizer")
    if name == PLAIN:
        return Vocabulary(name, plain_tokenizer(transformers))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # of many kinds, whatever is in the files
        raise UserError(
            f"task.tokenizer: {name}: cannot be loaded ({short(error)}); give a directory with a tokenizer.json, or a "
            "name that the hub has"
        ) from None
    return Vocabulary(name, tokenizer)


def import_transformers(key: str) -> Any:
    """The package transformers; `key` is the setting that needs it. Raises UserError if it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a rank has few cores, and samples beside its steps
    try:
        import transformers
    except ImportError:
        raise UserError(f'{key}: transformers is not installed; `pip install "eupmim-dist[elmrec]"`') from None
    return transformers
