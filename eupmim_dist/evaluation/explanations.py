"""elmrec_explanation: a model says why a user would like an item, for each record of a split, as people did.

Records are written for in groups as users are in scorers/beams.py, so that texts are the same at any number of ranks.
"""

from collections.abc import Mapping, Sequence

import polars as pl
import torch

from eupmim_dist.data.heldout import grouped_range
from eupmim_dist.data.manifest import EXPLANATIONS
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.generation.likeness import Likeness
from eupmim_dist.evaluation.generation.text import write_texts
from eupmim_dist.evaluation.protocols import EXPLANATION, PROTOCOLS
from eupmim_dist.evaluation.runner import Result, evaluate_model, ranking_mode, ranking_of
from eupmim_dist.evaluation.scorers.beams import GROUP, check_sound, drafts, writing
from eupmim_dist.models.writing import Writer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.train.state import Assembled, Setup

TEXTS = {"user": pl.String, "item": pl.String, "written": pl.String, "reference": pl.String}
"""Columns of the texts that were written; raw ids."""


def check_explained(trained: Assembled | None, store: InteractionStore, split: str) -> None:
    """Raises UserError unless there is a model that writes, and something to compare with."""
    if trained is None or not isinstance(trained.model, Writer) or not isinstance(trained.task, AskingTask):
        what = "no model" if trained is None else f"model {trained.config.model.name}"
        raise UserError(f"--protocol {EXPLANATION}: is of a model that writes, and here is {what}; leave it out")
    trained.task.vocabulary.check_words()
    if (explanations := store.explanations()) is None:
        raise UserError(
            f"--protocol {EXPLANATION}: {store.path} has no {EXPLANATIONS}; prepare it from data with an "
            "explanation.json, or leave the protocol out"
        )
    if explanations.filter(split=split).head(1).collect().is_empty():
        raise UserError(f"--protocol {EXPLANATION}: {store.path} has no explanations of its {split} split")


def ranked_of(protocols: Sequence[str], setting: Setup, split: str, of_lists: Mapping[str, object]) -> list[str]:
    """Those of some protocols that rank. Raises UserError as `check_explained`, if the other one is among them, or is
    alone beside an option that is `of_lists` and given."""
    if EXPLANATION in protocols:
        check_explained(setting if isinstance(setting, Assembled) else None, setting.store, split)
        for option in [name for name, given in of_lists.items() if given and set(protocols) == {EXPLANATION}]:
            raise UserError(f"{option}: is of lists, and --protocol {EXPLANATION} ranks nothing; leave it out")
    return [name for name in protocols if name != EXPLANATION]


def results_of_model(
    trained: Assembled, split: str, protocols: Sequence[str], cutoffs: Sequence[int] | None, variety: Variety | None
) -> list[Result]:
    """A result for each protocol, at its own cut-offs if None; collective."""
    return [
        evaluate_explanations(trained, split, progress=True)
        if name == EXPLANATION
        else evaluate_model(trained, split, name, cutoffs or PROTOCOLS[name].top_n, variety=variety, progress=True)
        for name in protocols
    ]


def evaluate_explanations(trained: Assembled, split: str, *, progress: bool = False) -> Result:
    """Every record of the split exactly once, shared out over the ranks; collective.

    A reference is cut as training cuts it (AskingTask.max_answer_tokens). Raises UserError as `check_explained`.
    """
    check_explained(trained, trained.store, split)
    store, world, sums = trained.store, trained.world, Likeness()
    explanations = store.explanations()
    assert explanations is not None, "check_explained makes sure"
    records = explanations.filter(split=split).collect()
    written: list[tuple[int, str, str]] = []
    size = trained.config.evaluation.batch_size
    name = trained.config.model.label
    with (
        ranking_mode(trained.model),
        task_progress(f"{name}: {split} split, protocol {EXPLANATION}", len(records), progress and world.is_main) as on,
    ):
        model, task, tables, _ = writing(ranking_of(trained, split))
        for start in range(0, len(records), size):
            chunk = records[start : start + size]
            first, stop = grouped_range(len(chunk), GROUP, world.rank, world.size)
            part, sound, texts = chunk[first:stop], True, []
            prompts = task.to_explain(part["user"].to_numpy(), torch.tensor(part["item"].to_list(), dtype=torch.int64))
            for begin, end, draft in drafts(model, tables, prompts, lambda *_: 1):
                tokens, numbers = write_texts(
                    model, draft, end - begin, task.vocabulary.end, task.max_answer_tokens - 1
                )
                texts += [task.vocabulary.decode(each) for each in tokens]
                sound &= numbers
            check_sound(sound, model, world)
            references = [_cut(text, task) for text in part["explanation"].to_list()]
            sums.add(texts, references)
            written += zip(range(start + first, start + stop), texts, references, strict=True)
            on(len(chunk))
    metrics, number = sums.reduce(world)
    assert number == len(records), f"{number} explanations written, the split has {len(records)}"
    in_order = sorted(row for of_rank in everywhere(written, world) for row in of_rank)
    frame = pl.DataFrame(
        {
            "user": store.raw_user_ids(records["user"].to_numpy()),
            "item": store.raw_item_ids(records["item"].to_numpy()),
            "written": [text for _, text, _ in in_order],
            "reference": [reference for _, _, reference in in_order],
        },
        schema=TEXTS,
    )
    return Result(name, EXPLANATION, split, number, metrics, texts=frame)


def _cut(text: str, task: AskingTask) -> str:
    """A person's words as the tokenizer has them, which is how a model writes, and as many as it may write."""
    return task.vocabulary.decode(task.vocabulary.tokens(text)[: task.max_answer_tokens - 1])
