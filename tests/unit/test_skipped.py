"""Steps whose gradients were not finite end the training after 20 in a row, wherever the log's windows end."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from eupmim_dist.errors import UserError
from eupmim_dist.parallel.verdict import Verdict
from eupmim_dist.train.skipped import MOST_SKIPPED, SkippedHook
from eupmim_dist.train.state import Outcome, Progress, Run
from tests.runs import config_of, train_in
from tests.unit.test_training import logged, spoil

pytestmark = pytest.mark.usefixtures("one_thread")


def end_of(verdicts: list[bool], every: int = 1) -> tuple[int, str] | None:
    """After which step the hook ended such a training, and what it said; it looks after `every` steps."""
    hook, run = SkippedHook(torch.device("cpu")), cast(Run, SimpleNamespace(progress=Progress()))
    hook._every = every
    try:
        for ok in verdicts:
            run.progress.step += 1
            hook.after_step(run, Outcome({}, Verdict(torch.tensor(1.0), torch.tensor(ok), None)))
        hook.at_end(run)
    except UserError as error:
        return run.progress.step, str(error)
    return None


def counted(verdicts: list[bool], every: int) -> tuple[int, str] | None:
    """The same, by counting."""
    longest = until = in_a_row = 0
    for step, ok in enumerate(verdicts, 1):
        in_a_row = 0 if ok else in_a_row + 1
        if in_a_row > longest:
            longest, until = in_a_row, step
        if longest >= 20 and (step % every == 0 or step == len(verdicts)):
            return step, f"step {until}: the gradients of the last {longest} steps were not finite"
    return None


@pytest.mark.parametrize("bad", [30, 49, 69])
def test_bad_steps_end_the_training_after_twenty_wherever_they_begin(bad: int) -> None:
    for before in range(120):  # of windows of 50 steps
        found = end_of([True] * before + [False] * bad + [True] * 50)
        assert found is not None, before
        assert found[0] == before + 20
        assert f"step {before + 20}: the gradients of the last 20 steps were not finite" in found[1]
    assert end_of([True] * 7 + ([False] * 19 + [True]) * 10) is None


@pytest.mark.parametrize("every", [1, MOST_SKIPPED])
def test_what_is_found_is_what_counting_finds(every: int) -> None:
    """A GPU is asked now and then only; what has ended by then is found too, and the last steps at the end."""
    drawn, ended = random.Random(1), 0
    for _ in range(60):
        verdicts: list[bool] = []
        while len(verdicts) < 90:
            verdicts += [len(verdicts) % 2 == 0] * drawn.choice((1, 2, 19, 20, 21, 45))
        expected = counted(verdicts, every)
        found = end_of(verdicts, every)
        assert (found is None) == (expected is None)
        if found and expected:
            ended += 1
            assert found[0] == expected[0]
            assert found[1].startswith(expected[1])
    assert 10 < ended < 60


def test_a_training_goes_on_counting_across_a_windows_edge(tmp_path: Path) -> None:
    model = {"name": "youtube_dnn", "dim": 8}
    config = config_of(tmp_path, model=model, train__log_every=25, train__max_steps=60, evaluation__every=60)
    with pytest.raises(UserError, match=r"step 31: the gradients of the last 20 steps were not finite"):
        train_in(config, tmp_path / "across", spoil(*range(11, 41)))  # 14 of them in a window, 16 in the next
    assert [line["skipped_steps"] for line in logged(tmp_path / "across") if "skipped_steps" in line] == [14]
