"""A user's mistake on the command line: one line that names it and its mend, exit code 2, nothing written.

In this process, for speed; what `prepare` refuses in its sources is in tests/unit/test_formats_*.py.
"""

import contextlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from eupmim_dist.cli.app import DEBUG_VARIABLE
from tests.distributed.spawn import run_ranks
from tests.runs import command_line
from tests.stores import small_store

SETTINGS = {
    "data": {"dir": "store"},
    "task": {"history_length": 6},
    "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1},
    "objective": {"num_negatives": 5},
    "train": {"global_batch_size": 8, "max_steps": 4},
    "evaluation": {"every": 2, "metric": "recall@5", "top_n": [5]},
}
RELEASED = {"mid_embeddings_var.weight": torch.zeros(31, 8), "capsule_network.weights": torch.zeros(1, 6, 16, 8)}
"""A ComiRec for `store`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with stores, a finished run, its consolidated model, and files that are none of these."""
    root = tmp_path_factory.mktemp("place")
    small_store(root / "store")  # 40 users, 30 items
    small_store(root / "other", seed=9)
    small_store(root / "larger", num_items=31)
    small_store(root / "unsplit", num_users=4)  # all of them in training
    (root / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    (root / "typo.yaml").write_text("train:\n  max_stepz: 3\n")
    (root / "broken.yaml").write_text("train:\n  max_steps: [3\nseed: 1\n")
    (root / "log.csv").write_text("user,item\nu,1\nu\n")
    (root / "taken").mkdir()
    (root / "taken" / "thesis.tex").write_text("all of it")
    shutil.copytree(root / "store", root / "damaged")
    items = bytearray((root / "damaged" / "items.npy").read_bytes())
    items[-1] ^= 1
    (root / "damaged" / "items.npy").write_bytes(items)
    shutil.copytree(root / "store", root / "newer")
    change_json(root / "newer" / "dataset.json", lambda manifest: manifest.update(format_version=2))

    torch.save(RELEASED, root / "released.pt")
    torch.save(list(RELEASED.values()), root / "list.pt")
    torch.save({"weight": torch.zeros(2)}, root / "another.pt")
    torch.save({"mid_embeddings_var.weight": torch.zeros(31, 8)}, root / "half.pt")
    torch.save({**RELEASED, "mid_embeddings_var.weight": torch.zeros(8)}, root / "flat.pt")
    torch.save({**RELEASED, "capsule_network.weights": torch.zeros(6)}, root / "bent.pt")
    (root / "cut.pt").write_bytes((root / "released.pt").read_bytes()[:-400])
    (root / "empty.pt").write_bytes(b"")

    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()):
        assert command_line("train --config small.yaml --run-dir run") == 0
        assert command_line("consolidate run --out model") == 0
    for name, change in {
        "model-newer": lambda manifest: manifest.update(format_version=7),
        "model-unknown-key": lambda manifest: manifest["config"]["model"].update(width=1),
        "model-no-manifest": lambda manifest: manifest.clear(),
        "model-wider": lambda manifest: manifest["config"]["model"].update(dim=16),
        "model-deeper": lambda manifest: manifest["config"]["model"].update(num_encoder_layers=2),
        "model-comirec": lambda manifest: manifest["config"].update(model={"name": "comirec_dr", "dim": 8}),
    }.items():
        shutil.copytree(root / "model", root / name)
        change_json(root / name / "config.json", change)
    return root


def change_json(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def written(root: Path) -> dict[Path, int]:
    """Every path below `root`, with the time of its last change if it is a file."""
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in root.rglob("*")}


