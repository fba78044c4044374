"""ELMRec over several ranks: losses, weights, rows, lists and texts are those of one, under DDP and under ZeRO-2."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models.t5.modeling_t5  # noqa: F401 (where ranks are forked, not in each of them)
from torch import Tensor

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.audience import whole_split
from eupmim_dist.evaluation.explanations import evaluate_explanations
from eupmim_dist.evaluation.recommend import Wanted, recommendations
from eupmim_dist.evaluation.runner import excluded_items, held_out_users, ranking_mode, scorer_of
from eupmim_dist.evaluation.scorers.interface import ListScorer
from eupmim_dist.evaluation.topn import gather_rows
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.distributed.spawn import run_ranks
from tests.distributed.test_invariance import joined, of_tables
from tests.prompts import SETTINGS, unigram_tokenizer, with_explanations

NUM_STEPS = 9
NEAR = 1e-3


def settings(place: Path) -> dict[str, Any]:
    task = {"tokenizer": str(place / "tokenizer"), "mix": ["sequential", "direct", "explanation"]}
    return SETTINGS | {
        "task": SETTINGS["task"] | task,
        "model": SETTINGS["model"] | {"row_dim": 8, "bias_rate": 3.0},
        "data": {"dir": str(place / "store")},
        "tables": {"replicate_below": 0},
        "train": {"global_batch_size": 5, "learning_rate": 0.003, "l2": 1e-4, "accumulation": 2},
        "evaluation": {"batch_size": 48, "top_n": [5], "metric": "recall@5"},
    }


def lists_of(run: Run) -> tuple[Tensor, Tensor]:
    """Scores and items of all test users; collective."""
    found = []
    with ranking_mode(run.model):
        scorer = scorer_of(run, "test")
        assert isinstance(scorer, ListScorer)
        users = held_out_users(run, "test", scorer.group)
        for index in range(len(users)):
            chunk = users.chunk(index)
            lists = scorer.scored_lists(chunk, excluded_items(chunk.seen, len(chunk), True, True), 5)
            found.append([gather_rows(part[:, 0], users.block(index), run.world) for part in lists])
    scores, items = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, items


def losses_of(run: Run, steps: int) -> Tensor:
    run.dense.module.train()
    losses = torch.stack(
        [train_step(run, step, prepare_step(run, step)).shares["cross_entropy"] for step in range(steps)]
    )
    if run.world.size > 1:
        torch.distributed.all_reduce(losses)
    return losses


def trained(values: dict[str, Any], more: bool = True) -> dict[str, Any]:
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    config = parse_config(values, source="test")
    store = open_store(config.data.dir, world)
    run = assemble_run(config, world, store)
    told = evaluate_explanations(run, "test")
    assert told.texts is not None
    found = {"before": lists_of(run), "likeness": told.metrics, "texts": told.texts["written"].to_list()}
    everybody, wanted = whole_split(store, None), Wanted(5)
    found["recommended"] = [each.as_dict()["items"] for each in recommendations(run, everybody, wanted)]
    found |= {"losses": losses_of(run, NUM_STEPS), "after": lists_of(run)}
    found |= {name: p.detach().clone() for name, p in run.model.named_parameters()}
    found |= of_tables(run, {name: shard.weight for name, shard in run.tables.shards.items()})
    if more:
        padding = values | {"task": values["task"] | {"learn_padding": True, "mix": ["explanation"]}}
        found["padding"] = losses_of(assemble_run(parse_config(padding, source="test"), world, store), 3)
    return found


def zero2(values: dict[str, Any]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        patch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return trained(values, more=False)  # DeepSpeed is set up once in a process


def in_bf16(values: dict[str, Any]) -> Tensor:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        world, config = init_world(cpu=True), parse_config(values, source="test")
        run = assemble_run(config, world, open_store(config.data.dir, world))
        assert run.dense.accelerator.mixed_precision == "bf16"
        return losses_of(run, NUM_STEPS)


def test_any_number_of_ranks_trains_and_writes_what_one_does(tmp_path: Path) -> None:
    """Batches of five over four ranks, in two micro-batches: some are empty; and so is the last rank's part of users.

    Of the same weights all ranks together write what one does, to the last bit.
    """
    with_explanations(tmp_path, [f"{'so ' * (n % 3)}good" for n in range(20)], num_users=50)
    unigram_tokenizer(tmp_path / "tokenizer")
    values = settings(tmp_path)
    [one] = run_ranks(1, trained, values)
    for size, train in ((4, trained), (2, zero2)):
        ranks = run_ranks(size, train, values, timeout=240)
        first = ranks[0]
        assert all(torch.equal(*pair) for pair in zip(first["before"], one["before"], strict=True))
        for name in ("likeness", "texts", "recommended"):
            assert first[name] == one[name]
        for name in {"losses", "padding"} & first.keys():
            assert torch.allclose(first[name], one[name], rtol=1e-5), (size, name)
        (scores, items), (expected, of_one) = first["after"], one["after"]
        assert torch.allclose(scores, expected, atol=NEAR)
        gap = (expected[:, 1:] - expected[:, :-1]).abs()
        no_other, past_the_end = torch.full_like(gap[:, :1], torch.inf), torch.zeros_like(gap[:, :1])
        ties = torch.cat([no_other, gap, past_the_end], dim=1).unfold(1, 2, 1).amin(2) < NEAR
        assert (ties | (items == of_one)).all(), "what differs are near ties"
        for name in one.keys() - {"before", "likeness", "texts", "recommended", "losses", "after", "padding"}:
            assert torch.allclose(joined(ranks, name), joined([one], name), rtol=1e-3, atol=2e-4), (size, name)
    halved = run_ranks(2, in_bf16, values)[0]
    assert torch.allclose(halved, one["losses"], rtol=0.02)  # bf16 has 8 bits
    assert not torch.allclose(halved, one["losses"], rtol=1e-5)
