"""`bench gpu`, in small on the CPU, and what it was made to find."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from eupmim_dist.bench.gpu import check, kernels, program, ranking, training
from eupmim_dist.bench.gpu.check import CHECKS, Check, run_checks
from eupmim_dist.bench.gpu.sizes import ON_CPU, Figures, Sizes, config_for
from eupmim_dist.config.registry import built_in
from eupmim_dist.models.layers import attention
from eupmim_dist.parallel import merge, world
from eupmim_dist.parallel.merge import lack_of_triton
from tests.runs import command_line
from tests.stores import small_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpu")
    small_store(place / "store", num_users=60)
    return place


def of(check: Callable[[Path, Sizes, Figures], None], place: Path) -> Figures:
    figures: Figures = {}
    check(place, ON_CPU, figures)
    return figures


def test_checks_in_small(place: Path) -> None:
    assert of(kernels.machine, place)["python"]
    assert len(of(kernels.attention, place)["largest difference"]) == 2 * len(ON_CPU.attention_rows)
    assert of(kernels.large_tables, place)["elements"] == ON_CPU.table_rows * ON_CPU.dim
    assert of(training.same_bits, place)["optimizers"] == list(training.TABLE_OPTIMIZERS)
    assert set(of(training.speed, place)["batch"]) == {"16"}
    assert set(of(ranking.evaluation_speed, place)["items"]) == {"300"}


def test_steps_of_all_that_are_to_take_none_and_to_wait_for_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their configurations, which else a GPU would be the first to see."""
    (tmp_path / "store").symlink_to(place / "store")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
    assert not any(of(training.no_waiting, tmp_path)["waits a step"].values())
    found = training.steps_of_nothing(tmp_path, ON_CPU)  # on the store that the other has made
    assert set(found) == set(built_in("model")) - {"elmrec"}
    assert all(map(math.isfinite, found.values()))


@pytest.mark.parametrize(("second", "told"), [(7.01, "1.4e-03"), (math.nan, "nan")])
def test_a_curve_that_is_off_is_a_failure(
    second: float, told: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def curves(_function: object, _place: Path, _sizes: Sizes, environment: dict[str, str]) -> dict[str, Any]:
        losses = [8.0, 7.0 if "ACCELERATE_USE_CPU" in environment else second]
        return {"device": "cpu", "losses": {"sgd device": losses}}

    monkeypatch.setattr(training, "elsewhere", curves)
    figures: Figures = {}
    with pytest.raises(AssertionError, match=f"sgd device, float32: a loss is off by {told} of the CPU's"):
        training.curves_agree(place, ON_CPU, figures)
    assert set(figures["largest difference of a loss"]) == {"sgd device float32", "sgd device bf16"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"lists": {"7": [["a", "b"], [2.0, 1.001]]}}, "as it is: a score is off by 5.0e-04"),
        ({"lists": {"7": [["b", "a"], [2.0, 1.0]]}}, "as it is: 0.0 % of the lists are the CPU's"),
        ({"device": "cuda"}, "as it is: ranked on cuda"),
    ],
)
def test_lists_that_are_others_or_come_from_elsewhere(
    change: dict[str, Any], told: str | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lists(_function: object, _place: Path, _sizes: Sizes, environment: dict[str, str]) -> dict[str, Any]:
        there = {"device": "cpu", "lists": {"7": [["a", "b"], [2.0, 1.0]]}}
        return there if "ACCELERATE_USE_CPU" in environment else there | change

    monkeypatch.setattr(ranking, "elsewhere", lists)
    monkeypatch.setattr(ranking, "run_program", lambda *_: None)
    if told is None:
        assert of(ranking.same_lists, place)["TF32 forced on"]["same lists %"] == 100
    else:
        with pytest.raises(AssertionError, match=told):
            of(ranking.same_lists, place)


def test_all_trainings_are_compared_though_one_fails() -> None:
    def broken() -> dict[int, float]:
        raise AssertionError("no room")

    apart: Figures = {}
    trainings = {"a": lambda: {1: 2.1}, "b": broken, "c": lambda: {1: 2.0}, "d": lambda: {1: math.nan}}
    with pytest.raises(AssertionError, match=r"^a: a loss is off by 5.0e-02; b: no room; d: a loss is off by nan$"):
        program._alike({1: 2.0}, trainings, apart)
    assert apart["c"] == 0


def test_a_log_of_other_steps_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"steps \[3\]"):
        program._apart({1: 2.0, 2: 2.0}, {1: 2.0, 2: 2.0, 3: 2.0})
    with pytest.raises(AssertionError, match="no loss"):
        program._apart({}, {})


