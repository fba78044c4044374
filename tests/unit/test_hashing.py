"""SHA-256 of files and of blocks."""

import hashlib
from pathlib import Path

import pytest

from eupmim_dist import hashing
from eupmim_dist.hashing import file_entry, running_sha256, sha256, sha256_of_json


def test_a_file_is_hashed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "HASHED_AT_A_TIME", 10)
    (tmp_path / "file").write_bytes(bytes(range(25)))
    expected, heard = hashlib.sha256(bytes(range(25))).hexdigest(), []
    assert sha256(tmp_path / "file", heard.append) == expected
    assert heard == [10, 10, 5]
    assert file_entry(tmp_path / "file") == {"size": 25, "sha256": expected}


@pytest.mark.parametrize("beside", [False, True])
def test_blocks_are_hashed_in_their_order(beside: bool) -> None:
    blocks = [b"one", memoryview(b"two"), b"", b"three"]
    with running_sha256(beside) as digest:
        for block in blocks:
            digest.update(block)
    assert digest.hexdigest() == hashlib.sha256(b"onetwothree").hexdigest()


def test_a_value_is_hashed_whatever_the_order_of_its_keys() -> None:
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})
