"""The command line as it is typed, from example data to recommendations, under each launcher."""

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml

from eupmim_dist import __version__
from eupmim_dist.api import load
from eupmim_dist.cli.app import app, main
from eupmim_dist.config.load import load_config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.doctor import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
STEPS = 30
SETTINGS = {
    "data": {"dir": "store"},
    "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1, "dropout": 0.0, "attention_dropout": 0.0},
    "train": {"global_batch_size": 32, "learning_rate": 0.01, "max_steps": STEPS, "log_every": 5},
    "evaluation": {"every": 10, "metric": "recall@10", "patience": 0, "top_n": [5, 10]},
}
TRAIN = "train --config small.yaml --cpu --run-dir"
METRICS = [f"{name}@{n}" for n in (5, 10) for name in ("recall", "hit_rate", "ndcg", "precision")]
LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def shell(place: Path, line: str, packages: Path = ROOT) -> Ended:
    """Runs a command line in `place` as a user's shell would, with this Python's programs on the path.

    What lies in `packages` is installed too.
    """
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
        "HF_HOME": str(place),  # no accelerate defaults of whoever runs this
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        shlex.split(line), cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher stops its ranks
        out, err = process.communicate(timeout=60)
        raise AssertionError(f"{line}: still running after 300 s\n{out}\n{err}") from None
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def eupmim(place: Path, line: str) -> Ended:
    """The same for `eupmim-dist LINE`, in this process: no wait for torch to be imported."""
    before = sys.argv
    sys.argv = ["eupmim-dist", *shlex.split(line)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    raise AssertionError("main() exits")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory: example data in `store`, a run of two ranks in `run` and its consolidated `model`."""
    root = tmp_path_factory.mktemp("place")
    (root / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    ended = shell(root, "python -m eupmim_dist synth --users 300 --items 200 --mean-length 15 --out store")
    assert ended.code == 0, ended.err
    ended = shell(root, f"python -m eupmim_dist launch --nproc 2 --cpu --threads 1 -- {TRAIN} run")
    assert ended.code == 0, ended.err
    (root / "train.out").write_text(ended.out)
    ended = eupmim(root, "consolidate run --out model")
    assert ended.code == 0, ended.err
    return root


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses_of(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines_of(run_dir) if "loss" in line}


def test_two_ranks_send_what_doctor_foretells(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "STEPS", 5)
    config = load_config(place / "run" / "config.yaml", [f"data.dir={place / 'store'}"])
    foretold = estimate.estimate(config, estimate.Plan(2, 2)).sent
    [first, *_] = [line for line in lines_of(place / "run") if "loss" in line]  # of 5 steps
    assert {kind: foretold[kind][0] for kind in ("replicated", "dense")} == {
        kind: pytest.approx(first[f"bytes_sent/{kind}"], rel=1e-6) for kind in ("replicated", "dense")
    }


def test_a_run_directory_holds_what_is_promised(place: Path) -> None:
    run = place / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "evaluation.json",
        ".lock",
    }
    text = (run / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert text.startswith(f"# eupmim-dist {__version__}, torch {torch.__version__}, commit ")
    assert config["train"]["max_steps"] == STEPS
    assert config["objective"]["num_negatives"] == 10  # a default
    assert list(losses_of(run)) == [5, 10, 15, 20, 25, 30]
    assert all(line["samples_per_second"] > 0 for line in lines_of(run) if "loss" in line)
    dense = sum(parameter.nbytes for parameter in load(run, data=place / "store").model.parameters())
    assert all(line["bytes_sent/dense"] == dense for line in lines_of(run) if "loss" in line)  # of two ranks, each once
    recall = "valid/strict/recall@10"
    judged = {line["step"]: line[recall] for line in lines_of(run) if recall in line}
    assert list(judged) == [10, 20, 30]
    assert losses_of(run)[30] < losses_of(run)[5]
    assert list((run / "tensorboard").glob("events.*"))

    best = max(judged, key=lambda step: (judged[step], -step))
    steps = {path.name: json.loads((path / "manifest.json").read_text()) for path in (run / "checkpoints").iterdir()}
    assert {f"step-{best:09d}", f"step-{STEPS:09d}"} <= set(steps)
    assert len(set(steps) - {f"step-{best:09d}"}) <= config["checkpoint"]["keep"]
    for manifest in steps.values():
        assert len(manifest["files"]) == 2  # one for each rank
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert (evaluation["step"], evaluation["users"], evaluation["split"]) == (best, 30, "test")


def test_rank_0_alone_prints(place: Path) -> None:
    out = (place / "train.out").read_text()
    for line in (
        "data    store: 240 training users, 200 items\n",
        "ranks   2 on cpu, DDP, global batch 32\n",
        "test split, protocol strict, 30 users",
        "What to run next:\n",
    ):
        assert out.count(line) == 1, out
    assert out.count(f"step {STEPS}/{STEPS}  loss") == 1


def test_torchrun_the_same_command_goes_on_with_the_run(place: Path) -> None:
    shutil.copytree(place / "run", place / "torchrun")
    launcher = "python -m torch.distributed.run --standalone --nproc-per-node 2 -m eupmim_dist"
    ended = shell(place, f"{launcher} {TRAIN} torchrun")
    assert ended.code == 0, ended.err
    assert f"going on from torchrun/checkpoints/step-{STEPS:09d}, step {STEPS}" in ended.out
    assert losses_of(place / "torchrun") == losses_of(place / "run")
    for file in ("evaluation.json", "config.yaml"):
        assert (place / "torchrun" / file).read_text() == (place / "run" / file).read_text()


def test_accelerate_a_longer_run_goes_on_too(place: Path) -> None:
    shutil.copytree(place / "run", place / "accelerate")
    launcher = "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 -m eupmim_dist"
    ended = shell(place, f"{launcher} {TRAIN} accelerate --set train.max_steps=35")
    assert ended.code == 0, ended.err
    assert f"step {STEPS}" in ended.out
    assert list(losses_of(place / "accelerate")) == [*losses_of(place / "run"), 35]
    assert losses_of(place / "accelerate")[30] == losses_of(place / "run")[30]


def test_plain_python_trains_the_same_on_one_rank(place: Path) -> None:
    ended = shell(place, f"python -m eupmim_dist {TRAIN} alone")
    assert ended.code == 0, ended.err
    assert "ranks   1 on cpu" in ended.out
    assert losses_of(place / "alone") == pytest.approx(losses_of(place / "run"), rel=1e-5)
    alone, run = (json.loads((place / name / "evaluation.json").read_text()) for name in ("alone", "run"))
    assert alone["metrics"] == pytest.approx(run["metrics"], abs=1e-12)


def test_a_launcher_that_quietly_starts_one_process_is_refused(place: Path) -> None:
    launcher = "accelerate launch --cpu --num_processes 2 -m eupmim_dist"
    ended = shell(place, f"{launcher} {TRAIN} refused")
    assert ended.code != 0
    assert "error: accelerate launch started a single process where several were asked for" in ended.err
    assert not (place / "refused").exists()


def test_figures_do_not_depend_on_ranks_nor_on_what_is_named(place: Path) -> None:
    checkpoint = next(
        path
        for path in (place / "run" / "checkpoints").iterdir()
        if path.name.endswith(f"{json.loads((place / 'run' / 'evaluation.json').read_text())['step']:09d}")
    )
    options = "--split test --protocol strict,seed --protocol comirec --top-n 10,5"
    launched = f"launch --nproc 2 --cpu --threads 1 -- evaluate run {options} --json two.json"
    for ended in (
        shell(place, f"python -m eupmim_dist {launched}"),
        eupmim(place, f"evaluate run {options} --json one.json"),
        eupmim(place, f"evaluate {checkpoint.relative_to(place)} {options} --json checkpoint.json"),
        eupmim(place, f"evaluate model {options} --json model.json"),
    ):
        assert ended.code == 0, ended.err
        assert ended.out.count("test split, protocol strict, 30 users") == 1
    one, two, of_checkpoint, of_model = (
        json.loads((place / f"{name}.json").read_text()) for name in ("one", "two", "checkpoint", "model")
    )
    assert [result["protocol"] for result in one] == ["strict", "seed", "comirec"]
    for result, other in zip(one, two, strict=True):
        assert (result["split"], result["users"], result["model"]) == ("test", 30, "eupmim")
        assert sorted(result["metrics"]) == sorted(METRICS)
        assert other["metrics"] == pytest.approx(result["metrics"], abs=1e-12)
    assert one == of_checkpoint == of_model
    trained = json.loads((place / "run" / "evaluation.json").read_text())
    assert trained["metrics"] == pytest.approx(one[0]["metrics"], abs=1e-12)


def test_one_protocol_gives_one_object(place: Path) -> None:
    ended = eupmim(place, "evaluate run --top-n 5 --split valid --json valid.json")
    assert ended.code == 0, ended.err
    result = json.loads((place / "valid.json").read_text())
    assert (result["protocol"], result["split"], result["users"]) == ("strict", "valid", 30)
    assert list(result["metrics"]) == METRICS[:4]


def test_the_last_checkpoint_on_request(place: Path) -> None:
    eupmim(place, "evaluate run --last --split valid --top-n 10 --json last.json")
    logged = [line["valid/strict/recall@10"] for line in lines_of(place / "run") if "valid/strict/recall@10" in line]
    metrics = json.loads((place / "last.json").read_text())["metrics"]
    assert metrics["recall@10"] == pytest.approx(logged[-1], abs=1e-12)


def test_baselines_beside_a_model_and_alone(place: Path) -> None:
    options = "--baseline popularity,ease --baseline cooccurrence,association --protocol strict,comirec --top-n 10"
    beside = eupmim(place, f"evaluate run {options} --json beside.json")
    alone = eupmim(place, f"evaluate --data store {options} --json alone.json")
    assert beside.code == alone.code == 0, beside.err + alone.err
    for name in ("eupmim", "popularity", "ease", "cooccurrence", "association"):
        assert name in beside.out
    both, baselines = (json.loads((place / f"{name}.json").read_text()) for name in ("beside", "alone"))
    assert [result["model"] for result in both if result["protocol"] == "strict"] == [
        "eupmim",
        "popularity",
        "ease",
        "cooccurrence",
        "association",
    ]
    assert [result for result in both if result["model"] != "eupmim"] == baselines


def test_recommendations_for_people(place: Path) -> None:
    ended = eupmim(place, "recommend model --user 7 --user 299 --top-n 4 --json found.json")
    assert ended.code == 0, ended.err
    assert "user 7, after Topic" in ended.out
    found = json.loads((place / "found.json").read_text())
    assert [entry["user"] for entry in found] == ["7", "299"]
    store = InteractionStore.open(place / "store")
    titles = store.item_titles()
    assert titles is not None
    for entry in found:
        [user] = store.users_of_raw_ids([entry["user"]])
        assert user is not None
        history = np.asarray(store.items[store.offsets[user] : store.offsets[user + 1]])
        ids = [int(item["item"]) for item in entry["items"]]
        scores = [item["score"] for item in entry["items"]]
        assert len(set(ids)) == 4
        assert not set(ids) & set(history.tolist())
        assert scores == sorted(scores, reverse=True)
        assert [item["title"] for item in entry["items"]] == [titles[i] for i in ids]
        assert {item["interest"] for item in entry["items"]} <= {1, 2, 3}
        assert [int(item["item"]) for item in entry["recent"]] == history[::-1][:3].tolist()
    again = eupmim(place, "recommend run --user 7 --user 299 --top-n 4 --json run.json")
    assert again.code == 0, again.err
    assert json.loads((place / "run.json").read_text()) == found


def test_a_consolidated_model_is_one_plain_directory(place: Path) -> None:
    from safetensors.torch import load_file

    files = ["README.md", "config.json", "items.parquet", "model.safetensors", "users.parquet"]
    assert sorted(path.name for path in (place / "model").iterdir()) == files
    tensors = load_file(place / "model" / "model.safetensors")
    assert tensors["table.item"].shape == (201, 8)
    assert tensors["table.user"].shape == (300, 8)
    assert not any(name.partition(".")[0] not in ("dense", "table") for name in tensors)


def test_configurations_are_shown_whole(place: Path) -> None:
    shown = eupmim(place, "config show small.yaml --set train.l2=0.5")
    config = yaml.safe_load(shown.out)
    assert config["train"]["l2"] == 0.5
    assert config["train"]["global_batch_size"] == 32
    assert config["tables"]["optimizer"] == "exact"
    assert (
        eupmim(place, "config show run/config.yaml").out == (place / "run/config.yaml").read_text().partition("\n")[2]
    )
    explained = eupmim(place, "config show --describe").out
    assert "objective.num_negatives [10]\n    N: negatives drawn uniformly" in explained


def test_the_version() -> None:
    assert eupmim(ROOT, "--version") == Ended(0, f"{__version__}\n", "")


def subcommands() -> list[str]:
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [f"{name} {each}" for each in inner] if inner else [name]
    return found


@pytest.mark.parametrize("name", subcommands())
def test_help_shows_examples(name: str) -> None:
    shown = eupmim(ROOT, f"{name} --help")
    assert shown.code == 0
    examples = shown.out.partition("Examples")[2]
    assert f"eupmim-dist {name}" in examples
    assert eupmim(ROOT, f"{name} -h") == shown


def test_help_lists_every_subcommand_without_torch() -> None:
    for line in ("--help", ""):
        shown = eupmim(ROOT, line)
        for name in subcommands():
            assert f"│ {name.partition(' ')[0]} " in shown.out
        assert shown.err == ""
    imports = "import sys, eupmim_dist.cli.app; sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    assert shell(ROOT, f'python -c "{imports}"').code == 0
