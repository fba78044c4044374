"""A mistake in the words of whoever reads it."""

import pickle

import pytest

from eupmim_dist.errors import UserError


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--min-count 0: give 1 or more", "min_count 0: give 1 or more"),
        ("out: already there; give --force or another --out", "out: already there; give force or another out"),
        ("--user u9, (--protocol) and --set a=1", "users u9, (protocols) and overrides a=1"),
        ("use `eupmim-dist launch --nproc 3 -- ...`, or --cpu", "use `eupmim-dist launch --nproc 3 -- ...`, or cpu"),
        ("runs/a--b: 3 -- 4 ---x", "runs/a--b: 3 -- 4 ---x"),
    ],
)
def test_an_option_is_typed_on_the_command_line_and_an_argument_in_python(typed: str, read: str) -> None:
    error = UserError(typed)
    assert (str(error), error.as_typed) == (read, typed)
    assert pickle.loads(pickle.dumps(error)).as_typed == typed  # as ranks send it to each other
