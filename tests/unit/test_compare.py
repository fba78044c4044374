"""Models side by side: each figure against a naive one, trainings done once, mistakes before any training."""

import json
import math
import os
import re
import statistics as plain
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console
from rich.measure import Measurement

from eupmim_dist import Callback, Comparison, UserError, compare, fit, load
from eupmim_dist.assemble import without_model
from eupmim_dist.cli.compare import as_table
from eupmim_dist.comparison import work
from eupmim_dist.comparison.effort import training_seconds
from eupmim_dist.comparison.rows import METRICS, Figure, Row, effective_number
from eupmim_dist.comparison.text import compact, cost, in_lines, in_one_line, markdown, quality
from eupmim_dist.config.load import load_config
from eupmim_dist.config.schema import Config
from eupmim_dist.evaluation.baselines import choose_history
from eupmim_dist.evaluation.generation.likeness import ROUGES
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.runner import Result, evaluate_model, evaluate_scorer, held_out_users, ranking_of
from eupmim_dist.evaluation.scorers.interface import make_scorer
from eupmim_dist.evaluation.statistics import bootstrap_interval, holm, paired_p_value
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.progress import duration
from eupmim_dist.train.state import Run
from tests.runs import WORLD, command_line
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ITEMS = 30
TOP_N = 5
SETTINGS: dict[str, Any] = {
    "data": {"dir": "store"},
    "task": {"history_length": 6},
    "objective": {"num_negatives": 5},
    "train": {"global_batch_size": 8, "learning_rate": 0.01, "log_every": 2, "max_steps": 6, "threads": 1},
    "evaluation": {"every": 3, "metric": "recall@5", "patience": 0, "top_n": [5]},
}