def test_verdicts_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a check finds, one that breaks, one that hangs, and those that there was no time or no GPU for."""
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(
        check,
        "CODE",
        "import json, sys, time\n"
        "name, file = sys.argv[1], sys.argv[3]\n"
        "found = {'verdict': None, 'figures': {'a': 1}, 'reason': ''}\n"
        "open(file, 'w').write(json.dumps(found))\n"
        "if name == 'attention': time.sleep(60)\n"
        "if name == 'curves': raise SystemExit('broken')\n"
        "open(file, 'w').write(json.dumps({**found, 'verdict': 'PASS'}))",
    )
    monkeypatch.setitem(CHECKS, "attention", Check("kernels", "attention", 1))
    names = ["speed", "curves", "attention", "no waiting"]
    found = {outcome.name: outcome for outcome in run_checks(tmp_path, names, 1000, gpus=0)}
    assert [found[name].verdict for name in names] == ["PASS", "FAIL", "FAIL", "SKIP"]
    assert found["speed"].figures == found["attention"].figures == {"a": 1}
    assert found["curves"].reason == "ended with 1: broken"
    assert found["attention"].reason.startswith("not done after 1 s")
    [late] = run_checks(tmp_path, ["speed"], 0, gpus=0)
    assert late.verdict == "LATE"


def test_a_check_that_there_was_no_time_to_end_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(check, "CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(check, "WORTH_BEGINNING", 0.1)
    [late] = run_checks(tmp_path, ["attention"], 1.0, gpus=0)
    assert late.verdict == "LATE"
    assert late.reason.startswith("not done after 1 s")


def test_what_a_process_has_started_ends_with_it() -> None:
    worker = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], start_new_session=True)\n"
        "print(worker.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    started = psutil.Process(int(process.stdout.readline()))
    check.end(process)
    process.stdout.close()
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def test_what_a_check_says_of_itself(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("off by 2")

    def crashing(_place: Path, _sizes: Sizes, figures: Figures) -> None:
        figures["a"] = 1
        raise RuntimeError("CUDA error")

    file = tmp_path / "out.json"
    monkeypatch.setattr(kernels, "attention", broken)
    check.make("attention", place, file)
    assert json.loads(file.read_text()) == {"verdict": "FAIL", "figures": {}, "reason": "off by 2"}
    monkeypatch.setattr(kernels, "attention", crashing)
    check.make("attention", place, file)
    found = json.loads(file.read_text())
    assert found["figures"] == {"a": 1}
    assert found["reason"].endswith("RuntimeError: CUDA error\n")
    monkeypatch.setattr(kernels, "available_bytes", lambda _device: 1000)
    check.make("large tables", place, file)
    assert json.loads(file.read_text())["verdict"] == "SKIP"


def test_what_was_found_is_written_before_a_check_is_done(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.json"

    def slow(_place: Path, _sizes: Sizes, figures: Figures) -> None:
        figures["a"] = 1
        while not file.exists():
            time.sleep(0.05)
        assert json.loads(file.read_text()) == {"verdict": None, "figures": {"a": 1}, "reason": ""}

    monkeypatch.setattr(kernels, "attention", slow)
    check.make("attention", place, file)
    assert json.loads(file.read_text())["verdict"] == "PASS"


def test_a_check_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("bench gpu --only attentoin") == 2
    assert "'attentoin' is none of machine, groups" in capsys.readouterr().err


def test_every_check_is_a_function() -> None:
    modules = {"kernels": kernels, "training": training, "program": program, "ranking": ranking}
    assert all(callable(getattr(modules[one.module], one.function)) for one in CHECKS.values())


def test_the_configuration_of_the_checks_takes_changes(place: Path) -> None:
    config = config_for(place / "store", ON_CPU, tables__optimizer="sgd", model__dropout=0.3)
    assert (config.tables.optimizer, config.model.dropout) == ("sgd", 0.3)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_over_more_sequences_than_a_kernel_takes(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(7, 4, 24, requires_grad=True)
    bias = None if causal else torch.randn(7, 1, 1, 4)
    results = []
    for most in (100, 3):
        monkeypatch.setattr(attention, "MOST_SEQUENCES", most)
        mixed = attention.fused_attention(qkv, 2, 0.0, bias)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), qkv)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)


def test_triton_without_a_compiler_or_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(merge, "triton", merge.triton or object())
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    assert "C compiler" in str(lack_of_triton.__wrapped__())
    compiler = tmp_path / "cc"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(merge.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "Python.h" in str(lack_of_triton.__wrapped__())
    (tmp_path / "Python.h").write_text("")
    assert lack_of_triton.__wrapped__() is None
    monkeypatch.setattr(merge, "triton", None)
    assert "not installed" in str(lack_of_triton.__wrapped__())


def test_products_are_in_full_float32_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    torch.set_float32_matmul_precision("high")
    try:
        world._keep_float32_exact()
        assert torch.get_float32_matmul_precision() == "highest"
        assert world.os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    finally:
        torch.set_float32_matmul_precision("highest")
