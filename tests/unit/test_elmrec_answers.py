"""What a trained ELMRec is used for: lists at any number of ranks, explanations, recommendations; what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
import yaml
from rouge_score import rouge_scorer
from torch import Tensor
from transformers import T5Config
from transformers.modeling_outputs import BaseModelOutput

from eupmim_dist import compare, fit, load, report
from eupmim_dist.api import evaluate
from eupmim_dist.assemble import assemble_run, load_trained, open_store
from eupmim_dist.bench.elmrec import measure_elmrec
from eupmim_dist.bench.published import Published, texts_of
from eupmim_dist.checkpoint.layout import open_checkpoint
from eupmim_dist.config.load import parse_config
from eupmim_dist.convert import export_vectors
from eupmim_dist.data.heldout import HeldOutUsers, grouped_range
from eupmim_dist.data.prompts.templates import KINDS
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.explanations import evaluate_explanations
from eupmim_dist.evaluation.runner import evaluate_model, excluded_items, negatives_and_target, scorer_of
from eupmim_dist.evaluation.scorers import beams
from eupmim_dist.evaluation.scorers.beams import BeamScorer
from eupmim_dist.evaluation.statistics import bootstrap_interval
from eupmim_dist.models.elmrec.model import Elmrec
from eupmim_dist.recommending import recommend
from eupmim_dist.reporting.examples import chosen_users
from eupmim_dist.tasks.prompts.task import Prompts
from eupmim_dist.train.skipped import Diverged
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import prepare_step, train_step
from tests.prompts import SETTINGS, unigram_tokenizer, with_explanations
from tests.runs import WORLD, command_line, train_in
from tests.stores import negatives

pytestmark = pytest.mark.usefixtures("one_thread")
MOST = 16
TEXTS = [f"{'so ' * (n % 3)}good" for n in range(29)] + ["so long that not all of it is learnt"]
ITEMS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("answers")
    with_explanations(place, TEXTS, num_items=ITEMS, num_users=45, negatives=negatives(45, ITEMS, 12))
    unigram_tokenizer(place / "tokenizer")
    return place


def settings_of(place: Path, mix: list[str] | None = None, **model: Any) -> dict[str, Any]:
    kinds = mix or ["sequential", "direct"]
    return {
        "data": {"dir": str(place / "store")},
        "task": SETTINGS["task"] | {"tokenizer": str(place / "tokenizer"), "mix": kinds, "max_answer_tokens": MOST},
        "model": SETTINGS["model"] | model,
        "objective": SETTINGS["objective"],
        "train": {"global_batch_size": 8, "learning_rate": 0.02, "l2": 0.0, "max_steps": 2},
        "evaluation": {"metric": "recall@5", "top_n": [5], "batch_size": 40, "every": 2},
    }


def run_of(place: Path, steps: int = 0, mix: list[str] | None = None, **model: Any) -> Run:
    config = parse_config(settings_of(place, mix, **model), "test")
    run = assemble_run(config, WORLD, open_store(config.data.dir, WORLD))
    run.dense.module.train()
    for step in range(steps):
        train_step(run, step, prepare_step(run, step))
    run.model.eval()
    return run


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return run_of(place, steps=4)


@pytest.fixture(scope="module")
def teller(place: Path) -> Run:
    return run_of(place, steps=60, mix=["explanation"])


def beam_scorer(run: Run, **settings: Any) -> BeamScorer:
    before = run.config.evaluation
    run.config.evaluation = before.model_copy(update=settings)
    scorer = scorer_of(run, "test")
    run.config.evaluation = before
    assert isinstance(scorer, BeamScorer)
    return scorer


def lists_of(run: Run, scorer: BeamScorer, world_size: int, direct: bool) -> tuple[Tensor, Tensor]:
    """Scores and items of all test users as so many ranks have them, one after another."""
    found = []
    for index in range(2):
        for rank in range(world_size):
            users = HeldOutUsers(
                run.store,
                "test",
                run.store.users("test"),
                run.task.to_rank,
                chunk_size=40,
                rank=rank,
                world_size=world_size,
                group=scorer.group,
            )
            chunk = users.chunk(index)
            candidates = negatives_and_target(chunk, ITEMS + 1) if direct else None
            excluded = excluded_items(chunk.seen, len(chunk), True, True)
            assert len(chunk) <= users.block(index)
            found.append(scorer.scored_lists(chunk, excluded, 5, candidates))
    scores, items = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, items


@pytest.mark.parametrize("direct", [False, True])
def test_lists_are_the_same_at_any_number_of_ranks_to_the_last_bit(
    run: Run, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = beam_scorer(run)
    scores, items = lists_of(run, scorer, 1, direct)
    assert len(items) == len(run.store.users("test"))
    for world_size in (2, 3, 5):
        again = lists_of(run, scorer, world_size, direct)
        assert torch.equal(again[0], scores)
        assert torch.equal(again[1], items)
    monkeypatch.setattr(beams, "MOST_SCORES", 1)  # one user at a time
    alone = lists_of(run, scorer, 1, direct)
    assert torch.allclose(alone[0], scores, atol=1e-4)


def test_candidates_may_be_chosen_by_beams(run: Run) -> None:
    exact = lists_of(run, beam_scorer(run), 1, True)
    by_beams = lists_of(run, beam_scorer(run, choose="beams", more_beams=30), 1, True)
    assert torch.allclose(*(lists[0] for lists in (exact, by_beams)), atol=1e-4)
    few = lists_of(run, beam_scorer(run, choose="beams", more_beams=0), 1, True)
    assert (few[1] > 0).all()
    assert (few[0] <= exact[0] + 1e-4).all()


def test_what_is_not_a_number_ends_an_evaluation(place: Path) -> None:
    """With lists of some order, it would be a figure like any other."""
    run = run_of(place, mix=["sequential", "direct", "explanation"])
    assert isinstance(run.model, Elmrec)
    with torch.no_grad():
        run.model.t5.decoder.final_layer_norm.weight[0] = torch.nan
    for protocol in ("strict", "elmrec_direct"):
        with pytest.raises(Diverged, match=r"^Elmrec: what it writes has scores that are no numbers; its training has"):
            evaluate_model(run, "test", protocol, [5])
    with pytest.raises(Diverged, match=r"^Elmrec: what it writes"):
        evaluate_explanations(run, "test")


def test_every_explanation_is_written_once_and_judged_as_kept_libraries_do(teller: Run) -> None:
    result = evaluate_explanations(teller, "test")
    assert result.texts is not None
    assert result.users == len(result.texts) == 2 * len(TEXTS)
    assert result.as_dict()["explanations"] == result.users
    store = teller.store
    asked = {(f"u{n}", f"i{item}") for n in range(30) for item in store.items[: store.offsets[n + 1]][-2:]}
    assert set(zip(result.texts["user"], result.texts["item"], strict=True)) == asked
    assert isinstance(teller.task, Prompts)
    written, references = result.texts["written"].to_list(), result.texts["reference"].to_list()
    for user, reference in zip(result.texts["user"], references, strict=True):
        text = TEXTS[int(user[1:])]
        assert reference == text if user != "u29" else (text.startswith(reference) and 8 < len(reference) < len(text))
    assert any(written)
    users, items = (store.users_of_raw_ids(result.texts["user"]), [int(i[1:]) for i in result.texts["item"]])
    alone = teller.task.to_explain(np.array(users[:1]), torch.tensor(items[:1]))
    rows = teller.tables.lookup(teller.model.uses(alone)).rows[0]
    assert isinstance(teller.model, Elmrec)
    states = teller.model._read(rows, alone)[0]
    generated = teller.model.t5.generate(
        encoder_outputs=BaseModelOutput(states), max_new_tokens=MOST - 1, num_beams=1, do_sample=False, eos_token_id=1
    )
    assert written[0] == teller.task.vocabulary.decode(generated[0].tolist())
    for order in (1, 4):
        bleu = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        assert result.metrics[f"bleu_{order}"] == pytest.approx(bleu.corpus_score(written, [references]).score)
    rouge = rouge_scorer.RougeScorer(["rougeL"])
    found = [rouge.score(*pair)["rougeL"].fmeasure for pair in zip(references, written, strict=True)]
    assert result.metrics["rouge_l"] == pytest.approx(100 * np.mean(found))
    assert result.texts["rouge_l"].to_list() == [100 * each for each in found]
    assert result.metrics["rouge_l"] > 0
    assert evaluate(teller, protocols="elmrec_explanation").frame()["top_n"].to_list() == [None]


def test_models_are_compared_by_what_they_write(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, protocol = settings_of(place, ["explanation"]), "elmrec_explanation"
    two = one | {"train": one["train"] | {"max_steps": 8}, "model": one["model"] | {"graph": "history"}}
    compared = compare({"one": one, "two": two}, protocol=protocol, seeds=[1, 2], out=tmp_path / "out")
    assert compared.title == f"test split, protocol {protocol}, {2 * len(TEXTS)} explanations"
    for row in compared.rows:
        name = row.model.removesuffix(" (graph of histories)")
        assert (name == row.model) == (name == "one")
        results = [evaluate(tmp_path / f"out/{name}-seed{seed}", protocols=protocol)[0] for seed in (1, 2)]
        for name, figure in row.figures.items():
            assert figure.mean == pytest.approx(np.mean([result.metrics[name] for result in results]))
            of_texts = np.mean([result.texts[name] for result in results], axis=0)
            assert (figure.low, figure.high) == pytest.approx(bootstrap_interval(of_texts))
        assert [*row.figures] == ["rouge_1", "rouge_2", "rouge_l"]
        different = [len(set(result.texts["written"])) / result.users for result in results]
        assert row.others["different"] == pytest.approx(np.mean(different))
        assert row.others["bleu_4"] == pytest.approx(np.mean([result.metrics["bleu_4"] for result in results]))
    means = [row.figures["rouge_1"].mean for row in compared.rows]
    assert means == sorted(means, reverse=True)
    assert "of rouge 1 against the best, over explanations" in compared.notes[2]
    assert "rouge_1_low" in compared.frame().columns
    again, silent, cut = tmp_path / "out/one-seed1", tmp_path / "silent.yaml", tmp_path / "cut.yaml"
    silent.write_text(yaml.safe_dump(settings_of(place)))
    cut.write_text(yaml.safe_dump(one | {"task": one["task"] | {"max_answer_tokens": 5}}))
    assert command_line(f"consolidate {again} --out {tmp_path / 'model'}") == 0  # with a tokenizer of its own
    both = f"{again} {tmp_path / 'model'}"
    assert command_line(f"compare {both} --protocol {protocol} --out {tmp_path / 'more'}") == 0
    assert "rouge l" in capsys.readouterr().out
    for options, told in (
        ("--baseline popularity", "--baseline: is of lists, and"),
        ("--top-n 5", "--top-n: is of lists, and"),
        (f"{silent}", "silent: --protocol elmrec_explanation: its training asked for no explanations, so"),
        (f"{cut} --set train.max_steps=4", "cut for one-seed1 by"),
        (
            f"configs/models/comirec_dr.yaml --set data.dir={place / 'store'} --set evaluation.top_n=[5,10]",
            "writes, and here is ComiRecDR",
        ),
    ):
        assert command_line(f"compare {again} {options} --protocol {protocol} --out {tmp_path / 'none'}") == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()


def test_a_page_has_the_lists_that_a_model_wrote_by_its_own_protocol(place: Path, tmp_path: Path) -> None:
    values = settings_of(place)
    values["evaluation"] |= {"protocol": "elmrec_direct"}
    fit(values, tmp_path / "run")
    graph = {"data": values["data"], "model": {"name": "lightgcn", "dim": 8}, "train": {"max_steps": 2}}
    fit(graph | {"evaluation": {"metric": "recall@5", "top_n": [5], "every": 2}}, tmp_path / "graph")
    report([tmp_path / "run", tmp_path / "graph"], tmp_path / "page.html", users=2, baselines="popularity")
    page = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "page.html").read_text()).split())
    assert "protocol elmrec_direct, N = 10" in page
    for result in evaluate(tmp_path / "run", protocols="elmrec_direct", top_n=10, baselines="popularity"):
        assert f"{result.metrics['recall@10']:.4f}" in page
    assert "these runs are judged by different protocols; all figures here are by elmrec_direct" in page
    for name in ("run", "graph"):  # one that writes its lists, and one that is ranked by a vector
        model = load(tmp_path / name)
        judged = evaluate_model(model, "test", "elmrec_direct", [10], per_user=True).per_user
        assert judged is not None
        for user in chosen_users(model.store, "test", 2).tolist():
            ranked = judged.ranked[judged.users.tolist().index(user), 0].tolist()
            taken = int(model.store.items[model.store.offsets[user + 1] - 1])
            hits = "".join(f"{'✓ ' * (item == taken)}Item {item} " for item in ranked)
            assert f"{name} : {ranked.count(taken)} of 10 taken {hits.strip()}" in page


def test_a_training_is_judged_by_what_is_written_and_tested_by_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings_of(place, ["explanation"])
    values["train"] |= {"max_steps": 6}
    with_sample = {"protocol": "elmrec_explanation", "metric": "rouge_1", "every": 2, "users": 40}
    values["evaluation"] = with_sample
    run = fit(values, tmp_path / "run", baselines=None)
    [result] = run.results
    assert (result.protocol, result.users) == ("elmrec_explanation", 2 * len(TEXTS))
    assert f"valid elmrec_explanation rouge_1 {run.best_value:.4f} of 40 explanations" in capsys.readouterr().out
    judged = evaluate_explanations(run.model, "valid", sample=40)
    assert judged.metrics["rouge_1"] == pytest.approx(run.best_value)
    assert set(judged.texts.rows()) <= set(evaluate_explanations(run.model, "valid").texts.rows())
    written = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert written["explanations"] == result.users
    report(run, tmp_path / "page.html", baselines=(), users=2)
    assert "here are its lists" in (tmp_path / "page.html").read_text()
    for metric, protocol, told in (
        ("recall@10", "elmrec_explanation", "metric must be rouge_1, .* of elmrec_explanation"),
        ("rouge_1", "strict", "metric rouge_1 is of protocol elmrec_explanation; set that too"),
        ("rouge_3", "strict", "evaluation.metric"),
    ):
        values["evaluation"] = with_sample | {"metric": metric, "protocol": protocol}
        with pytest.raises(UserError, match=told):
            fit(values, tmp_path / "none")
    values = settings_of(place)
    values["evaluation"] = with_sample
    with pytest.raises(UserError, match="asked for no explanations"):
        fit(values, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_model_that_is_handed_on_needs_nothing_but_its_directory(place: Path, tmp_path: Path) -> None:
    """Not the T5 nor the tokenizer that it was made from, which are wherever it was trained."""
    unigram_tokenizer(tmp_path / "words")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5Config(vocab_size=1000, **sizes).save_pretrained(tmp_path / "sizes")
    values = settings_of(place, t5=str(tmp_path / "sizes"), pretrained=False)
    values["task"] |= {"tokenizer": str(tmp_path / "words")}
    fit(values, tmp_path / "run")
    assert command_line(f"consolidate {tmp_path}/run --out {tmp_path}/model") == 0
    expected = evaluate(tmp_path / "run", protocols="elmrec_direct", top_n=5)[0].metrics
    for there in ("words", "sizes", "run"):
        shutil.rmtree(tmp_path / there)
    shutil.move(tmp_path / "model", tmp_path / "handed on")
    found = evaluate(tmp_path / "handed on", protocols="elmrec_direct", top_n=5)[0].metrics
    assert found == expected
    assert command_line(f"verify '{tmp_path}/handed on'") == 0
    card = (tmp_path / "handed on/README.md").read_text()
    assert "an item is as good as the probability of its number" in card
    assert "multi-interest" not in card
    assert "export" not in card
    assert "- `t5/`: what transformers makes the t5 of\n- `tokenizer/`: " in card
    more = {"train.max_steps": 1, "data.dir": str(place / "store"), "train.global_batch_size": 8}
    limits = {"evaluation.top_n": [5], "evaluation.metric": "recall@5"}
    own = {"config": tmp_path / "handed on/config.json"}
    for name, config in (("alone", {}), ("by its own", own)):
        tuned = fit(**config, run_dir=tmp_path / name, init_from=tmp_path / "handed on", overrides=more | limits)
        assert (tuned.model.config.task.name, tuned.model.config.objective.name) == ("prompts", "token_cross_entropy")
        assert tuned.model.config.task.tokenizer == str(tmp_path / "handed on/tokenizer")
    file = tmp_path / "handed on/tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace("user", "used"))
    with pytest.raises(UserError, match=r"tokenizer.json: (damaged|missing or cut short)"):
        evaluate(tmp_path / "handed on", protocols="elmrec_direct", top_n=5)


def test_what_was_given_the_answers_says_so_wherever_it_goes(place: Path, tmp_path: Path) -> None:
    leaky = settings_of(place, graph="published")
    fit(leaky, tmp_path / "leaky")
    [row] = compare({"mine": tmp_path / "leaky"}, out=tmp_path / "out").rows
    assert row.model == "mine (leaky graph)"
    for options in ({}, {"init_only_rows": True}):
        honest = settings_of(place)
        honest["train"] |= {"init_from": str(tmp_path / "leaky"), **options}
        with pytest.raises(UserError, match=r"elmrec \(leaky graph\)\) was given what is held out"):
            fit(honest, tmp_path / "honest")
    leaky["train"] |= {"init_from": str(tmp_path / "leaky")}
    fit(leaky, tmp_path / "more")


def test_prompts_that_are_too_long_to_judge_by_are_told_before_any_step(place: Path, tmp_path: Path) -> None:
    values = settings_of(place, ["sequential", "direct"])
    values["task"] |= {"num_negatives": 1, "max_tokens": 30, "history_length": 1}
    values["evaluation"] |= {"protocol": "elmrec_direct"}
    with pytest.raises(UserError, match="max_tokens"):
        fit(values, tmp_path / "run")
    values["evaluation"] |= {"protocol": "strict"}
    values["task"] |= {"num_negatives": 20}
    with pytest.raises(UserError, match="max_tokens"):
        fit(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("total", "world_size"), [(0, 3), (16, 3), (17, 2), (60, 4), (33, 1)])
def test_groups_are_one_ranks_and_everything_is_somebodys(total: int, world_size: int) -> None:
    parts = [grouped_range(total, 16, rank, world_size) for rank in range(world_size)]
    assert [place for first, stop in parts for place in range(first, stop)] == list(range(total))
    assert all(first % 16 == 0 or first == total for first, _ in parts)


def test_the_best_of_all_items_are_recommended(run: Run) -> None:
    run.config.evaluation.more_beams = 50  # so that nothing is missed
    found = recommend(run, ["u3", "u9"], 5)
    run.config.evaluation.more_beams = 10
    assert found["user"].to_list() == ["u3"] * 5 + ["u9"] * 5
    users = np.array([3, 9])
    every = torch.arange(1, ITEMS + 1).expand(2, -1)
    prompts = run.task.to_rank(users, run.store.lengths(users))
    model, trie = run.model, beam_scorer(run).trie
    assert isinstance(model, Elmrec)
    with torch.no_grad():
        rows = run.tables.lookup(model.uses(prompts)).rows[0]
        scores = beams.answer_scores(model, model.read(rows, prompts), trie, every)
    for n, user in enumerate(users.tolist()):
        own = run.store.items[run.store.offsets[user] : run.store.offsets[user + 1]].tolist()
        allowed = [item for item in range(1, ITEMS + 1) if item not in own]
        best = sorted(allowed, key=lambda item: -float(scores[n, item - 1]))[:5]
        assert found["item"].to_list()[5 * n : 5 * n + 5] == [f"i{item}" for item in best]
        assert found["score"].to_list()[5 * n : 5 * n + 5] == pytest.approx(
            [float(scores[n, item - 1]) for item in best], abs=1e-4
        )
    few = recommend(run, "u3", 5, items=["i1", "i2", "i3", "i4"], exclude_seen=False)
    assert sorted(few["item"].to_list()) == ["i1", "i2", "i3", "i4"]
    history = recommend(run, "u3", 3, histories=[["i7", "i8"]])
    assert len(history) == 3
    assert not set(history["item"]) & {"i7", "i8"}


def test_what_makes_no_sense_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    for option, told in (("why", "why"), ("per_interest", "per_interest")):
        with pytest.raises(UserError, match=f"^{told}: is of a model that ranks by interests, and elmrec writes lists"):
            recommend(run, "u3", 5, **{option: True})
    with pytest.raises(UserError, match=r"histories: a user is asked for by his name in the store"):
        recommend(run, histories=[["i7", "i8"]])
    with pytest.raises(UserError, match=r"^protocol seed: has a list for each interest, and elmrec has none; use str"):
        evaluate(run, protocols="seed", top_n=5)
    with pytest.raises(UserError, match=r"^protocols elmrec_explanation: is of a model that writes, and here is no"):
        evaluate(data=run.store.path, baselines="popularity", protocols="elmrec_explanation")
    with pytest.raises(UserError, match=r"^overrides train.max_steps: is no setting of an evaluation; give one of"):
        evaluate(run, overrides=["train.max_steps=3"])
    with pytest.raises(UserError, match=r"^overrides evaluation.top_n: is no setting of an evaluation; .* top_n$"):
        evaluate(run, overrides=["evaluation.top_n=[5]"])
    assert command_line(f"evaluate {tmp_path} --texts {tmp_path}/a.jsonl") == 2


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"words": "places"}])
def test_without_rows_there_are_no_tables_and_all_else_works(
    place: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = run_of(place, **changes).config
    trained = train_in(config, tmp_path / "run")
    assert not trained.tables.shards
    again = load_trained(tmp_path / "run", WORLD)
    lists = [evaluate_model(each, "test", "elmrec_direct", [5]).metrics for each in (trained, again)]
    assert lists[0] == lists[1]
    with pytest.raises(UserError, match=r"^model elmrec: is ranked by beams: no product of vectors says what it re"):
        export_vectors(open_checkpoint(tmp_path / "run/checkpoints/step-000000002"), tmp_path / "vectors")


@pytest.mark.parametrize("row_dim", [None, 6])
def test_the_published_procedure_that_is_measured_computes_the_same(row_dim: int | None, place: Path) -> None:
    """Where its ways are asked for: padding learned and looked at, no edges left out, nothing added to other tokens."""
    made = run_of(place, mix=["direct"], mask_padding=False, mask_targets=False, row_dim=row_dim)
    made.config.train.l2 = 0.0
    assert isinstance(made.task, Prompts)
    made.task.config.learn_padding = True
    published = Published(made)
    sampler, number = made.task.samplers["direct"], KINDS.index("direct")
    answers = [str(item) for item in sampler.answers(0).tolist()]
    expected = published.loss(texts_of(sampler.ask(0, 0, 8), number), number, answers)
    share = train_step(made, 0, prepare_step(made, 0)).shares["cross_entropy"]
    assert float(share) == pytest.approx(float(expected.detach()), rel=1e-5)
    measured = measure_elmrec(made.config, WORLD, users=4, batch=4, steps=1, rounds=1)
    assert set(measured["ms"]) == {
        "evaluation, sequential, a user",
        "evaluation, direct, a user",
        "training step, direct",
    }
    with pytest.raises(
        UserError, match=r"^bench elmrec: measures model.name elmrec with rows of users and items; give"
    ):
        measure_elmrec(run_of(place, alpha=0.0).config, WORLD, users=4, batch=4, steps=1, rounds=1)
