"""Whatever a model can be judged by: lists, by one of the PROTOCOLS, or what it writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eupmim_dist.config.schema import EvaluationConfig
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.diversity import Variety
from eupmim_dist.evaluation.explanations import check_explained, evaluate_explanations
from eupmim_dist.evaluation.protocols import EXPLANATION, PROTOCOLS, check_protocols
from eupmim_dist.evaluation.runner import Result, check_cutoffs, evaluate_model
from eupmim_dist.models.interface import Model
from eupmim_dist.tasks.asking import AskingTask
from eupmim_dist.tasks.interface import Task
from eupmim_dist.train.state import Assembled


def judge(
    assembled: Assembled,
    split: str,
    protocol: str,
    cutoffs: Sequence[int],
    *,
    sample: int | None = None,
    progress: bool = False,
    **of_lists: Any,
) -> Result:
    """A model with its current weights, on a split or `sample` of its users or explanations; collective.

    `of_lists` are further options of `evaluate_scorer`; they and the cut-offs do not matter to EXPLANATION.
    """
    if protocol == EXPLANATION:
        return evaluate_explanations(assembled, split, sample=sample, progress=progress)
    return evaluate_model(assembled, split, protocol, cutoffs, sample=sample, progress=progress, **of_lists)


def check_judged(config: EvaluationConfig, store: InteractionStore, model: Model, task: Task) -> None:
    """Raises UserError where a training could not be judged, or in the end not be tested, as configured."""
    if config.protocol == EXPLANATION:
        for split in ("valid", "test"):
            check_explained((model, task), store, split)
        return
    check_protocols([config.protocol], store, "evaluation.protocol: ")
    assert config.cutoff is not None, "EvaluationConfig makes sure"
    for key, cutoffs in (("metric", [config.cutoff]), ("top_n", config.top_n)):
        check_cutoffs(cutoffs, store.num_item_rows, f"evaluation.{key}: ")
    if PROTOCOLS[config.protocol].candidates == "negatives" and isinstance(task, AskingTask):
        assert store.negatives is not None, "check_protocols makes sure"
        users = store.users("valid")[:1]
        negatives = torch.from_numpy(store.negatives[users].astype(np.int64))
        task.to_choose(users, torch.cat([negatives, negatives[:, :1]], 1))  # the last one in place of the target


def results_of_model(
    trained: Assembled, split: str, protocols: Sequence[str], cutoffs: Sequence[int] | None, variety: Variety | None
) -> list[Result]:
    """A result for each protocol, at its own cut-offs if None; collective."""
    usual = {name: () if name == EXPLANATION else PROTOCOLS[name].top_n for name in protocols}
    return [judge(trained, split, name, cutoffs or usual[name], variety=variety, progress=True) for name in protocols]
