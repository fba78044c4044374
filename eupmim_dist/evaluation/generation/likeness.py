"""How like the words of people texts are, by sacrebleu and rouge_score: sums that ranks add up."""

import math
from collections.abc import Sequence
from typing import Any

from eupmim_dist.data.prompts.vocabulary import INSTALL
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.world import World

ORDER = 4
ROUGES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


class Likeness:
    """BLEU-1 and BLEU-4 of all texts as one corpus, without smoothing, of words between spaces; and the mean F of
    ROUGE-1, ROUGE-2 and ROUGE-L. All in percent, the same however texts are shared out over ranks: BLEU is of whole
    numbers, and the mean is rounded once, of the exact sum."""

    def __init__(self) -> None:
        """Raises UserError if a package is not installed."""
        sacrebleu, rouge_scorer = _import_measures()
        self._bleu = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=ORDER, force=True)
        self._rouge = rouge_scorer.RougeScorer(list(ROUGES))
        self._counts = [0] * (2 * ORDER + 2)  # n-grams that are right, all of them, lengths of texts and references
        self._values: list[list[float]] = []

    def add(self, texts: Sequence[str], references: Sequence[str]) -> None:
        if not texts:
            return
        score = self._bleu.corpus_score(list(texts), [list(references)])
        counts = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        self._counts = [one + other for one, other in zip(self._counts, counts, strict=True)]
        for text, reference in zip(texts, references, strict=True):
            scored = self._rouge.score(reference, text)
            self._values.append([scored[name].fmeasure for name in ROUGES])

    def reduce(self, world: World) -> tuple[dict[str, float], int]:
        """Of all ranks' texts, and how many these are; collective."""
        ranks = everywhere((self._counts, self._values), world)
        counts = [sum(each) for each in zip(*(of_rank[0] for of_rank in ranks), strict=True)]
        values = [row for of_rank in ranks for row in of_rank[1]]
        right, every, (of_texts, of_references) = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
        bleu = {
            f"bleu_{order}": float(
                self._bleu.compute_bleu(
                    right[:order], every[:order], of_texts, of_references, smooth_method="none", max_ngram_order=order
                ).score
            )
            for order in (1, ORDER)
        }
        means = [100.0 * math.fsum(column) / len(values) for column in zip(*values, strict=True)]
        return bleu | dict(zip(ROUGES.values(), means, strict=True)), len(values)


def _import_measures() -> tuple[Any, Any]:
    try:
        import sacrebleu
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise UserError(f"explanations: {error.name} is not installed; `{INSTALL}`") from None
    return sacrebleu, rouge_scorer
