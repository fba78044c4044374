"""The number of threads: who decides, that measuring finds the fastest in little time, and that it changes nothing."""

from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eupmim_dist import Callback, fit
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.world import World
from eupmim_dist.train import threads
from eupmim_dist.train.state import Run
from eupmim_dist.train.threads import CHOOSE_VARIABLE, settle_threads, threads_restored
from tests.models import of_histories
from tests.runs import config_of, start
from tests.unit.test_training import check_equal, losses, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")

Cores = Callable[[int], None]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cores]:
    """Gives each rank so many, of which torch uses all, and forgets who asked for how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(CHOOSE_VARIABLE, raising=False)

    def give(number: int) -> None:
        monkeypatch.setattr(threads, "of_each_rank", lambda local_size: number)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: number)
        torch.set_num_threads(number)

    with threads_restored():
        yield give


def takes(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
    """Has a pass take so long by the number of threads; something disturbs two of five."""
    disturbances = cycle([2, 1, 1, 2.5, 1])
    monkeypatch.setattr(threads, "_seconds", lambda work: seconds[torch.get_num_threads()] * next(disturbances))


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ({1: 0.040}, 1),
        ({1: 0.038, 2: 0.051}, 1),
        ({1: 0.051, 2: 0.038}, 2),
        ({1: 0.0390, 2: 0.0385}, 1),  # a second thread for little
        ({1: 0.04, 2: 0.03, 3: 0.029}, 2),
        ({1: 0.04, 2: 0.03, 4: 0.02, 6: 0.01}, 6),
        ({1: 0.004, 2: 0.003, 4: 0.0025, 8: 0.009, 12: 0.011}, 4),
    ],
)
def test_the_fastest_is_taken_and_the_fewest_of_those_alike(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], fastest: int
) -> None:
    cores(most := max(seconds))
    takes(monkeypatch, seconds)
    run = start(config_of(tmp_path))
    line = settle_threads(run)
    assert run.config.train.threads == torch.get_num_threads() == fastest
    if most == 1:
        assert line is None  # there was nothing to choose
        return
    assert line is not None
    assert max(map(len, line.splitlines())) <= 80
    line = " ".join(line.split())
    assert line.startswith(f"threads {fastest} of {most}: {1000 * seconds[fastest]:.1f} ms forward and backward of 8 ")
    for count in seconds.keys() - {fastest}:
        assert f"{1000 * seconds[count]:.1f} ms with {count}" in line


def test_measuring_takes_about_two_seconds_whatever_a_sample_takes(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(config_of(tmp_path, train__global_batch_size=4096))
    of_sample, with_several, spent, samples = 0.0, 1.0, [0.0], [0]

    def sized(run: Run, parts: int) -> tuple[Callable[[], None], int]:
        samples.append(4096 // parts)
        return (lambda: None), samples[-1]

    def timed(work: Callable[[], None]) -> float:
        spent.append((0.001 + samples[-1] * of_sample) * (1.0 if torch.get_num_threads() == 1 else with_several))
        return spent[-1]

    monkeypatch.setattr(threads, "_forward_and_backward", sized)
    monkeypatch.setattr(threads, "_seconds", timed)
    cases = product((2, 16), (0.3, 1.0, 2.0, 6.0, 50.0), (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0))
    for most, with_several, of_sample in cases:
        cores(most)
        spent.clear()
        samples.clear()
        run.config.train.threads = None
        line = settle_threads(run)
        what = (most, with_several, of_sample, sum(spent), samples)
        assert sum(spent) < (2.5 if with_several < 3 else 3.5) or samples == [16], what
        assert sum(spent) <= max(3.5, 4 * 16 * 1.001 * of_sample * max(1, with_several)), what
        assert samples == sorted(samples)
        assert line is not None
        assert run.config.train.threads in ((1,) if with_several >= 1 else (2, most)), what


def test_other_work_that_begins_meanwhile_ends_the_measuring(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(2)
    run, passes, clock = start(config_of(tmp_path)), [0], [0.0]

    def timed(work: Callable[[], None]) -> float:
        passes[0] += 1
        clock[0] += 0.001 if passes[0] <= 4 else 2.0
        return 0.001 * torch.get_num_threads()

    monkeypatch.setattr(threads, "_seconds", timed)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    settle_threads(run)
    assert (passes[0], run.config.train.threads) == (8, 1)


@pytest.mark.parametrize(
    ("setting", "before", "asked", "expected"),
    [
        (3, 2, 4, 3),
        (None, 2, 4, 2),
        (None, 2, None, 2),
        (None, None, 4, 4),
        (None, None, None, 5),  # as measured
        (None, 9, None, 5),  # on a machine with more cores
        (None, 9, 4, 4),
        (None, 9, 9, 9),
        (7, None, None, 7),
    ],
)
def test_who_decides(
    tmp_path: Path,
    cores: Cores,
    monkeypatch: pytest.MonkeyPatch,
    setting: int | None,
    before: int | None,
    asked: int | None,
    expected: int,
) -> None:
    cores(8)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", str(asked))
        torch.set_num_threads(asked)  # as torch has done when it was loaded
    monkeypatch.setattr(threads, "_fastest", lambda run, most: (5, f"threads 5 of {most}"))
    run = start(config_of(tmp_path, train__threads=setting))
    line = settle_threads(run, before)
    assert run.config.train.threads == torch.get_num_threads() == expected
    assert line == {5: "threads 5 of 8", 2: "threads 2, with which its checkpoint was trained"}.get(expected)


def test_more_threads_than_cpus_are_refused(tmp_path: Path, cores: Cores) -> None:
    cores(2)
    with pytest.raises(UserError, match=r"train.threads: 3, and this machine has 2 CPUs"):
        settle_threads(start(config_of(tmp_path, train__threads=3)))


def test_what_the_launcher_sets_is_the_most(tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv(CHOOSE_VARIABLE, "1")
    takes(monkeypatch, {1: 0.02, 2: 0.01, 4: 0.03})
    settle_threads(run := start(config_of(tmp_path)))
    assert run.config.train.threads == 2


def test_the_threads_of_a_gpu_rank_are_left_alone(tmp_path: Path, cores: Cores) -> None:
    cores(2)
    run = start(config_of(tmp_path))
    run.world = World(0, 1, 0, 1, torch.device("cuda"))
    assert settle_threads(run, before=1) is None
    assert run.config.train.threads is None
    assert torch.get_num_threads() == 2
    run.config.train.threads = 1
    settle_threads(run)
    assert torch.get_num_threads() == 1


CASES: list[Any] = [{"model": {"name": name, "dim": 8}} for name in of_histories()]
CASES += [{"objective": {"name": "full_softmax"}}, {"train__accumulation": 3}, {"train__global_batch_size": 150}]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_measuring_changes_nothing(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Dropout, the state of torch's generator, weights, gradients: a run that measures trains as one that does not."""
    cores(2)
    passes: list[int] = []
    run, never = start(config_of(tmp_path, **changes)), start(config_of(tmp_path, **changes))

    def timed(work: Callable[[], None]) -> float:
        work()
        passes.append(torch.get_num_threads())
        return 0.01 * torch.get_num_threads()

    def count(module: Any, given: Any) -> None:
        module.number.add_(1)

    monkeypatch.setattr(threads, "_seconds", timed)
    monkeypatch.setattr(threads, "MOST_ROUNDS", 1)
    run.model.register_buffer("number", torch.zeros(()), persistent=False)
    run.model.register_forward_pre_hook(count)
    state, requests = torch.get_rng_state(), dict(run.tables.requests)
    settle_threads(run)
    assert {1, 2} == set(passes)
    assert torch.equal(torch.get_rng_state(), state)
    assert run.tables.requests == requests
    assert float(run.model.number) == 0
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert torch.get_num_threads() == 1
    assert losses(run, 5) == losses(never, 5)
    check_equal(tensors_of(run), tensors_of(never))