def settings(name: str) -> dict[str, Any]:
    return {**SETTINGS, "model": {"name": name, "dim": 8}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores, configurations `two.yaml` (two interests) and `one.yaml`, a finished run, and a comparison of them."""
    root = tmp_path_factory.mktemp("compare")
    small_store(root / "store", num_users=100, num_items=NUM_ITEMS)
    small_store(root / "other", seed=9)
    small_store(root / "unsplit", num_users=4)  # all of them in training
    two = settings("comirec_dr")
    two["model"]["num_interests"] = 2
    (root / "two.yaml").write_text(yaml.safe_dump(two))
    (root / "one.yaml").write_text(yaml.safe_dump(settings("youtube_dnn")))
    pl.DataFrame({"item": [f"i{i}" for i in range(1, 31)], "category": [i % 3 for i in range(30)]}).write_csv(
        root / "categories.csv"
    )
    before = os.getcwd()
    os.chdir(root)
    try:
        fit(settings("youtube_dnn"), "run")
        line = "compare two.yaml run --baseline popularity,ease --seeds 1,2 --top-n 5 --categories categories.csv"
        assert command_line(f"{line} --out out --json all.json") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def again(root: Path) -> Comparison:
    """The same from Python, which finds all trainings finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(work, "train_alone", lambda *args: pytest.fail("trained again"))
        baselines = ["popularity", "ease"]
        return compare(
            ["two.yaml", "run"], baselines=baselines, seeds=[1, 2], top_n=TOP_N, categories="categories.csv", out="out"
        )


def evaluated(place: Path) -> dict[str, list[Result]]:
    """The evaluations that it is made of, each done by itself."""

    def of_run(run_dir: str) -> Result:
        return evaluate_model(load(run_dir), "test", "strict", [TOP_N], per_user=True)

    found = {"two": [of_run("out/two-seed1"), of_run("out/two-seed2")], "run": [of_run("run")]}
    setup = without_model(Config(task={"history_length": 6}), WORLD, load("run").store)
    users = held_out_users(setup, "test")
    for name in ("popularity", "ease"):
        scorer = make_scorer(name, ranking_of(setup))
        choose_history(scorer, name, setup, TOP_N)
        found[name] = [evaluate_scorer(scorer, name, users, PROTOCOLS["strict"], [TOP_N], WORLD, per_user=True)]
    return found


def test_every_figure_is_that_of_the_evaluations_one_by_one(place: Path, again: Comparison) -> None:
    found = evaluated(place)
    assert [row.model for row in again.rows] == sorted(
        found, key=lambda name: -plain.mean(result.metrics["recall@5"] for result in found[name])
    )
    of_users = {}
    for row in again.rows:
        results = found[row.model]
        assert row.seeds == ([1, 2] if row.model == "two" else [])
        for metric in METRICS:
            figure, means = row.figures[metric], [result.metrics[f"{metric}@5"] for result in results]
            assert figure.mean == pytest.approx(plain.mean(means))
            assert figure.std == (pytest.approx(plain.stdev(means)) if len(means) > 1 else None)
            users = sum(result.per_user.metrics[f"{metric}@5"] for result in results) / len(results)
            assert (figure.low, figure.high) == pytest.approx(bootstrap_interval(users))
            of_users[row.model, metric] = users
        covered = [len({*result.per_user.ranked.ravel().tolist()}) / NUM_ITEMS for result in results]
        assert row.others["coverage"] == pytest.approx(plain.mean(covered))
        categories = [(item - 1) % 3 for item in range(NUM_ITEMS + 1)]
        pairs = [
            categories[one] != categories[other]
            for result in results
            for [ranked] in result.per_user.ranked.tolist()
            for place_, one in enumerate(ranked)
            for other in ranked[:place_]
        ]
        assert row.others["diversity"] == pytest.approx(plain.mean(pairs))
        shares = [result.interests.share for result in results if result.interests]
        effective = [math.prod(part**-part for part in share if part) for share in shares]
        assert row.interests == (pytest.approx(plain.mean(effective)) if row.model == "two" else None)
        assert row.num_interests == (2 if row.model == "two" else None)
    best, *others = (row.model for row in again.rows)
    expected = holm([paired_p_value(of_users[best, "recall"], of_users[other, "recall"]) for other in others])
    assert [row.p_value for row in again.rows] == [None, *expected]
    assert len({row.p_value for row in again.rows}) > 2


def test_costs_are_those_of_the_runs(place: Path, again: Comparison) -> None:
    for row in again.rows:
        if row.kind == "baseline":
            assert (row.dense_parameters, row.table_parameters, row.steps) == (None, None, None)
            continue
        run_dirs = [f"out/{row.model}-seed{seed}" for seed in row.seeds] or [row.model]
        assert row.dense_parameters == sum(p.numel() for p in load(run_dirs[0]).model.parameters())
        assert row.table_parameters == (NUM_ITEMS + 1) * 8
        assert row.steps == 6
        lines = [json.loads(line) for run in run_dirs for line in Path(run, "metrics.jsonl").read_text().splitlines()]
        windows = [line["seconds/training"] for line in lines if "seconds/training" in line]
        assert row.train_seconds == pytest.approx(sum(windows) / len(run_dirs))
        assert row.users_per_second > 0


def test_what_the_command_line_wrote_is_what_python_gives(place: Path, again: Comparison) -> None:
    written = json.loads((place / "all.json").read_text())
    assert written == json.loads((place / "out/comparison.json").read_text()) | {
        "made_by": written["made_by"],  # this one was written by a call from Python
        "rows": written["rows"],
    }
    for mine, theirs in zip(json.loads(json.dumps(again.as_dict()))["rows"], written["rows"], strict=True):
        for timed in ("users_per_second", *(["train_seconds"] if mine["kind"] == "baseline" else [])):
            del mine[timed], theirs[timed]
        assert mine == theirs
    assert written["made_by"]["command"].startswith("eupmim-dist compare two.yaml run")
    assert written["made_by"]["seeds"] == [1, 2]
    assert (written["protocol"], written["users"], written["top_n"]) == ("strict", 20, 5)
    frame = again.frame()
    assert frame["recall"].to_list() == [row.figures["recall"].mean for row in again.rows]
    assert {"recall_low", "ndcg_std", "hit_rate_high", "p_value", "train_seconds"} <= set(frame.columns)
    text = (place / "out/comparison.md").read_text()
    for row in again.rows:
        assert f"| {row.model} | {row.figures['recall'].mean:.4f}" in text
        assert f"{row.model} " in repr(again)
        assert f"<td>&quot;{row.model}&quot;</td>" in again._repr_html_()
    assert "strict" in text.splitlines()[0]


class Stop(Callback):
    def after_step(self, run: Any, outcome: Any) -> None:
        if run.progress.step == 2:
            run.stop_requested = True


def test_one_that_was_stopped_goes_on_and_gives_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"first": settings("youtube_dnn"), "second": settings("comirec_dr")}
    whole = compare(models, out=tmp_path / "whole")
    training = work.train_alone

    def stopped(config: Config, run_dir: Path, world: World) -> Run:
        return training(config, run_dir, world, [Stop()] if run_dir.name.startswith("second") else [])

    with monkeypatch.context() as patch:
        patch.setattr(work, "train_alone", stopped)
        halted = compare(models, out=tmp_path / "out")
    assert (halted.finished, halted.rows) == (False, [])
    assert "goes on" in repr(halted)
    assert not (tmp_path / "out/comparison.json").exists()
    capsys.readouterr()
    resumed = compare(models, out=tmp_path / "out")
    told = capsys.readouterr().out
    assert "[1/2] first seed 321: finished before" in told
    assert "[2/2] second seed 321: training" in told
    assert "going on from" in told
    figures = [pl.col("model", "recall", "recall_low", "ndcg", "p_value", "coverage", "steps")]
    assert resumed.frame().select(figures).equals(whole.frame().select(figures))