TRAIN = "train --config small.yaml --run-dir new"
IMPORT = "import {} --data store --out new"
BENCH = "bench step --config small.yaml --data store --steps 1 --repeats 1"
CSV = "prepare log.csv --format csv --user-column user --item-column item --out"
CASES = [
    # the command line itself
    ("trian", "No such command 'trian'. Did you mean 'train'?"),
    ("train --stes seed=1", "No such option: --stes"),
    ("prepare log.csv --out new", "Missing option '--format'"),
    ("recommend run", "recommend: say to whom, by one of --user ID, --users FILE"),
    ("recommend run --user u1 --top-n many", "'--top-n': Input should be a valid integer"),
    # configuration
    (f"{TRAIN} --set model.dims=3", "unknown key model.dims; did you mean model.dim?"),
    (f"{TRAIN} --set model.name=sasrek", "model.name: 'sasrek' is no model; did you mean sasrec.; choose from "),
    (f"{TRAIN} --set seed", "--set seed: write it as key=value"),
    ("train --config typo.yaml --run-dir new", "typo.yaml: unknown key train.max_stepz; did you mean train.max_steps?"),
    ("train --config broken.yaml --run-dir new", "broken.yaml:3: not valid YAML"),
    ("train --config none.yaml --run-dir new", "none.yaml: no such configuration file"),
    ("train --config store --run-dir new", "store: cannot be read as a configuration"),
    ("config show typo.yaml", "typo.yaml: unknown key train.max_stepz"),
    ("bench step --data store --set trian.l2=1", "unknown key trian; did you mean train?"),
    (f"{BENCH} --json nowhere/a.json", "--json nowhere/a.json: cannot be written"),
    # training: data, settings that do not fit the data, run directories, other worlds
    (
        f"{TRAIN} --set world_size=3",
        "world_size: the configuration is for 3 ranks and 1 were started; use `eupmim-dist",
    ),
    (f"{TRAIN} --set data.dir=nowhere", "nowhere: no such directory; make a store with"),
    (f"{TRAIN} --set data.dir=damaged", "damaged/items.npy: content does not match its SHA-256"),
    (f"{TRAIN} --set data.dir=newer", "newer/dataset.json: format_version is 2, this program reads 1"),
    (f"{TRAIN} --set data.dir=unsplit", "unsplit: split valid has no users"),
    (f"{TRAIN} --set task.min_history=99", "store: no training user has more than task.min_history=99 items; lower it"),
    (f"{TRAIN} --set objective.num_negatives=30", "objective.num_negatives: 30 distinct .* use at most 24"),
    (f"{TRAIN} --set evaluation.metric=recall@31", "evaluation.metric: .*31 .* catalogue of 30 items"),
    (f"{TRAIN} --set evaluation.top_n=[10,31]", "evaluation.top_n: .*31 .* catalogue of 30 items"),
    (f"{TRAIN} --set evaluation.top_n=[]", "evaluation.top_n: "),
    (f"{TRAIN} --resume nowhere", "nowhere: no such file or directory"),
    (f"{TRAIN} --resume model", "--resume model: is a model without training state"),
    (f"{TRAIN} --resume store", "store: is an interaction store; `eupmim-dist audit store` tells what is in it"),
    (
        f"{TRAIN} --resume run --set model.dim=16",
        "model.dim: 16, but run/checkpoints/step-000000004 was trained with 8",
    ),
    (f"{TRAIN} --resume run --set data.dir=other", "other: is another store than run/checkpoints/step-000000004"),
    ("train --config small.yaml --run-dir run --resume never", "run: already holds a run; use --resume auto"),
    ("train --config small.yaml --run-dir run --set seed=1", "seed: 1, but run/checkpoints/.* was trained with 321"),
    ("train --config small.yaml --run-dir taken", "taken: already holds something that is not a run"),
    ("train --config small.yaml --run-dir log.csv", "log.csv: already holds something that is not a run"),
    ("train --config small.yaml --run-dir log.csv/run", "log.csv/run: .*[Nn]ot a directory"),
    # evaluation
    ("evaluate", "give a run or checkpoint, or --baseline NAME with --data DIR"),
    ("evaluate --baseline ease", "give a run or checkpoint, or --baseline NAME with --data DIR"),
    ("evaluate nowhere", "nowhere: no such file or directory; give a run directory, a checkpoint or a model"),
    ("evaluate released.pt", "released.pt: is a file; .* `import` a released model.pt first"),
    ("evaluate taken", "taken: neither a run with a complete checkpoint nor a checkpoint; train one first"),
    ("evaluate run --top-n 10,31", "[Nn] 31 is larger than the catalogue of 30 items"),
    ("evaluate run --top-n 0", "--top-n 0: give whole numbers from 1"),
    ("evaluate run --top-n -5", "--top-n -5: give whole numbers from 1"),
    ("evaluate run --top-n ten", "--top-n ten: give whole numbers from 1"),
    ("evaluate run --split train", "--split train: choose valid or test"),
    ("evaluate run --protocol loose", "--protocol loose: choose from strict, comirec, seed"),
    ("evaluate run --protocol ''", "--protocol"),
    (
        "evaluate run --baseline random",
        "--baseline random: choose from association, cooccurrence, ease, history_paths, next_id, paths, popularity",
    ),
    ("evaluate run --data nowhere", "nowhere: no such directory"),
    ("evaluate run --data taken", "taken/dataset.json: not found, so this is no interaction store"),
    ("evaluate run --data damaged", "damaged/items.npy: content does not match its SHA-256"),
    ("evaluate run --data other", "other: is another store than run/checkpoints/.* was trained on"),
    ("evaluate --baseline popularity --data unsplit --top-n 5", "unsplit: split test has no users"),
    ("evaluate --baseline popularity --data store", "50 is larger than the catalogue of 30 items"),
    ("evaluate run --top-n 5 --json nowhere/a.json", "--json nowhere/a.json: cannot be written: No such file"),
    # checkpoints of another model, or damaged
    ("evaluate model-newer", "model-newer/config.json: format version 7, this program reads 5; update"),
    ("evaluate model-unknown-key", "model-unknown-key/config.json: unknown key model.width"),
    ("evaluate model-no-manifest", "model-no-manifest/config.json: is no manifest of this program"),
    ("evaluate model-wider", "model-wider: is of another model: .* should be .*16.*, the checkpoint holds it as .*8"),
    ("evaluate model-deeper", "model-deeper: is of another model: .* the checkpoint does not hold it; use the"),
    ("recommend model-comirec --user u1 --top-n 5", "model-comirec: is of another model"),
    # recommendations
    ("recommend nowhere --user u1", "nowhere: no such file or directory"),
    ("recommend run --user nobody --top-n 5", "--user nobody: no such user in store"),
    ("recommend run --user u1 --user nobody --top-n 5", "--user nobody: no such user in store"),
    ("recommend run --user '' --top-n 5", "--user"),
    ("recommend run --user u1 --top-n 31", "[Nn] 31 is larger than the catalogue of 30 items"),
    ("recommend run --user u1 --top-n 0", "'--top-n': Input should be greater than or equal to 1"),
    ("recommend run --user u1 --top-n -3", "'--top-n': Input should be greater than or equal to 1"),
    ("recommend run --user u1 --top-n 5 --json nowhere/a.json", "--json nowhere/a.json: cannot be written"),
    # consolidating and importing
    ("consolidate run --out taken", "taken: already exists; give another --out"),
    ("consolidate run --out log.csv", "log.csv: already exists; give another --out"),
    ("consolidate run --out log.csv/model", "log.csv/model: cannot be written: Not a directory"),
    ("consolidate model --out new", "model: is consolidated already"),
    ("consolidate store --out new", "store: is an interaction store; `eupmim-dist audit store` tells what is in it"),
    (IMPORT.format("none.pt"), "none.pt: no such file"),
    (IMPORT.format("store"), "store: is a directory; give the file in it, such as store/model.pt"),
    (IMPORT.format("typo.yaml"), "typo.yaml: is not a checkpoint of tensors alone, so it is not loaded"),
    (IMPORT.format("empty.pt"), "empty.pt: is not a checkpoint of tensors alone, so it is not loaded"),
    (IMPORT.format("cut.pt"), "cut.pt: is not a checkpoint of tensors alone, so it is not loaded"),
    (IMPORT.format("list.pt"), "list.pt: does not hold a state_dict of tensors; import the authors' released model"),
    (IMPORT.format("another.pt"), "another.pt: holds no mid_embeddings_var.weight, so it is neither E-UPMiM nor"),
    (IMPORT.format("half.pt"), "half.pt: its tensors are neither those of E-UPMiM nor of ComiRec"),
    (IMPORT.format("flat.pt"), "flat.pt: "),
    (IMPORT.format("bent.pt"), "bent.pt: "),
    (IMPORT.format("released.pt") + " --set model.dims=1", "--set: unknown key model.dims; did you mean model.dim?"),
    ("import released.pt --data nowhere --out new", "nowhere: no such directory"),
    ("import released.pt --data larger --out new", r"released.pt: table.item is \(31, 8\), but larger .* \(32, 8\)"),
    ("import released.pt --data store --out taken", "taken: already exists; give another --out"),
    # making stores
    ("prepare nowhere --format csv --out new", "nowhere: no such file or directory"),
    ("prepare log.csv --format json --out new", "--format json: unknown; one of eupmim, movielens"),
    (
        f"{CSV} new",
        "log.csv:3: 1 field, the header has 2; mend or delete the row, or leave bad rows out with --skip-bad",
    ),
    (f"{CSV} new --where stars=5", "--where stars=5: log.csv: no column .stars.; there are user, item"),
    (CSV.removesuffix(" --out"), "--out: name the directory of the new store"),
    (f"{CSV} store", "store: already holds the store 'small'; replace it with --force or name another --out"),
    (f"{CSV} taken --force", "taken: holds other files"),
    ("synth --users 5 --items 500 --out new", "--users 5: give 10 or more"),
    ("synth --users 30 --items 480 --out run --force", "run: holds other files"),
    # launching
    ("launch --nproc 2", "nothing to launch"),
    ("launch --nproc 0 -- train", "--nproc 0: must be at least 1"),
]


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_a_mistake_is_one_line_and_writes_nothing(
    place: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = written(place)
    code = command_line(line)
    after = written(place)
    if (place / "new").exists():  # would be in the way of the next one
        shutil.rmtree(place / "new")
    error = capfd.readouterr().err
    assert code == 2, error
    check_line(error, message)
    assert after == before


def check_line(error: str, message: str) -> None:
    [line] = error.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


class Payload:
    """Unpickled, it makes the directory `executed`."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("kind", ["torch", "pickle", "state"])
def test_a_released_model_is_never_executed(
    tmp_path: Path,
    place: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "pickle":
        Path("evil.pt").write_bytes(pickle.dumps({**RELEASED, "x": Payload()}))
        pickle.loads(Path("evil.pt").read_bytes())
    else:
        torch.save({**RELEASED, "x": Payload()} if kind == "torch" else Payload(), "evil.pt")
        torch.load("evil.pt", weights_only=False)
    Path("executed").rmdir()  # so it is armed
    recwarn.clear()

    assert command_line(f"import evil.pt --data {place / 'store'} --out new") == 2
    error = capfd.readouterr().err
    check_line(error, "evil.pt: is not a checkpoint of tensors alone, so it is not loaded")
    assert not list(recwarn)  # each would be one more line
    assert "weights_only" not in error  # no advice on how to execute it all the same
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt"]


def test_a_traceback_is_shown_only_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "")  # --debug sets it; restored in the end
    monkeypatch.chdir(place)
    assert command_line("--debug evaluate nowhere") == 2
    *traceback, last = capfd.readouterr().err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert last.startswith("error: nowhere: no such file")


ON_TWO_RANKS = [
    (line, message)
    for line, message in CASES
    if line
    in (
        f"{TRAIN} --set model.dims=3",
        f"{TRAIN} --set world_size=3",
        f"{TRAIN} --set data.dir=damaged",
        f"{TRAIN} --set evaluation.top_n=[10,31]",
        "evaluate",
        "evaluate run --top-n 10,31",
        "evaluate run --data other",
        "evaluate model-wider",
        "evaluate --baseline popularity --data unsplit --top-n 5",
        "evaluate run --top-n 5 --json nowhere/a.json",
    )
]


@pytest.mark.parametrize(
    ("line", "message"),
    [("train --stes seed=1", "No such option: --stes"), ("recommend run --user u1", "recommend: runs on one rank")],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_ranks_refuse_alike_rank_0_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, line: str, message: str
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command_line(line) == 2
    told = capsys.readouterr().err
    if rank == 0:
        check_line(told, message)
    assert (bool(told), waited) == ((True, []) if rank == 0 else (False, [3]))


def one_mistake_after_another(place: Path, lines: list[str]) -> list[tuple[int, str]]:
    os.chdir(place)
    os._exit = sys.exit  # type: ignore[assignment]  # main() ends a rank's process at once
    outcomes = []
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
            code = command_line(line)
        outcomes.append((code, error.getvalue()))
    return outcomes


def test_of_two_ranks_one_tells_the_mistake(place: Path) -> None:
    before = written(place)
    ranks = run_ranks(2, one_mistake_after_another, place, [line for line, _ in ON_TWO_RANKS])
    assert len(ON_TWO_RANKS) == 10
    for (line, message), outcomes in zip(ON_TWO_RANKS, zip(*ranks, strict=True), strict=True):
        errors = [error for _, error in outcomes if error]
        assert [code for code, _ in outcomes] == [2, 2], line
        assert len(errors) == 1, f"{line}: {errors}"
        check_line(errors[0], message.replace("1 were started", "2 were started"))
    assert written(place) == before


def test_a_launch_ends_as_its_ranks_do(place: Path) -> None:
    line = "evaluate run --top-n 10,31"
    command = f"{sys.executable} -m eupmim_dist launch --cpu --nproc 2 --threads 1 -- {line}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        shlex.split(command), cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    shown, *rest = ended.stderr.splitlines()
    assert "accelerate launch" in shown
    assert ended.returncode == 2
    check_line("\n".join(rest), "[Nn] 31 is larger than the catalogue of 30 items")
