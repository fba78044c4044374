"""Controllable aggregation and Diversity@N against plain loops."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from eupmim_dist.evaluation.diversity import diversify, diversity

NUM_ITEM_ROWS = 40


def same_category(one: int, other: int, categories: list[int]) -> bool:
    return one == other or (categories[one] == categories[other] and categories[one] != -1)


def plain_diversify(scores: list[float], ids: list[int], categories: list[int], strength: float, num: int) -> list[int]:
    """One user's list, item by item."""
    left = {item: score for item, score in zip(ids, scores, strict=True) if item != -1}
    taken: list[int] = []
    while left and len(taken) < num:
        values = {
            item: score - strength * sum(same_category(item, before, categories) for before in taken)
            for item, score in left.items()
        }
        best = min(item for item in values if values[item] == max(values.values()))
        taken.append(best)
        del left[best]
    return taken + [-1] * (num - len(taken))


def plain_diversity(ids: list[int], categories: list[int]) -> float:
    pairs = list(combinations([item for item in ids if item != -1], 2))
    return sum(not same_category(*pair, categories) for pair in pairs) / len(pairs) if pairs else 0.0


def ranking(num_users: int, num: int, seed: int, past: float = -math.inf) -> tuple[Tensor, Tensor, Tensor]:
    """Lists that end anywhere, best first, with many equal scores and `past` at the end; categories, some unknown."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(NUM_ITEM_ROWS, generator=generator)[:num] for _ in range(num_users)])
    scores = torch.randint(-6, 6, (num_users, num), generator=generator).double() / 10
    length = torch.randint(0, num + 1, (num_users, 1), generator=generator)
    length[0] = num
    scores, ended = scores.sort(dim=1, descending=True).values, torch.arange(num) >= length
    categories = torch.randint(-1, 5, (NUM_ITEM_ROWS,), generator=generator)
    return scores.masked_fill(ended, past), ids.masked_fill(ended, -1), categories


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3, 1.0, 100.0])
@pytest.mark.parametrize(("num", "past"), [(1, -math.inf), (5, 7.0), (12, -math.inf), (12, 7.0), (15, -math.inf)])
def test_lists_are_those_of_the_plain_loop(strength: float, num: int, past: float) -> None:
    scores, ids, categories = ranking(30, 12, seed=num, past=past)
    found = diversify(scores, ids, categories, strength, num)
    arguments = zip(scores.tolist(), ids.tolist(), strict=True)
    expected = [plain_diversify(score, item, categories.tolist(), strength, num) for score, item in arguments]
    assert found.tolist() == expected


def test_strength_trades_scores_for_variety() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 1.0, 0.5]], dtype=torch.float64)
    ids = torch.tensor([[9, 2, 7, 4, 1]])
    categories = torch.zeros(10, dtype=torch.int64)
    categories[[4, 1]] = 1
    for strength, expected in ((0.0, [9, 2, 7]), (1.5, [9, 2, 4]), (3.5, [9, 4, 2]), (1e9, [9, 4, 2])):
        assert diversify(scores, ids, categories, strength, 3).tolist() == [expected], strength


def test_items_of_unknown_category_are_like_no_other() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    ids, unknown = torch.tensor([[0, 1, 2]]), torch.full((3,), -1)
    assert diversify(scores, ids, unknown, 10.0, 3).tolist() == [[0, 1, 2]]
    assert diversity(ids, unknown).tolist() == [1.0]


def test_equal_values_go_by_the_smaller_id_wherever_they_are_listed() -> None:
    scores = torch.ones(1, 4, dtype=torch.float64)
    ids = torch.tensor([[8, 3, 6, 1]])
    assert diversify(scores, ids, torch.arange(10), 1.0, 4).tolist() == [[1, 3, 6, 8]]


@pytest.mark.parametrize("num", [1, 2, 7, 20])
def test_diversity_is_the_share_of_pairs(num: int) -> None:
    _, ids, categories = ranking(30, num, seed=num)
    found = diversity(ids, categories)
    assert found.dtype == torch.float64
    expected = [plain_diversity(items, categories.tolist()) for items in ids.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_no_users() -> None:
    scores, ids, categories = ranking(3, 4, seed=0)
    assert diversify(scores[:0], ids[:0], categories, 1.0, 2).shape == (0, 2)
    assert diversity(ids[:0], categories).shape == (0,)
