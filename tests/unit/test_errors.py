"""A mistake in the words of whoever reads it."""

import pickle

import pytest

from eupmim_dist.errors import UserError, listed, short, shown


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


def test_long_values_and_messages_are_cut_in_the_middle() -> None:
    assert shown("a\n") == repr("a\n")
    assert short("x" * 80) == "x" * 80
    cut = shown("begin" + "x" * 100_000 + "end")
    assert cut.startswith("'begin")
    assert cut.endswith("end'")
    assert "100,010 characters" in cut
    assert len(cut) < 120
    told = UserError(f"log.csv:3: {'y' * 5000}; mend it with --out").as_typed
    assert told.startswith("log.csv:3: y")
    assert told.endswith("y; mend it with --out")
    assert len(told) < 750


def test_what_would_not_be_seen_is_shown() -> None:
    assert UserError("two\nlines \x1b[0m: \ufeffx\udcff é").as_typed == "two lines \\x1b[0m: \\ufeffx\\udcff é"
    assert short("a\tb\n") == "a\\tb\\n"
    assert shown(10**5000) == "<int>"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "<list>"


def test_many_names_are_the_first_of_them() -> None:
    assert listed(["who", "what"]) == "who, what"
    assert listed([]) == "none"
    many = listed(f"column {n}" for n in range(1000))
    assert many.startswith("column 0, column 1, ")
    assert many.endswith("column 11, and 988 more")
