"""Whether a case was answered well: exit 0 with finite results, or exit 2 with a few short lines and nothing left."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.place import Plan, Seen, seen
from tests.fuzz.running import EXTRA_BYTES, Ended

MOST_LINES, LONGEST_LINE = 4, 1000
BAD_ROWS, MOST_BAD_ROWS = re.compile(r"error: .*: [0-9,]+ bad rows; .*"), 26
"""The first line of an answer that tells the rows of a source, and the lines it may have."""
UNFINISHED = re.compile(r"\..*\.(incomplete|partial|work|removed|replaced)")
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|out of memory|memory allocation of|Unable to allocate|can(no|')t allocate memory",
    re.IGNORECASE,
)
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def judged(plan: Plan, ended: list[Ended], here: Path) -> list[tuple[str, str]]:
    """What is bad about it: kinds, each with a detail."""
    after = seen(here)
    found = [wrong for one in ended for wrong in _answer(one)]
    found += [wrong for one in ended for wrong in _left(one, after)]
    if plan.must == 0 and ended[0].code == 2:
        found.append(("refused", "nothing is wrong with what it was given"))
    if plan.must == 2 and ended[0].code == 0:
        found.append(("accepted", "what it was given cannot be right"))
    if ended[-1].code == 0 or len(ended) > 1:
        found += [("not finite", detail) for detail in _not_finite(here, ended[0].before, after)]
    return list(dict.fromkeys(found))


def _answer(one: Ended) -> Iterator[tuple[str, str]]:
    """Of one command: its exit code and standard error."""
    if one.hung:
        yield "hang", where(one.error)
        return
    lines = one.error.splitlines()
    traceback = any(line.startswith("Traceback (most recent call last)") for line in lines)
    if one.memory > EXTRA_BYTES or (one.code not in (0, 2) and NO_MEMORY.search(one.error)):
        yield "memory", f"{one.memory / 1e9:.1f} GB more than at the start"
    elif traceback:
        yield "traceback", f"exit code {one.code}"
    elif one.code not in (0, 2):
        yield "exit code", str(one.code)
    if one.code == 2:
        longest = max(map(len, lines), default=0)
        most = MOST_BAD_ROWS if lines and BAD_ROWS.fullmatch(lines[0]) else MOST_LINES
        if len(lines) > most or longest > LONGEST_LINE:
            yield "too long", f"{len(lines)} lines, the longest of {longest} characters"
        elif not lines:
            yield "no word", ""


def where(error: str) -> str:
    """The innermost line of this program in a traceback, of the thread that was running."""
    lines = [line.strip() for line in error.splitlines() if re.search(r"File .*eupmim_dist/", line)]
    if not lines:
        return ""
    line = lines[0] if "most recent call first" in error else lines[-1]
    return re.sub(r'File ".*/(eupmim_dist/[^"]*)", line (\d+),? in (\S+)', r"\1:\2 \3", line)


def _left(one: Ended, after: Seen) -> Iterator[tuple[str, str]]:
    """What a command that was refused left in its place, and what any left unfinished."""
    if one.code == 2:
        for option in ("--out", "--json"):
            for path in _values(one.words, option):
                name = os.path.normpath(path)
                if name in after and name not in one.before:
                    yield "half-written", f"{option} exists after exit code 2"
    for path in after.keys() - one.before.keys():
        if not one.hung and UNFINISHED.match(os.path.basename(path)):
            yield "half-written", f"left {re.sub(r'[0-9]+', 'N', os.path.basename(path))}"


def _values(command: list[str], option: str) -> Iterator[str]:
    for word, value in zip(command, [*command[1:], ""], strict=True):
        if word == option and value:
            yield value
        elif word.startswith(f"{option}="):
            yield word.partition("=")[2]


def _not_finite(here: Path, before: Seen, after: Seen) -> Iterator[str]:
    """Files that were written and hold numbers that are not finite."""
    for name, state in after.items():
        path = here / name
        if before.get(name) == state or not path.is_file() or path.is_symlink():
            continue
        old = before[name][1] if name in before else 0
        if path.suffix == ".jsonl" or path.name in ("evaluation.json", "out.json"):
            content = path.read_bytes()
            start = old if path.suffix == ".jsonl" and old < len(content) else 0  # what was added
            text = content[start:].decode("utf-8", "replace")
            documents = text.split("\n")[1 if start else 0 : -1] if path.suffix == ".jsonl" else [text]
            try:
                if not all(_finite(json.loads(document)) for document in documents):
                    yield f"a number in {path.name}"
            except ValueError as error:
                yield f"{path.name} is no JSON: {error}"
        elif path.suffix in (".safetensors", ".npy") and (kinds := _bad_tensors(path)):
            yield f"{', '.join(sorted(kinds))} in {path.suffix}"


def _finite(content: Any) -> bool:
    if isinstance(content, dict | list):
        return all(map(_finite, content.values() if isinstance(content, dict) else content))
    return not isinstance(content, float) or math.isfinite(content)


def _bad_tensors(path: Path) -> set[str]:
    """The kinds of a file's tensors that hold a number that is not finite."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return {"array"} if array.dtype.kind == "f" and not np.isfinite(array).all() else set()
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = set()
    for name, tensor in json.loads(content[8:start]).items():
        if name != "__metadata__" and tensor["dtype"] in DTYPES:
            first, last = tensor["data_offsets"]
            if not np.isfinite(np.frombuffer(content[start + first : start + last], DTYPES[tensor["dtype"]])).all():
                found.add(name.partition(".")[0])
    return found
