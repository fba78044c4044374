"""The package from Python, as a notebook or a script uses it; docs/python.md is run as it stands."""

import ast
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable as Function
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from accelerate.state import PartialState
from polars.testing import assert_frame_equal

import eupmim_dist
from eupmim_dist import Callback, Config, Fitted, UserError, evaluate, fit, load, prepare, recommend, synthesize
from eupmim_dist.checkpoint import run_dir, save
from eupmim_dist.parallel.agreement import RankFailed
from eupmim_dist.parallel.prefetch import STEPS_AHEAD
from eupmim_dist.telemetry.log import get_logger
from tests.distributed.spawn import run_ranks
from tests.e2e.test_cli import shell
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COLUMNS = {"user_column": "customer", "item_column": "sku", "time_column": "at"}
SETTINGS = {
    "task": {"history_length": 6},
    "model": {"name": "comirec_dr", "dim": 8},
    "objective": {"num_negatives": 5},
    "train": {"global_batch_size": 8, "learning_rate": 0.01, "log_every": 2, "max_steps": 12},
    "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [5]},
    "checkpoint": {"every": 6},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in; the log speaks again afterwards."""
    monkeypatch.chdir(tmp_path)
    before = get_logger().level
    yield tmp_path
    logging.getLogger("eupmim_dist").setLevel(before)


@pytest.fixture
def store(place: Path) -> Path:
    small_store(place / "store")
    return place / "store"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """What `trained` gives where nothing comes in between; its run directory is to be left alone."""
    root = tmp_path_factory.mktemp("finished")
    return fit(SETTINGS, root / "run", data=small_store(root / "store"))


@cache
def shop_log() -> pl.DataFrame:
    """6000 interactions of 300 customers, who each like one of six kinds of items."""
    generator = np.random.default_rng(0)
    user = generator.integers(0, 300, 6000)
    liked = generator.integers(0, 6, 300)[user] * 20 + generator.zipf(1.5, 6000) % 20
    item = np.where(generator.random(6000) < 0.8, liked, generator.integers(0, 120, 6000))
    return pl.DataFrame({"customer": [f"c{u}" for u in user], "sku": item, "at": np.arange(6000)})


def block(mark: str) -> str:
    [found] = [block for block in BLOCKS if mark in block]
    return found


def run_block(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


# the page


def test_the_pages_first_example_and_its_search_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop_log().write_csv("log.csv")
    first = run_block(block("pl.read_csv"))
    told = capsys.readouterr().out
    assert "step 100/100" in told
    assert str(first["fitted"].results) in told
    assert first["fitted"].results.frame()["recall"].max() > 0.1

    run_block(block("import report"))
    assert Path("runs/shop.html").read_text(encoding="utf-8").count("<article") == 3
    capsys.readouterr()

    import optuna

    study = run_block(block("import optuna"))["study"]
    states = [trial.state for trial in study.trials]
    assert set(states) == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    assert study.best_value == max(trial.value for trial in study.trials if trial.value is not None)
    told = capsys.readouterr().out
    assert told.splitlines() == [f"{study.best_params} {study.best_value}"]  # the log is silent


def test_every_block_of_the_page_is_python() -> None:
    assert len(BLOCKS) == 9
    for code in BLOCKS:
        ast.parse(code)


def test_the_pages_script_runs_on_two_ranks_and_one_prints(place: Path) -> None:
    shop_log().write_csv("log.csv")
    (place / "train.py").write_text(block("# train.py"))
    [command] = re.findall(r"^    (accelerate launch .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    ended = shell(place, command)
    assert ended.code == 0, ended.err
    assert "ranks   2 on cpu" in ended.out
    assert ended.out.count("precision") == ended.out.count("interest") == 1
    told = json.loads((place / "runs/ranks/evaluation.json").read_text())["metrics"]["recall@10"]
    assert f"{told:.6f}" in ended.out


# what is there without torch


def test_the_package_and_what_makes_stores_need_no_torch() -> None:
    code = """
import sys, eupmim_dist
assert not {"polars", "pydantic", "torch"} & sys.modules.keys(), "the package alone"
from eupmim_dist import Config, UserError, prepare, synthesize
from eupmim_dist.cli.app import app
assert "torch" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
    )
    assert ended.returncode == 0, ended.stderr


