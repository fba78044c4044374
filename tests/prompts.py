"""Tokenizers, settings and models in small for tests of prompts."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from eupmim_dist.data.explanations import SCHEMA
from eupmim_dist.data.store import InteractionStore
from tests.stores import small_store

SETTINGS: dict[str, Any] = {
    "task": {"name": "prompts", "history_length": 6, "num_negatives": 7},
    "model": {"name": "elmrec", "dim": 16, "num_blocks": 1, "num_heads": 2, "feed_forward": 24, "dropout": 0.0},
    "objective": {"name": "token_cross_entropy"},
}


def unigram_tokenizer(directory: Path, left_out: str = "") -> Path:
    """As t5-small's: pieces of up to three digits, some with the punctuation after them, and any letter."""
    pieces = ["▁", "▁user", "▁item", "_", "user", "item", *(f"{digit}{mark}" for digit in "048" for mark in ",.;")]
    pieces += [f"{number:02}" for number in range(100)] + [f"▁{number}" for number in range(0, 100, 7)] + ["123", "866"]
    pieces += [*string.ascii_letters, *string.punctuation, *string.digits]
    pieces = [piece for piece in dict.fromkeys(pieces) if not set(piece) & set(left_out)]
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = [(piece, 0.0) for piece in special] + [(p, -3.0 - 0.01 * n) for n, p in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(directory)
    return directory


def with_explanations(directory: Path, texts: Sequence[str], **sizes: Any) -> InteractionStore:
    """User n wrote texts[n] of his first item and, which is held out from training and for valid and test, of his last
    two; and of the last one something for training."""
    plain = small_store(directory / "plain", split_rule="leave_one_out", **sizes)
    first, last = plain.items[plain.offsets[:-1]], plain.items[plain.offsets[1:] - 1]
    before = plain.items[plain.offsets[1:] - 2]
    records = [(n, int(first[n]), "feature", text, "train") for n, text in enumerate(texts)]
    records += [(n, int(last[n]), "feature", "held out", "train") for n in range(len(texts))]
    records += [(n, int(item[n]), "", text, "test") for n, text in enumerate(texts) for item in (before, last)]
    records += [(n, int(item[n]), "", text, "valid") for n, text in enumerate(texts) for item in (before, last)]
    frame = pl.DataFrame(records, schema=SCHEMA, orient="row")
    return small_store(directory / "store", split_rule="leave_one_out", explanations=frame, **sizes)
