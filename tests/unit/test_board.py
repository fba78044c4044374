"""What TensorBoard and trackers are told of a run, and what the log says of it."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker, register_tracker_class
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from eupmim_dist import UserError, fit, load
from eupmim_dist.config.load import load_config
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.telemetry.board import write_projector
from eupmim_dist.telemetry.trackers import check_trackers
from tests.runs import command_line
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {
    "data": {"dir": "store"},
    "task": {"history_length": 6},
    "model": {"name": "comirec_dr", "dim": 8, "num_interests": 2},
    "train": {"global_batch_size": 8, "learning_rate": 0.01, "log_every": 3, "max_steps": 12, "threads": 1},
    "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [3, 5]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("board")
    small_store(root / "store")
    return root


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


def board_of(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def settings(**train: Any) -> dict[str, Any]:
    return {**SETTINGS, "train": {**SETTINGS["train"], **train}}


def test_tensorboard_has_curves_in_groups_settings_text_and_final_figures(place: Path) -> None:
    run = fit(settings(), "runs/a")
    board = board_of(run.run_dir)
    tags = board.Tags()["scalars"]
    assert {tag.partition("/")[0] for tag in tags} == {"train", "speed", "valid", "interests", "final"}
    assert {f"valid/strict/recall@{n}" for n in (3, 5)} <= set(tags)
    assert [event.step for event in board.Scalars("train/loss")] == [3, 6, 9, 12]
    final = {tag.removeprefix("final/test/strict/"): board.Scalars(tag) for tag in tags if tag.startswith("final/")}
    assert final.keys() == {"recall@5", "hit_rate@5", "ndcg@5", "precision@5"}
    assert {name: [event.value for event in events] for name, events in final.items()} == {
        name: [pytest.approx(run.results[0].metrics[name])] for name in final
    }
    [text] = (
        board.Tensors("config/text_summary")
        if "config/text_summary" in board.Tags()["tensors"]
        else board.Tensors("config")
    )
    [shown] = text.tensor_proto.string_val
    lines = [line.removeprefix("    ") for line in shown.decode().splitlines()]
    (place / "shown.yaml").write_text("\n".join(lines))
    assert load_config(place / "shown.yaml") == run.model.config
    content = board.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    info = hparams.parse_session_start_info_plugin_data(content)
    assert info.group_name == "runs/a"
    assert info.hparams["train.learning_rate"].number_value == 0.01
    assert info.hparams["model.name"].string_value == "comirec_dr"
    assert "train.log_every" not in info.hparams  # no figure depends on it


def test_a_run_that_went_on_has_each_point_once(place: Path) -> None:
    fit(settings(), "runs/long")
    for _ in range(2):
        fit(settings(max_steps=16), "runs/long")
    board = board_of(Path("runs/long"))
    assert [event.step for event in board.Scalars("valid/strict/recall@5")] == [4, 8, 12, 16]
    assert [event.step for event in board.Scalars("train/loss")] == [3, 6, 9, 12, 15, 16]
    assert [event.step for event in board.Scalars("final/test/strict/recall@5")] == [17]


def test_the_projector_has_the_vectors_of_the_best_checkpoint(place: Path) -> None:
    run = fit(settings(learning_rate=0.3), "runs/shown")
    assert run.best_step < run.step
    model, directory = load("runs/shown"), Path("runs/shown/tensorboard")
    head, *rows = [line.split("\t") for line in (directory / "items-labels.tsv").read_text().splitlines()]
    vectors = np.loadtxt(directory / "items.tsv", delimiter="\t")
    raw = model.store.raw_item_ids(np.arange(model.store.num_item_rows))
    items = torch.tensor([raw.index(row[head.index("item")]) for row in rows])
    expected = model.tables.lookup({"x": (ITEM_TABLE, items)}).rows[0]["x"].detach()
    np.testing.assert_allclose(vectors, expected, rtol=1e-4)
    counts = [int(row[head.index("interactions")]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert 'tensor_path: "items.tsv"' in (directory / "projector_config.pbtxt").read_text()


def test_a_title_takes_one_line_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    write_projector(tmp_path, "x", np.zeros((2, 2)), {"title": ["a\tb\nc", ""], "item": ["1", "2"]})
    assert (tmp_path / "tensorboard/x-labels.tsv").read_text() == "title\titem\na b c\t1\n-\t2\n"


class Fake(GeneralTracker):
    name = "fake"
    requires_logging_directory = False
    told: list[Any] = []  # noqa: RUF012

    def __init__(self, project: str) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **others: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finish")


class Failing(Fake):
    name = "failing"

    def log(self, values: dict[str, Any], step: int | None = None, **others: Any) -> None:
        raise OSError("no network")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    with monkeypatch.context() as patch:
        patch.setattr(accelerate_tracking, "LOGGER_TYPE_TO_CLASS", dict(accelerate_tracking.LOGGER_TYPE_TO_CLASS))
        patch.setattr("accelerate.accelerator.LOGGER_TYPE_TO_CLASS", accelerate_tracking.LOGGER_TYPE_TO_CLASS)
        for tracker in (Fake, Failing):
            register_tracker_class(tracker)
        Fake.told.clear()
        yield Fake.told


def test_a_tracker_is_told_what_is_logged_and_the_end(place: Path, fake: list[Any]) -> None:
    run = fit({**settings(), "telemetry": {"trackers": ["fake"]}}, "runs/tracked")
    begun, config, *lines, ended = fake
    assert (begun, ended) == ("start", "finish")
    assert config["train.learning_rate"] == 0.01
    logged = [json.loads(line) for line in Path("runs/tracked/metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in logged if "loss" in line]
    assert [(step, values["train/loss"]) for step, values in lines if "train/loss" in values] == losses
    assert lines[-1] == (
        13,
        {f"test/strict/{name}".replace("@", "_at_"): v for name, v in run.results[0].metrics.items()},
    )
    names = {name for _, values in lines for name in values}
    assert not any("@" in name for name in names)  # MLflow refuses it, and has files and folders called so
    assert not {str(folder) for name in names for folder in Path(name).parents} & names


def test_a_tracker_that_fails_is_left_alone(place: Path, fake: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    with_both = {**settings(), "telemetry": {"trackers": ["failing", "fake"]}}
    assert fit(with_both, "runs/failing").finished
    err = " ".join(capfd.readouterr().err.split())
    assert err.count("telemetry.trackers: failing failed and is told no more (OSError: no network)") == 1
    assert len([line for line in fake if isinstance(line, tuple)]) > 5


def test_trackers_that_there_are_not_are_named_before_training(place: Path, fake: list[Any]) -> None:
    check_trackers(["fake"])
    for name, mend in {
        "fkae": "is no tracker; choose from aim, clearml, comet_ml",
        "tensorboard": "is written by every run; leave it out",
    }.items():
        with pytest.raises(UserError, match=rf"telemetry.trackers: {name} {mend}"):
            fit({**settings(), "telemetry": {"trackers": [name]}}, "runs/none")
    assert not Path("runs/none").exists()


def test_a_tracker_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [])
    for name, package in {"mlflow": "mlflow", "comet_ml": "comet-ml"}.items():
        with pytest.raises(UserError, match=f"telemetry.trackers: {name} is not installed; pip install {package}, or"):
            check_trackers([name])


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_mlflow_gets_a_run_offline(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri({"file": f"file://{tmp_path}/runs", "sqlite": f"sqlite:///{tmp_path}/store.db"}[kind])
    fitted = fit({**settings(), "telemetry": {"trackers": ["mlflow"]}}, f"runs/ml-{kind}")
    client = mlflow.MlflowClient()
    [experiment] = [found for found in client.search_experiments() if found.name == "eupmim_dist"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (f"ml-{kind}", "FINISHED")
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.params["evaluation.top_n"] == "[3, 5]"
    assert run.data.metrics["test/strict/recall_at_5"] == pytest.approx(fitted.results[0].metrics["recall@5"])
    logged = [json.loads(line) for line in Path(f"runs/ml-{kind}/metrics.jsonl").read_text().splitlines()]
    for name, key in (("train/loss", "loss"), ("train/loss_cross_entropy", "loss/cross_entropy")):
        history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert history == [(line["step"], pytest.approx(line[key])) for line in logged if key in line]


@pytest.fixture
def lines(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What `train` prints."""
    (place / "small.yaml").write_text(json.dumps(SETTINGS))
    assert command_line(f"train --config small.yaml --run-dir '{tmp_path}/by hand' --cpu") == 0
    return capfd.readouterr().out.splitlines()


