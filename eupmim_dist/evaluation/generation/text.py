"""Answers in free words, and how like the words of people they are.

B prompts, M nodes of a draft.
"""

from collections.abc import Sequence
from typing import Any

import torch

from eupmim_dist.errors import UserError
from eupmim_dist.models.writing import Draft, Writer


@torch.no_grad()
def write_texts(writer: Writer, draft: Draft, number: int, end: int, most: int) -> list[list[int]]:
    """The tokens of the answer to each of `number` prompts, without the end: the likeliest one each time, `most` at
    most."""
    device = next(writer.parameters()).device
    tokens = torch.full((number, 1), writer.start_token, device=device)
    written: list[torch.Tensor] = []
    ended = torch.zeros(number, dtype=torch.bool, device=device)
    while len(written) < most and not bool(ended.all()):
        depth = torch.full_like(tokens, len(written))
        follows = torch.ones(number, 1, len(written) + 1, dtype=torch.bool, device=device)
        logits, draft = writer.write(draft, tokens, depth, follows)
        tokens = logits[:, -1:].argmax(2)
        written.append(tokens)
        ended |= tokens[:, 0] == end
    rows = torch.cat(written, dim=1).tolist() if written else [[] for _ in range(number)]
    return [row[: row.index(end)] if end in row else row for row in rows]


def likeness(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-1 and BLEU-4 of the corpus, without smoothing, of words between spaces; and the mean F of ROUGE-1, ROUGE-2
    and ROUGE-L. All in percent.

    Raises UserError if a package is not installed.
    """
    sacrebleu, rouge_scorer = _import_measures()
    bleu = {
        f"bleu_{order}": sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        .corpus_score(list(texts), [list(references)])
        .score
        for order in (1, 4)
    }
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scored = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    rouge = {
        f"rouge_{name.removeprefix('rouge').lower()}": 100.0 * sum(each[name].fmeasure for each in scored) / len(scored)
        for name in ("rouge1", "rouge2", "rougeL")
    }
    return bleu | rouge


def _import_measures() -> tuple[Any, Any]:
    try:
        import sacrebleu
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise UserError(f'explanations: {error.name} is not installed; `pip install "eupmim-dist[elmrec]"`') from None
    return sacrebleu, rouge_scorer
