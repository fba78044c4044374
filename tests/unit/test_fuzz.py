"""A short fuzzing, and what it counts as a bad answer."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.fuzz import tensors
from tests.fuzz.cases import KINDS
from tests.fuzz.fitting import fit_checksum, sha256_of_json
from tests.fuzz.judging import judged
from tests.fuzz.place import Plan, seen
from tests.fuzz.running import EXTRA_BYTES, Ended
from tests.fuzz.values import changed_json

ROOT = Path(__file__).parents[2]


def test_two_changes_of_each_kind_and_some_by_chance_are_answered_well() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--chosen", "2", "--cases", "14", "--seed", "11", "--jobs", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, errors="replace")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [total] = [line.split() for line in ended.stdout.splitlines() if line.startswith("all ")]
    cases, succeeded, refused, bad = map(int, total[1:])
    assert (cases, bad) == (2 * len(KINDS) + 14, 0)
    assert min(succeeded, refused) > 3


REFUSED = Ended(["evaluate", "run", "--out", "new"], {}, 2, False, 0.1, 0, "error: run: no such directory\n")
PLAN = Plan("", [REFUSED.words])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (REFUSED, None),
        (replace(REFUSED, code=0, error="warning: one\n" * 9), None),
        (replace(REFUSED, code=1), "exit code"),
        (replace(REFUSED, code=-11), "exit code"),
        (replace(REFUSED, code=75), "exit code"),
        (replace(REFUSED, error="x" * 1000 + "\n"), None),
        (replace(REFUSED, error="x" * 1001 + "\n"), "too long"),
        (replace(REFUSED, error="x\n" * 5), "too long"),
        (replace(REFUSED, error="error: log.csv: 1,204 bad rows; mend them\n" + "x\n" * 25), None),
        (replace(REFUSED, error="error: log.csv: 1,204 bad rows; mend them\n" + "x\n" * 26), "too long"),
        (replace(REFUSED, error=""), "no word"),
        (replace(REFUSED, code=0, error="Traceback (most recent call last):\n"), "traceback"),
        (replace(REFUSED, code=-6, hung=True), "hang"),
        (replace(REFUSED, memory=EXTRA_BYTES + 1), "memory"),
        (replace(REFUSED, code=1, error="error: MemoryError: Unable to allocate 8 GiB\n"), "memory"),
        (replace(REFUSED, error="error: dim: needs 8 GB, which cannot be allocated: out of memory\n"), None),
    ],
)
def test_an_answer_is_judged(tmp_path: Path, answer: Ended, kind: str | None) -> None:
    assert [found for found, _ in judged(PLAN, [answer], tmp_path)] == ([kind] if kind else [])


def test_what_must_work_or_be_refused(tmp_path: Path) -> None:
    assert [kind for kind, _ in judged(replace(PLAN, must=0), [REFUSED], tmp_path)] == ["refused"]
    assert [kind for kind, _ in judged(replace(PLAN, must=2), [replace(REFUSED, code=0)], tmp_path)] == ["accepted"]
    assert not judged(replace(PLAN, must=2), [REFUSED], tmp_path)


@pytest.mark.parametrize("name", ["new", ".new.incomplete", ".new.partial-0a1b", ".new.work-x"])
def test_what_is_left_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "before").mkdir()
    before = seen(tmp_path)
    (tmp_path / name).mkdir()
    assert [kind for kind, _ in judged(PLAN, [replace(REFUSED, before=before)], tmp_path)] == ["half-written"]
    assert not judged(PLAN, [replace(REFUSED, before=seen(tmp_path))], tmp_path)


def test_numbers_that_are_not_finite_are_found_in_what_was_written(tmp_path: Path) -> None:
    def write(value: float) -> None:
        (tmp_path / "out.json").write_text(json.dumps([{"score": value}]))
        (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": {"recall@5": value}}))
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"loss": value}) + "\n")
        np.save(tmp_path / "items.npy", np.array([[1, value]], np.float32))
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        tensors.write(tmp_path / "m.safetensors", json.dumps({"dense.x": entry}), np.array([1, value], "<f4").tobytes())

    done = replace(REFUSED, code=0)
    write(1.0)
    assert not judged(PLAN, [done], tmp_path)
    write(float("nan"))
    assert [kind for kind, _ in judged(PLAN, [done], tmp_path)] == ["not finite"] * 5
    assert not judged(PLAN, [replace(done, before=seen(tmp_path))], tmp_path)  # was there before


def test_a_change_is_of_its_seed_and_its_hashes_fit(tmp_path: Path) -> None:
    tree = {"format_version": 4, "files": {"a": {"size": 1}}, "checksum": "0" * 64}
    texts = [changed_json(json.loads(json.dumps(tree)), Random(f"1 {number}")) for number in range(200)]
    assert texts == [changed_json(json.loads(json.dumps(tree)), Random(f"1 {number}")) for number in range(200)]
    assert len(set(texts)) > 100
    assert json.dumps(tree) not in texts
    file = tmp_path / "manifest.json"
    file.write_text('{"a": 1, "a": [2], "checksum": "0"}')  # a key twice: the text stays as it is
    fit_checksum(file)
    assert file.read_text() == f'{{"a": 1, "a": [2], "checksum": "{sha256_of_json({"a": [2]})}"}}'
