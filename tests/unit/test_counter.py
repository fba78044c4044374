import torch
from hypothesis import given
from hypothesis import strategies as st

from eupmim_dist.data.counter import permute, random_bits, random_integers, random_normal, stream_key


@given(size=st.integers(1, 3000), seed=st.integers(0, 5))
def test_permute_is_a_bijection(size: int, seed: int) -> None:
    result = permute(stream_key(seed, "users"), torch.arange(size), size)
    assert torch.equal(result.sort().values, torch.arange(size))


def test_permute_does_not_depend_on_what_is_asked_together() -> None:
    key = stream_key(1, "x")
    whole = permute(key, torch.arange(1000), 1000)
    assert torch.equal(permute(key, torch.tensor([17, 999, 3]), 1000), whole[[17, 999, 3]])


def test_permutations_of_different_keys_differ_and_mix() -> None:
    one, two = (permute(stream_key(0, "users", epoch), torch.arange(5000), 5000).double() for epoch in (0, 1))
    positions = torch.arange(5000).double()
    for first, second in ((one, two), (one, positions), (two, positions)):
        correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].abs()
        assert correlation < 0.06  # four standard deviations


def test_bits_are_fair_and_avalanche() -> None:
    counters = torch.arange(20000)
    shifts = torch.arange(64)
    bits = (random_bits(stream_key(3, "bits"), counters)[:, None] >> shifts) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 0.018).all()  # five standard deviations
    flipped = (random_bits(stream_key(3, "bits"), counters ^ 1)[:, None] >> shifts) & 1
    assert abs((bits != flipped).double().mean().item() - 0.5) < 0.005


def test_integers_are_uniform() -> None:
    drawn = random_integers(stream_key(0, "integers"), torch.arange(70000), 7)
    counts = torch.bincount(drawn, minlength=7)
    chi_square = ((counts - 10000.0) ** 2 / 10000.0).sum()
    assert chi_square < 27.9  # 6 degrees of freedom, p = 1e-4


def test_normal_rows_depend_on_the_row_alone() -> None:
    key = stream_key(5, "table", "item")
    whole = random_normal(key, torch.arange(1000), 7)
    assert whole.shape == (1000, 7)
    assert torch.equal(random_normal(key, torch.arange(300, 320), 7), whole[300:320])
    some = torch.tensor([999, 0, 17, 17])
    assert torch.equal(random_normal(key, some, 7), whole[some])
    assert random_normal(key, torch.arange(0), 7).shape == (0, 7)
    assert abs(whole.mean().item()) < 0.05
    assert abs(whole.std().item() - 1) < 0.05
    wide = random_normal(key, torch.arange(4000), 8).flatten()
    assert abs((wide**4).mean().item() - 3.0) < 0.3  # a normal's kurtosis
