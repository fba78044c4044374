"""The split rules; tests of the store cover the users, lengths and windows that each gives."""

import ast
from pathlib import Path

import numpy as np
import pytest

from eupmim_dist.data.splits import BY_USER, GIVEN, LEAVE_ONE_OUT, NO_SPLIT, SPLIT_RULES, SplitRule

PACKAGE = Path(__file__).parents[2] / "eupmim_dist"
CODES = np.array([0, 1, NO_SPLIT, 2, 0], np.uint8)
OFFSETS = np.array([0, 3, 5, 5, 7, 10])


def test_no_other_module_knows_a_rule_by_its_name() -> None:
    names = SPLIT_RULES.keys() - {"given"}  # which is a word for other things too
    for path in PACKAGE.rglob("*.py"):
        found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.name == "splits.py" or not found & names, path


def test_interactions_belong_to_the_split_that_may_see_them() -> None:
    for rule in (BY_USER, GIVEN):
        assert rule.split_of_interactions(CODES, OFFSETS).tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 0, 0]
    codes = np.array([0, 0, NO_SPLIT, 0, 0], np.uint8)
    assert LEAVE_ONE_OUT.split_of_interactions(codes, OFFSETS).tolist() == [0, 1, 2, 1, 2, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("rule", [BY_USER, LEAVE_ONE_OUT], ids=lambda rule: rule.name)
def test_users_whose_source_says_nothing_get_codes(rule: SplitRule) -> None:
    codes = rule.codes(20)
    assert codes.dtype == np.uint8
    assert rule.lack(codes) is None
    assert rule.sizes(codes) == (
        {"train": 16, "valid": 2, "test": 2} if rule.draws else {"train": 20, "valid": 20, "test": 20}
    )


def test_a_split_without_users_is_told() -> None:
    codes = np.array([0, 0, NO_SPLIT, 2], np.uint8)
    assert BY_USER.lack(codes) == "the valid split has no user (3 users are left); 10 are enough for 80/10/10"
    assert GIVEN.lack(codes) == "the valid split has no user (3 users are left); put some there"
    assert LEAVE_ONE_OUT.lack(codes) is None


def test_what_is_held_out_is_told() -> None:
    sizes = {"train": 8000, "valid": 1000, "test": 1000}
    for rule in (BY_USER, GIVEN):
        assert rule.rows(sizes) == {"train users": "8,000", "valid users": "1,000", "test users": "1,000"}
        assert rule.sentence(sizes) == "split by user (8,000 train, 1,000 valid, 1,000 test)"
    assert LEAVE_ONE_OUT.rows(sizes) == {"held out per user": "last: test, second last: valid"}
    assert "the last item of each user for test" in LEAVE_ONE_OUT.sentence(sizes)


@pytest.mark.parametrize("rule", SPLIT_RULES.values(), ids=lambda rule: rule.name)
def test_another_split_is_refused(rule: SplitRule) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; one of train, valid, test"):
        rule.users("dev", CODES, OFFSETS)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        rule.evaluation_window(np.diff(OFFSETS), "dev")
