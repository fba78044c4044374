"""elmrec_explanation: a model says why a user would like an item, for each record of a split, as people did.

Records are written for in groups as users are in scorers/beams.py, so that texts are the same at any number of ranks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from eupmim_dist.data.counter import random_bits, stream_key
from eupmim_dist.data.heldout import grouped_range
from eupmim_dist.data.manifest import EXPLANATIONS
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.generation.likeness import ROUGES, Likeness, import_measures
from eupmim_dist.evaluation.generation.text import write_texts
from eupmim_dist.evaluation.protocols import EXPLANATION
from eupmim_dist.evaluation.runner import Result, ranking_mode, ranking_of
from eupmim_dist.evaluation.scorers.beams import GROUP, check_sound, drafts, writing
from eupmim_dist.models.interface import Model
from eupmim_dist.models.writing import Writer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.tasks.interface import Task
from eupmim_dist.telemetry.progress import task_progress
from eupmim_dist.train.state import Assembled, Setup

TEXTS: dict[str, Any] = dict.fromkeys(("user", "item", "written", "reference"), pl.String)
TEXTS |= dict.fromkeys(ROUGES.values(), pl.Float64)
"""Columns of the texts that were written; raw ids, percent."""


def check_explained(parts: tuple[Model, Task] | None, store: InteractionStore, split: str) -> None:
    """Raises UserError unless there is a model that writes, and something to compare with."""
    model, task = parts or (None, None)
    if not isinstance(model, Writer) or not isinstance(task, AskingTask):
        what = "no model" if model is None else type(model).__name__
        raise UserError(f"--protocol {EXPLANATION}: is of a model that writes, and here is {what}; leave it out")
    if not task.explains:
        raise UserError(
            f"--protocol {EXPLANATION}: its training asked for no explanations, so it has not learnt to write any; "
            "leave it out, or train one with explanation in task.mix"
        )
    import_measures()
    if store.explanations() is None:
        raise UserError(
            f"--protocol {EXPLANATION}: {store.path} has no {EXPLANATIONS}; prepare it from data with an "
            "explanation.json, or leave the protocol out"
        )
    if not num_explained(store, split):
        raise UserError(f"--protocol {EXPLANATION}: {store.path} has no explanations of its {split} split")


def num_explained(store: InteractionStore, split: str) -> int:
    """How many explanations of a split a store has."""
    explanations = store.explanations()
    return 0 if explanations is None else explanations.filter(split=split).select(pl.len()).collect().item()


def ranked_of(protocols: Sequence[str], setting: Setup, split: str, of_lists: Mapping[str, object]) -> list[str]:
    """Those of some protocols that rank. Raises UserError as `check_explained`, if the other one is among them, or is
    alone beside an option that is `of_lists` and given."""
    if EXPLANATION in protocols:
        trained = setting if isinstance(setting, Assembled) else None
        check_explained(None if trained is None else (trained.model, trained.task), setting.store, split)
        if set(protocols) == {EXPLANATION}:
            check_no_lists(of_lists)
    return [name for name in protocols if name != EXPLANATION]


def check_no_lists(of_lists: Mapping[str, object]) -> None:
    """Raises UserError where an option that is of lists alone is given."""
    for option in [name for name, given in of_lists.items() if given]:
        raise UserError(f"--{option}: is of lists, and --protocol {EXPLANATION} ranks nothing; leave it out")


def evaluate_explanations(
    trained: Assembled, split: str, *, sample: int | None = None, progress: bool = False
) -> Result:
    """Every record of the split exactly once, or of `sample`, drawn by the seed, shared out over the ranks; collective.

    A reference is cut as training cuts it (AskingTask.max_answer_tokens). Raises UserError as `check_explained`.
    """
    check_explained((trained.model, trained.task), trained.store, split)
    store, world, sums = trained.store, trained.world, Likeness()
    explanations = store.explanations()
    assert explanations is not None, "check_explained makes sure"
    records = explanations.filter(split=split).collect()
    if sample is not None and sample < len(records):
        drawn = random_bits(stream_key(trained.config.seed, "judged explanations", split), torch.arange(len(records)))
        records = records[np.sort(drawn.numpy().argsort(kind="stable")[:sample])]
    written: list[tuple[Any, ...]] = []
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
            rows = zip(texts, references, sums.add(texts, references), strict=True)
            written += [(start + first + n, text, person, *rouge) for n, (text, person, rouge) in enumerate(rows)]
            on(len(chunk))
    in_order = sorted(row for of_rank in everywhere(written, world) for row in of_rank)
    number = len(in_order)
    assert number == len(records), f"{number} explanations written, the split has {len(records)}"
    raw = [store.raw_user_ids(records["user"].to_numpy()), store.raw_item_ids(records["item"].to_numpy())]
    columns = [*raw, *[list(column) for column in zip(*in_order, strict=True)][1:]]
    frame = pl.DataFrame(dict(zip(TEXTS, columns, strict=True)), schema=TEXTS)
    rouge = {name: math.fsum(frame[name]) / number for name in ROUGES.values()}
    return Result(name, EXPLANATION, split, number, sums.bleu(world) | rouge, texts=frame)


def _cut(text: str, task: AskingTask) -> str:
    """A person's words as the tokenizer has them, which is how a model writes, and as many as it may write."""
    return task.vocabulary.decode(task.vocabulary.tokens(text)[: task.max_answer_tokens - 1])
