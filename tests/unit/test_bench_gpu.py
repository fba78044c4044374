"""`bench gpu`, in small on the CPU, and what it was made to find."""

import json
from pathlib import Path

import pytest
import torch

from eupmim_dist.bench.gpu import check, kernels, program, ranking, training
from eupmim_dist.bench.gpu.check import CHECKS, Check, run_checks
from eupmim_dist.bench.gpu.sizes import ON_CPU, NotHere, Wrong, config_for
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


def test_checks_in_small(place: Path) -> None:
    assert kernels.machine(place, ON_CPU)["python"]
    assert len(kernels.attention(place, ON_CPU)["largest difference"]) == 2 * len(ON_CPU.attention_rows)
    assert kernels.large_tables(place, ON_CPU)["elements"] == ON_CPU.table_rows * ON_CPU.dim
    assert training.same_bits(place, ON_CPU)["steps"] == ON_CPU.steps
    assert set(training.speed(place, ON_CPU)["batch"]) == {"16"}
    assert set(ranking.evaluation_speed(place, ON_CPU)["items"]) == {"300"}
    with pytest.raises(NotHere, match="needs a GPU"):
        training.no_waiting(place, ON_CPU)


def test_a_curve_that_is_off_is_a_failure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def curves(_place: Path, _sizes: object, environment: dict[str, str]) -> dict[str, list[float]]:
        return {"sgd device": [8.0, 7.0 if "ACCELERATE_USE_CPU" in environment else 7.01]}

    monkeypatch.setattr(training, "_curves_elsewhere", curves)
    with pytest.raises(Wrong, match=r"sgd device, float32: a loss is off by 1.4e-03 of the CPU's") as wrong:
        training.curves_agree(place, ON_CPU)
    assert set(wrong.value.figures["largest difference of a loss"]) == {"sgd device float32", "sgd device bf16"}


def test_a_log_of_other_steps_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"steps \[3\]"):
        program._apart({1: 2.0, 2: 2.0}, {1: 2.0, 2: 2.0, 3: 2.0})
    with pytest.raises(AssertionError, match="no loss"):
        program._apart({}, {})


def test_verdicts_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a check finds, one that breaks, one that hangs, and one that there was no time for."""
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(
        check,
        "CODE",
        "import json, sys, time\n"
        "name, file = sys.argv[1], sys.argv[3]\n"
        "if name == 'attention': time.sleep(60)\n"
        "if name == 'curves': raise SystemExit('broken')\n"
        "found = {'verdict': 'PASS', 'figures': {'a': 1}, 'reason': ''}\n"
        "open(file, 'w').write(json.dumps(found))",
    )
    monkeypatch.setitem(CHECKS, "attention", Check("kernels", "attention", 1))
    outcomes = list(run_checks(tmp_path, ["speed", "curves", "attention"], 1000))
    found = {outcome.name: outcome for outcome in outcomes}
    assert [found[name].verdict for name in ("speed", "curves", "attention")] == ["PASS", "FAIL", "FAIL"]
    assert found["speed"].figures == {"a": 1}
    assert found["curves"].reason == "ended with 1: broken"
    assert found["attention"].reason.startswith("not done after 1 s")
    [late] = run_checks(tmp_path, ["speed"], 0)
    assert late.verdict == "LATE"


def test_what_a_check_says_of_itself(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("off by 2")

    monkeypatch.setattr(kernels, "attention", broken)
    check.make("attention", place, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"verdict": "FAIL", "figures": {}, "reason": "off by 2"}
    check.make("several GPUs", place, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "SKIP"


def test_a_check_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("bench gpu --only attentoin") == 2
    assert "'attentoin' is none of machine, curves" in capsys.readouterr().err


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