def test_variants_are_the_configuration_with_their_settings(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"compare one.yaml --set train.max_steps=4 --top-n 5 --out {tmp_path / 'out'}"
    assert command_line(f"{line} --variant 'wide: model.dim=16 train.l2=0' --variant 'again:seed=321'") == 0
    of_run = {name: load_config(tmp_path / f"out/{name}-seed321/config.yaml") for name in ("one", "wide", "again")}
    assert (of_run["wide"].model.dim, of_run["wide"].train.l2, of_run["wide"].train.max_steps) == (16, 0.0, 4)
    assert of_run["again"] == of_run["one"]
    rows = json.loads((tmp_path / "out/comparison.json").read_text())["rows"]
    figures = {row["model"]: row["recall"]["mean"] for row in rows}
    assert figures["again"] == figures["one"]
    assert figures.keys() == of_run.keys()
    for mistake in ("wide", "wide:", ":seed=1", "'wide: \"seed=1'"):
        assert command_line(f"{line} --variant {mistake}") == 2
        assert "give a name and settings" in capsys.readouterr().err
    assert command_line(f"{line} --variant a:seed=1 --variant a:seed=2") == 2
    assert "the name a is given twice" in capsys.readouterr().err


def test_one_that_diverges_is_told_and_the_others_are_compared(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = settings("youtube_dnn")
    bad["train"] = bad["train"] | {"learning_rate": 1e36, "max_steps": 60}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    line = f"compare one.yaml {tmp_path / 'bad.yaml'} --seeds 1,2 --top-n 5 --out {tmp_path / 'out'}"
    assert command_line(line) == 1
    out = capsys.readouterr().out
    assert re.search(r"bad has no row: .*finite", " ".join(out.split()))
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert ([row["model"] for row in content["rows"]], [*content["failed"]]) == (["one"], ["bad"])
    assert command_line(f"compare {tmp_path / 'bad.yaml'} --out {tmp_path / 'alone'}") == 2
    assert "nothing is left: bad: " in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/evaluation.json"))  # the test split is looked at once, in the end


def test_an_unfinished_run_is_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings("youtube_dnn"), tmp_path / "half", callbacks=[Stop()])
    compare([tmp_path / "half"], out=tmp_path / "out", top_n=5)
    assert "half: is not finished, step " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "more", "told"),
    [
        ([], {}, "give runs or configurations"),
        ([], {"baselines": "ease"}, "give runs or configurations"),
        (["one.yaml"], {"baselines": ["eas"]}, "baselines eas: choose from"),
        (["one.yaml"], {"baselines": ["ease", "ease"]}, "baselines ease: is given twice"),
        (["nowhere"], {}, "nowhere: no such file"),
        (["one.yaml", "one.yaml"], {}, "one.yaml: has the name one, as one.yaml has; give it once"),
        (["run", "run"], {}, "run: has the name run, as run has; give it once"),
        ({"ease": "one.yaml"}, {"baselines": "ease"}, "one.yaml: has the name ease, as baselines ease has"),
        ({"a/b": "one.yaml"}, {}, "a/b: is no name"),
        (["one.yaml", 3], {}, "models: give a path or a configuration, not 3"),
        (["run", "one.yaml"], {"data": "other"}, "run: was trained on another store"),
        (
            ["one.yaml"],
            {"data": "other"},
            "one.yaml: its data.dir is store",
        ),
        (["one.yaml"], {"overrides": ["data.dir=unsplit"]}, "unsplit: split test has no users"),
        (["two.yaml", "one.yaml"], {"overrides": ["evaluation.metric=recall@99"]}, "two: evaluation.metric: top-N 99"),
        (["one.yaml"], {"overrides": ["train.init_from=nowhere"]}, "one seed 321: nowhere: no such"),
        (["run", "one.yaml"], {"overrides": {"evaluation.exclude_seen": False}}, "is on for run and off for one"),
        (["run"], {"overrides": ["seed=3"]}, "overrides: changes configurations"),
        (["run"], {"seeds": [1]}, "seeds: are for configurations"),
        (["one.yaml"], {"seeds": [1, 1]}, r"seeds \[1, 1\]: give different"),
        (["one.yaml"], {"seeds": ["a"]}, "seeds .*: give different"),
        (["run"], {"top_n": 31}, "top-N 31 is larger"),
        (["run"], {"split": "train"}, "split train: choose"),
        (["run"], {"categories": "one.yaml"}, "no column .item."),
        (
            ["two.yaml"],
            {"seeds": 1, "overrides": ["model.dim=16"], "out": "out"},
            "model.dim: 16, but .* give another out",
        ),
        (["two.yaml"], {"seeds": 1, "overrides": ["train.max_steps=4"], "out": "out"}, "trained 6 steps, more"),
        (["two.yaml"], {"seeds": 1, "overrides": ["data.dir=other"], "out": "out"}, "two seed 1: .*another store"),
        (
            ["run"],
            {"variants": {"a": "seed=3"}},
            "variant: changes the one configuration that is given, and there are 0",
        ),
        (["one.yaml", "two.yaml"], {"variants": {"a": "seed=3"}}, "and there are 2"),
        (["one.yaml"], {"variants": {"a/b": "seed=3"}}, "a/b: is no name"),
        (["one.yaml"], {"variants": {"one": "seed=3"}}, "has the name one, as one.yaml has"),
        (
            ["one.yaml"],
            {"variants": {"a": "model.dims=3"}},
            "variant a: .*unknown key model.dims; did you mean model.dim",
        ),
        (["run"], {"out": "one.yaml"}, "out one.yaml: is a file"),
        (["run"], {"out": "run"}, "out run: already holds something else, config.yaml; give another"),
        (["run"], {"out": "store"}, "out store: already holds something else, attributes.npy"),
    ],
)
def test_a_mistake_is_told_before_any_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, models: Any, more: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(work, "train_alone", lambda *args: pytest.fail("trained"))
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match=told):
        compare(models, **{"out": "new", **more})
    assert sorted(place.rglob("*")) == before


