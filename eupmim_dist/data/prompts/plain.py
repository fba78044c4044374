"""A vocabulary that needs no file: the words of the prompts, and numbers in pieces of two digits.

For a T5 of random weights, which would learn most of a large vocabulary from nothing: pieces of three digits, ten times
as many, are copied from a prompt long after those of two. Other words are unknown to it.
"""

import re
from itertools import product
from typing import Any

from eupmim_dist.data.prompts.templates import SHORT, TEMPLATES

PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
DIGITS_OF_A_PIECE = 2
PIECE = rf"(?:user|item)_|[0-9]{{1,{DIGITS_OF_A_PIECE}}}|[A-Za-z]+|[^A-Za-z0-9\s]"


def plain_tokenizer(transformers: Any) -> Any:
    """A PreTrainedTokenizerFast."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    asked = " ".join([SHORT, *(template for of_kind in TEMPLATES.values() for template in of_kind)])
    words = [*re.findall(PIECE, re.sub(r"[{}]", " ", asked)), "user_", "item_"]
    numbers = ["".join(d) for size in range(1, DIGITS_OF_A_PIECE + 1) for d in product("0123456789", repeat=size)]
    pieces = [PADDING, END, UNKNOWN, *dict.fromkeys([*numbers, *words])]
    tokenizer = Tokenizer(models.WordLevel({piece: token for token, piece in enumerate(pieces)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(PIECE), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, eos_token=END, unk_token=UNKNOWN
    )
