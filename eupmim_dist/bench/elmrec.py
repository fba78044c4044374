"""Speed of ELMRec here beside the published procedure (published.py), in turn, on one rank and the same users."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.bench.published import Published, texts_of
from eupmim_dist.config.schema import Config
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import HeldOut, held_out
from eupmim_dist.data.prompts.templates import KINDS
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import excluded_items, negatives_and_target, ranking_mode, scorer_of
from eupmim_dist.evaluation.scorers.interface import ListScorer
from eupmim_dist.models.elmrec.model import SEQUENTIAL, Elmrec
from eupmim_dist.parallel.world import World
from eupmim_dist.tasks.prompts.task import Prompts
from eupmim_dist.telemetry.machine import device_name
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step

DIRECT = KINDS.index("direct")
TOP_N = 10
BEAMS = {"sequential": 30, "direct": 20}
"""Of the published procedure; here as many among all items, and none among candidates."""
Work = Callable[[], object]


def measure_elmrec(config: Config, world: World, users: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over `rounds` of milliseconds a user, of evaluations of some test users `batch` at a time, and a training
    step on direct prompts. All is float32 but our training step, which has Accelerate's mixed precision. Raises
    UserError for another model, or one without a graph."""
    config = config.model_copy(deep=True)
    if isinstance(mix := getattr(config.task, "mix", None), list):
        mix[:] = ["direct"]
    if getattr(config.model, "graph", None) == "history":
        config.model.graph = "clean"  # type: ignore[attr-defined]  # for both the same graph, whoever is asked for
    config.evaluation.more_beams = BEAMS["sequential"] - TOP_N
    run = assemble_run(config, world, open_store(config.data.dir, world))
    if not isinstance(run.model, Elmrec) or not isinstance(run.task, Prompts) or run.model.propagation() is None:
        raise UserError("bench elmrec: measures model.name elmrec with rows of users and items; give such a --config")
    if run.store.negatives is None:
        raise UserError(f"bench elmrec: {run.store.path} has no negatives; prepare it with --format elmrec")
    published = Published(run).to(world.device)
    chosen = run.store.users("test")[:users]
    found: dict[str, Any] = {
        "device": device_name(world.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mixed precision of our training step": run.dense.accelerator.mixed_precision,
        "data": run.store.name,
        "T5 parameters": sum(p.numel() for p in run.model.t5.parameters()),
        "users": len(chosen),
        "users at a time": batch,
        "global batch": config.train.global_batch_size,
        "rounds": rounds,
        "ms": {},
    }
    for kind in BEAMS:
        works = _evaluations(run, published, chosen, batch, kind)
        found["ms"][f"evaluation, {kind}, a user"] = _in_turn(works, rounds, 1000 / len(chosen))
    found["ms"]["training step, direct"] = _in_turn(_trainings(run, published, steps), rounds, 1000 / steps)
    for of_work in found["ms"].values():
        of_work["times"] = {name: of_work[name] / of_work["ours"] for name in of_work if name != "ours"}
    return found


def _in_turn(works: dict[str, Work], rounds: int, factor: float) -> dict[str, Any]:
    """Of each the median of its rounds, before which it is done once."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: factor * statistics.median(seconds) for name, seconds in taken.items()}


def _evaluations(run: Run, published: Published, chosen: np.ndarray, batch: int, kind: str) -> dict[str, Work]:
    assert isinstance(run.task, Prompts)
    task, longest = run.task, max(map(len, run.task.item_answers))  # a T5 that has learnt nothing would not end
    direct = kind == "direct"

    def chunks() -> Sequence[HeldOut]:
        parts = [chosen[first : first + batch] for first in range(0, len(chosen), batch)]
        return [held_out(run.store, part, *run.store.evaluation_window(part, "test"), task.to_rank) for part in parts]

    def ours() -> None:
        with ranking_mode(run.model):
            scorer = scorer_of(run, "test")
            assert isinstance(scorer, ListScorer)
            for users in chunks():
                excluded = excluded_items(users.seen, len(users), True, True)
                candidates = negatives_and_target(users, run.store.num_item_rows) if direct else None
                scorer.scored_lists(users, excluded, TOP_N, candidates)

    def plain(cached: bool) -> None:
        published.eval()
        for users in chunks():
            texts = _texts(task, users, run.store.num_item_rows, direct)
            number, returned = DIRECT if direct else SEQUENTIAL, TOP_N if direct else 2 * TOP_N
            published.write(texts, number, BEAMS[kind], returned, longest, cached)

    return {"ours": ours, "published": lambda: plain(False), "published, keys cached": lambda: plain(True)}


def _texts(task: Prompts, users: HeldOut, num_item_rows: int, direct: bool) -> list[str]:
    if not direct:
        return texts_of(users.batch, SEQUENTIAL)
    candidates = negatives_and_target(users, num_item_rows)
    rows = [candidates.item[candidates.user == user] for user in range(len(users))]
    table = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_ROW)
    return texts_of(task.to_choose(users.users, table), DIRECT)


def _trainings(run: Run, published: Published, steps: int) -> dict[str, Work]:
    assert isinstance(run.task, Prompts)
    sampler, size = run.task.samplers["direct"], run.task.global_batch_size
    adam = torch.optim.AdamW(published.parameters(), lr=run.config.train.learning_rate)

    def ours() -> None:
        run.dense.module.train()
        for _ in range(steps):
            train_step(run, run.progress.step, prepare_step(run, run.progress.step))
            run.progress.step += 1

    def plain() -> None:
        published.train()
        for step in range(steps):
            asked, answers = sampler.ask(step, 0, size), sampler.answers(step)
            adam.zero_grad()
            published.loss(texts_of(asked, DIRECT), DIRECT, [str(item) for item in answers.tolist()]).backward()
            adam.step()

    return {"ours": ours, "published": plain}
