"""ELMRec against transformers' T5 and plain sums: what it reads, learns and writes."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eupmim_dist.assemble import assemble_run, load_trained, open_store
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.heldout import Ragged
from eupmim_dist.data.prompts.batch import PromptBatch
from eupmim_dist.data.prompts.prompt import FIRST_ITEM_WORD, USER_WORD
from eupmim_dist.data.prompts.templates import KINDS
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.generation.likeness import ROUGES, Likeness
from eupmim_dist.evaluation.generation.search import answer_scores, beam_search
from eupmim_dist.evaluation.generation.text import write_texts
from eupmim_dist.evaluation.generation.trie import Allowed, Trie, make_trie
from eupmim_dist.evaluation.runner import evaluate_model, held_out_users, scorer_of
from eupmim_dist.evaluation.scorers.interface import ListScorer
from eupmim_dist.export.init_from import take_weights
from eupmim_dist.models.elmrec import attention
from eupmim_dist.models.elmrec.config import ElmrecConfig
from eupmim_dist.models.elmrec.model import Elmrec
from eupmim_dist.models.interface import Rows
from eupmim_dist.objectives.interface import Candidates
from eupmim_dist.objectives.token_cross_entropy import TokenCrossEntropy, TokenCrossEntropyConfig
from eupmim_dist.tasks.prompts.task import Prompts
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.oracles.prompts_plain import log_probability
from tests.oracles.propagation_plain import propagated
from tests.prompts import SETTINGS, unigram_tokenizer, with_explanations
from tests.propagated import learnt, matrix_of, plain_rows
from tests.runs import WORLD, logged, train_in
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = {"train": {"global_batch_size": 6, "learning_rate": 0.01, "max_steps": 8, "log_every": 1, "l2": 0.0}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("elmrec")
    small_store(place / "store", split_rule="leave_one_out", num_items=130, shortest=4)
    unigram_tokenizer(place / "tokenizer")
    return place


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("explained")
    with_explanations(place, [f"it {'is ' * (n % 4)}good" for n in range(40)])
    unigram_tokenizer(place / "tokenizer")
    return place


def config_of(place: Path, tokenizer: bool = True, task: dict[str, Any] | None = None, **model: Any) -> Any:
    names = {"tokenizer": str(place / "tokenizer")} if tokenizer else {}
    values = {
        "data": {"dir": str(place / "store")},
        "task": SETTINGS["task"] | names | (task or {}),
        "model": SETTINGS["model"] | model,
        "objective": SETTINGS["objective"],
        "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [5]},
        "checkpoint": {"every": 4},
    }
    return parse_config(values | FEW, "test")


def run_of(place: Path, **changes: Any) -> Run:
    config = config_of(place, **changes)
    return assemble_run(config, WORLD, open_store(config.data.dir, WORLD))


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """With weights that have moved, in evaluation mode."""
    made = run_of(place)
    made.dense.module.train()
    for step in range(6):
        train_step(made, step, prepare_step(made, step))
    made.model.eval()
    return made


def model_of(run: Run) -> tuple[Elmrec, Prompts]:
    assert isinstance(run.model, Elmrec)
    assert isinstance(run.task, Prompts)
    return run.model, run.task


def rows_of(run: Run, batch: PromptBatch) -> Rows:
    return run.tables.lookup(run.model.uses(batch)).rows[0]


def plain_input(model: Elmrec, rows: tuple[Tensor, Tensor], batch: PromptBatch, sample: int) -> Tensor:
    """What the encoder is given for a sample, without padding: [P + S, D], token by token. `rows` of users, items."""
    found, config = [*model.prompts[batch.kind]], model.config
    sequential = KINDS[batch.kind] == "sequential"
    for token, word in zip(batch.tokens[sample].tolist(), batch.word[sample].tolist(), strict=True):
        if token == NO_ROW:
            continue
        vector = model.t5.shared.weight[token]
        if sequential or config.words == "places":
            vector = vector + config.alpha * model.places.weight[word]
        if config.words == "rows" and config.alpha and (not sequential or config.rows_in_sequential):
            row = None
            if word == USER_WORD:
                row = rows[0][batch.user[sample]]
            elif word >= FIRST_ITEM_WORD:
                row = rows[1][batch.items[sample, word - FIRST_ITEM_WORD]]
            if row is not None:
                vector = vector + config.alpha * (model.widen.weight @ row if config.row_dim else row)
        found.append(vector)
    return torch.stack(found)


def rows_to_rank_by(run: Run) -> tuple[Tensor, Tensor]:
    users, items = plain_rows(run)
    return users.float(), items.float()


def plain_log_probability(model: Elmrec, given: Tensor, answer: list[int]) -> Tensor:
    model.t5.encoder.set_attn_implementation("eager")  # transformers' own, in the open
    states = model.t5.encoder(inputs_embeds=given[None]).last_hidden_state[0]
    model.t5.encoder.set_attn_implementation(attention.NAME)
    return log_probability(model.t5, states, torch.ones(len(states), dtype=torch.bool), answer)


def masked(run: Run, batch: PromptBatch) -> set[tuple[int, int]]:
    """The edges that a step must not know, worked out from its answers."""
    task, found = run.task, set()
    assert isinstance(task, Prompts)
    assert batch.answer is not None
    for user, answer in zip(batch.user.tolist(), batch.answer, strict=True):
        own = run.store.items[run.store.offsets[user] : run.store.offsets[user + 1] - 2].tolist()
        if KINDS[batch.kind] != "explanation":
            item = task.item_answers.index(answer[answer != NO_ROW].tolist())
            later = own[own.index(item) :] if KINDS[batch.kind] == "sequential" else [item]
            found |= {(user, each) for each in later}
    return found


def padded_answers(task: Prompts, batch: PromptBatch, learn_padding: bool) -> list[list[int]]:
    assert batch.answer is not None
    width = batch.answer.shape[1]
    own = [row[row != NO_ROW].tolist() for row in batch.answer]
    return [[*row, *[task.vocabulary.padding] * (width - len(row))] if learn_padding else row for row in own]


@pytest.mark.parametrize(
    ("kind", "learn_padding", "changes"),
    [
        ("sequential", False, {}),
        ("sequential", False, {"rows_in_sequential": True}),
        ("direct", False, {}),
        ("direct", False, {"mask_targets": False, "head_dim": 5}),
        ("direct", False, {"row_dim": 3, "bias_rate": 30.0}),
        ("direct", True, {"words": "places"}),
        ("direct", False, {"alpha": 0.0}),
        ("explanation", False, {}),
        ("explanation", True, {}),
    ],
)
def test_a_step_has_the_loss_and_the_gradient_of_each_sample_on_its_own(
    explained: Path, kind: str, learn_padding: bool, changes: dict[str, Any]
) -> None:
    """With rows that were propagated without the edges to what is predicted, in two micro-batches."""
    task_settings = {"mix": [kind], "learn_padding": learn_padding, "max_answer_tokens": 7}
    config = config_of(explained, task=task_settings, **changes)
    config.train.accumulation, config.tables.optimizer, config.tables.learning_rate = 2, "sgd", 1.0
    run = assemble_run(config, WORLD, open_store(config.data.dir, WORLD))
    model, task = model_of(run)
    run.dense.module.train()
    batch = task.sample(0)
    assert len({len(row[row != NO_ROW]) for row in batch.tokens}) > 1, "some are padded"
    left, right = [rows.requires_grad_() for rows in learnt(run)] if run.tables.shards else (torch.zeros(0),) * 2
    rows = left, right
    if run.tables.shards:
        left_out = set() if changes.get("mask_targets") is False else masked(run, batch)
        rows = propagated(left, right, matrix_of(run.store, left_out), 4)
    answers = padded_answers(task, batch, learn_padding)
    of_samples = [
        plain_log_probability(model, plain_input(model, (rows[0].float(), rows[1].float()), batch, sample), answer)
        for sample, answer in enumerate(answers)
    ]
    expected = -torch.stack(of_samples).sum() / sum(map(len, answers))
    named = [run.tables.shards[name] for name in run.tables.shards]
    of_rows = torch.autograd.grad(expected, [left, right], allow_unused=True) if named else ()
    before = learnt(run) if named else ()
    outcome = train_step(run, 0, prepare_step(run, 0))
    assert float(outcome.shares["cross_entropy"]) == pytest.approx(expected.item(), rel=1e-5)
    for was, now, gradient in zip(before, learnt(run) if named else (), of_rows, strict=True):
        moved = torch.zeros_like(was) if gradient is None else gradient
        assert torch.allclose(was - now, moved, rtol=1e-4, atol=1e-6)
    assert bool(named) == ("words" not in changes and "alpha" not in changes)
    if kind != "sequential" and named:
        assert any(gradient is not None and gradient.abs().max() > 1e-4 for gradient in of_rows)


@torch.no_grad()
def test_padding_is_looked_at_where_the_authors_way_is_asked_for(place: Path) -> None:
    for mask_padding in (True, False):
        run = run_of(place, mask_padding=mask_padding)
        model, task = model_of(run)
        model.eval()
        batch = task.sample(0)
        more = replace(
            batch,
            tokens=torch.nn.functional.pad(batch.tokens, (0, 5), value=NO_ROW),
            word=torch.nn.functional.pad(batch.word, (0, 5)),
        )
        one, other = (model(rows_of(run, each), each).logits for each in (batch, more))
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-5) == mask_padding


@pytest.mark.parametrize("changes", [{}, {"row_dim": 3}])
def test_every_parameter_has_a_gradient_from_any_batch(changes: dict[str, Any], place: Path) -> None:
    """Which DDP waits for, sequential prompts included, which have no rows."""
    run = run_of(place, **changes)
    model, task = model_of(run)
    for step, samples in product(range(2), (6, 1, 0)):
        batch = task.sample(step).samples(0, samples)
        rows = rows_of(run, batch)
        model.zero_grad(set_to_none=True)
        objective = TokenCrossEntropy(TokenCrossEntropyConfig(), model, task)
        loss = objective(model(rows, batch), rows, batch, Candidates(), None)["cross_entropy"]
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert (float(loss.detach()) == 0) == (samples == 0)


@torch.no_grad()
def exhaustive(run: Run, batch: PromptBatch, sample: int, items: list[int]) -> list[tuple[float, int]]:
    model, task = model_of(run)
    given = plain_input(model, rows_to_rank_by(run), batch, sample)
    scored = [(float(plain_log_probability(model, given, task.item_answers[item])), item) for item in items]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def prompts_to_rank(run: Run, number: int = 3) -> tuple[PromptBatch, Trie]:
    _, task = model_of(run)
    users = run.store.users("valid")[:number]
    batch = task.to_rank(users, run.store.evaluation_window(users, "valid")[0])
    return batch, make_trie(task.item_answers, torch.device("cpu"))


@torch.no_grad()
def test_beams_as_many_as_items_are_an_exhaustive_search(run: Run) -> None:
    model, _ = model_of(run)
    batch, trie = prompts_to_rank(run)
    excluded = Ragged(torch.tensor([0, 0, 0, 2]), torch.tensor([3, 47, 100, 130]))
    allowed = Allowed(trie, excluded, these=False)
    draft = model.read(rows_of(run, batch), batch)
    scores, items = beam_search(model, draft, len(batch), trie, 130, allowed)
    for sample in range(3):
        left_out = excluded.item[excluded.user == sample].tolist()
        expected = exhaustive(run, batch, sample, [item for item in range(1, 131) if item not in left_out])
        number = len(expected)
        assert items[sample, number:].tolist() == [NO_ROW] * (130 - number)
        assert sorted(items[sample, :number].tolist()) == sorted(item for _, item in expected)
        assert scores[sample, :number].tolist() == pytest.approx([score for score, _ in expected], abs=2e-4)
        assert items[sample, :3].tolist() == [item for _, item in expected[:3]]


@torch.no_grad()
def test_few_beams_are_full_without_repeats_or_what_is_excluded(run: Run) -> None:
    """Beams are led away from where nothing allowed lies, however likely."""
    model, _ = model_of(run)
    batch, trie = prompts_to_rank(run)
    draft = model.read(rows_of(run, batch), batch)
    best = beam_search(
        model, draft, 3, trie, 125, Allowed(trie, Ragged(torch.zeros(0).long(), torch.zeros(0).long()), these=False)
    )[1]
    for kept in (5, 30):  # the others, likelier ones first, are excluded
        items = best[:, : 130 - 5 - kept]
        user = torch.arange(3).repeat_interleave(items.shape[1])
        allowed = Allowed(trie, Ragged(user, items.flatten()), these=False)
        _, found = beam_search(model, draft, 3, trie, 5, allowed)
        for row, out in zip(found.tolist(), items.tolist(), strict=True):
            assert len(set(row)) == 5
            assert min(row) > 0
            assert not set(row) & set(out)


@torch.no_grad()
def test_candidates_are_scored_exactly_and_searched_alone(run: Run) -> None:
    model, task = model_of(run)
    candidates = torch.tensor([[3, 130, 13, 1, 113, 11], [5, NO_ROW, 50, 55, NO_ROW, 9]])
    batch = task.to_choose(np.array([4, 9]), candidates)
    trie = make_trie(task.item_answers, torch.device("cpu"))
    scores = answer_scores(model, model.read(rows_of(run, batch), batch), trie, candidates)
    pairs = Ragged(torch.arange(2).repeat_interleave(6)[candidates.flatten() > 0], candidates[candidates > 0])
    draft = model.read(rows_of(run, batch), batch)
    by_beams, items = beam_search(model, draft, 2, trie, 6, Allowed(trie, pairs, these=True))
    for sample in range(2):
        there = candidates[sample] != NO_ROW
        expected = {item: score for score, item in exhaustive(run, batch, sample, candidates[sample][there].tolist())}
        assert scores[sample][there].tolist() == pytest.approx(
            [expected[item] for item in candidates[sample][there].tolist()], abs=1e-4
        )
        assert (scores[sample][~there] == -torch.inf).all()
        found = dict(zip(items[sample].tolist(), by_beams[sample].tolist(), strict=True))
        found.pop(NO_ROW, None)
        assert found == pytest.approx(expected, abs=1e-4)


def test_items_that_are_written_alike_are_told(run: Run) -> None:
    with pytest.raises(UserError, match=r"^task.tokenizer: gives items 1 and 3 the same tokens; use another one$"):
        make_trie([[0, 1], [5, 1], [6, 1], [5, 1]], torch.device("cpu"))


def test_the_scorer_gives_lists_of_items_that_users_have_not_had(run: Run) -> None:
    result = evaluate_model(run, "valid", "strict", [5], per_user=True)
    assert result.per_user is not None
    assert result.users == len(run.store.users("valid"))
    for user, row in zip(result.per_user.users.tolist(), result.per_user.ranked[:, 0].tolist(), strict=True):
        cut = int(run.store.evaluation_window(np.array([user]), "valid")[0][0])
        own = run.store.items[run.store.offsets[user] :][:cut]
        assert len(set(row) - set(own.tolist()) - {NO_ROW}) == 5
    users, scorer = held_out_users(run, "valid").chunk(0), scorer_of(run, "valid")
    candidates = Ragged(torch.arange(len(users)).repeat_interleave(3), torch.tensor([7, 90, 2]).repeat(len(users)))
    assert isinstance(scorer, ListScorer)
    _, lists = scorer.scored_lists(users, users.seen, 5, candidates)
    assert lists.shape == (len(users), 1, 5)
    assert {tuple(sorted(row)) for row in lists[:, 0].tolist()} == {(NO_ROW, NO_ROW, 2, 7, 90)}


def test_a_run_that_is_gone_on_with_is_the_uninterrupted_one(place: Path, tmp_path: Path) -> None:
    def stop_early(run: Run) -> None:
        run.config.train.max_steps = 4

    config = config_of(place, tokenizer=False, dropout=0.1, gradient_checkpointing=True)
    config.train.accumulation = 2
    whole = train_in(config, tmp_path / "whole")
    train_in(config.model_copy(deep=True), tmp_path / "parts", stop_early)
    parts = train_in(config, tmp_path / "parts")
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, parts.model.get_parameter(name)), name
    for name, shard in whole.tables.shards.items():
        assert torch.equal(shard.weight, parts.tables.shards[name].weight)
    assert logged(tmp_path / "whole")[-1] == logged(tmp_path / "parts")[-1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": {"name": "next_item"}}, r"^model elmrec: reads text; set task.name=prompts$"),
        (
            {"objective": {"name": "full_softmax"}},
            r"^objective full_softmax: is fed with UserBatch, and task prompts gives",
        ),
        ({"model": {"name": "sasrec", "dim": 8}}, r"^objective.name: token_cross_entropy is of a model that writes"),
        (
            {"model": SETTINGS["model"] | {"t5": "/no/where"}},
            r"^model.t5: /no/where: there is no such directory here, and the hub gives none \(",
        ),
    ],
)
def test_what_does_not_go_together_is_told(place: Path, values: dict[str, Any], message: str) -> None:
    plain = {**SETTINGS, "data": {"dir": str(place / "store")}, "evaluation": {"top_n": [5], "metric": "recall@5"}}
    config = parse_config(plain | FEW | values, "test")
    with pytest.raises(UserError, match=message):
        assemble_run(config, WORLD, open_store(config.data.dir, WORLD))


def test_a_t5_is_taken_from_a_directory_with_its_weights_or_without(place: Path, tmp_path: Path) -> None:
    there = str(tmp_path / "t5")
    first = run_of(place)
    model, _ = model_of(first)
    with torch.no_grad():
        model.t5.shared.weight.add_(1.0)  # or its weights are those that the seed gives anyway
    model.t5.save_pretrained(there)
    taken, _ = model_of(run_of(place, t5=there))
    assert torch.equal(taken.t5.shared.weight, model.t5.shared.weight)
    assert taken.t5.config.dropout_rate == 0.0
    fresh, _ = model_of(run_of(place, t5=there, pretrained=False))
    assert fresh.t5.shared.weight.shape == model.t5.shared.weight.shape
    assert not torch.equal(fresh.t5.shared.weight, taken.t5.shared.weight)
    with pytest.raises(UserError, match=r"^model.dim: 8, and .*t5 has d_model 16; set model.dim=16$"):
        run_of(place, t5=there, dim=8)
    (tmp_path / "t5" / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"^model.t5: .*t5: its weights cannot be loaded \(.*set model.pretrained=false"
    ):
        run_of(place, t5=there)


@torch.no_grad()
def test_free_text_is_what_transformers_writes(run: Run) -> None:
    model, task = model_of(run)
    batch = task.to_explain(np.array([3, 8, 20]), torch.tensor([5, 60, 121]))
    rows, end = rows_of(run, batch), task.vocabulary.end
    found, sound = write_texts(model, model.read(rows, batch), 3, end, 9)
    assert sound
    for sample in range(3):
        given = plain_input(model, rows_to_rank_by(run), batch, sample)
        states = model.t5.encoder(inputs_embeds=given[None])
        expected = model.t5.generate(encoder_outputs=states, max_new_tokens=9, num_beams=1, do_sample=False)[
            0, 1:
        ].tolist()
        assert found[sample] == (expected[: expected.index(end)] if end in expected else expected)


def test_likeness_is_that_of_counted_words() -> None:
    def likeness(texts: list[str], references: list[str]) -> dict[str, float]:
        sums = Likeness()
        rouge = [sums.add([text], [reference])[0] for text, reference in zip(texts, references, strict=True)]
        assert sums.add([], []) == []
        return sums.bleu(WORLD) | dict(zip(ROUGES.values(), np.mean(rouge, axis=0), strict=True))

    same = likeness(["the cat sat on the mat"] * 2, ["the cat sat on the mat"] * 2)
    assert same == pytest.approx(dict.fromkeys(["bleu_1", "bleu_4", "rouge_1", "rouge_2", "rouge_l"], 100.0))
    found = likeness(["a cat sat", "dogs bark here"], ["the cat sat", "dogs bark loudly here now"])
    precision, brevity = 5 / 6, np.exp(1 - 8 / 6)
    assert found["bleu_1"] == pytest.approx(100 * precision * brevity)
    one, other = 2 / 3, 2 * (3 / 3) * (3 / 5) / (3 / 3 + 3 / 5)
    assert found["rouge_1"] == pytest.approx(100 * (one + other) / 2)


def test_without_rows_nothing_is_propagated_and_nothing_leaks() -> None:
    pod = ElmrecConfig(alpha=0.0, graph="published")
    assert (pod.propagation(), pod.label) == (None, "elmrec")
    assert "graph" not in pod.summary()
    leaky = ElmrecConfig(graph="published")
    assert leaky.propagation() is not None
    assert leaky.label == "elmrec (leaky graph)"
    assert "leak" in leaky.summary()


def test_biases_for_places_move_as_many_times_as_far_as_is_asked_for(place: Path) -> None:
    """By Adam's first step, which is the learning rate for whatever has a gradient; the answers at the start are the
    same."""
    runs = [run_of(place, bias_rate=rate) for rate in (1.0, 8.0)]
    models = [model_of(run)[0] for run in runs]
    batch = runs[0].task.sample(1)
    first, second = (model.encode(rows_of(run, batch), batch).logits for model, run in zip(models, runs, strict=True))
    torch.testing.assert_close(first, second)
    before = [biases_of(model) for model in models]
    for run in runs:
        train_step(run, 1, prepare_step(run, 1))
    moved = [(biases_of(model) - was).abs() for model, was in zip(models, before, strict=True)]
    assert (moved[0] > 0).any()
    torch.testing.assert_close(moved[1], 8 * moved[0], rtol=0.01, atol=1e-5)


def test_few_dimensions_of_rows_lie_where_random_tokens_have_nothing(place: Path) -> None:
    """And the matrix that brings them there leaves them as long as they are."""
    model, _ = model_of(run_of(place, row_dim=3))
    directions, tokens = model.widen.weight, model.t5.shared.weight
    torch.testing.assert_close(directions.T @ directions, torch.eye(3), atol=1e-6, rtol=0)
    assert (tokens @ directions).abs().max() < 1e-5
    assert tokens.std() > 0.5
    assert [spec.dim for spec in model.tables()] == [3, 3]


def biases_of(model: Elmrec) -> Tensor:
    """Of the encoder and the decoder, between any two of 5 tokens."""
    stacks = [stack.block[0].layer[0].SelfAttention for stack in (model.t5.encoder, model.t5.decoder)]
    return torch.stack([stack.compute_bias(5, 5).detach() for stack in stacks])


def test_its_encoder_has_the_attention_of_this_package_and_computes_again_what_it_did(place: Path) -> None:
    """Gradient checkpointing changes nothing, dropout included."""
    found = []
    for again in (False, True):
        run = run_of(place, gradient_checkpointing=again, dropout=0.3, num_blocks=2)
        assert run.model.t5.encoder.config._attn_implementation == attention.NAME
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            blocks = attention._blocks
            patch.setattr(attention, "_blocks", lambda *of, real=blocks, to=calls: to.append(1) or real(*of))
            train_step(run, 1, prepare_step(run, 1))
        assert calls
        found.append({name: parameter.clone() for name, parameter in run.model.named_parameters()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_rows_may_begin_as_those_of_another_model(place: Path) -> None:
    shared = config_of(place).model_dump(mode="json")
    sections = {"model": {"name": "lightgcn", "dim": SETTINGS["model"]["dim"]}, "task": {"history_length": 1}}
    few = {"train": FEW["train"] | {"max_steps": 2}}
    before = train_in(parse_config({"data": shared["data"]} | few | sections, "test"), place / "lightgcn")
    source, told = resolve(place / "lightgcn"), []

    def begun(**model: Any) -> Run:
        config = config_of(place, **model)
        config.train.init_from, config.train.init_only_rows = source.path, True
        store = open_store(config.data.dir, WORLD)
        return assemble_run(config, WORLD, store, lambda made: told.extend(take_weights(made, source)))

    run = begun()
    for name, shard in run.tables.shards.items():
        assert torch.equal(shard.weight, before.tables.shards[name].weight), name
    assert len(told) == 3
    with pytest.raises(UserError, match=r"\(lightgcn\) has no table that elmrec has \(none\); start from a model that"):
        begun(words="places")


@pytest.mark.parametrize("words", ["rows", "places"])
def test_a_training_may_go_on_from_another_one(words: str, place: Path) -> None:
    """As from few candidates to many; also one without tables."""
    few = place / f"few-{words}"
    before = train_in(config_of(place, words=words), few)
    config = config_of(place, task={"num_negatives": 12}, words=words)
    config.train.init_from = few
    store = open_store(config.data.dir, WORLD)
    run = assemble_run(config, WORLD, store, lambda made: take_weights(made, resolve(few)) and None)
    best = load_trained(few, WORLD)
    assert before.progress.step == 8
    for name, parameter in best.model.named_parameters():
        assert torch.equal(run.model.get_parameter(name), parameter), name
    for name, shard in best.tables.shards.items():
        assert torch.equal(run.tables.shards[name].weight, shard.weight), name
