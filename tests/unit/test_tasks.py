"""next_item, and the negatives that uniform candidates are drawn from."""

import time

import pytest
import torch

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.counter import permute, stream_key
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.objectives.negatives import draw_negatives
from eupmim_dist.tasks.interface import Setting
from eupmim_dist.tasks.next_item import NextItem, NextItemConfig
from tests.stores import small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=50)


def task(store: InteractionStore, rank: int = 0, world_size: int = 1, batch: int = 10, least: int = 4) -> NextItem:
    setting = Setting(
        store=store,
        seed=1,
        global_batch_size=batch,
        causal=False,
        zero_untrained=True,
        rank=rank,
        world_size=world_size,
    )
    return NextItem(NextItemConfig(history_length=6, min_history=least), setting)


@pytest.mark.parametrize("world_size", [2, 3, 4, 13])
def test_ranks_share_the_batch_of_one_rank(store: InteractionStore, world_size: int) -> None:
    for step in (0, 1, 7, 1000):
        whole = task(store).sample(step)
        parts = [task(store, rank, world_size).sample(step) for rank in range(world_size)]
        for name in ("user", "attributes", "history", "position", "target", "counter"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
        assert {part.num_predictions for part in parts} == {10}
        assert {part.capacity for part in parts} == {max(len(part) for part in parts)}
        for part in (task(store, rank, world_size) for rank in range(world_size)):
            assert torch.equal(part.targets(step), whole.target.flatten())


def test_samples_are_what_the_sequences_hold(store: InteractionStore) -> None:
    for step in range(20):
        batch = task(store).sample(step)
        assert len(set(batch.user.tolist())) == 10
        for row in range(10):
            user = int(batch.user[row])
            assert store.split[user] == 0
            sequence = store.items[store.offsets[user] : store.offsets[user + 1]].tolist()
            cut = sequence.index(int(batch.target[row]))
            assert cut >= 4
            expected = sequence[max(0, cut - 6) : cut]
            assert batch.history[row].tolist() == expected + [NO_ROW] * (6 - len(expected))
            assert batch.position[row].tolist() == [len(expected) - 1]
            assert batch.attributes[row].tolist() == store.attribute_values[user].tolist()


def test_every_user_comes_once_an_epoch_and_targets_are_uniform(store: InteractionStore) -> None:
    drawn = task(store)
    seen = torch.cat([drawn.sample(step).user for step in range(drawn.training.steps_per_epoch)])
    assert len(seen) == 30
    assert len(set(seen.tolist())) == 30
    user = int(drawn.training.users[0])
    length = int(drawn.training.lengths[0])
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
    drawn, rows = task(store, batch=30), store.num_item_rows
    counts, allowed = torch.zeros(rows), torch.zeros(rows)
    for step in range(400):
        batch = drawn.sample(step)
        excluded = torch.cat([batch.history, batch.target], dim=1)
        negatives = draw_negatives(1, batch.counter.flatten(), excluded, 10, rows)
        assert not (negatives[:, :, None] == excluded[:, None, :]).any()
        assert all(len(set(row)) == 10 for row in negatives.tolist())
        counts += torch.bincount(negatives.flatten(), minlength=rows)
        free = torch.ones(30, rows)
        free.scatter_(1, excluded.clamp(min=0), 0.0)
        free[:, 0] = 1.0
        allowed += (10 / free.sum(1, keepdim=True) * free).sum(0)
    assert ((counts - allowed).abs() / allowed.sqrt() < 5).all()


def test_a_batch_larger_than_the_users_repeats_them_evenly(store: InteractionStore) -> None:
    batch = task(store, batch=75).sample(3)
    counts = torch.bincount(batch.user, minlength=50)[:30]
    assert counts.min() == 2
    assert counts.max() == 3


@pytest.mark.parametrize("batch", [1, 7, 29, 30, 31, 61, 3000])
def test_the_order_of_the_users_is_a_permutation_for_every_lap(store: InteractionStore, batch: int) -> None:
    training = task(store, batch=batch).training
    count, steps = len(training), training.steps_per_epoch
    for epoch in (0, 3):
        positions = torch.arange(batch * steps)
        expected = torch.cat(
            [
                permute(stream_key(1, "users", epoch, lap), positions[positions // count == lap] % count, count)
                for lap in range(-(-len(positions) // count))
            ]
        ).view(steps, batch)
        for step in range(steps):
            for first, stop in ((0, batch), (batch // 3, batch), (batch // 3, batch // 3)):
                found = training.chosen(epoch * steps + step, first, stop)
                assert torch.equal(found, expected[step, first:stop])


def test_a_batch_of_many_laps_takes_time_in_proportion(store: InteractionStore) -> None:
    """A pass over all positions for each of its 10,000 laps would take minutes."""
    started = time.process_time()
    task(store, batch=300_000).training.chosen(0, 0, 300_000)
    assert time.process_time() - started < 5


def test_users_who_are_too_short_are_dropped_and_counted(store: InteractionStore) -> None:
    lengths = store.train_lengths(store.users("train"))
    drawn = task(store, least=10)
    assert drawn.training.num_dropped == (lengths <= 10).sum() > 0
    with pytest.raises(UserError, match=r"task\.min_history=20 items; lower it"):
        task(store, least=20).sample(0)


def test_users_to_rank_for_are_those_asked_for(store: InteractionStore) -> None:
    users = store.users("test")[:3]
    batch = task(store).to_rank(users, store.lengths(users) - 2)
    assert batch.user.tolist() == [NO_ROW] * 3  # no one has trained on them
    for row, user in enumerate(users):
        sequence = store.items[store.offsets[user] : store.offsets[user + 1] - 2].tolist()[-6:]
        assert batch.history[row].tolist() == sequence + [NO_ROW] * (6 - len(sequence))
        assert batch.position[row].tolist() == [len(sequence) - 1]
    assert batch.target is None
    trained = store.users("train")[:3]
    assert task(store).to_rank(trained, store.lengths(trained)).user.tolist() == trained.tolist()


def test_the_share_of_an_item_is_how_often_it_is_the_target(store: InteractionStore) -> None:
    drawn = task(store, batch=30)
    counts = torch.zeros(store.num_item_rows)
    for step in range(2000):
        counts += torch.bincount(drawn.sample(step).target.flatten(), minlength=store.num_item_rows)
    expected = drawn.target_share * counts.sum()
    assert float(drawn.target_share.sum()) == pytest.approx(1.0)
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1e-9).all()
    # What stands before the first possible target, and nowhere else, is never one.
    heads = {int(i) for u in drawn.training.users for i in store.items[store.offsets[u] : store.offsets[u] + 4]}
    tails = {int(i) for u in drawn.training.users for i in store.items[store.offsets[u] + 4 : store.offsets[u + 1]]}
    assert not drawn.target_share[sorted(heads - tails)].any()