def test_runs_of_one_name_go_by_their_paths(place: Path, tmp_path: Path) -> None:
    compared = compare({"run": "run", "mine": "out/two-seed1"}, out=tmp_path, top_n=5)
    assert {row.model for row in compared.rows} == {"run", "mine"}
    compared = compare(["run", place / "run"], out=tmp_path, top_n=5)
    assert {row.model for row in compared.rows} == {"run", str(place / "run")}
    assert [row.p_value for row in compared.rows] == [None, 1.0]
    step = max((place / "run/checkpoints").iterdir())
    [row] = compare(step, out=tmp_path, top_n=5).rows
    assert (row.model, row.steps) == (f"run step {int(step.name[5:])}", int(step.name[5:]))


def test_seconds_are_those_of_the_lines_that_count(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "seconds/training": 100.0},
        {"step": 10, "valid/strict/recall@10": 0.1},
        {"step": 25, "seconds/training": 50.0},
        {"step": 30, "seconds/training": 7.0, "seconds/checkpoint": 1.0},
        {"step": 40, "seconds/training": 75.0},
    ]
    file = tmp_path / "metrics.jsonl"
    assert training_seconds(tmp_path, 40) is None
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 50, "seco')
    assert training_seconds(tmp_path, 40) == 232
    assert training_seconds(tmp_path, 30) == 157
    file.write_text("[1]\nnull\n3\n")
    assert training_seconds(tmp_path, 40) is None