def test_what_the_package_names_is_there() -> None:
    assert set(eupmim_dist.__all__) <= set(dir(eupmim_dist))
    for name in eupmim_dist.__all__:
        assert getattr(eupmim_dist, name).__name__ == name
        assert getattr(eupmim_dist, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        eupmim_dist.fitt  # noqa: B018


# data frames


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "pandas categories", "arrow", "columns"])
def test_a_frame_of_any_library_makes_the_same_store(place: Path, kind: str) -> None:
    log = shop_log()
    pandas = log.to_pandas()
    frame = {
        "polars": log,
        "lazy": log.lazy(),
        "pandas": pandas,
        "pandas categories": pandas.astype({"customer": "category"}),
        "arrow": log.to_arrow(),
        "columns": log.to_dict(),
    }[kind]
    made = prepare(frame, "data/made", **COLUMNS)
    assert made.path == Path("data/made")
    assert made.fingerprint == prepare(log, "expected", **COLUMNS).fingerprint
    assert made.manifest.report["dropped_users"] == 0


def test_pandas_columns_that_nobody_asked_for_may_hold_anything(place: Path) -> None:
    log = shop_log().to_pandas()
    log["notes"] = [{"a": 1}, "b", 3] * 2000  # no other library has such a column
    assert prepare(log, "made", **COLUMNS).num_users == 300
    with pytest.raises(UserError, match="no column 'shop'; there are customer, sku, at, notes"):
        prepare(log, "other", **COLUMNS, attributes=["shop"])


def test_without_pyarrow_pandas_gets_one_clear_line(place: Path) -> None:
    code = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name.startswith("pyarrow") else find(name, *rest))
import pandas as pd
from eupmim_dist import UserError, prepare
users = [f"u{i % 20}" for i in range(400)]
try:
    prepare(pd.DataFrame({"u": users, "i": range(400)}), "out", user_column="u", item_column="i")
except UserError as error:
    print(error)
numbers = pd.DataFrame({"u": range(400), "i": range(400)}) % 20
print(prepare(numbers, "out", user_column="u", item_column="i").num_users)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PAGE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    line, *_, num_users = ended.stdout.splitlines()
    assert line.startswith("data frame: pandas hands over text and categories through pyarrow, which is not installed")
    assert num_users == "20"  # plain numbers need none


