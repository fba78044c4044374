"""`train` under the shipped DeepSpeed configurations, as a user starts it; a run may go on without DeepSpeed."""

import json
import shlex
from pathlib import Path

import pytest

from tests.e2e.test_cli import ROOT, eupmim, shell
from tests.stores import small_store

ZERO = ROOT / "configs/accelerate"
SIZES = ["--set", "model.dim=8", "--set", "model.dropout=0", "--set", "model.attention_dropout=0"]
SIZES += ["--set", "task.history_length=6", "--set", "train.global_batch_size=8", "--set", "train.log_every=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("zero")
    small_store(place / "store")
    return place


def training(run_dir: str, steps: int) -> list[str]:
    options = ["--set", "data.dir=store", "--set", f"train.max_steps={steps}", "--set", "evaluation.top_n=[5]"]
    return ["train", *options, *SIZES, "--set", "evaluation.metric=recall@5", "--run-dir", run_dir]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_under_deepspeed_says_so_and_goes_on_without(place: Path) -> None:
    launch = ["eupmim-dist", "launch", "--cpu", "--threads", "1", "--nproc"]
    with_zero = shell(
        place, shlex.join([*launch, "2", "--config-file", str(ZERO / "zero2.yaml"), "--", *training("run", 4)])
    )
    assert with_zero.code == 0, with_zero.err
    assert "ranks   2 on cpu, DeepSpeed ZeRO-2, global batch 8\n" in with_zero.out
    assert "deepspeed" not in with_zero.out.lower().replace("deepspeed zero-2", "", 1)
    assert len(with_zero.err.splitlines()) == 1, with_zero.err  # the command that it stands for
    assert {path.name for path in place.iterdir()} <= {"store", "run", "accelerate"}
    without = eupmim(place, shlex.join([*training("run", 8), "--cpu"]))
    assert without.code == 0, without.err
    assert "ranks   1 on cpu, one copy, global batch 8\n" in without.out
    through = eupmim(place, shlex.join([*training("through", 8), "--cpu"]))
    assert through.code == 0, through.err
    assert losses(place / "run") == pytest.approx(losses(place / "through"), rel=1e-5)


def test_accelerates_own_launcher_on_one_rank_with_a_file_that_contradicts(place: Path) -> None:
    (place / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}))
    (place / "zero.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 1\nnum_machines: 1\n"
        "main_process_port: 0\ndeepspeed_config: {deepspeed_config_file: ds.json}\n"
    )
    launch = ["accelerate", "launch", "--config_file", "zero.yaml", "-m", "eupmim_dist"]
    done = shell(place, shlex.join([*launch, *training("refused", 4)]))
    assert done.code != 0
    assert "error: ds.json: gradient_clipping is set; set train.clip_norm instead" in done.err
    assert not (place / "refused").exists()
