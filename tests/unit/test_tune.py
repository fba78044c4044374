"""A search over settings: what is searched, trials that end in every way, searches gone on with, jobs that die."""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eupmim_dist import Config, Tuning, UserError, tune
from eupmim_dist.config.load import load_config
from eupmim_dist.tuning import jobs
from eupmim_dist.tuning import tune as of_tune
from eupmim_dist.tuning.jobs import Job
from eupmim_dist.tuning.space import Choices, Range, knobs_of, read_space
from eupmim_dist.tuning.trial import train_trial
from tests.runs import WORLD, config_of
from tests.stores import small_store

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = {"train.learning_rate": "1e-4..1e-1 log", "model.dim": [8, 16]}
SETTINGS: dict[str, Any] = {
    "data": {"dir": "store"},
    "model": {"name": "comirec_dr"},
    "train": {"max_steps": 40},
    "evaluation": {"every": 10, "metric": "recall@5", "top_n": [5]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    small_store(root / "store")
    small_store(root / "other", seed=9)
    return root


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with stores beside it."""
    for name in ("store", "other"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# what is searched


@pytest.mark.parametrize(
    ("key", "text", "knob"),
    [
        ("train.learning_rate", "1e-4..1e-2 log", Range("train.learning_rate", 1e-4, 1e-2, log=True)),
        ("train.learning_rate", " 1..2 ", Range("train.learning_rate", 1.0, 2.0)),
        ("train.l2", "0..1 step 0.1", Range("train.l2", 0.0, 1.0, step=0.1)),
        ("model.dim", "8..64 step 8", Range("model.dim", 8, 64, step=8)),
        ("model.dim", "1e1..64 log", Range("model.dim", 10, 64, log=True)),
        ("train.clip_norm", "0.5..5", Range("train.clip_norm", 0.5, 5.0)),
        ("train.clip_norm", "null, 1, 1e-1", Choices("train.clip_norm", (None, 1.0, 0.1))),
        ("model.dim", [8, 16], Choices("model.dim", (8, 16))),
        ("train.prefetch", "true,false", Choices("train.prefetch", (True, False))),
        ("train.schedule", "cosine,linear", Choices("train.schedule", ("cosine", "linear"))),
        ("train.init_from", "runs/a,null", Choices("train.init_from", ("runs/a", None))),
    ],
)
def test_what_is_searched_has_the_type_of_the_setting(key: str, text: Any, knob: Any) -> None:
    [found] = knobs_of({key: text}, Config())
    assert found == knob
    values = (found.low, found.high) if isinstance(found, Range) else found.values
    expected = (knob.low, knob.high) if isinstance(knob, Range) else knob.values
    assert [type(value) for value in values] == [type(value) for value in expected]
    assert knobs_of({key: str(found)}, Config()) == [found]  # as it is pinned


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("train.lerning_rate", "1..2", "did you mean train.learning_rate"),
        ("model", "1,2", "is a section; search a key of it, such as model.name"),
        ("model.nam", "1,2", "unknown key"),
        ("train.learning_rate", "2..1", "does not rise"),
        ("train.learning_rate", "0..1 log", "0: input should be greater than 0"),
        ("train.l2", "0..1 log", "begins above 0"),
        ("train.l2", "0..1 step 0.3", "do not lead from"),
        ("train.l2", "0..1 step 0.0", "number above 0"),
        ("train.l2", "1..", "is no range"),
        ("train.l2", "1e999..2e999", "no finite number"),
        ("model.dim", "8..16 step 0.5", "no whole number above 0"),
        ("model.dim", "8..16.5", "valid integer"),
        ("model.dim", "1..16", "1: input should be greater than or equal to 2"),
        ("model.dim", "8", "leaves no choice"),
        ("model.dim", "8,8", "holds a value twice"),
        ("model.dim", "8,,9", "is no list of values"),
        ("model.dim", "[8],[9]", "is no single value"),
        ("model.dim", f"8,{10**16}", "no number here is larger"),
        ("train.schedule", "1..2", "is no number"),
        ("train.schedule", "cosine,liner", "'liner': input should be"),
        ("model.name", "mind,sasrc", "did you mean sasrec"),
        ("evaluation.metric", "recall@5,recall@10", "is the same for all trials"),
        ("train.max_steps", "10..20", "is given by overrides too"),
    ],
)
def test_what_cannot_be_searched_is_told(key: str, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        knobs_of({key: text}, Config(), ["train.max_steps=10"])


def test_keys_of_models_that_a_trial_may_choose_are_known() -> None:
    name, layers = knobs_of({"model.name": "mind,sasrec", "model.num_layers": "1..3"}, Config())
    assert (name, layers) == (Choices("model.name", ("mind", "sasrec")), Range("model.num_layers", 1, 3))
    with pytest.raises(UserError, match=r"model.num_layers: .* belongs to model"):
        knobs_of({"model.num_layers": "1..3"}, Config())


def test_a_space_comes_from_options_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("model: {dim: '8,16'}\ntrain.l2: 0..1\n")
    found = read_space(["train.learning_rate = 1..2"], file)
    assert found == {"model.dim": "8,16", "train.l2": "0..1", "train.learning_rate": " 1..2"}
    with pytest.raises(UserError, match=r"train.l2: is given twice"):
        read_space(["train.l2=1..2"], file)
    with pytest.raises(UserError, match="write it as key=values"):
        read_space(["train.l2"], None)
    for text, told in [("a: [", ":1: not valid"), ("- 1", "no mapping"), ("a: {b: 1}\na.b: 2", "a.b is given twice")]:
        file.write_text(text)
        with pytest.raises(UserError, match=told):
            read_space([], file)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_space([], tmp_path / "nowhere")


# searches, with jobs that only say they trained


Act = Callable[[Config, Path], dict[str, Any] | None]


def quality(config: Config) -> float:
    """What trials come to: best at a rate of 1e-2."""
    return 1.0 - abs(math.log10(config.train.learning_rate) + 2) / 4 - config.model.dim / 1000


class Pretended:
    """A job without a process."""

    act: Act = staticmethod(lambda config, run_dir: None)

    def __init__(self, *args: Any) -> None:
        self.stopped = False

    def train(self, config: Config, run_dir: Path, keep: Callable[[int, float], bool]) -> dict[str, Any]:
        (run_dir / "checkpoints").mkdir(parents=True)
        if (ended := self.act(config, run_dir)) is not None:
            return ended
        for step in range(10, 41, 10):
            if not keep(step, quality(config) * step / 40):
                return {"end": "pruned"}
        return {"end": "done", "value": quality(config), "step": 40, "seconds": 2.0}

    def stop(self) -> None:
        self.stopped = True

    kill = close = stop


def search(monkeypatch: pytest.MonkeyPatch, place: str, act: Act = lambda config, run_dir: None, **more: Any) -> Tuning:
    monkeypatch.setattr(Pretended, "act", staticmethod(act))
    monkeypatch.setattr(of_tune, "Job", Pretended)
    return tune(**{"config": SETTINGS, "space": SPACE, "trials": 14, "out": place, **more})


def settings_of(tuning: Tuning) -> list[dict[str, Any]]:
    return [trial.settings for trial in tuning.trials]


def test_a_search_finds_and_keeps_the_best(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(monkeypatch, "out", command="eupmim-dist tune")
    assert found.finished
    assert [trial.number for trial in found.trials] == list(range(1, 15))
    done = [trial for trial in found.trials if trial.state == "done"]
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert (len(done) + len(pruned), bool(pruned)) == (14, True)
    best = found.best
    assert best is not None
    assert found.best_value == max(trial.value for trial in done if trial.value is not None)
    assert found.best_settings == best.settings
    assert abs(math.log10(best.settings["train.learning_rate"]) + 2) < 0.5
    assert all(trial.last_step == 20 for trial in pruned)  # never at the first evaluation
    assert found.importance == {}  # of so few

    written = load_config(Path("out/best.yaml"))
    assert written == found.config
    assert written.train.learning_rate == best.settings["train.learning_rate"]
    assert written.train.max_steps == 40
    header = Path("out/best.yaml").read_text().split("seed:")[0]
    assert f"14 trials, {len(done)} done, {len(pruned)} pruned: recall@5 {best.value:.6f} on the valid split" in header
    assert f"trial {best.number} ({best.run_dir.name})\n# by: eupmim-dist tune\n" in header
    assert [path.parent.name for path in Path("out").glob("*/checkpoints")] == [best.run_dir.name]

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in lines] == [f"[{n}/14" for n in range(1, 15)]
    assert lines[best.number - 1].startswith(f"[{best.number}/14] trial {best.number} done: {best.value:.4f}; the best")
    assert f"trial {pruned[0].number} pruned at step 20: " in lines[pruned[0].number - 1]
    frame = found.frame()
    assert frame["train.learning_rate"].to_list() == [trial.settings["train.learning_rate"] for trial in found.trials]
    assert f"{best.value:.4f}" in repr(found)
    assert f"{best.value:.4f}" in found._repr_html_()
    assert [row["trial"] for row in found.table()] == [str(trial.number) for trial in found.ranked[:5]]


def test_halving_prunes_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(monkeypatch, "out", pruner="halving")
    assert {trial.last_step for trial in found.trials if trial.state == "pruned"} == {20}
    assert found.best_value == max(trial.value or 0.0 for trial in found.trials)


def test_what_decides_is_told_once_there_are_many(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = search(monkeypatch, "out", pruner="none", trials=20, jobs=2).importance
    assert list(shares) == ["train.learning_rate", "model.dim"]
    assert sum(shares.values()) == pytest.approx(1)


def test_one_that_was_stopped_goes_on_as_if_it_had_not_been(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(monkeypatch, "whole")
    seen: list[str] = []

    def killed(config: Config, run_dir: Path) -> None:
        if run_dir.name == "trial-0006":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(monkeypatch, "out", killed)
    with open("out/study.journal", "a") as journal:
        journal.write('{"op_code": 4, "wor')  # as one that was killed leaves it
    (place / "out/trial-0006/checkpoints").rmdir()
    (place / "out/trial-0002/checkpoints").mkdir(exist_ok=True)
    found = search(monkeypatch, "out", lambda config, run_dir: seen.append(run_dir.name))
    assert seen == [f"trial-{number:04d}" for number in range(6, 15)]
    assert settings_of(found) == settings_of(whole)
    assert [trial.state for trial in found.trials] == [trial.state for trial in whole.trials]
    assert found.best_value == whole.best_value
    assert not (place / "out/trial-0002/checkpoints").exists()

    seen.clear()
    again = search(monkeypatch, "out", lambda config, run_dir: seen.append(run_dir.name), jobs=2, trials=15)
    assert seen == ["trial-0015"]
    assert settings_of(again)[:14] == settings_of(whole)


def test_the_timeout_saves_what_is_under_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(Pretended):
        def __init__(self, *args: Any) -> None:
            self.told = threading.Event()

        def train(self, *args: Any) -> dict[str, Any]:
            assert self.told.wait(10)
            return {"end": "stopped"}

        def stop(self) -> None:
            self.told.set()

        close = stop

    monkeypatch.setattr(of_tune, "Job", Waiting)
    found = tune(SETTINGS, SPACE, out="out", jobs=2, timeout=0.001)
    assert (found.finished, found.timed_out) == (False, True)
    assert (found.best, found.best_settings, found.config) == (None, {}, None)
    assert [trial.state for trial in found.trials] == ["unfinished"] * 2
    assert "2 unfinished" in found.title


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_saves_and_a_second_one_ends_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    asked, killed = threading.Event(), threading.Event()

    class Interrupted(Pretended):
        def train(self, *args: Any) -> dict[str, Any]:
            for _, heard in zip(range(times), (asked, killed), strict=False):
                os.kill(os.getpid(), signal.SIGINT)
                assert heard.wait(10)
            return {"end": "stopped", "seconds": 1.0}

        def stop(self) -> None:
            asked.set()

        def kill(self) -> None:
            killed.set()

        close = stop

    monkeypatch.setattr(of_tune, "Job", Interrupted)
    before = signal.getsignal(signal.SIGINT)
    if times == 1:
        found = tune(SETTINGS, SPACE, out="out")
        assert (found.finished, found.timed_out, found.trials[0].seconds) == (False, False, 1.0)
        assert "stopped: 0 of 20 trials have ended; the same command goes on" in capsys.readouterr().out
    else:
        with pytest.raises(KeyboardInterrupt):
            tune(SETTINGS, SPACE, out="out")
    assert killed.is_set() == (times == 2)
    assert signal.getsignal(signal.SIGINT) == before


def test_trials_that_cannot_be_or_fail_are_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"model.num_heads": [2, 8], "model.dim": [8, 12]}
    config = {**SETTINGS, "model": {"name": "eupmim"}}
    found = search(monkeypatch, "out", space=space, config=config, trials=12)
    impossible = [trial for trial in found.trials if trial.settings == {"model.num_heads": 8, "model.dim": 12}]
    assert impossible
    assert {trial.state for trial in impossible} == {"invalid"}
    assert all("num_heads 8 must divide dim 12" in trial.reason for trial in impossible)
    assert {trial.state for trial in found.trials if trial not in impossible} == {"done"}
    assert sum("the same as trial" in trial.reason for trial in found.trials if trial not in impossible) == (
        12 - len(impossible) - len(list(Path("out").glob("trial-*")))
    )
    assert len(found.table()) == len(list(Path("out").glob("trial-*")))
    assert "invalid: model: num_heads 8 must divide dim 12; best" in capsys.readouterr().out

    def fails(config: Config, run_dir: Path) -> dict[str, Any] | None:
        number = int(run_dir.name[-4:])
        return {"end": "failed", "reason": f"no memory {number}"} if number in (1, 2, 4, 5, 6) else None

    with pytest.raises(UserError, match="3 trials in a row failed, the last one: no memory 6"):
        search(monkeypatch, "failing", fails)
    found = search(monkeypatch, "failing")
    assert [trial.state for trial in found.trials][:7] == [*["failed"] * 2, "done", *["failed"] * 3, "done"]
    with pytest.raises(UserError, match="no trial is done: 2 trials, 0 done, 2 invalid; the last one: no"):
        search(monkeypatch, "none", lambda config, run_dir: {"end": "invalid", "reason": "no"}, trials=2)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"space": {**SPACE, "model.dim": [8, 32]}}, r"search model.dim 8,32 and not 8,16; give another out"),
        ({"space": {"model.dim": [8, 16]}}, "search train.learning_rate nothing and not 0.0001..0.1 log; give"),
        ({"overrides": ["train.max_steps=50", "evaluation.every=5"]}, "max_steps 50 and not 40, evaluation.every 5 "),
        ({"metric": "ndcg@5"}, "evaluation.metric 'ndcg@5' and not 'recall@5'"),
        ({"pruner": "none"}, "pruner 'none' and not 'median'"),
        ({"data": "other"}, "out out: holds another search: store [0-9a-f]{12} and not"),
        ({"out": "store"}, "store: already holds something that is not a search"),
        ({"out": "store/dataset.json"}, "is a file"),
        ({"metric": "recal@5"}, "^metric: evaluation.metric"),
        ({"metric": "recall@500"}, "top-N 500 is larger"),
        ({"pruner": "best"}, "choose from median, halving, none"),
        ({"trials": 0}, "trials 0: give a whole number"),
        ({"jobs": 1.5}, r"jobs 1.5: give a whole number"),
        ({"timeout": 0}, "timeout 0: give minutes"),
        ({"space": {}}, "say what to search"),
        ({"overrides": {"world_size": 2}}, "each trial is trained by one process"),
    ],
)
def test_a_mistake_is_told_before_any_trial(
    place: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], told: str
) -> None:
    search(monkeypatch, "out", trials=1)
    with pytest.raises(UserError, match=told):
        search(monkeypatch, "out", lambda config, run_dir: pytest.fail("trained"), **more)


def test_what_values_do_not_depend_on_may_change(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(monkeypatch, "out", trials=1)
    (place / "moved").symlink_to(place / "store")
    free = {"train.log_every": 7, "checkpoint.keep": 1, "train.threads": 1}
    assert len(search(monkeypatch, "out", trials=2, data="moved", overrides=free).trials) == 2


def test_optuna_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'eupmim-dist\[tune\]'"):
        tune(space=SPACE)


# a trial


def test_a_trial_is_judged_by_the_valid_split_alone(tmp_path: Path) -> None:
    config, told = config_of(tmp_path), {}

    def keep(step: int, value: float) -> bool:
        told[step] = value
        return True

    ended = train_trial(config, tmp_path / "run", WORLD, keep)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert told == {line["step"]: line["valid/strict/recall@5"] for line in lines if "valid/strict/recall@5" in line}
    assert list(told) == [4, 8, 12]
    assert ended == {"end": "done", "value": max(told.values()), "step": max(told, key=lambda s: (told[s], -s))}
    assert not (tmp_path / "run/evaluation.json").exists()
    assert "test/" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["max_steps"] == 12


def test_a_trial_ends_when_it_is_not_worth_going_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def keep(step: int, value: float) -> bool:
        asked.append(step)
        return step < 8

    assert train_trial(config_of(tmp_path, train__max_steps=40), tmp_path / "run", WORLD, keep) == {"end": "pruned"}
    assert asked == [4, 8]


def test_a_trial_says_why_it_cannot_be_or_has_failed(tmp_path: Path) -> None:
    def broken(step: int, value: float) -> bool:
        raise RuntimeError("of a bug")

    config = config_of(tmp_path, evaluation__metric="recall@500")
    told = train_trial(config, tmp_path / "run", WORLD, lambda step, value: True)
    assert (told["end"], "top-N 500 is larger" in told["reason"]) == ("invalid", True)
    diverging = {"train__learning_rate": 1e38, "train__max_steps": 60}
    for evaluated, saved, reason in ((4, 60, "its vectors"), (60, 6, "is not saved"), (60, 60, "were not finite")):
        changed = config_of(tmp_path, **diverging, evaluation__every=evaluated, checkpoint__every=saved)
        told = train_trial(changed, tmp_path / f"run-{evaluated}-{saved}", WORLD, lambda step, value: True)
        assert (told["end"], reason in told["reason"]) == ("invalid", True)
    told = train_trial(config_of(tmp_path), tmp_path / "broken", WORLD, broken)
    assert told == {"end": "failed", "reason": "RuntimeError: of a bug"}
    (tmp_path / "store").rename(tmp_path / "gone")
    assert train_trial(config, tmp_path / "lost", WORLD, lambda step, value: True)["end"] == "failed"


# processes


SCRIPT = """
import json, os, signal, sys
for line in sys.stdin:
    order = json.loads(line)
    what = os.path.basename(order["run_dir"])
    if what == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if what == "ended": sys.exit(3)
    if what == "env": print(json.dumps({"end": "done", "env": dict(os.environ), "pid": os.getpid()}), flush=True)
    if what == "slow": print(json.dumps({"step": 1, "value": 0.5}), flush=True)
    if what == "asks":
        print(json.dumps({"step": 3, "value": 0.5}), flush=True)
        print(json.dumps({"end": "done", "kept": json.loads(sys.stdin.readline())}), flush=True)
"""


def test_a_job_is_a_process_that_may_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "COMMAND", [sys.executable, "-S", "-c", SCRIPT])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config, asked = Config(), []
    job = Job(1, 2, tmp_path, cpu=True)

    def train(what: str, keep: Any = lambda step, value: True) -> dict[str, Any]:
        return job.train(config, tmp_path / what, keep)

    first = train("env")
    assert first["env"]["OMP_NUM_THREADS"].isdigit()
    assert "RANK" not in first["env"]
    assert train("env")["pid"] == first["pid"]
    assert train("asks", lambda *told: bool(asked.append(told)) or False) == {"end": "done", "kept": False}
    assert asked == [(3, 0.5)]
    assert train("killed") == {"end": "failed", "reason": "its job was killed by SIGKILL: out of memory?"}
    assert "ended with code 3; " in train("ended")["reason"]
    assert train("env")["pid"] != first["pid"]
    assert train("slow", lambda *told: job.stop() or True) == {"end": "stopped"}
    assert train("env") == {"end": "stopped"}
    job.close()


def test_each_job_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "COMMAND", [sys.executable, "-S", "-c", SCRIPT])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (jobs.gpus(cpu=False), jobs.gpus(cpu=True)) == (["0", "1"], [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    seen = []
    for number in range(3):
        job = Job(number, 3, tmp_path, cpu=False)
        seen.append(job.train(Config(), tmp_path / "env", lambda step, value: True)["env"]["CUDA_VISIBLE_DEVICES"])
        job.close()
    assert seen == ["5", "7", "5"]
    assert of_tune._jobs(None, cpu=False) == 2