def test_the_effective_number_of_interests() -> None:
    assert effective_number([0.25] * 4) == pytest.approx(4)
    assert effective_number([1.0, 0.0]) == 1
    assert 1 < effective_number([0.9, 0.1]) < 2


@pytest.mark.parametrize(
    ("shown", "number", "text"),
    [
        (compact, None, "-"),
        (compact, 734, "734"),
        (compact, 12_345, "12.3k"),
        (compact, 999_600, "1.00M"),
        (compact, 40_000_000 * 64, "2.56G"),
        (duration, 59.91, "59.9 s"),
        (duration, 59.96, "0:01:00"),
        (duration, 3725.0, "1:02:05"),
    ],
)
def test_numbers_are_short(shown: Callable[[Any], str], number: Any, text: str) -> None:
    assert shown(number) == text


def test_tables_fit_into_80_columns() -> None:
    figure = Figure(0.12345, 0.1, 0.2, 0.0123)
    counts = {"dense_parameters": 123_456_789, "table_parameters": 999_499, "num_interests": 4, "interests": 3.999}
    figures, others = dict.fromkeys(METRICS, figure), {"coverage": 1.0, "diversity": 0.875}
    row = Row("eupmim_profile", "configuration", [1, 2], figures, 0.00049995, others, **counts,
              history=None, train_seconds=35_999.0, steps=99_999.0, users_per_second=9_999.0)  # fmt: skip
    console = Console(width=80)
    percent = Figure(23.456, 21.0, 25.0, 0.512)
    others = {"bleu_1": 12.345, "bleu_4": 1.0, "different": 0.5}
    texts = replace(row, figures=dict.fromkeys(ROUGES.values(), percent), others=others)
    assert in_one_line(percent, 2) == "23.46 ± 0.51 (21.00 to 25.00)"
    for table in (quality([row], in_lines), cost([row]), quality([texts], in_lines), cost([texts])):
        assert Measurement.get(console, console.options, as_table(table)).maximum <= 80
    assert in_lines(figure, 4) == "0.1235 .100-.200\n±0.0123"
    assert markdown([{"model": "a|b", "p": "1"}]).splitlines()[-1] == "| a\\|b | 1 |"
    assert np.isclose(float(quality([row], in_lines)[0]["p"]), 0.0005)