MISTAKES: dict[str, tuple[Function[[], Any], str]] = {
    "no column said": (lambda: prepare(shop_log(), "out"), r"^user_column: say which .* \(there: customer, sku, at\)"),
    "a column that is not there": (
        lambda: prepare(shop_log(), "out", user_column="user", item_column="sku"),
        r"^data frame: no column 'user'; did you mean 'customer'\?; there are customer, sku, at",
    ),
    "an option misspelt": (
        lambda: prepare(shop_log(), "out", user_colum="customer"),  # type: ignore[arg-type]
        r"^prepare: unknown option user_colum; did you mean user_column\?",
    ),
    "an option without a like": (lambda: prepare(shop_log(), "out", zzz=1), "zzz; there are source, out, user_column"),  # type: ignore[arg-type]
    "a bad option": (lambda: prepare(shop_log(), "out", **COLUMNS, min_count=0), "^min_count 0: give 1 or more"),
    "a missing id": (
        lambda: prepare(shop_log().with_columns(customer=None), "out", **COLUMNS),
        "^data frame: column 'customer' is Null",
    ),
    "a blank id": (
        lambda: prepare(shop_log().with_columns(pl.col("customer").shift(fill_value="")), "out", **COLUMNS),
        "^data frame: row 0: user is missing",
    ),
    "no frame": (lambda: prepare(3, "out", **COLUMNS), "a int cannot be read as one"),
    "nothing": (lambda: prepare(None, "out", **COLUMNS), "a NoneType cannot be read as one"),
    "a format of a frame": (lambda: prepare(shop_log(), "out", **COLUMNS, format="csv"), "a data frame has no format"),
    "a path without format": (lambda: prepare("log.csv", "out", **COLUMNS), "say which format log.csv has"),
    "a store that is there": (lambda: synthesize("store", 20, 200, mean_length=10), "replace it with force or name"),
    "sizes": (lambda: synthesize("out", users=5), "^users 5: give 10 or more"),
    "no directory": (lambda: synthesize(7), "^out: give a path, not 7"),  # type: ignore[arg-type]
    "an unknown key": (
        lambda: fit({"train": {"max_step": 3}}),
        r"unknown key train.max_step; did you mean train.max_steps\?",
    ),
    "an unknown override": (lambda: fit(SETTINGS, overrides={"modle.dim": 3}), r"unknown key modle"),
    "an override of no section": (
        lambda: fit(SETTINGS, overrides={"train.max_steps.x": 3}),
        "max_steps is a value, not a",
    ),
    "an override without value": (lambda: fit(SETTINGS, overrides="seed"), "^overrides seed: write it as key=value"),
    "a list for a configuration": (lambda: fit([SETTINGS]), "^config: give a Config, a mapping or a YAML file"),  # type: ignore[arg-type]
    "a frame for a store": (lambda: fit(SETTINGS, data=shop_log()), "^data: a DataFrame is no store; make one"),  # type: ignore[arg-type]
    "a number for a directory": (lambda: fit(SETTINGS, 3, data="store"), "^run_dir: give a path, not 3"),  # type: ignore[arg-type]
    "resume": (lambda: fit(SETTINGS, data="store", resume=True), "^resume: give auto, never or the path"),  # type: ignore[arg-type]
    "two ways to begin": (
        lambda: fit(SETTINGS, data="store", init_from="a", resume="b"),
        "^init_from a: begins a new training, resume b does not",
    ),
    "a function for a callback": (
        lambda: fit(SETTINGS, data="store", callbacks=[print]),
        "derive from eupmim_dist.Callback",
    ),  # type: ignore[list-item]
    "no function": (lambda: fit(SETTINGS, data="store", on_metrics=3), "^on_metrics: give a function"),  # type: ignore[arg-type]
    "which": (lambda: load("store", which="lats"), "choose best or last"),
    "a model that is not there": (lambda: load("nowhere"), "^nowhere: no such file or directory"),
    "a split": (lambda: evaluate(data="store", baselines="ease", split="train"), "^split train: choose valid or test"),
    "a protocol": (
        lambda: evaluate(data="store", baselines="ease", protocols="loose"),
        "^protocols loose: choose from",
    ),
    "a baseline": (lambda: evaluate(data="store", baselines=["eas"]), "^baselines eas: choose from"),
    "a cut-off": (lambda: evaluate(data="store", baselines="ease", top_n=0), "^top_n 0: give whole numbers from 1"),
    "no cut-off": (lambda: evaluate(data="store", baselines="ease", top_n=[]), r"^top_n \[\]: give whole numbers"),
    "nothing to evaluate": (lambda: evaluate(), "^evaluate: give a run or checkpoint, or baselines NAME with data DIR"),
    "a strength": (
        lambda: evaluate(data="store", baselines="ease", diversity=-1),
        "^diversity -1: give a number from 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_in_the_words_of_python(store: Path, mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()
    assert not Path("runs").exists()


# training


def trained(where: str, **options: Any) -> Fitted:
    return fit(SETTINGS, where, data="store", **options)


def test_several_trainings_follow_one_another(store: Path) -> None:
    first = trained("a")
    assert first.best_value == evaluate("a", split="valid", top_n=5)[0].metrics["recall@5"]
    other = fit(Config(**SETTINGS), "b", data="store", overrides={"model": {"name": "mind"}, "train.max_steps": 4})
    assert (first.step, other.step, other.model.config.model.name) == (12, 4, "mind")
    assert other.model.config.model.dim == 8  # the rest of the section stays
    again = trained("a")
    assert (again.step, again.results) == (12, first.results)
    longer = trained("a", overrides={"train.max_steps": 16})
    at_once = trained("c", overrides=["train.max_steps=16"])
    assert longer.results == at_once.results
    assert longer.best_value == at_once.best_value
    assert re.fullmatch(
        r"Fitted\(run_dir=\w+\('a'\), step=12, finished=True, best_value=[\d.]+, best_step=\d+\)", f"{first}"
    )


def test_results_and_recommendations_are_frames(finished: Fitted) -> None:
    fitted, run = finished, finished.run_dir
    frame = evaluate(fitted, top_n=[5, 10], baselines="popularity").frame()
    assert frame.columns == ["model", "protocol", "split", "users", "top_n", "recall", "hit_rate", "ndcg", "precision"]
    assert frame["model"].to_list() == ["comirec_dr"] * 2 + ["popularity"] * 2
    assert frame["recall"][0] == fitted.results[0].metrics["recall@5"]
    categories = pl.DataFrame({"item": [f"i{i}" for i in range(1, 31)], "category": [i % 3 for i in range(30)]})
    varied = recommend(fitted, "u1", top_n=3, categories=categories.to_pandas(), diversity=1e6)
    kinds = varied.join(categories, on="item")
    assert kinds["category"].n_unique() == 3

    best = recommend(run, ["u1", "u2"], top_n=3)
    assert best.columns == ["user", "rank", "item", "title", "score", "interest"]
    assert best["user"].to_list() == ["u1"] * 3 + ["u2"] * 3
    assert recommend(fitted, pl.Series(["u1", "u2"]), top_n=3).equals(best)
    assert recommend(load(str(run)), "u1", top_n=3).equals(best.head(3))
    for mistake, message in (
        ({"users": "u99"}, "^users u99: no such user"),
        ({"users": "u1", "top_n": -1}, "^top_n -1: give whole numbers from 1"),
        ({"users": pl.DataFrame({"user": ["u1"]})}, "^users: give a column of the data frame"),
        ({"users": 1.0}, "^users: an id is text or an integer, and there is a float"),
        ({"users": "u1", "top_n": 31}, "31 is larger than the catalogue"),
        ({"users": "u1", "data": "store"}, "this model is loaded already"),
    ):
        with pytest.raises(UserError, match=message):
            recommend(fitted, **mistake)  # type: ignore[arg-type]


def test_a_training_ends_and_its_directory_is_free(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_SECONDS", 0.1)
    trained("run")
    with Path("run/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as another process would
        with pytest.raises(UserError, match="a training is running in it"):
            trained("run")


def test_a_training_may_run_in_a_thread_but_one_at_a_time(store: Path, finished: Fitted) -> None:
    ended: list[Fitted] = []
    refused: list[UserError] = []

    class Second(Callback):
        def after_step(self, run: Any, outcome: Any) -> None:
            if run.progress.step == 3:
                with pytest.raises(UserError, match="a training is under way in this process") as caught:
                    trained("second")
                refused.append(caught.value)

    thread = threading.Thread(target=lambda: ended.append(trained("run", callbacks=[Second()])))
    thread.start()
    thread.join()
    assert (ended[0].step, len(refused)) == (12, 1)
    assert ended[0].results == finished.results


def test_the_log_is_silenced_by_ordinary_means(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained("run", overrides={"train.max_steps": 4})
    told = capfd.readouterr().out
    assert "step 4/4" in told
    assert "tested is the best" in told
    logging.getLogger("eupmim_dist").setLevel(logging.WARNING)
    trained("other", overrides={"train.max_steps": 4})
    assert capfd.readouterr() == ("", "")


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, act: Function[[Any], None]) -> None:
        self.step, self.act = step, act
        self.after: list[int] = []
        self.ended_at: int | None = None

    def after_step(self, run: Any, outcome: Any) -> None:
        self.after.append(run.progress.step)
        if run.progress.step == self.step:
            self.act(run)

    def at_end(self, run: Any) -> None:
        self.ended_at = run.progress.step


ENDS_AFTER = {step: range(step, step + STEPS_AHEAD + 1) for step in (4, 5, 7)}
"""The steps after which a training may end that is asked to after a step: the next may be prepared, or are being."""


def interrupt(run: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_cell_saves_and_the_same_cell_goes_on(store: Path, finished: Fitted) -> None:
    handler = signal.getsignal(signal.SIGINT)
    fitted = trained("run", callbacks=[At(5, interrupt)])
    assert (fitted.finished, fitted.results) == (False, [])
    assert fitted.step in ENDS_AFTER[5]
    assert signal.getsignal(signal.SIGINT) is handler
    again = trained("run")
    assert (again.finished, again.step) == (True, 12)
    assert again.results == finished.results


def test_a_second_ctrl_c_stops_at_once_and_the_kernel_lives_on(store: Path) -> None:
    def twice(run: Any) -> None:
        interrupt(run)
        interrupt(run)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained("run", callbacks=[At(5, twice)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert trained("run").step == 12


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_callback_raises_comes_out_and_leaves_nothing_behind(
    store: Path, finished: Fitted, asynchronous: bool
) -> None:
    def fail(run: Any) -> None:
        raise LookupError("no such thing")

    settings = {"checkpoint.asynchronous": asynchronous}
    failing = At(7, fail)
    threads = threading.enumerate()
    with pytest.raises(LookupError, match="no such thing"):
        trained("run", callbacks=[failing], overrides=settings)
    assert failing.after[-1] == 7  # nothing is called once it has failed
    assert failing.ended_at is None
    assert threading.enumerate() == threads
    well = At(0, fail)
    again = trained("run", callbacks=[well], overrides=settings)
    assert well.after[0] - 1 in ENDS_AFTER[7]  # which was saved
    assert well.ended_at == 12
    assert again.results == finished.results


def test_a_save_that_is_under_way_ends_before_fit_does(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = save.dcp.save
    release = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        release.wait(10)
        return written(*arguments, **options)

    def stop_twice(run: Any) -> None:
        monkeypatch.setattr(save.dcp, "save", written)
        threading.Timer(0.3, release.set).start()
        interrupt(run)
        interrupt(run)

    monkeypatch.setattr(save.dcp, "save", slow)
    with pytest.raises(KeyboardInterrupt):
        trained(
            "run", callbacks=[At(7, stop_twice)], overrides={"checkpoint.asynchronous": True, "evaluation.every": 50}
        )
    assert release.is_set()
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-000000006"]


def test_metrics_that_raise_end_the_training_too(store: Path) -> None:
    def pruned(step: int, values: Mapping[str, float]) -> None:
        if step == 4:
            raise UserError("pruned")

    with pytest.raises(UserError, match=r"^pruned$"):
        trained("run", on_metrics=pruned)
    assert trained("run").finished


def test_a_callback_hears_metrics_and_ends_the_training_as_if_done(store: Path) -> None:
    class Enough(Callback):
        heard: list[tuple[int, set[str]]] = []  # noqa: RUF012

        def on_metrics(self, run: Any, step: int, values: Mapping[str, float]) -> None:
            self.heard.append((step, set(values)))
            run.end_requested = run.end_requested or "valid/strict/recall@5" in values

    alone: list[int] = []
    enough = Enough()
    fitted = trained("run", callbacks=[enough], on_metrics=lambda step, values: alone.append(step))
    assert fitted.finished
    assert fitted.step in ENDS_AFTER[4]
    assert fitted.results == evaluate("run", top_n=5)
    assert [step for step, _ in enough.heard] == alone
    assert alone[:3] == [2, 4, 4]
    assert "loss" in enough.heard[1][1]
    assert trained("run").step == 12  # called again it trains on


def test_tables_are_freed_with_what_holds_them(store: Path) -> None:
    fitted = trained("run")
    tables, model = weakref.ref(fitted.model.tables), weakref.ref(fitted.model.model)
    assert tables() is not None
    del fitted
    assert (tables(), model()) == (None, None)


def test_a_finished_training_keeps_no_optimizer_state(store: Path) -> None:
    runs: list[weakref.ref[Any]] = []
    fitted = trained("run", callbacks=[At(1, lambda run: runs.append(weakref.ref(run.table_optimizer)))])
    assert [run() for run in runs] == [None]
    assert evaluate(fitted, top_n=5) == fitted.results


def test_another_device_than_accelerates_is_refused(
    store: Path, finished: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    with pytest.raises(UserError, match=r"uses Accelerate on cuda already.* train on cpu in another one"):
        trained("other")
    assert len(recommend(finished.run_dir, "u1")) == 10  # which trains nothing


def test_a_configuration_is_not_changed_by_its_use_and_checked_again(
    store: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    config = Config(**SETTINGS)
    before = config.model_dump()
    monkeypatch.setenv("HOME", str(store.parent))
    fit(config, "~/run", data="~/store", overrides={"train.max_steps": np.int64(2)})
    assert Path("run").is_dir()
    assert config.model_dump() == before
    config.train.max_steps = "two"  # type: ignore[assignment]
    recwarn.clear()
    with pytest.raises(UserError, match=r"train.max_steps: input should be a valid integer"):
        fit(config, "other", data="store")
    assert not list(recwarn)


# several ranks


SHORT = {"tables.replicate_below": 0, "train.max_steps": 4, "evaluation.every": 2}


def on_two_ranks(directory: Path) -> dict[str, Any]:
    os.chdir(directory)
    made = synthesize("made", 60, 150, mean_length=10)
    told: dict[str, Any] = {"made": made.num_users}
    settings = {**SHORT, "checkpoint.asynchronous": True}
    rank = int(os.environ["RANK"])

    def fail(kind: type[Exception]) -> Function[[Any], None]:
        def act(run: Any) -> None:
            if run.world.rank == 1:
                raise kind("no such thing")

        return act

    def end(run: Any) -> None:
        run.end_requested = rank == 1

    def metrics(step: int, values: Mapping[str, float]) -> None:
        assert rank == 0
        raise ValueError("pruned")

    for name, options in {
        "error": {"callbacks": [At(1, fail(ValueError))]},
        "mistake": {"callbacks": [At(1, fail(UserError))]},
        "pruned": {"on_metrics": metrics},
    }.items():
        try:
            trained(name, overrides=settings, cpu=True, **options)  # type: ignore[arg-type]
        except Exception as error:
            told[name] = (isinstance(error, RankFailed), isinstance(error, UserError), str(error))
    told["ended"] = trained("ended", overrides=settings, callbacks=[At(1, end)], cpu=True).step
    fitted = trained("mistake", overrides=settings, cpu=True)  # gone on with
    told["results"] = fitted.results.frame().to_dicts()
    told["best"] = recommend(fitted, ["u1", "u2"], top_n=3).to_dicts()
    told["of a path"] = recommend("mistake", ["u1", "u2"], top_n=3).to_dicts()
    try:
        recommend(fitted, "u99")
    except UserError as error:
        told["nobody"] = str(error)
    return told


def test_on_two_ranks_all_fail_alike_and_train_again(store: Path) -> None:
    first, second = run_ranks(2, on_two_ranks, Path.cwd())
    assert first["error"] == (True, False, "rank 1: ValueError: no such thing")
    assert second["error"] == (False, False, "no such thing")
    assert first["mistake"] == (True, True, "rank 1: no such thing")
    assert second["mistake"] == (False, True, "no such thing")
    assert first["pruned"] == (False, False, "pruned")
    assert second["pruned"] == (True, False, "rank 0: ValueError: pruned")
    for name in ("made", "ended", "results", "best", "of a path", "nobody"):
        assert first[name] == second[name], name
    assert (first["made"], first["best"]) == (60, first["of a path"])
    assert 1 <= first["ended"] <= 1 + STEPS_AHEAD

    alone = trained("alone", overrides=SHORT)
    assert_frame_equal(alone.results.frame(), pl.DataFrame(first["results"]))
    assert recommend(alone, ["u1", "u2"], top_n=3)["item"].to_list() == [row["item"] for row in first["best"]]