class Threads(Callback):
    """Notes how many torch has in each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def after_step(self, run: Any, outcome: Any) -> None:
        self.seen.append(torch.get_num_threads())


def test_a_run_that_is_gone_on_with_keeps_its_threads(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trained(**overrides: Any) -> list[int]:
        seen = Threads()
        fit(
            config_of(tmp_path, model={"name": "youtube_dnn", "dim": 8}),
            tmp_path / "run",
            overrides=overrides,
            callbacks=[seen],
        )
        assert torch.get_num_threads() == 3  # as a notebook has it
        return seen.seen

    def on_record() -> tuple[Any, Any]:
        written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        return written["train"]["threads"], resolve(tmp_path / "run", "last").config.train.threads

    def measured(fastest: int) -> None:
        monkeypatch.setattr(threads, "_fastest", lambda run, most: (fastest, f"threads {fastest} of {most}: fast"))

    cores(3)
    measured(2)
    assert trained(**{"train.max_steps": 4}) == [2] * 4
    assert on_record() == (None, 2)
    assert "threads 2 of 3: fast" in capfd.readouterr().out
    measured(1)
    assert trained(**{"train.max_steps": 6}) == [2] * 2
    assert "threads 2, with which its checkpoint was trained" in capfd.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # not the same command, but the same run
    assert trained(**{"train.max_steps": 8}) == [2] * 2
    assert trained(**{"train.max_steps": 12, "train.threads": 1}) == [1] * 4
    assert on_record() == (1, 1)


def test_threads_are_restored_after_a_failure(tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Callback):
        def after_step(self, run: Any, outcome: Any) -> None:
            raise LookupError("no such thing")

    cores(2)
    monkeypatch.setattr(threads, "_fastest", lambda run, most: (1, "threads 1 of 2"))
    with pytest.raises(LookupError):
        fit(config_of(tmp_path, model={"name": "youtube_dnn", "dim": 8}), tmp_path / "run", callbacks=[Failing()])
    assert torch.get_num_threads() == 2
