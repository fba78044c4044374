"""The T5 of transformers: of given sizes, or from a directory or the hub, with its weights or random ones."""

from typing import Any

import torch

from eupmim_dist.data.prompts.vocabulary import import_transformers, where
from eupmim_dist.errors import UserError, short
from eupmim_dist.models.elmrec import attention
from eupmim_dist.models.elmrec.config import ElmrecConfig, sizes_of


def build_t5(config: ElmrecConfig, num_tokens: int) -> Any:
    """A T5ForConditionalGeneration; random weights are a function of torch's seed.

    Raises UserError if transformers, the files or the weights are not there, or do not suit the configuration.
    """
    transformers = import_transformers("model.name: elmrec")
    if config.t5 is None:
        t5 = transformers.T5ForConditionalGeneration(_of_sizes(transformers, config, num_tokens))
    else:
        t5 = _taken(transformers, config, config.t5, num_tokens)
    attention.register(transformers)
    t5.encoder.set_attn_implementation(attention.NAME)
    if config.gradient_checkpointing:
        t5.activation_checkpointing_enable({"use_reentrant": False})
    return t5


def _of_sizes(transformers: Any, config: ElmrecConfig, num_tokens: int) -> Any:
    return transformers.T5Config(
        vocab_size=num_tokens,
        d_model=config.dim,
        d_kv=config.head_dim or config.dim // config.num_heads,
        d_ff=config.feed_forward,
        num_layers=config.num_blocks,
        num_heads=config.num_heads,
        dropout_rate=config.dropout,
        decoder_start_token_id=0,
    )


def _taken(transformers: Any, config: ElmrecConfig, name: str, num_tokens: int) -> Any:
    sizes = sizes_of(name)
    if sizes.model_type != "t5":
        raise UserError(f"model.t5: {name}: is a {sizes.model_type}; give a T5")
    if sizes.decoder_start_token_id is None:
        raise UserError(f"model.t5: {name}: its config.json has no decoder_start_token_id; set it, 0 in T5's")
    if sizes.d_model != config.dim:
        raise UserError(
            f"model.dim: {config.dim}, and {name} has d_model {sizes.d_model}; set model.dim={sizes.d_model}"
        )
    if sizes.vocab_size < num_tokens:
        raise UserError(
            f"model.t5: {name} has {sizes.vocab_size:,} tokens, and task.tokenizer {num_tokens:,}; use its own"
        )
    sizes.dropout_rate = config.dropout
    if not config.pretrained:
        return transformers.T5ForConditionalGeneration(sizes)
    try:
        return transformers.T5ForConditionalGeneration.from_pretrained(
            name, config=sizes, dtype=torch.float32, **where(name)
        )
    except Exception as error:
        raise UserError(
            f"model.t5: {name}: its weights cannot be loaded ({short(error)}); set model.pretrained=false "
            "for random ones"
        ) from None