def test_each_evaluation_has_a_line_and_log_every_means_it(lines: list[str], tmp_path: Path) -> None:
    assert all(len(line) <= 80 for line in lines if "--" not in line)
    logged = [json.loads(line) for line in (tmp_path / "by hand/metrics.jsonl").read_text().splitlines()]
    stamp = r"\d\d:\d\d:\d\d  "
    steps = [re.fullmatch(rf"{stamp}step (\d+)/12  loss .*", line) for line in lines]
    assert [int(found[1]) for found in steps if found] == [3, 6, 9, 12]
    best, expected = (-1.0, 0), []
    for line in logged:
        if (value := line.get("valid/strict/recall@5")) is not None:
            best, was = max(best, (value, -line["step"])), best
            state = "best so far" if value > was[0] else f"best {best[0]:.4f} at {-best[1]}"
            expected.append(f"step {line['step']}  valid strict recall@5 {value:.4f}, {state}")
    assert [line[10:] for line in lines if "  valid " in line] == expected
    assert len(expected) == 3


def test_what_to_run_next_can_be_copied(lines: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("comirec_dr", "popularity", "association"):
        assert sum(line.startswith(f"│ {name} ") for line in lines) == 2  # by two cut-offs
    commands = [shlex.split(line) for line in lines[lines.index("What to run next:") + 1 :]]
    assert [Path(program).name for program, *_ in commands] == ["eupmim-dist"] * 3 + ["tensorboard"]
    assert commands[-1][1:] == ["--logdir", str(tmp_path)]
    for _, *arguments in commands[:-1]:
        assert command_line(shlex.join(arguments)) == 0
    out = capfd.readouterr().out
    assert "ease" in out
    assert "interest" in out
    assert (tmp_path / "by hand/report.html").is_file()


def test_a_model_under_training_is_evaluated_as_before_at_more_cutoffs(place: Path) -> None:
    """What stopping goes by is the figure of a shorter list, whatever else is asked for."""
    model = load("runs/a") if Path("runs/a").exists() else fit(settings(), "runs/a").model
    alone, among = (evaluate_model(model, "valid", "strict", cutoffs).metrics for cutoffs in ([3], [3, 5, 7]))
    assert {name: among[name] for name in alone} == alone
