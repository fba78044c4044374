import pytest
import torch

from eupmim_dist.data.batch import NO_ROW, Batch
from eupmim_dist.data.sampler import TrainingSampler
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from tests.stores import small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=50)


def sampler(store: InteractionStore, rank: int = 0, world_size: int = 1, **changes: int) -> TrainingSampler:
    settings = {"seed": 1, "global_batch_size": 10, "history_length": 6, "min_history": 4, "num_negatives": 3}
    return TrainingSampler(store, **{**settings, **changes}, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [2, 3, 4, 13])
def test_ranks_share_the_batch_of_one_rank(store: InteractionStore, world_size: int) -> None:
    for step in (0, 1, 7, 1000):
        whole = sampler(store).sample(step)
        parts = [sampler(store, rank, world_size).sample(step) for rank in range(world_size)]
        for name in ("user", "attributes", "history", "target", "negatives"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
        assert {part.global_size for part in parts} == {10}


def test_samples_are_what_the_sequences_hold(store: InteractionStore) -> None:
    for step in range(20):
        batch = sampler(store).sample(step)
        assert len(set(batch.user.tolist())) == 10
        for row in range(10):
            user = int(batch.user[row])
            assert store.split[user] == 0
            sequence = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
            cut = sequence.index(int(batch.target[row]))
            assert cut >= 4
            expected = sequence[max(0, cut - 6) : cut]
            assert batch.history[row].tolist() == expected + [NO_ROW] * (6 - len(expected))
            assert batch.attributes[row].tolist() == store.attribute_values[user].tolist()
            negatives = batch.negatives[row].tolist()
            assert len(set(negatives)) == 3
            assert not set(negatives) & {*expected, sequence[cut]}


def test_every_user_comes_once_an_epoch_and_targets_are_uniform(store: InteractionStore) -> None:
    drawn = sampler(store)
    seen = torch.cat([drawn.sample(step).user for step in range(drawn.steps_per_epoch)])
    assert len(seen) == 30
    assert len(set(seen.tolist())) == 30
    user = int(drawn.users[0])
    length = int(drawn.lengths[0])
    targets = [
        int(batch.target[row])
        for step in range(1500)
        for batch in [drawn.sample(step)]
        for row in (batch.user == user).nonzero().flatten().tolist()
    ]
    allowed = store.items[store.offsets[user] + 4 : store.offsets[user] + length].tolist()
    assert set(targets) == set(allowed)
    expected = len(targets) / len(allowed)
    chi_square = sum((targets.count(item) - expected) ** 2 / expected for item in allowed)
    assert chi_square < 60  # at most 15 degrees of freedom


def test_negatives_are_uniform_over_all_rows_with_row_0(store: InteractionStore) -> None:
    drawn = sampler(store, global_batch_size=30, num_negatives=10)
    counts = torch.zeros(store.num_item_rows)
    allowed = torch.zeros(store.num_item_rows)
    for step in range(400):
        batch: Batch = drawn.sample(step)
        counts += torch.bincount(batch.negatives.flatten(), minlength=store.num_item_rows)
        excluded = torch.cat([batch.history, batch.target[:, None]], dim=1)
        free = torch.ones(30, store.num_item_rows)
        free.scatter_(1, excluded.clamp(min=0), 0.0)
        free[:, 0] = 1.0
        allowed += (10 / free.sum(1, keepdim=True) * free).sum(0)
    assert ((counts - allowed).abs() / allowed.sqrt() < 5).all()


def test_a_batch_larger_than_the_users_repeats_them_evenly(store: InteractionStore) -> None:
    batch = sampler(store, global_batch_size=75).sample(3)
    counts = torch.bincount(batch.user, minlength=50)[:30]
    assert counts.min() == 2
    assert counts.max() == 3


def test_mistakes_name_the_key(store: InteractionStore) -> None:
    with pytest.raises(UserError, match=r"data\.min_history=20"):
        sampler(store, min_history=20)
    with pytest.raises(UserError, match=r"train\.num_negatives.*at most 24"):
        sampler(store, num_negatives=25)


def test_short_users_are_dropped_and_counted(store: InteractionStore) -> None:
    lengths = store.train_lengths(store.users("train"))
    drawn = sampler(store, min_history=10)
    assert drawn.num_dropped == (lengths <= 10).sum() > 0
