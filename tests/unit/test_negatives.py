"""Negatives found by sorting against a plain comparison of everything with everything, bit for bit."""

from itertools import product

import pytest
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.counter import random_integers, stream_key
from eupmim_dist.objectives.negatives import draw_negatives


def drawn_plainly(seed: int, counter: Tensor, excluded: Tensor, num: int, num_rows: int) -> Tensor:
    counters = counter[:, None] * num + torch.arange(num)
    earlier = torch.ones(num, num, dtype=torch.bool).tril(-1)
    drawn = random_integers(stream_key(seed, "negatives", 0), counters, num_rows)
    attempt = 0
    while True:
        collides = (drawn[:, :, None] == excluded[:, None, :]).any(-1)
        collides |= ((drawn[:, :, None] == drawn[:, None, :]) & earlier).any(-1)
        if not collides.any():
            return drawn
        attempt += 1
        again = random_integers(stream_key(seed, "negatives", attempt), counters, num_rows)
        drawn = torch.where(collides, again, drawn)


def check(seed: int, counter: Tensor, excluded: Tensor, num: int, num_rows: int) -> None:
    found = draw_negatives(seed, counter, excluded, num, num_rows)
    expected = drawn_plainly(seed, counter, excluded, num, num_rows)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected), (num, excluded.shape, num_rows)


@pytest.mark.parametrize("room", [0, 1, 5, 1000, 2**31, 2**40])
def test_negatives_are_those_of_a_plain_comparison(room: int) -> None:
    """`room`: how many rows there are beyond those that are drawn or excluded; with none all are drawn, in the end."""
    generator = torch.Generator().manual_seed(room)
    for seed, (num, num_excluded, predictions) in enumerate(product((1, 2, 7, 48), (0, 1, 2, 11), (0, 1, 30))):
        rows = num + num_excluded + room
        counter = torch.randint(2**40, (predictions,), generator=generator)
        excluded = torch.randint(NO_ROW, rows, (predictions, num_excluded), generator=generator)
        check(seed, counter, excluded, num, rows)
        check(seed, counter, excluded % 3, num, max(rows, num + 3))  # which repeat


def test_histories_without_items_exclude_their_target_alone() -> None:
    excluded = torch.full((200, 6), NO_ROW)
    excluded[:, -1] = 2
    check(0, torch.arange(200), excluded, 4, 5)


def test_ids_too_large_to_be_sorted_are_refused() -> None:
    with pytest.raises(OverflowError, match=f"12 of {2**60} rows"):
        draw_negatives(0, torch.arange(3), torch.zeros(3, 2, dtype=torch.int64), 10, 2**60)
