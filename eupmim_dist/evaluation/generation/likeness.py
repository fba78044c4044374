"""How like the words of people texts are, by sacrebleu and rouge_score: sums that ranks add up."""

from collections.abc import Sequence
from typing import Any

from eupmim_dist.data.prompts.vocabulary import INSTALL
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.world import World

ORDER = 4
ROUGES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


class Likeness:
    """The F of ROUGE-1, ROUGE-2 and ROUGE-L of each text; BLEU-1 and BLEU-4 of all texts as one corpus, without
    smoothing, of words between spaces. All in percent, the same however texts are shared out over ranks: BLEU is of
    whole numbers."""

    def __init__(self) -> None:
        """Raises UserError if a package is not installed."""
        sacrebleu, rouge_scorer = import_measures()
        self._bleu = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=ORDER, force=True)
        self._rouge = rouge_scorer.RougeScorer(list(ROUGES))
        self._counts = [0] * (2 * ORDER + 2)  # n-grams that are right, all of them, lengths of texts and references

    def add(self, texts: Sequence[str], references: Sequence[str]) -> list[list[float]]:
        """The ROUGES of each text."""
        if not texts:
            return []
        score = self._bleu.corpus_score(list(texts), [list(references)])
        counts = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        self._counts = [one + other for one, other in zip(self._counts, counts, strict=True)]
        scored = [self._rouge.score(*pair) for pair in zip(references, texts, strict=True)]
        return [[100.0 * one[name].fmeasure for name in ROUGES] for one in scored]

    def bleu(self, world: World) -> dict[str, float]:
        """Of all ranks' texts; collective."""
        counts = [sum(each) for each in zip(*everywhere(self._counts, world), strict=True)]
        right, every, (of_texts, of_references) = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
        return {
            f"bleu_{order}": float(
                self._bleu.compute_bleu(
                    right[:order], every[:order], of_texts, of_references, smooth_method="none", max_ngram_order=order
                ).score
            )
            for order in (1, ORDER)
        }


def import_measures() -> tuple[Any, Any]:
    """sacrebleu and rouge_score's module. Raises UserError if one is not installed."""
    try:
        import sacrebleu
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise UserError(f"explanations: {error.name} is not installed; `{INSTALL}`") from None
    return sacrebleu, rouge_scorer
