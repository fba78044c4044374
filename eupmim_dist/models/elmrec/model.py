"""ELMRec (Wang et al., "Enhancing High-order Interaction Awareness in LLM-based Recommender Model", EMNLP 2024).

A T5 reads a prompt and writes the answer. To the embedding of a token that is part of a user's or item's name, alpha
times a vector of the whole word is added: in sequential prompts that of its place, in the others the row of the user
or item. Prompt vectors of the kind come first. Otherwise than in the authors' code, tokens of no name get nothing of
the rows (there, one more trained row), padding is not looked at, and a name ends where its digits do. Kept from it:
where places are added, all tokens of no name have one vector, which is learnt.

B samples of this rank, S tokens of a prompt, P prompt vectors, T tokens of an answer, V tokens there are, D width of
the T5, R of the rows.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.prompt import FIRST_ITEM_WORD, NO_WORD
from eupmim_dist.data.prompts.templates import KINDS
from eupmim_dist.errors import UserError
from eupmim_dist.models.elmrec.config import ElmrecConfig
from eupmim_dist.models.elmrec.decoder import Draft, extend, opened
from eupmim_dist.models.elmrec.t5 import build_t5
from eupmim_dist.models.interface import ITEM_TABLE, USER_TABLE, DataShape, Encoded, Rows, TableSpec, Uses, item_table
from eupmim_dist.models.propagation import Propagation
from eupmim_dist.models.writing import Writer

SEQUENTIAL = KINDS.index("sequential")


class Elmrec(Writer):
    num_interests = 1
    batch_type = PromptBatch
    scorer = "beams"

    def __init__(self, config: ElmrecConfig, shape: DataShape) -> None:
        super().__init__()
        if not shape.num_tokens:
            raise UserError("model elmrec: reads text; set task.name=prompts")
        self.config, self.shape, self.dim = config, shape, config.row_dim or config.dim
        self.t5 = build_t5(config, shape.num_tokens)
        self.start_token = self.t5.config.decoder_start_token_id
        self.num_tokens = self.t5.config.vocab_size
        self.prompts = nn.Parameter(torch.randn(len(KINDS), config.num_prompts, config.dim))
        longest = shape.num_words if config.words == "places" else FIRST_ITEM_WORD + shape.history_length
        self.places = nn.Embedding(longest, config.dim)  # by word, NO_WORD included
        nn.init.normal_(self.places.weight, std=config.position_std)
        self.widen = self._widening() if config.row_dim else nn.Identity()

    @torch.no_grad()
    def _widening(self) -> nn.Linear:
        """Brings rows to the T5's width, at first as long as they are, in directions that random tokens lack."""
        widening = nn.Linear(self.dim, self.config.dim, bias=False)
        directions = nn.init.orthogonal_(widening.weight)
        if not (self.config.t5 and self.config.pretrained):
            tokens = self.t5.shared.weight
            tokens -= tokens @ directions @ directions.T
        return widening

    def tables(self) -> list[TableSpec]:
        if not self.config.has_rows:
            return []
        of, dim, std = self.shape, self.dim, self.config.sigma
        return [
            TableSpec(USER_TABLE, of.num_users, dim, id_map="users", init_std=std),
            item_table(of, dim, init_std=std),
        ]

    def propagation(self) -> Propagation | None:
        return self.config.propagation()

    def learning_rates(self) -> dict[str, float]:
        of_places = [name for name, _ in self.named_parameters() if "relative_attention_bias" in name]
        return dict.fromkeys(of_places, self.config.bias_rate)

    def uses(self, batch: PromptBatch) -> Uses:
        if not self._adds_rows(batch):
            return {}
        return {"user": (USER_TABLE, batch.user), "items": (ITEM_TABLE, batch.items)}

    def encode(self, rows: Rows, batch: PromptBatch) -> Encoded:
        queries, number = self.prompts.new_zeros(0, 1, self.dim), len(batch)  # what is written is no product of vectors
        if not number:
            rows, batch = _one_of_nothing(rows, batch)
        states, mask = self._read(rows, batch)
        if batch.answer is None:
            return Encoded(queries)
        before = torch.cat([torch.full_like(batch.answer[:, :1], self.start_token), batch.answer[:, :-1]], dim=1)
        decoded = self.t5.decoder(
            input_ids=before.clamp(min=0),  # what stands after the end is in nobody's sight that is learned
            encoder_hidden_states=states,
            encoder_attention_mask=mask if self.config.mask_padding else None,
            use_cache=False,
        ).last_hidden_state
        return Encoded(queries, logits=self._logits(decoded)[:number])

    def read(self, rows: Rows, batch: PromptBatch) -> Draft:
        states, mask = self._read(rows, batch)
        return opened(self.t5.decoder, states, mask if self.config.mask_padding else torch.ones_like(mask))

    def write(self, draft: Draft, tokens: Tensor, depth: Tensor, follows: Tensor) -> tuple[Tensor, Draft]:
        states, draft = extend(self.t5.decoder, draft, tokens, depth, follows)
        return self._logits(states), draft

    def _adds_rows(self, batch: PromptBatch) -> bool:
        return self.config.has_rows and (batch.kind != SEQUENTIAL or self.config.rows_in_sequential)

    def _read(self, rows: Rows, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """What the encoder makes of prompts, [B, P + S, D], and where they are not padding, bool [B, P + S]."""
        x = self.t5.shared(batch.tokens.clamp(min=0)) + self.config.alpha * self._words(rows, batch)
        prompts = self.prompts[batch.kind].expand(len(batch), -1, -1)
        mask = torch.cat([torch.ones_like(prompts[..., 0], dtype=torch.bool), batch.tokens != NO_ROW], dim=1)
        read = self.t5.encoder(inputs_embeds=torch.cat([prompts, x], dim=1), attention_mask=mask)
        return read.last_hidden_state, mask

    def _words(self, rows: Rows, batch: PromptBatch) -> Tensor:
        """What is added for the word that each token is of: [B, S, D]."""
        placed = batch.kind == SEQUENTIAL or self.config.words == "places"
        added = self.places(batch.word) if placed else 0.0 * self.places.weight.sum()  # DDP waits for all gradients
        if self._adds_rows(batch):
            user = rows["user"][:, None]
            of_word = torch.cat([torch.zeros_like(user), user, rows["items"]], dim=1)
            of_word = self.widen(of_word).to(of_word.dtype)  # sums and their gradients stay float32 under autocast
            added = added + of_word.gather(1, batch.word[..., None].expand(-1, -1, self.config.dim))
        elif self.config.row_dim:
            added = added + 0.0 * sum(part.sum() for part in self.widen.parameters())
        return added

    def _logits(self, states: Tensor) -> Tensor:
        if self.t5.config.scale_decoder_outputs:
            states = states * self.config.dim**-0.5
        logits: Any = self.t5.lm_head(states)
        return logits


def _one_of_nothing(rows: Rows, batch: PromptBatch) -> tuple[Rows, PromptBatch]:
    """A sample that says nothing, for a rank that has none: T5 cannot read no prompts, and gradients are waited for."""
    empty = batch._map(lambda ids: ids.new_full((1, *ids.shape[1:]), NO_ROW))
    rows = {name: torch.cat([values, values.new_zeros(1, *values.shape[1:])]) for name, values in rows.items()}
    return rows, replace(empty, word=torch.full_like(empty.word, NO_WORD))
