"""ELMRec as it was published, plainly: what this package's is measured against.

The whole graph is propagated by autograd for every batch of direct prompts, as a sparse product; prompts are tokenised
in each step, and whole words looked for among their tokens; the encoder reads inputs repeated for each beam; beams are
those of transformers, over all tokens, without a cache of keys and values unless one is asked for. Tables are dense,
under Adam.

B prompts, S tokens of a prompt, n nodes: 0 for none, users from 1, then the rows of items. D dim.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.data.graph import InteractionGraph
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.prompt import fill
from eupmim_dist.data.prompts.templates import KINDS, SHORT, TEMPLATES
from eupmim_dist.models.elmrec.model import SEQUENTIAL, Elmrec
from eupmim_dist.tasks.prompts.task import Prompts
from eupmim_dist.train.state import Assembled

NO_TEMPLATE = -1


class Published(nn.Module):
    """With a run's T5, prompt vectors, places and rows of users and items, copied."""

    def __init__(self, run: Assembled) -> None:
        super().__init__()
        assert isinstance(run.model, Elmrec)
        assert isinstance(run.task, Prompts)
        propagation = run.model.propagation()
        assert propagation is not None, "it has a graph"
        self.config, self.tokenizer = run.model.config, run.task.vocabulary.tokenizer
        self.t5 = copy.deepcopy(run.model.t5)
        self.t5.encoder.set_attn_implementation("sdpa")  # transformers' own
        self.prompts = nn.Parameter(run.model.prompts.detach().clone())
        self.places, self.widen = copy.deepcopy(run.model.places), copy.deepcopy(run.model.widen)
        self.num_users, self.num_layers = run.store.num_users, propagation.num_layers
        users, items = (run.tables.shards[name] for name in ("user", "item"))
        rows = [shard.weight[shard.ids().argsort().to(shard.weight.device)].detach() for shard in (users, items)]
        self.nodes = nn.Parameter(torch.cat([rows[0].new_zeros(1, run.model.dim), *rows]))
        self.register_buffer("adjacency", self._adjacency(InteractionGraph(run.store, propagation.graph)))

    def _adjacency(self, graph: InteractionGraph) -> Tensor:
        of_users, of_items = (torch.from_numpy(degrees) for degrees in graph.degrees())
        users, items = (
            torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*graph.edges(), strict=True)
        )
        weights = (of_users[users] * of_items[items]).float().rsqrt()
        one, other = 1 + users, 1 + self.num_users + items
        ends = torch.stack([torch.cat([one, other]), torch.cat([other, one])])
        size = (len(self.nodes),) * 2
        found = torch.sparse_coo_tensor(ends, weights.repeat(2), size, check_invariants=False)
        return found.coalesce().to(self.nodes.device)

    def propagated(self) -> Tensor:
        layers: list[Tensor] = [self.nodes]
        for _ in range(self.num_layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        return torch.stack(layers).mean(0)

    def tokenised(self, texts: Sequence[str], sequential: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, which of them are none, and the node or place that each is of: [B, S] each."""
        found = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        words = [self._words(self.tokenizer.convert_ids_to_tokens(row), sequential) for row in found.input_ids.tolist()]
        device = self.nodes.device
        return found.input_ids.to(device), found.attention_mask.to(device), torch.tensor(words, device=device)

    def _words(self, tokens: Sequence[str], sequential: bool) -> list[int]:
        """Of tokens `user`, `_` and those of a number; `plain` has `user_` as one."""
        words, number = [0] * len(tokens), 0
        for place, token in enumerate(tokens):
            if not token.endswith("_"):
                continue
            start = place - (token == "_")
            stop = place + 1
            while stop < len(tokens) and tokens[stop].isdigit():
                stop += 1
            if stop > place + 1:
                number += 1
                of_item = "item" in tokens[start]
                node = int("".join(tokens[place + 1 : stop])) + (1 + self.num_users) * of_item
                words[start:stop] = [number if sequential else node] * (stop - start)
        return words

    def read(self, texts: Sequence[str], kind: int, repeated: int = 1) -> tuple[Tensor, Tensor]:
        """What the encoder makes of prompts, each `repeated` times, and which of it is padding."""
        tokens, mask, words = (
            part.repeat_interleave(repeated, 0) for part in self.tokenised(texts, kind == SEQUENTIAL)
        )
        added = self.places(words) if kind == SEQUENTIAL else self.widen(self.propagated()[words])
        inputs = self.t5.shared(tokens) + self.config.alpha * added
        inputs = torch.cat([self.prompts[kind].expand(len(tokens), -1, -1), inputs], dim=1)
        mask = torch.cat([torch.ones_like(inputs[:, : self.config.num_prompts, 0], dtype=torch.int64), mask], dim=1)
        return self.t5.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state, mask

    def loss(self, texts: Sequence[str], kind: int, answers: Sequence[str]) -> Tensor:
        """Padding is learned, and looked at."""
        states, _ = self.read(texts, kind)
        wanted = self.tokenizer(list(answers), padding=True, return_tensors="pt").input_ids.to(states.device)
        before = torch.cat([torch.full_like(wanted[:, :1], self.t5.config.decoder_start_token_id), wanted[:, :-1]], 1)
        decoded = self.t5.decoder(input_ids=before, encoder_hidden_states=states, use_cache=False).last_hidden_state
        if self.t5.config.scale_decoder_outputs:
            decoded = decoded * self.t5.config.d_model**-0.5
        return F.cross_entropy(self.t5.lm_head(decoded).flatten(0, 1), wanted.flatten())

    @torch.no_grad()
    def write(
        self, texts: Sequence[str], kind: int, beams: int, returned: int, longest: int, cached: bool
    ) -> list[str]:
        """The best `returned` answers to each prompt, of `longest` tokens at most, as text."""
        from transformers.modeling_outputs import BaseModelOutput  # late: few need transformers

        states, _ = self.read(texts, kind, repeated=beams)
        written = self.t5.generate(
            encoder_outputs=BaseModelOutput(states[::beams]),  # which transformers repeats itself
            num_beams=beams,
            num_return_sequences=returned,
            max_new_tokens=longest,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            early_stopping=True,
            use_cache=cached,
            do_sample=False,
        )
        texts_written: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts_written


def texts_of(asked: Any, kind: int) -> list[str]:
    """Prompts as text: of what a sampler asks, or of a batch to rank for."""
    batch = isinstance(asked, PromptBatch)
    templates = [NO_TEMPLATE] * len(asked.user) if batch else asked.template.tolist()
    rows = zip(asked.user.tolist(), asked.items.tolist(), templates, strict=True)
    wordings = TEMPLATES[KINDS[kind]]
    return [
        fill(SHORT if template == NO_TEMPLATE else wordings[template], user, [i for i in items if i >= 0]).text
        for user, items, template in rows
    ]
