"""`eupmim-dist launch` starts what was asked for, reports one failure once, and leaves nothing running."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eupmim_dist.cli import launch as launch_module
from eupmim_dist.cli.attempts import AGAIN
from eupmim_dist.cli.launch import _plan
from eupmim_dist.errors import UserError
from tests.e2e.test_cli import LAUNCHER_NAMES, eupmim
from tests.stores import small_store

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "tests.e2e.ranks", "launch"]
TWO_ON_CPU = [*LAUNCH, "--cpu", "--nproc", "2", "--threads", "1"]


@pytest.fixture
def env(tmp_path):
    """A user's environment: the programs of this Python on the path, no accelerate defaults of whoever runs this."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | {"PATH": programs, "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}


def start(command, env):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def finish(process, timeout=120):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, sorted(out.splitlines()), err


def run(command, env):
    return finish(start(command, env))


def children(pid):
    """Processes below `pid` that are alive."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listing.splitlines())
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [below for child in found for below in children(child)]


def alive(pids):
    running = []
    for pid in pids:
        try:
            os.kill(pid, 0)
            running.append(pid)
        except ProcessLookupError:
            pass
    return running


def test_two_launches_at_once_start_all_their_ranks(env, gpus, monkeypatch, capsys, tmp_path):
    """One of them by the command that `launch` shows, the other with `doctor`, which finds nothing wrong."""
    gpus(0)
    monkeypatch.setattr(launch_module, "MODULE", "tests.e2e.ranks")
    launch_module.launch(["rank", "report"], **DEFAULTS | {"nproc": 2, "threads": 1}, cpu=True, dry_run=True)
    out, shown = capsys.readouterr()
    assert (out, "accelerate launch --num_processes 2" in shown) == ("", True)
    small_store(tmp_path / "store")
    asked = ["--set", f"data.dir={tmp_path}/store", "--run-dir", tmp_path / "run", "--json", tmp_path / "doctor.json"]
    first, second = start([*TWO_ON_CPU, "--", "doctor", *map(str, asked)], env), start(["sh", "-c", shown], env)
    code, out, err = finish(second)
    assert code == 0, err
    assert out == ["rank 0/2 cpu 2 1 no", "rank 1/2 cpu 2 1 no"]
    code, out, err = finish(first)
    assert code == 0, (out, err)
    checks = {check["check"]: check for check in json.loads((tmp_path / "doctor.json").read_text())["checks"]}
    assert {name for name, check in checks.items() if check["verdict"] == "FAIL"} == set(), checks
    together = {"network", "clocks", "run directory", "exchange", "all-reduce", "all-gather", "all-to-all", "store"}
    assert together <= checks.keys()
    assert checks["world"]["found"] == "2 ranks on 1 host"
    assert not (tmp_path / "run").exists()


def test_one_rank_needs_no_process_group_and_no_separator(env):
    code, out, err = run([*LAUNCH, "--nproc", "1", "--mixed-precision", "bf16", "rank", "report"], env)
    assert (code, len(out)) == (0, 1), err
    assert re.fullmatch(r"rank 0/1 cpu 1 \d+ bf16", out[0])


@pytest.mark.parametrize(
    ("what", "code", "lines"),
    [
        ("mistake", 2, ["error: data.yaml: no such key"]),
        (
            "killed",
            128 + signal.SIGKILL,
            [
                "rank 1 was killed by SIGKILL: starting again, 1 of 2",
                "rank 1 was killed by SIGKILL: starting again, 2 of 2",
                "error: rank 1 was killed by SIGKILL: out of memory?",
            ],
        ),
    ],
)
def test_all_ranks_start_again_after_one_has_died_but_not_after_a_mistake(env, what, code, lines):
    returned, _, err = run([*TWO_ON_CPU, "--max-restarts", "2", "--", "rank", what], env)
    assert (returned, err.splitlines()[1:]) == (code, lines)


def test_after_a_rank_has_died_it_is_told_how_to_go_on(env):
    returned, _, err = run([*TWO_ON_CPU, "--", "rank", "killed"], env)
    assert returned == 128 + signal.SIGKILL
    assert err.splitlines()[1:] == ["error: rank 1 was killed by SIGKILL: out of memory?", AGAIN]


def test_one_rank_starts_again_too(env):
    returned, _, err = run([*LAUNCH, "--cpu", "--nproc", "1", "--max-restarts", "1", "--", "rank", "exit"], env)
    assert (returned, err.splitlines()[1:]) == (7, ["rank 0 failed with code 7: starting again, 1 of 1"])


@pytest.mark.parametrize("option", [["--resume", "never"], ["--resume=runs/other"]])
def test_restarts_go_on_from_where_the_run_was_saved(option):
    with pytest.raises(UserError, match=r"max_restarts with resume (never|runs/other): a restart goes on"):
        launch_module.launch(
            ["train", "--run-dir", "runs/a", *option], max_restarts=1, dry_run=True, **DEFAULTS, cpu=True
        )


@pytest.mark.parametrize(("nproc", "signal_"), [("1", signal.SIGTERM), ("2", signal.SIGINT)])
def test_a_signal_stops_all_ranks(env, nproc, signal_):
    process = start([*LAUNCH, "--cpu", "--nproc", nproc, "--", "rank", "sleep"], env)
    for _ in range(int(nproc)):
        assert process.stdout.readline() == "ready\n"
    ranks = children(process.pid)
    assert len(ranks) == int(nproc)
    started = time.monotonic()
    process.send_signal(signal_)
    code, _, err = finish(process)
    assert code == 128 + signal_, err
    assert "Traceback" not in err
    assert time.monotonic() - started < 20
    assert alive(ranks) == []


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(("grace", "leave"), [("1", False), ("10", True)])
def test_ranks_have_the_grace_they_are_given_to_leave(env, nproc, grace, leave):
    process = start([*LAUNCH, "--cpu", "--nproc", str(nproc), "--grace", grace, "--", "rank", "slow"], env)
    for _ in range(nproc):
        assert process.stdout.readline() == "ready\n"
    ranks = children(process.pid)
    left = ["left"] * nproc if leave else []
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, out) == (128 + signal.SIGTERM, left), err
    assert alive(ranks) == []


def test_a_rank_that_hears_no_signal_does_not_outlive_a_dead_one_for_long(env):
    process = start([*TWO_ON_CPU, "--", "rank", "deaf"], env)
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    code, _, _ = finish(process)
    assert code == 128 + signal.SIGKILL
    assert time.monotonic() - started < 20  # torchrun would wait 30 s


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
@pytest.mark.parametrize("nproc", ["1", "2"])
def test_ranks_end_with_a_launcher_that_is_killed(env, nproc):
    process = start([*LAUNCH, "--cpu", "--nproc", nproc, "--", "rank", "sleep"], env)
    for _ in range(int(nproc)):
        assert process.stdout.readline() == "ready\n"
    ranks = children(process.pid)
    assert len(ranks) == int(nproc)
    process.kill()
    process.communicate(timeout=10)  # until the last one has closed its output


def train_until_signalled(env, run_dir, pids, signal_):
    """Trains without end on two ranks and sends a signal, once steps are logged, to what `pids` picks."""
    sizes = ["--set", "model.dim=8", "--set", "task.history_length=5", "--set", "train.global_batch_size=8"]
    endless = ["--set", "train.max_steps=1000000", "--set", "train.log_every=1"]
    data = ["--set", f"data.dir={run_dir.parent / 'store'}", "--run-dir", str(run_dir)]
    process = start([*TWO_ON_CPU, "--max-restarts", "2", "--", "train", *data, *sizes, *endless], env)
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        log = run_dir / "metrics.jsonl"
        if log.exists() and log.read_text().count("\n") > 5:
            break
        time.sleep(0.1)
    for pid in pids(process.pid):
        os.kill(pid, signal_)
    return [*data, *sizes], *finish(process)


@pytest.mark.parametrize(
    ("pids", "signal_", "code"),
    [
        pytest.param(lambda launcher: children(launcher)[-1:], signal.SIGTERM, 75, id="one-rank"),
        pytest.param(
            lambda launcher: [launcher, *children(launcher)], signal.SIGUSR1, 128 + signal.SIGUSR1, id="all-processes"
        ),
    ],
)
def test_a_training_that_is_asked_to_leave_saves_first(env, tmp_path, pids, signal_, code):
    small_store(tmp_path / "store", num_users=60, num_items=500)
    same, returned, out, err = train_until_signalled(env, tmp_path / "run", pids, signal_)
    assert returned == code, err
    assert "Traceback" not in err
    [told] = [line for line in out if line.startswith("stopped as asked: ")]
    step = re.fullmatch(r"stopped as asked: step (\d+) is saved, the same command goes on from there", told).group(1)
    assert max(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")) == f"step-{int(step):09d}"
    if signal_ == signal.SIGTERM:
        few = ["--set", f"train.max_steps={int(step) + 1}", "--set", "train.log_every=1"]
        again = eupmim(ROOT, shlex.join(["train", "--cpu", *same, *few]))
        assert again.code == 0, again.err
        assert f", step {step}\n" in again.out


DEFAULTS = dict.fromkeys(["nproc", "nnodes", "node_rank", "rdzv_endpoint", "mixed_precision", "threads", "config_file"])


def plan(**options):
    command, env = _plan(["train", "--cpu"], **(DEFAULTS | {"cpu": False} | options))
    return shlex.join(command), env


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr("accelerate.commands.config.default_config_file", "/nonexistent")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12), raising=False)
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "ranks"), [(0, 2), (1, 1), (8, 8)])
def test_by_default_every_gpu_has_a_rank_and_else_there_are_two(gpus, count, ranks):
    gpus(count)
    command, env = plan()
    assert f"--num_processes {ranks} " in command
    assert ("--multi_gpu" in command) == (ranks > 1)
    threads = {"OMP_NUM_THREADS": str(12 // ranks), "EUPMIM_CHOOSE_THREADS": "1"}
    assert env == {"EUPMIM_WORLD_SIZE": str(ranks), **threads}
    assert command.endswith("-m eupmim_dist train --cpu")


def test_cpu_hides_the_gpus(gpus):
    gpus(1)
    command, env = plan(cpu=True, nproc=3)
    assert "--num_processes 3 --num_machines 1 --main_process_port 0 --multi_gpu" in command
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["ACCELERATE_USE_CPU"] == "true"


def test_several_nodes(gpus):
    gpus(4)
    command, env = plan(nnodes=2, node_rank=1, rdzv_endpoint="node0:29500")
    assert "--num_processes 8 --num_machines 2 --machine_rank 1" in command
    assert "--main_process_ip node0 --main_process_port 29500 --multi_gpu" in command
    assert env["EUPMIM_WORLD_SIZE"] == "8"


def test_the_users_threads_stay(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert plan()[1]["OMP_NUM_THREADS"] == "5"
    assert plan(threads=3)[1]["OMP_NUM_THREADS"] == "3"
    assert "EUPMIM_CHOOSE_THREADS" not in plan()[1].keys() | plan(threads=3)[1].keys()


def test_an_accelerate_configuration_gives_defaults(gpus, tmp_path):
    gpus(8)
    path = tmp_path / "deepspeed.yaml"
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 4\n"
        "mixed_precision: bf16\ndeepspeed_config: {zero_stage: 2}\n"
    )
    command, env = plan(config_file=path)
    assert command.startswith(f"--config_file {path} --num_processes 4 ")
    assert "--multi_gpu" not in command  # it would win over DeepSpeed
    assert "--mixed_precision" not in command
    assert env["EUPMIM_WORLD_SIZE"] == "4"
    assert plan(config_file=path, nproc=2)[1]["EUPMIM_WORLD_SIZE"] == "2"


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_is_started_through_torchrun_everywhere(gpus, stage):
    gpus(8)
    path = ROOT / f"configs/accelerate/zero{stage}.yaml"
    command, env = plan(config_file=path, cpu=True, nproc=1)
    assert "--num_processes 1 --num_machines 1 --main_process_port 0 -m eupmim_dist" in command
    assert env["ACCELERATE_USE_CPU"] == "true"
    command, env = plan(config_file=path, nnodes=2, node_rank=1, rdzv_endpoint="node0:29500")
    assert "--deepspeed_multinode_launcher standard" in command
    assert "--multi_gpu" not in command


@pytest.mark.parametrize(("name", "ranks"), [("cpu", 2), ("one_gpu", 1), ("multi_gpu", 8), ("multi_node", 16)])
def test_the_shipped_accelerate_configurations_start_their_ranks(gpus, name, ranks):
    gpus(8)
    command, env = plan(config_file=ROOT / f"configs/accelerate/{name}.yaml")
    assert f"--num_processes {ranks} " in command
    assert ("--multi_gpu" in command) == (ranks > 1)
    assert ("CUDA_VISIBLE_DEVICES" in env) == (name == "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nproc": 0}, "--nproc 0"),
        ({"nproc": 9}, "9 ranks need 9 GPUs and this machine has 8"),
        ({"nnodes": 0}, "--nnodes 0"),
        ({"threads": 0}, "--threads 0"),
        ({"nnodes": 2}, "--nnodes 2 also needs --node-rank .* and --rdzv-endpoint"),
        ({"nnodes": 2, "node_rank": 2, "rdzv_endpoint": "a:1"}, "--node-rank 2: must be 0 to 1"),
        ({"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "a"}, "--rdzv-endpoint a: must be HOST:PORT"),
        ({"nnodes": 2, "node_rank": 0, "rdzv_endpoint": "a:99999"}, "--rdzv-endpoint a:99999"),
        ({"config_file": Path("/nonexistent.yaml")}, "/nonexistent.yaml"),
    ],
)
def test_a_mistake_is_named(gpus, options, message):
    gpus(8)
    with pytest.raises(UserError) as refused:
        plan(**options)
    assert re.search(message, refused.value.as_typed)


def test_there_must_be_something_to_launch():
    with pytest.raises(UserError, match="nothing to launch"):
        launch_module.launch()
